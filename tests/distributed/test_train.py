"""Two and three processes train as one does: the same losses and weights, to rounding."""

import json
import os
import re
from pathlib import Path

import pytest
from torch import Tensor

from distributed.group import run, start
from mlfinetune.runs import checkpoint, directory

WAYS = {
    "fine-tuning": (),
    "in pieces, with a running mean": ("train.accumulate=3", "train.ema=0.9"),
    "a share that is empty": ("data.val_fraction=0.16", "train.batch_size=8"),
    "weighted, balanced, four levels": (
        "loss.pos_weight=auto",
        "loss.name=asl",
        "model.head_bias=prior",
        "train.sampling=balanced",
        "model.levels=4",
    ),
    "frozen, pictures decoded every epoch": (
        "model.freeze_backbone=true",
        "train.cache_features=off",
    ),
}


def history(run: Path) -> list[dict[str, float]]:
    """Return the lines of metrics.jsonl without times."""
    rows = [json.loads(line) for line in (run / directory.HISTORY).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("images_per_s", "seconds")} for row in rows]


def weights(run: Path) -> dict[str, Tensor]:
    return checkpoint.load(run / directory.LAST).weights


def furthest(one: dict[str, Tensor], two: dict[str, Tensor]) -> tuple[float, str]:
    """Return the largest relative difference of a tensor, and the tensor's name."""
    return max(
        (float((one[k] - two[k]).abs().max() / one[k].abs().max().clamp(min=1e-3)), k)
        for k in one
        if one[k].is_floating_point()
    )


@pytest.mark.parametrize("way", WAYS)
def test_as_one_process(ground: Path, way: str) -> None:
    for size in (1, 2, 3):
        more = ("train.sync_batch_norm=true", "-o", f"runs/{size}", *WAYS[way])
        run(size, "train", "tiny.yaml", *more, cwd=ground)
    one = ground / "runs" / "1"
    for size in (2, 3):
        several = ground / "runs" / str(size)
        for a, b in zip(history(one), history(several), strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-6), size
        assert furthest(weights(one), weights(several))[0] < 5e-4


def test_a_parameter_that_takes_no_part(ground: Path) -> None:
    """DDP waits for no gradient of it; all others learn."""
    asked = ("model.backbone=timm/efficientvim_m1", "model.image_size=64", "train.epochs=1")
    run(2, "train", "tiny.yaml", *asked, "train.lr=1e-6", "train.head_lr=1e-6", cwd=ground)
    (row,) = history(ground / "runs" / "tiny")
    assert 0 < row["grad_norm"] < float("inf")
    assert "head.weight" in weights(ground / "runs" / "tiny")


def test_features_of_a_frozen_backbone_are_computed_by_all(ground: Path) -> None:
    """Features, and the head solved on them, are equal to one process's, to the bit."""
    for size in (1, 2, 3):
        environment = {"MLFINETUNE_CACHE": str(ground / f"cache-{size}")}
        more = ("eval.views=mirror", "model.levels=2", "-o", f"runs/{size}")
        more = ("model.freeze_backbone=true", *more)
        said = run(size, "train", "tiny.yaml", *more, cwd=ground, **environment).said
        assert f"{size} processes compute features" in said or size == 1
    one = ground / "runs" / "1"
    for size in (2, 3):
        several = ground / "runs" / str(size)
        assert furthest(weights(one), weights(several))[0] == 0
        for name in (directory.PREDICTIONS, directory.PER_LABEL):
            assert (one / name).read_bytes() == (several / name).read_bytes()
        numbers = [json.loads((run / directory.METRICS).read_text()) for run in (one, several)]
        assert {**numbers[0], "run": None} == {**numbers[1], "run": None}


def test_the_solved_head_is_everyone_s_start_and_end(ground: Path) -> None:
    """Also that of the moving average, which every rank keeps for itself, and validates with."""
    losses, solved, scores = [], [], []
    for size in (1, 2):
        more = ("train.solve_head_first=true", "train.sync_batch_norm=true", "-o", f"runs/{size}")
        more = ("train.solve_head_last=true", "train.ema=auto", *more)
        said = run(size, "train", "tiny.yaml", *more, cwd=ground).said
        losses.append([row["loss"] for row in history(ground / "runs" / str(size))])
        scores.append([row["mAP"] for row in history(ground / "runs" / str(size))])
        solved += re.findall(
            r"^the head solved for after epoch .* mAP ([\d.]+)", said, re.MULTILINE
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert scores[0] == pytest.approx(scores[1], abs=0.01)
    assert float(solved[0]) == pytest.approx(float(solved[1]), abs=0.01)


def test_a_head_that_is_solved_for_after_each_epoch_is_everyone_s(ground: Path) -> None:
    """Rank 0 finds it; each rank trains on from it, so that all save the same network."""
    found = []
    for size in (1, 2):
        more = ("train.solve_head_each=true", "train.sync_batch_norm=true", "-o", f"runs/{size}")
        said = run(size, "train", "tiny.yaml", "train.ema=auto", *more, cwd=ground).said
        assert "training starts from" not in said
        found.append([(row["loss"], row["mAP"]) for row in history(ground / "runs" / str(size))])
    for one, several in zip(*found, strict=True):
        assert one == pytest.approx(several, rel=0.01)


def test_without_synchronized_statistics_all_keep_the_same_ones(ground: Path) -> None:
    """The checkpoint has the mean of all ranks' statistics; the log says which are used."""
    more = ("train.sync_batch_norm=false", "train.epochs=1")
    said = run(2, "train", "tiny.yaml", *more, cwd=ground).said
    assert "BatchNorm learns in each from its own" in said
    said = run(2, "train", "tiny.yaml", "train.epochs=1", cwd=ground).said
    assert "2 processes, each with 4 pictures of a batch of 8; BatchNorm learns from those" in said


def test_a_dry_run(ground: Path) -> None:
    done = run(2, "train", "tiny.yaml", "--dry-run", cwd=ground)
    assert "nothing was left behind" in done.out
    assert not (ground / "runs").exists()


def test_small_copies_are_made_once_on_a_machine(ground: Path) -> None:
    more = ("data.cache_images=disk", "model.image_size=32")
    done = run(2, "train", "tiny.yaml", *more, cwd=ground)
    assert "25 to look at" in done.said
    before = sorted((ground / "runs").iterdir())
    group = start(2, "train", "tiny.yaml", "data.cache_images=ram", cwd=ground)
    assert [child.wait() for child in group] == [2, 2]
    assert sorted((ground / "runs").iterdir()) == before
    assert "".join(child.said for child in group).count("MLFINETUNE_CACHE=/dev/shm") == 1


def test_batches_too_small_for_all(ground: Path) -> None:
    group = start(3, "train", "tiny.yaml", "train.batch_size=2", cwd=ground)
    assert [child.wait() for child in group] == [2, 2, 2]
    said = "".join(child.said for child in group)
    assert said.count("train.batch_size 2 is that of all 3 processes together") == 1


def test_warnings_of_every_process_reach_the_log_with_its_number(ground: Path) -> None:
    """torch's own, of more decoding processes than cores."""
    many = len(os.sched_getaffinity(0)) + 1
    more = ("train.epochs=1", f"train.workers={many}")
    said = run(2, "train", "tiny.yaml", *more, cwd=ground).said
    line = f"warning: process 1: This DataLoader will create {many} worker processes"
    assert said.count(line) == 1
    assert (ground / "runs/tiny/train.log").read_text().count(line) == 1
