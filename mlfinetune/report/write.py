"""A folder of results -> report.html and suspects.csv in it, from its files alone.

    scores.npz, metrics.json, metrics.jsonl -> Evidence -> Report -> page

The pictures are read from where they were when they were scored; those that are gone become
placeholders. No model is needed.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import numpy as np

from mlfinetune import report
from mlfinetune.config import DataConfig
from mlfinetune.data.images.decode import make_thumbnail
from mlfinetune.errors import CheckpointError
from mlfinetune.location import join_location, parse_location
from mlfinetune.metrics.average_precision import PROTOCOLS
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.measure import measure
from mlfinetune.runs import directory
from mlfinetune.runs.results import read_metrics, read_scores
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.atomic import write_atomic, writing_text
from mlfinetune.text import display_path, to_finite

MAX_PIXELS: int = DataConfig.model_fields["max_pixels"].default


def write_report(folder: Path, log: RunLog) -> Path:
    """Write the page and the suspects; returns the page's path.

    Raises:
        CheckpointError: no folder of results, or a damaged one.
    """
    scores = read_scores(folder)
    content, thresholds = read_metrics(folder, scores.labels)
    try:
        facts = _facts(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{folder / directory.METRICS} is not of this version ({repr(error)[:200]}); write it "
            f"anew with `mlfinetune eval`"
        ) from error
    built = report.build(
        report.Evidence(
            title=display_path(folder.absolute()),
            scores=scores,
            probabilities=sigmoid(scores.logits),
            table=measure(scores, np.array(thresholds), content["ap"]),
            history=_history(folder),
            **facts,
        )
    )
    root, limit = str(content.get("images_root", "")), content.get("max_pixels", MAX_PIXELS)

    def read(name: str, side: int) -> bytes:
        return make_thumbnail(join_location(parse_location(root), name), side, limit)

    page = report.render(report.with_pictures(built, read))
    with writing_text(folder / directory.SUSPECTS) as file:
        csv.writer(file).writerows(report.suspect_rows(built))
    write_atomic(folder / directory.REPORT, page.encode(errors="backslashreplace"))
    log.say(f"report: {display_path((folder / directory.REPORT).absolute())}")
    return folder / directory.REPORT


def _facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Intervals, and what was done, as the page's records take them."""
    if content["ap"] not in PROTOCOLS:
        raise ValueError(f"ap {shown(content['ap'])}")
    intervals = dict(content["intervals"])
    rows, resamples = intervals.pop("per_label"), intervals.pop("resamples")
    return {
        "intervals": _intervals(intervals),
        "ap_intervals": _intervals({name: row["AP"] for name, row in rows.items()}),
        "f1_intervals": _intervals({name: row["F1"] for name, row in rows.items()}),
        "about": _about(content, resamples),
        "calibrated": "calibrated" in content["calibration"],
        "calibration": _curves(content["calibration"]),
    }


def _intervals(found: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Name -> the ends of its interval, where it has one."""
    ends = {name: tuple(map(to_finite, pair)) for name, pair in found.items() if pair}
    return {name: (low, high) for name, (low, high) in ends.items()}


def _curves(about: Mapping[str, Any]) -> tuple[report.Calibration, ...]:
    """Reliability before and after calibration, or as it is."""
    found = {"probabilities": about}
    if "calibrated" in about:
        found = {"before calibration": about, "calibrated": about["calibrated"]}
    return tuple(
        report.Calibration(
            name,
            tuple(
                report.Bin(to_finite(p), to_finite(o), int(n)) for p, o, n in each["reliability"]
            ),
            each["ECE"] if each["ECE"] is None else to_finite(each["ECE"]),
        )
        for name, each in found.items()
    )


def _about(content: Mapping[str, Any], resamples: int) -> tuple[tuple[str, str], ...]:
    """Data and protocol, line by line."""
    source, fitted_on = content["threshold_source"], content["fitted_on"]
    fitted = "" if fitted_on == "nothing" else f", fitted on {fitted_on}"
    lines = [("data", str(content["data"]))]
    lines += [(name, str(content[name])) for name in ("checkpoint", "epoch") if name in content]
    lines += [("average precision", content["ap"]), ("thresholds", f"{source}{fitted}")]
    if honest := content.get("cross_fitted"):
        shown = (f"{kind} F1 {_number(honest[f'{kind}_F1'])}" for kind in ("macro", "micro"))
        lines.append(("at thresholds fitted on other images", ", ".join(shown)))
    calibration = content["calibration"]
    off = f"expected calibration error {_number(calibration['ECE'])}"
    if after := calibration.get("calibrated"):
        off += f", {_number(after['ECE'])} calibrated ({calibration['how']})"
    lines.append(("probabilities", off))
    if band := content.get("review"):
        seen = (
            f"{band['images']} images have a probability between {band['low']} and {band['high']}"
        )
        seen += f"; {band['wrong_inside']} of {band['wrong']} wrong decisions are among those"
        lines.append(("for review", seen))
    lines += [("intervals", f"95 %, {resamples} resamples of the images")]
    return tuple(lines)


def _history(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; none in a folder of eval.

    Raises:
        CheckpointError: it cannot be read, or holds what no run writes.
    """
    path = folder / directory.HISTORY
    try:
        return [_row(json.loads(line)) for line in path.read_bytes().splitlines()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CheckpointError(
            f"{path} is damaged ({repr(error)[:200]}); without it the report shows no epochs"
        ) from error


def _row(found: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl; raises ValueError where a value is neither a number nor undefined."""
    if odd := [x for x in found.values() if x is not None and type(x) not in (int, float)]:
        raise ValueError(f"{shown(odd[0])} is no number")
    numbers = {key: None if x is None else float(x) for key, x in found.items()}
    return {**numbers, "epoch": int(found["epoch"])}


def _number(value: float | None) -> str:
    return "--" if value is None else f"{value:.4f}"
