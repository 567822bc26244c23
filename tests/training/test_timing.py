"""Choices that follow from measurements: batch sizes, processes, and what to say of a run."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlfinetune.training.bottleneck import (
    Passes,
    Speeds,
    Work,
    choose_way,
    describe_freezing,
    estimate_times,
    find_bottleneck,
    suggest_change,
)
from mlfinetune.training.timing import (
    MAX_CALLS,
    MIN_BATCH,
    MIN_EPOCH_STEPS,
    MIN_SPEEDUP,
    PREFERRED_BATCH,
    choose_fastest_size,
    choose_workers_beside_cpu,
    choose_workers_for_gpu,
    compare_rates,
    find_largest_batch_size,
    find_largest_power,
    time_rate,
)

POWERS = st.integers(0, 12).map(lambda n: 2**n)
RATES = st.floats(0.1, 1e6)
SPEEDS = Speeds(1000.0, None, 300.0, 100.0, None, None, 1e6)
WORK = Work(
    train=1000,
    val=200,
    epochs=10,
    batch_size=32,
    workers=1,
    cores=2,
    gpu=False,
    frozen=False,
    views=0,
    decodings=0,
    copies_off=True,
    slow_type=False,
    pretrained=False,
)
ONCE = replace(WORK, frozen=True, views=2, decodings=1)
FEATURES = replace(SPEEDS, step=None, head=5000.0)


@given(limit=st.integers(0, 5000), sizes=st.tuples(POWERS, POWERS).map(sorted))
@example(limit=0, sizes=[8, 512])
def test_the_largest_power_that_fits_is_found(limit: int, sizes: list[int]) -> None:
    """Whatever fits, the answer is the largest power of two up to the top that does."""
    start, top = sizes
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= limit

    best = max((2**n for n in range(13) if 2**n <= min(limit, top)), default=0)
    assert find_largest_power(fits, start, top) == best
    assert len(asked) == len(set(asked))
    assert sum(size > limit for size in asked[:-1]) == 0 or asked == sorted(asked, reverse=True)


@given(images=st.integers(1, 10**7), top=st.sampled_from([8, 64, 512]))
def test_an_epoch_keeps_its_steps(images: int, top: int) -> None:
    """A power of two, up to the top, that leaves 20 steps; 8 where the data are too few."""
    size = find_largest_batch_size(images, top)
    assert MIN_BATCH <= size <= top
    assert size & (size - 1) == 0
    assert size == MIN_BATCH or images // size >= MIN_EPOCH_STEPS
    assert size == top or images // (2 * size) < MIN_EPOCH_STEPS


@given(found=st.dictionaries(st.sampled_from([16, 32, 64]), RATES).map(lambda d: {8: 1.0} | d))
def test_the_best_batch_size_is_near_the_fastest(found: dict[int, float]) -> None:
    """Within 5 % of the fastest; the preferred size wherever that is so."""
    size, fastest = choose_fastest_size(found), max(found.values())
    assert found[size] >= (1 - MIN_SPEEDUP) * fastest
    if found.get(PREFERRED_BATCH, 0) >= (1 - MIN_SPEEDUP) * fastest:
        assert size == PREFERRED_BATCH


@given(work=RATES, decoded=RATES, cores=st.integers(1, 256))
def test_processes_are_enough_and_never_more(work: float, decoded: float, cores: int) -> None:
    """They decode as fast as the model works, with room to spare, unless cores run out."""
    number = choose_workers_for_gpu(work, decoded, cores)
    assert 1 <= number <= cores
    assert number == cores or number * decoded >= work
    assert number == 1 or (number - 1) * decoded <= 1.5 * work


@given(work=RATES, decoded=RATES, cores=st.integers(1, 256))
def test_processes_beside_a_model_take_their_share(work: float, decoded: float, cores: int) -> None:
    """No other number of processes gives more images a second from the same cores."""

    def seconds(number: int) -> float:
        return max(1 / decoded / number, 1 / work + 1 / decoded / cores)

    number = choose_workers_beside_cpu(work, decoded, cores)
    assert 1 <= number <= cores
    assert seconds(number) <= min(map(seconds, range(1, cores + 1))) * (1 + 1e-9)
    assert number == 1 or seconds(number - 1) > seconds(number)


def test_pace_is_the_median_without_the_first_call() -> None:
    """The warm-up counts nothing; three calls are timed, or as many as there is time for."""
    calls: list[int] = []

    def act() -> int:
        calls.append(1)
        return 10

    assert time_rate(act, 0.0) > 0
    assert len(calls) == 1 + 3
    assert time_rate(act, 60.0) > 0
    assert len(calls) == 1 + 3 + 1 + MAX_CALLS


def test_sizes_are_timed_in_turns() -> None:
    """One warm-up each, then three rounds over all sizes."""
    calls: list[int] = []

    def step(size: int) -> int:
        calls.append(size)
        return size

    assert set(compare_rates([8, 16], step, lambda: None)) == {8, 16}
    assert calls == [8, 16] * 4


# ---- what is said of a run --------------------------------------------------------------


@pytest.mark.parametrize(
    ("speeds", "work", "wanted"),
    [
        (SPEEDS, WORK, "step"),
        (replace(SPEEDS, loader=50.0), WORK, "loader"),
        (replace(SPEEDS, copy=90.0), replace(WORK, gpu=True), "copy"),
        (FEATURES, ONCE, "forward"),
        (replace(FEATURES, loader=100.0), ONCE, "loader"),
    ],
)
def test_the_slowest_stage_is_the_bound(speeds: Speeds, work: Work, wanted: str) -> None:
    """The stage of the fewest images a second; views share a decoding."""
    assert find_bottleneck(speeds, work) == wanted


def test_times_are_those_of_arithmetic() -> None:
    """Decoding beside a GPU is free, on a CPU it takes its share of the cores, else its turn."""
    gpu, alone = replace(WORK, gpu=True), replace(WORK, workers=0)
    assert estimate_times(SPEEDS, gpu).epoch == pytest.approx(1000 / 100 + 200 / 300)
    assert estimate_times(SPEEDS, WORK).epoch == pytest.approx(
        1000 * 0.0105 + 200 * (1 / 300 + 0.0005)
    )
    assert estimate_times(SPEEDS, alone).epoch == pytest.approx(
        1000 * 0.011 + 200 * (1 / 300 + 0.001)
    )


def test_each_view_of_validation_is_a_forward_pass() -> None:
    """Two views of one decoding; training's times stay."""
    twice = replace(WORK, gpu=True, eval_views=2)
    assert estimate_times(SPEEDS, twice).epoch == pytest.approx(1000 / 100 + 200 * 2 / 300)
    found = estimate_times(FEATURES, replace(ONCE, gpu=True, eval_views=2))
    assert found.once == pytest.approx(1000 * 2 / 300 + 200 * 2 / 300)


def test_a_solved_head_costs_its_features() -> None:
    """It is paid once for each of the heads; an epoch stays as it is."""
    work = replace(WORK, gpu=True)
    found = estimate_times(SPEEDS, replace(work, solutions=2))
    assert found.once == pytest.approx(2 * (1000 / 300 + 200 / 300))
    assert found.epoch == estimate_times(SPEEDS, work).epoch
    assert estimate_times(SPEEDS, work).once == 0


def test_features_are_paid_once_and_passes_are_cheap() -> None:
    """Two views are two forward passes of one decoding; an epoch is the head's alone."""
    found = estimate_times(FEATURES, replace(ONCE, gpu=True))
    assert found.once == pytest.approx(1000 * 2 / 300 + 200 / 300)
    assert found.epoch == pytest.approx(1000 / 5000)


@pytest.mark.parametrize(
    ("speeds", "work", "starts"),
    [
        (replace(SPEEDS, loader=50.0), replace(WORK, gpu=True, val=0), "train.workers: 2, "),
        (replace(SPEEDS, loader=5e3), replace(WORK, workers=0, gpu=True), "none"),
        (replace(SPEEDS, loader=100.0), replace(WORK, workers=0, val=0), "train.workers: 1, "),
        (replace(SPEEDS, loader=50.0), replace(WORK, gpu=True, workers=2), "data.cache_images"),
        (replace(SPEEDS, loader=99.0), replace(WORK, cores=1, copies_off=False), "none"),
        (SPEEDS, replace(WORK, slow_type=True), "train.precision: bfloat16"),
        (replace(SPEEDS, larger=130.0), replace(WORK, gpu=True), "train.batch_size: 64"),
        (replace(SPEEDS, larger=105.0), replace(WORK, gpu=True), "none"),
        (SPEEDS, replace(WORK, frozen=True), "train.cache_features: auto"),
        (
            SPEEDS,
            replace(WORK, pretrained=True),
            "model.freeze_backbone: true, for a run about 11 t",
        ),
        (
            SPEEDS,
            replace(WORK, pretrained=True, solutions=1, obstacles=("train.solve_head_first",)),
            "model.freeze_backbone: true (without train.solve_head_first), for a run about 12 t",
        ),
        (SPEEDS, replace(WORK, pretrained=True, epochs=1), "none"),
        (SPEEDS, replace(WORK, pretrained=True, train=20, val=5), "none"),
        (SPEEDS, replace(WORK, pretrained=True, gpu=True), "none"),
        (SPEEDS, replace(WORK, pretrained=True, gpu=True, epochs=99), "model.freeze_backbone"),
        (SPEEDS, replace(WORK, epochs=1000), "none"),
        (SPEEDS, WORK, "none"),
        (FEATURES, ONCE, "none"),
    ],
)
def test_the_suggestion_follows_from_the_numbers(speeds: Speeds, work: Work, starts: str) -> None:
    """One change, for the stage that holds the run back, or none."""
    assert suggest_change(speeds, work).startswith(starts)


def test_a_cpu_is_told_of_freezing_where_it_gains() -> None:
    """The ratio is that of the run's own passes; one epoch gains too little."""
    assert " 26 times less " in describe_freezing(Passes(800, 200, 10))
    assert " 27 times less " in describe_freezing(Passes(800, 200, 10, solutions=1))
    assert describe_freezing(Passes(800, 200, 1)) == ""
    assert describe_freezing(Passes(0, 0, 10)) == ""


@pytest.mark.parametrize(
    ("images", "labels", "gpu", "key"),
    [
        (200, 5, False, "model.freeze_backbone"),
        (10**6, 10**4, False, "model.freeze_backbone"),
        (200, 5, True, "train.solve_head_first"),
        (10**6, 5, True, None),
        (200, 10**4, True, None),
    ],
)
def test_the_way_to_train_suits_pictures_and_machine(
    images: int, labels: int, gpu: bool, key: str | None
) -> None:
    """The head alone without a GPU; with one a solved head to start from, unless that is much."""
    chosen, why = choose_way(Passes(images, images // 4, 10), labels, gpu)
    assert chosen == key
    assert ("no GPU here" if not gpu else "a GPU here") in why


def test_the_reason_of_the_way_counts_right() -> None:
    """One epoch is one, and its work is not rounded down to that of freezing."""
    _, why = choose_way(Passes(80, 40, 1), 4, gpu=False)
    assert why == "no GPU here: 2.3 times less work than 1 epoch of all layers"


@given(
    speeds=st.builds(
        Speeds, RATES, st.none() | RATES, RATES, RATES, st.none() | RATES, RATES, RATES
    ),
    flags=st.sampled_from(list(product([False, True], repeat=3))),
    counts=st.tuples(st.integers(1, 10**6), st.integers(0, 32), st.integers(1, 32)),
)
def test_something_is_said_of_every_run(
    speeds: Speeds, flags: tuple[bool, bool, bool], counts: tuple[int, int, int]
) -> None:
    """One line, and times that are positive, whatever was measured."""
    gpu, frozen, once = flags
    (images, workers, cores) = counts
    work = replace(WORK, train=images, workers=workers, cores=cores, gpu=gpu, frozen=frozen)
    if once:
        work, speeds = replace(work, frozen=True, views=3, decodings=2), replace(speeds, step=None)
    assert estimate_times(speeds, work).epoch > 0
    assert "\n" not in suggest_change(speeds, work)
    assert getattr(speeds, find_bottleneck(speeds, work)) is not None
