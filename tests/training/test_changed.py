"""Pictures that change while a run reads them: it says so, with their names."""

import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from torch.optim.optimizer import register_optimizer_step_post_hook

from mlfinetune.data.batches.loader import Loader
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.storage.files import number_stamp, read_stamp

STEPS = 3
"""Steps of an epoch: 19 pictures, 8 in a batch."""


def change(path: Path) -> None:
    """Give a file another time."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def test_pictures_swapped_for_others(pictures: Path, cli: Run) -> None:
    """Once, at the end of the epoch that has read them."""
    files = sorted((pictures / "images").iterdir())
    steps: list[object] = []

    def swap(*step: object) -> None:
        """After the last step of the first epoch, so that each loader meets all of them at once."""
        steps.append(step)
        if len(steps) == STEPS:
            for file in files[:3]:
                shutil.copyfile(files[5], file)
                change(file)

    hook = register_optimizer_step_post_hook(swap)
    try:
        done = cli("train", "pets.yaml", "train.epochs=3", cwd=pictures)
    finally:
        hook.remove()
    assert done.returncode == 0, done.stderr
    assert len(steps) == 3 * STEPS
    lines = done.stderr.splitlines()
    warnings = [line for line in lines if "while the run was under way" in line]
    assert 1 <= len(warnings) <= 2  # train and val
    for file in files[:3]:
        assert any(f"images/{file.name}" in line for line in lines[lines.index(warnings[0]) :])


def test_nothing_is_said_of_pictures_that_stay(trained: Path) -> None:
    """Neither of files nor of their small copies."""
    assert "under way" not in (trained / "runs/pets/train.log").read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_tar_that_is_packed_again(pictures: Path, workers: int) -> None:
    """Its members have its time."""
    tar = pictures / "a.tar"
    names = tuple(sorted(path.name for path in (pictures / "images").iterdir()))[:4]
    with tarfile.open(tar, "w") as file:
        for name in names:
            file.add(pictures / "images" / name, name)
    targets = Targets.pack([np.ones((4, 1), np.int8)], 1)
    plain = Manifest(tar, names, targets, LabelSpace(("a",)))
    stamps = [number_stamp(read_stamp(plain.path(row))) for row in range(4)]
    loader = Loader(
        replace(plain, stamps=np.array(stamps)),
        TransformSpec(32, "squash", 10**6),
        batch_size=4,
        workers=workers,
        train_seed=None,
        pin_memory=False,
    )
    list(loader.epoch())
    assert loader.describe_changes() == ""
    change(tar)
    list(loader.epoch(1))
    assert loader.describe_changes().startswith("warning: 4 pictures changed")
    assert loader.describe_changes() == ""
