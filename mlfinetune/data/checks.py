"""What is wrong, or odd, in a data set: from tables and looked-at pictures to findings.

pictures of each side -> copies across and within sides, look-alikes, sizes and modes
labels of each side   -> spellings, labels that nothing can be learnt of, frequencies
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlfinetune.data.images.decode import ImageInfo
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.targets import POSITIVE
from mlfinetune.text import pluralize


@dataclass(frozen=True)
class Finding:
    """Something about a data set that its owner should know.

    Attributes:
        severity: `error` where training would fail or its numbers mislead, else `warning`.
        kind: a word for programs, as `unreadable`.
        message: a line for people.
        items: what it is about, one line each.
    """

    severity: str
    kind: str
    message: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelShare:
    """One label's positives, the share of them held out, and that of a random split."""

    label: str
    positives: int
    share: float
    by_chance: float


@dataclass(frozen=True)
class Balance:
    """How a split came out.

    Attributes:
        sides: train, val and perhaps test.
        sizes: images on each.
        wanted: the share to hold out, of all images.
        rows: a label each.
    """

    sides: tuple[str, ...]
    sizes: tuple[int, ...]
    wanted: float
    rows: tuple[LabelShare, ...]

    @property
    def worst(self) -> tuple[float, float]:
        """The largest distance from `wanted` among labels with positives: here, and by chance."""
        rows = [row for row in self.rows if row.positives]
        return (
            max((abs(row.share - self.wanted) for row in rows), default=0.0),
            max((abs(row.by_chance - self.wanted) for row in rows), default=0.0),
        )


NEAR_BITS = 4
"""Look-alikes differ in at most so many of the 128 bits of their difference hash.

On 3,241 pictures of clip art 99 % of copies recompressed at quality 60 come within 4 bits, and 91 %
of copies of half the size.
"""

FEW_STEPS = 16
"""Hashes with fewer bits set are of blank pictures and icons, which are all alike."""

_TYPO_RATIO = 10
"""A rare label one letter off another that is so many times as frequent is a likely typo."""

_LONGEST = 40
"""Letters of a label in which typing errors are looked for: sentences would fill the memory."""

_TOP_PAIRS = 50

MOST_PAIRS = 20_000
"""Look-alikes that are listed."""


@dataclass(frozen=True)
class SeenImage:
    """A picture of one side of the data, and where its row stands."""

    side: str
    name: str
    picture: ImageInfo
    place: str = ""

    def __str__(self) -> str:
        where = f" ({self.place})" if self.place not in ("", self.name) else ""
        return f"{self.side}: {self.name!r}{where}"


# ---- pictures ---------------------------------------------------------------------------


def find_duplicate_files(seen: Sequence[SeenImage]) -> list[Finding]:
    """Files with the same bytes: across sides an error, within one a warning."""
    groups: defaultdict[str, list[SeenImage]] = defaultdict(list)
    for one in seen:
        groups[one.picture.digest].append(one)
    repeated = [group for group in groups.values() if len(group) > 1]
    across = [group for group in repeated if len({one.side for one in group}) > 1]
    within = [group for group in repeated if len({one.side for one in group}) == 1]
    return [
        *_finding(
            "error",
            "copies_across_splits",
            f"{pluralize(len(across), 'picture')} in several splits (the same bytes): "
            f"scores flatter",
            [_group(group) for group in across],
        ),
        *_finding(
            "warning",
            "copies",
            f"{pluralize(len(within), 'picture')} several times in one split (the same bytes)",
            [_group(group) for group in within],
        ),
    ]


def find_look_alikes(seen: Sequence[SeenImage]) -> list[Finding]:
    """Pictures of different bytes that look the same, such as a smaller or recompressed copy."""
    by_digest = {one.picture.digest: one for one in seen}
    firsts = [
        one for one in by_digest.values() if int(one.picture.dhash, 16).bit_count() >= FEW_STEPS
    ]
    pairs = find_near_pairs([one.picture.dhash for one in firsts], NEAR_BITS)
    across: list[str] = []
    within: list[str] = []
    for a, b in pairs:
        group = [firsts[a], firsts[b]]
        (within if firsts[a].side == firsts[b].side else across).append(_group(group))
    return [
        *_finding(
            "warning",
            "look_alikes_across_splits",
            f"{pluralize(len(across), 'pair')} of pictures in different splits that look the same",
            across,
        ),
        *_finding(
            "warning",
            "look_alikes",
            f"{pluralize(len(within), 'pair')} of pictures in one split that look the same",
            within,
        ),
    ]


def find_near_pairs(
    hashes: Sequence[str], bits: int, most: int = MOST_PAIRS
) -> list[tuple[int, int]]:
    """Pairs of hashes of 128 bits that differ in at most `bits` of them, fewer than 8.

    Of 8 bands of 16 bits one at least is then the same in both: only pairs that share a band
    are compared. Past a hundred hashes with one band the farthest in order are not; past `most`
    pairs, as frames of a film have, none more are looked for.
    """
    assert bits < 8
    if len(hashes) < 2:
        return []
    every = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, 16)
    found: set[tuple[int, int]] = set()
    for band in every.view(np.uint16).T:
        order = np.lexsort([*every.T, band])
        for step in range(1, min(100, len(order))):
            a, b = order[:-step], order[step:]
            same = band[a] == band[b]
            if not same.any():
                break
            a, b = a[same], b[same]
            near = np.bitwise_count(every[a] ^ every[b]).sum(axis=1) <= bits
            pairs = zip(a[near].tolist(), b[near].tolist(), strict=True)
            found.update((min(pair), max(pair)) for pair in pairs)
            if len(found) >= most:
                return sorted(found)[:most]
    return sorted(found)


def find_oddities(seen: Sequence[SeenImage], smallest: int) -> list[Finding]:
    """Pictures of which little is seen: parts of a file are not used, or there is not much."""
    frames = [_group([one]) for one in seen if one.picture.frames_dropped]
    small = [
        f"{_group([one])}: {one.picture.width} x {one.picture.height}"
        for one in seen
        if min(one.picture.width, one.picture.height) < smallest
    ]
    return [
        *_finding(
            "warning",
            "frames_dropped",
            f"{pluralize(len(frames), 'file')} with several frames or pages: the first is used",
            frames,
        ),
        *_finding(
            "warning",
            "small",
            f"{pluralize(len(small), 'picture')} with a side under {smallest} px",
            small,
        ),
    ]


def summarize_pictures(seen: Sequence[SeenImage]) -> dict[str, Any]:
    """Sizes, formats and modes."""
    if not seen:
        return {"count": 0}
    sides = np.array([(one.picture.width, one.picture.height) for one in seen])
    low, middle, high = np.percentile(sides, [0, 50, 100], axis=0, method="nearest").tolist()
    return {
        "count": len(seen),
        "width": {"least": low[0], "median": middle[0], "most": high[0]},
        "height": {"least": low[1], "median": middle[1], "most": high[1]},
        "formats": _counted(one.picture.format for one in seen),
        "modes": _counted(one.picture.mode for one in seen),
        "turned_by_exif": sum(one.picture.turned for one in seen),
    }


# ---- labels -----------------------------------------------------------------------------


def find_spellings(positives: Mapping[str, int]) -> list[Finding]:
    """Labels that are probably one label; `positives` counts the images of each."""
    forms: defaultdict[str, list[str]] = defaultdict(list)
    for name in positives:
        forms[_form(name)].append(name)
    alike = [names for names in forms.values() if len(names) > 1]
    items = [" / ".join(f"{name!r} ({positives[name]})" for name in names) for names in alike]
    frequent = {form: max(positives[name] for name in names) for form, names in forms.items()}
    by_gap: defaultdict[str, list[str]] = defaultdict(list)
    short = [form for form in frequent if len(form) <= _LONGEST]
    for form in short:
        for gap in _gaps(form):
            by_gap[gap].append(form)
    typos = []
    for form in short:
        count = frequent[form]
        close = {other for gap in _gaps(form) for other in by_gap[gap]}
        likely = max(close, key=lambda other: (frequent[other], other), default=form)
        if len(form) >= 5 and frequent[likely] >= _TYPO_RATIO * max(count, 1):
            typos.append(f"{forms[form][0]!r} ({count}): {forms[likely][0]!r}?")
    hint = "; data.rename_labels joins them"
    return [
        *_finding(
            "error",
            "label_spellings",
            f"{pluralize(len(alike), 'label')} with several spellings{hint}",
            items,
        ),
        *_finding(
            "warning",
            "label_typos",
            f"{pluralize(len(typos), 'label')} with the look of typing errors",
            typos,
        ),
    ]


def find_unlearnable(sides: Mapping[str, Manifest]) -> list[Finding]:
    """Labels without positives or without negatives in train (errors) or another side."""
    findings = []
    for side, manifest in sides.items():
        positives, negatives, _ = manifest.targets.counts()
        names = np.array(manifest.labels.names, object)
        what = "nothing to learn" if side == "train" else "no AP"
        severity = "error" if side == "train" else "warning"
        for state, counts in (("positive", positives), ("negative", negatives)):
            lacking = [repr(name) for name in names[counts == 0]]
            text = f"{pluralize(len(lacking), 'label')} without a {state} in {side}: {what}"
            findings += _finding(severity, f"no_{state}_in_{side}", text, lacking)
    return findings


def summarize_labels(sides: Mapping[str, Manifest]) -> dict[str, Any]:
    """Frequencies a side, images without a label, labels an image, pairs that come together."""
    facts: dict[str, Any] = {"labels": {}, "sides": {}}
    for side, manifest in sides.items():
        positives, negatives, unknown = (x.tolist() for x in manifest.targets.counts())
        for name, *counts in zip(manifest.labels.names, positives, negatives, unknown, strict=True):
            facts["labels"].setdefault(name, {})[side] = dict(
                zip(("positives", "negatives", "unknown"), counts, strict=True)
            )
        none = int((~manifest.targets.any_positive()).sum())
        facts["sides"][side] = {
            "images": len(manifest),
            "without_label": none,
            "labels_an_image": round(sum(positives) / max(1, len(manifest)), 2),
        }
    facts["together"] = find_label_pairs(sides["train"]) if "train" in sides else []
    return facts


def find_label_pairs(manifest: Manifest) -> list[dict[str, Any]]:
    """The pairs of labels that come together most, by the share of the images that have either."""
    n = len(manifest.labels)
    both = np.zeros((n, n))
    for _, block in manifest.targets.blocks():
        held = (block == POSITIVE).astype(np.float32)
        both += held.T @ held
    alone = both.diagonal()
    either = alone[:, None] + alone - both
    share = np.triu(both / np.maximum(either, 1), k=1)
    best = np.argsort(-share, axis=None, kind="stable")[:_TOP_PAIRS]
    pairs: list[dict[str, Any]] = []
    for a, b in zip(*np.unravel_index(best, share.shape), strict=True):
        if share[a, b] > 0:
            names = [manifest.labels.names[a], manifest.labels.names[b]]
            pairs.append(
                {"labels": names, "images": int(both[a, b]), "share": round(share[a, b], 4)}
            )
    return pairs


# ---- words ------------------------------------------------------------------------------


def _finding(severity: str, kind: str, message: str, items: Sequence[str]) -> list[Finding]:
    return [Finding(severity, kind, message, tuple(items))] if items else []


def _group(group: Iterable[SeenImage]) -> str:
    return " = ".join(map(str, group))


def _form(name: str) -> str:
    """The same for labels that differ in case, spaces, hyphens, underscores or Unicode form."""
    form = unicodedata.normalize("NFKC", name).casefold().strip()
    form = re.sub(r"(^|(?<=[0-9]))[\s_-]+(?=[0-9])", "\0", form)  # -1 is not 1, nor 1-2 12
    return re.sub(r"[\s_-]+", "", form) or name


def _gaps(form: str) -> set[str]:
    """Shared by two forms where one letter is missing, added or replaced, or two are swapped.

    Digits count things: label 12 is no misspelt label 13.
    """
    letters = [at for at, letter in enumerate(form) if not letter.isdecimal()]
    gaps = {f"{form[:at]}\0{form[at:]}" for at in range(len(form) + 1)}
    gaps |= {f"{form[:at]}\0{form[at + 1 :]}" for at in letters}
    for at in letters:
        if form[at + 1 : at + 2] and not form[at + 1].isdecimal():
            pair = "".join(sorted(form[at : at + 2]))
            gaps.add(f"{form[:at]}\0\0{pair}{form[at + 2 :]}")
    return gaps


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())
