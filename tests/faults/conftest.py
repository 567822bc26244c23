"""What the tests of interrupted runs share: a folder to train in, and a run left in peace."""

from dataclasses import dataclass
from pathlib import Path

import demo_data
import pytest
from torch import Tensor

from faults import children
from mlfinetune.runs import checkpoint, directory

CONFIG = """\
data: {train: tags.csv}
model: {backbone: resnet6_tiny, weights: null, image_size: 32}
train: {epochs: 2, batch_size: 8, precision: float32, workers: 0, save_minutes: 1.0e-9}
"""
"""Three steps an epoch; the state is saved after each of them."""

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Ground:
    """Where runs of one config are made.

    Attributes:
        folder: holds pictures and tiny.yaml.
        calls: what the undisturbed run did with its files.
        weights: what it ended with.
    """

    folder: Path
    calls: list[list[str]]
    weights: Weights

    def start(self, name: str, *more: str, death: children.Death | None = None) -> children.Child:
        """Start `mlfinetune train` into runs/NAME."""
        where = ("-o", f"runs/{name}", *more)
        return children.start("train", "tiny.yaml", *where, cwd=self.folder, death=death)

    def run(self, name: str) -> Path:
        """Return the run directory runs/NAME."""
        return self.folder / "runs" / name


@pytest.fixture(scope="session", autouse=True)
def server(cache: None) -> None:
    """Start the process that children are forked from."""
    children.prepare_server()


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory, server: None) -> Ground:
    """Make the folder, and the undisturbed run that other runs are compared with."""
    folder = tmp_path_factory.mktemp("ground")
    demo_data.write(folder, count=24, size=32)
    (folder / "tiny.yaml").write_text(CONFIG)
    begun = Ground(folder, [], {})
    child = begun.start("undisturbed")
    assert child.wait() == 0, child.said
    return Ground(folder, child.traced, last_weights(begun.run("undisturbed")))


def last_weights(run: Path) -> Weights:
    """Return the weights of the last epoch."""
    return checkpoint.load(run / directory.LAST).weights


def same(one: Weights, two: Weights) -> bool:
    """Return whether both are equal to the bit."""
    return one.keys() == two.keys() and all(bool((one[k] == two[k]).all()) for k in one)
