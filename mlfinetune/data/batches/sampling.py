"""Rows of an epoch, in an order that depends on (seed, epoch) alone; balanced sampling.

    targets                  -> compute_repeat_factors -> (N,) factors: pictures of rare labels > 1
    N, seed, epoch           -> draw_order             -> every picture once
    N, seed, epoch, factors  -> draw_order             -> N draws, in proportion to the factors

A draw is one number: row + N * (how often the epoch has drawn that row before). `split_draw` gives
row and version of the picture, so that each time it is drawn it is augmented differently.

Factors are those of repeat factor sampling (Gupta et al. 2019, LVIS): a label of frequency f asks
for max(1, sqrt(t / f)), and a picture has the largest factor of its positive labels. LVIS has a
fixed t, a thousandth of the pictures; here t is the mean frequency of the labels, which means the
same for ten labels and for ten thousand.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from mlfinetune.data.batches.dataset import mix_seed
from mlfinetune.data.targets import Targets
from mlfinetune.text import pluralize

Factors = NDArray[np.float64]
"""(N,) repeat factor of each picture: at least 1."""

MAX_FACTOR = 4.0
"""Largest factor: a label of one picture must not fill the epochs with it."""

_VERSIONS = 2**32
"""Epochs have smaller numbers than this."""


def shuffle_order(n: int, seed: int, epoch: int) -> list[int]:
    """Return a random order of n examples for an epoch: a permutation of 0 .. n - 1."""
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    order: list[int] = torch.randperm(n, generator=generator).tolist()
    return order


def draw_order(n: int, seed: int, epoch: int, factors: Factors | None = None) -> list[int]:
    """Return the n draws of an epoch, in random order.

    Args:
        n: number of pictures.
        factors: draws are in proportion to these; None: each picture is drawn once.
    """
    order = shuffle_order(n, seed, epoch)
    if factors is None:
        return order
    counts = _draw_counts(factors, mix_seed(seed, epoch, 0))
    rows = np.repeat(np.arange(n), counts)
    turns = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    draws: list[int] = (turns * n + rows)[order].tolist()
    return draws


def split_draw(draw: int, n: int, epoch: int) -> tuple[int, int]:
    """Return the row of a draw, and the version in which the epoch wants the picture.

    The first version of an epoch is its number; no two epochs and turns share a version.
    """
    turn, row = divmod(draw, n)
    return row, epoch + turn * _VERSIONS


def _draw_counts(factors: Factors, seed: int) -> NDArray[np.int64]:
    """Draw how often each picture comes in an epoch, (N,); the counts sum to N.

    Systematic sampling (Madow 1949): the pictures lie one after the other on a line, in random
    order, each as long as the number of draws that it is due, and the N draws are points at a
    distance of 1. So each count is that number, rounded up or down at random, and right on average.
    For example factors 1, 1, 2 are due 0.75, 0.75, 1.5 draws; counts are 1, 1, 1 or 1, 0, 2 or
    0, 1, 2.
    """
    generator = torch.Generator().manual_seed(seed)
    along = torch.randperm(len(factors), generator=generator).numpy()
    offset = float(torch.rand((), generator=generator, dtype=torch.float64))
    ends = np.cumsum(factors[along])  # one by one, so that all machines round alike
    passed = np.floor(ends * (len(factors) / ends[-1]) + offset).astype(np.int64)
    passed[-1] = len(factors)  # in spite of rounding
    counts = np.empty(len(factors), np.int64)
    counts[along] = np.diff(passed, prepend=0)
    return counts


def choose_factors(sampling: str, targets: Targets) -> Factors | None:
    """Return the factors of `train.sampling`; None of `uniform`: each picture comes once."""
    return compute_repeat_factors(targets) if sampling == "balanced" else None


def compute_repeat_factors(targets: Targets) -> Factors:
    """Return the (N,) repeat factors of the pictures, from 1 to MAX_FACTOR.

    Unknown targets are no positives. A picture without positives has a factor of 1.

    Source: Gupta et al. 2019, LVIS: A Dataset for Large Vocabulary Instance Segmentation.
    """
    by_label = _compute_label_factors(targets)
    factors = np.ones(len(targets))
    for start, block in targets.blocks(8 * len(by_label)):  # as float64
        wanted = np.where(block == 1, by_label, 1.0).max(axis=1, initial=1.0)
        factors[start : start + len(block)] = wanted
    return factors


def _compute_label_factors(targets: Targets) -> Factors:
    """Return the (L,) factor that each label asks for; 1 for a label without positives."""
    positives = targets.counts()[0].astype(np.float64)
    seen = positives > 0
    if not seen.any():
        return np.ones(len(positives))
    mean = positives[seen].mean()
    factors: Factors = np.sqrt(mean / np.where(seen, positives, mean)).clip(1.0, MAX_FACTOR)
    return factors


def describe_sampling(sampling: str, targets: Targets, weighs: bool = False) -> str:
    """Say in one line what `train.sampling` does to these examples; of `uniform` nothing.

    Args:
        sampling: `uniform` or `balanced`.
        targets: of the examples.
        weighs: pictures are not drawn: their loss is weighted, as L-BFGS needs it.
    """
    if sampling == "uniform":
        return ""
    factors = _compute_label_factors(targets)
    rare = int((factors > 1).sum())
    if not rare:
        return "balanced sampling: no label is rarer than others, each picture is drawn once"
    pictures = f"balanced sampling: pictures of {pluralize(rare, 'rare label')}"
    if weighs:
        return f"{pictures} weigh up to {factors.max():.1f} times as much in the loss as others"
    return (
        f"{pictures} are drawn up to {factors.max():.1f} times as often as those of frequent "
        f"labels alone"
    )
