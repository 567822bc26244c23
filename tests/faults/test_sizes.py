"""Data sets of every small size train, with full, cut and lone batches, or are refused before."""

import io
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import FULL, Promise, prepare

from mlfinetune.config import load_config
from mlfinetune.errors import ConfigError, DataError
from mlfinetune.runtime.log import RunLog
from mlfinetune.workflows.train import run

WAYS = (
    "model.freeze_backbone=false",
    "model.freeze_backbone=true",
    "train={epochs: 1, workers: 0, optimizer: adamw, ema: 0.9}",
)
REFUSAL = "one picture of 32 px at a time gives BatchNorm one value a channel"


@dataclass(frozen=True)
class Size:
    """Number of pictures and size of a batch; the other settings are drawn from these two."""

    n: int
    batch: int

    def write(self, folder: Path) -> str:
        """Write a table of one to three labels; a third of the targets is unknown.

        At times all targets of a batch are unknown.
        """
        draw = random.Random(f"{self.n} {self.batch}")
        labels = draw.choice((1, 1, 3))
        states = draw.choice((["0", "1"], ["0", "1", ""], ["0"], ["1"], ["", "", "1"]))
        for name, first, count in (("train", 0, self.n), ("val", 40, draw.randint(1, 3))):
            rows = [",".join(["image", *"abc"[:labels]])]
            for k in range(count):
                picture = f"images/{first + k:04}.{'png' if k % 2 else 'jpg'}"
                rows.append(",".join([picture, *draw.choices(states, k=labels)]))
            (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
        return ", ".join("abc"[:labels])


@pytest.mark.faults
@pytest.mark.parametrize("batch", range(1, 9) if FULL else (1, 8))
def test_every_size_trains_or_is_refused_before(
    tmp_path: Path, promise: Promise, batch: int
) -> None:
    """No crash; a refusal comes before the first step, and only where there is one picture."""
    prepare(tmp_path, 44)
    failures, tried = [], [Size(n, batch) for n in (range(1, 41) if FULL else (1, 2, 17))]
    for number, size in enumerate(tried):
        labels = size.write(tmp_path)
        config = load_config(
            tmp_path / "pets.yaml",
            [
                f"data.train={tmp_path / 'train.csv'}",
                f"data.val={tmp_path / 'val.csv'}",
                f"data.label_columns=[{labels}]",
                "model.image_size=32",
                WAYS[number % len(WAYS)],
                f"train.batch_size={size.batch}",
                f"output={tmp_path / 'out'}",
            ],
        )
        log = io.StringIO()
        try:
            run(config, "cpu", RunLog(log))
        except (ConfigError, DataError) as error:
            begun = "epoch 1" in log.getvalue()
            if begun or not str(error).startswith(REFUSAL) or 1 not in (size.n, size.batch):
                failures.append((size, str(error)))
        except Exception as error:
            failures.append((size, repr(error)))
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    promise("P18", len(tried), failures)
