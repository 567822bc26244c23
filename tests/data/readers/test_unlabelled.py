"""Class folders with a table that holds no labels."""

from pathlib import Path

import pytest
from test_several import Files, plant

from mlfinetune.data.readers.detect import read_source
from mlfinetune.data.table import SourceOptions
from mlfinetune.errors import DataError

NAMES = [f"{label}/{label}{i}.jpg" for label in ("cat", "dog") for i in range(5)]
PICTURES: Files = {name: name for name in NAMES}


def write(header: str, cells: str, ending: str = "") -> str:
    """Return a table with the same cells in each row."""
    return "\n".join([header, *(f"{name},{cells}" for name in NAMES)]) + ending


LINES = "".join(f'{{"file_name": "{name}", "width": 10}}\n' for name in NAMES)
WITHOUT: dict[str, Files] = {
    "sizes": {"info.csv": write("filename,width,height", "640,480")},
    "sizes as text": {"info.csv": write("file,width,file_size,area", "640,1024,2.5")},
    "json lines": {"metadata.jsonl": LINES},
    "metadata.csv": {"metadata.csv": write("file_name,width", "640")},
}


@pytest.mark.parametrize("kind", WITHOUT)
def test_class_folders_with_a_table_of_sizes(tmp_path: Path, kind: str) -> None:
    """The folders have the labels, and a note says that the table is not read."""
    table = read_source(plant(tmp_path, {**PICTURES, **WITHOUT[kind]}), SourceOptions())
    assert (table.format, table.labels.names) == ("folder", ("cat", "dog"))
    assert table.notes[0] == "read as class folders"
    assert table.notes[-1] == f"{next(iter(WITHOUT[kind]))} holds no labels: not read"


@pytest.mark.parametrize("name", ["info.csv", "metadata.csv"])
@pytest.mark.parametrize("header", ["image,split", "image,is_valid", "image,width,part"])
def test_splits_without_labels_are_not_dropped(tmp_path: Path, name: str, header: str) -> None:
    """Its test rows would be trained on."""
    cells = {"image,split": "train test", "image,is_valid": "0 1"}.get(header, "1,train 1,val")
    rows = [f"{path},{cells.split()[at % 2]}" for at, path in enumerate(NAMES)]
    table = "\n".join([header, *rows])
    with pytest.raises(DataError, match="it holds splits and no labels") as caught:
        read_source(plant(tmp_path, {**PICTURES, name: table}), SourceOptions())
    assert "data.format: folder" in str(caught.value)


@pytest.mark.parametrize("header", ["image,camera,place", "image,md5,tagz"])
def test_other_columns_may_be_labels(tmp_path: Path, header: str) -> None:
    """A column of another name may hold them: the error stands, with the line to paste."""
    table = "\n".join([header, *(f"{name},a{at},{at}" for at, name in enumerate(NAMES))])
    with pytest.raises(DataError, match=r"data\.format: folder"):
        read_source(plant(tmp_path, {**PICTURES, "info.csv": table}), SourceOptions())
    given = SourceOptions(format="folder")
    assert read_source(tmp_path, given).notes[0] == "read as class folders (data.format)"


def test_folders_of_images_and_masks_are_no_classes(tmp_path: Path) -> None:
    """The table lacks labels, and so do the folders."""
    files: Files = {f"{kind}/{i}.jpg": f"{kind}{i}" for kind in ("images", "masks") for i in "abc"}
    table = "image,width\n" + "".join(f"images/{i}.jpg,640\n" for i in "abc")
    with pytest.raises(DataError):
        read_source(plant(tmp_path, {**files, "metadata.csv": table}), SourceOptions())
