"""`mlfinetune check`: tables -> every picture looked at -> findings and facts. Touches no file."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlfinetune.config import Config
from mlfinetune.data.checks import (
    Finding,
    SeenImage,
    find_duplicate_files,
    find_look_alikes,
    find_oddities,
    find_spellings,
    find_unlearnable,
    summarize_labels,
    summarize_pictures,
)
from mlfinetune.data.images.decode import ImageInfo
from mlfinetune.data.labels import apply_label_options, natural_key
from mlfinetune.data.load import hash_content, scan_pictures, source_options, split_options
from mlfinetune.data.manifest import Manifest, Splits
from mlfinetune.data.read import read_tables, split_tables
from mlfinetune.data.rows import add_scan_faults, drop_faulty
from mlfinetune.data.table import Fault, SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.location import join_location
from mlfinetune.runtime.log import RunLog
from mlfinetune.text import pluralize

SMALLEST = 32
"""Pixels on a side under which a picture is pointed out."""


@dataclass(frozen=True)
class CheckResult:
    """What the check found, errors first, and the facts that `--json` adds."""

    findings: tuple[Finding, ...]
    facts: dict[str, Any]

    @property
    def clean(self) -> bool:
        """Are there no errors?"""
        return all(finding.severity != "error" for finding in self.findings)


def run(config: Config, log: RunLog) -> CheckResult:
    """Look at all that the config names.

    Raises:
        DataError: a table that cannot be read as a whole.
    """
    options = source_options(config)
    pictures: dict[str, ImageInfo] = {}
    tables = [
        _looked_at(config, table, pictures, log)
        for table in read_tables(config.data.train, config.data.val, options)
        if table is not None
    ]
    usable = [drop_faulty(table)[0] for table in tables]
    splits, more = _split(config, tables, options, pictures)
    sides = {} if splits is None else {"train": splits.train, "val": splits.val}
    places = [{name: t.place(row) for row, name in enumerate(t.names)} for t in usable]
    seen = [
        SeenImage(side, name, pictures[path], places[at][name])
        for side, at, name, path in _by_side(usable, sides)
    ]
    findings = [
        *(finding for table in tables for finding in _faults(table, config.data.bad_images)),
        *more,
        *find_duplicate_files(seen),
        *find_spellings(_positives(usable, options)),
        *find_unlearnable(sides),
        *_unlabelled({"train": places[0], "val": places[-1]}, sides),
        *find_look_alikes(seen),
        *find_oddities(seen, SMALLEST),
    ]
    findings.sort(key=lambda finding: finding.severity != "error")
    notes = splits.notes if splits else [note for table in usable for note in table.notes]
    told = [note for note in notes if "\n" not in note]  # a list of files is among the findings
    facts = {"notes": told, "pictures": summarize_pictures(seen)}
    return CheckResult(tuple(findings), facts | summarize_labels(sides))


def _looked_at(config: Config, table: Table, pictures: dict[str, ImageInfo], log: RunLog) -> Table:
    """The table with all that is wrong with it; fills `pictures` by path."""
    faulty = {fault.row for fault in table.faults}

    def look(paths: Sequence[str]) -> dict[int, str]:
        rows = [row for row in range(len(paths)) if row not in faulty]
        bad = {}
        looks = scan_pictures(config, [paths[row] for row in rows], log)
        for row, found in zip(rows, looks, strict=True):
            if isinstance(found, str):
                bad[row] = found
            else:
                pictures[paths[row]] = found
        return bad

    table = add_scan_faults(table, look)
    settled = apply_label_options(table, source_options(config))
    faults = sorted(settled.faults, key=lambda fault: natural_key(str(fault)))
    return replace(table, faults=tuple(faults))


def _faults(table: Table, bad_images: str) -> Iterator[Finding]:
    rows = tuple(str(fault) for fault in table.faults if not fault.picture)
    if rows:
        text = f"{table.origin}: {pluralize(len(rows), 'bad row')}"
        yield Finding("error", "bad_rows", text, rows)
    stops = "error" if bad_images == "error" else "warning"
    bad = [fault for fault in table.faults if fault.picture]
    for severity, kind, where, of_test in (
        (stops, "unreadable", "", False),
        ("warning", "unreadable_in_test", " of the test", True),
    ):
        pictures = tuple(str(fault) for fault in bad if _in_test(table, fault) == of_test)
        if pictures:
            count = pluralize(len(pictures), "missing or unreadable picture")
            yield Finding(severity, kind, f"{table.origin}: {count}{where}", pictures)


def _in_test(table: Table, fault: Fault) -> bool:
    """Is it a row that neither trains nor validates?"""
    if table.splits is None or fault.row is None:
        return False
    return table.splits[fault.row] == "test"


def _unlabelled(places: dict[str, dict[str, str]], sides: dict[str, Manifest]) -> Iterator[Finding]:
    """Images without a label, in train and val."""
    items = []
    for side, manifest in sides.items():
        for row in np.flatnonzero(~manifest.targets.any_positive()).tolist():
            name = manifest.names[row]
            place = places[side][name]
            items.append(f"{side}: {name!r}" + (f" ({place})" if place != name else ""))
    if items:
        text = f"{pluralize(len(items), 'image')} without a label"
        yield Finding("warning", "unlabelled", text, tuple(items))


def _split(
    config: Config,
    tables: Sequence[Table],
    options: SourceOptions,
    pictures: dict[str, ImageInfo],
) -> tuple[Splits | None, list[Finding]]:
    """The sides as training would have them without the bad rows, or why there are none."""
    contents = {path: hash_content(picture) for path, picture in pictures.items()}
    policy = replace(split_options(config, None), skip_bad=True, contents=contents)
    table, other = (*(_skipping(table) for table in tables), None)[:2]
    assert table is not None
    try:
        return split_tables(table, other, options, policy), []
    except DataError as error:
        first, *rest = str(error).split("\n")
        return None, [Finding("error", "unusable", first, tuple(line.strip() for line in rest))]


def _skipping(table: Table) -> Table:
    """The table with every bad row as one to skip, so that the count of images adds up."""
    faults = [
        fault if fault.picture else replace(fault, text="bad row", picture=True)
        for fault in table.faults
        if fault.row is not None
    ]
    return replace(table, faults=tuple(faults))


def _by_side(
    tables: Sequence[Table], sides: dict[str, Manifest]
) -> Iterator[tuple[str, int, str, str]]:
    """(side, number of its table, name, path) of every picture; rows of the test split too."""
    placed: set[str] = set()
    for at, (side, manifest) in zip((0, -1), sides.items(), strict=False):
        for row, name in enumerate(manifest.names):
            placed.add(manifest.path(row))
            yield side, at, name, manifest.path(row)
    for at, (table, usual) in enumerate(zip(tables, ("train", "val"), strict=False)):
        for row, name in enumerate(table.names):
            path = join_location(table.root, name)
            if path not in placed:
                yield table.splits[row] if table.splits else usual, at, name, path


def _positives(tables: Sequence[Table], options: SourceOptions) -> Counter[str]:
    counts: Counter[str] = Counter()
    for table in tables:
        settled = apply_label_options(table, options)
        positives, _, _ = settled.targets.counts()
        counts.update(dict(zip(settled.labels.names, positives.tolist(), strict=True)))
    return counts
