"""`mlfinetune check`: tables -> every picture decoded -> findings and facts. Writes no data file.

A check reports faults and does not stop at the first. So every fault of a table is collected first.
Then the sides, labels and duplicate files of the rows without a fault are examined.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlfinetune.config import Config
from mlfinetune.data.checks import (
    SeenImage,
    find_duplicate_files,
    find_look_alikes,
    find_oddities,
    find_unlearnable,
    summarize_labels,
    summarize_pictures,
)
from mlfinetune.data.doubts import find_doubtful_labels
from mlfinetune.data.findings import Finding
from mlfinetune.data.groups import ALLOWED_NOTE, report_torn_groups
from mlfinetune.data.images.decode import ImageInfo
from mlfinetune.data.labels import BLANK_ADVICE, MANY_BLANK, apply_label_options, natural_key
from mlfinetune.data.load import (
    build_source_options,
    build_split_options,
    hash_content,
    scan_pictures,
)
from mlfinetune.data.manifest import Manifest, Splits
from mlfinetune.data.read import read_tables, split_tables
from mlfinetune.data.rows import SKIPPED_NOTE, PictureScan, add_scan_faults, drop_faulty
from mlfinetune.data.sample import describe_rows
from mlfinetune.data.table import Fault, SourceOptions, Table
from mlfinetune.data.targets import NEGATIVE
from mlfinetune.data.union import join_copies
from mlfinetune.errors import DataError
from mlfinetune.runs.trained_on import read_former_labels, read_sides_before
from mlfinetune.runtime.log import RunLog
from mlfinetune.text import pluralize

SMALLEST = 32
"""Pixels on the shorter side below which a picture is reported as small."""


@dataclass(frozen=True)
class CheckResult:
    """Findings, errors first, and the facts that `--json` adds."""

    findings: tuple[Finding, ...]
    facts: dict[str, Any]

    @property
    def clean(self) -> bool:
        """True where no finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)


def run(config: Config, log: RunLog) -> CheckResult:
    """Examine every row and picture of the data that the config names.

    Args:
        config: names the data, as for `train`.
        log: shows the progress of decoding.

    Raises:
        DataError: a table that cannot be read as a whole.
    """
    options = build_source_options(config)
    tables = [t for t in read_tables(config.data.train, config.data.val, options) if t is not None]
    scans = [_scan_table(config, table, options, log) for table in tables]
    tables = [table for table, _ in scans]
    pictures = {path: picture for _, found in scans for path, picture in found.items()}
    usable = [drop_faulty(table)[0] for table in tables]
    splits, unusable = _split_usable_rows(config, tables, options, pictures)
    sides = {} if splits is None else {"train": splits.train, "val": splits.val}
    places = [{name: t.find_place(row) for row, name in enumerate(t.names)} for t in usable]
    seen = [
        SeenImage(side, name, pictures[path], places[number][name])
        for side, number, name, path in _iter_images(usable, sides)
    ]
    bad_images = config.data.bad_images
    findings = [
        *(finding for table in tables for finding in _report_faults(table, bad_images)),
        *unusable,
        *report_torn_groups(tables[0], tables[1] if len(tables) > 1 else None, options),
        *find_duplicate_files(seen),
        *find_doubtful_labels(_count_positives(usable, options), options),
        *find_unlearnable(sides),
        *_find_unlabelled({"train": places[0], "val": places[-1]}, sides, usable, options),
        *find_look_alikes(seen),
        *find_oddities(seen, SMALLEST),
    ]
    findings.sort(key=lambda finding: finding.severity != "error")
    notes = splits.notes if splits else [note for table in usable for note in table.notes]
    findings_too = (SKIPPED_NOTE, ALLOWED_NOTE)
    told = [note for note in notes if not any(part in note for part in findings_too)]
    sample = [line for table in usable for line in describe_rows(table)]
    facts = {"notes": told, "sample": sample, "pictures": summarize_pictures(seen)}
    return CheckResult(tuple(findings), facts | summarize_labels(sides))


# ---- faults -----------------------------------------------------------------------------


def _scan_table(
    config: Config, table: Table, options: SourceOptions, log: RunLog
) -> tuple[Table, dict[str, ImageInfo]]:
    """Decode the pictures of a table.

    Returns:
        The table with every fault of its rows, pictures and labels, by line; and path -> picture,
        for the pictures that can be decoded.
    """
    faulty = {fault.row for fault in table.faults}
    rows = [row for row in range(len(table)) if row not in faulty]
    paths = [table.path(row) for row in rows]
    bad: dict[int, str] = {}
    pictures: dict[str, ImageInfo] = {}
    for row, path, result in zip(rows, paths, scan_pictures(config, paths, log), strict=True):
        if isinstance(result, str):
            bad[row] = result
        else:
            pictures[path] = result
    table = add_scan_faults(table, bad)
    if table.sources is not None:
        contents = {path: hash_content(picture) for path, picture in pictures.items()}
        table = join_copies(table, contents)
    with_label_faults = apply_label_options(table, options)
    faults = sorted(with_label_faults.faults, key=lambda fault: natural_key(str(fault)))
    return replace(table, faults=tuple(faults)), pictures


def _report_faults(table: Table, bad_images: str) -> Iterator[Finding]:
    """Yield the faults of a table, by what they mean for training.

    | fault                                             | kind               | severity         |
    |---------------------------------------------------|--------------------|------------------|
    | of a row                                          | bad_rows           | error            |
    | of a picture in train or val                      | unreadable         | as `bad_images`  |
    | of a picture in test, which training does not use | unreadable_in_test | warning          |
    """
    rows = tuple(str(fault) for fault in table.faults if not fault.picture)
    if rows:
        text = f"{table.origin}: {pluralize(len(rows), 'bad row')}"
        yield Finding("error", "bad_rows", text, rows)
    severity_of_used = "error" if bad_images == "error" else "warning"
    bad = [fault for fault in table.faults if fault.picture]
    for severity, kind, where, of_test in (
        (severity_of_used, "unreadable", "", False),
        ("warning", "unreadable_in_test", " of the test", True),
    ):
        pictures = tuple(str(fault) for fault in bad if _is_in_test(table, fault) == of_test)
        if pictures:
            count = pluralize(len(pictures), "missing or unreadable picture")
            yield Finding(severity, kind, f"{table.origin}: {count}{where}", pictures)


def _is_in_test(table: Table, fault: Fault) -> bool:
    """Return True where the fault's row is in the split `test`."""
    if table.splits is None or fault.row is None:
        return False
    return table.splits[fault.row] == "test"


# ---- rows without a fault ---------------------------------------------------------------


def _split_usable_rows(
    config: Config,
    tables: Sequence[Table],
    options: SourceOptions,
    pictures: dict[str, ImageInfo],
) -> tuple[Splits | None, list[Finding]]:
    """Make train and val as training would if the bad rows were removed.

    Returns:
        The splits; or None, and a finding that says why there are none.
    """
    contents = {path: hash_content(picture) for path, picture in pictures.items()}
    former = read_former_labels(config)
    split_options = replace(build_split_options(config, former=former), skip_bad=True)
    options = replace(options, allow_torn_groups=True)  # torn groups are a finding of their own
    scanned = PictureScan(bad={}, contents=contents)  # bad pictures are in the tables' faults
    table, *others = (_mark_skippable(table) for table in tables)
    val_table = others[0] if others else None
    try:
        known = read_sides_before(config)
        return split_tables(table, val_table, options, split_options, lambda _: scanned, known), []
    except DataError as error:
        first, *rest = str(error).split("\n")
        return None, [Finding("error", "unusable", first, tuple(line.strip() for line in rest))]


def _mark_skippable(table: Table) -> Table:
    """Return the table with its bad rows marked so that `split_tables` leaves them out.

    `split_tables` refuses a table with bad rows, but it can skip rows whose picture is bad
    (`Fault.picture`). Here all faults are reported already, and only the rows without a fault
    matter. So a bad row is marked as a bad picture too, with the reason "bad row". The note then
    adds up: `train: 34 images found = 30 used + 4 skipped (1 bad row, 3 ...)`. A fault without a
    row belongs to a line that never became a row, and is not counted.
    """
    faults = [
        fault if fault.picture else replace(fault, text="bad row", picture=True)
        for fault in table.faults
        if fault.row is not None
    ]
    return replace(table, faults=tuple(faults))


def _iter_images(
    tables: Sequence[Table], sides: dict[str, Manifest]
) -> Iterator[tuple[str, int, str, str]]:
    """Yield side, number of the table, name and path of every picture.

    First come the images of train and val; then those of the other rows, such as the test's.
    """
    yielded: set[str] = set()
    for number, (side, manifest) in zip((0, -1), sides.items(), strict=False):
        for row, name in enumerate(manifest.names):
            yielded.add(manifest.path(row))
            yield side, number, name, manifest.path(row)
    for number, (table, usual_side) in enumerate(zip(tables, ("train", "val"), strict=False)):
        for row, name in enumerate(table.names):
            if table.path(row) not in yielded:
                side = table.splits[row] if table.splits else usual_side
                yield side, number, name, table.path(row)


def _find_unlabelled(
    places: dict[str, dict[str, str]],
    sides: dict[str, Manifest],
    tables: Sequence[Table],
    options: SourceOptions,
) -> Iterator[Finding]:
    """Yield one finding that lists the images without a label, if there are any.

    `places` has, for each side, image name -> its place in the table, as `line 12`.
    """
    items = []
    for side, manifest in sides.items():
        for row in np.flatnonzero(~manifest.targets.any_positive()).tolist():
            name = manifest.names[row]
            place = places[side][name]
            items.append(f"{side}: {name!r}" + (f" ({place})" if place != name else ""))
    if items:
        count = f"{pluralize(len(items), 'image')} without a label"
        images = sum(len(manifest) for manifest in sides.values())
        # In tables with a column for each label a blank cell is unknown as it is.
        is_list = any((table.unnamed == NEGATIVE).any() for table in tables)
        if is_list and options.empty_labels == "negative" and len(items) >= MANY_BLANK * images:
            text = f"{count}: all labels absent; {BLANK_ADVICE}"
            yield Finding("warning", "unlabelled", text, tuple(items), "data.empty_labels: unknown")
        else:
            yield Finding("warning", "unlabelled", count, tuple(items))


def _count_positives(tables: Sequence[Table], options: SourceOptions) -> Counter[str]:
    """Count the positives of each label over all tables, after renaming and ignoring labels."""
    counts: Counter[str] = Counter()
    for table in tables:
        named = apply_label_options(table, options)
        positives, _, _ = named.targets.counts()
        counts.update(dict(zip(named.labels.names, positives.tolist(), strict=True)))
    return counts
