"""`mlfinetune check` on a data set with every fault at once, and on what is left of it without."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, prepare, run_process
from PIL import Image
from test_train import tree_digest

DIRTY = """\
images/cut.jpg,red,train
images/gone.jpg,red,train
images/text.png,blue,val
images/ragged.png,red
images/0009.png,red,vall
images/copy.jpg,red|solid,val
images/large.png,Dog|red,train
images/half.png,dog|red,val
images/moving.gif,red|dots,train
images/deep.png,Dog|dots,train
images/tiny.png,dog|dots,train
images/blank.png,,train
"""
FAULTS = {
    "bad_rows": ("error", ["line 29: 2 cells", "line 30: split is 'vall'"]),
    "unreadable": ("error", ["line 26: 'images/cut.jpg'", "line 27: 'images/gone", "line 28: 'im"]),
    "copies_across_splits": (
        "error",
        ["train: 'images/0004.jpg' (line 6) = val: 'images/copy.jpg' (line 31)"],
    ),
    "label_spellings": ("error", ["'Dog' (2) / 'dog' (2)"]),
    "no_positive_in_val": ("warning", ["'Dog'"]),
    "unlabelled": ("warning", ["train: 'images/blank.png' (line 37)"]),
    "look_alikes_across_splits": (
        "warning",
        ["train: 'images/large.png' (line 32) = val: 'images/half"],
    ),
    "frames_dropped": ("warning", ["train: 'images/moving.gif'"]),
    "small": ("warning", ["train: 'images/tiny.png' (line 36): 20 x 20"]),
}
PLAIN = [
    [f"images/{at:04}.{'png' if at % 2 else 'jpg'}", ("red", "blue")[at % 2]] for at in range(6)
]
"""Rows of six pictures that are there."""
CLEAN = "data: {train: clean.csv, rename_labels: {Dog: dog}}\n"


def noise(side: int, levels: int = 256, kind: type = np.uint8) -> Image.Image:
    """Return a picture like no other."""
    shape = (side, side) if kind is np.uint16 else (side, side, 3)
    return Image.fromarray(np.random.default_rng(side).integers(0, levels, shape, dtype=kind))


def cells(text: str) -> list[list[str]]:
    """Return the rows of a table."""
    return list(csv.reader(text.splitlines()))


def write(path: Path, rows: list[list[str]]) -> None:
    """Write a table."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def make(folder: Path) -> Path:
    """Write dirty.yaml and dirty.csv (24 good rows, then DIRTY), and a good clean.yaml."""
    prepare(folder)
    images = folder / "images"
    header, *sound = cells((folder / "tags.csv").read_text())
    sound = [[*row, "val" if at % 4 == 3 else "train"] for at, row in enumerate(sound)]
    sound[3][1] = "blue|green|red|yellow|solid|stripes|dots|checks"
    (images / "cut.jpg").write_bytes((images / "0000.jpg").read_bytes()[:600])
    (images / "text.png").write_text("no picture")
    shutil.copy(images / "0004.jpg", images / "copy.jpg")
    smooth = noise(9).resize((96, 96), Image.Resampling.BICUBIC)
    smooth.save(images / "large.png")
    smooth.resize((48, 48)).save(images / "half.png")
    noise(33).save(images / "moving.gif", save_all=True, append_images=[noise(33, 99)])
    noise(34, 65536, np.uint16).save(images / "deep.png")
    noise(20).save(images / "tiny.png")
    noise(35).save(images / "blank.png")
    write(folder / "dirty.csv", [[*header, "split"], *sound, *cells(DIRTY)])
    bad = ("cut", "gone", "text", "ragged", "copy")
    rest = [row for row in cells(DIRTY) if Path(row[0]).stem not in bad and row[-1] != "vall"]
    write(folder / "clean.csv", [[*header, "split"], *sound, *rest])
    (folder / "dirty.yaml").write_text("data: {train: dirty.csv}\n")
    (folder / "clean.yaml").write_text(CLEAN)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the data; tests that change it make their own."""
    return make(tmp_path_factory.mktemp("dirty"))


@pytest.fixture(scope="module")
def text(folder: Path) -> Iterator[subprocess.CompletedProcess[str]]:
    """Return the report on dirty.yaml; the data is what it was."""
    before, stamps = tree_digest(folder), times(folder)
    yield run_process("check", "dirty.yaml", cwd=folder)
    assert (tree_digest(folder), times(folder)) == (before, stamps)


@pytest.fixture(scope="module")
def found(folder: Path) -> Any:
    """Return the report on dirty.yaml as JSON."""
    done = run_process("check", "dirty.yaml", "--json", cwd=folder)
    assert (done.returncode, done.stderr) == (2, "")
    return json.loads(done.stdout)


def times(folder: Path) -> list[int]:
    """Return the modification time of each file and folder."""
    return [path.stat().st_mtime_ns for path in sorted([folder, *folder.rglob("*")])]


def items(found: Any, kind: str) -> list[str]:
    """Return the items of the one finding of this kind."""
    (finding,) = [f for f in found["findings"] if f["kind"] == kind]
    return list(finding["items"])


def test_the_kinds_of_findings(found: Any) -> None:
    """Each kind once, errors first."""
    assert not found["clean"]
    assert {f["kind"]: f["severity"] for f in found["findings"]} == {
        kind: severity for kind, (severity, _) in FAULTS.items()
    }
    severities = [f["severity"] for f in found["findings"]]
    assert severities == sorted(severities)


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_named_once(found: Any, text: Any, kind: str) -> None:
    """In JSON and in text, with its line where it has one, by rising line."""
    starts, listed = FAULTS[kind][1], items(found, kind)
    assert len(listed) == len(starts)
    assert all(item.startswith(start) for item, start in zip(listed, starts, strict=True))
    assert all(text.stdout.count(f"  {item}\n") == 1 for item in listed)


def test_the_text(text: subprocess.CompletedProcess[str]) -> None:
    """Exit code 2, the report alone on standard output, a verdict at its end."""
    assert text.returncode == 2
    assert text.stdout.splitlines()[-1] == "not clean: 4 kinds of errors, 5 kinds of warnings"
    assert text.stdout.count("\nerror: ") == 4
    assert text.stdout.count("\nwarning: ") == 5
    assert "images found" not in text.stderr
    assert "scan" not in text.stdout


def test_the_counts_add_up(found: Any, text: subprocess.CompletedProcess[str]) -> None:
    """Found = used + skipped; used are in train and val, and each is looked at."""
    (ledger,) = [note for note in found["notes"] if "found" in note]
    # 24 + 12 rows, less the ragged one, less one that names an image for the second time
    assert ledger.startswith("train: 34 images found = 30 used + 4 skipped (")
    assert sum(side["images"] for side in found["sides"].values()) == 30
    assert found["pictures"]["count"] == 30
    assert sum(found["pictures"]["formats"].values()) == sum(found["pictures"]["modes"].values())
    assert found["pictures"]["modes"]["I;16"] == 1
    assert ledger in text.stdout
    assert "30 readable pictures" in text.stdout


def test_the_counts_of_labels(found: Any, folder: Path, text: Any) -> None:
    """Positives a side, unlabelled images and pairs are those of the table."""
    rows = [r for r in cells((folder / "clean.csv").read_text())[1:] if r[0] != "images/0009.png"]
    rows.append(["images/copy.jpg", "red|solid", "val"])
    for label, counts in found["labels"].items():
        for side in ("train", "val"):
            own = [row[1].split("|") for row in rows if row[2] == side]
            assert counts[side]["positives"] == sum(label in labels for labels in own)
    assert [found["sides"][side]["without_label"] for side in ("train", "val")] == [1, 0]
    red = found["labels"]["red"]
    line = next(line for line in text.stdout.splitlines() if line.startswith("  red "))
    assert line.split()[1:] == [str(red[side]["positives"]) for side in ("train", "val")]
    pair = found["together"][0]
    both = [
        row for row in rows if row[2] == "train" and set(pair["labels"]) <= {*row[1].split("|")}
    ]
    assert pair["images"] == len(both)


def test_warnings_alone_are_clean(folder: Path, cli: Run) -> None:
    """The same data without the errors: exit code 0."""
    done = cli("check", "clean.yaml", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].endswith("of warnings")
    assert "30 images found, all used" in done.stdout
    assert json.loads(cli("check", "clean.yaml", "--json", cwd=folder).stdout)["clean"]


def test_nothing_to_say(tmp_path: Path, cli: Run) -> None:
    """`clean`, where there is no warning either."""
    lines = ["image,labels,split"]
    for at in range(8):
        noise(40 + at).save(tmp_path / f"{at}.png")
        lines.append(f"{at}.png,{'cat' if at % 2 else 'dog'},{'val' if at > 5 else 'train'}")
    (tmp_path / "a.csv").write_text("\n".join(lines))
    (tmp_path / "a.yaml").write_text("data: {train: a.csv}")
    done = cli("check", "a.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "clean")


def test_overrides_and_skipped_pictures(folder: Path, cli: Run) -> None:
    """What bad_images: skip leaves out is no error any more, and is named all the same."""
    done = cli("check", "dirty.yaml", "data.bad_images=skip", "--json", cwd=folder)
    found = json.loads(done.stdout)
    severity = {f["kind"]: f["severity"] for f in found["findings"]}
    assert severity["unreadable"] == "warning"
    assert severity["bad_rows"] == "error"
    assert len(items(found, "unreadable")) == 3
    done = cli("check", "dirty.yaml", f"data={{train: {folder}/clean.csv}}", cwd=folder)
    assert "spellings" in done.stdout
    assert "bad row" not in done.stdout


def test_empty_rows_as_errors(folder: Path, cli: Run) -> None:
    """With empty_labels: error they are bad rows."""
    done = cli("check", "clean.yaml", "data.empty_labels=error", "--json", cwd=folder)
    assert done.returncode == 2
    assert items(json.loads(done.stdout), "bad_rows") == [
        "line 31: no label (data.empty_labels is error)"
    ]


def test_a_label_of_val_alone(folder: Path, tmp_path: Path, cli: Run) -> None:
    """It stops a run, so it is an error, with the line and the nearest label."""
    table = (folder / "clean.csv").read_text().replace("dog|red,val", "dug,val")
    (tmp_path / "a.csv").write_text(table)
    (tmp_path / "images").symlink_to(folder / "images")
    (tmp_path / "a.yaml").write_text(CLEAN)
    settings = ["data.train=a.csv", f"data.images={folder}"]
    done = cli("check", "a.yaml", *settings, "--json", cwd=tmp_path)
    assert done.returncode == 2
    (item,) = items(json.loads(done.stdout), "unusable")
    assert item.startswith("'dug': ")
    assert "first at line 27" in item
    assert "did you mean 'dog'?" in item


def test_a_second_check_decodes_nothing(tmp_path: Path, cli: Run) -> None:
    """Garbage of the same size and time is not looked at; a new time is."""
    folder = make(tmp_path)
    first = cli("check", "clean.yaml", cwd=folder).stdout
    path = folder / "images/0001.png"
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cli("check", "clean.yaml", cwd=folder).stdout == first
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert "line 3: 'images/0001.png'" in cli("check", "clean.yaml", cwd=folder).stdout


def test_two_tables(tmp_path: Path, cli: Run) -> None:
    """Each is looked at; an image that stands in both is named once, a bad one by its table."""
    for at in range(6):
        noise(40 + at).save(tmp_path / f"{at}.png")
    for name, own in (("a", "0123"), ("b", "345x")):
        rows = [f"{x}.png,{('dog', 'cat')[ord(x) % 2]}" for x in own]
        (tmp_path / f"{name}.csv").write_text("\n".join(["image,label", *rows]))
    (tmp_path / "a.yaml").write_text("data: {train: a.csv, val: b.csv}")
    found = json.loads(cli("check", "a.yaml", "--json", cwd=tmp_path).stdout)
    assert items(found, "copies_across_splits") == [
        "train: '3.png' (line 5) = val: '3.png' (line 2)"
    ]
    assert items(found, "unreadable") == ["line 5: 'x.png': no such file"]
    assert [found["sides"][side]["images"] for side in ("train", "val")] == [4, 3]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("image,labels\nnone.png,red\n", "no such file"),
        ("what,labels\na,red\n", "data.image_column"),
        ("image,labels\n", "the table has no rows"),
    ],
)
def test_tables_of_no_use(tmp_path: Path, cli: Run, content: str, words: str) -> None:
    """Exit code 2 and a reason, never a traceback."""
    (tmp_path / "a.csv").write_text(content)
    (tmp_path / "a.yaml").write_text("data: {train: a.csv}")
    done = cli("check", "a.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_no_torch(folder: Path) -> None:
    """Check, init and split start in a moment: they load no torch."""
    code = (
        "import sys; from mlfinetune.cli import app\n"
        "for words in ('check clean.yaml', 'init clean.csv -o {0}', 'split tags.csv -o {0}.csv'):\n"
        "    app(words.format(sys.argv[1]).split(), standalone_mode=False)\n"
        "assert not {'torch', 'torchvision', 'sklearn'} & set(sys.modules)"
    )
    output = folder.parent / "no-torch.yaml"
    done = subprocess.run(
        [sys.executable, "-c", code, output], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_torn_groups(folder: Path, tmp_path: Path, cli: Run) -> None:
    """An error that lists them, the test's too; all else is checked all the same."""
    rows = [[str(row[0]), row[1], "train", f"p{at}"] for at, row in enumerate(PLAIN)]
    rows[4][2:], rows[5][2:] = ["val", "p9"], ["test", "p1"]
    write(tmp_path / "a.csv", [["image", "labels", "split", "patient"], *rows])
    (tmp_path / "a.yaml").write_text("data: {train: a.csv, group_by: patient}")
    settings = ("check", "a.yaml", f"data.images={folder}")
    done = cli(*settings, cwd=tmp_path)
    assert done.returncode == 2
    assert "error: " in done.stdout
    assert "1 group of 'patient' in several splits (train and test: 1)" in done.stdout
    assert "  'p1': train, test\n" in done.stdout
    assert done.stdout.count("groups of 'patient'") + done.stdout.count("group of 'patient'") == 1
    assert "train: 6 images found = 5 used + 1 kept for test" in done.stdout
    done = cli(*settings, "data.allow_torn_groups=true", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert items(found, "torn_groups") == ["'p1': train, test"]
    assert {f["kind"]: f["severity"] for f in found["findings"]}["torn_groups"] == "warning"
    done = cli("train", "a.yaml", f"data.images={folder}", "--dry-run", cwd=tmp_path)
    assert (done.returncode, "data.allow_torn_groups: true" in done.stderr) == (2, True)


def test_many_rows_without_a_label(folder: Path, tmp_path: Path, cli: Run) -> None:
    """Perhaps nobody looked at them: the line to paste is there, and taken."""
    rows = [[row[0], row[1] if at < 4 else ""] for at, row in enumerate(PLAIN)]
    write(tmp_path / "a.csv", [["image", "labels"], *rows])
    (tmp_path / "a.yaml").write_text("data: {train: a.csv, val_fraction: 0.5}")
    settings = ("check", "a.yaml", f"data.images={folder}")
    text = cli(*settings, cwd=tmp_path).stdout
    assert "2 images without a label: all labels absent; if nobody looked at them: " in text
    assert "  to mend it: data.empty_labels: unknown\n" in text
    assert "to mend it" not in cli(*settings, "data.empty_labels=unknown", cwd=tmp_path).stdout


def test_doubtful_labels_have_lines_to_paste(folder: Path, tmp_path: Path, cli: Run) -> None:
    """Two spellings and a word for no label; with both lines neither is left."""
    cells = ["1", "1", "1.0", "Unlabeled", "red\u200b", "red|1"]
    write(
        tmp_path / "a.csv",
        [["image", "labels"], *([row[0], cell] for row, cell in zip(PLAIN, cells, strict=True))],
    )
    (tmp_path / "a.yaml").write_text("data: {train: a.csv, label_delimiter: '|'}")
    settings = ("check", "a.yaml", f"data.images={folder}")
    text = cli(*settings, cwd=tmp_path).stdout
    assert r"  'red\u200b' (1) / 'red' (1)" in text
    lines = [line.split(": ", 1)[1] for line in text.splitlines() if "to mend it: " in line]
    assert lines == [
        r'data.rename_labels: {"1.0": "1", "red\U0000200b": "red"}',
        'data.ignore_labels: ["Unlabeled"]',
    ]
    pasted = (line.replace(": ", "=", 1) for line in lines)
    assert "to mend it" not in cli(*settings, *pasted, cwd=tmp_path).stdout
