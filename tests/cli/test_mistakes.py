"""What a user sees for their mistakes: what, where, what to do; exit code 2, no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Run, run_child


def fails(done: object, *words: str) -> None:
    """Assert exit code 2, and one `error:` on standard error that has all `words`."""
    code, out, err = (getattr(done, name) for name in ("returncode", "stdout", "stderr"))
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert "error" in err
    for word in words:
        assert word in err


def test_missing_config(tmp_path: Path, cli: Run) -> None:
    """The file is named."""
    fails(cli("train", "nowhere.yaml", cwd=tmp_path), "nowhere.yaml", "No such file")


def test_bad_keys(pictures: Path, process: Run) -> None:
    """Every fault with its line and the nearest key."""
    (pictures / "bad.yaml").write_text("data:\n  train: tags.csv\ntrain:\n  epoch: 3\n  lr: fast\n")
    done = process("train", "bad.yaml", cwd=pictures)
    fails(done, "2 faults", "line 4: train.epoch", "did you mean 'epochs'?", "line 5: train.lr")


def test_missing_table(pictures: Path, cli: Run) -> None:
    """The absolute path and the key."""
    done = cli("train", "pets.yaml", "data.train=none.csv", cwd=pictures)
    fails(done, str(pictures / "none.csv"), "data.train")


def test_unknown_label(pictures: Path, cli: Run) -> None:
    """A label that validation alone has, with the nearest one and its line."""
    (pictures / "val.csv").write_text("image,labels\nimages/0000.jpg,rad\n")
    done = cli("train", "pets.yaml", "data.val=val.csv", cwd=pictures)
    fails(done, "'rad'", "line 2", "did you mean 'red'?")


def test_corrupt_picture(pictures: Path, cli: Run) -> None:
    """The file's name and what is wrong with it."""
    path = pictures / "images/0000.jpg"
    path.write_bytes(path.read_bytes()[:500])
    fails(cli("train", "pets.yaml", cwd=pictures), "0000.jpg", "Truncated")


def test_empty_table(pictures: Path, cli: Run) -> None:
    """An empty file, and one with a header alone."""
    (pictures / "tags.csv").write_text("")
    fails(cli("train", "pets.yaml", cwd=pictures), "tags.csv is empty")
    (pictures / "tags.csv").write_text("image,labels\n")
    fails(cli("train", "pets.yaml", cwd=pictures), "tags.csv")


def test_wrong_column(pictures: Path, cli: Run) -> None:
    """The columns that are there, and the key to set."""
    (pictures / "tags.csv").write_text("object,labels\n0000,red\n")
    fails(cli("train", "pets.yaml", cwd=pictures), "'object'", "data.image_column")


def test_bad_rows_in_one_message(pictures: Path, cli: Run) -> None:
    """Missing files and paths out of the root, by line."""
    table = "image,labels\nimages/0000.jpg,red\nimages/none.jpg,red\n../../etc/passwd,red\nx,y,z\n"
    (pictures / "tags.csv").write_text(table)
    done = cli("train", "pets.yaml", cwd=pictures)
    fails(done, "3 bad rows", "line 3", "line 4", "line 5: 3 cells")
    shown = [line.split(":")[0] for line in done.stderr.splitlines() if "  line" in line]
    assert shown == ["  line 3", "  line 4", "  line 5"]


def test_one_image_without_validation(pictures: Path, cli: Run) -> None:
    """Too few to hold one out: data.val is the way."""
    (pictures / "tags.csv").write_text("image,labels\nimages/0000.jpg,red\n")
    fails(cli("train", "pets.yaml", cwd=pictures), "data.val")


def test_a_gpu_that_is_not_there(pictures: Path, cli: Run) -> None:
    """What torch sees, and the flag that goes on without."""
    done = cli("train", "pets.yaml", "--device", "cuda", cwd=pictures, CUDA_VISIBLE_DEVICES="")
    fails(done, "device 'cuda'", "--device cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU there is nothing to refuse")
def test_a_kernel_that_cannot_run(
    pictures: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key, the reason, and what to set instead; no run directory is left."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = cli("train", "pets.yaml", "loss.backend=triton", cwd=pictures)
    fails(done, "loss.backend 'triton'", "needs a GPU", "'auto' or 'torch'")
    assert not (pictures / "runs").exists()


def test_weights_that_cannot_be_downloaded(pictures: Path) -> None:
    """What was tried, where the file may be put, which key to set; no run directory is left."""
    done = run_child(
        "train",
        "pets.yaml",
        "model.backbone=resnet18",
        "model.weights=IMAGENET1K_V1",
        cwd=pictures,
        https_proxy="http://127.0.0.1:9",
        TORCH_HOME=str(pictures / "cache"),
    )
    fails(done, "resnet18-f37072fd.pth", str(pictures / "cache"), "model.weights")
    assert not (pictures / "runs").exists()


def test_missing_weights_file(pictures: Path, cli: Run) -> None:
    """The path as it was resolved."""
    done = cli("train", "pets.yaml", "model.weights=w.safetensors", cwd=pictures)
    fails(done, str(pictures / "w.safetensors"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.weights=none.pth", "no such file"),
        ("model.backbone=resnet50 model.weights=IMAGENET1K_V9", "did you mean 'IMAGENET1K_V2'"),
        ("model.backbone=resnet5O", "did you mean 'resnet50'"),
        ("model.backbone=vit_b_16 model.weights=null model.levels=2", "set model.levels: 1"),
        ("model.backbone=vit_b_16 model.weights=null model.image_size=100", "its own size is 224"),
    ],
)
def test_a_wrong_network_is_said_before_the_pictures_are_scanned(
    pictures: Path, cli: Run, setting: str, said: str
) -> None:
    """By every command that trains: with millions of pictures a scan takes long."""
    for command in (["train"], ["train", "--dry-run"], ["crossval"], ["bench"]):
        done = cli(*command, "pets.yaml", *setting.split(), cwd=pictures)
        assert done.returncode == 2
        assert said in done.stderr
        assert "read as" not in done.stderr


def test_checkpoints_that_are_none(trained: Path, cli: Run, tmp_path: Path) -> None:
    """Cut short, one bit flipped, a pickle by another name, no run at all."""
    good = (trained / "runs/pets/best.safetensors").read_bytes()
    cut, flipped, pickled = (tmp_path / f"{name}.safetensors" for name in ("cut", "flip", "pkl"))
    cut.write_bytes(good[:-100])
    flipped.write_bytes(good[:200_000] + bytes([good[200_000] ^ 1]) + good[200_001:])
    pickled.write_bytes(b"\x80\x04.")
    for path, word in ((cut, "cut short"), (flipped, "damaged"), (pickled, "pickle")):
        fails(cli("predict", "images", "-c", str(path), cwd=trained), path.name, word)
    fails(cli("predict", "images", "-c", "runs/none", cwd=trained), "no such checkpoint")
    fails(cli("predict", str(trained / "images"), cwd=tmp_path), "no finished run")


def test_missing_pictures(trained: Path, cli: Run) -> None:
    """A path that is not there is named before anything is loaded."""
    fails(cli("predict", "imges/", cwd=trained), "imges/")


def test_a_run_directory_that_cannot_be_made(pictures: Path, cli: Run) -> None:
    """Its path, and the flag."""
    (pictures / "file").write_text("")
    fails(cli("train", "pets.yaml", "-o", "file/run", cwd=pictures), "file/run", "--output")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("train", "--help"), ("predict", "-h")])
def test_help(tmp_path: Path, cli: Run, arguments: tuple[str, ...]) -> None:
    """Help comes without torch, and names what there is."""
    done = cli(*arguments, cwd=tmp_path)
    assert "Usage" in done.stdout + done.stderr
    assert done.returncode == (0 if arguments else 2)


def test_an_unknown_command_and_option(tmp_path: Path, cli: Run) -> None:
    """The usual usage errors, exit code 2."""
    for arguments in (("trane",), ("train",), ("train", "x.yaml", "--epochs", "3")):
        assert cli(*arguments, cwd=tmp_path).returncode == 2


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    """An exception that is no MlfinetuneError says that it is a bug, exit code 1."""
    code = "from mlfinetune.cli import app, main; app.command('boom')(lambda: 1 / 0); main()"
    done = subprocess.run([sys.executable, "-c", code, "boom"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "a bug in mlfinetune" in done.stderr


def test_a_name_in_a_message_moves_no_cursor(tmp_path: Path, cli: Run) -> None:
    """Escape sequences are shown, not obeyed."""
    name = "\x1b[2Jgone\rerror.yaml"
    done = cli("train", name, cwd=tmp_path)
    assert done.returncode == 2
    assert "gone" in done.stderr
    assert not {"\x1b", "\r"} & set(done.stderr)
