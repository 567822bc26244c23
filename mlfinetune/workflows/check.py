"""`mlfinetune check`: tables -> every picture looked at -> findings and facts. Touches no file."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlfinetune import examples
from mlfinetune.config import Config
from mlfinetune.data import doctor
from mlfinetune.data.doctor import Seen
from mlfinetune.data.labels import settle
from mlfinetune.data.manifest import Splits, read_tables, split_tables
from mlfinetune.data.rows import drop, scanned
from mlfinetune.errors import DataError
from mlfinetune.records import Fault, Finding, Manifest, Picture, SourceOptions, Table
from mlfinetune.runlog import RunLog

SMALLEST = 32
"""Pixels on a side under which a picture is pointed out."""


@dataclass(frozen=True)
class Checked:
    """What the check found, errors first, and the facts that `--json` adds."""

    findings: tuple[Finding, ...]
    facts: dict[str, Any]

    @property
    def clean(self) -> bool:
        """Are there no errors?"""
        return all(finding.severity != "error" for finding in self.findings)


def run(config: Config, log: RunLog) -> Checked:
    """Look at all that the config names.

    Raises:
        DataError: a table that cannot be read as a whole.
    """
    options = examples.source_options(config)
    tables = [t for t in read_tables(config.data.train, config.data.val, options) if t is not None]
    pictures: dict[str, Picture] = {}
    sound = [_looked_at(config, table, pictures, log) for table in tables]
    findings = [finding for table, faults in sound for finding in _faults(table, faults)]
    usable = [table for table, _ in sound]
    splits, more = _split(config, usable, options)
    sides = {} if splits is None else {"train": splits.train, "val": splits.val}
    seen = [Seen(side, name, pictures[path]) for side, name, path in _by_side(usable, sides)]
    findings += [
        *more,
        *doctor.copies(seen),
        *doctor.spellings(_positives(usable, options)),
        *doctor.unlearnable(sides),
        *doctor.look_alikes(seen),
        *doctor.oddities(seen, SMALLEST),
    ]
    findings.sort(key=lambda finding: finding.severity != "error")
    notes = splits.notes if splits else [note for table in usable for note in table.notes]
    facts = {"notes": list(notes), "pictures": doctor.picture_facts(seen)}
    return Checked(tuple(findings), facts | doctor.label_facts(sides))


def _looked_at(
    config: Config, table: Table, pictures: dict[str, Picture], log: RunLog
) -> tuple[Table, list[Fault]]:
    """The sound rows of a table, and what is wrong with the others; fills `pictures` by path."""
    rest, _ = drop(table)

    def look(paths: Sequence[str]) -> dict[int, str]:
        bad = {}
        for at, found in enumerate(examples.look(config, paths, log)):
            if isinstance(found, str):
                bad[at] = found
            else:
                pictures[paths[at]] = found
        return bad

    rest = scanned(rest, look)
    return drop(rest)[0], [*table.faults, *rest.faults]


def _faults(table: Table, faults: Sequence[Fault]) -> Iterator[Finding]:
    rows = tuple(str(fault) for fault in faults if not fault.picture)
    pictures = tuple(str(fault) for fault in faults if fault.picture)
    if rows:
        yield Finding("error", "bad_rows", f"{table.origin}: {len(rows)} bad rows", rows)
    if pictures:
        text = f"{table.origin}: {len(pictures)} pictures are missing or cannot be read"
        yield Finding("error", "unreadable", text, pictures)


def _split(
    config: Config, tables: list[Table], options: SourceOptions
) -> tuple[Splits | None, list[Finding]]:
    """The sides as training would have them, or why there are none."""
    policy = examples.policy(config, None)
    table, other = (*tables, None)[:2]
    assert table is not None
    try:
        return split_tables(table, other, options, policy), []
    except DataError as error:
        first, *rest = str(error).split("\n")
        return None, [Finding("error", "unusable", first, tuple(line.strip() for line in rest))]


def _by_side(tables: Sequence[Table], sides: dict[str, Manifest]) -> Iterator[tuple[str, str, str]]:
    """(side, name, path) of every picture; rows of the test split too."""
    placed: set[str] = set()
    for side, manifest in sides.items():
        for at, name in enumerate(manifest.names):
            placed.add(manifest.path(at))
            yield side, name, manifest.path(at)
    for table, usual in zip(tables, ("train", "val"), strict=False):
        for row, name in enumerate(table.names):
            path = os.path.join(table.root, name)
            if path not in placed:
                yield table.splits[row] if table.splits else usual, name, path


def _positives(tables: Sequence[Table], options: SourceOptions) -> Counter[str]:
    counts: Counter[str] = Counter()
    for table in tables:
        settled = settle(table, options)
        positives, _, _ = settled.targets.counts()
        counts.update(dict(zip(settled.labels.names, positives.tolist(), strict=True)))
    return counts
