"""Findings about a data set, from its tables and decoded pictures: errors and oddities.

pictures of each side -> duplicate files across and within sides, look-alikes, sizes and modes
labels of each side   -> labels that cannot be learned, frequencies; names: doubts.py
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlfinetune.data.findings import Finding, build_finding
from mlfinetune.data.images.decode import ImageInfo
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.targets import POSITIVE
from mlfinetune.text import pluralize


@dataclass(frozen=True)
class LabelShare:
    """One label: its positives, the share of them held out (0 to 1), and that of a random split."""

    label: str
    positives: int
    share: float
    by_chance: float


@dataclass(frozen=True)
class Balance:
    """Sizes of the sides of a split, and how evenly each label is divided between them.

    Attributes:
        sides: train, val and perhaps test.
        sizes: number of images on each side.
        wanted: the share of all images that is held out.
        rows: one entry per label.
    """

    sides: tuple[str, ...]
    sizes: tuple[int, ...]
    wanted: float
    rows: tuple[LabelShare, ...]

    @property
    def worst(self) -> tuple[float, float]:
        """Largest |share - wanted| of any label with positives: of this split, of a random one."""
        rows = [row for row in self.rows if row.positives]
        return (
            max((abs(row.share - self.wanted) for row in rows), default=0.0),
            max((abs(row.by_chance - self.wanted) for row in rows), default=0.0),
        )


NEAR_BITS = 4
"""Look-alikes differ in at most this many of the 128 bits of their difference hash.

Measured on 3,241 pictures of clip art: 99 % of the copies recompressed at JPEG quality 60 differ
in at most 4 bits, and 91 % of the copies of half the size.
"""
FEW_STEPS = 16
"""Hashes with fewer bits set are not compared: blank pictures and icons all look alike."""
_TOP_PAIRS = 50
"""Pairs of labels that `find_label_pairs` returns at most."""
MOST_PAIRS = 20_000
"""Pairs of look-alikes that are listed at most."""


@dataclass(frozen=True)
class SeenImage:
    """A decoded picture of one side of the data.

    Attributes:
        side: train, val or test.
        name: the image name in the table.
        picture: what decoding found.
        place: place of its row in the table, as `line 12`; empty where there is none.
    """

    side: str
    name: str
    picture: ImageInfo
    place: str = ""

    def __str__(self) -> str:
        where = f" ({self.place})" if self.place not in ("", self.name) else ""
        return f"{self.side}: {self.name!r}{where}"


# ---- pictures ---------------------------------------------------------------------------


def find_duplicate_files(seen: Sequence[SeenImage]) -> list[Finding]:
    """Find files with the same bytes: an error across sides, a warning within one side."""
    groups: defaultdict[str, list[SeenImage]] = defaultdict(list)
    for image in seen:
        groups[image.picture.digest].append(image)
    repeated = [group for group in groups.values() if len(group) > 1]
    across = [group for group in repeated if len({image.side for image in group}) > 1]
    within = [group for group in repeated if len({image.side for image in group}) == 1]
    return [
        *build_finding(
            "error",
            "copies_across_splits",
            f"{pluralize(len(across), 'picture')} in several splits (the same bytes): "
            f"scores will be too high",
            [_join_images(group) for group in across],
        ),
        *build_finding(
            "warning",
            "copies",
            f"{pluralize(len(within), 'picture')} several times in one split (the same bytes)",
            [_join_images(group) for group in within],
        ),
    ]


def find_look_alikes(seen: Sequence[SeenImage]) -> list[Finding]:
    """Find pictures that look the same in different files: a smaller or recompressed copy."""
    by_digest = {image.picture.digest: image for image in seen}  # one image per content
    images = [
        image
        for image in by_digest.values()
        if int(image.picture.dhash, 16).bit_count() >= FEW_STEPS
    ]
    pairs = find_near_pairs([image.picture.dhash for image in images], NEAR_BITS)
    across: list[str] = []
    within: list[str] = []
    for a, b in pairs:
        same_side = images[a].side == images[b].side
        (within if same_side else across).append(_join_images([images[a], images[b]]))
    return [
        *build_finding(
            "warning",
            "look_alikes_across_splits",
            f"{pluralize(len(across), 'pair')} of pictures in different splits that look the same",
            across,
        ),
        *build_finding(
            "warning",
            "look_alikes",
            f"{pluralize(len(within), 'pair')} of pictures in one split that look the same",
            within,
        ),
    ]


def find_near_pairs(
    hashes: Sequence[str], bits: int, most: int = MOST_PAIRS
) -> list[tuple[int, int]]:
    """Return the pairs (a, b), a < b, of 128-bit hashes that differ in at most `bits` bits.

    `hashes` have 32 hexadecimal digits each, and `bits` is less than 8. A hash has 8 bands of 16
    bits. Two hashes that differ in fewer than 8 bits have at least one band in common, so only
    hashes with a common band are compared. Two limits bound the time: of many hashes with one
    common band, each is compared with the next 99 in sorted order; and the search stops after
    `most` pairs, as frames of a film have.
    """
    assert bits < 8
    if len(hashes) < 2:
        return []
    bytes_of = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, 16)
    near_pairs: set[tuple[int, int]] = set()
    for band in bytes_of.view(np.uint16).T:
        order = np.lexsort([*bytes_of.T, band])
        # Hashes with one band lie side by side. So pairs of neighbors are compared, then pairs two
        # places apart, and so on, until no such pair has its band in common.
        for step in range(1, min(100, len(order))):
            first, second = order[:-step], order[step:]
            same = band[first] == band[second]
            if not same.any():
                break
            first, second = first[same], second[same]
            near = np.bitwise_count(bytes_of[first] ^ bytes_of[second]).sum(axis=1) <= bits
            pairs = zip(first[near].tolist(), second[near].tolist(), strict=True)
            near_pairs.update((min(pair), max(pair)) for pair in pairs)
            if len(near_pairs) >= most:
                return sorted(near_pairs)[:most]
    return sorted(near_pairs)


def find_oddities(seen: Sequence[SeenImage], smallest: int) -> list[Finding]:
    """Find files with several frames or pages, and pictures with a side under `smallest` pixels."""
    frames = [str(image) for image in seen if image.picture.frames_dropped]
    small = [
        f"{image}: {image.picture.width} x {image.picture.height}"
        for image in seen
        if min(image.picture.width, image.picture.height) < smallest
    ]
    return [
        *build_finding(
            "warning",
            "frames_dropped",
            f"{pluralize(len(frames), 'file')} with several frames or pages: the first is used",
            frames,
        ),
        *build_finding(
            "warning",
            "small",
            f"{pluralize(len(small), 'picture')} with a side under {smallest} px",
            small,
        ),
    ]


def summarize_pictures(seen: Sequence[SeenImage]) -> dict[str, Any]:
    """Return the number of pictures, their sizes in pixels, formats and modes, ready for JSON."""
    if not seen:
        return {"count": 0}
    pictures = [image.picture for image in seen]
    sizes = np.array([(picture.width, picture.height) for picture in pictures])
    low, middle, high = np.percentile(sizes, [0, 50, 100], axis=0, method="nearest").tolist()
    return {
        "count": len(pictures),
        "width": {"least": low[0], "median": middle[0], "most": high[0]},
        "height": {"least": low[1], "median": middle[1], "most": high[1]},
        "formats": _count_words(picture.format for picture in pictures),
        "modes": _count_words(picture.mode for picture in pictures),
        "turned_by_exif": sum(picture.turned for picture in pictures),
    }


# ---- labels -----------------------------------------------------------------------------


def find_unlearnable(sides: Mapping[str, Manifest]) -> list[Finding]:
    """Find labels without a positive or a negative: an error in train, a warning elsewhere."""
    findings = []
    for side, manifest in sides.items():
        positives, negatives, _ = manifest.targets.counts()
        names = np.array(manifest.labels.names, object)
        severity = "error" if side == "train" else "warning"
        effect = "nothing to learn" if side == "train" else "no AP"
        for state, counts in (("positive", positives), ("negative", negatives)):
            lacking = [repr(name) for name in names[counts == 0]]
            text = f"{pluralize(len(lacking), 'label')} without a {state} in {side}: {effect}"
            findings += build_finding(severity, f"no_{state}_in_{side}", text, lacking)
    return findings


def summarize_labels(sides: Mapping[str, Manifest]) -> dict[str, Any]:
    """Return, ready for JSON, the counts of labels and of images.

    labels:   label -> side -> positives, negatives, unknown
    sides:    side -> images, images without a label, mean number of labels per image
    together: pairs of labels in train, see `find_label_pairs`
    """
    facts: dict[str, Any] = {"labels": {}, "sides": {}}
    for side, manifest in sides.items():
        positives, negatives, unknown = (c.tolist() for c in manifest.targets.counts())
        for name, *counts in zip(manifest.labels.names, positives, negatives, unknown, strict=True):
            facts["labels"].setdefault(name, {})[side] = dict(
                zip(("positives", "negatives", "unknown"), counts, strict=True)
            )
        without_label = int((~manifest.targets.any_positive()).sum())
        facts["sides"][side] = {
            "images": len(manifest),
            "without_label": without_label,
            "labels_an_image": round(sum(positives) / max(1, len(manifest)), 2),
        }
    facts["together"] = find_label_pairs(sides["train"]) if "train" in sides else []
    return facts


def find_label_pairs(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the 50 pairs of labels that occur together most, by share.

    share: images with both labels / images with either one, the Jaccard index
    """
    count = len(manifest.labels)
    both = np.zeros((count, count))
    for _, block in manifest.targets.blocks():
        positive = (block == POSITIVE).astype(np.float32)
        both += positive.T @ positive
    totals = both.diagonal()
    either = totals[:, None] + totals - both
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


def _join_images(images: Iterable[SeenImage]) -> str:
    """Return `train: 'a.jpg' = val: 'b.jpg'`, one item of a finding."""
    return " = ".join(map(str, images))


def _count_words(words: Iterable[str]) -> dict[str, int]:
    """Return word -> its count, the most frequent word first."""
    return dict(Counter(words).most_common())
