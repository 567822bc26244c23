"""`eval` and `predict` by several processes: the very bytes of one."""

import json
from pathlib import Path

import pytest
from conftest import Promise

from distributed.conftest import draw
from distributed.group import run, start
from mlfinetune.runs import directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, server: None) -> Path:
    folder = draw(tmp_path_factory.mktemp("scored"))
    run(1, "train", "tiny.yaml", "train.batch_size=4", cwd=folder)
    return folder


@pytest.mark.faults
def test_evaluation_is_that_of_one_process_bit_for_bit(trained: Path, promise: Promise) -> None:
    names = (directory.METRICS, directory.PER_LABEL, directory.PREDICTIONS, directory.SCORES)
    found = []
    for size in (1, 2, 3):
        folder = f"scored-{size}"
        data = ("--data", "tags.csv", "-o", folder, "eval.views=mirror")
        done = run(size, "eval", "--checkpoint", "runs/tiny", *data, cwd=trained)
        assert "mAP" in done.out
        assert "31 images" in done.said
        found.append([(trained / folder / name).read_bytes() for name in names])
    promise("P15", 2, [size for size in (2, 3) if found[size - 1] != found[0]])


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_predictions_are_one_ordered_output(trained: Path, ending: str) -> None:
    (trained / "images" / "0007b.jpg").write_bytes(b"no picture")
    found = []
    for size in (1, 2, 3):
        output = trained / f"predicted-{size}.{ending}"
        asked = ("predict", "images", "-c", "runs/tiny", "-o", str(output), "--batch-size", "2")
        group = start(size, *asked, "--sidecars", "xmp", "--top", "2", cwd=trained)
        assert [child.wait() for child in group] == [3] + [0] * (size - 1)
        assert "0007b.jpg" in group[0].said
        assert "32 images" in group[0].said
        sidecars = sorted((trained / "images").glob("*.xmp"))
        found.append((output.read_bytes(), *(path.read_bytes() for path in sidecars)))
        assert len(sidecars) == 31
        for path in sidecars:
            path.unlink()
    assert found[0] == found[1] == found[2]


def test_they_go_on_after_the_last_complete_row(trained: Path) -> None:
    (trained / "images" / "0007b.jpg").unlink(missing_ok=True)
    asked = ("predict", "images", "-c", "runs/tiny", "--batch-size", "2")
    run(1, *asked, "-o", "whole.jsonl", cwd=trained)
    whole = (trained / "whole.jsonl").read_bytes()
    (trained / "part.jsonl").write_bytes(whole[: len(whole) * 2 // 5])
    done = run(3, *asked, "-o", "part.jsonl", "--resume", cwd=trained)
    assert "complete, resuming after them" in done.said
    assert (trained / "part.jsonl").read_bytes() == whole


def test_shards_of_shards(trained: Path) -> None:
    """--shard says which pictures are this command's, however many processes it has."""
    found = []
    for size in (1, 2):
        asked = ("predict", "images", "-c", "runs/tiny", "--shard", "2/3", "-o", f"{size}.jsonl")
        run(size, *asked, "--batch-size", "3", cwd=trained)
        found.append((trained / f"{size}.jsonl").read_text())
    assert found[0] == found[1]
    names = [json.loads(line)["image"] for line in found[0].splitlines()]
    assert names == sorted(str(p) for p in (trained / "images").iterdir())[1::3] or len(names) == 10


def test_labels_that_one_process_cannot_read(trained: Path) -> None:
    """A picture of process 1's that is gone: its error, once, and everyone ends."""
    (trained / "missing.csv").write_text((trained / "tags.csv").read_text())
    picture = trained / "images" / "0005.jpg"
    picture = picture if picture.exists() else next((trained / "images").glob("0005.*"))
    content = picture.read_bytes()
    picture.write_bytes(content[: len(content) // 2])
    try:
        asked = ("eval", "--checkpoint", "runs/tiny", "--data", "missing.csv", "-o", "broken")
        group = start(2, *asked, cwd=trained)
        assert all(child.wait() == 2 for child in group)
    finally:
        picture.write_bytes(content)
    said = "".join(child.said for child in group)
    assert said.count("error (process") == 1
    assert "0005" in said
    assert "Traceback" not in said
