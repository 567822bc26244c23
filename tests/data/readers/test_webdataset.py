"""Tar shards: read as a table, trained on in any order, by any number of processes."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from conftest import Run, prepare

from mlfinetune.data.read import read_splits, read_table
from mlfinetune.data.table import SourceOptions
from mlfinetune.errors import DataError


def pack(tar: Path, members: dict[str, bytes]) -> None:
    tar.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar, "w") as file:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))


def shards(folder: Path, each: int = 8) -> Path:
    """Return the drawn pictures of a folder in tars, their labels beside them in three ways."""
    prepare(folder)
    rows = [row.split(",") for row in (folder / "tags.csv").read_text().splitlines()[1:]]
    for start in range(0, len(rows), each):
        held: dict[str, bytes] = {}
        for at, (image, cell) in enumerate(rows[start : start + each]):
            tags = cell.split("|") if cell else []
            stem = f"{start + at:04}"
            held[stem + Path(image).suffix] = (folder / image).read_bytes()
            if at % 3 == 0:
                held[f"{stem}.txt"] = ", ".join(tags).encode()
            elif at % 3 == 1:
                held[f"{stem}.json"] = json.dumps({"width": 32, "labels": tags}).encode()
            else:
                held[f"{stem}.json"] = json.dumps(tags).encode()
        pack(folder / "shards" / f"{start // each:03}.tar", held)
    return folder / "shards"


def test_shards_say_what_the_table_said(tmp_path: Path) -> None:
    packed = read_table(shards(tmp_path), SourceOptions())
    plain = read_table(tmp_path / "tags.csv", SourceOptions())
    assert packed.format == "webdataset"
    assert len(packed) == len(plain) == 24
    assert packed.names[9] == "001.tar/0009.png" or packed.names[9].startswith("001.tar/0009.")
    said = [
        {t.labels.names[c] for c in range(len(t.labels)) if t.targets[[row]][0, c] == 1}
        for t in (packed, plain)
        for row in range(24)
    ]
    assert said[:24] == said[24:]


def test_one_tar_is_a_data_set_too(tmp_path: Path) -> None:
    table = read_table(shards(tmp_path) / "000.tar", SourceOptions())
    assert len(table) == 8
    assert not table.faults


def test_folders_of_shards_are_sides(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    for name, numbers in (("train", (0, 1)), ("val", (2,))):
        (folder / name).mkdir()
        for number in numbers:
            (folder / f"{number:03}.tar").rename(folder / name / f"{number:03}.tar")
    splits = read_splits(folder, None, SourceOptions())
    assert (len(splits.train), len(splits.val)) == (16, 8)
    assert splits.train.names[0].startswith("train/000.tar/")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"{not json", "not JSON"),
        ("a.json", b'{"labels": {"cat": 1}}', "wanted a list of labels"),
        ("a.txt", b"\xff\x81", "not UTF-8"),
        ("a.txt", b"x," * 600_000, "too many bytes"),
    ],
)
def test_labels_that_cannot_be_read_are_named(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    pack(tmp_path / "x" / "a.tar", {"a.jpg": b"picture", name: content})
    (fault,) = read_table(tmp_path / "x", SourceOptions()).faults
    assert str(fault).startswith(f"a.tar/{name}: ")
    assert reason in str(fault)


def test_what_is_no_sample_is_counted(tmp_path: Path) -> None:
    held = {"a.jpg": b"1", "a.cls": b"cat", "b.jpg": b"2", "c.txt": b"dog", ".hidden.jpg": b"3"}
    pack(tmp_path / "x" / "a.tar", held)
    table = read_table(tmp_path / "x", SourceOptions())
    assert table.names == ("a.tar/a.jpg", "a.tar/b.jpg")
    assert table.labels.names == ("cat",)
    assert "1 of 2 pictures with no .txt, .json, .cls: no labels" in table.notes
    assert "1 sample with no picture: ignored" in table.notes


def test_samples_with_two_pictures_are_told(tmp_path: Path) -> None:
    """A name ends at its first dot, as WebDataset has it."""
    pack(tmp_path / "x" / "a.tar", {"IMG.01.jpg": b"1", "IMG.02.jpg": b"2", "IMG.txt": b"cat"})
    table = read_table(tmp_path / "x", SourceOptions())
    assert len(table) == 1
    assert any("1 file ignored: a sample" in note for note in table.notes)


def test_members_of_other_endings(tmp_path: Path) -> None:
    """HEIC and AVIF are pictures; of a raw file and its JPEG the JPEG is taken."""
    held = {"a.heic": b"1", "a.tags": b"cat", "b.avif": b"2", "b.caption": b"hot dog, sun"}
    held |= {"c.CR2": b"3", "c.JPG": b"4", "c.caption": b"moon", "c.txt": b"dog", "d.CR2": b"5"}
    pack(tmp_path / "x" / "a.tar", held)
    table = read_table(tmp_path / "x", SourceOptions())
    assert table.names == tuple(f"a.tar/{name}" for name in ("a.heic", "b.avif", "c.JPG", "d.CR2"))
    assert table.labels.names == ("cat", "hot dog", "sun", "dog")
    assert any("1 file ignored: a sample" in note for note in table.notes)


def test_captions_are_no_tags(tmp_path: Path) -> None:
    """Data sets of pictures and sentences come in tars."""
    held = {"a.jpg": b"1", "a.txt": b"A man rides a wave on a small surfboard.", "b.jpg": b"2"}
    pack(tmp_path / "x" / "a.tar", held)
    with pytest.raises(DataError, match=r"1 of 1 \.txt files hold sentences, not tags \('A man"):
        read_table(tmp_path / "x", SourceOptions())


def test_a_tar_beside_class_folders_is_no_data_set(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    picture = next((tmp_path / "images").glob("*.jpg"))
    picture.rename(tmp_path / "classes" / "cat" / picture.name)
    pack(tmp_path / "classes" / "download.tar", {"a.jpg": b"1"})
    assert read_table(tmp_path / "classes", SourceOptions()).format == "folder"


def test_tars_without_pictures(tmp_path: Path) -> None:
    pack(tmp_path / "x" / "a.tar", {"a.txt": b"cat"})
    with pytest.raises(DataError, match="no picture in 1 tar"):
        read_table(tmp_path / "x", SourceOptions())
    (tmp_path / "x" / "a.tar").write_bytes(b"\x1f\x8b compressed")
    with pytest.raises(DataError, match="no plain tar"):
        read_table(tmp_path / "x", SourceOptions())


def test_a_run_on_shards_is_the_run_on_the_files(tmp_path: Path, cli: Run) -> None:
    """Losses and numbers are equal; a split table names members, and predict takes a tar."""
    shards(tmp_path)
    same = ("model.image_size=32", "data.val_fraction=0.25", "train.workers=1")
    for name, train in (("plain", "tags.csv"), ("tars", "shards")):
        done = cli(
            "train", "pets.yaml", f"data.train={train}", "-o", name, *same, cwd=tmp_path
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("plain", "tars")]
    assert metrics[0]["mAP"] == metrics[1]["mAP"]
    assert "tar shards (WebDataset)" in done.stderr
    done = cli("predict", "shards/001.tar", "-c", "tars", "-o", "p.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert rows[0]["image"].startswith("shards/001.tar/0008.")
    done = cli("split", "shards", "-o", "split.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = cli("check", "pets.yaml", "data.train=split.csv", cwd=tmp_path)
    assert "24 images" in done.stdout, done.stderr


def test_another_sign_between_tags_is_noted(tmp_path: Path) -> None:
    """In text files alone: a .cls holds one label."""
    words = ["cat", "dog", "sun"]
    texts = [*words, *(f"{a} {b}" for a in words for b in words if a != b)]
    for ending, noted in ((".txt", True), (".cls", False)):
        members = [(f"{n}{end}", text) for n, text in enumerate(texts) for end in (".jpg", ending)]
        tar = tmp_path / f"a{ending}.tar"
        pack(tar, {name: text.encode() for name, text in members})
        notes = read_table(tar, SourceOptions()).notes
        assert any('data.label_delimiter: " "' in note for note in notes) == noted
