"""Imports without the collector, which is as it was afterwards."""

import gc

import pytest

from mlfinetune.runtime.loading import loading_modules


def test_nothing_is_collected_while_modules_load() -> None:
    """It goes on afterwards, after an error too."""
    with loading_modules():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert not gc.get_freeze_count()
    with pytest.raises(ImportError), loading_modules():
        raise ImportError
    assert gc.isenabled()


def test_what_was_loaded_is_old() -> None:
    """Collections of young objects, which come often, do not look at it; it is not frozen."""
    with loading_modules():
        made = [[number] for number in range(5000)]
        ids = set(map(id, made))
    assert ids.isdisjoint(map(id, gc.get_objects(generation=0)))
    assert ids <= set(map(id, gc.get_objects(generation=2)))
