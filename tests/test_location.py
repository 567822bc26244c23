"""A path or a URL: told apart for every system, and names that each of them can have."""

from pathlib import Path

import pytest

from mlfinetune.config import load_config
from mlfinetune.location import is_portable_name, is_url, parse_location


@pytest.mark.parametrize(
    "name",
    [
        r"C:\data\tags.csv",
        "C:/data/tags.csv",
        "c://data/tags.csv",
        "c:tags.csv",
        r"\\server\share\tags.csv",
        "//server/share/tags.csv",
        r"\\?\C:\tags.csv",
        "tags.csv",
        "a:b/c.csv",
        "file:///data/tags.csv",
    ],
)
def test_paths_of_any_system_are_no_urls(name: str) -> None:
    """A protocol has two letters or more."""
    assert not is_url(name)
    assert isinstance(parse_location(name), Path)


@pytest.mark.parametrize(
    "name", ["https://a.org/x.csv", "S3://b/x.csv", "gs://b/x", "file://host/x"]
)
def test_urls_are_urls(name: str) -> None:
    assert is_url(name)
    assert parse_location(name) == name


@pytest.mark.parametrize(
    "url",
    ["file:///data/my%20cat.csv", "file://localhost/data/my%20cat.csv", "FILE:/data/my cat.csv"],
)
def test_the_url_of_a_file_is_its_path(url: str) -> None:
    """As a file manager copies it."""
    assert parse_location(url) == Path("/data/my cat.csv")


def test_a_config_may_name_its_table_so(tmp_path: Path) -> None:
    """The URL is absolute, wherever the config lies."""
    (tmp_path / "a.yaml").write_text("data:\n  train: file:///data/my%20cat.csv\n")
    assert load_config(tmp_path / "a.yaml").data.train == Path("/data/my cat.csv")


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "a.", "a ", "a:b", "a?", "a*", 'a"', "a<b", "a|b", "a\\b", "a/b", "a\n"),
        *("con", "CON.jpg", "nul", "com1.txt", "LPT9", "aux .x", "prn"),
    ],
)
def test_names_that_a_system_refuses(name: str) -> None:
    assert not is_portable_name(name)


@pytest.mark.parametrize(
    "name", ["a.jpg", "console.jpg", "com10", "my cat.jpg", ".a", "\u732b.jpg"]
)
def test_names_that_all_systems_take(name: str) -> None:
    assert is_portable_name(name)
