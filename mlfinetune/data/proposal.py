"""Config keys that the data itself proposes, for `mlfinetune init` to write.

a guess of the reader            image_column: Datei
val held out at random           val_fraction: 0.2
cells of 1 and blank alone       unknown: negative
pictures that cannot be read     bad_images: skip
"""

from collections.abc import Sequence

import numpy as np

from mlfinetune.config import DataConfig
from mlfinetune.config.template import Setting
from mlfinetune.data.labels import MANY_BLANK
from mlfinetune.data.manifest import DEFAULT_VAL_FRACTION, Splits
from mlfinetune.data.sample import count_empty
from mlfinetune.data.table import Table


def propose_unknown(tables: Sequence[Table]) -> tuple[str, Setting] | None:
    """Return the key that makes unknown targets negative where no cell is negative, and a line.

    Masked as unknown they would leave positives alone, and nothing could be learned.
    """
    counts = np.array([[c.sum() for c in table.targets.counts()] for table in tables]).sum(axis=0)
    positives, negatives, unknown = counts.tolist()
    if negatives or not (positives and unknown):
        return None
    line = (
        f"no cell says 0: {unknown} unknown targets are taken as negatives "
        f"(data.unknown: negative), since nothing is learned without any"
    )
    why = "no cell says 0, and nothing is learned without negatives"
    return line, Setting("data.unknown", "negative", why)


def list_choices(table: Table) -> list[Setting]:
    """Return the keys that the reader of the table chose, so that they can be changed."""
    why = "a guess; name another where it is wrong"
    choices = [
        Setting(f"data.{key}", value if isinstance(value, str) else list(value), why)
        for key, value in table.choices
    ]
    if table.delimiter and "label_delimiter" not in dict(table.choices):
        choices.append(
            Setting("data.label_delimiter", table.delimiter, "detected", is_comment=True)
        )
    return choices


def list_decisions(
    table: Table, splits: Splits, unreadable: int, data: DataConfig
) -> list[Setting]:
    """Return the keys that follow from the rows and pictures.

    Args:
        table: the usable rows of train.
        splits: train and val.
        unreadable: number of pictures that cannot be read.
        data: the config's section, as far as it is decided.
    """
    settings = []
    if splits.drawn:
        why = "held out, stratified by label; or val: another table"
        settings.append(Setting("data.val_fraction", DEFAULT_VAL_FRACTION, why))
    elif data.val is None:
        why = "the data says which pictures are for validation"
        settings.append(Setting("data.val_fraction", DEFAULT_VAL_FRACTION, why, is_comment=True))
    if unreadable:
        why = f"{unreadable} cannot be read; error stops the run"
        settings.append(Setting("data.bad_images", "skip", why))
    listed, blank = count_empty(table)
    if data.unknown != "ignore" and blank >= MANY_BLANK * len(table) > 0:
        why = f"{blank} of {len(table)} have blank cells alone; unknown where nobody looked at them"
        settings.append(Setting("data.empty_labels", data.empty_labels, why))
    if listed and listed >= MANY_BLANK * len(table):
        why = f"{listed} of {len(table)} have no label; unknown where nobody looked at them"
        settings.append(Setting("data.empty_labels", "negative", why))
    return settings
