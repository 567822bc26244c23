"""Files that are passed over are named."""

from pathlib import Path

import pytest

from mlfinetune.data.unread import describe_tables_beside, describe_undecoded, describe_unread


def test_texts_by_their_names() -> None:
    """In any case of letters, with or without the picture's ending; other texts are no matter."""
    pictures = [Path("a/1.JPG"), Path("a/2.jpg"), Path("a/3.jpg")]
    others = [Path("a/1.jpg.TXT"), Path("a/2.txt"), Path("labels/3.txt"), Path("readme.txt")]
    near, far = describe_unread(pictures, others, "COMMAND")
    assert near == "2 text files beside pictures are not read as tags; to read them: COMMAND"
    assert far.startswith("1 text file named like pictures, in labels: not read")
    assert describe_unread(pictures, others[3:], "COMMAND") == []


@pytest.mark.parametrize("name", ["1_tags.txt", "1.jpg_labels.txt", "1-caption.txt", "1.en.txt"])
def test_texts_named_like_pictures_and_more(name: str) -> None:
    """They are no tags beside a picture; `1_2.txt` may belong to another picture."""
    others = [Path("a") / name, Path("a/1_2.txt"), Path("a/notes_tags.txt")]
    (line,) = describe_unread([Path("a/1.jpg"), Path("a/2.jpg")], others, "COMMAND")
    assert line.startswith(f"1 text file named like pictures and more ({name!r}): not read")


def test_pictures_are_counted_by_their_endings() -> None:
    """Each ending has its reason; one that is decoded has none."""
    lines = describe_undecoded([Path("a.CR2"), Path("b.cr2"), Path("c.jxl"), Path("d.jpg")])
    assert [line.partition(" cannot")[0] for line in lines] == [
        "2 of 4 pictures (.cr2)",
        "1 of 4 pictures (.jxl)",
    ]


def test_tables_of_other_splits(tmp_path: Path) -> None:
    """The rest of the name is the same; a table of no split has none beside it."""
    for name in ("cats_train.csv", "cats_val.csv", "dogs_test.csv", "train.csv", "test.csv"):
        (tmp_path / name).touch()
    (line,) = describe_tables_beside(tmp_path / "cats_train.csv", "COMMAND")
    assert line.startswith("cats_val.csv lies beside it, not read; to read both: COMMAND, or data.")
    (line,) = describe_tables_beside(tmp_path / "train.csv", "COMMAND")
    assert line.startswith("test.csv lies beside it, not read; to score it: mlfinetune eval RUN")
    assert describe_tables_beside(tmp_path / "dogs_test.csv", "COMMAND") == []
