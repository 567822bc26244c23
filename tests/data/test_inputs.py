"""Inputs of predict become paths: folders, tars, globs, stdin, and what is not there."""

import tarfile
from pathlib import Path

import pytest

from mlfinetune.data.inputs import expand_inputs, require_inputs
from mlfinetune.errors import DataError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make pets/ with two pictures, a text and a tar, as the only entry of the current folder."""
    pets = tmp_path / "pets"
    pets.mkdir()
    for name in ("b.jpg", "a.png", "notes.txt", ".hidden.jpg"):
        (pets / name).write_bytes(b"")
    with tarfile.open(pets / "c.tar", "w") as tar:
        for name in ("notes.txt", ".hidden.jpg", "b.jpg"):
            tar.add(pets / name, name)
    monkeypatch.chdir(tmp_path)
    return pets


@pytest.mark.parametrize(
    ("given", "paths"),
    [
        ("pets/notes.txt", ["pets/notes.txt"]),
        ("pets/c.tar", ["pets/c.tar/b.jpg"]),
        ("pets/*.jpg", ["pets/b.jpg"]),
        ("p*", []),
        ("-", ["x.jpg", "y.jpg"]),
        ("https://example.org/a.jpg", ["https://example.org/a.jpg"]),
    ],
)
def test_each_kind_of_input(folder: Path, given: str, paths: list[str]) -> None:
    """A named file is taken whatever its ending; a glob gives no folders."""
    assert list(expand_inputs([given], ["x.jpg\n", "\n", "y.jpg\r\n"])) == paths


def test_a_folder_gives_pictures_and_tars_in_order(folder: Path) -> None:
    """By the endings of names; in a tar the hidden files are left out."""
    found = [Path(path).relative_to("pets") for path in expand_inputs(["pets"], [])]
    shown = [str(path) for path in found if not path.name.startswith(".")]
    assert shown == ["a.png", "b.jpg", "c.tar/b.jpg"]


def test_pictures_that_cannot_be_decoded_are_pictures(folder: Path) -> None:
    """In folders, tars and below links: each gets its row, and none is passed over."""
    names = ("d.CR2", "e.heic", "f.avif", "g.psd")
    for name in names:
        (folder / name).touch()
    with tarfile.open(folder / "z.tar", "w") as tar:
        for name in names:
            tar.add(folder / name, name)
    (folder.parent / "photos").mkdir()
    (folder.parent / "photos" / "link").symlink_to(folder)
    (folder.parent / "photos" / "lost").symlink_to(folder / "gone")
    found = list(expand_inputs(["photos"], []))
    assert [path.removeprefix("photos/link/") for path in found] == [
        *("a.png", "b.jpg", "c.tar/b.jpg", *names),
        *(f"z.tar/{name}" for name in names),
        "photos/lost",
    ]


def test_all_missing_inputs_are_named(folder: Path) -> None:
    """In one message; URLs and stdin are not looked up."""
    require_inputs(["pets", "pets/*.jpg", "-", "https://example.org/a.jpg"])
    with pytest.raises(DataError, match=r"matches: none\.jpg, none/$"):
        require_inputs(["pets", "none.jpg", "none/"])
