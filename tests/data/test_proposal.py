"""Keys that a reader guessed come into the config."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_paths import table

from mlfinetune.config import load_config
from mlfinetune.config.template import Setting, fill_template, format_value
from mlfinetune.data.proposal import list_choices


@pytest.mark.parametrize(
    ("key", "choice", "value"),
    [
        ("image_column", "Datei", "Datei"),
        ("image_column", "Datei: Name", "Datei: Name"),
        ("image_column", "1", "1"),
        ("label_column", ("label", "tags"), ["label", "tags"]),
        ("label_column", ("a, b",), ["a, b"]),
        ("image_column", "a: b", "a: b"),
        ("label_delimiter", ";", ";"),
        ("label_delimiter", "|", "|"),
        ("split_column", "true", "true"),
    ],
)
def test_choices_of_a_reader_are_written(
    tmp_path: Path, key: str, choice: str | tuple[str, ...], value: object
) -> None:
    """Names, lists and signs, whatever YAML makes of them without quotes."""
    read = replace(table(tmp_path, "a.jpg"), choices=((key, choice),))
    settings = [Setting("data.train", "a.csv"), *list_choices(read)]
    (tmp_path / "a.yaml").write_text(fill_template(["head"], settings))
    assert getattr(load_config(tmp_path / "a.yaml").data, key) == value


def test_a_delimiter_is_shown_in_a_comment(tmp_path: Path) -> None:
    """The usual guess: the user sees the key, and the config stays as short as it was."""
    (setting,) = list_choices(replace(table(tmp_path, "a.jpg"), delimiter=";"))
    assert '  # label_delimiter: ";"     # detected\n' in fill_template([], [setting])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a/b-1.csv", "a/b-1.csv"),
        ("../x.csv", "../x.csv"),
        ("no", '"no"'),
        ("1e3", '"1e3"'),
        (".5", '".5"'),
        ("a: b", '"a: b"'),
        (["a", "b, c"], '[a, "b, c"]'),
        ({"a b": 1.5, "c": None}, '{"a b": 1.5, c: null}'),
        (True, "true"),
    ],
)
def test_values_are_yaml(value: object, text: str) -> None:
    """Quoted where they would be something else."""
    assert format_value(value) == text
