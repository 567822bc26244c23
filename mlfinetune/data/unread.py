"""Files that `mlfinetune init` finds and passes over, each kind in one line.

folder of pictures without labels -> texts of tags beside few of them, labels/, pictures of a camera
train.csv                         -> val.csv and test.csv beside it
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlfinetune.data.blank_table import BlankTable
from mlfinetune.data.images.heif import load_heif
from mlfinetune.data.images.names import UNDECODED
from mlfinetune.data.readers.column_names import find_split
from mlfinetune.data.readers.xmp import note_keywords
from mlfinetune.text import display_path, format_list, list_some, pluralize

_TEXTS = (".txt", ".tags", ".caption", ".captions")


def describe_blank_table(blank: BlankTable, folder: Path, command: str) -> list[str]:
    """Return lines on a table to fill in, and on all that it does not say of its pictures.

    Args:
        blank: the table.
        folder: that of its pictures.
        command: reads the texts beside pictures.
    """
    found = blank.found
    lines = [
        *describe_unread(found.pictures, found.others, command),
        *note_keywords(folder),
        f"{pluralize(blank.pictures, 'picture')} without labels: a row for each",
        *found.notes,
        *describe_undecoded(found.pictures),
    ]
    if blank.splits:
        counts = ", ".join(f"{count} {split}" for split, count in blank.splits.items())
        lines.append(f"column split by the folders: {counts}")
    if blank.torn:
        lines.append(
            f"no column split: folders {', '.join(blank.torn)}, but not for all pictures at one "
            f"level; unless you add one, val is drawn from all rows"
        )
    if blank.left_out:
        names = format_list([repr(name) for name in blank.left_out])
        lines.append(f"left out, since no table can hold these names: rename them\n{names}")
    return lines


def describe_unread(pictures: Sequence[Path], others: Iterable[Path], command: str) -> list[str]:
    """Return lines on the files of a folder whose names say that they label its pictures.

    beside 1.jpg: 1.txt, 1.jpg.txt       tags that are not read, since few pictures have them
    labels/1.txt for images/1.jpg        most often boxes; never read
    1_tags.txt                           never read

    Args:
        pictures, others: the files, relative to the folder.
        command: reads the texts beside pictures.
    """
    texts = [path for path in others if path.suffix.lower() in _TEXTS]
    beside = {_fold(key) for path in pictures for key in (path, path.with_suffix(""))}
    stems = {path.stem.casefold() for path in pictures}
    near = [path for path in texts if _fold(path.with_suffix("")) in beside]
    far = {path for path in texts if path.stem.casefold() in stems} - {*near}
    lines = []
    if near:
        count = pluralize(len(near), "text file")
        are = "is" if len(near) == 1 else "are"
        lines.append(f"{count} beside pictures {are} not read as tags; to read them: {command}")
    if far:
        places = sorted({str(path.parent) for path in far})
        lines.append(
            f"{pluralize(len(far), 'text file')} named like pictures, in {list_some(places)}: not "
            f"read; only tags beside the pictures are, as 1.txt beside 1.jpg"
        )
    rest = [path for path in texts if path not in {*near, *far}]
    names = stems | {path.name.casefold() for path in pictures}
    if worded := [path for path in rest if _take_word(path.stem) in names]:
        lines.append(
            f"{pluralize(len(worded), 'text file')} named like pictures and more "
            f"({worded[0].name!r}): not read; only 1.txt beside 1.jpg is"
        )
    return lines


def _take_word(stem: str) -> str:
    """Return the stem of the picture that a file may be named after: `1_tags`, `1.jpg` -> 1."""
    match = re.fullmatch(r"(.+?)[\W_]+[^\W\d_]+", stem.casefold())
    return match[1] if match else ""


def describe_undecoded(pictures: Iterable[Path]) -> list[str]:
    """Return a line for each ending of pictures that cannot be decoded: how many, why, the cure."""
    counts = Counter(path.suffix.lower() for path in pictures)
    total = counts.total()
    reasons = {ending: _find_reason(ending) for ending in counts}
    return [
        f"{counts[ending]} of {pluralize(total, 'picture')} ({ending}) cannot be read yet: {reason}"
        for ending, reason in sorted(reasons.items())
        if reason
    ]


def describe_tables_beside(table: Path, command: str) -> list[str]:
    """Return a line on val.csv and test.csv beside train.csv, which are not read with it.

    Args:
        table: what is read.
        command: reads all of them.
    """
    own, split = _part(table)
    if split != "train":
        return []
    others: dict[str, Path] = {}
    for path in sorted(table.parent.iterdir()):
        rest, other = _part(path)
        if rest == own and other in ("val", "test") and path.is_file():
            others.setdefault(other, path)
    if "val" in others:
        names = " and ".join(others[split].name for split in ("val", "test") if split in others)
        both = "both" if len(others) == 1 else "all"
        lie = "lies" if len(others) == 1 else "lie"
        val = display_path(others["val"])
        return [f"{names} {lie} beside it, not read; to read {both}: {command}, or data.val={val}"]
    if "test" in others:
        name = others["test"].name
        return [f"{name} lies beside it, not read; to score it: mlfinetune eval RUN --data {name}"]
    return []


def _find_reason(ending: str) -> str | None:
    """Return why pictures with this ending are not decoded; None: they are."""
    return load_heif() if ending.startswith((".hei", ".hif")) else UNDECODED.get(ending)


def _part(path: Path) -> tuple[tuple[str, ...], str | None]:
    """Return the words of a name without those of the split, and the split that they name.

    labels_train.csv -> (labels, csv), train
    """
    words = [word for word in re.split(r"[\W_]+", path.name.casefold()) if word]
    marks = {word: split for word in words[:-1] if (split := find_split(word))}
    split = next(iter(marks.values())) if len(marks) == 1 else None
    return tuple(word for word in words if word not in marks), split


def _fold(path: Path) -> str:
    return str(path).casefold()
