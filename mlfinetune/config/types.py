"""Types of values of the config, and the base of its sections: strict, no unknown keys, frozen."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from mlfinetune.location import Location, Locations, parse_location

Fraction = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""

DataFormat = Literal[
    "auto",
    "csv",
    "folder",
    "sidecar",
    "xmp",
    "huggingface",
    "json",
    "coco",
    "voc",
    "parquet",
    "webdataset",
]
"""Format of a table or folder; `READERS` has a reader for each but `auto`."""


def _require_text(value: Any) -> Any:
    """Refuse an empty path, which would mean the current folder."""
    if value == "":
        raise ValueError("wanted path, got ''")
    return value


FilePath = Annotated[Path, Field(strict=False), BeforeValidator(_require_text)]
"""A path of this machine, from text; not strict, since YAML has no paths."""


def _parse_data_path(value: Any) -> Location:
    """Return the Path or the URL that the config gives."""
    if not isinstance(_require_text(value), str | Path):
        raise ValueError(f"wanted path or URL, got {'null' if value is None else repr(value)}")
    return parse_location(str(value))


DataPath = Annotated[
    Location, PlainValidator(_parse_data_path), WithJsonSchema({"type": "string", "format": "path"})
]
"""A path or a URL of data, from text."""


def _parse_data_paths(value: Any) -> Locations:
    """Return one Path or URL, or several of a list; a list of one is that one."""
    if not isinstance(value, list | tuple):
        return _parse_data_path(value)
    if not value:
        raise ValueError("wanted path or URL, or a list of them, got []")
    places = tuple(map(_parse_data_path, value))
    if repeated := [place for place, count in Counter(places).items() if count > 1]:
        raise ValueError(f"names {str(repeated[0])!r} twice")
    return places[0] if len(places) == 1 else places


def _write_data_paths(value: Locations) -> str | list[str]:
    return [str(place) for place in value] if isinstance(value, tuple) else str(value)


DataPaths = Annotated[
    Locations,
    PlainValidator(_parse_data_paths),
    PlainSerializer(_write_data_paths, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "path"},
                {"type": "array", "items": {"type": "string", "format": "path"}, "minItems": 1},
            ]
        }
    ),
]
"""One path or URL of data, or a list of them."""


class Section(BaseModel):
    """Base of the sections: strict types, no unknown keys, frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
