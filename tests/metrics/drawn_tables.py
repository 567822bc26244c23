"""Tables of scores that are drawn at random, for the tests of resampling."""

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from score_cases import table

from mlfinetune.metrics.types import ScoreTable

thorough = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)


def drawn(images: int, labels: int, seed: int, share: float = 0.2) -> ScoreTable:
    """Return logits that tell a good part of the targets."""
    random = np.random.default_rng(seed)
    targets = (random.random((images, labels)) < share).astype(np.int8)
    logits = (2 * targets + random.normal(size=targets.shape)).astype(np.float32)
    return table(targets, logits)


def noisier(scores: ScoreTable, noise: float, seed: int) -> ScoreTable:
    """Add noise to the logits: equal images, a worse model."""
    random = np.random.default_rng(seed)
    logits = scores.logits + noise * random.normal(size=scores.logits.shape)
    return replace(scores, logits=logits.astype(np.float32))


@st.composite
def tables(draw: st.DrawFn, states: tuple[int, ...] = (0, 1, -1)) -> ScoreTable:
    """1 to 25 images, 1 to 4 labels, from all tied to all apart."""
    shape = draw(st.tuples(st.integers(1, 25), st.integers(1, 4)))
    steps = draw(st.sampled_from((0, 1, 20)))
    levels = draw(arrays(np.int8, shape, elements=st.integers(-steps, steps)))
    targets = draw(arrays(np.int8, shape, elements=st.sampled_from(states)))
    return table(targets, levels.astype(np.float32) / 4)


def copied(scores: ScoreTable, copies: int) -> ScoreTable:
    """Return a table with `copies` of each image, which are one group."""
    rows = np.repeat(np.arange(len(scores.names)), copies)
    names = tuple(f"{place}-{row}.jpg" for place, row in enumerate(rows))
    return replace(
        scores, names=names, logits=scores.logits[rows], targets=scores.targets[rows], groups=rows
    )
