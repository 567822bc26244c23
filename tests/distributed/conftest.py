"""A folder of pictures, some with unknown targets, for runs of several processes."""

import csv
import json
import tarfile
from pathlib import Path

import demo_data
import pytest
from faults import children

CONFIG = """\
data: {train: tags.csv}
model: {backbone: resnet6_tiny, weights: null, image_size: 32}
train: {epochs: 2, batch_size: 8, precision: float32, workers: 0, optimizer: sgd, lr: 0.001,
        head_lr: 0.001}
"""


@pytest.fixture(scope="session", autouse=True)
def server(cache: None) -> None:
    """Start the process that children are forked from."""
    children.prepare_server()


@pytest.fixture
def ground(tmp_path: Path) -> Path:
    """Make the folder of pictures."""
    return draw(tmp_path)


def draw(folder: Path) -> Path:
    """Draw 31 pictures: 25 to train on in batches of 8, 8 and 9, 6 to validate on."""
    demo_data.write(folder, count=31, size=32)
    with (folder / "tags.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels = sorted({name for row in rows for name in row["labels"].split("|") if name})
    with (folder / "tags.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *labels])
        for at, row in enumerate(rows):
            has = row["labels"].split("|")
            cells = [str(int(name in has)) for name in labels]
            if at % 5 == 0:
                cells[at % len(labels)] = ""  # unknown
            if at % 11 == 0:
                cells = [""] * len(labels)
            writer.writerow([row["image"], *cells])
    (folder / "tiny.yaml").write_text(CONFIG)
    return folder


def pack(folder: Path) -> None:
    """Write the pictures into three tars, shards/, and a table of their labels, plain.csv."""
    with (folder / "tags.csv").open() as file:
        rows = list(csv.DictReader(file))
    (folder / "shards").mkdir()
    with (folder / "plain.csv").open("w") as table:
        writer = csv.writer(table)
        writer.writerow(["image", "labels"])
        for at in range(3):
            with tarfile.open(folder / "shards" / f"{at}.tar", "w") as shard:
                for row in rows[at * 11 : at * 11 + 11]:
                    image = row.pop("image")
                    tags = [name for name, state in row.items() if state == "1"]
                    writer.writerow([image, "|".join(tags)])
                    (folder / "labels.json").write_text(json.dumps(tags))
                    shard.add(folder / image, Path(image).name)
                    shard.add(folder / "labels.json", f"{Path(image).stem}.json")
