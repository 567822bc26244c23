"""heat_maps.json: where the pictures of the page speak for their labels.

It is computed with the model, and read without it, so that `mlfinetune report` needs no checkpoint.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlfinetune.data.images.overlay import ALPHABET, Box
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.runs import directory
from mlfinetune.runs.damaged import explaining_damage
from mlfinetune.storage.atomic import write_atomic
from mlfinetune.text import to_finite

_MAX_CELLS = 64 * 64
_MAX_SIDE = 10**9


@dataclass(frozen=True)
class PictureMaps:
    """Maps of one picture.

    Attributes:
        width, height: of the upright picture, in pixels.
        box: place of the maps in the picture.
        levels: column of a label -> its map, as `overlay.encode_levels` writes it; the map is as
            wide as it is high.
    """

    width: int
    height: int
    box: Box
    levels: Mapping[int, str]


@dataclass(frozen=True)
class HeatMaps:
    """Maps of some pictures of a ScoreTable.

    Attributes:
        pictures: by row of the table.
        reason: why there are none; empty: there are some.
    """

    pictures: Mapping[int, PictureMaps] = field(default_factory=dict)
    reason: str = ""


def write_heat_maps(folder: Path, scores: ScoreTable, maps: HeatMaps) -> None:
    """Write heat_maps.json.

    Raises:
        CheckpointError: it cannot be written.
    """
    content = {
        "scores": _digest_scores(scores),
        "reason": maps.reason,
        "pictures": {str(row): asdict(picture) for row, picture in maps.pictures.items()},
    }
    write_atomic(folder / directory.HEAT_MAPS, json.dumps(content).encode() + b"\n")


def read_heat_maps(folder: Path, scores: ScoreTable) -> HeatMaps | None:
    """Read heat_maps.json; None: there is none, or it belongs to other scores.

    Raises:
        CheckpointError: it cannot be read, or `write_heat_maps` did not write it.
    """
    path = folder / directory.HEAT_MAPS
    try:
        with explaining_damage(path, "without it the page shows no heat maps"):
            content = json.loads(path.read_bytes())
            if content["scores"] != _digest_scores(scores):
                return None
            pictures = {
                _parse_index(row, len(scores.names)): _parse_picture(one, len(scores.labels))
                for row, one in content["pictures"].items()
            }
            return HeatMaps(pictures, str(content["reason"]))
    except FileNotFoundError:
        return None


def _parse_picture(content: Mapping[str, Any], labels: int) -> PictureMaps:
    """Read the maps of one picture; raises ValueError for what is never written."""
    width, height = (_parse_index(content[name], _MAX_SIDE) for name in ("width", "height"))
    left, top, right, bottom = map(to_finite, content["box"])
    if not (width and height and left < right and top < bottom):
        raise ValueError("a map lies nowhere")
    levels = {_parse_index(key, labels): text for key, text in content["levels"].items()}
    for text in levels.values():
        if not _is_map(text):
            raise ValueError("no map")
    return PictureMaps(width, height, (left, top, right, bottom), levels)


def _is_map(text: object) -> bool:
    """Return whether a text is a square of levels."""
    if not isinstance(text, str) or not 0 < len(text) <= _MAX_CELLS:
        return False
    return round(len(text) ** 0.5) ** 2 == len(text) and set(text) <= set(ALPHABET)


def _parse_index(value: object, end: int) -> int:
    number = int(str(value))
    if not 0 <= number < end:
        raise ValueError(f"{number} is not below {end}")
    return number


def _digest_scores(scores: ScoreTable) -> str:
    """Return the SHA-256 of logits, names and labels: maps of other scores are never shown."""
    digest = hashlib.sha256(scores.logits.tobytes())
    for text in (*scores.names, *scores.labels.names):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
