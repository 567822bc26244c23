"""Names of overlays are safe, and belong to one picture and label each."""

import pytest

from mlfinetune.runs.overlays import name_overlay

PICTURES = ("a/x.jpg", "b/x.jpg", "x.jpg", "x.png", "", "\udc80.jpg", "CON.jpg", "../../x.jpg")
LABELS = ("cat", "Cat", "cat/tabby", "cat tabby", "😀", "é", "é" * 300, "..", "a\0b", "-rf")


def test_each_picture_and_label_has_its_own_safe_name() -> None:
    """No two are one, not even where case does not count; none leaves the folder or is too long."""
    names = {name_overlay(picture, label) for picture in PICTURES for label in LABELS}
    assert len({name.casefold() for name in names}) == len(PICTURES) * len(LABELS)
    for name in names:
        assert not set(name) & set('/\\:*?"<>|\0 ')
        assert len(name.encode()) < 200
        assert name[0] not in ".-"
        assert name.endswith(".jpg")


@pytest.mark.parametrize(
    ("picture", "begins"),
    [
        ("photos/cat 1.jpg", "cat_1-cat_tabby-"),
        ("https://me:secret@host/a.jpg?token=secret", "a-cat_tabby-"),
        ("x.tar/train/ü.jpg", "ü-cat_tabby-"),
        (r"C:\photos\b.jpg", "b-cat_tabby-"),
    ],
)
def test_names_can_be_read(picture: str, begins: str) -> None:
    """Stem of the picture, then the label; no secret of a URL."""
    name = name_overlay(picture, "cat/tabby")
    assert name.startswith(begins)
    assert "secret" not in name
