"""`mlfinetune cache`: what is listed, and what goes."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from conftest import Run

Cache = Callable[..., CompletedProcess[str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a cache with two entries of features, last used two hours ago, and one file of scan."""
    root, used = tmp_path / "cache", time.time() - 2 * 3600 - 60
    for name, size in (("one", 1_500_000), ("two", 300_000)):
        (root / "features" / name).mkdir(parents=True)
        for part in ("a.store", "b.store"):
            path = root / "features" / name / part
            path.write_bytes(bytes(size // 2))
            os.utime(path, (used, used))
        os.utime(root / "features" / name, (used, used))
    (root / "scan").mkdir()
    (root / "scan" / "3.sqlite").write_bytes(bytes(200_000))
    return root


@pytest.fixture
def kept(root: Path, cli: Run) -> Cache:
    """Run `mlfinetune cache ...` on the cache of `root`."""
    return lambda *arguments: cli("cache", *arguments, cwd=root.parent, MLFINETUNE_CACHE=str(root))


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


FEATURES = {f"features/{name}/{part}.store" for name in ("one", "two") for part in "ab"}


def test_it_lists_what_is_kept(root: Path, kept: Cache) -> None:
    """Size, age and name on standard output, the sum and the folder on standard error."""
    done = kept()
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows == [
        ["1.5", "MB", "2", "hours", "features/one"],
        ["0.3", "MB", "2", "hours", "features/two"],
        ["0.2", "MB", "just", "now", "scan/3.sqlite"],
    ]
    assert f"{root}: 2.0 MB in all" in done.stderr
    assert names(root) == {*FEATURES, "scan/3.sqlite"}


def test_it_lists_one_kind(kept: Cache) -> None:
    """The others are neither listed nor counted."""
    done = kept("scan")
    assert done.stdout.split()[-1] == "scan/3.sqlite"
    assert len(done.stdout.splitlines()) == 1
    assert "0.2 MB in all" in done.stderr


def test_it_clears_one_kind(root: Path, kept: Cache) -> None:
    """And says what went."""
    done = kept("features", "--clear")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    assert "1.8 MB deleted" in done.stderr
    assert names(root) == {"scan/3.sqlite"}


def test_it_clears_all(root: Path, kept: Cache) -> None:
    """Then there is nothing to list, and to clear again is no mistake."""
    assert kept("--clear").returncode == 0
    assert names(root) == set()
    for arguments in ((), ("--clear",)):
        done = kept(*arguments)
        assert (done.returncode, done.stdout) == (0, "")


def test_an_unknown_kind_has_a_hint(root: Path, kept: Cache) -> None:
    """A typo clears nothing, not even of the kinds beside it that are known."""
    done = kept("scan", "feature", "--clear")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no kind 'feature'" in done.stderr
    assert "did you mean 'features'?" in done.stderr
    assert names(root) == {*FEATURES, "scan/3.sqlite"}


@pytest.mark.parametrize("kind", ["..", ".", "/", "features/one", "../other"])
def test_a_kind_is_no_path(root: Path, kept: Cache, kind: str) -> None:
    """Nothing outside of the cache can be named."""
    (root.parent / "other").mkdir()
    (root.parent / "other" / "mine.txt").write_text("mine")
    assert kept(kind, "--clear").returncode == 2
    assert (root.parent / "other" / "mine.txt").exists()
    assert names(root) == {*FEATURES, "scan/3.sqlite"}


def test_no_cache_yet(tmp_path: Path, cli: Run) -> None:
    """Nothing is listed, and no folder is made."""
    done = cli("cache", cwd=tmp_path, MLFINETUNE_CACHE=str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (0, "")
    assert "0.0 MB" in done.stderr
    assert not (tmp_path / "none").exists()


def test_what_is_no_cache_of_ours_stays(root: Path, kept: Cache) -> None:
    """A folder that MLFINETUNE_CACHE names may hold other things: they are not ours."""
    for foreign in ("photos/2020/a.jpg", "notes.txt", ".git/config"):
        (root / foreign).parent.mkdir(parents=True, exist_ok=True)
        (root / foreign).write_text("mine")
    done = kept("--clear")
    assert "photos" not in done.stdout
    assert names(root) == {"photos/2020/a.jpg", "notes.txt", ".git/config"}


def test_a_link_goes_and_what_it_points_to_stays(root: Path, kept: Cache, tmp_path: Path) -> None:
    """Features may lie on another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.store").write_bytes(b"1")
    (root / "features" / "link").symlink_to(tmp_path / "disk")
    assert kept("features", "--clear").returncode == 0
    assert not (root / "features" / "link").exists()
    assert (tmp_path / "disk" / "a.store").exists()


def test_a_broken_link_is_no_bug(root: Path, kept: Cache) -> None:
    """It is listed or left out, and goes with the rest."""
    (root / "features" / "one" / "broken.store").symlink_to("nowhere")
    (root / "features" / "broken").symlink_to("nowhere")
    for arguments in ((), ("--clear",)):
        done = kept(*arguments)
        assert done.returncode == 0, done.stderr
    assert not list((root / "features").iterdir())


def test_a_used_store_is_young(pictures: Path, cli: Run) -> None:
    """A run that reuses features says so by the time beside them, though it writes nothing."""
    folder = pictures / "cache"
    frozen = ("model.freeze_backbone=true", "model.image_size=32", "train.optimizer=adamw")

    def run(*arguments: str) -> CompletedProcess[str]:
        return cli(*arguments, cwd=pictures, MLFINETUNE_CACHE=str(folder))

    assert run("train", "pets.yaml", *frozen).returncode == 0
    for path in [*folder.rglob("*")]:
        os.utime(path, (time.time() - 3 * 86400 - 60,) * 2)
    lines = run("cache", "features").stdout.splitlines()
    assert len(lines) == 1, lines
    assert "3 days" in lines[0]
    assert "features/resnet6_tiny-32-squash-" in lines[0]
    assert run("train", "pets.yaml", *frozen).returncode == 0
    assert "just now" in run("cache", "features").stdout
