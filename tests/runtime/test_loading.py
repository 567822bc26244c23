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
