"""`mlfinetune predict --sidecars`, from the command line."""

import csv
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from conftest import Run
from PIL import Image
from runs.photo_programs import read_by_exiftool, read_by_exiv2
from runs.sidecar_samples import DARKTABLE, LIGHTROOM

from mlfinetune.data.images.keywords import read_sidecar
from mlfinetune.data.images.xmp_packet import SUBJECT

OPTIONS = ("-c", "runs/pets", "--threshold", "0.3")


def copy(trained: Path, folder: Path, count: int = 4) -> Path:
    """Copy some pictures of the run into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((trained / "images").iterdir())[:count]:
        shutil.copy(path, folder)
    return folder


def list_labels(text: str) -> dict[str, list[str]]:
    """Return the labels of each picture, by its name, in rows of CSV."""
    rows = csv.DictReader(io.StringIO(text))
    return {Path(row["image"]).name: row["labels"].split("|") for row in rows if row["labels"]}


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return name -> the bytes and the time of each file of a folder."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


@pytest.mark.parametrize(("kind", "ending"), [("xmp", ".xmp"), ("lightroom", ".xmp")])
def test_labels_over_threshold_lie_beside_the_pictures(
    trained: Path, cli: Run, tmp_path: Path, kind: str, ending: str
) -> None:
    """Rows and pictures are those without it; a second run changes nothing; both programs agree."""
    folder = copy(trained, tmp_path / "photos")
    plain, before = cli("predict", str(folder), *OPTIONS, cwd=trained), snapshot(folder)
    command = ("predict", str(folder), *OPTIONS, "--sidecars", kind)
    done = cli(*command, cwd=trained)
    assert (done.returncode, done.stdout) == (0, plain.stdout)
    expected = list_labels(plain.stdout)
    after = snapshot(folder)
    stems = {name: name if kind == "xmp" else Path(name).stem for name in expected}
    assert after.keys() - before.keys() == {f"{stem}{ending}" for stem in stems.values()}
    assert {name: after[name] for name in before} == before
    for name, labels in expected.items():
        sidecar = folder / f"{stems[name]}{ending}"
        assert read_sidecar(sidecar).ours[SUBJECT] == labels
        assert read_by_exiv2(sidecar) == (", ".join(labels),) * 2
    assert read_by_exiftool(sidecar) == (labels, labels)
    again = cli(*command, cwd=trained)
    assert snapshot(folder) == after
    assert f"sidecars: 0 new, 0 changed, {len(before)} as they are" in again.stderr


def test_a_dry_run_shows_what_would_change(trained: Path, cli: Run, tmp_path: Path) -> None:
    """A line for each sidecar, the counts at the end; the run itself then makes these changes."""
    folder = copy(trained, tmp_path / "photos")
    name = min(path.name for path in folder.iterdir())
    cli("predict", str(folder / name), *OPTIONS, "--sidecars", "xmp", cwd=trained)
    (ours,) = list_labels(cli("predict", str(folder / name), *OPTIONS, cwd=trained).stdout).values()
    before, command = snapshot(folder), ("predict", str(folder), "-c", "runs/pets", "--top", "1")
    done = cli(*command, "--sidecars", "xmp", "--dry-run", cwd=trained)
    assert snapshot(folder) == before
    top = list_labels(cli(*command, cwd=trained).stdout)
    first, *others = done.stdout.splitlines()
    gone = ", ".join(label for label in ours if label not in top[name])
    assert first == f"{folder / name}.xmp: - {gone}"
    assert others == [f"{folder / n}.xmp (new): + {top[n][0]}" for n in sorted(top)[1:]]
    counts = f"3 would be new, 1 would be changed, 0 as they are; 3 tags added, {len(ours) - 1}"
    assert counts in done.stderr
    assert "1 changed" in cli(*command, "--sidecars", "xmp", cwd=trained).stderr


def test_failures_are_named_and_the_others_written(trained: Path, cli: Run, tmp_path: Path) -> None:
    """Exit code 3; the row of a picture whose sidecar cannot be merged is there."""
    folder = copy(trained, tmp_path, 3)
    first, second, third = sorted(path.name for path in folder.iterdir())
    (folder / f"{first}.xmp").write_text("<broken")
    (folder / f"{second}.xmp").write_text(DARKTABLE)
    (folder / third).write_text("no picture")
    with tarfile.open(folder / "x.tar", "w") as tar:
        tar.add(trained / "images" / first, first)
    done = cli("predict", str(folder), *OPTIONS, "--sidecars", "xmp", cwd=trained)
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 5
    assert "1 picture could not be read\n" in done.stderr
    assert "2 sidecars could not be written\n" in done.stderr
    assert f"{first}.xmp: not well-formed XML (unclosed token, line 1); it is left" in done.stderr
    assert f"x.tar/{first}: no file beside which a sidecar could lie" in done.stderr
    assert (folder / f"{first}.xmp").read_text() == "<broken"
    assert read_sidecar(folder / f"{second}.xmp").by_people[SUBJECT] == ["sea", "A & B"]


def test_texts_are_data_for_training(trained: Path, cli: Run, tmp_path: Path) -> None:
    """`check` reads them as what they are."""
    folder = copy(trained, tmp_path)
    done = cli("predict", str(folder), *OPTIONS, "--sidecars", "txt", cwd=trained)
    for name, labels in list_labels(done.stdout).items():
        assert (folder / name).with_suffix(".txt").read_text() == ", ".join(labels) + "\n"
    found = cli("check", "pets.yaml", f"data.train={folder}", cwd=trained)
    assert "read as pictures with .txt files of tags" in found.stdout


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ("--dry-run",),
            "--dry-run shows what --sidecars would change: name xmp, lightroom or txt",
        ),
        (("--sidecars", "xmp", "--dry-run", "-o", "a.csv"), "leave out --output"),
        (("--sidecars", "xmp", "--dry-run", "--format", "csv"), "leave out --format"),
        (("--sidecars", "xmp", "https://host/a.jpg"), "--sidecars writes beside files and folders"),
    ],
)
def test_options_that_do_not_go_together(
    trained: Path, cli: Run, options: tuple[str, ...], reason: str
) -> None:
    """One line, before a checkpoint is loaded, and exit code 2."""
    done = cli("predict", "images", "-c", "runs/pets", *options, cwd=trained)
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_resumed_run_passes_over_what_is_done(trained: Path, cli: Run, tmp_path: Path) -> None:
    """A picture with a row has its sidecar, or had it: it is not written again."""
    folder, rows = copy(trained, tmp_path / "photos"), tmp_path / "rows.csv"
    command = ("predict", str(folder), *OPTIONS, "--sidecars", "xmp", "-o", str(rows))
    assert cli(*command, cwd=trained).returncode == 0
    whole = rows.read_bytes()
    rows.write_bytes(b"".join(whole.splitlines(True)[:3]) + b"half a row")
    for path in folder.glob("*.xmp"):
        path.unlink()
    assert cli(*command, "--resume", cwd=trained).returncode == 0
    assert rows.read_bytes() == whole
    names = sorted(list_labels(whole.decode()))
    assert sorted(path.name for path in folder.glob("*.xmp")) == [f"{n}.xmp" for n in names[2:]]


def test_stdin_and_jsonl(trained: Path, cli: Run, tmp_path: Path) -> None:
    """Paths from another program, and rows for it."""
    folder = copy(trained, tmp_path, 2)
    names = [str(path) for path in sorted(folder.iterdir())]
    command = ("predict", "-", *OPTIONS, "--sidecars", "lightroom", "--format", "jsonl")
    done = cli(*command, cwd=trained, stdin="\n".join(names))
    for row in map(json.loads, done.stdout.splitlines()):
        found = read_sidecar(Path(row["image"]).with_suffix(".xmp"))
        assert found.ours[SUBJECT] == row["labels"]


# ---- the archive as the data set ----------------------------------------------------------


def test_an_archive_trains_as_it_is(trained: Path, cli: Run, tmp_path: Path) -> None:
    """init detects it, its config trains, and predictions beside the pictures are no labels."""
    folder = copy(trained, tmp_path / "photos/2024", 12)
    for number, path in enumerate(sorted(folder.iterdir())):
        packet = LIGHTROOM.replace(">sea<", f">{('sea', 'sun')[number % 2]}<")
        if number < 6:
            (folder / f"{path.name}.xmp").write_text(packet)
        else:
            with Image.open(path) as image:
                image.save(path, xmp=packet.encode())
    cli("predict", str(folder), *OPTIONS, "--sidecars", "xmp", cwd=trained)
    keys = ("model.backbone=resnet6_tiny", "model.levels=1", "model.weights=null", "train.epochs=1")
    found = cli("init", "photos", *keys, "model.image_size=32", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    said = found.stdout + found.stderr
    assert "12 pictures, 2 labels" in said
    assert "read as a photo archive: pictures with keywords" in said
    assert "written by `mlfinetune predict`: predictions, left out" in said
    config = (tmp_path / "photos.yaml").read_text()
    assert "# format: xmp" in config
    done = cli("train", "photos.yaml", "train.workers=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/photos/labels.txt").read_text().split() == ["sea", "sun"]


def test_a_few_keywords_are_mentioned(trained: Path, cli: Run, tmp_path: Path) -> None:
    """A folder without labels gets a table to fill in, and hears of the keywords."""
    folder = copy(trained, tmp_path / "photos", 4)
    (folder / f"{min(os.listdir(folder))}.xmp").write_text(DARKTABLE)
    found = cli("init", "photos", cwd=tmp_path)
    assert "keywords of photo programs in 1 of 4 pictures looked at are not read" in found.stdout
