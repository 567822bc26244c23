"""`mlfinetune init`: data -> what it holds -> a config that trains on it as it is."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlfinetune.config import SCHEMA, Config, DataConfig
from mlfinetune.data.labels import natural_key
from mlfinetune.data.load import scan_pictures, source_options, split_options
from mlfinetune.data.manifest import Splits
from mlfinetune.data.read import read_table, split_tables
from mlfinetune.data.rows import add_scan_faults, drop_faulty, raise_faults
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
  freeze_backbone: false     # true: the head alone, on features computed once; no rate to tune
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
    """The config that was written, and what was found, a line each."""

    file: Path
    lines: tuple[str, ...]


def run(data: Path, output: Path | None, log: RunLog) -> InitResult:
    """Write the config.

    Raises:
        MlfinetuneError: data that cannot be used, or a config that is there already.
    """
    stem = data.resolve().name if data.is_dir() else data.stem
    file = output or Path(f"{stem or 'config'}.yaml")
    if file.exists():
        raise ConfigError(f"{file} is there already; choose another with --output")
    plain = Config(data=DataConfig(train=data))
    table, skipped = _usable(plain, read_table(data, source_options(plain)), log)
    splits = split_tables(table, None, source_options(plain), split_options(plain, log))
    lines = _lines(table, splits, skipped)
    text = _TEMPLATE.format(
        schema=SCHEMA,
        summary=f"{lines[0]}; {lines[1]}",
        name=make_printable(shlex.quote(file.name)),
        output=_yaml(f"runs/{file.stem}"),
        train=_yaml(os.path.relpath(data, file.absolute().parent)),
        format=table.format,
        val=_val(splits),
        bad_images="skip" if skipped else "error",
        bad_why=f"           # {len(skipped)} cannot be read; error stops the run"
        if skipped
        else "",
    )
    write_atomic(file, text.encode(errors="surrogateescape"))
    return InitResult(file, tuple(lines))


def _usable(plain: Config, table: Table, log: RunLog) -> tuple[Table, list[Skipped]]:
    """The rows whose pictures decode, and the others; rows that are wrong are refused."""
    raise_faults(table, [fault for fault in table.faults if not fault.picture])
    table, missing = drop_faulty(table)

    def bad(paths: Sequence[str]) -> dict[int, str]:
        every = enumerate(scan_pictures(plain, paths, log))
        return {at: found for at, found in every if isinstance(found, str)}

    table, unreadable = drop_faulty(add_scan_faults(table, bad))
    skipped = sorted([*missing, *unreadable], key=lambda one: natural_key(one.place))
    if skipped and not len(table):
        raise DataError(
            f"{table.origin}: none of {pluralize(len(skipped), 'picture')} can be read, looked for "
            f"under {table.root}; a config can name another folder (data.images)\n"
            f"{format_list(_faults(skipped))}"
        )
    return table, skipped


def _faults(skipped: Sequence[Skipped]) -> list[str]:
    return [f"{one.place}: {one.name!r}: {one.reason}" for one in skipped]


def _lines(table: Table, splits: Splits, skipped: list[Skipped]) -> list[str]:
    positives, _, unknown = table.targets.counts()
    share = positives.sum() / max(1, len(table))
    tests = (table.splits or ()).count("test")
    masked = f", {unknown.sum()} unknown targets" if unknown.any() else ""
    lines = [
        f"{len(table)} pictures, {len(splits.train.labels)} labels, {share:.1f} a picture{masked}",
        f"split: {len(splits.train)} to train, {len(splits.val)} to validate"
        f"{f', {tests} to test' if tests else ''} ({_how(splits)})",
        *table.notes,
        _labels(splits),
        *(note for note in splits.notes if "without a" in note),
    ]
    if skipped:
        count = "1 more picture" if len(skipped) == 1 else f"{len(skipped)} more pictures"
        lines.append(f"{count} cannot be read, to be skipped\n{format_list(_faults(skipped))}")
    else:
        lines.append("every picture can be read")
    return lines


def _labels(splits: Splits) -> str:
    """The most frequent labels with their images: what is no label shows here."""
    positives = splits.train.targets.counts()[0] + splits.val.targets.counts()[0]
    most = np.argsort(-positives, kind="stable")
    names = splits.train.labels.names
    shown = [f"{names[at]!r} ({positives[at]})" for at in most[:MAX_LISTED]]
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"labels: {', '.join(shown)}{more}"


def _how(splits: Splits) -> str:
    return "a fifth held out, stratified by label" if splits.drawn else "as the data says"


def _val(splits: Splits) -> str:
    if not splits.drawn:
        return "  # the data says which pictures are for validation"
    return "  val_fraction: 0.2          # held out, stratified by label; or val: another table"


def _yaml(text: str) -> str:
    """A quoted YAML string; what is not to be seen stands in escapes."""
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text) + '"'
