"""`mlfinetune init`: data -> its description -> a config that trains on it as it is."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlfinetune.config import SCHEMA, Config, DataConfig
from mlfinetune.data.labels import natural_key
from mlfinetune.data.load import build_scan, build_source_options, build_split_options
from mlfinetune.data.manifest import Splits
from mlfinetune.data.read import read_table, split_tables
from mlfinetune.data.rows import Scan, add_scan_faults, drop_faulty, raise_faults
from mlfinetune.data.table import Skipped, Table
from mlfinetune.errors import ConfigError, DataError
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.atomic import write_atomic
from mlfinetune.text import MAX_LISTED, format_list, make_printable, pluralize

_TEMPLATE = """\
# yaml-language-server: $schema={schema}
# {summary}
# mlfinetune train {name}            every key is in the schema above
# mlfinetune check {name}            copies, look-alikes, odd labels

data:
  train: {train}
  # format: {format}              # detected; name it where the guess is wrong
{val}
  bad_images: {bad_images}{bad_why}
  empty_labels: negative     # a picture without a label has none of them; or unknown, error
  # min_positives: 10        # leave out labels with fewer pictures
  # unknown: ignore          # unknown targets (blank cells) are masked; negative takes them for no
  # ignore_labels: []
  # rename_labels: {{}}        # old: new; joins spellings

model:
  backbone: resnet50
  weights: IMAGENET1K_V2     # torchvision's name, a file, or null for random weights
  freeze_backbone: false     # true: only the head, on features computed once; no rate to tune
  image_size: 224
  resize: squash             # squash | crop | pad

train:
  epochs: 10
  batch_size: 32             # out of memory? halve it, or set accumulate: 2
  lr: 1e-4                   # of the backbone
  head_lr: 1e-3
  # early_stopping: 3        # epochs without a better mAP
  # seed: 0

loss:
  pos_weight: null           # auto: rare labels weigh more

# output: {output}
"""


@dataclass(frozen=True)
class InitResult:
    """The config that was written, and the description of the data, line by line."""

    file: Path
    lines: tuple[str, ...]


def run(data: Path, output: Path | None, log: RunLog) -> InitResult:
    """Describe a data set, and write a config for it; pictures that cannot be read are skipped.

    Args:
        data: a table, or a folder of labelled pictures.
        output: the config file; None: NAME.yaml in the current folder.
        log: shows the progress of decoding.

    Raises:
        ConfigError: the config file exists.
        DataError: data that cannot be used.
    """
    stem = data.resolve().name if data.is_dir() else data.stem
    file = output or Path(f"{stem or 'config'}.yaml")
    if file.exists():
        raise ConfigError(f"{file} is there already; choose another with --output")
    config = Config(data=DataConfig(train=data))
    options, split_options = build_source_options(config), build_split_options(config)
    scan = build_scan(config, log)
    table, skipped = _drop_bad_pictures(read_table(data, options), scan)
    splits = split_tables(table, None, options, split_options, scan)
    lines = _describe_data(table, splits, skipped)
    text = _fill_template(data, file, table, splits, lines, skipped)
    write_atomic(file, text.encode(errors="surrogateescape"))
    return InitResult(file, tuple(lines))


def _drop_bad_pictures(table: Table, scan: Scan) -> tuple[Table, list[Skipped]]:
    """Return the rows whose pictures decode, and the pictures that do not.

    Raises:
        DataError: a row itself is wrong, or no picture can be read.
    """
    raise_faults(table, [fault for fault in table.faults if not fault.picture])
    table, missing = drop_faulty(table)
    scanned = scan([table.path(row) for row in range(len(table))])
    table, unreadable = drop_faulty(add_scan_faults(table, scanned.bad))
    skipped = sorted([*missing, *unreadable], key=lambda picture: natural_key(picture.place))
    if skipped and not len(table):
        raise DataError(
            f"{table.origin}: none of {pluralize(len(skipped), 'picture')} can be read; they were "
            f"looked for under {table.root}. A config can name another folder (data.images)\n"
            f"{format_list(_list_faults(skipped))}"
        )
    return table, skipped


def _list_faults(skipped: Sequence[Skipped]) -> list[str]:
    return [f"{picture.place}: {picture.name!r}: {picture.reason}" for picture in skipped]


# ---- the description --------------------------------------------------------------------


def _describe_data(table: Table, splits: Splits, skipped: list[Skipped]) -> list[str]:
    """Return one line each for the size, the split, notes, labels and bad pictures."""
    positives, _, unknown = table.targets.counts()
    labels_per_picture = positives.sum() / max(1, len(table))
    masked = f", {unknown.sum()} unknown targets" if unknown.any() else ""
    tests = (table.splits or ()).count("test")
    to_test = f", {tests} to test" if tests else ""
    origin = "a fifth held out, stratified by label" if splits.drawn else "as the data says"
    lines = [
        f"{pluralize(len(table), 'picture')}, {pluralize(len(splits.train.labels), 'label')}, "
        f"{labels_per_picture:.1f} per picture{masked}",
        f"split: {len(splits.train)} to train, {len(splits.val)} to validate{to_test} ({origin})",
        *table.notes,
        _list_frequent_labels(splits),
        *(note for note in splits.notes if "without a" in note),
    ]
    if skipped:
        count = pluralize(len(skipped), "more picture")
        lines.append(f"{count} cannot be read, to be skipped\n{format_list(_list_faults(skipped))}")
    else:
        lines.append("every picture can be read")
    return lines


def _list_frequent_labels(splits: Splits) -> str:
    """Return the ten most frequent labels with their counts; a mistaken label often shows here."""
    positives = splits.train.targets.counts()[0] + splits.val.targets.counts()[0]
    columns = np.argsort(-positives, kind="stable")[:MAX_LISTED]
    names = splits.train.labels.names
    shown = [f"{names[column]!r} ({positives[column]})" for column in columns]
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"labels: {', '.join(shown)}{more}"


# ---- the config -------------------------------------------------------------------------


def _fill_template(
    data: Path,
    file: Path,
    table: Table,
    splits: Splits,
    lines: Sequence[str],
    skipped: Sequence[Skipped],
) -> str:
    """Return the text of the config; paths in it are relative to its own folder."""
    val = "  # the data says which pictures are for validation"
    if splits.drawn:
        val = "  val_fraction: 0.2          # held out, stratified by label; or val: another table"
    bad_images, reason = "error", ""
    if skipped:
        bad_images = "skip"
        reason = f"           # {len(skipped)} cannot be read; error stops the run"
    return _TEMPLATE.format(
        schema=SCHEMA,
        summary=f"{lines[0]}; {lines[1]}",
        name=make_printable(shlex.quote(file.name)),
        output=_quote_yaml(f"runs/{file.stem}"),
        train=_quote_yaml(os.path.relpath(data, file.absolute().parent)),
        format=table.format,
        val=val,
        bad_images=bad_images,
        bad_why=reason,
    )


def _quote_yaml(text: str) -> str:
    """Return a quoted YAML string; characters that do not print are escaped."""
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text) + '"'
