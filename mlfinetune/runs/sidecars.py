"""Files of `predict --sidecars`: the labels of a picture beside it, where photo programs read them.

    xmp          photo.jpg.xmp    darktable, digiKam
    lightroom    photo.xmp        Lightroom, Bridge
    txt          photo.txt        trainers of other models: tags between commas

A file has its name when it is whole; the picture is never written. What others wrote into an XMP
stays (xmp_merge.py); a text has no room for a record of what is ours, so that one with other tags
is left as it is.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

from mlfinetune.data.images.keywords import find_keywords, read_bounded
from mlfinetune.data.images.names import is_decoded_name
from mlfinetune.data.images.xmp_packet import XmpError, find_unrepresentable
from mlfinetune.data.readers.tags import MAX_BYTES, parse_tags
from mlfinetune.errors import CheckpointError, DataError
from mlfinetune.location import is_url
from mlfinetune.metrics.types import Prediction
from mlfinetune.runs.predictions import LabelSelector
from mlfinetune.runs.xmp_merge import Merge, merge_keywords
from mlfinetune.storage.atomic import is_full, write_atomic
from mlfinetune.text import list_labels, list_some, make_printable, pluralize

ENDINGS = {"xmp": ".xmp", "lightroom": ".xmp", "txt": ".txt"}
"""Kind of sidecar -> its ending."""


class SidecarError(DataError):
    """A sidecar that cannot be written; whatever is there stays."""


@dataclass(frozen=True)
class Change:
    """A sidecar, and what the labels of its picture change in it.

    Attributes:
        path: the sidecar.
        is_new: whether there was none.
        merge: what comes and what goes.
    """

    path: Path
    is_new: bool
    merge: Merge


@dataclass
class SidecarCounts:
    """Numbers of sidecars, and of the labels in them."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    failed: int = 0
    added: int = 0
    removed: int = 0
    rejected: int = 0

    def add(self, change: Change) -> None:
        """Count a sidecar."""
        if change.merge.content is None:
            self.unchanged += 1
        elif change.is_new:
            self.new += 1
        else:
            self.changed += 1
        self.added += len(change.merge.added)
        self.removed += len(change.merge.removed)
        self.rejected += len(change.merge.rejected)

    def describe(self, dry_run: bool) -> str:
        """Return the numbers in a line."""
        verb = "would be " if dry_run else ""
        line = (
            f"sidecars: {self.new} {verb}new, {self.changed} {verb}changed, {self.unchanged} as "
            f"they are; {pluralize(self.added, 'tag')} added, {self.removed} removed"
        )
        if self.rejected:
            line += f", {self.rejected} not written again, since people took them out"
        return line + (f"; {self.failed} failed" if self.failed else "")


class SidecarWriter:
    """Writes the sidecar of each prediction, or tells what it would write.

    Attributes:
        counts: of what was written.
    """

    def __init__(
        self,
        kind: str,
        selector: LabelSelector,
        checkpoint: str,
        say: Callable[[str], None],
        dry_run: bool = False,
    ) -> None:
        """Check that the labels can be written.

        Args:
            kind: xmp, lightroom or txt.
            selector: names the labels of a prediction.
            checkpoint: name and digest of what predicts (`name_checkpoint`).
            say: takes a warning of labels that XML cannot hold.
            dry_run: write nothing.

        Raises:
            DataError: a text cannot hold a label.
        """
        self._kind, self._selector, self._dry_run = kind, selector, dry_run
        self._checkpoint, self.counts = checkpoint, SidecarCounts()
        self._list_sharing = lru_cache(maxsize=8)(_list_sharing)
        names = selector.labels.names
        self._left_out = set[str]()
        if kind == "txt":
            _require_tags(names)
        else:
            self._left_out = {name for name in names if find_unrepresentable(name)}
        if self._left_out:
            sign = find_unrepresentable(min(self._left_out))
            labels = list_labels(sorted(self._left_out))
            say(f"warning: {labels} cannot be in a sidecar: XML has no {sign}")

    def write(self, prediction: Prediction) -> Change | None:
        """Write the sidecar of a prediction; one that failed has none.

        Raises:
            SidecarError: this one cannot be written.
            CheckpointError: the disk is full, so that none can.
        """
        if prediction.probabilities is None:
            return None
        names = self._selector.labels.names
        labels = [names[column] for column in self._selector(prediction)]
        try:
            change = self._plan(prediction.name, [x for x in labels if x not in self._left_out])
            if change.merge.content is not None and not self._dry_run:
                _write_file(change.path, change.merge.content)
        except SidecarError:
            self.counts.failed += 1
            raise
        except OSError as error:
            self.counts.failed += 1
            raise SidecarError(f"{error.filename or prediction.name}: {error.strerror}") from error
        self.counts.add(change)
        return change

    def _plan(self, name: str, labels: Sequence[str]) -> Change:
        """Return the sidecar of a picture, and what changes in it.

        Raises:
            SidecarError: it cannot be written.
        """
        path = _find_path(name, self._kind, self._list_sharing)
        is_new = not os.path.lexists(path)
        if self._kind == "txt":
            content = None if is_new else path.read_bytes()
            return Change(path, is_new, _merge_tags(path, content, labels))
        try:
            content = None if is_new else read_bounded(path)
            inside = _read_inside(name) if is_new and labels else {}
            merge = merge_keywords(content, labels, self._checkpoint, inside)
        except XmpError as error:
            raise SidecarError(f"{path}: {error}; it is left as it is") from error
        return Change(path, is_new, merge)


def _read_inside(name: str) -> dict[str, list[str]]:
    """Return the keywords of people inside a picture, but for those that XML cannot hold."""
    found = find_keywords(Path(name))
    return {
        kind: [word for word in words if not find_unrepresentable(word)]
        for kind, words in found.items()
    }


class ChangeLines:
    """Writes a line for each sidecar that `--dry-run` would change."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, change: Change | None) -> None:
        """Write `photo.jpg.xmp: + cat, sea  - dog`; nothing for a sidecar that stays."""
        if change is None or change.merge.content is None:
            return
        signs = (("+", change.merge.added), ("-", change.merge.removed))
        parts = [f"{sign} {', '.join(labels)}" for sign, labels in signs if labels]
        new = " (new)" if change.is_new else ""
        line = f"{change.path}{new}: {'  '.join(parts) or 'no label; its record alone'}"
        self._file.write(make_printable(line) + "\n")


def name_checkpoint(name: str, file: Path) -> str:
    """Return the name of a checkpoint for the record: `pets/best.safetensors sha256:...`.

    Folders above the run are left out, since they say where somebody keeps files. The digest is
    what `sha256sum` prints.

    Args:
        name: its path or URL.
        file: the file.
    """
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    parts = re.split(r"[/\\]", urlsplit(name).path if is_url(name) else name)
    return f"{'/'.join(parts[-2:])} sha256:{digest}"


def refuse_distant(inputs: Iterable[str]) -> None:
    """Check that inputs are files and folders of this machine, beside which sidecars can lie.

    Raises:
        DataError: URLs or tars.
    """
    distant = [x for x in inputs if is_url(x) or x.endswith(".tar") or _is_in_tar(x)]
    if distant:
        raise DataError(
            f"--sidecars writes beside files and folders; these are URLs or tars: "
            f"{list_some(distant)}"
        )


def _is_in_tar(name: str) -> bool:
    return not os.path.lexists(name) and ".tar/" in name.replace(os.sep, "/")


# ---- places -----------------------------------------------------------------------------


def _find_path(
    name: str, kind: str, list_sharing: Callable[[str], Mapping[str, Sequence[str]]]
) -> Path:
    """Return the path of a picture's sidecar: one that is there with `.XMP`, else the usual one.

    Args:
        name: the picture.
        kind: xmp, lightroom or txt.
        list_sharing: `_list_sharing`, which keeps the last folders.

    Raises:
        SidecarError: it has no place of its own.
    """
    picture = Path(name)
    if is_url(name) or not os.path.lexists(picture):
        raise SidecarError(f"{name}: no file beside which a sidecar could lie (a URL, or in a tar)")
    stem = picture.name if kind == "xmp" else picture.stem
    if kind != "xmp":
        sharing = list_sharing(str(picture.parent)).get(os.path.normcase(picture.stem), ())
        if len(sharing) > 1 and is_decoded_name(picture):
            others = " and ".join(other for other in sharing if other != picture.name)
            raise SidecarError(
                f"{name}: {stem}{ENDINGS[kind]} would be that of {others} too; rename one, or take "
                f"--sidecars xmp"
            )
    usual = picture.with_name(stem + ENDINGS[kind])
    capital = picture.with_name(stem + ENDINGS[kind].upper())
    path = capital if os.path.lexists(capital) and not os.path.lexists(usual) else usual
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _list_sharing(folder: str) -> dict[str, tuple[str, ...]]:
    """Return stem -> the pictures of a folder with this stem, where there are several.

    A camera's raw file does not count: its JPEG is the same photo.
    """
    with os.scandir(folder or ".") as entries:
        names = sorted(entry.name for entry in entries if is_decoded_name(Path(entry.name)))
    counts = Counter(os.path.normcase(Path(name).stem) for name in names)
    shared = {stem: list[str]() for stem, count in counts.items() if count > 1}
    for name in names:
        if (stem := os.path.normcase(Path(name).stem)) in shared:
            shared[stem].append(name)
    return {stem: tuple(names) for stem, names in shared.items()}


def _write_file(path: Path, content: bytes) -> None:
    """Write a sidecar, whole or not at all; one that was there keeps its rights.

    Raises:
        SidecarError: it cannot be written.
        CheckpointError: the disk is full.
    """
    try:
        mode = path.stat().st_mode & 0o7777 if path.exists() else None
        if mode is not None and not os.access(path, os.W_OK):
            raise SidecarError(f"cannot write {path}: Permission denied")
        write_atomic(path, content, mode)
    except CheckpointError as error:
        if is_full(error.__cause__):
            raise
        raise SidecarError(str(error)) from error


# ---- texts ------------------------------------------------------------------------------


def _require_tags(labels: Sequence[str]) -> None:
    """Check that labels can be read back from a text.

    Raises:
        DataError: one has a comma, or a line break.
    """
    bad = [x for x in labels if parse_tags(x.encode(errors="replace"), "", None) != [x]]
    if bad:
        raise DataError(
            f"--sidecars txt separates tags by commas, and {list_labels(bad)} would be read as "
            f"others; take --sidecars xmp"
        )


def _merge_tags(path: Path, content: bytes | None, labels: Sequence[str]) -> Merge:
    """Return the text of the labels; no text is begun for none.

    Raises:
        SidecarError: there is one with other tags, which may be a person's.
    """
    if content is None:
        text = ", ".join(labels) + "\n"
        return Merge(text.encode(), tuple(labels)) if labels else Merge(None)
    try:
        tags = parse_tags(content[:MAX_BYTES], path, None)
    except DataError:
        tags = "boxes"
    if isinstance(tags, list) and {*tags} == {*labels}:
        return Merge(None)
    raise SidecarError(
        f"{path} is there already, with other tags, and says not whose they are; remove it to have "
        f"it written anew"
    )
