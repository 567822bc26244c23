"""Checkpoints: round trip, damage, foreign files, writing whole or not at all; run directories."""

import hashlib
import json
import os
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import Promise
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_bytes
from safetensors.torch import save_file
from torch import Tensor

from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.targets import LabelSpace
from mlfinetune.errors import CheckpointError, TrainingError
from mlfinetune.metrics.types import DecisionRule
from mlfinetune.runs import directory
from mlfinetune.runs.checkpoint import Checkpoint, load, save
from mlfinetune.storage.atomic import make_new_folder, write_atomic, writing_text
from runs.altered import accepted, flipped

DIGEST = "0123456789abcdef" * 4
NASTY = ["café", "猫", "😀", '"', "\\", '\\"', "a\nb", "\0", "", " ", "|", "\ud800", "\u2028"]
NASTY += [
    f'"sha256":"{DIGEST}"',
    f'\\"sha256\\":\\"{DIGEST}\\"',
    f'"sha256":"{"0" * 64}"',
    "sha256",
]


def weights() -> dict[str, Tensor]:
    """Return a few small tensors of the kinds and layouts that models have."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 3, 2, 2, generator=generator)
    return {
        "features.conv1.weight": noise.contiguous(memory_format=torch.channels_last),
        "features.bn1.num_batches_tracked": torch.tensor(2**53 + 1),
        "features.bn1.running_var": torch.tensor([0.0, -0.0, 1e-45, 3e38]),
        "head.weight": noise.bfloat16().reshape(3, 16).T,
        "head.bias": torch.randn(3, generator=generator).double(),
    }


def content(labels: tuple[str, ...] = ("cat", "dog"), **changes: Any) -> Checkpoint:
    """Return a small checkpoint."""
    spec = TransformSpec(
        image_size=64, resize="pad", max_pixels=10**9, crop_scale=(0.3, 1.0), color_jitter=0.1
    )
    config = {"model": {"weights": None}, "train": {"lr": 1e-4}, "data": {"labels": ["é", '"']}}
    versions = {"mlfinetune": "0.1", "torch": "2.15.0+cpu"}
    n = len(labels)
    decision = DecisionRule(
        "per_label", (0.1,) * n, "platt", (1 / 3,) * n, (-1e-9,) * n, (0.2, 1 / 3)
    )
    made = Checkpoint(
        weights(), LabelSpace(labels), spec, "resnet18", decision, config, "ab" * 32, 3, versions,
        2, "mirror",
    )  # fmt: skip
    return replace(made, **changes)


def refusal(path: Path) -> str:
    """Return the message with which the file is refused."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    return str(caught.value)


def header(path: Path) -> int:
    """Return bytes of the JSON that a safetensors file starts with."""
    return int.from_bytes(path.read_bytes()[:8], "little")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for all the examples of a generated test."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a good checkpoint."""
    save(tmp_path / "best.safetensors", content())
    return tmp_path / "best.safetensors"


# ---- round trip -------------------------------------------------------------------------


def test_weights_come_back_bitwise(file: Path) -> None:
    """Every type, layout and signed zero keeps its bytes."""
    loaded, wanted = load(file).weights, weights()
    assert loaded.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        bits = [t.contiguous().view(-1).view(torch.uint8) for t in (loaded[name], tensor)]
        assert torch.equal(*bits)


def test_everything_else_comes_back_equal(file: Path) -> None:
    """Labels, transform with its tuples, threshold, config, versions."""
    loaded = load(file)
    assert replace(loaded, weights={}) == content(weights={})
    assert loaded.transform.crop_scale == (0.3, 1.0)
    assert isinstance(loaded.transform.mean, tuple)


def test_a_decision_about_other_labels_is_refused(tmp_path: Path) -> None:
    """Three thresholds for two labels."""
    path = tmp_path / "c.safetensors"
    save(path, content(decision=DecisionRule.plain(3)))
    assert "the decision is not of these labels" in refusal(path)


@settings(max_examples=100, deadline=None)
@given(labels=st.lists(st.text() | st.sampled_from(NASTY), min_size=1, max_size=5, unique=True))
@example(labels=NASTY)
def test_any_label_comes_back(folder: Path, labels: list[str]) -> None:
    """Unicode, quotes, backslashes and what looks like the digest are labels as any other."""
    names = tuple(labels)
    small = {"head.bias": torch.ones(2)}
    config = {"sha256": DIGEST, "loss": {"pos_weight": dict.fromkeys(names, 2.0)}}
    save(folder / "c.safetensors", content(names, config=config, weights=small))
    loaded = load(folder / "c.safetensors")
    assert (loaded.labels.names, loaded.config) == (names, config)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    """Written twice, with the weights in another order too, the files are equal."""
    backwards = dict(reversed(weights().items()))
    save(tmp_path / "a.safetensors", content())
    save(tmp_path / "b.safetensors", content())
    save(tmp_path / "c.safetensors", content(weights=backwards))
    first, *others = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert others == [first, first]


def test_one_content_goes_into_several_files(tmp_path: Path) -> None:
    """Whole files, not links: one that is damaged leaves the other."""
    save(tmp_path / "last.safetensors", content(), [tmp_path / "best.safetensors"])
    last, best = tmp_path / "last.safetensors", tmp_path / "best.safetensors"
    assert last.read_bytes() == best.read_bytes()
    assert load(best)
    assert not last.samefile(best)


@pytest.mark.parametrize("length", [896, 1152, 1408, 66176])
def test_a_header_of_any_length_loads(tmp_path: Path, length: int) -> None:
    """A header whose length starts with a pickle's first bytes is still a header."""
    path, small = tmp_path / "c.safetensors", {"b": torch.ones(1)}
    save(path, content(("",), weights=small, config={}, versions={}))
    label = "x" * (length - header(path))
    save(path, content((label,), weights=small, config={}, versions={}))
    assert header(path) == length
    assert load(path).labels.names == (label,)


# ---- damage -----------------------------------------------------------------------------


@pytest.mark.faults
def test_no_flipped_bit_is_accepted(file: Path, promise: Promise) -> None:
    """1,000 random bits, anywhere in the file."""
    whole = file.read_bytes()
    bits = random.Random(0).sample(range(8 * len(whole)), 1000)
    assert accepted(load, file, iter([whole])) == [0]
    promise("P4", len(bits), accepted(load, file, (flipped(whole, bit) for bit in bits)))


@pytest.mark.faults
def test_no_flipped_bit_of_length_or_digest_is_accepted(file: Path, promise: Promise) -> None:
    """Every bit of the header's length and of the digest with what stands before it."""
    whole = file.read_bytes()
    start = whole.index(b"sha256")
    bits = [*range(8 * 8), *range(8 * (start - 10), 8 * (start + 80))]
    promise("P4", len(bits), accepted(load, file, (flipped(whole, bit) for bit in bits)))


@pytest.mark.faults
def test_no_flipped_bit_of_the_header_is_accepted(file: Path, promise: Promise) -> None:
    """1,000 random bits of the labels, the config, the names and places of the tensors."""
    whole = file.read_bytes()
    bits = random.Random(1).sample(range(8 * (8 + header(file))), 1000)
    promise("P4", len(bits), accepted(load, file, (flipped(whole, bit) for bit in bits)))


@pytest.mark.faults
def test_no_truncated_file_is_accepted(file: Path, promise: Promise) -> None:
    """200 lengths from 0 to one byte short, and bytes too many."""
    whole = file.read_bytes()
    lengths = [0, 1, 7, 8, 9, len(whole) - 1]
    lengths += random.Random(2).sample(range(10, len(whole) - 1), 194)
    changed = [*(whole[:n] for n in lengths), whole + b"\0", whole + whole, b"\0" + whole]
    promise("P4", len(changed), accepted(load, file, iter(changed)))


def test_damage_is_called_damage(file: Path) -> None:
    """A changed weight is told apart from a foreign file, with what to do."""
    whole = file.read_bytes()
    file.write_bytes(flipped(whole, 8 * len(whole) - 1))
    assert refusal(file).startswith(f"{file} is damaged: its SHA-256 is not the one written in it")


# ---- foreign files ----------------------------------------------------------------------


@dataclass
class Payload:
    """An object that makes a folder when it is unpickled."""

    canary: Path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5, "zip", "legacy"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int | str) -> None:
    """A pickle that is called .safetensors is refused; its payload never runs."""
    path, canary = tmp_path / "best.safetensors", tmp_path / "canary"
    if isinstance(protocol, int):
        path.write_bytes(pickle.dumps({"head.bias": Payload(canary)}, protocol))
    else:
        zipped = protocol == "zip"
        torch.save({"a": Payload(canary)}, path, _use_new_zipfile_serialization=zipped)
    assert str(path) in refusal(path)
    assert not canary.exists()


def test_the_payload_would_run(tmp_path: Path) -> None:
    """The payload of these tests works where someone unpickles it."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").is_dir()


def test_a_torch_file_is_called_a_pickle(tmp_path: Path) -> None:
    """The commonest mistake is named."""
    torch.save(weights(), tmp_path / "best.pt")
    assert "is a pickle (torch.save), not a safetensors file" in refusal(tmp_path / "best.pt")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"mlfinetune": "{}"}])
def test_foreign_safetensors_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    """Weights without our metadata are no checkpoint."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, path, metadata)
    assert refusal(path).startswith(f"{path} is no checkpoint of mlfinetune")


@pytest.mark.parametrize(
    "start", [b"", b"\0", b"\0" * 8, b"\xff" * 8, (2**40).to_bytes(8, "little") + b"{}", b"{}" * 9]
)
def test_nonsense_is_refused(tmp_path: Path, start: bytes) -> None:
    """Empty files and header lengths beyond any memory are refused at once."""
    path = tmp_path / "best.safetensors"
    path.write_bytes(start)
    assert str(path) in refusal(path)


@pytest.mark.parametrize("name", ["absent.safetensors", "folder"])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    """A missing file and a folder are errors with the path and the system's reason."""
    (tmp_path / "folder").mkdir()
    assert refusal(tmp_path / name).startswith(f"cannot read {tmp_path / name}: ")


def sealed(path: Path, changes: dict[str, object], weight: float = 1) -> Path:
    """Make a checkpoint with some of its fields changed, and the digest right again."""
    save(path, content())
    written = json.loads(path.read_bytes()[8 : 8 + header(path)])["__metadata__"]["mlfinetune"]
    about = json.dumps(json.loads(written) | {"sha256": "0" * 64} | changes, separators=(",", ":"))
    blank = save_bytes({"a": torch.tensor([weight])}, {"mlfinetune": about})
    digest = hashlib.sha256(blank).hexdigest().encode()
    path.write_bytes(blank.replace(b"0" * 64, digest, 1))
    return path


def test_a_sealed_file_loads(tmp_path: Path) -> None:
    """The digest of these tests is right."""
    assert load(sealed(tmp_path / "best.safetensors", {"epoch": 9})).epoch == 9


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 99},
        {"format": 99, "versions": []},
        {"labels": 3},
        {"transform": []},
        {"transform": {}},
        {"transform": {"zoom": 1}},
    ],
)
def test_another_format_is_refused_by_name(tmp_path: Path, changes: dict[str, object]) -> None:
    """A whole file with fields that this version does not write is an error, not a crash."""
    path = sealed(tmp_path / "best.safetensors", changes)
    assert str(path) in refusal(path)


@pytest.mark.parametrize("weight", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_neither_written_nor_used(
    file: Path, weight: float
) -> None:
    """The old file stays; a file of such weights is refused by name."""
    whole = file.read_bytes()
    odd = {"features.conv1.weight": torch.ones(2), "head.bias": torch.tensor([1.0, weight])}
    with pytest.raises(TrainingError, match=r"best\.safetensors is not written: head\.bias holds"):
        save(file, content(weights=odd))
    assert file.read_bytes() == whole
    path = sealed(file, {}, weight)
    assert refusal(path) == f"{path} cannot be used: a holds values that are not finite"


# ---- writing ----------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """Writing where there is no folder is an error with the path."""
    path = tmp_path / "gone" / "best.safetensors"
    with pytest.raises(CheckpointError, match=r"^cannot write .*gone/best\.safetensors: No such"):
        save(path, content())


def test_an_error_in_writing_leaves_the_old_file(tmp_path: Path) -> None:
    """A table whose rows fail half-way is not there, and the old one still is."""
    path = tmp_path / "predictions.csv"
    path.write_text("old")
    with pytest.raises(TypeError), writing_text(path) as out:
        out.writelines(cast(list[str], ["new", None]))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Return the process's umask, for one test."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_mode_of_a_file_follows_the_umask(tmp_path: Path, umask: int) -> None:
    """A checkpoint can be read by whom other files can be read, not by its owner alone."""
    save(tmp_path / "best.safetensors", content())
    write_atomic(tmp_path / "metrics.json", b"{}")
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o666 & ~umask}


# ---- run directories --------------------------------------------------------------------


def test_a_taken_name_gets_a_number(tmp_path: Path) -> None:
    """pets, pets-2, pets-3: no run writes into another's directory."""
    claimed = []
    for _ in range(3):
        claimed.append(directory.make_run_dir(tmp_path / "runs" / "pets"))
        (claimed[-1] / "config.yaml").touch()
    assert claimed == [tmp_path / "runs" / name for name in ("pets", "pets-2", "pets-3")]


def test_a_file_or_an_empty_folder_takes_a_name(tmp_path: Path) -> None:
    """Another run may just have made the folder; a file in the way is left alone."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "pets").write_text("mine")
    assert directory.make_run_dir(tmp_path / "empty") == tmp_path / "empty-2"
    assert directory.make_run_dir(tmp_path / "pets") == tmp_path / "pets-2"
    assert (tmp_path / "pets").read_text() == "mine"


def test_a_run_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file where a folder should be ends in an error that offers --output."""
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"runs/pets: .*--output"):
        directory.make_run_dir(tmp_path / "runs" / "pets")
    with pytest.raises(CheckpointError, match=r"^cannot make the folder .*runs/pets: "):
        make_new_folder(tmp_path / "runs" / "pets")


def test_a_run_or_a_file_names_a_checkpoint(tmp_path: Path) -> None:
    """A directory stands for its best.safetensors, a file for itself."""
    for name in (directory.BEST, directory.LAST):
        (tmp_path / name).touch()
    assert directory.find_checkpoint(tmp_path) == tmp_path / "best.safetensors"
    assert directory.find_checkpoint(tmp_path / directory.LAST) == tmp_path / "last.safetensors"


def test_no_checkpoint_is_an_error_with_the_path(tmp_path: Path) -> None:
    """An empty run and a path to nothing are told apart."""
    with pytest.raises(CheckpointError, match=rf"^{tmp_path} holds no best\.safetensors; "):
        directory.find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=rf"^no such checkpoint: {tmp_path}/gone; name a"):
        directory.find_checkpoint(tmp_path / "gone")


def finished(run: Path, seconds: int) -> Path:
    """Make a run with metrics.json of this time; the later, the older its checkpoint is."""
    run.mkdir(parents=True)
    for name in (directory.METRICS, directory.BEST):
        (run / name).touch()
    os.utime(run / directory.METRICS, (seconds, seconds))
    os.utime(run / directory.BEST, (9999 - seconds, 9999 - seconds))
    return run / directory.BEST


def test_the_newest_run_is_the_one_that_finished_last(tmp_path: Path) -> None:
    """The time of metrics.json decides, not the name, nor the time of the checkpoint."""
    finished(tmp_path / "z", 1000)
    newest = finished(tmp_path / "m", 3000)
    finished(tmp_path / "a", 2000)
    assert directory.find_newest_checkpoint(tmp_path) == newest


def test_unfinished_runs_are_passed_over(tmp_path: Path) -> None:
    """A run without metrics.json, or without a checkpoint, has not finished."""
    done = finished(tmp_path / "done", 1000)
    (finished(tmp_path / "training", 2000).parent / directory.METRICS).unlink()
    finished(tmp_path / "emptied", 3000).unlink()
    assert directory.find_newest_checkpoint(tmp_path) == done


def test_without_a_finished_run_the_folder_is_named(tmp_path: Path) -> None:
    """The error says where it looked, and what else to do."""
    (tmp_path / "pets").mkdir()
    for runs in (tmp_path, tmp_path / "gone"):
        with pytest.raises(CheckpointError, match=rf"no finished run under {runs}; .*--checkpoint"):
            directory.find_newest_checkpoint(runs)


def test_a_crop_of_more_than_the_picture_comes_back(tmp_path: Path) -> None:
    """As some weights want it: a checkpoint that can be written can be read."""
    made = content()
    made = replace(made, transform=replace(made.transform, crop_share=1.15))
    save(tmp_path / "c.safetensors", made)
    assert load(tmp_path / "c.safetensors").transform == made.transform
