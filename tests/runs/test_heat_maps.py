"""heat_maps.json comes back as it was, and what is odd in it is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlfinetune.data.targets import LabelSpace
from mlfinetune.errors import CheckpointError
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.runs.heat_maps import HeatMaps, PictureMaps, read_heat_maps, write_heat_maps

SCORES = ScoreTable(
    ("a", "\udc80"), np.zeros((2, 2), np.float32), np.zeros((2, 2), np.int8), LabelSpace(("x", "y"))
)
PICTURE = PictureMaps(90, 60, (0.0, -0.25, 1.0, 1.25), {1: "AB+/"})
MAPS = HeatMaps({1: PICTURE})


@pytest.mark.parametrize("maps", [MAPS, HeatMaps(reason="no heat map: ResNets have one")])
def test_maps_come_back(tmp_path: Path, maps: HeatMaps) -> None:
    """Of these scores alone; without the file there are none."""
    assert read_heat_maps(tmp_path, SCORES) is None
    write_heat_maps(tmp_path, SCORES, maps)
    assert read_heat_maps(tmp_path, SCORES) == maps
    others = ScoreTable(("a", "b"), SCORES.logits, SCORES.targets, SCORES.labels)
    assert read_heat_maps(tmp_path, others) is None


@pytest.mark.parametrize(
    "odd",
    [
        {"x": {}},
        {"2": {}},
        {"1": {"box": [0, 0, 0, 1]}},
        {"1": {"box": [0, 0, 1, 1e999]}},
        {"1": {"width": 0}},
        {"1": {"levels": {"1": '"><b'}}},
        {"1": {"levels": {"1": "AAA"}}},
        {"1": {"levels": {"2": "A"}}},
        {"1": {"levels": {"1": 7}}},
        [],
    ],
)
def test_odd_files_are_refused(tmp_path: Path, odd: Any) -> None:
    """With the file's name, and what the page lacks without it."""
    write_heat_maps(tmp_path, SCORES, MAPS)
    path = tmp_path / "heat_maps.json"
    content = json.loads(path.read_text())
    if isinstance(odd, dict):
        odd = {row: content["pictures"]["1"] | changes for row, changes in odd.items()}
    path.write_text(json.dumps(content | {"pictures": odd}))
    with pytest.raises(CheckpointError, match=r"heat_maps.json is damaged .* no heat maps"):
        read_heat_maps(tmp_path, SCORES)
