"""Write report.html and suspects.csv of a folder of results, from its files alone.

    scores.npz, metrics.json, metrics.jsonl -> Evidence -> Report -> page

The pictures are read from the place where they were when they were scored; a missing one becomes
a placeholder. No model is needed: heat maps are computed by train and eval, and kept in a file.
"""

import csv
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfinetune import report
from mlfinetune.config import DataConfig, load_config
from mlfinetune.data.images.decode import make_placeholder, make_thumbnail
from mlfinetune.errors import CheckpointError, ConfigError
from mlfinetune.location import Location, is_url, join_location, parse_location
from mlfinetune.metrics.average_precision import PROTOCOLS
from mlfinetune.metrics.calibration import wilson_interval
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.selection import describe_selection
from mlfinetune.metrics.types import (
    CalibrationError,
    CalibrationFacts,
    Facts,
    ScoreTable,
    describe_need,
)
from mlfinetune.report.heat import MapSource, compute_maps, list_wanted, place_maps
from mlfinetune.report.words import format_number
from mlfinetune.runs import directory
from mlfinetune.runs.damaged import explaining_damage
from mlfinetune.runs.folds import CROSSVAL, explain_folds
from mlfinetune.runs.heat_maps import HeatMaps, read_heat_maps, write_heat_maps
from mlfinetune.runs.moved import find_again
from mlfinetune.runs.near_duplicates import read_near_duplicates
from mlfinetune.runs.results import parse_facts, read_metrics, read_scores, read_seen
from mlfinetune.runs.trained_on import describe_seen
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.machine import count_process_cores
from mlfinetune.storage.atomic import write_atomic, writing_text
from mlfinetune.text import display_path, list_some, pluralize

MAX_PIXELS: int = DataConfig.model_fields["max_pixels"].default
_MOST_THREADS = 4
"""Threads that make thumbnails; each may hold a large picture."""


def write_report(folder: Path, log: RunLog, source: MapSource | None = None) -> Path:
    """Write report.html and suspects.csv into `folder`; return the page's path.

    Args:
        folder: of the results.
        log: says what is missing, and how long heat maps take.
        source: computes heat maps, which heat_maps.json keeps; None: read them from there.

    Raises:
        CheckpointError: no folder of results, or a damaged one.
    """
    built, scores, content = read_report(folder)
    limit = content.get("max_pixels", MAX_PIXELS)
    root = _find_pictures(folder, parse_location(str(content.get("images_root", ""))), scores, log)
    # A server that stalls is waited for in this thread, so that Ctrl-C ends the wait.
    is_remote = is_url(root) or any(is_url(picture.name) for picture in built.pictures.values())
    threads = 1 if is_remote else min(count_process_cores(), _MOST_THREADS)
    if source is None:
        maps = read_heat_maps(folder, scores)
    else:
        source = replace(source, threads=min(source.threads, threads))
        maps = _compute_maps(built, source, lambda row: join_location(root, scores.names[row]), log)
        write_heat_maps(folder, scores, maps)
    if maps is not None:
        built = place_maps(built, maps)
    missing: list[str] = []

    def make(name: str, side: int) -> bytes:
        path = join_location(root, name)
        if _is_missing(path):
            missing.append(path)
        return make_thumbnail(path, side, limit)

    page = report.render(_drop_unseen_maps(report.read_pictures(built, make, threads=threads)))
    if missing:
        log.say(
            f"{pluralize(len(missing), 'picture')} of the page not there, the first "
            f"{min(missing)}: each is a grey cross; "
            f"`mlfinetune eval --images FOLDER` writes a page with them"
        )
    with writing_text(folder / directory.SUSPECTS) as file:
        csv.writer(file).writerows(report.list_suspect_rows(built))
    write_atomic(folder / directory.REPORT, page.encode(errors="backslashreplace"))
    log.say(f"report: {display_path((folder / directory.REPORT).absolute())}")
    return folder / directory.REPORT


def read_report(folder: Path) -> tuple[report.Report, ScoreTable, dict[str, Any]]:
    """Return what the page says of a folder of results, its scores, and its metrics.json.

    Raises:
        CheckpointError: no folder of results, or a damaged one.
    """
    scores = read_scores(folder)
    content, thresholds = read_metrics(folder, scores.labels)
    evidence = _gather_evidence(folder, scores, thresholds, content)
    built = report.build(evidence)
    return _mark_seen(built, read_seen(folder, len(scores.names))), scores, content


def _compute_maps(
    built: report.Report, source: MapSource, path_of: Callable[[int], str], log: RunLog
) -> HeatMaps:
    """Compute the heat maps that the page needs most."""
    if source.explain is None:
        return HeatMaps(reason=source.reason)
    started = time.monotonic()
    wanted = list_wanted(built, source.most)
    maps = compute_maps(wanted, source.explain, path_of, source.threads)
    took = time.monotonic() - started
    log.say(f"heat maps of {pluralize(len(maps.pictures), 'picture')} for the page: {took:.1f} s")
    return maps


def _drop_unseen_maps(built: report.Report) -> report.Report:
    """Leave out the maps of pictures that are not there, or that the page has no room for."""
    without = (None, make_placeholder(built.side) if built.side else None)
    heat = {
        key: one for key, one in built.heat.items() if built.pictures[key[0]].jpeg not in without
    }
    return replace(built, heat=heat)


def _mark_seen(built: report.Report, seen: NDArray[np.bool_] | None) -> report.Report:
    """Say on the page, and at its suspects, which pictures the model was trained on."""
    if seen is None or not seen.any():
        return built
    suspects = (
        replace(suspect, why=f"{suspect.why}; the model was trained on this picture and its tags")
        if seen[suspect.index]
        else suspect
        for suspect in built.suspects
    )
    warning = describe_seen(int(seen.sum()), len(seen))
    return replace(built, suspects=tuple(suspects), warning=warning)


def _find_pictures(folder: Path, root: Location, scores: ScoreTable, log: RunLog) -> Location:
    """Return where the pictures are now, if the run was moved with them; else the recorded root.

    A folder that eval wrote into a run directory moves with the run. Another folder is taken only
    if the first picture is there.
    """
    if is_url(root) or os.path.exists(root) or not scores.names:
        return root
    for run in (folder, folder.absolute().parent):
        try:
            recorded = load_config(run / directory.CONFIG).output
        except ConfigError:
            continue
        found = None if recorded is None else find_again(Path(root), recorded, run)
        if found is not None and not _is_missing(join_location(found, scores.names[0])):
            log.say(f"{root} is gone; the page shows the pictures under {found}, beside the run")
            return found
    return root


def _is_missing(path: str) -> bool:
    """Tell whether no file is there; a path below a file may lie in a tar."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return not is_url(path)
    except (OSError, ValueError):
        return False
    return False


def _gather_evidence(
    folder: Path, scores: ScoreTable, thresholds: tuple[float, ...], content: Mapping[str, Any]
) -> report.Evidence:
    """Bring scores and metrics.json into the form that the page is computed from.

    Raises:
        CheckpointError: metrics.json or metrics.jsonl holds what this version does not write.
    """
    try:
        facts, protocol = parse_facts(content), content["ap"]
        if protocol not in PROTOCOLS:
            raise ValueError(f"ap {shorten(protocol)}")
        about = _describe_protocol(content, facts)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{folder / directory.METRICS} is not of this version ({repr(error)[:200]}); write it "
            f"again with `mlfinetune eval`"
        ) from error
    intervals = facts.intervals
    return report.Evidence(
        title=display_path(folder.absolute()),
        about=about,
        scores=scores,
        probabilities=sigmoid(scores.logits),
        table=measure(scores, np.array(thresholds), protocol),
        intervals={name: ends for name, ends in intervals.averages.items() if ends},
        ap_intervals={row.label: row.AP for row in intervals.per_label if row.AP},
        f1_intervals={row.label: row.F1 for row in intervals.per_label if row.F1},
        auroc_intervals={row.label: row.AUROC for row in intervals.per_label if row.AUROC},
        calibration=_name_curves(facts.calibration),
        out_of_fold=CROSSVAL in content,
        history=_read_history(folder),
        near_duplicates=read_near_duplicates(folder, scores.names),
    )


def _name_curves(facts: CalibrationFacts) -> tuple[report.Calibration, ...]:
    """Return the reliability curve; of calibrated probabilities those before and after."""
    if facts.calibrated is None:
        return (_name_curve("probabilities", facts.own),)
    before = _name_curve("before calibration", facts.own)
    return before, _name_curve("calibrated", facts.calibrated)


def _name_curve(name: str, errors: CalibrationError) -> report.Calibration:
    bins = (
        report.Bin(
            row.probability, row.observed, row.count, *wilson_interval(row.observed, row.count)
        )
        for row in errors.reliability
    )
    return report.Calibration(name, tuple(bins), errors.ECE, errors.ECE_by_chance)


def _describe_protocol(content: Mapping[str, Any], facts: Facts) -> tuple[tuple[str, str], ...]:
    """Return (name, text) lines: data, checkpoint, AP protocol, thresholds, probabilities."""
    lines = [("data", str(content["data"])), *explain_folds(content)]
    lines += [
        (name, str(content[name]))
        for name in ("checkpoint", "epoch", "candidate")
        if name in content
    ]
    thresholds: str = facts.threshold_source
    if facts.fitted_on != "nothing":
        thresholds += f", fitted on {facts.fitted_on}"
    lines += [("average precision", str(content["ap"])), ("thresholds", thresholds)]
    if content.get("views") == "mirror":
        lines.append(("scores", "mean logits of each picture and its mirror image"))
    if text := describe_selection(facts.selection):
        lines.append(("mAP", text))
    if rates := facts.cross_fitted:
        macro, micro = format_number(rates.macro_F1, 4), format_number(rates.micro_F1, 4)
        text = f"macro F1 {macro}, micro F1 {micro}"
        lines.append(("at thresholds fitted on other images", text))
    calibration = facts.calibration
    text = f"expected calibration error {format_number(calibration.own.ECE, 4)}"
    if calibration.calibrated is not None:
        text += f", {format_number(calibration.calibrated.ECE, 4)} calibrated ({calibration.how})"
    lines.append(("probabilities", text))
    if band := facts.review:
        text = f"{pluralize(band.images, 'image')} with a probability between {band.low} and "
        text += f"{band.high}; {band.wrong_inside} of {band.wrong} wrong decisions are among those"
        lines.append(("for review", text))
    if promise := facts.precision:
        text = f"{100 * promise.wanted:g} % a label"
        if promise.never_given:
            text += f"; never given, because it cannot be shown: {list_some(promise.never_given)}"
            need = describe_need(promise.positives_needed, facts.intervals.groups)
            text += f"; a label needs {need}"
        lines.append(("wanted precision", text))
    groups = facts.intervals.groups
    drawn = "the images" if groups is None else f"{pluralize(groups, 'group')} of images"
    lines.append(("intervals", f"95 %, {facts.intervals.resamples} resamples of {drawn}"))
    return tuple(lines)


def _read_history(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl; a folder that eval wrote has none.

    Raises:
        CheckpointError: the file cannot be read, or holds what no run writes.
    """
    path = folder / directory.HISTORY
    try:
        with explaining_damage(path, "without it the report shows no epochs"):
            return [_parse_row(json.loads(line)) for line in path.read_bytes().splitlines()]
    except FileNotFoundError:
        return []


def _parse_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of metrics.jsonl; raises ValueError for a value that is no number and not None.

    NaN and infinity are numbers here: the report leaves them out.
    """
    if odd := [x for x in row.values() if x is not None and type(x) not in (int, float)]:
        raise ValueError(f"{shorten(odd[0])} is no number")
    numbers = {key: None if x is None else float(x) for key, x in row.items()}
    return {**numbers, "epoch": int(row["epoch"])}
