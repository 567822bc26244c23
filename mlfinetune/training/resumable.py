"""Refusals of a run that cannot be resumed as it is asked for, before its first byte is written.

    run directory, state, config, data -> require_resumable -> nothing, or an error

    differs from the run                        without --allow-changed   with it
    labels: others, more, fewer, another order  refused                   refused
    backbone, optimizer, shape of a weight      refused                   refused
    size of the pictures, and their resizing    refused                   refused
    fewer epochs than are trained               refused                   refused
    other settings and data                     refused                   allowed, with a state
    keys that change nothing                    allowed                   allowed

A run without a state has to be trained anew. Where it holds weights or results, those would be
lost, so its settings have to be the same. Where it holds none, every change is allowed.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mlfinetune.config import Config, load_config
from mlfinetune.data.manifest import Splits, digest_manifest
from mlfinetune.errors import CheckpointError, ConfigError
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.results import read_training_digest
from mlfinetune.runs.trained_on import read_trained_on
from mlfinetune.text import display_path, format_list, list_some, pluralize
from mlfinetune.training.build import build_training_optimizer, precomputes_features, uses_lbfgs
from mlfinetune.training.optim import fit_optimizer_state
from mlfinetune.training.resume import (
    ResumeState,
    collect_settings,
    list_changes,
    require_no_changes,
    require_same_run,
)
from mlfinetune.training.setup import TrainingSetup

_ANEW = "train anew, without --resume"


def require_resumable(
    run: Path, state: ResumeState | None, setup: TrainingSetup, allow_changed: bool
) -> None:
    """Raise an error where the run cannot be resumed; nothing is written.

    Args:
        run: the run directory.
        state: its newest whole state; None: it has none.
        setup: of the run, as it would go on.
        allow_changed: `--allow-changed` was given.

    Raises:
        ConfigError: it has other labels, or settings and data that differ.
        CheckpointError: its state or best checkpoint does not fit the model, or is damaged.
    """
    holds_results = any(
        (run / name).is_file() for name in (directory.BEST, directory.LAST, directory.METRICS)
    )
    if state is not None or holds_results:
        _require_same_outputs(run, state, setup)
    if state is not None:
        if not allow_changed:
            require_same_run(state, setup.config, setup.splits)
        _require_fits(run, state, setup)
        read_trained_on(run)  # the pictures of this command are added to those in it
    elif (run / directory.CONFIG).is_file():
        _require_same_config(run, setup.config, setup.splits, allow_changed, holds_results)


def _require_same_config(
    run: Path, config: Config, splits: Splits, allow_changed: bool, holds_results: bool
) -> None:
    """Compare the settings with the run's own config.yaml.

    A run has no resume state before its first epoch, nor where L-BFGS solved for the head. Its data
    is compared with what its checkpoint and its metrics.json know.
    """
    recorded = load_config(run / directory.CONFIG)
    if recorded.model.levels == "auto":  # of an earlier version, which had one and named none
        recorded = recorded.update_section("model", levels=1)
    changes = list_changes(collect_settings(recorded), collect_settings(config))
    known = {"training data": read_training_digest(run)}
    if (run / directory.BEST).is_file():
        known["validation data"] = checkpoint.load(run / directory.BEST).data_digest
    now = {
        "training data": digest_manifest(splits.train),
        "validation data": digest_manifest(splits.val),
    }
    before = {name: digest for name, digest in known.items() if digest is not None}
    changes += list_changes(before, {name: now[name] for name in before})
    if not allow_changed:
        require_no_changes(changes)
    # A file of weights that has moved is given anew; see docs/reliability.md.
    lost = [change for change in changes if not change.startswith("model.weights: ")]
    if lost and holds_results:
        raise ConfigError(
            f"{display_path(run)} keeps no state to go on from, and other settings or data would "
            f"train it anew over its own results; {_ANEW}:\n{format_list(lost)}"
        )


# ---- labels and backbone ----------------------------------------------------------------


def _require_same_outputs(run: Path, state: ResumeState | None, setup: TrainingSetup) -> None:
    """Raise an error where the run has learned other labels, or with another backbone."""
    files = (run / directory.BEST, run / directory.LAST)
    origins = (checkpoint.read_origin(file) for file in files if file.is_file())
    origin = next(filter(None, origins), None)
    backbone, labels = (origin.backbone, origin.labels) if origin else (None, None)
    now = setup.splits.val.labels.names
    if labels is None:
        labels = _read_labels(run, now)
    if labels is not None and labels != now:
        raise ConfigError(
            f"{display_path(run)} was trained on {_describe_labels(labels, now)}; each output of "
            f"its head is one of its own labels: {_ANEW}, or take the former labels"
        )
    if backbone is None and state is not None:
        backbone = state.content["made_of"].get("model.backbone")
    wanted = setup.config.model.backbone
    if backbone is not None and backbone != wanted:
        kept = "weights do" if state is None else "state does"
        raise CheckpointError(
            f"model.backbone: {backbone} before, {wanted} now: the {kept} not fit this model; "
            f"{_ANEW}"
        )


def _read_labels(run: Path, now: tuple[str, ...]) -> tuple[str, ...] | None:
    """Read labels.txt; None: there is no such file. A label of several lines is known by `now`."""
    try:
        text = (run / directory.LABELS).read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return None
    same = text == "".join(f"{name}\n" for name in now)
    return now if same else tuple(text.splitlines())


def _describe_labels(before: tuple[str, ...], now: tuple[str, ...]) -> str:
    """Return `3 labels, the data now has 4 (new: 'x')`."""
    counts = pluralize(len(before), "label")
    more = [repr(name) for name in (Counter(now) - Counter(before))]
    less = [repr(name) for name in (Counter(before) - Counter(now))]
    parts = [f"new: {list_some(more)}"] if more else []
    parts += [f"gone: {list_some(less)}"] if less else []
    details = "; ".join(parts) or "the same ones in another order"
    return f"{counts}, the data now has {len(now)} ({details})"


# ---- weights ----------------------------------------------------------------------------


def _require_fits(run: Path, state: ResumeState, setup: TrainingSetup) -> None:
    """Raise an error where the state cannot be loaded into this model and this optimizer."""
    trained = state.position.step / setup.train.steps
    epochs = setup.config.train.epochs
    if epochs < trained:
        raise ConfigError(
            f"train.epochs: {epochs}, but {trained:.3g} are trained: give as many or more to "
            f"resume, or {_ANEW}"
        )
    made_of, wanted = state.content["made_of"], collect_settings(setup.config)
    for key in ("model.image_size", "model.resize"):
        if made_of.get(key, wanted[key]) != wanted[key]:
            raise ConfigError(
                f"{key}: {made_of[key]} before, {wanted[key]} now: the best epoch so far was "
                f"measured on other pictures; {_ANEW}, from these weights: model.weights="
                f"{display_path(run)}"
            )
    fault = _find_misfit(state.content, setup)
    if fault:
        raise CheckpointError(
            f"the state of {display_path(run)} does not fit this model, or this optimizer: "
            f"{fault}; {_ANEW}"
        )
    if state.best is not None:  # its weights are read at the end
        checkpoint.load(run / directory.BEST)


def _find_misfit(content: Mapping[str, Any], setup: TrainingSetup) -> str:
    """Return the first thing that does not fit, in words; empty: everything fits."""
    config = setup.config
    if uses_lbfgs(config, setup.splits.train):
        return "L-BFGS solves for a head in one go, and continues nothing"
    net = setup.tagger.head if precomputes_features(config) else setup.tagger
    try:
        kept = {name: tuple(value.shape) for name, value in content["net"].items()}
        now = {name: tuple(value.shape) for name, value in net.state_dict().items()}
        for name in sorted({*kept, *now}):
            if kept.get(name) != now.get(name):
                return f"{name}: {kept.get(name, 'absent')} before, {now.get(name, 'absent')} now"
        optimizer = build_training_optimizer(config, setup.tagger)
        before, after = (
            "betas" in groups[0]
            for groups in (content["optimizer"]["param_groups"], optimizer.param_groups)
        )
        if before != after:
            names = {True: "adamw", False: "sgd"}
            return f"train.optimizer: {names[before]} before, {names[after]} now"
        fit_optimizer_state(content["optimizer"], optimizer)
        torch.Generator().set_state(content["random"]["torch"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return str(error) or repr(error)
    return ""
