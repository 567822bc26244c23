"""`mlfinetune card`: a finished run -> a model card, README.md. Needs no model."""

from pathlib import Path
from typing import Any

from mlfinetune.config import Config, load_config
from mlfinetune.errors import CheckpointError, DataError
from mlfinetune.report.card import MARK, CardFacts, render_card
from mlfinetune.report.write import read_report
from mlfinetune.runs import directory
from mlfinetune.runs.folds import explain_folds
from mlfinetune.runs.overview import RUN
from mlfinetune.runs.trained_on import read_trained_on
from mlfinetune.storage.atomic import try_writing_file, write_atomic
from mlfinetune.text import pluralize

CARD = "README.md"
_LOSSES = {"sce": "sigmoid cross entropy", "asl": "the asymmetric loss", "focal": "the focal loss"}


def run(folder: Path, output: Path | None) -> Path:
    """Write the model card of a run.

    Args:
        folder: a run directory that `mlfinetune train` finished.
        output: the file; None: README.md in the run directory.

    Returns:
        The path of the card.

    Raises:
        CheckpointError: no finished run, or one that cannot be written to.
        DataError: a file of another origin has the name.
    """
    for name in (directory.BEST, directory.METRICS, directory.CONFIG):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} holds no {name}; name a run directory that `mlfinetune train` finished"
            )
    path = folder / CARD if output is None else output
    _require_own(path)
    try_writing_file(path)
    report, _, content = read_report(folder)
    facts = _gather_facts(folder, load_config(folder / directory.CONFIG), content)
    write_atomic(path, render_card(report, facts).encode(errors="backslashreplace"))
    return path


def _require_own(path: Path) -> None:
    """Raise DataError where the card would overwrite a file of another origin."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    if MARK.encode() not in content:
        raise DataError(
            f"{path} is there already, and `mlfinetune card` did not write it; name another file "
            f"with -o"
        )


def _gather_facts(folder: Path, config: Config, content: dict[str, Any]) -> CardFacts:
    """Gather the facts of a run that its report does not hold; files by their names alone."""
    model, tables = config.model, config.data.train
    dataset = " + ".join(map(_name_file, tables if isinstance(tables, tuple) else [tables]))
    weights = "none, from random numbers"
    if model.weights is not None:
        weights = _name_file(model.weights)
    trained_on = read_trained_on(folder)
    images = None if trained_on is None else len(trained_on.trained.paths)
    run = content.get(RUN)
    if isinstance(run, dict) and isinstance(run.get("train_images"), int):
        images = run["train_images"]  # without those of the runs before it
    pictures = "" if images is None else pluralize(images, "picture") + " of "
    learned = "the head alone" if model.freeze_backbone else "backbone and head"
    versions = content.get("versions")
    levels = 1 if model.levels == "auto" else model.levels
    about = [
        ("trained on", pictures + dataset),
        ("starting weights", weights),
        ("learned", learned),
        ("loss", f"{config.loss.name}, on logits; unknown targets count for nothing"),
        ("input", f"{model.image_size} x {model.image_size} pixels, RGB, {model.resize}"),
    ]
    if levels > 1:
        about.append(("features", f"the means of the maps of the last {levels} levels"))
    about += explain_folds(content)
    if isinstance(versions, dict):
        about.append(("versions", ", ".join(f"{name} {text}" for name, text in versions.items())))
    return CardFacts(
        name=folder.absolute().name,
        about=tuple(about),
        backbone=model.backbone,
        dataset=dataset,
        split=str(content["data"]),
        per_label=directory.PER_LABEL,
        loss=_LOSSES[config.loss.name],
    )


def _name_file(place: object) -> str:
    """Return the last part of a path or URL: a card is public, and folders are not."""
    return Path(str(place).partition("?")[0]).name
