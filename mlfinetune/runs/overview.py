"""One run in a line: what it is, when it ended, how well it tags.

    describe_run -> the key `run` of metrics.json -> read_overview -> RunOverview

A run that has not finished has no metrics.json; its config and metrics.jsonl tell how far it is.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from mlfinetune.config import Config, load_config
from mlfinetune.errors import ConfigError
from mlfinetune.runs import directory
from mlfinetune.runs.damaged import FOREIGN
from mlfinetune.runs.settings import flatten_settings
from mlfinetune.runs.trained_on import find_parent_folder
from mlfinetune.text import to_finite

RUN = "run"
"""Key of metrics.json with the facts of `describe_run`."""


@dataclass(frozen=True)
class RunOverview:
    """Facts of a run: its kind, its progress, how well it tags; None where one is not known.

    Attributes:
        folder: of the run.
        state: finished, running, or how far it is, in words.
        when: ISO 8601 in UTC: when it finished, else when it was last written.
        backbone: name of its network.
        frozen: whether the head alone learns.
        labels: number of labels.
        images: number of training pictures.
        mAP, macro_F1, micro_F1: on its validation data; of an unfinished run mAP is the best of its
            epochs.
        interval: 95 % of mAP.
        seconds: that it took, all its starts together.
        note: the config's.
        parent: path of the checkpoint that it began with, where that is of a run.
        settings: dotted key -> value of its config.
    """

    folder: Path
    state: str
    when: str | None = None
    backbone: str | None = None
    frozen: bool | None = None
    labels: int | None = None
    images: int | None = None
    mAP: float | None = None
    interval: tuple[float, float] | None = None
    macro_F1: float | None = None
    micro_F1: float | None = None
    seconds: float | None = None
    note: str | None = None
    parent: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def describe_run(
    config: Config,
    command: str | None,
    images: int,
    seconds: float,
    parent: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """Return facts of a run that ends now, for metrics.json.

    Args:
        config: of the run.
        command: that started it; None: it was not started by one.
        images: number of training pictures.
        seconds: that all its starts took.
        parent: path and SHA-256 of the checkpoint that it began with; None: other weights.
    """
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "command": command,
        "train_images": images,
        "note": config.note,
        "parent": parent,
    }


def read_overview(folder: Path) -> RunOverview:
    """Read what a run directory holds; a damaged file makes the state say so."""
    try:
        config = load_config(folder / directory.CONFIG)
    except ConfigError as error:
        reason = " ".join(str(error).split())
        return RunOverview(folder, f"cannot be read: {reason}", _read_last_write(folder))
    overview = RunOverview(
        folder,
        "",
        _read_last_write(folder),
        config.model.backbone,
        config.model.freeze_backbone,
        labels=_count_lines(folder / directory.LABELS),
        note=config.note,
        parent=_find_parent(config.model.weights),
        settings=flatten_settings(config.model_dump(mode="json")),
    )
    try:
        content = json.loads((folder / directory.METRICS).read_bytes())
        return _add_results(overview, content)
    except FileNotFoundError:
        return _add_progress(overview, config)
    except (OSError, *FOREIGN):
        return replace(overview, state=f"{directory.METRICS} cannot be read")


def _find_parent(weights: str | None) -> str | None:
    """Return the path of a run's checkpoint that `model.weights` names; None: it names others."""
    folder = find_parent_folder(weights)
    if weights is None or folder is None or not (folder / directory.CONFIG).is_file():
        return None
    return str(folder / directory.BEST) if folder == Path(weights) else weights


def _add_results(overview: RunOverview, content: Mapping[str, Any]) -> RunOverview:
    """Return the overview with the numbers of metrics.json; raises one of FOREIGN."""
    run = content.get(RUN) or {}
    ends = content["intervals"].get("mAP")
    numbers = [content[name] for name in ("mAP", "macro_F1", "micro_F1")]
    mAP, macro_F1, micro_F1 = (None if x is None else to_finite(x) for x in numbers)
    images, seconds = run.get("train_images"), run.get("seconds")
    parent = (run.get("parent") or {}).get("path", overview.parent)
    return replace(
        overview,
        state="finished",
        when=str(run.get("finished") or overview.when),
        images=None if images is None else int(to_finite(images)),
        interval=None if ends is None else (to_finite(ends[0]), to_finite(ends[1])),
        seconds=None if seconds is None else to_finite(seconds),
        parent=None if parent is None else str(parent),
        mAP=mAP,
        macro_F1=macro_F1,
        micro_F1=micro_F1,
    )


def _add_progress(overview: RunOverview, config: Config) -> RunOverview:
    """Return the overview of a run that has not finished: how far it is, and its best mAP."""
    try:
        text = (overview.folder / directory.HISTORY).read_text("utf-8", errors="replace")
    except OSError:
        text = ""
    rows = parse_history(text)
    scores = [row["mAP"] for row in rows if _is_finite(row.get("mAP"))]
    is_running = directory.is_in_use(overview.folder)
    state = f"{'running' if is_running else 'stopped'}, {_describe_progress(rows, config)}"
    best = max(scores, default=None)
    return replace(overview, state=state, mAP=best, seconds=sum_seconds(rows))


def _describe_progress(rows: list[dict[str, Any]], config: Config) -> str:
    """Return `epoch 3 of 10`; a head that is solved for has solutions, and no number of them."""
    if not rows:
        return "no epoch yet"
    if "l2" in rows[-1]:
        return f"solution {len(rows)}"
    return f"epoch {len(rows)} of {config.train.epochs}"


def parse_history(text: str) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl, up to one that is not whole: a run may be writing it."""
    rows: list[dict[str, Any]] = []
    with suppress(*FOREIGN):
        rows.extend(row for row in map(json.loads, text.splitlines()) if isinstance(row, dict))
    return rows


def sum_seconds(rows: list[dict[str, Any]]) -> float | None:
    """Return the seconds that the epochs of metrics.jsonl took, in all starts of the run.

    None: they are not known, as in rows of an older version.
    """
    known = [row["seconds"] for row in rows if _is_finite(row.get("seconds"))]
    return sum(known) if known else None


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and isfinite(value)


def _read_last_write(folder: Path) -> str | None:
    """Return when the run directory was last written, ISO 8601 in UTC."""
    times = []
    for name in (directory.LOG, directory.HISTORY, directory.CONFIG, directory.LOCK):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    if not times:
        return None
    return datetime.fromtimestamp(max(times), UTC).isoformat(timespec="seconds")


def _count_lines(path: Path) -> int | None:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return None
