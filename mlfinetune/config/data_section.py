"""The section `data` of the config: location and format of the pictures and their labels.

The descriptions are the text of schema.json, which editors show.
"""

from collections import Counter
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from mlfinetune.config.hierarchy import find_cycle, list_parents
from mlfinetune.config.types import DataFormat, DataPath, DataPaths, Section


class DataConfig(Section):
    """Location and format of the pictures and their labels."""

    train: DataPaths = Field(
        description="table, JSON, Parquet, tars or folder of labelled pictures; or a table's URL; "
        "or a list of these, where a label that one does not have is unknown for its pictures"
    )
    val: DataPaths | None = Field(None, description="the same for validation")
    format: DataFormat = Field(
        "auto", description="what `train` and `val` are; auto: detected, and printed"
    )
    val_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of train held out, stratified by label; 0.2 where neither "
        "`val` nor a split column says which images are validation",
    )
    group_by: str | None = Field(
        None, description="column whose rows of one value are held out together, or not at all"
    )
    images: DataPath | None = Field(
        None, description="root of the table's paths, or its URL; default: the table's folder"
    )
    image_column: str | None = Field(None, description="default: found by its name or by its cells")
    label_column: str | list[str] | None = Field(
        None, description="column with the delimited labels, or a list of such columns"
    )
    label_columns: list[str] | None = Field(
        None, description="one 0/1 column for each label; these are the labels, and no others"
    )
    label_delimiter: str | None = Field(None, min_length=1, description="default: detected")
    split_column: str | None = Field(
        None,
        description="column of train, val and test; none: there is none; default: found by words",
    )
    value_column: str | None = Field(
        None,
        description="column that says of the one label of each row whether it is there: 1, 0 or a "
        "fraction; none: there is no such column; default: found",
    )
    folder_labels: Literal["leaf", "path"] = Field(
        "leaf", description="a/b/c.jpg has the label b (leaf), or a and b (path)"
    )
    difficult: Literal["ignore", "positive", "negative"] = Field(
        "ignore", description="VOC: labels whose objects are all marked difficult"
    )
    labels: list[str] | None = Field(
        None, min_length=1, description="labels in column order; default: those of train, sorted"
    )
    rename_labels: dict[str, str] = Field(
        {}, description="old name: new name; labels that get one name are joined"
    )
    ignore_labels: list[str] = Field([], description="labels to leave out, by their new names")
    implies: dict[str, str | list[str]] = Field(
        {},
        description="child: parent, or child: [parents]: a picture with the child has the parents "
        "too, by their new names",
    )
    min_positives: int = Field(
        0, ge=0, description="labels with fewer positive images in `train` are left out"
    )
    empty_labels: Literal["negative", "unknown", "error"] = Field(
        "negative",
        description="targets of an image without a label: negative, unknown, or an error",
    )
    unknown: Literal["ignore", "positive", "negative"] = Field(
        "ignore",
        description="unknown targets are masked (ignore), or count as positive or negative",
    )
    bad_images: Literal["error", "skip"] = Field(
        "error",
        description="missing and unreadable pictures stop the run (error), or are left out (skip)",
    )
    find_by_name: bool = Field(
        False,
        description="find pictures anywhere below the root by their file names, whatever folders "
        "the table writes before them",
    )
    allow_outside_root: bool = Field(
        False, description="allow paths that lead outside the image root"
    )
    allow_torn_groups: bool = Field(
        False, description="allow that the data puts rows of one `group_by` in several splits"
    )
    max_pixels: int = Field(
        89_000_000,
        gt=0,
        le=2**40,
        description="larger pictures are refused before they are decoded",
    )

    cache_images: Literal["auto", "off", "ram", "disk"] = Field(
        "auto",
        description="training reads small copies of large pictures, made once: kept on disk for "
        "other runs, or in ram for this one; auto: on disk where it saves time, and printed",
    )

    @model_validator(mode="after")
    def _check_conflicts(self) -> Self:
        if self.val is not None and self.val_fraction is not None:
            raise ValueError("give val or val_fraction, not both")
        if self.label_columns is not None and (self.label_column or self.label_delimiter):
            raise ValueError("give label_columns, or label_column with label_delimiter, not both")
        if self.labels is not None and self.min_positives:
            raise ValueError("give labels or min_positives, not both")
        return self

    @field_validator("rename_labels")
    @classmethod
    def _check_new_names(cls, value: dict[str, str]) -> dict[str, str]:
        if blank := [old for old, new in value.items() if not new.strip() or new != new.strip()]:
            raise ValueError(f"{blank[0]!r}: wanted a new name without space around it")
        return value

    @field_validator("implies")
    @classmethod
    def _check_implies(cls, value: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
        names = [*value, *(name for parents in list_parents(value).values() for name in parents)]
        if blank := [name for name in names if not name.strip() or name != name.strip()]:
            raise ValueError(f"{blank[0]!r}: wanted a label without space around it")
        if cycle := find_cycle(value):
            raise ValueError(f"labels imply each other in a circle: {' -> '.join(cycle)}")
        return value

    @field_validator("label_delimiter")
    @classmethod
    def _read_escapes(cls, value: str | None) -> str | None:
        return {"\\t": "\t", "\\n": "\n"}.get(value, value) if value else value

    @field_validator("label_column")
    @classmethod
    def _check_column_names(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value == []:
            raise ValueError("wanted the name of a column, or several, got []")
        return value

    @field_validator("labels", "label_column", "label_columns", "ignore_labels")
    @classmethod
    def _check_distinct(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, str):
            return value
        repeated = [name for name, count in Counter(value).items() if count > 1]
        if repeated:
            raise ValueError(f"names {repeated[0]!r} twice")
        return value
