"""Keys and bytes on disk: `get` returns the bytes that were written, or nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlfinetune.errors import DataError
from mlfinetune.storage.store import SUFFIX, Keys, Store, hash_key, require_space

KEYS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6, unique=True)
WRITER = """
import sys
from pathlib import Path
import numpy as np
from mlfinetune.storage.store import Store
store, base = Store(Path(sys.argv[1])), int(sys.argv[2])
for n in range(60):
    store.add(np.array([base + n], np.uint64), [(base + n).to_bytes(4, "little")])
"""


def keys(*numbers: int) -> Keys:
    return np.array(numbers, np.uint64)


def contents(store: Store, *numbers: int) -> list[bytes | None]:
    """Return the value of each key, verified; None where there is none."""
    found = store.find(keys(*numbers))
    store.verify(found[found >= 0])
    return [given_back(store, at) for at in store.find(keys(*numbers)).tolist()]


def given_back(store: Store, at: int) -> bytes | None:
    """Return the result of `get`; None only where the key was not found."""
    if at < 0:
        return None
    value = store.get(at)
    assert value is not None
    return bytes(value)


def two_files(folder: Path) -> tuple[Path, int]:
    """Write keys 1, 2, 3 to one file, 4 to another; return the first, and where values start."""
    Store(folder).add(keys(4), [b"other"])
    before = set(folder.iterdir())
    Store(folder).add(keys(1, 2, 3), [b"one", b"", b"three"])
    [path] = set(folder.iterdir()) - before
    return path, path.stat().st_size - len(b"onethree")


def flip(path: Path, at: int) -> None:
    """Change one bit of the byte at `at`."""
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


@settings(max_examples=40, deadline=None)
@given(KEYS, st.data())
def test_what_was_added_is_found(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], data: st.DataObject
) -> None:
    """Any keys, values of any length, in any number of files, by this process and the next."""
    folder = tmp_path_factory.mktemp("store")
    values = data.draw(st.lists(st.binary(), min_size=len(numbers), max_size=len(numbers)))
    parts = data.draw(st.integers(1, len(numbers)))
    writing = Store(folder)
    for part in np.array_split(np.arange(len(numbers)), parts):
        writing.add(keys(*(numbers[i] for i in part)), [values[i] for i in part])
    for store in (writing, Store(folder)):
        assert (len(store), store.damaged) == (len(numbers), 0)
        assert contents(store, *numbers[::-1]) == values[::-1]


@settings(max_examples=40, deadline=None)
@given(KEYS, KEYS)
def test_what_was_not_added_is_not_found(
    tmp_path_factory: pytest.TempPathFactory, there: list[int], asked: list[int]
) -> None:
    """A key that is near another one, below all or above all of them, is not there."""
    store = Store(tmp_path_factory.mktemp("store"))
    assert store.find(keys(*asked)).tolist() == [-1] * len(asked)
    store.add(keys(*there), [b"x"] * len(there))
    near = [*asked, *((key + 1) % 2**64 for key in there)]
    assert [at >= 0 for at in store.find(keys(*near))] == [key in there for key in near]
    assert store.find(keys()).shape == (0,)


def test_rows_come_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    """From several files, one of them twice, none at all."""
    store = Store(tmp_path)
    for start in (0, 10, 20):
        store.add(keys(*range(start, start + 3)), [bytes([start + i, 9]) for i in range(3)])
    wanted = [21, 0, 12, 0, 20]
    rows = store.read_rows(store.find(keys(*wanted)), 2)
    assert rows.tolist() == [[key, 9] for key in wanted]
    assert store.read_rows(store.find(keys()), 2).shape == (0, 2)


@pytest.mark.parametrize("place", ["empty", "count", "keys", "index", "values", "last byte"])
def test_a_truncated_file_is_deleted(tmp_path: Path, place: str) -> None:
    """A file cut at any byte is deleted and counted; the other file is served."""
    path, start = two_files(tmp_path)
    whole = path.stat().st_size
    ends = {"empty": 0, "count": 5, "keys": 20, "index": start - 1, "values": start}
    os.truncate(path, ends.get(place, whole - 1))
    store = Store(tmp_path)
    assert contents(store, 1, 2, 3, 4) == [None, None, None, b"other"]
    assert store.damaged == 1
    assert not path.exists()


def test_a_file_that_grew_is_deleted(tmp_path: Path) -> None:
    """Nobody adds to a file that is whole."""
    path, _ = two_files(tmp_path)
    with path.open("ab") as file:
        file.write(b"\0")
    assert contents(Store(tmp_path), 1, 4) == [None, b"other"]
    assert not path.exists()


def test_any_changed_byte_of_the_index_is_noticed(tmp_path: Path) -> None:
    """Counts, keys, ends and checks: the file is deleted as the store is opened."""
    path, start = two_files(tmp_path)
    whole = path.read_bytes()
    for at in range(start):
        path.write_bytes(whole)
        flip(path, at)
        store = Store(tmp_path)
        assert (len(store), store.damaged, path.exists()) == (1, 1, False)


def test_any_changed_byte_of_a_value_is_noticed(tmp_path: Path) -> None:
    """`verify` deletes the file, and what the other file holds is found where it is then."""
    path, start = two_files(tmp_path)
    whole = path.read_bytes()
    for at in range(start, len(whole)):
        path.write_bytes(whole)
        flip(path, at)
        store = Store(tmp_path)
        assert contents(store, 1, 2, 3, 4) == [None, None, None, b"other"]
        assert (len(store), store.damaged, path.exists()) == (1, 1, False)


def test_a_damaged_value_is_not_given_away(tmp_path: Path) -> None:
    """`get` gives nothing, and the next process finds nothing; the others are as they were."""
    path, start = two_files(tmp_path)
    flip(path, start)
    store = Store(tmp_path)
    one, three, other = store.find(keys(1, 3, 4)).tolist()
    assert given_back(store, three) == b"three"
    assert store.get(one) is None
    assert given_back(store, other) == b"other"
    assert contents(Store(tmp_path), 1, 4) == [None, b"other"]


def test_verify_reads_what_it_is_asked_for_alone(tmp_path: Path) -> None:
    """A file whose damage concerns nobody here is left as it is."""
    path, start = two_files(tmp_path)
    flip(path, start)
    assert contents(Store(tmp_path), 3, 4) == [b"three", b"other"]
    assert path.exists()


def test_a_file_under_another_name_is_damaged(tmp_path: Path) -> None:
    """The name is the index's digest."""
    path, _ = two_files(tmp_path)
    path.rename(tmp_path / f"{'0' * 64}{SUFFIX}")
    assert contents(Store(tmp_path), 1, 4) == [None, b"other"]


def test_half_written_files_are_ignored_and_swept_after_a_day(tmp_path: Path) -> None:
    """A young one may be another process's, which is still writing."""
    path, _ = two_files(tmp_path)
    young, old = tmp_path / "young.part", tmp_path / "old.part"
    for part in (young, old):
        part.write_bytes(path.read_bytes()[:-1])
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    store = Store(tmp_path)
    assert (len(store), store.damaged) == (4, 0)
    assert (young.exists(), old.exists()) == (True, False)


def test_a_key_that_was_added_twice(tmp_path: Path) -> None:
    """Two processes had the same idea: either value serves, and the other one where one breaks."""
    for extra in (2, 3):
        Store(tmp_path).add(keys(1, extra), [b"same", b"x"])
    assert contents(Store(tmp_path), 1) == [b"same"]
    first = sorted(tmp_path.iterdir())[0]
    flip(first, first.stat().st_size - 2)  # of "same"
    assert contents(Store(tmp_path), 1) == [b"same"]


def test_processes_write_and_open_at_the_same_time(tmp_path: Path) -> None:
    """Two add, one opens the folder again and again: nothing is lost, nothing is taken for bad."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen([*command, "1000"]) as one, subprocess.Popen([*command, "2000"]) as two:
        while one.poll() is None or two.poll() is None:
            assert Store(tmp_path).damaged == 0
    assert (one.returncode, two.returncode) == (0, 0)
    numbers = [base + n for base in (1000, 2000) for n in range(60)]
    expected = [number.to_bytes(4, "little") for number in numbers]
    assert contents(Store(tmp_path), *numbers) == expected


def test_a_store_serves_what_another_process_deleted(tmp_path: Path) -> None:
    """`mlfinetune cache --clear` beside a run: what is open stays; adding is an error to mend."""
    two_files(tmp_path)
    store = Store(tmp_path)
    for file in tmp_path.iterdir():
        file.unlink()
    tmp_path.rmdir()
    assert contents(store, 1, 4) == [b"one", b"other"]
    with pytest.raises(DataError, match="cannot write to the cache"):
        store.add(keys(5), [b"five"])


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    """With both figures, and what makes room."""
    require_space(tmp_path, 0, "nothing")
    with pytest.raises(DataError, match=r"^tea needs 1000000\.00 GB in .* GB are free; .*--clear"):
        require_space(tmp_path, 10**15, "tea")
    assert not list(tmp_path.iterdir())


def test_keys_tell_their_parts_apart() -> None:
    """Pinned: with other keys everything would be computed again, by everybody."""
    assert hash_key("a", 1, 2.5) == hash_key("a", "1", "2.5") == 12193838796401378120
    different = [
        hash_key("ab", "c"),
        hash_key("a", "bc"),
        hash_key("abc"),
        hash_key("abc", ""),
        hash_key(),
    ]
    assert len(set(different)) == 5
    assert 0 <= hash_key(os.fsdecode(b"\xff.jpg")) < 2**64
