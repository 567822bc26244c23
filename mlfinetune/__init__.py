"""Turn a pretrained network into a multi-label image tagger, from the command line or from Python.

    tagger = mlfinetune.load("runs/pets")        for found in tagger.predict(["a.jpg"]): ...
    run = mlfinetune.train("pets.yaml")          results = mlfinetune.evaluate(run, data="new.csv")

docs/python.md shows them. Importing the package loads no torch: a name below is loaded when it is
first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from mlfinetune.errors import MlfinetuneError
from mlfinetune.version import __version__

if TYPE_CHECKING:
    from mlfinetune import loss
    from mlfinetune.door import Results, Run, evaluate, load, train
    from mlfinetune.predicting.pictures import Picture
    from mlfinetune.predicting.records import TaggedImage
    from mlfinetune.predicting.tagger import Tagger

__all__ = [
    "MlfinetuneError",
    "Picture",
    "Results",
    "Run",
    "TaggedImage",
    "Tagger",
    "__version__",
    "evaluate",
    "load",
    "loss",
    "train",
]

_HOMES = {
    "Picture": "predicting.pictures",
    "Results": "door",
    "Run": "door",
    "TaggedImage": "predicting.records",
    "Tagger": "predicting.tagger",
    "evaluate": "door",
    "load": "door",
    "train": "door",
}
"""Name -> module of it, imported when the name is first used."""


def __getattr__(name: str) -> object:
    if name == "loss":
        return import_module("mlfinetune.loss")
    if name not in _HOMES:
        raise AttributeError(f"module 'mlfinetune' has no attribute {name!r}")
    value = getattr(import_module(f"mlfinetune.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
