"""Names of picture files, and the walk below a folder."""

from pathlib import Path

import pytest

from mlfinetune.data.images.names import (
    DECODED,
    UNDECODED,
    guess_ending,
    is_decoded_name,
    is_image_name,
    walk_files,
)

NAMES = {
    "a.JPG": (True, True),
    "a.webp": (True, True),
    "a.avif": (True, True),
    "IMG_1.HEIC": (True, True),
    "a.hif": (True, True),
    "IMG_1.CR2": (True, False),
    "a.Dng": (True, False),
    "a.jxl": (True, False),
    "a.svg": (True, False),
    "jpg": (False, False),
    "a.mov": (False, False),
    "a.txt": (False, False),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_pictures(name: str) -> None:
    """Endings count in any case; a picture that is not decoded is a picture all the same."""
    assert (is_image_name(Path(name)), is_decoded_name(Path(name))) == NAMES[name]


def test_every_ending_has_one_meaning() -> None:
    """It is decoded, or it has a reason."""
    endings = [*DECODED, *UNDECODED]
    assert len(set(endings)) == len(endings)
    assert all(ending == ending.lower() and ending.startswith(".") for ending in endings)


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    """A loop may lead through the folder itself, one above it, or another link."""
    (tmp_path / "root" / "cat").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for name in ("root/cat/a.jpg", "other/b.jpg"):
        (tmp_path / name).touch()
    root = tmp_path / "root"
    links = {"root/dog": "other", "other/back": "root", "root/up": ".", "root/cat/self": "root/cat"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    (root / "loop").symlink_to(root / "loop")
    found = [str(path.relative_to(root)) for path in walk_files(root)]
    assert found == ["cat/a.jpg", "dog/b.jpg", "loop", "up/other/b.jpg"]


def test_folders_that_are_linked_again_and_again_do_not_double(tmp_path: Path) -> None:
    """Twelve folders, each with two links to the next: 4095 paths lead to one picture."""
    for number in range(12):
        (tmp_path / f"{number:02}").mkdir()
        for link in "ab":
            (tmp_path / f"{number:02}" / link).symlink_to(tmp_path / f"{number + 1:02}")
    (tmp_path / "12").mkdir()
    (tmp_path / "12" / "a.jpg").touch()
    found = [path for path in walk_files(tmp_path) if path.name == "a.jpg"]
    assert tmp_path / "12" / "a.jpg" in found
    assert len(found) < 100


def test_each_link_of_a_real_folder_is_followed(tmp_path: Path) -> None:
    """Two names of one class folder, at any depth, with a link in it; its own name comes too."""
    (tmp_path / "pets" / "dog").mkdir(parents=True)
    (tmp_path / "more").mkdir()
    for name in ("pets/dog/a.jpg", "more/b.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "pets" / "dog" / "sub").symlink_to(tmp_path / "more")
    for name in ("chien", "hund"):
        (tmp_path / "pets" / name).symlink_to(tmp_path / "pets" / "dog")
    found = [str(path.relative_to(tmp_path / "pets")) for path in walk_files(tmp_path / "pets")]
    names = ("chien", "dog", "hund")
    assert found == [f"{name}/{file}" for name in names for file in ("a.jpg", "sub/b.jpg")]


def test_an_ending_is_guessed_by_the_first_bytes() -> None:
    """Of pictures that come without a name."""
    assert guess_ending(b"\x89PNG\r\n") == "png"
    assert guess_ending(b"\0\0\0\x20ftypavif") == "avif"
    assert guess_ending(b"%PDF") == "bin"
