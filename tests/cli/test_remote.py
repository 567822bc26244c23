"""train, eval and predict on a table and pictures that are behind URLs."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Run, prepare
from storage.servers import Server, serving

PICTURES = 70
"""So many that processes look them over."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    there = tmp_path / "there"
    there.mkdir()
    prepare(there, PICTURES)
    (tmp_path / "pets.yaml").write_text((there / "pets.yaml").read_text())
    with serving(there) as found:
        yield found


def train(cli: Run, folder: Path, server: Server, *more: str, **environment: str) -> str:
    asked = (f"data.train={server.url}/tags.csv", "model.image_size=32", "train.workers=2", *more)
    done = cli("train", "pets.yaml", *asked, cwd=folder, **environment)
    assert done.returncode == (2 if "fails" in more else 0), done.stderr
    return done.stderr


def test_a_run_is_the_one_on_the_files(tmp_path: Path, server: Server, cli: Run) -> None:
    train(cli, tmp_path, server, "-o", "remote")
    asked = ("data.train=there/tags.csv", "model.image_size=32", "-o", "local")
    assert cli("train", "pets.yaml", *asked, cwd=tmp_path).returncode == 0
    runs = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("remote", "local")]
    assert runs[0]["mAP"] == runs[1]["mAP"]
    asked = ("--checkpoint", "remote", "--data", f"{server.url}/tags.csv", "-o", "scored")
    done = cli("eval", *asked, cwd=tmp_path)
    assert f"{PICTURES} images" in done.stderr
    done = cli("eval", "--checkpoint", "remote", "-o", "again", cwd=tmp_path)
    assert json.loads((tmp_path / "again/metrics.json").read_text())["mAP"] == runs[0]["mAP"]


def test_the_scan_is_kept_and_training_asks_once_an_epoch(
    tmp_path: Path, server: Server, cli: Run
) -> None:
    train(cli, tmp_path, server, "train.epochs=2", "data.cache_images=off", "data.val_fraction=0.2")
    asked = dict(server.asked)
    usual = Counter(asked.values()).most_common(1)[0]
    assert usual == (3, 56), "looked over, and trained on twice"
    server.asked.clear()
    train(cli, tmp_path, server, "data.cache_images=off", "data.val_fraction=0.2")
    assert {server.asked[name] for name, times in asked.items() if times == 3} == {1}


def test_every_picture_that_is_not_there_is_named(tmp_path: Path, server: Server, cli: Run) -> None:
    pictures = sorted((tmp_path / "there" / "images").iterdir())
    for path in pictures[:3]:
        path.unlink()
    done = cli("train", "pets.yaml", f"data.train={server.url}/tags.csv", cwd=tmp_path)
    assert done.returncode == 2
    for path in pictures[:3]:
        assert f"images/{path.name}': no such object" in done.stderr
    done = cli(
        "train", "pets.yaml", f"data.train={server.url}/tags.csv", "data.bad_images=skip",
        "model.image_size=32", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{PICTURES} images found = {PICTURES - 3} used + 3 skipped" in done.stderr


def test_predict(tmp_path: Path, server: Server, cli: Run, trained: Path) -> None:
    """One that is not there is a row with its error, as a file would be."""
    picture = sorted((tmp_path / "there" / "images").iterdir())[0]
    urls = [f"{server.url}/images/{picture.name}", f"{server.url}/images/none.jpg"]
    asked = ("predict", *urls, str(picture), "-c", str(trained / "runs/pets"), "--format", "jsonl")
    done = cli(*asked, cwd=tmp_path)
    assert done.returncode == 3
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["image"] for row in rows] == [*urls, str(picture)]
    assert rows[0]["scores"] == rows[2]["scores"]
    assert rows[1]["error"] == "no such object"
