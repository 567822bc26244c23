"""Features of pictures: which are computed and stored, and that training would see the same."""

import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mlfinetune.config import Config
from mlfinetune.data.batches.feature_batches import FeatureLoader, Features, MeanFeatures
from mlfinetune.data.batches.features import (
    PLAIN_VIEW,
    FeatureExtractor,
    MissingRows,
    View,
    choose_views,
    compute_missing,
    find_missing,
)
from mlfinetune.data.batches.loader import Loader
from mlfinetune.data.batches.sampling import Factors
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Manifest, Splits
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.errors import DataError
from mlfinetune.models.inference import prepare_for_inference
from mlfinetune.models.tagger import Tagger
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.torchrun import DistInfo
from mlfinetune.storage.store import Store
from mlfinetune.training.features import build_extractor, build_feature_loaders, open_feature_store

N, SIDE, WIDTH, SEED = 11, 16, 5, 3
CPU = torch.device("cpu")
FACTORS = np.array([1.0] * 8 + [2.0, 3.0, 4.0])
MIRROR = View(mirrored=True)
SPEC = TransformSpec(SIDE, "squash", 10_000, crop_scale=(0.3, 1.0), horizontal_flip=0.5)
WEIGHTS = torch.randn(3 * SIDE * SIDE, WIDTH, generator=torch.Generator().manual_seed(0))


def embed(images: Tensor) -> Tensor:
    """Compute (B, 5) features of (B, 3, S, S) uint8, from every pixel and its place."""
    return images.flatten(1).float() @ WEIGHTS / 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make eleven pictures of noise, 0.png to 10.png."""
    for i in range(N):
        pixels = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return an empty store."""
    (tmp_path / "store").mkdir()
    return Store(tmp_path / "store")


def manifest(folder: Path, rows: Sequence[int] = range(N)) -> Manifest:
    """Return the pictures of these numbers; their targets are the bits of the number."""
    targets = np.array([[i >> bit & 1 for bit in range(4)] for i in rows], np.int8)
    names = tuple(f"{i}.png" for i in rows)
    return Manifest(folder, names, Targets.pack([targets], 4), LabelSpace(("a", "b", "c", "d")))


def extractor(
    spec: TransformSpec = SPEC, seed: int = SEED, dtype: torch.dtype = torch.float32
) -> FeatureExtractor:
    """Return an extractor with `embed`, for pictures that a real Loader reads."""

    def load(examples: Manifest, rows: list[int], view: View) -> Loader:
        train_seed = None if view.epoch is None else seed
        loader = pictures(examples, spec, train_seed, rows)
        return loader.epoch(view.epoch or 0)

    return FeatureExtractor(embed, WIDTH, dtype, load, spec, seed)


def pictures(
    examples: Manifest, spec: TransformSpec, seed: int | None, rows: list[int] | None = None
) -> Loader:
    """Return the pictures themselves, four at a time."""
    return Loader(
        examples, spec, batch_size=4, workers=0, train_seed=seed, pin_memory=False, rows=rows
    )


def complete(
    store: Store, examples: Manifest, looks: Sequence[View], maker: FeatureExtractor
) -> tuple[list[MissingRows], int]:
    """Compute the missing rows of the views; return the views, and the number of rows computed."""
    wanted = find_missing(store, examples, looks, maker)
    return wanted, sum(compute_missing(store, examples, wanted, maker))


def features(
    store: Store, examples: Manifest, look: View, maker: FeatureExtractor, room: int = 10**9
) -> Tensor:
    """Return (N, F) of one view."""
    [wanted], _ = complete(store, examples, (look,), maker)
    return Features(store, wanted, maker, CPU, room)[list(range(len(examples)))]


def seen(examples: Manifest, spec: TransformSpec, seed: int | None, epoch: int = 0) -> Tensor:
    """Return (N, F) of a Loader's pictures in this epoch, in the manifest's order."""
    batches = list(pictures(examples, spec, seed).epoch(epoch))
    order = torch.cat([batch.indices for batch in batches]).argsort()
    return torch.cat([embed(batch.images) for batch in batches])[order]


def reopened(store: Store) -> Store:
    """Return the store as the next process opens it."""
    return Store(store.folder)


def test_features_that_fit_nowhere_are_refused(folder: Path) -> None:
    """Before any is computed, without a cache too: the memory has a size as well."""
    wide = replace(extractor(), width=10**15)
    wanted = find_missing(Store(None), manifest(folder), (PLAIN_VIEW,), wide)
    with pytest.raises(DataError, match=r"keeping features needs .* set MLFINETUNE_CACHE to"):
        next(compute_missing(Store(None), manifest(folder), wanted, wide))


# ---- views ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "wanted", "expected"),
    [
        (SPEC, 1, [PLAIN_VIEW]),
        (SPEC, 2, [PLAIN_VIEW, MIRROR]),
        (SPEC, 4, [PLAIN_VIEW, MIRROR, View(epoch=2), View(epoch=3)]),
        (replace(SPEC, horizontal_flip=0.0), 3, [PLAIN_VIEW, View(epoch=1), View(epoch=2)]),
        (replace(SPEC, crop_scale=(1.0, 1.0)), 9, [PLAIN_VIEW, MIRROR]),
        (
            replace(SPEC, crop_scale=(1.0, 1.0), color_jitter=0.1),
            3,
            [PLAIN_VIEW, MIRROR, View(epoch=2)],
        ),
        (
            replace(SPEC, crop_scale=(1.0, 1.0), rand_augment=1),
            3,
            [PLAIN_VIEW, MIRROR, View(epoch=2)],
        ),
        (TransformSpec(SIDE, "squash", 10_000), 9, [PLAIN_VIEW]),
    ],
)
def test_views_are_those_that_differ(
    spec: TransformSpec, wanted: int, expected: list[View]
) -> None:
    """The picture, its mirror image where training flips, random ones where it crops or colours."""
    assert list(choose_views(spec, wanted)) == expected


def test_the_plain_view_is_what_evaluation_sees(folder: Path, store: Store) -> None:
    """Row by row, in the manifest's order."""
    examples = manifest(folder)
    torch.testing.assert_close(
        features(store, examples, PLAIN_VIEW, extractor()), seen(examples, SPEC, None)
    )


def test_the_mirrored_view_is_of_the_mirrored_picture(folder: Path, store: Store) -> None:
    """As if each picture had been mirrored on the disk."""
    (folder / "mirrored").mkdir()
    for i in range(N):
        with Image.open(folder / f"{i}.png") as image:
            flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        flipped.save(folder / "mirrored" / f"{i}.png")
    found = features(store, manifest(folder), MIRROR, extractor())
    torch.testing.assert_close(found, seen(manifest(folder / "mirrored"), SPEC, None))
    assert not torch.allclose(found, seen(manifest(folder), SPEC, None))


def test_a_random_view_is_what_training_sees_in_that_epoch(folder: Path, store: Store) -> None:
    """Crops and flips are those of (seed, epoch, index), whatever the order of the epoch."""
    examples, maker = manifest(folder), extractor()
    for epoch in (1, 2):
        found = features(store, examples, View(epoch=epoch), maker)
        torch.testing.assert_close(found, seen(examples, SPEC, SEED, epoch))
    assert not torch.allclose(found, seen(examples, SPEC, SEED, 1))


def test_a_random_view_in_part_is_the_same(folder: Path, store: Store) -> None:
    """If some rows are stored already, the others are still drawn as in training."""
    examples, maker, look = manifest(folder), extractor(), View(epoch=1)
    [wanted] = find_missing(store, examples, (look,), maker)
    some = replace(wanted, missing=wanted.missing[[1, 4, 10]])
    assert sum(compute_missing(store, examples, [some], maker)) == 3
    found = features(store, examples, look, maker)
    torch.testing.assert_close(found, seen(examples, SPEC, SEED, 1))


# ---- what is reused ---------------------------------------------------------------------

LOOKS = (PLAIN_VIEW, MIRROR, View(epoch=2))


def test_nothing_is_computed_twice(folder: Path, store: Store) -> None:
    """All of it once, then none, in this process and in the next."""
    examples, maker = manifest(folder), extractor()
    wanted, rows = complete(store, examples, LOOKS, maker)
    assert (rows, [len(one.missing) for one in wanted]) == (3 * N, [N] * 3)
    for again in (store, reopened(store)):
        wanted, rows = complete(again, examples, LOOKS, maker)
        assert (rows, [len(one.missing) for one in wanted]) == (0, [0] * 3)
        assert len(again) == 3 * N


@pytest.mark.parametrize("change", ["content", "size", "time"])
def test_a_changed_picture_is_computed_anew(folder: Path, store: Store, change: str) -> None:
    """That picture alone, in every view."""
    examples, maker = manifest(folder), extractor()
    complete(store, examples, LOOKS, maker)
    if change == "content":
        shutil.copyfile(folder / "9.png", folder / "4.png")
    elif change == "size":
        before = os.stat(folder / "4.png").st_mtime_ns
        with (folder / "4.png").open("ab") as file:
            file.write(b"\0")
        os.utime(folder / "4.png", ns=(0, before))
    else:
        os.utime(folder / "4.png", ns=(0, os.stat(folder / "4.png").st_mtime_ns + 1))
    wanted, rows = complete(store, examples, LOOKS, maker)
    assert ([one.missing.tolist() for one in wanted], rows) == ([[4]] * 3, 3)
    torch.testing.assert_close(
        features(store, examples, PLAIN_VIEW, maker), seen(examples, SPEC, None)
    )


def test_rows_belong_to_pictures_and_not_to_places(folder: Path, store: Store) -> None:
    """Another table with some of the pictures, in another order, finds each one's own row."""
    maker, others = extractor(), manifest(folder, [7, 2, 9])
    complete(store, manifest(folder), (PLAIN_VIEW, MIRROR), maker)
    _, rows = complete(store, others, (PLAIN_VIEW, MIRROR), maker)
    assert rows == 0
    torch.testing.assert_close(features(store, others, PLAIN_VIEW, maker), seen(others, SPEC, None))


def test_a_path_written_otherwise_is_the_same_picture(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative to another folder, and with steps up and down in it."""
    complete(store, manifest(folder), (PLAIN_VIEW,), extractor())
    (folder / "down").mkdir()
    monkeypatch.chdir(folder / "down")
    assert complete(store, manifest(Path("../down/..")), (PLAIN_VIEW,), extractor())[1] == 0


@pytest.mark.parametrize(
    "other",
    [
        extractor(replace(SPEC, crop_scale=(0.5, 1.0))),
        extractor(replace(SPEC, color_jitter=0.3)),
        extractor(replace(SPEC, rand_augment=1)),
        extractor(seed=SEED + 1),
    ],
)
def test_other_augmentation_reuses_what_is_not_random(
    folder: Path, store: Store, other: FeatureExtractor
) -> None:
    """The picture and its mirror image stay, random views are other ones."""
    complete(store, manifest(folder), LOOKS, extractor())
    wanted, rows = complete(store, manifest(folder), LOOKS, other)
    assert ([len(one.missing) for one in wanted], rows) == ([0, 0, N], N)


def test_more_views_compute_the_new_ones_alone(folder: Path, store: Store) -> None:
    """Mirror images beside pictures that are kept: nothing is computed or written twice."""
    examples, maker = manifest(folder), extractor()
    for looks in (LOOKS[:1], LOOKS[:2], LOOKS):
        _, rows = complete(store, examples, looks, maker)
        assert (rows, len(store)) == (N, N * len(looks))


def test_progress_counts_what_was_missing(folder: Path, store: Store) -> None:
    """Different rows are missing in different views."""
    examples, maker = manifest(folder), extractor()
    for look, part in ((PLAIN_VIEW, [0, 1, 2]), (MIRROR, [2, 3])):
        complete(store, manifest(folder, part), (look,), maker)
    wanted, rows = complete(store, examples, (PLAIN_VIEW, MIRROR), maker)
    assert rows == sum(len(one.missing) for one in wanted) == 2 * N - 5
    assert len(store) == 2 * N


# ---- files that are damaged -------------------------------------------------------------


def damage(store: Store, row: Tensor) -> None:
    """Change one byte of this row in its file."""
    value = row.numpy().tobytes()
    for path in store.folder.iterdir():
        content = path.read_bytes()
        path.write_bytes(content.replace(value, bytes([value[0] ^ 1]) + value[1:]))


@pytest.mark.parametrize("look", [PLAIN_VIEW, MIRROR])
def test_damage_is_noticed_and_repaired(folder: Path, store: Store, look: View) -> None:
    """Both views lie in one file: with it all of its rows are computed anew."""
    examples, maker, both = manifest(folder), extractor(), (PLAIN_VIEW, MIRROR)
    right = [features(store, examples, one, maker) for one in both]
    shutil.rmtree(store.folder)
    store.folder.mkdir()
    complete(Store(store.folder), examples, both, maker)
    damage(store, right[both.index(look)][5])
    again = reopened(store)
    wanted, rows = complete(again, examples, both, maker)
    assert (again.damaged, rows) == (1, 2 * N)
    found = [Features(again, one, maker, CPU, 0)[list(range(N))] for one in wanted]
    torch.testing.assert_close(found, right)


def test_the_same_row_damaged_in_two_files(folder: Path, store: Store) -> None:
    """Two processes computed it at the same time, and neither's bytes are right now."""
    examples, maker = manifest(folder), extractor()
    nothing_yet = find_missing(store, examples, (PLAIN_VIEW,), maker)
    for part in (range(N), range(N - 1)):
        some = [replace(nothing_yet[0], missing=np.array(part))]
        list(compute_missing(store, examples, some, maker))
    right = seen(examples, SPEC, None)
    damage(store, right[5])
    assert torch.equal(features(reopened(store), examples, PLAIN_VIEW, maker), right)


@pytest.mark.parametrize("lost", range(4))
def test_damage_to_one_side_leaves_the_other_side_right(
    folder: Path, store: Store, lost: int
) -> None:
    """Rows that are read from the disk, file by file, while validation's are found damaged."""
    sides = Splits(manifest(folder, range(8)), manifest(folder, range(8, N)), ())
    for row in range(8):  # files of their own, sorted by digests
        complete(store, manifest(folder, [row]), (PLAIN_VIEW,), extractor())
    for row in range(8, N):
        complete(store, manifest(folder, [row]), (PLAIN_VIEW,), extractor())
    rows = seen(manifest(folder), SPEC, None)
    damage(store, rows[8 + lost % 3])
    damage(store, rows[lost])
    config = Config.model_validate(
        {"data": {"train": "t.csv"}, "train": {"cache_views": 1, "seed": SEED}}
    )
    world = World(CPU, DistInfo())
    found = build_feature_loaders(
        config, sides, extractor(), reopened(store), world, 0, RunLog(io.StringIO())
    )
    assert found is not None
    train, val = found
    torch.testing.assert_close(torch.cat([batch.images for batch in train.sweep()]), rows[:8])
    torch.testing.assert_close(torch.cat([batch.images for batch in val.sweep()]), rows[8:])


# ---- room, types, faults ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_from_memory_and_from_disk_are_the_same(
    folder: Path, store: Store, dtype: torch.dtype
) -> None:
    """float32, with the values of the type they are kept in."""
    maker = extractor(dtype=dtype)
    [wanted], _ = complete(store, manifest(folder), (PLAIN_VIEW,), maker)
    size = N * WIDTH * dtype.itemsize
    held = Features(store, wanted, maker, CPU, size)
    read = Features(store, wanted, maker, CPU, size - 1)
    rows = [3, 0, 3, 10]
    expected = seen(manifest(folder), SPEC, None)[rows].to(dtype).float()
    assert torch.equal(held[rows], expected)
    assert torch.equal(read[rows], expected)


def test_too_little_room_is_said_before_pictures_are_read(folder: Path, store: Store) -> None:
    """Before a single one: the error comes at the first step."""
    large = replace(extractor(), width=10**15)
    wanted = find_missing(store, manifest(folder), (PLAIN_VIEW,), large)
    with pytest.raises(DataError, match=r"keeping features needs \d+\.00 GB in .* are free"):
        next(compute_missing(store, manifest(folder), wanted, large))
    assert not list(store.folder.iterdir())


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_a_bad_picture_is_named(folder: Path, store: Store, content: bytes | None) -> None:
    """It never has features, not even after it was found."""
    (folder / "7.png").unlink()
    if content is not None:
        (folder / "7.png").write_bytes(content)
    for _ in range(2):
        with pytest.raises(DataError, match=r"7\.png"):
            complete(store, manifest(folder), (PLAIN_VIEW,), extractor())


# ---- batches ----------------------------------------------------------------------------


def loader(
    store: Store,
    examples: Manifest,
    looks: Sequence[View],
    batch_size: int,
    seed: int | None,
    factors: Factors | None = None,
) -> FeatureLoader:
    """Return a FeatureLoader over these views."""
    wanted, _ = complete(store, examples, looks, extractor())
    kept = [Features(store, one, extractor(), CPU, 0) for one in wanted]
    return FeatureLoader(examples, kept, batch_size=batch_size, train_seed=seed, factors=factors)


@pytest.mark.parametrize(("seed", "factors"), [(None, None), (SEED, None), (SEED, FACTORS)])
@pytest.mark.parametrize("batch_size", [1, 4, 5, N, 50])
def test_order_and_batches_are_a_loaders(
    folder: Path, store: Store, batch_size: int, seed: int | None, factors: Factors | None
) -> None:
    """Epoch by epoch, a lone last example included: indices, targets and steps."""
    examples = manifest(folder)
    kept = loader(store, examples, (PLAIN_VIEW,), batch_size, seed, factors)
    reading = Loader(
        examples,
        SPEC,
        batch_size=batch_size,
        workers=0,
        train_seed=seed,
        pin_memory=False,
        factors=factors,
    )
    assert kept.steps == reading.steps
    for epoch in range(2):
        for ours, theirs in zip(kept.epoch(epoch), reading.epoch(epoch), strict=True):
            assert torch.equal(ours.indices, theirs.indices)
            assert torch.equal(ours.targets, theirs.targets)


def test_each_epoch_has_its_view(folder: Path, store: Store) -> None:
    """Epoch e has view e, and they begin anew after the last; a row is its own picture's."""
    examples = manifest(folder)
    kept = loader(store, examples, LOOKS, 4, SEED)
    rows = [seen(examples, SPEC, None), None, seen(examples, SPEC, SEED, 2)]
    for epoch in (0, 2, 3, 5):
        for batch in kept.epoch(epoch):
            expected = rows[epoch % 3]
            assert expected is not None
            torch.testing.assert_close(batch.images, expected[batch.indices])


def test_batches_of_random_views_are_those_of_training(folder: Path, store: Store) -> None:
    """Batch by batch what a Loader's pictures give: a head trained on either is the same."""
    examples, looks = manifest(folder), (PLAIN_VIEW, View(epoch=1), View(epoch=2))
    kept = loader(store, examples, looks, 4, SEED)
    for epoch in (1, 2):
        reading = pictures(examples, SPEC, SEED).epoch(epoch)
        for ours, theirs in zip(kept.epoch(epoch), reading, strict=True):
            assert torch.equal(ours.indices, theirs.indices)
            torch.testing.assert_close(ours.images, embed(theirs.images))


def test_the_mean_of_views_is_one_view_of_every_epoch(folder: Path, store: Store) -> None:
    """Each batch has the mean features of the picture and of its mirror image."""
    examples, maker = manifest(folder), extractor()
    wanted, _ = complete(store, examples, (PLAIN_VIEW, MIRROR), maker)
    both = [Features(store, view, maker, CPU, 10**9) for view in wanted]
    rows = list(range(N))
    mean = FeatureLoader(examples, [MeanFeatures(both)], batch_size=4, train_seed=None)
    for epoch in (0, 1):
        batches = list(mean.epoch(epoch))
        images = torch.cat([batch.images for batch in batches])
        torch.testing.assert_close(images, (both[0][rows] + both[1][rows]) / 2)
        assert torch.cat([batch.indices for batch in batches]).tolist() == rows


def test_a_sweep_is_every_view_of_every_example_once(folder: Path, store: Store) -> None:
    """In order, with the targets."""
    examples = manifest(folder)
    batches = list(loader(store, examples, LOOKS, 4, SEED).sweep())
    assert torch.cat([batch.indices for batch in batches]).tolist() == [*range(N)] * 3
    images = torch.cat([batch.images for batch in batches])
    torch.testing.assert_close(images[:N], seen(examples, SPEC, None))
    torch.testing.assert_close(images[2 * N :], seen(examples, SPEC, SEED, 2))
    targets = torch.cat([batch.targets for batch in batches])
    assert torch.equal(targets, torch.from_numpy(examples.targets[:]).repeat(3, 1))


def test_a_sweep_weighs_pictures_as_often_as_they_are_drawn(folder: Path, store: Store) -> None:
    """Once in each view still; 1 on average."""
    swept = list(loader(store, manifest(folder), LOOKS, 4, SEED, FACTORS).sweep())
    assert torch.cat([batch.indices for batch in swept]).tolist() == [*range(N)] * 3
    weights = torch.cat([batch.weights for batch in swept if batch.weights is not None])
    expected = torch.from_numpy(FACTORS / FACTORS.mean()).float().repeat(3)
    assert torch.equal(weights, expected)


# ---- what names a store -----------------------------------------------------------------


def folder_of(
    root: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **spec: object
) -> Path:
    """Return the folder of the features of a ResNet-18 with the weights of this seed."""
    torch.manual_seed(seed)
    shape = replace(SPEC, **spec)
    tagger = Tagger("resnet18", 2, mean=shape.mean, std=shape.std, frozen=True)
    maker = replace(extractor(shape), dtype=dtype)
    return open_feature_store(root, tagger, shape, "resnet18", maker).folder


def test_a_store_is_named_by_what_features_depend_on(tmp_path: Path) -> None:
    """Weights, size, resize, normalisation and precision; not augmentation, nor the head."""
    first = folder_of(tmp_path)
    assert first == folder_of(tmp_path, crop_scale=(0.9, 1.0), horizontal_flip=0.1)
    others = [
        folder_of(tmp_path, seed=1),
        folder_of(tmp_path, dtype=torch.bfloat16),
        folder_of(tmp_path, image_size=32),
        folder_of(tmp_path, resize="pad"),
        folder_of(tmp_path, mean=(0.5, 0.5, 0.5)),
        folder_of(tmp_path, std=(0.5, 0.5, 0.5)),
    ]
    assert len({first, *others}) == 7


def test_batchnorms_statistics_are_weights_too(tmp_path: Path) -> None:
    """A buffer that differs gives other features."""
    tagger = Tagger("resnet18", 2, mean=SPEC.mean, std=SPEC.std, frozen=True)
    before = open_feature_store(tmp_path, tagger, SPEC, "resnet18", extractor()).folder
    tagger.features.bn1.running_mean[3] += 1e-6
    assert open_feature_store(tmp_path, tagger, SPEC, "resnet18", extractor()).folder != before


def test_the_runs_own_extractor_reads_as_training_does(folder: Path) -> None:
    """Its random views are those of (seed, epoch, index), its plain ones evaluation's."""
    settings = {"data": {"train": "t.csv"}, "train": {"seed": SEED, "batch_size": 4}}
    tagger = Tagger("resnet18", 4, mean=SPEC.mean, std=SPEC.std, frozen=True)
    config, examples, rows = Config.model_validate(settings), manifest(folder), [1, 4, 10]
    prepared = prepare_for_inference(tagger, SPEC.image_size, CPU, torch.float32)
    maker = build_extractor(config, prepared, SPEC, CPU, torch.float32, 0)
    for look, seed in ((PLAIN_VIEW, None), (View(epoch=2), SEED)):
        images = torch.cat([batch.images for batch in maker.load(examples, rows, look)])
        torch.testing.assert_close(embed(images), seen(examples, SPEC, seed, look.epoch or 0)[rows])
    assert maker.embed(images).shape == (3, maker.width)
