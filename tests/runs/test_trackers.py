"""The numbers of every epoch arrive at TensorBoard, Weights & Biases and MLflow.

TensorBoard's and MLflow's own readers say so; the file that `wandb sync` sends is read by wandb's
protocol buffers. All three are imported by the tests that use them: every process of tests collects
this file, one runs it.
"""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, prepare, run_child

from mlfinetune.errors import ConfigError
from mlfinetune.runs import trackers
from mlfinetune.runs.trackers import require_trackers


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two epochs that went to all three."""
    folder = prepare(tmp_path_factory.mktemp("tracked"))
    environment = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": str(folder / "mlruns"),
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    trackers = "train.trackers=[tensorboard, wandb, mlflow]"
    done = run_child("train", "pets.yaml", trackers, "train.epochs=2", cwd=folder, **environment)
    assert done.returncode == 0, done.stderr
    return folder


def history(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl: what should have arrived."""
    lines = (folder / "runs/pets/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    return [json.loads(line) for line in lines]


def test_tensorboard_reads_the_run_directory(tracked: Path) -> None:
    """Every number of every epoch, in single precision."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / "runs/pets"))
    events.Reload()
    for number, row in enumerate(history(tracked)):
        for name in ("loss", "mAP", "macro_F1", "lr"):
            event = events.Scalars(name)[number]
            assert (event.step, event.value) == (row["epoch"], pytest.approx(row[name], rel=1e-6))


def test_mlflow_has_numbers_and_config(tracked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run of the run directory's name."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(str(tracked / "mlruns"))
    (run,) = client.search_runs(["0"])
    assert (run.info.run_name, run.info.status) == ("pets", "FINISHED")
    assert run.data.params["train.epochs"] == "2"
    found = sorted(client.get_metric_history(run.info.run_id, "mAP"), key=lambda m: m.step)
    assert [(m.step, m.value) for m in found] == [(r["epoch"], r["mAP"]) for r in history(tracked)]


def leveldb_log(content: bytes) -> Iterator[bytes]:
    """Yield the records of LevelDB's log format, behind a file header of 7 bytes."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # the rest of a block that holds no header is padding
            at += 32768 - at % 32768
        length, kind = struct.unpack_from("<HB", content, at + 4)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or last
            yield parts
            parts = b""


def test_wandb_has_numbers_and_config(tracked: Path) -> None:
    """In the file that `wandb sync` would send."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (tracked / "runs/pets/wandb").glob("offline-run-*/*.wandb")
    records = [Record.FromString(data) for data in leveldb_log(path.read_bytes())]
    rows: list[dict[str, Any]] = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in r.history.item}
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]
    assert [row["mAP"] for row in rows] == [row["mAP"] for row in history(tracked)]
    assert [row["_step"] for row in rows] == [1, 2]


def test_one_that_is_not_installed_says_how_to_install_it(
    pictures: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything else is done; no run directory is left."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'mlfinetune\[wandb\]'"):
        require_trackers(["wandb"])
    done = cli("train", "pets.yaml", "train.trackers=[wandb]", cwd=pictures)
    assert (done.returncode, (pictures / "runs").exists()) == (2, False)


@pytest.mark.parametrize("gone", ["opened", "written"])
def test_a_service_that_cannot_be_used_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """At the start, as without a login, or at an epoch; the message names it."""

    class Service:
        def __init__(self, *_: object) -> None:
            if gone == "opened":
                raise RuntimeError("no\nlogin")

        def write(self, epoch: int, numbers: dict[str, float]) -> None:
            raise OSError("no\nlogin")

        def close(self) -> None:
            pass

    monkeypatch.setitem(trackers._TRACKERS, "mlflow", Service)
    with (
        pytest.raises(ConfigError, match=r"train.trackers: mlflow cannot be used: no login; mend"),
        trackers.opened_trackers(["mlflow"], tmp_path, {}) as write,
    ):
        write(1, {"mAP": 0.5})
