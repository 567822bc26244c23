"""Small copies of large pictures: their content, their place, and when they are made."""

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from faults import children
from PIL import Image

from mlfinetune.data.batches import copies as copies_module
from mlfinetune.data.batches import copy_storage
from mlfinetune.data.batches.copies import CopyMaker, SmallCopies, compute_copy_side
from mlfinetune.data.batches.copy_storage import opened_copies
from mlfinetune.data.batches.dataset import ImageDataset
from mlfinetune.data.batches.loader import Loader, make_copies
from mlfinetune.data.images.decode import decode_jpeg
from mlfinetune.data.images.transforms import TransformSpec, compute_min_decoded_side
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.errors import DataError

SPEC = TransformSpec(32, "squash", 10**7, crop_scale=(0.35, 1.0), horizontal_flip=0.5)
SIDE = 63  # 32 / sqrt(0.35 * 3 / 4), rounded up
LARGE, SMALL = (400, 300), (90, 70)


def draw(path: Path, size: tuple[int, int], seed: int) -> None:
    """A smooth picture, coarse noise scaled up."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Return four large pictures and two small ones."""
    names = tuple(f"{i}.jpg" for i in range(6))
    for i, name in enumerate(names):
        draw(tmp_path / name, LARGE if i < 4 else SMALL, i)
    targets = Targets.pack([np.eye(6, 2, dtype=np.int8)], 2)
    return Manifest(tmp_path, names, targets, LabelSpace(("a", "b")))


def filled(manifest: Manifest, root: Path, workers: int = 0) -> SmallCopies:
    """Return the copies of a manifest, all made."""
    copies = SmallCopies(root, SPEC)
    lacking = copies.find_missing(manifest)
    assert sum(copies.fill(make_copies(lacking, SPEC, workers))) == len(lacking)
    return copies


def view(path: str, copies: SmallCopies | None, epoch: int = 0) -> torch.Tensor:
    """Return the view that training has of a picture."""
    image = ImageDataset(SPEC, 0, copies)[epoch, 0, path].image
    assert image is not None
    return image


def choice(manifest: Manifest, root: Path, wanted: str = "auto", epochs: int = 3) -> str:
    """Return the log's line of `opened_copies`."""
    with opened_copies(
        wanted, manifest, SPEC, epochs=epochs, on_features=False, root=root
    ) as found:
        assert (found.copies is None) == (": off (" in found.message)
        return found.message.splitlines()[0]


def damage(copies: SmallCopies) -> None:
    """Change a bit of every value."""
    for path in copies.folder.iterdir():
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)


# ---- what is read -----------------------------------------------------------------------


def test_a_copy_is_the_least_picture_from_which_no_view_is_scaled_up(
    manifest: Manifest, tmp_path: Path
) -> None:
    """Its shorter side is the bound, half of what decoding keeps; its sides' ratio stays."""
    copies = filled(manifest, tmp_path / "store")
    assert (
        compute_copy_side(SPEC)
        == SIDE
        == round(compute_min_decoded_side(SPEC, training=True) / 2 + 0.25)
    )
    for index in range(4):
        small = copies.read(manifest.path(index))
        assert small is not None
        assert small.shape == (SIDE, 84, 3)


def test_every_epoch_sees_nearly_what_the_files_show(manifest: Manifest, tmp_path: Path) -> None:
    """Crops and mirror images are the same; pixels differ by less than 3 of 255 on average."""
    copies = filled(manifest, tmp_path / "store")
    for epoch in range(4):
        for index in range(4):
            path = manifest.path(index)
            whole, small = view(path, None, epoch).float(), view(path, copies, epoch).float()
            assert 0 < (whole - small).abs().mean() < 3
            assert (whole - small.flip(-1)).abs().mean() > 6


def test_small_pictures_are_read_from_their_files(manifest: Manifest, tmp_path: Path) -> None:
    """No copy, the same bits, and the next run does not look at them again."""
    copies = filled(manifest, tmp_path / "store")
    assert copies.read(manifest.path(4)) is None
    assert torch.equal(view(manifest.path(4), copies), view(manifest.path(4), None))
    assert SmallCopies(tmp_path / "store", SPEC).find_missing(manifest) == []


def test_a_changed_file_is_read_itself_and_copied_anew(manifest: Manifest, tmp_path: Path) -> None:
    """Its old copy is never shown; the next run makes its copy alone."""
    filled(manifest, tmp_path / "store")
    path = manifest.path(1)
    draw(Path(path), (640, 300), 9)
    copies = SmallCopies(tmp_path / "store", SPEC)
    assert torch.equal(view(path, copies), view(path, None))
    assert [item[1] for item in copies.find_missing(manifest)] == [path]
    small = filled(manifest, tmp_path / "store").read(path)
    assert small is not None
    assert small.shape == (SIDE, 134, 3)


def test_a_damaged_copy_is_not_shown(manifest: Manifest, tmp_path: Path) -> None:
    """The file is read in its place, and the next run makes the copy anew."""
    large = manifest.take([0])
    copies = filled(large, tmp_path / "store")
    damage(copies)
    path, again = large.path(0), SmallCopies(tmp_path / "store", SPEC)
    assert again.find_missing(large) == []
    assert torch.equal(view(path, again), view(path, None))
    assert len(SmallCopies(tmp_path / "store", SPEC).find_missing(large)) == 1
    assert filled(large, tmp_path / "store").read(path) is not None


def test_what_a_copy_depends_on_names_its_folder(tmp_path: Path) -> None:
    """Another crop, another size and another cap have folders of their own; mirroring has not."""
    changes = {"crop_scale": (0.5, 1.0)}, {"image_size": 64}, {"max_pixels": 10}
    folders = [
        SmallCopies(tmp_path, TransformSpec(**vars(SPEC) | change)).folder for change in changes
    ]
    assert len({*folders, SmallCopies(tmp_path, SPEC).folder}) == 4
    mirrored = TransformSpec(**vars(SPEC) | {"horizontal_flip": 0.0})
    assert SmallCopies(tmp_path, mirrored).folder == SmallCopies(tmp_path, SPEC).folder


def test_pillow_reads_copies_where_nothing_faster_does(manifest: Manifest, tmp_path: Path) -> None:
    """Its pixels differ by the rounding of another library only."""
    content = CopyMaker(SPEC)[0, manifest.path(0)].value
    assert content is not None
    copies = filled(manifest, tmp_path / "store")
    ours = copies.read(manifest.path(0))
    assert ours is not None
    pillow = decode_jpeg(np.frombuffer(content, np.uint8))
    assert abs(pillow.astype(int) - ours).max() <= 2


def test_a_strip_too_long_for_a_jpeg_has_no_copy(tmp_path: Path) -> None:
    """libjpeg writes 65,500 pixels a side at most."""
    Image.new("RGB", (66_000 * 2, 126)).save(tmp_path / "strip.png")
    maker = CopyMaker(TransformSpec(**vars(SPEC) | {"max_pixels": 10**9}))
    assert maker[0, str(tmp_path / "strip.png")].value == b""


def test_evaluation_never_reads_copies(manifest: Manifest, tmp_path: Path) -> None:
    """A loader without a training seed refuses them."""
    loader = Loader(manifest, SPEC, batch_size=2, workers=0, train_seed=None, pin_memory=False)
    with pytest.raises(AssertionError, match="evaluation reads the files themselves"):
        loader.read_copies(filled(manifest, tmp_path / "store"))


# ---- filling ----------------------------------------------------------------------------


def test_worker_processes_make_and_read_the_same_copies(manifest: Manifest, tmp_path: Path) -> None:
    """0 and 2 processes: the same bits."""
    seen = []
    for workers in (0, 2):
        copies = filled(manifest, tmp_path / f"store{workers}", workers)
        loader = Loader(
            manifest, SPEC, batch_size=3, workers=workers, train_seed=0, pin_memory=False
        )
        loader.read_copies(copies)
        seen.append(torch.cat([batch.images for batch in loader.epoch(1)]))
    assert torch.equal(*seen)


def test_what_goes_to_a_process_that_is_not_forked_finds_the_copies(
    manifest: Manifest, tmp_path: Path
) -> None:
    """Pickled and read back, the data set shows the same, and makes the same copies."""
    dataset = ImageDataset(SPEC, 0, filled(manifest, tmp_path / "store"))
    again = pickle.loads(pickle.dumps(dataset))
    key = (0, 0, manifest.path(0))
    assert torch.equal(again[key].image, dataset[key].image)
    assert not torch.equal(again[key].image, ImageDataset(SPEC, 0)[key].image)
    maker = CopyMaker(SPEC)
    assert pickle.loads(pickle.dumps(maker))[5, key[2]] == maker[5, key[2]]


def test_an_interrupted_fill_goes_on_where_it_was(manifest: Manifest, tmp_path: Path) -> None:
    """Copies made before Ctrl-C are in the store, and are not made again."""
    copies = SmallCopies(tmp_path / "store", SPEC)
    lacking = copies.find_missing(manifest)

    def made() -> Iterator[list[copies_module.MadeCopy]]:
        yield from make_copies(lacking[:3], SPEC, 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sum(copies.fill(made()))
    assert SmallCopies(tmp_path / "store", SPEC).find_missing(manifest) == lacking[3:]


def test_what_is_made_is_written_as_it_comes(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file for so many bytes; a process that is killed loses no more."""
    monkeypatch.setattr(copies_module, "_FLUSH_BYTES", 1)
    copies = SmallCopies(tmp_path / "store", SPEC)
    batches = ([CopyMaker(SPEC)[item]] for item in copies.find_missing(manifest)[:4])
    next(filling := copies.fill(batches))
    next(filling)
    assert len(list(copies.folder.iterdir())) == 2


def test_an_unreadable_picture_stops_the_run_and_is_named(
    manifest: Manifest, tmp_path: Path
) -> None:
    """The others of its batch are kept."""
    Path(manifest.path(2)).write_text("no picture")
    copies = SmallCopies(tmp_path / "store", SPEC)
    with pytest.raises(DataError, match=r"2\.jpg: not a JPEG"):
        sum(copies.fill(make_copies(copies.find_missing(manifest), SPEC, 0)))
    assert len(copies.find_missing(manifest)) == 1


# ---- the choice -------------------------------------------------------------------------


def test_auto_keeps_copies_on_disk_where_that_pays(manifest: Manifest, tmp_path: Path) -> None:
    """Large pictures and three epochs; the line says both."""
    line = choice(manifest.take([0, 1, 2, 3]), tmp_path / "store")
    assert line == (
        "small copies of large pictures: on disk (auto: they pay from 3 epochs and "
        "0.016 megapixels on; this run has 3 epochs and pictures of 0.12 megapixels)"
    )


@pytest.mark.parametrize(
    ("rows", "epochs", "why"),
    [([0, 1], 2, "this run has 2 epochs"), ([4, 5], 9, "pictures of 0.0063 megapixels")],
)
def test_auto_reads_the_files_where_copies_do_not_pay(
    manifest: Manifest, tmp_path: Path, rows: list[int], epochs: int, why: str
) -> None:
    """Few epochs, small pictures: the line says so, and no folder is made."""
    line = choice(manifest.take(rows), tmp_path / "store", epochs=epochs)
    assert line.startswith("small copies of large pictures: off (")
    assert why in line
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("wanted", ["auto", "disk"])
def test_too_little_room_stops_nobody(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    """Training reads the files, and says why."""
    monkeypatch.setattr(copy_storage, "_BYTES_A_PIXEL", 1e12)
    assert "pictures: off (keeping small copies needs" in choice(manifest, tmp_path, wanted)


def test_training_reads_the_files_where_the_cache_cannot_be_used(
    manifest: Manifest, tmp_path: Path
) -> None:
    """A run that needs no cache does not fail for one."""
    (tmp_path / "file").write_text("")
    assert "pictures: off (cannot open the cache" in choice(manifest, tmp_path / "file")


def test_off_is_off(manifest: Manifest, tmp_path: Path) -> None:
    """Nothing is opened; a run on features needs none either."""
    off = "small copies of large pictures: off (as configured)"
    assert choice(manifest, tmp_path / "a", "off") == off
    with opened_copies(
        "disk", manifest, SPEC, epochs=9, on_features=True, root=tmp_path / "a"
    ) as found:
        assert "features are kept instead" in found.message
    assert not (tmp_path / "a").exists()


# ---- in memory --------------------------------------------------------------------------


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a folder in place of the one in memory."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(copy_storage, "RAM_FOLDER", folder)
    return folder


@pytest.mark.parametrize("ends", [None, DataError("x"), KeyboardInterrupt()])
def test_what_is_in_memory_is_gone_afterwards(
    manifest: Manifest, tmp_path: Path, memory: Path, ends: BaseException | None
) -> None:
    """After success, an error and Ctrl-C."""
    try:
        with opened_copies("ram", manifest, SPEC, epochs=1, on_features=False, root=None) as found:
            assert found.copies is not None
            first = "small copies of large pictures: in memory (as configured)\n"
            assert found.message.startswith(first)
            sum(found.copies.fill(make_copies(found.missing, SPEC, 0)))
            assert any(path.suffix == ".store" for path in memory.rglob("*"))
            if ends is not None:
                raise ends
    except (DataError, KeyboardInterrupt):
        assert ends is not None
    assert list(memory.iterdir()) == []


def test_a_system_without_such_memory_is_told(manifest: Manifest, memory: Path) -> None:
    """The key is named, and what to take in its place."""
    memory.rmdir()
    with pytest.raises(DataError, match=r"cache_images: ram .* does not exist .* use disk"):
        choice(manifest, memory, "ram")


def test_too_little_memory_is_said(
    manifest: Manifest, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a picture is decoded."""
    monkeypatch.setattr(copy_storage, "_BYTES_A_PIXEL", 1e12)
    with pytest.raises(DataError, match=r"cache_images: ram needs .* are free; use disk"):
        choice(manifest, memory, "ram")


# ---- whole runs -------------------------------------------------------------------------


def enlarge(folder: Path, size: int = 600) -> list[str]:
    """Enlarge the drawn pictures; return the command that trains on them."""
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            image.convert("RGB").resize((size, size)).save(path)
    return ["train", "pets.yaml", "augment.crop_scale=[0.5, 1.0]"]


def test_runs_share_copies_of_training_pictures_alone(pictures: Path, cli: Run) -> None:
    """The second run makes none; validation's pictures have none."""
    command = [*enlarge(pictures), "data.cache_images=disk"]
    where = {"MLFINETUNE_CACHE": str(pictures / "cache")}
    first, second = (cli(*command, cwd=pictures, **where) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "19 pictures to train, shorter side 105 px, 0 known from before, 19 to" in first.stderr
    assert "19 known from before; in " in second.stderr
    assert "validation reads the pictures themselves" in second.stderr
    (folder,) = (pictures / "cache/images").iterdir()
    assert len(copies_module.Store(folder)) == 19


def test_a_dry_run_keeps_no_copy(pictures: Path, cli: Run) -> None:
    """Neither in the cache nor anywhere else."""
    command = [*enlarge(pictures), "data.cache_images=disk", "--dry-run"]
    done = cli(*command, cwd=pictures, MLFINETUNE_CACHE=str(pictures / "cache"))
    assert done.returncode == 0, done.stderr
    assert "small copies of large pictures: on disk" in done.stderr
    assert not (pictures / "cache").exists()


@pytest.mark.skipif(
    not os.access(copy_storage.RAM_FOLDER, os.W_OK), reason="no file system in memory"
)
def test_ctrl_c_leaves_nothing_in_memory(pictures: Path) -> None:
    """SIGINT in the middle of training on copies in memory."""
    command = [*enlarge(pictures), "data.cache_images=ram", "train.epochs=999", "train.workers=1"]
    children.prepare_server()
    training = children.start(*command, cwd=pictures)
    assert training.wait_until(lambda: "\nepoch 2/" in training.said)
    training.send_group(signal.SIGINT)
    assert training.wait() == 130
    lines = training.said.splitlines()
    folder = next(line for line in lines if "known from before" in line).split("; in ")[1]
    assert folder.startswith(str(copy_storage.RAM_FOLDER))
    assert not Path(folder.split(";")[0]).parent.exists()
