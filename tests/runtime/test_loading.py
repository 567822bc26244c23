"""Imports without the collector and without torch's compiler; both are there afterwards."""

import gc
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import run_command

from mlfinetune.runtime.loading import loading_modules


@pytest.fixture
def thawed() -> Iterator[None]:
    """Leave the collector as it was before the tests: nothing is frozen."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.usefixtures("thawed")
def test_nothing_is_collected_while_modules_load() -> None:
    """It goes on afterwards, after an error too."""
    with loading_modules():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert not gc.get_freeze_count()
    with pytest.raises(ImportError), loading_modules():
        raise ImportError
    assert gc.isenabled()


@pytest.mark.usefixtures("thawed")
def test_what_was_loaded_is_old() -> None:
    """Collections of young objects, which come often, do not look at it; it is not frozen."""
    with loading_modules():
        made = [[number] for number in range(5000)]
        ids = set(map(id, made))
    assert ids.isdisjoint(map(id, gc.get_objects(generation=0)))
    assert ids <= set(map(id, gc.get_objects(generation=2)))


SCRIPT = """
import sys
import mlfinetune.runtime.loading

with mlfinetune.runtime.loading.loading_modules():
    import torch
    import torchvision
    from torchvision.transforms import v2

assert not [name for name in sys.modules if name.startswith("torch._dynamo")]
assert torch.compiler.disable.__module__ == "torch.compiler"
"""
USES = {
    "torchvision's functions": """
boxes = [torch.tensor([[0.0, 0.0, 4.0, 4.0]])]
pooled = torchvision.ops.roi_align(torch.ones(1, 2, 8, 8), boxes, 2)
assert pooled.tolist() == torch.ones(1, 2, 2, 2).tolist()
can_compile = torchvision.ops.roi_align.__globals__["is_compile_supported"]
assert can_compile("cpu") is True and not can_compile("xla")

picture = torchvision.tv_tensors.Image(torch.zeros(3, 4, 4))
wrapped = torchvision.tv_tensors.wrap(torch.ones(3, 2, 2), like=picture)
assert type(wrapped) is torchvision.tv_tensors.Image and wrapped.shape == (3, 2, 2)
assert torchvision.tv_tensors.wrap.__name__ == "wrap"
assert v2.functional.horizontal_flip(picture).shape == (3, 4, 4)

double = torch.compile(lambda x: 2 * x, backend="eager")
assert double(torch.ones(2)).tolist() == [2, 2]
""",
    "the compiler's names": """
with mlfinetune.runtime.loading.loading_modules():
    marked = torch.compiler.disable(reason="a test")(len)
    from torch._dynamo.utils import counters
    assert counters is sys.modules["torch._dynamo.utils"].counters
assert marked([1, 2]) == 2
assert torch._dynamo.utils.counters is counters

with mlfinetune.runtime.loading.loading_modules():
    assert torch._dynamo.utils.is_compile_supported("cpu") is True
    assert torch.compiler.disable.__module__ == "torch.compiler"
""",
}


@pytest.mark.parametrize("use", USES)
def test_torchvision_is_whole_without_the_compiler(use: str, tmp_path: Path) -> None:
    """Its functions that ask the compiler load it when they are called."""
    done = run_command([sys.executable, "-c", SCRIPT + USES[use]], tmp_path)
    assert done.returncode == 0, done.stderr


COMMANDS = """
import json
import sys
from mlfinetune.cli import main
from mlfinetune.runtime.loading import loading_modules

with loading_modules():
    import faults.tiny

for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        assert not end.code
print(*sys.modules, sep="\\n")
"""


def test_commands_that_compile_nothing_load_no_compiler(pictures: Path) -> None:
    """It takes a third of the time of all imports; a solved head and a prediction need it not."""
    solved = ["model.freeze_backbone=true", "train.optimizer=lbfgs", "data.val_fraction=0.3"]
    commands = [
        ["train", "pets.yaml", *solved],
        ["eval", "--checkpoint", "runs/pets"],
        ["predict", "images", "--checkpoint", "runs/pets", "-o", "found.csv"],
    ]
    script = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    done = run_command(script, pictures, PYTHONPATH=os.pathsep.join(sys.path))
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"torch", "torchvision", "torchvision.transforms.v2", "sklearn"} <= loaded
    assert not [name for name in loaded if name.startswith("torch._dynamo")]
