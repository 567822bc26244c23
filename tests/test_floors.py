"""The house holds: what import-linter cannot see."""

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "mlfinetune"


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh Python has loaded after `statement`."""
    code = f"{statement}\nimport sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_cli_loads_no_torch() -> None:
    """Importing the CLI loads typer and none of the heavy libraries."""
    loaded = loaded_by("import mlfinetune.cli")
    assert "typer" in loaded
    assert not loaded & {"torch", "torchvision", "numpy", "sklearn", "PIL", "yaml"}


def test_a_config_loads_without_torch() -> None:
    """A fault in the config is shown before torch is loaded."""
    loaded = loaded_by("import mlfinetune.config")
    assert "yaml" in loaded
    assert not loaded & {"torch", "torchvision", "numpy"}


def test_no_file_is_longer_than_400_lines() -> None:
    """A longer file has a second room inside."""
    long = [p.name for p in PACKAGE.rglob("*.py") if len(p.read_text().splitlines()) > 400]
    assert long == []


def test_nothing_unpickles_or_evaluates() -> None:
    """The source holds no call that runs what a file says."""
    source = "\n".join(p.read_text() for p in PACKAGE.rglob("*.py"))
    for call in ("weights_only=False", "pickle.load", "yaml.load(", "shell=True", " eval("):
        assert call not in source
