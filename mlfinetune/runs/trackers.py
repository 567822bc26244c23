"""Trackers: the numbers of every epoch go to TensorBoard, Weights & Biases or MLflow.

    names, run directory, config -> opened_trackers -> write(epoch, numbers), write(...), ...

Each package is an extra. A service's own environment variables (`WANDB_MODE`, `WANDB_PROJECT`,
`MLFLOW_TRACKING_URI`, ...) and its login decide where its runs are kept.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from mlfinetune.errors import ConfigError
from mlfinetune.runs.settings import flatten_keys

Write = Callable[[int, dict[str, float]], None]


class Tracker(Protocol):
    """Destination of the numbers of each epoch."""

    def write(self, epoch: int, numbers: dict[str, float]) -> None:
        """Write the numbers of one epoch."""

    def close(self) -> None:
        """Write everything that is left, and end the run in the service."""


@contextmanager
def opened_trackers(names: Sequence[str], run: Path, config: dict[str, Any]) -> Iterator[Write]:
    """Open trackers for a block, and give the function that writes an epoch's numbers to all.

    Args:
        names: keys of the config's `train.trackers`.
        run: the run directory.
        config: the resolved config, nested, as the services show it beside the numbers.

    Raises:
        ConfigError: a service cannot be used, now or at an epoch: no login, a server that is gone.
    """
    with ExitStack() as stack:
        trackers: dict[str, Tracker] = {}
        for name in names:
            with _naming(name):
                trackers[name] = _TRACKERS[name](run, config)
            stack.callback(trackers[name].close)

        def write(epoch: int, numbers: dict[str, float]) -> None:
            for name, tracker in trackers.items():
                with _naming(name):
                    tracker.write(epoch, numbers)

        yield write


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Raise a ConfigError for every error of a service: each package has its own kinds."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or repr(error)
        raise ConfigError(
            f"train.trackers: {name} cannot be used: {reason}; mend its settings, or take it out"
        ) from error


def require_trackers(names: Sequence[str]) -> None:
    """Check that the packages of these trackers can be imported.

    Raises:
        ConfigError: one cannot; the message says how to install it.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"train.trackers: {name} cannot be imported ({error}); "
                f"pip install 'mlfinetune[{name}]', or take it out"
            ) from error


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
