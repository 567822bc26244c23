"""The functions of `import mlfinetune`: load, train and evaluate, as the commands do them.

    run directory, file or URL -> load     -> Tagger
    config                     -> train    -> Run
    run, data                  -> evaluate -> Results

Errors are MlfinetuneErrors. Progress and warnings go to standard error, and nothing to standard
output.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlfinetune.config import build_overrides, load_config, load_tree
from mlfinetune.data.inputs import parse_data
from mlfinetune.errors import ConfigError
from mlfinetune.predicting.backend import open_backend
from mlfinetune.predicting.remote import locate_checkpoint, parse_source
from mlfinetune.predicting.tagger import Tagger
from mlfinetune.runs import directory
from mlfinetune.runtime.device import choose_device
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.torchrun import dist_info
from mlfinetune.training.start import plan_start
from mlfinetune.workflows import evaluate as evaluating
from mlfinetune.workflows import train as training

PathText = str | os.PathLike[str]


@dataclass(frozen=True)
class Results:
    """Numbers of a tagger on labelled pictures, and the folder that holds them.

    `results["mAP"]` is short for `results.metrics["mAP"]`.

    Attributes:
        path: folder of metrics.json, per_label.csv, predictions.csv and report.html.
        metrics: content of metrics.json.
    """

    path: Path
    metrics: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.metrics[name]

    def __fspath__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Run(Results):
    """A finished run: its directory, and its numbers on validation data."""

    def load(self, device: str = "auto") -> Tagger:
        """Return the tagger of the run's best epoch."""
        return load(self.path, device)


def load(source: PathText, device: str = "auto") -> Tagger:
    """Load a tagger.

    Args:
        source: run directory, checkpoint, .onnx that `mlfinetune export` wrote, or a URL of one:
            https://, s3://, hf://. A checkpoint behind a URL is kept in the cache, by the digest
            that it names.
        device: auto, cpu, cuda, cuda:N or mps; an .onnx is computed on the CPU. A torch.device too.

    Raises:
        CheckpointError: there is none, or it is damaged or of another program.
        DeviceError: this machine has no such device.
    """
    return Tagger(open_backend(parse_source(source), choose_device(str(device))))


def train(
    config: PathText | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    output: PathText | None = None,
    resume: bool = False,
    device: str = "auto",
) -> Run:
    """Train as `mlfinetune train` does, and return the finished run.

    Args:
        config: YAML file; or its content, where relative paths start from the current folder.
        overrides: config key -> value, as `{"train.epochs": 3}`.
        output: run directory; None: runs/NAME, as the config says. One that is taken gets a number.
        resume: continue the newest run of this config, or begin a new one.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        MlfinetuneError: config, data, weights, device or run directory that cannot be used.
    """
    _require_one_process("train")
    texts = build_overrides(overrides or {})
    if isinstance(config, Mapping):
        path, loaded = None, load_tree(config, texts)
    else:
        path = Path(config)
        loaded = load_config(path, texts)
    folder = None if output is None else Path(output).absolute()
    loaded, options = plan_start(path, loaded, folder, resume)
    result = training.run(loaded, device, RunLog(), options)
    assert result is not None
    return Run(result.run, _read_metrics(result.run))


def evaluate(
    run: PathText,
    data: PathText | None = None,
    split: str | None = None,
    images: PathText | None = None,
    output: PathText | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Results:
    """Score labelled pictures as `mlfinetune eval` does, and return the numbers.

    Args:
        run: run directory or checkpoint, also a Run; or a URL, together with `data` and `output`.
        data: table or folder; None: the run's validation data.
        split: score only the rows with this value in the split column.
        images: folder or URL that the table's paths start from; None: the table's folder.
        output: folder for the results; None: eval/ in the run, of other data eval-TABLE/.
        overrides: config key -> value, as `{"data.bad_images": "skip"}`.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        MlfinetuneError: a checkpoint, data, device or output that cannot be used.
    """
    _require_one_process("evaluate")
    request = evaluating.EvalRequest(
        checkpoint=locate_checkpoint(run, data, output),
        data=parse_data(data),
        split=split,
        images=parse_data(images),
        output=None if output is None else Path(output),
        overrides=tuple(build_overrides(overrides or {})),
    )
    result = evaluating.run(request, device, RunLog())
    assert result is not None
    return Results(result.folder, _read_metrics(result.folder))


def _read_metrics(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / directory.METRICS).read_text("utf-8"))
    return metrics


def _require_one_process(name: str) -> None:
    if dist_info().size > 1:
        raise ConfigError(
            f"mlfinetune.{name} runs in one process; with several, give torchrun the command: "
            f"torchrun --nproc-per-node N -m mlfinetune {'eval' if name == 'evaluate' else name}"
        )
