"""Findings name what is wrong with a data set, and nothing that is right."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from costs import compare_costs
from hypothesis import given, settings
from hypothesis import strategies as st

from mlfinetune.data.checks import (
    SeenImage,
    find_duplicate_files,
    find_label_pairs,
    find_look_alikes,
    find_near_pairs,
    find_oddities,
    find_unlearnable,
    summarize_labels,
    summarize_pictures,
)
from mlfinetune.data.findings import Finding
from mlfinetune.data.images.decode import ImageInfo
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.targets import LabelSpace, Targets

LIVELY = "0123456789abcdef" * 2
"""A hash of 64 steps."""


def seen(side: str, name: str, digest: str = "", dhash: str = LIVELY, **facts: Any) -> SeenImage:
    """Return a picture; its digest is its name unless given."""
    usual = {"width": 64, "height": 48, "format": "JPEG", "mode": "RGB"}
    usual |= {"frames_dropped": False, "turned": False}
    return SeenImage(side, name, ImageInfo(**(usual | facts), digest=digest or name, dhash=dhash))


def flipped(dhash: str, *bits: int) -> str:
    """Return a hash with some bits changed."""
    return f"{int(dhash, 16) ^ sum(1 << bit for bit in set(bits)):032x}"


def found(findings: Sequence[Finding]) -> dict[str, tuple[str, ...]]:
    """Return kind -> items; each kind is there once."""
    assert len({finding.kind for finding in findings}) == len(findings)
    assert all(finding.items for finding in findings)
    return {finding.kind: finding.items for finding in findings}


def side(labels: str, *rows: list[int]) -> Manifest:
    """Return the examples of a side, with a row of states each."""
    names = tuple(labels.split())
    states = np.array(rows, np.int8).reshape(len(rows), len(names))
    images = tuple(f"{row}.jpg" for row in range(len(rows)))
    return Manifest(Path(), images, Targets.pack([states], len(names)), LabelSpace(names))


# ---- pictures ---------------------------------------------------------------------------


def test_copies_are_told_by_side() -> None:
    """Across sides an error, within one a warning; each group once."""
    pictures = [
        seen("train", "a", "1"),
        seen("val", "b", "1"),
        seen("train", "c", "2"),
        seen("train", "d", "2"),
        seen("train", "e", "2"),
        seen("test", "f", "3"),
        seen("train", "g", "1"),
    ]
    findings = find_duplicate_files(pictures)
    assert found(findings) == {
        "copies_across_splits": ("train: 'a' = val: 'b' = train: 'g'",),
        "copies": ("train: 'c' = train: 'd' = train: 'e'",),
    }
    assert [finding.severity for finding in findings] == ["error", "warning"]
    assert find_duplicate_files(pictures[:1]) == find_duplicate_files([]) == []


def test_look_alikes_are_told_by_side() -> None:
    """Up to four steps apart; pictures of the same bytes are copies, not look-alikes."""
    pictures = [
        seen("train", "a"),
        seen("train", "copy of a", digest="a"),
        seen("val", "b", dhash=flipped(LIVELY, 0, 1, 2, 3)),
        seen("train", "c", dhash=flipped(LIVELY, 3, 40, 80, 120)),
        seen("val", "far", dhash=flipped(LIVELY, 60, 61, 62, 63, 64)),
    ]
    findings = find_look_alikes(pictures)
    assert found(findings) == {
        "look_alikes_across_splits": ("train: 'copy of a' = val: 'b'",),
        "look_alikes": ("train: 'copy of a' = train: 'c'",),
    }
    assert {finding.severity for finding in findings} == {"warning"}


def test_blank_pictures_do_not_look_alike() -> None:
    """All flat grounds and most icons have the same few steps."""
    blank, faint = "0" * 32, f"{(1 << 15) - 1:032x}"
    pictures = [seen("train", name, dhash=blank) for name in "abc"]
    pictures += [seen("val", name, dhash=faint) for name in "de"]
    assert find_look_alikes(pictures) == []
    lively = [seen("val", name, dhash=f"{(1 << 16) - 1:032x}") for name in "fg"]
    assert found(find_look_alikes(lively)) == {"look_alikes": ("val: 'f' = val: 'g'",)}


HASHES = st.tuples(
    st.lists(st.integers(0, 2**128 - 1), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, 127), max_size=9)), max_size=25),
)


@settings(deadline=None)
@given(HASHES, st.integers(0, 7))
def test_near_pairs_are_all_near_pairs(
    drawn: tuple[list[int], list[tuple[int, set[int]]]], bits: int
) -> None:
    """As a look at each pair finds them, in order, each once."""
    bases, changes = drawn
    hashes = [flipped(f"{bases[at % len(bases)]:032x}", *turned) for at, turned in changes]
    wanted = [
        (a, b)
        for (a, left), (b, right) in itertools.combinations(enumerate(hashes), 2)
        if (int(left, 16) ^ int(right, 16)).bit_count() <= bits
    ]
    assert find_near_pairs(hashes, bits) == wanted


@pytest.mark.parametrize("bits", range(8))
def test_pairs_are_found_wherever_they_differ(bits: int) -> None:
    """A bit in each of as many bands as there are bits; one more is too many."""
    for first in range(0, 16, 5):
        turned = [first + 16 * band for band in range(bits)]
        pair = [LIVELY, flipped(LIVELY, *turned)]
        assert find_near_pairs(pair, bits) == [(0, 1)]
        assert find_near_pairs([LIVELY, flipped(LIVELY, *turned, 127)], bits) == []


def test_many_hashes_are_not_compared_in_pairs() -> None:
    """Twenty thousand, a tenth of them in a close pair, among many with one band in common.

    Four times as many would cost 16 times as much, pair by pair.
    """
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, (20_000, 4), dtype=np.uint32)
    words[:5000, 0] = 7
    hashes = [row.tobytes().hex() for row in words]
    hashes[10_000:11_000] = [flipped(dhash, 5, 77) for dhash in hashes[11_000:12_000]]
    assert find_near_pairs(hashes, 4) == [(at, at + 1000) for at in range(10_000, 11_000)]
    few = hashes[3750:8750]
    assert compare_costs(lambda: find_near_pairs(hashes, 4), lambda: find_near_pairs(few, 4)) < 10


def test_little_to_see_is_told() -> None:
    """Frames that are not used, and a side too short; as long as asked is enough."""
    pictures = [
        seen("train", "a.gif", frames_dropped=True),
        seen("train", "b", width=31, height=99),
        seen("val", "c", width=32, height=32),
        seen("val", "d", width=99, height=1),
    ]
    assert found(find_oddities(pictures, 32)) == {
        "frames_dropped": ("train: 'a.gif'",),
        "small": ("train: 'b': 31 x 99", "val: 'd': 99 x 1"),
    }
    assert find_oddities([], 32) == []


def test_picture_facts_are_those_counted_by_hand() -> None:
    """The median is a size that there is; all of it can be written as JSON."""
    pictures = [
        seen("train", "a", width=10, height=500),
        seen("train", "b", width=30, height=20, format="PNG", mode="L", turned=True),
        seen("val", "c", width=20, height=40, turned=True),
    ]
    facts = summarize_pictures(pictures)
    assert json.loads(json.dumps(facts)) == {
        "count": 3,
        "width": {"least": 10, "median": 20, "most": 30},
        "height": {"least": 20, "median": 40, "most": 500},
        "formats": {"JPEG": 2, "PNG": 1},
        "modes": {"RGB": 2, "L": 1},
        "turned_by_exif": 2,
    }
    assert summarize_pictures([]) == {"count": 0}
    assert summarize_pictures(pictures[:2])["width"]["median"] in (10, 30)


# ---- labels -----------------------------------------------------------------------------


def test_labels_without_both_states_are_told_by_side() -> None:
    """In train they cannot be learned, elsewhere they have no AP; unknown is neither state."""
    sides = {
        "train": side("a b c", [1, 0, -1], [1, -1, 1]),
        "val": side("a b c", [1, -1, 0]),
    }
    findings = find_unlearnable(sides)
    assert found(findings) == {
        "no_positive_in_train": ("'b'",),
        "no_negative_in_train": ("'a'", "'c'"),
        "no_positive_in_val": ("'b'", "'c'"),
        "no_negative_in_val": ("'a'", "'b'"),
    }
    assert [finding.severity for finding in findings] == ["error"] * 2 + ["warning"] * 2
    assert findings[0].message == "1 label without a positive in train: nothing to learn"
    assert findings[3].message == "2 labels without a negative in val: no AP"
    assert find_unlearnable({"train": side("a", [1], [0])}) == []


def test_label_facts_are_those_counted_by_hand() -> None:
    """Frequencies, rows without a label, labels a row; all of it can be written as JSON."""
    sides = {
        "train": side("a b", [1, 1], [0, -1], [1, 0]),
        "val": side("a b", [0, 1]),
    }
    facts = summarize_labels(sides)
    train, val = (
        {"positives": 2, "negatives": 1, "unknown": 0},
        {"positives": 0, "negatives": 1, "unknown": 0},
    )
    assert facts["labels"]["a"] == {"train": train, "val": val}
    assert facts["labels"]["b"]["train"] == {"positives": 1, "negatives": 1, "unknown": 1}
    assert facts["sides"] == {
        "train": {"images": 3, "without_label": 1, "labels_an_image": 1.0},
        "val": {"images": 1, "without_label": 0, "labels_an_image": 1.0},
    }
    assert facts["together"] == [{"labels": ["a", "b"], "images": 1, "share": 0.5}]
    assert json.loads(json.dumps(facts)) == facts
    assert summarize_labels({}) == {"labels": {}, "sides": {}, "together": []}


@settings(deadline=None)
@given(
    st.integers(0, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([1, 0, -1]), min_size=n, max_size=n), max_size=12
        )
    )
)
def test_pairs_that_come_together_are_those_counted_one_by_one(rows: list[list[int]]) -> None:
    """Pairs are sorted by the share of images with either label; pairs never seen are left out."""
    names = "abcdef"[: len(rows[0]) if rows else 0]
    pairs = []
    for a, b in itertools.combinations(range(len(names)), 2):
        both = sum(row[a] == row[b] == 1 for row in rows)
        either = sum(1 in (row[a], row[b]) for row in rows)
        if both:
            share = round(both / either, 4)
            pairs.append({"labels": [names[a], names[b]], "images": both, "share": share})
    found = find_label_pairs(side(" ".join(names), *rows))
    assert found == sorted(pairs, key=lambda pair: -float(str(pair["share"])))


def test_fifty_pairs_are_enough() -> None:
    """Twenty labels that always occur together have 190 pairs: 50 are returned."""
    labels = " ".join(map(str, range(20)))
    assert len(find_label_pairs(side(labels, [1] * 20, [0] * 20))) == 50
