"""Batches: their order, their content, and that worker processes change only the speed."""

import itertools
import multiprocessing
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.dataset import ImageDataset, mix_seed
from mlfinetune.data.batches.loader import (
    BatchShare,
    Loader,
    cut_batches,
    stream_batches,
)
from mlfinetune.data.batches.sampling import Factors, draw_order, shuffle_order
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.targets import LabelSpace, Targets

N = 11
FACTORS = np.array([1.0] * 8 + [2.0, 3.0, 4.0])
PLAIN = TransformSpec(image_size=16, resize="squash", max_pixels=10_000)
AUGMENTED = TransformSpec(
    image_size=16,
    resize="squash",
    max_pixels=10_000,
    crop_scale=(0.3, 1.0),
    horizontal_flip=0.5,
    color_jitter=0.4,
    rand_augment=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make eleven small pictures of noise, 0.png to 10.png, and files that are none."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(N):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
    (root / "text.png").write_text("no picture")
    (root / "cut.png").write_bytes((root / "0.png").read_bytes()[:300])
    (root / "folder.png").mkdir()
    Image.new("RGB", (200, 100)).save(root / "large.png")
    return root


def manifest(folder: Path, *names: str) -> Manifest:
    """Return the pictures named, or all eleven; the targets of row i are the bits of i."""
    names = names or tuple(f"{i}.png" for i in range(N))
    targets = np.array([[i >> bit & 1 for bit in range(4)] for i in range(len(names))], np.int8)
    return Manifest(folder, names, Targets.pack([targets], 4), LabelSpace(("a", "b", "c", "d")))


def loader(
    examples: Manifest,
    spec: TransformSpec = AUGMENTED,
    workers: int = 0,
    train_seed: int | None = 0,
    batch_size: int = 3,
    factors: Factors | None = None,
) -> Loader:
    """Return a Loader of small batches."""
    return Loader(
        examples,
        spec,
        batch_size=batch_size,
        workers=workers,
        train_seed=train_seed,
        pin_memory=False,
        factors=factors,
    )


def indices(batches: Iterator[Batch]) -> list[list[int]]:
    """Return the indices of each batch."""
    return [batch.indices.tolist() for batch in batches]


def same(one: Batch, two: Batch) -> bool:
    """Return whether two batches are equal to the bit."""
    return (
        torch.equal(one.images, two.images)
        and torch.equal(one.targets, two.targets)
        and torch.equal(one.indices, two.indices)
        and one.failures == two.failures
    )


# ---- order ------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 200), st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_the_order_is_a_permutation_and_a_function_of_seed_and_epoch(
    n: int, seed: int, epoch: int
) -> None:
    """Every example once; the same arguments, the same order."""
    order = shuffle_order(n, seed, epoch)
    assert sorted(order) == list(range(n))
    assert order == shuffle_order(n, seed, epoch)


def test_orders_differ_between_epochs_and_seeds() -> None:
    """No two of a hundred are the same."""
    orders = {tuple(shuffle_order(50, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_the_order_neither_reads_nor_moves_the_global_generator() -> None:
    """The order is drawn from a generator of its own."""
    torch.manual_seed(1)
    first, state = shuffle_order(50, 0, 0), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert shuffle_order(50, 0, 0) == first


@pytest.mark.parametrize(
    ("n", "size", "lengths"),
    [
        (9, 3, [3, 3, 3]),
        (10, 3, [3, 3, 4]),
        (11, 3, [3, 3, 3, 2]),
        (4, 3, [4]),
        (3, 2, [3]),
        (1, 3, [1]),
        (3, 1, [1, 1, 1]),
        (2, 100, [2]),
        (0, 3, []),
    ],
)
def test_a_lone_last_example_joins_the_batch_before(n: int, size: int, lengths: list[int]) -> None:
    """Two or more stay a batch; one alone is none, unless there is no other."""
    batches = cut_batches(list(range(n)), size)
    assert [len(batch) for batch in batches] == lengths
    assert list(itertools.chain(*batches)) == list(range(n))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 10, 100])
def test_every_example_comes_once_an_epoch(folder: Path, batch_size: int) -> None:
    """In the order of the epoch, in as many steps as the loader says."""
    batches = loader(manifest(folder), PLAIN, batch_size=batch_size, train_seed=7)
    for epoch in range(2):
        seen = indices(batches.epoch(epoch))
        assert list(itertools.chain(*seen)) == shuffle_order(N, 7, epoch)
        assert len(seen) == batches.steps


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_keeps_the_order_and_the_pictures(folder: Path, workers: int) -> None:
    """Without a seed nothing is shuffled and nothing is drawn, whatever the spec says."""
    batches = loader(manifest(folder), AUGMENTED, workers, train_seed=None)
    first, second = list(batches.epoch()), list(batches.epoch(1))
    assert indices(iter(first)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
    assert all(map(same, first, second))


# ---- what a batch holds -----------------------------------------------------------------


def test_a_batch_holds_uint8_pictures_int8_targets_and_int64_indices(folder: Path) -> None:
    """Each picture with its own target, whatever the order."""
    examples = manifest(folder)
    for batch in loader(examples, PLAIN).epoch():
        assert batch.images.shape == (len(batch.indices), 3, 16, 16)
        assert batch.targets.shape == (len(batch.indices), 4)
        dtypes = (batch.images.dtype, batch.targets.dtype, batch.indices.dtype)
        assert dtypes == (torch.uint8, torch.int8, torch.int64)
        assert (batch.targets.numpy() == examples.targets[batch.indices]).all()


def test_pictures_stand_beside_their_indices(folder: Path) -> None:
    """The picture at a place of the batch is the one of that index."""
    examples = manifest(folder)
    dataset = ImageDataset(PLAIN)
    for batch in loader(examples, PLAIN, train_seed=None).epoch():
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            wanted = dataset[0, index, examples.path(index)].image
            assert wanted is not None
            assert torch.equal(image, wanted)


def test_unknown_targets_pass_through(folder: Path) -> None:
    """-1 is still -1 in the batch."""
    examples = manifest(folder)
    states = examples.targets[:]
    states[3] = [1, -1, 0, -1]
    examples = replace(examples, targets=Targets.pack([states], 4))
    batch = next(loader(examples, PLAIN, train_seed=None, batch_size=5).epoch())
    assert batch.targets[3].tolist() == [1, -1, 0, -1]


# ---- worker processes -------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "factors"), [(1, FACTORS), (2, None)])
def test_worker_processes_change_nothing(
    folder: Path, workers: int, factors: Factors | None
) -> None:
    """Batches of two epochs, with every augmentation on, are the same to the bit."""
    torch.manual_seed(1)
    alone = loader(manifest(folder), factors=factors)
    batches = [batch for epoch in range(2) for batch in alone.epoch(epoch)]
    torch.manual_seed(2)
    helped = loader(manifest(folder), workers=workers, factors=factors)
    others = [batch for epoch in range(2) for batch in helped.epoch(epoch)]
    assert len(batches) == len(others) == 8
    assert all(map(same, batches, others))


def test_augmentation_differs_between_epochs_and_seeds(folder: Path) -> None:
    """Each epoch and each seed draws a new version of a picture."""
    pictures = set()
    for seed, epoch in itertools.product(range(2), range(3)):
        for batch in loader(manifest(folder), train_seed=seed).epoch(epoch):
            pictures |= {image.numpy().tobytes() for image in batch.images}
    assert len(pictures) == 6 * N


def test_augmentation_differs_between_the_pictures_of_an_epoch(folder: Path) -> None:
    """One file in eight rows is drawn in eight ways."""
    [batch] = loader(manifest(folder, *["0.png"] * 8), batch_size=8).epoch()
    assert len({image.numpy().tobytes() for image in batch.images}) == 8


def test_a_picture_drawn_again_is_augmented_anew(folder: Path) -> None:
    """An epoch has as many draws as pictures, and no two are the same pixels."""
    examples = manifest(folder)
    batches = list(loader(examples, factors=FACTORS).epoch(1))
    rows = [draw % N for draw in draw_order(N, 0, 1, FACTORS)]
    assert len(set(rows)) < len(rows) == N
    assert list(itertools.chain(*indices(iter(batches)))) == rows
    assert len({image.numpy().tobytes() for batch in batches for image in batch.images}) == N
    for batch in batches:
        assert torch.equal(batch.targets, torch.from_numpy(examples.targets[batch.indices.numpy()]))


def test_an_epoch_does_not_depend_on_those_before_it(folder: Path) -> None:
    """A resumed run sees what the whole run would have seen."""
    whole, resumed = loader(manifest(folder)), loader(manifest(folder))
    for epoch in range(2):
        list(whole.epoch(epoch))
    assert all(map(same, whole.epoch(2), resumed.epoch(2)))


def test_the_global_generators_are_left_alone(folder: Path) -> None:
    """In this process, with augmentation on; dropout draws what it would have drawn."""
    batches = loader(manifest(folder))
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), repr(np.random.get_state())
    for epoch in range(2):
        list(batches.epoch(epoch))
    assert torch.equal(before, torch.get_rng_state())
    assert repr(np.random.get_state()) == numpy_before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_left_early_does_not_spoil_the_next(folder: Path, workers: int) -> None:
    """No batch that was under way is seen later."""
    batches = loader(manifest(folder), workers=workers, batch_size=2)
    next(batches.epoch(0))
    assert list(itertools.chain(*indices(batches.epoch(1)))) == shuffle_order(N, 0, 1)


# ---- pictures that cannot be decoded ----------------------------------------------------

BAD = {
    "text.png": "not a JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF picture",
    "cut.png": "cannot be decoded (image file is truncated",
    "folder.png": "not a regular file",
    "none.png": "no such file",
    "large.png": "200 x 100 pixels, more than data.max_pixels (10,000) allows",
}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_is_a_failure_and_the_others_are_intact(folder: Path, workers: int) -> None:
    """Its index and the reason are kept; no other picture takes its place."""
    names = [name for i, bad in enumerate(BAD) for name in (f"{i}.png", bad)]
    bad = manifest(folder, *names)
    good = list(loader(manifest(folder, *names[::2]), PLAIN, train_seed=None).epoch())
    [batch] = loader(bad, PLAIN, workers, train_seed=None, batch_size=10).epoch()
    assert batch.indices.tolist() == [0, 2, 4, 6, 8]
    assert torch.equal(batch.images, torch.cat([other.images for other in good]))
    assert (batch.targets.numpy() == bad.targets[::2]).all()
    assert [failure.index for failure in batch.failures] == [1, 3, 5, 7, 9]
    for failure, reason in zip(batch.failures, BAD.values(), strict=True):
        assert failure.reason.startswith(reason)


def test_a_bad_picture_in_training_does_not_move_the_others(folder: Path) -> None:
    """Each picture's augmentation is its own."""
    names = [f"{i}.png" for i in range(6)]
    whole = loader(manifest(folder, *names), batch_size=6).epoch(1)
    holed = loader(manifest(folder, *names[:3], "text.png", *names[4:]), batch_size=6).epoch(1)
    [one], [two] = whole, holed
    kept = one.indices != 3
    assert two.indices.tolist() == one.indices[kept].tolist()
    assert torch.equal(two.images, one.images[kept])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_of_bad_pictures_holds_failures_alone(folder: Path, workers: int) -> None:
    """Its tensors are empty, and the next batch is as ever."""
    examples = manifest(folder, "text.png", "none.png", "0.png", "1.png")
    batches = loader(examples, PLAIN, workers, train_seed=None, batch_size=2)
    bad, good = batches.epoch()
    assert (len(bad.images), len(bad.targets), len(bad.indices)) == (0, 0, 0)
    assert (bad.images.dtype, bad.targets.dtype) == (torch.uint8, torch.int8)
    assert [failure.index for failure in bad.failures] == [0, 1]
    assert (good.indices.tolist(), good.failures) == ([2, 3], ())


def test_a_batch_of_bad_pictures_still_has_its_label_columns(folder: Path) -> None:
    """(0, L) targets: batches can be joined without a special case."""
    batch = next(loader(manifest(folder, "text.png", "none.png"), PLAIN).epoch())
    assert batch.targets.shape == (0, 4)


# ---- paths without end ------------------------------------------------------------------


def counted(paths: Iterator[str], taken: list[str]) -> Iterator[str]:
    """Yield the paths; `taken` holds those that were asked for so far."""
    for path in paths:
        taken.append(path)
        yield path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_keeps_the_order_of_its_paths(folder: Path, workers: int) -> None:
    """Each batch comes with its own paths, and its indices count from the first of them."""
    paths = [str(folder / f"{i}.png") for i in (5, 2, 2, 9, 0, 1, 7)]
    batches = list(stream_batches(paths, PLAIN, batch_size=3, workers=workers, pin_memory=False))
    assert [names for names, _ in batches] == [paths[:3], paths[3:6], paths[6:]]
    assert [batch.indices.tolist() for _, batch in batches] == [[0, 1, 2], [0, 1, 2], [0]]
    [whole] = loader(manifest(folder), PLAIN, train_seed=None, batch_size=N).epoch()
    images = torch.cat([batch.images for _, batch in batches])
    assert torch.equal(images, whole.images[[5, 2, 2, 9, 0, 1, 7]])
    assert batches[0][1].targets.shape == (3, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_of_bad_pictures_stays_in_step(folder: Path, workers: int) -> None:
    """A batch that fails as a whole still comes, with its paths."""
    names = ["0.png", "none.png", "text.png", "cut.png", "1.png"]
    paths = [str(folder / name) for name in names]
    batches = list(stream_batches(paths, PLAIN, batch_size=2, workers=workers, pin_memory=False))
    assert [len(batch.indices) for _, batch in batches] == [1, 0, 1]
    failed = [names[f.index] for names, batch in batches for f in batch.failures]
    assert failed == paths[1:4]


@pytest.mark.parametrize(("workers", "ahead"), [(0, 0), (1, 3), (2, 5)])
def test_a_stream_reads_an_endless_input_as_it_goes(folder: Path, workers: int, ahead: int) -> None:
    """A few batches are under way, however many are to come."""
    taken: list[str] = []
    paths = counted(itertools.cycle(str(folder / f"{i}.png") for i in range(N)), taken)
    batches = stream_batches(paths, PLAIN, batch_size=2, workers=workers, pin_memory=False)
    for done in range(1, 30):
        names, batch = next(batches)
        assert names == taken[2 * done - 2 : 2 * done]
        assert len(batch.images) == 2
        assert len(taken) <= 2 * (done + ahead)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stream_waits_for_no_path_that_is_not_there(folder: Path, workers: int) -> None:
    """A batch that is not full comes when there is no next path, and before the next is asked."""
    waiting = 0

    def paths() -> Iterator[str | None]:
        nonlocal waiting
        for number in range(6):
            yield str(folder / f"{number % N}.png")
            if number in (0, 1, 4):  # nothing comes until the batch has been yielded
                waiting = 1
                while waiting:
                    yield None

    sizes = []
    for names, batch in stream_batches(
        paths(), PLAIN, batch_size=2, workers=workers, pin_memory=False
    ):
        waiting = 0
        assert len(names) == len(batch.images)
        sizes.append(len(names))
    assert sizes == [1, 1, 2, 1, 1]


def test_a_stream_that_is_left_ends_its_workers(folder: Path) -> None:
    """Nothing but letting go of it is needed."""
    others = set(multiprocessing.active_children())
    paths = itertools.cycle([str(folder / "0.png")])
    batches = stream_batches(paths, PLAIN, batch_size=2, workers=2, pin_memory=False)
    next(batches)
    workers = set(multiprocessing.active_children()) - others
    del batches
    assert len(workers) == 2
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_of_nothing_is_nothing(workers: int) -> None:
    """No path, no batch."""
    assert not list(stream_batches([], PLAIN, batch_size=2, workers=workers, pin_memory=False))


# ---- seeds ------------------------------------------------------------------------------


def test_a_mixed_seed_is_the_same_everywhere() -> None:
    """Pinned: a changed value would change every run."""
    assert mix_seed(0, 1, 2) == 4450782424123420391
    assert mix_seed(2**63 - 1, -1) == 5236999076711318332


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4), st.data())
def test_a_mixed_seed_differs_in_each_argument(numbers: list[int], data: st.DataObject) -> None:
    """One changed number changes the seed, which torch takes."""
    at = data.draw(st.integers(0, len(numbers) - 1))
    other = data.draw(st.integers(-(2**63), 2**63 - 1).filter(lambda n: n != numbers[at]))
    changed = [*numbers[:at], other, *numbers[at + 1 :]]
    assert mix_seed(*numbers) != mix_seed(*changed)
    assert 0 <= mix_seed(*numbers) < 2**63
    torch.Generator().manual_seed(mix_seed(*numbers))


def test_a_mixed_seed_knows_order_and_count() -> None:
    """Epoch 1 of seed 0 is not epoch 0 of seed 1."""
    seeds = [
        mix_seed(),
        mix_seed(0),
        mix_seed(0, 0),
        mix_seed(0, 1),
        mix_seed(1, 0),
        mix_seed(0, 1, 0),
        mix_seed(0, 0, 1),
    ]
    assert len(set(seeds)) == len(seeds)


def test_datasets_reach_workers_that_are_not_forked(tmp_path: Path) -> None:
    """macOS and Python 3.14 pickle the dataset for their workers: the copy gives the same."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    transform = TransformSpec(32, "pad", 10**6, crop_scale=(0.3, 1.0))
    for dataset in (ImageDataset(transform, 3), ImageDataset(transform)):
        copy, key = pickle.loads(pickle.dumps(dataset)), (1, 0, str(tmp_path / "a.png"))
        assert torch.equal(copy[key].image, dataset[key].image)


def test_workers_are_given_no_manifest(folder: Path) -> None:
    """A worker that is not forked unpickles little, for any number of images."""
    many = loader(manifest(folder, *(f"{i}.png" for i in range(50_000))))
    assert len(pickle.dumps(many._dataset)) < 2_000


@given(
    n=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    size=st.integers(1, 5),
    pieces=st.integers(1, 4),
)
def test_shares_of_a_batch_are_all_of_it(n: int, batch_size: int, size: int, pieces: int) -> None:
    """Each once; and the pieces that fit cuts shares into are shares of one process's pieces."""
    for batch in cut_batches(shuffle_order(n, 0, 0), batch_size):
        shares = [BatchShare(rank, size, pieces).select(batch) for rank in range(size)]
        assert sorted(itertools.chain(*shares)) == sorted(batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= pieces
        count = min(pieces, len(batch))
        whole = torch.tensor(batch).tensor_split(count)
        parts = [torch.tensor(share, dtype=torch.int64).tensor_split(count) for share in shares]
        for at, piece in enumerate(whole):
            assert sorted(torch.cat([part[at] for part in parts]).tolist()) == sorted(
                piece.tolist()
            )


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 11])
def test_processes_share_an_evaluation(folder: Path, size: int, batch_size: int) -> None:
    """Whole batches, those of one process, each in one; all know what all look at."""
    examples = manifest(folder)

    def batches(rank: int, size: int) -> list[Batch]:
        share = BatchShare(rank, size)
        found = Loader(
            examples,
            PLAIN,
            batch_size=batch_size,
            workers=0,
            train_seed=None,
            pin_memory=False,
            share=share,
        )
        assert found.steps == -(-len(cut_batches(list(range(N)), batch_size)) // size)
        return list(found.epoch())

    alone = [batch.indices.tolist() for batch in batches(0, 1)]
    together = [batches(rank, size) for rank in range(size)]
    for rank, own in enumerate(together):
        assert [batch.indices.tolist() for batch in own] == alone[rank::size]
    seen = [batch.step_indices for batch in together[0]]
    assert list(itertools.chain(*seen)) == list(range(N))


@pytest.mark.parametrize(("workers", "factors"), [(0, FACTORS), (2, None)])
def test_processes_share_training(folder: Path, workers: int, factors: Factors | None) -> None:
    """Ranks have the same pictures, augmented alike, from any step on; a share may be empty."""
    examples = manifest(folder)

    def batches(rank: int, size: int, first: int = 0) -> list[Batch]:
        found = Loader(
            examples,
            AUGMENTED,
            batch_size=4,
            workers=workers,
            train_seed=0,
            pin_memory=False,
            share=BatchShare(rank, size),
            factors=factors,
        )
        return list(found.epoch(1, first))

    for first in (0, 1):
        alone = batches(0, 1, first)
        for size in (5,) if workers else (3, 5):
            shares = [batches(rank, size, first) for rank in range(size)]
            for at, whole in enumerate(alone):
                parts = [share[at] for share in shares]
                assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)
                assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
                assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
                assert {part.step_indices for part in parts} == {tuple(whole.indices.tolist())}
