"""Imports without the collector, which is as it was afterwards."""

import gc
import subprocess
import sys

import pytest

from mlfinetune.runtime.loading import loading_modules


def test_nothing_is_collected_while_modules_load() -> None:
    """It goes on afterwards, after an error too."""
    with loading_modules():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), loading_modules():
        raise ImportError
    assert gc.isenabled()


def test_a_process_ends_without_a_word() -> None:
    """What was imported is freed at the end: some modules would report it as leaked."""
    code = (
        "import gc\n"
        "from mlfinetune.runtime.loading import loading_modules\n"
        "with loading_modules():\n"
        "    import decimal\n"
        "assert gc.isenabled() and gc.get_freeze_count()\n"
        "import atexit; atexit._run_exitfuncs(); assert not gc.get_freeze_count()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
