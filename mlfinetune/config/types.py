"""Types of values of the config, and the base of its sections: strict, no unknown keys, frozen."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema

from mlfinetune.location import Location, parse_location

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


class Section(BaseModel):
    """Base of the sections: strict types, no unknown keys, frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
