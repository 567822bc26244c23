"""The numbers of every epoch, for TensorBoard, Weights & Biases and MLflow: extras, all of them.

    names, run directory, config -> opened -> write(epoch, numbers), write(...), ...

Where a service keeps its runs, and who may write to it, is its own affair: its environment
variables (`WANDB_MODE`, `WANDB_PROJECT`, `MLFLOW_TRACKING_URI`, ...) and its login apply.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from mlfinetune.errors import ConfigError

Write = Callable[[int, dict[str, float]], None]


class Tracker(Protocol):
    """Where numbers go."""

    def write(self, epoch: int, numbers: dict[str, float]) -> None:
        """The numbers of one epoch."""

    def close(self) -> None:
        """Everything is written, and the run has ended."""


@contextmanager
def opened_trackers(names: Sequence[str], run: Path, config: dict[str, Any]) -> Iterator[Write]:
    """What writes an epoch's numbers to each of `names`, for the run directory `run`.

    Args:
        config: the resolved config, nested, as the services show it beside the numbers.
    """
    with ExitStack() as stack:
        found: list[Tracker] = []
        for name in names:
            found.append(_TRACKERS[name](run, config))
            stack.callback(found[-1].close)

        def write(epoch: int, numbers: dict[str, float]) -> None:
            for tracker in found:
                tracker.write(epoch, numbers)

        yield write


def require_trackers(names: Sequence[str]) -> None:
    """Are their packages installed?

    Raises:
        ConfigError: one is not; how to install it.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"train.trackers: {name} cannot be imported ({error}); "
                f"pip install 'mlfinetune[{name}]', or take it out"
            ) from error


def flatten_keys(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= (
            flatten_keys(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {prefix + key: value}
        )
    return found


class _TensorBoard:
    """Event files in the run directory: `tensorboard --logdir runs`."""

    def __init__(self, run: Path, config: dict[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(run))

    def write(self, epoch: int, numbers: dict[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=x) for name, x in numbers.items()]
        self._writer.add_event(self._event(step=epoch, summary=self._summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run: Path, config: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(dir=run, name=run.name, config=config)

    def write(self, epoch: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=epoch)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, run: Path, config: dict[str, Any]) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.start_run(run_name=run.name)
        mlflow.log_params(flatten_keys(config))

    def write(self, epoch: int, numbers: dict[str, float]) -> None:
        self._mlflow.log_metrics(numbers, step=epoch)

    def close(self) -> None:
        self._mlflow.end_run()


_TRACKERS: dict[str, Callable[[Path, dict[str, Any]], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _MLflow,
}
