"""Names of picture files, and the walk below a folder."""

from pathlib import Path

import pytest

from mlfinetune.data.images.names import (
    DECODED,
    UNDECODED,
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
