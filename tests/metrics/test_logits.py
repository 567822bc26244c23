"""The sigmoid, its inverse, and thresholds that become logits: one place, bit for bit."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.special import expit
from scipy.special import logit as scipy_logit

from mlfinetune.metrics.logits import find_cuts, find_limits, logit, sigmoid
from mlfinetune.metrics.types import DecisionRule

PROBABILITIES = arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1))


@given(p=PROBABILITIES)
def test_cuts_do_not_depend_on_their_number(p: NDArray[np.float64]) -> None:
    """Of an array, of each number alone, and by the formula: the same bits."""
    with np.errstate(divide="ignore"):
        alone = [np.float32(np.log(one / (1 - one))) for one in p]
        whole = np.log(p / (1 - p)).astype(np.float32)
    assert find_cuts(p).tobytes() == whole.tobytes() == np.array(alone, np.float32).tobytes()
    assert find_cuts(p).dtype == np.float32


def test_cuts_of_the_ends() -> None:
    """0 is always reached, 1 never, and an even chance is a logit of 0."""
    cuts = find_cuts(np.array([0, 0.5, 1]))
    assert cuts.tolist() == [-np.inf, 0, np.inf]
    most = np.finfo(np.float32).max
    assert (np.array([-most, 0, most], np.float32) >= cuts).tolist() == [True, True, False]


@given(p=PROBABILITIES)
def test_only_a_threshold_of_one_is_never_reached(p: NDArray[np.float64]) -> None:
    """Not even by a probability of exactly 1, as a large logit has."""
    limits = find_limits(p)
    assert (limits[p < 1] == p[p < 1]).all()
    assert (limits[p >= 1] == np.inf).all()
    assert sigmoid(np.array([40], np.float32))[0] == 1.0
    rule = DecisionRule("fixed", (0.5, 1.0), "none", (1.0, 1.0), (0.0, 0.0))
    assert (np.ones(2) >= rule.limits).tolist() == [True, False]


@given(p=arrays(np.float64, 9, elements=st.floats(1e-300, 1 - 1e-9)))
def test_logit_is_the_inverse(p: NDArray[np.float64]) -> None:
    """And that of SciPy, but for the last digit."""
    np.testing.assert_allclose(logit(p), scipy_logit(p), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(sigmoid(logit(p)), p, rtol=1e-12)


@given(z=arrays(np.float32, 9, elements=st.floats(-200, 200, width=32)))
def test_sigmoid_is_that_of_scipy(z: NDArray[np.float32]) -> None:
    """But for the last digit, in float64."""
    assert sigmoid(z).dtype == np.float64
    np.testing.assert_allclose(sigmoid(z), expit(z.astype(np.float64)), rtol=4e-16, atol=1e-300)
