"""`mlfinetune split`: the data with a side for every image, which trains as it is."""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from PIL import Image
from test_mistakes import fails
from test_train import tree_digest

from mlfinetune.data.manifest import Manifest
from mlfinetune.data.read import read_splits
from mlfinetune.data.table import SourceOptions

Cells = list[list[str]]


def rows_of(path: Path, delimiter: str = ",") -> Cells:
    """Return the cells of a table, blank lines left out."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [cells for cells in csv.reader(file, delimiter=delimiter) if any(cells)]


def table(path: Path, count: int, seed: int = 0) -> Path:
    """Write a table of equal images 0.png ... with labels a, b, c, in groups of three."""
    rng = np.random.default_rng(seed)
    lines = ["image,labels,visit"]
    for at in range(count):
        Image.new("L", (8, 8)).save(path.parent / f"{at}.png")
        own = [
            label
            for label, share in zip("abc", (0.5, 0.3, 0.1), strict=True)
            if rng.random() < share
        ]
        lines.append(f"{at}.png,{'|'.join(own)},v{at // 3}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with data.csv, 90 images."""
    table(tmp_path / "data.csv", 90)
    return tmp_path


def split(cli: Run, folder: Path, *arguments: str) -> str:
    """Run split with success, and return its standard output."""
    done = cli("split", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def told(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Return image -> label -> state, without absent labels."""
    return {
        name: {
            label: int(state)
            for label, state in zip(manifest.labels.names, states, strict=True)
            if state
        }
        for name, states in zip(manifest.names, manifest.targets[:], strict=True)
    }


def both(path: Path, **options: Any) -> dict[str, dict[str, int]]:
    """Return the images of train and val with their labels."""
    splits = read_splits(path, None, SourceOptions(**options))
    return told(splits.train) | told(splits.val)


# ---- sides ------------------------------------------------------------------------------


def test_sizes_and_cells(data: Path, cli: Run) -> None:
    """Exact sizes; every row as it was, with one more cell; the data itself untouched."""
    before = tree_digest(data)
    out = split(cli, data, "data.csv", "--val", "0.2", "--test", "0.1")
    written = data / "data.split.csv"
    rows = rows_of(written)
    assert [row[:-1] for row in rows] == rows_of(data / "data.csv")
    assert Counter(row[-1] for row in rows[1:]) == {"train": 63, "val": 18, "test": 9}
    assert out.startswith("90 images: 63 train, 18 val, 9 test\n")
    written.unlink()
    assert tree_digest(data) == before


def test_training_reads_those_sides(data: Path, cli: Run) -> None:
    """The table that was written needs no other key."""
    split(cli, data, "data.csv", "--test", "0.1")
    splits = read_splits(data / "data.split.csv", None, SourceOptions())
    for side, manifest in (("train", splits.train), ("val", splits.val)):
        own = [row[0] for row in rows_of(data / "data.split.csv") if row[-1] == side]
        assert list(manifest.names) == own


def test_the_balance_is_that_of_the_file(data: Path, cli: Run) -> None:
    """Positives and shares held out, by label, and the distance of the worst one."""
    out = split(cli, data, "data.csv", "--val", "0.3", "--test", "0.1")
    rows = rows_of(data / "data.split.csv")[1:]
    distances = []
    for label in "abc":
        sides = [row[-1] != "train" for row in rows if label in row[1]]
        share = sum(sides) / len(sides)
        distances.append(abs(share - 0.4))
        line = next(line for line in out.splitlines() if line.startswith(f"  {label} "))
        assert line.split()[1:3] == [str(len(sides)), f"{share:.1%}"]
    assert f"of all images 40.0% are held out; the worst label is {max(distances):.1%} off" in out
    chance = [float(x) for x in re.findall(r"([\d.]+)%$", out, re.MULTILINE)]
    assert len(chance) == 4
    assert chance[-1] == pytest.approx(max(abs(x - 40) for x in chance[:-1]), abs=0.11)


def test_the_seed_repeats_and_changes(data: Path, cli: Run) -> None:
    """One seed, one split; another seed, another one."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        split(cli, data, "data.csv", "-o", f"{name}.csv", "--seed", str(seed))
    a, b, c = ((data / f"{name}.csv").read_text() for name in "abc")
    assert a == b != c


def test_groups_stay_whole(data: Path, cli: Run) -> None:
    """No group is on two sides, and the sizes hold."""
    out = split(cli, data, "data.csv", "--group-by", "visit", "--test", "0.1")
    sides: dict[str, set[str]] = {}
    for _, _, group, side in rows_of(data / "data.split.csv")[1:]:
        sides.setdefault(group, set()).add(side)
    assert all(len(own) == 1 for own in sides.values())
    assert out.startswith("90 images: 63 train, 18 val, 9 test\n")


def test_groups_that_cannot_be(data: Path, cli: Run) -> None:
    """A column that is not there, one group for all, two for three sides, and no columns at all."""
    fails(cli("split", "data.csv", "--group-by", "visits", cwd=data), "'visits'", "'visit'?")
    lines = (data / "data.csv").read_text().splitlines()
    one = [f"{line},{'all' if at else 'site'}" for at, line in enumerate(lines)]
    (data / "one.csv").write_text("\n".join(one))
    fails(cli("split", "one.csv", "--group-by", "site", cwd=data), "too large for val")
    two = [f"{line},{at % 2 if at else 'site'}" for at, line in enumerate(lines)]
    (data / "two.csv").write_text("\n".join(two))
    fails(cli("split", "two.csv", "--group-by", "site", "--test", "0.1", cwd=data), "too large")
    (data / "folder/cat").mkdir(parents=True)
    for at in range(4):
        Image.new("L", (8, 8 + at)).save(data / f"folder/cat/{at}.png")
    fails(cli("split", "folder", "--group-by", "site", cwd=data), "--group-by site", "no columns")
    assert not list(data.glob("*.split.csv"))


# ---- any table --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "delimiter", "head"),
    [("a.csv", ",", "\ufeff"), ("b.tsv", "\t", ""), ("c.csv", ";", "")],
)
def test_every_cell_survives(
    tmp_path: Path, cli: Run, name: str, delimiter: str, head: str
) -> None:
    """Quotes, line ends, spaces, extra columns; a repeated image stays on one side."""
    rows = [["note, or\tnot", " tags ", "filename", "x;y;z;u;v;w"]]
    for at in range(12):
        rows.append([f'said "{at}",\nand\t; ', f"cat|dog {at % 2}", f" ./i mg,{at % 10}.png ", " "])
        Image.new("L", (8, 8)).save(tmp_path / f"i mg,{at}.png")
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(rows[:5])
    text.write("\r\n")
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(rows[5:])
    (tmp_path / name).write_text(head + text.getvalue(), newline="")
    split(cli, tmp_path, name)
    written = rows_of(tmp_path / f"{name[0]}.split.csv")
    assert [row[:-1] for row in written] == rows
    assert [row[-1] for row in written[1:3]] == [row[-1] for row in written[11:]]
    splits = read_splits(tmp_path / f"{name[0]}.split.csv", None, SourceOptions())
    assert (len(splits.train), len(splits.val)) == (8, 2)


def test_label_columns_and_unknowns(tmp_path: Path, cli: Run) -> None:
    """One column a label: blank and -1 come back as they stood."""
    table(tmp_path / "a.csv", 10)
    lines = [f"{at}.png,{at % 2},{['1', '', '-1', '0', '0.0'][at % 5]}" for at in range(10)]
    (tmp_path / "b.csv").write_text("\n".join(["image,cat,hot dog", *lines]))
    split(cli, tmp_path, "b.csv")
    assert [row[:-1] for row in rows_of(tmp_path / "b.split.csv")[1:]] == [
        x.split(",") for x in lines
    ]
    assert both(tmp_path / "b.split.csv") == both(tmp_path / "b.csv")


def test_names_in_another_unicode_form(tmp_path: Path, cli: Run) -> None:
    """A table in NFC over files in NFD, as macOS packs them."""
    names = [f"caf\u00e9{at}.png" for at in range(6)]
    for name in names:
        Image.new("L", (8, 8)).save(tmp_path / name.replace("\u00e9", "e\u0301"))
    (tmp_path / "a.csv").write_text("\n".join(["image,label", *(f"{name},cat" for name in names)]))
    split(cli, tmp_path, "a.csv")
    assert [row[0] for row in rows_of(tmp_path / "a.split.csv")[1:]] == names


def test_missing_pictures_do_not_block(data: Path, cli: Run) -> None:
    """They may be on another machine: counted, and given a side."""
    (data / "5.png").unlink()
    done = cli("split", "data.csv", cwd=data)
    assert done.returncode == 0
    assert "1 picture is not where the table says" in done.stderr
    assert len(rows_of(data / "data.split.csv")) == 91


# ---- other formats ----------------------------------------------------------------------


def coco(folder: Path) -> str:
    """Write instances with odd labels; the last image has none."""
    names = ["hot dog", "a;b", "c,d"]
    images = [{"id": at, "file_name": f"{at}.png"} for at in range(10)]
    own = [{"id": at, "image_id": at, "category_id": at % 3} for at in range(9)]
    categories = [{"id": at, "name": name} for at, name in enumerate(names)]
    content = {"images": images, "annotations": own, "categories": categories}
    (folder / "data.json").write_text(json.dumps(content))
    for at in range(10):
        Image.new("L", (8, 8 + at)).save(folder / f"{at}.png")
    return "data.json"


def piped(folder: Path) -> str:
    """Write the same with a label that holds the usual delimiter."""
    coco(folder)
    path = folder / "data.json"
    path.write_text(path.read_text().replace("c,d", "c|d"))
    return "data.json"


def voc(folder: Path) -> str:
    """Write annotations with difficult objects, which are unknown."""
    for name in ("Annotations", "JPEGImages"):
        (folder / "data" / name).mkdir(parents=True)
    for at in range(10):
        Image.new("L", (8, 8)).save(folder / f"data/JPEGImages/{at}.jpg")
        objects = "".join(
            f"<object><name>{name}</name><difficult>{int(at % 4 == 0)}</difficult></object>"
            for name in ("hot dog", "cat")[: at % 3]
        )
        xml = f"<annotation><filename>{at}.jpg</filename>{objects}</annotation>"
        (folder / f"data/Annotations/{at}.xml").write_text(xml)
    return "data"


def classes(folder: Path) -> str:
    """Make a folder for each class; one picture is in both."""
    for at in range(10):
        path = folder / "data" / ("hot dog", "cat")[at % 2] / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8 + at)).save(path)
    Image.new("L", (8, 8)).save(folder / "data/cat/0 again.png")
    return "data"


def sidecar(folder: Path) -> str:
    """Write a text file of tags beside each picture."""
    (folder / "data").mkdir()
    for at in range(10):
        Image.new("L", (8, 8 + at)).save(folder / f"data/{at}.png")
        (folder / f"data/{at}.txt").write_text("hot dog, cat" if at % 3 else "cat")
    return "data"


def lines(folder: Path) -> str:
    """Write metadata.jsonl."""
    sidecar(folder)
    rows = [{"file_name": f"{at}.png", "labels": ["cat", "hot dog"][: at % 3]} for at in range(10)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "data/metadata.jsonl").write_text(text)
    return "data"


def metadata(folder: Path) -> str:
    """Write metadata.csv."""
    sidecar(folder)
    rows = "".join(f"{at}.png,cat|hot dog\n" for at in range(10))
    (folder / "data/metadata.csv").write_text("file_name,labels\n" + rows)
    return "data"


@pytest.mark.parametrize("make", [coco, piped, voc, classes, sidecar, lines, metadata])
def test_other_formats_say_the_same(tmp_path: Path, cli: Run, make: Any) -> None:
    """The CSV holds the same targets, unknown ones too, beside the data, and trains as it is."""
    name = make(tmp_path)
    before = tree_digest(tmp_path)
    split(cli, tmp_path, name)
    (written,) = tmp_path.rglob("*.split.csv")
    inside = "data/" if (tmp_path / "data").is_dir() and written.parent == tmp_path else ""
    expected = {inside + image: said for image, said in both(tmp_path / name).items()}
    assert both(written) == expected
    assert len(expected) == 10
    splits = read_splits(written, None, SourceOptions())
    assert (len(splits.train), len(splits.val)) == (8, 2)
    written.unlink()
    assert tree_digest(tmp_path) == before


def test_an_output_elsewhere_says_where_the_pictures_are(tmp_path: Path, cli: Run) -> None:
    """The paths stay relative to the pictures, and the key that says so is named."""
    classes(tmp_path)
    (tmp_path / "out").mkdir()
    done = cli("split", "data", "-o", "out/a.csv", cwd=tmp_path)
    assert f"paths are relative to {tmp_path / 'data'}: set data.images" in done.stderr
    assert both(tmp_path / "out/a.csv", images=tmp_path / "data") == both(tmp_path / "data")


# ---- refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shares",
    [
        ("0", "0"),
        ("1", "0"),
        ("1.2", "0"),
        ("-0.1", "0"),
        ("0.5", "0.5"),
        ("0", "0.2"),
        ("nan", "0"),
    ],
)
def test_bad_shares(data: Path, cli: Run, shares: tuple[str, str]) -> None:
    """Nothing to train on, or nothing to validate on."""
    done = cli("split", "data.csv", f"--val={shares[0]}", f"--test={shares[1]}", cwd=data)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (data / "data.split.csv").exists()


def test_what_is_there_stays(data: Path, cli: Run) -> None:
    """An existing output, a table that has a split, an ending that would be read otherwise."""
    split(cli, data, "data.csv")
    before = tree_digest(data)
    fails(cli("split", "data.csv", cwd=data), "data.split.csv is there already", "--output")
    fails(cli("split", "data.csv", "-o", "data.csv", cwd=data), "is there already")
    fails(cli("split", "data.split.csv", cwd=data), "tells train from val already")
    fails(cli("split", "data.csv", "-o", "out.tsv", cwd=data), "ends in .csv")
    fails(cli("split", "data.csv", "-o", "none/out.csv", cwd=data), "none/out.csv")
    fails(cli("split", "none.csv", cwd=data), "none.csv")
    assert tree_digest(data) == before


def test_too_few_images(tmp_path: Path, cli: Run) -> None:
    """One image for two sides, two for three; two for two are enough."""
    table(tmp_path / "one.csv", 1)
    fails(cli("split", "one.csv", cwd=tmp_path), "too few for 2 sides")
    table(tmp_path / "two.csv", 2)
    fails(cli("split", "two.csv", "--test", "0.1", cwd=tmp_path), "too few for 3 sides")
    split(cli, tmp_path, "two.csv")


def test_bad_rows_are_refused_by_line(data: Path, cli: Run) -> None:
    """Each of them, and nothing is written."""
    with (data / "data.csv").open("a") as file:
        file.write("only\n,a,v\n")
    fails(cli("split", "data.csv", cwd=data), "2 bad rows", "line 92", "line 93: no image")
    assert not (data / "data.split.csv").exists()


def test_pictures_that_were_found_by_their_names(cli: Run, data: Path) -> None:
    """Uploads of Label Studio are written by the names of their files."""
    rows = rows_of(data / "data.csv")[1:]
    table = "".join(f"/data/upload/1/1a2b3c4d-{row[0]},{row[1]}\n" for row in rows)
    (data / "uploads.csv").write_text("image,labels\n" + table)
    split(cli, data, "uploads.csv", "--val", "0.3")
    written = rows_of(data / "uploads.split.csv")[1:]
    assert [row[0] for row in written] == [row[0] for row in rows]
