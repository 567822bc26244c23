"""The page that train and eval write, and `mlfinetune report`, which writes it again."""

import csv
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from conftest import Run

from mlfinetune.data.images.decode import make_placeholder
from mlfinetune.errors import ImageError
from mlfinetune.report import MapSource
from mlfinetune.report.write import write_report
from mlfinetune.runs import checkpoint
from mlfinetune.runs.near_duplicates import write_near_duplicates
from mlfinetune.runs.results import read_scores
from mlfinetune.runtime.log import RunLog


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run."""
    return Path(shutil.copytree(trained / "runs/pets", tmp_path / "pets"))


def test_train_writes_the_page(trained: Path) -> None:
    """With the numbers of metrics.json, pictures, and where they come from."""
    page = (trained / "runs/pets/report.html").read_text()
    content = json.loads((trained / "runs/pets/metrics.json").read_text())
    assert f"{content['mAP']:.3f}" in page
    assert "data:image/jpeg;base64," in page
    assert "per_label, fitted on the same images" in page


def test_report_writes_the_same_page_again(run: Path, cli: Run) -> None:
    """From the folder's files alone: no checkpoint is needed."""
    before = (run / "report.html").read_bytes(), (run / "suspects.csv").read_bytes()
    for name in ("report.html", "suspects.csv", "best.safetensors", "last.safetensors"):
        (run / name).unlink()
    done = cli("report", str(run), cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{run / 'report.html'}\n"
    after = (run / "report.html").read_bytes(), (run / "suspects.csv").read_bytes()
    title = str(run.relative_to(run.parent)).encode()
    assert after[1] == before[1]
    assert after[0] == before[0].replace(b"runs/pets", title)


def test_report_runs_without_torch(run: Path) -> None:
    """In a fresh process, from the command to the page; importing torch takes seconds."""
    (run / "report.html").unlink()
    code = (
        "import sys; from mlfinetune.cli import main\n"
        f"sys.argv = ['mlfinetune', 'report', {str(run)!r}]\n"
        "try: main()\n"
        "finally: print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").is_file()
    loaded = set(done.stderr.splitlines()[-1].split())
    assert {"numpy", "jinja2", "sklearn"} <= loaded
    assert not loaded & {"torch", "torchvision"}


def test_pictures_that_are_gone_leave_a_page(run: Path, cli: Run) -> None:
    """Placeholders stand for them."""
    content = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(content | {"images_root": str(run / "none")}))
    assert cli("report", str(run), cwd=run).returncode == 0
    assert "data:image/jpeg;base64," in (run / "report.html").read_text()


@pytest.mark.parametrize("root", ["", "https://example.org/pictures"])
def test_ctrl_c_ends_the_wait_for_a_server(
    run: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    """Pictures behind URLs are read in the main thread: other threads would wait to the end."""
    content = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(content | ({"images_root": root} if root else {})))
    threads: dict[str, set[threading.Thread]] = {"thumbnails": set(), "maps": set()}

    def make(_path: str, side: int, _limit: int) -> bytes:
        threads["thumbnails"].add(threading.current_thread())
        return make_placeholder(side)

    def explain(path: str, _columns: Sequence[int]) -> NoReturn:
        threads["maps"].add(threading.current_thread())
        raise ImageError(path, "not there")

    monkeypatch.setattr("mlfinetune.report.write.make_thumbnail", make)
    monkeypatch.setattr("mlfinetune.report.write.count_process_cores", lambda: 4)
    write_report(run, RunLog(), MapSource(explain, "", 8, threads=4))
    for used in threads.values():
        assert used == {threading.main_thread()} if root else threading.main_thread() not in used


def test_near_duplicates_of_the_folder_are_shown(run: Path, cli: Run) -> None:
    """On the page and in suspects.csv, from the file that lies beside the scores."""
    scores = read_scores(run)
    write_near_duplicates(run, scores.names, np.zeros(len(scores.names), np.int64))
    assert cli("report", str(run), cwd=run).returncode == 0
    assert "Near duplicates with different tags" in (run / "report.html").read_text()
    with (run / "suspects.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["near_duplicates"] == "1"]
    assert len({(row["image"], row["label"]) for row in rows}) == len(rows) > 2


def test_eval_writes_a_page_too(trained: Path, cli: Run, tmp_path: Path) -> None:
    """Into its own folder, with the suspects as a table."""
    done = cli("eval", "--checkpoint", "runs/pets", "-o", str(tmp_path / "e"), cwd=trained)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "e/report.html").is_file()
    with (tmp_path / "e/suspects.csv").open(newline="") as file:
        assert next(csv.reader(file))[:5] == ["image", "label", "given", "probability", "why"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("scores.npz", b"PK\x03\x04 no archive", "scores.npz is damaged"),
        ("scores.npz", None, "holds no scores.npz"),
        ("metrics.json", b"{}", "does not tell the thresholds"),
    ],
)
def test_what_is_no_run_is_said(
    run: Path, cli: Run, name: str, content: bytes | None, said: str
) -> None:
    """Exit code 2, and no traceback."""
    (run / name).unlink() if content is None else (run / name).write_bytes(content)
    done = cli("report", str(run), cwd=run)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert said in done.stderr


def test_metrics_of_another_version_are_said(run: Path, cli: Run) -> None:
    """Without intervals there is no page."""
    content = json.loads((run / "metrics.json").read_text())
    del content["intervals"]
    (run / "metrics.json").write_text(json.dumps(content))
    done = cli("report", str(run), cwd=run)
    assert done.returncode == 2
    assert "is not of this version" in done.stderr


def test_thresholds_travel_with_the_checkpoint(trained: Path, cli: Run) -> None:
    """Fitted in train, kept in best.safetensors, applied by predict label by label."""
    kept = checkpoint.load(trained / "runs/pets/best.safetensors").decision
    content = json.loads((trained / "runs/pets/metrics.json").read_text())
    assert kept.how == content["threshold_source"] == "per_label"
    labels = content["per_label"]
    assert [row["threshold"] for row in labels.values()] == list(kept.thresholds)
    assert len(set(kept.thresholds)) > 1
    done = cli("predict", "images", "-c", "runs/pets", "--format", "jsonl", cwd=trained)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 24
    for row in rows:
        over = [name for name, p in row["scores"].items() if p >= labels[name]["threshold"]]
        assert row["labels"] == over
    assert "thresholds 0." in done.stderr


def test_eval_refits_only_on_the_data_that_may_fit(trained: Path, cli: Run, tmp_path: Path) -> None:
    """Other thresholds on validation, or fixed ones anywhere; never fitted on what is scored."""
    evaluate = ("eval", "-c", "runs/pets", "-o")
    fitted = ("eval.thresholds=global", "eval.calibration=platt")
    done = cli(*evaluate, str(tmp_path / "e"), *fitted, cwd=trained)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "e/metrics.json").read_text())
    assert (content["threshold_source"], content["calibration"]["how"]) == ("global", "platt")
    assert content["calibration"]["calibrated"].keys() == {
        *("ECE", "ECE_by_chance", "Brier", "reliability")
    }
    page = (tmp_path / "e/report.html").read_text()
    assert "Before calibration: off by" in page
    assert "Calibrated: off by" in page
    other = (str(tmp_path / "other"), "--data", "tags.csv")
    done = cli(*evaluate, *other, "eval.thresholds=global", cwd=trained)
    assert (done.returncode, "fitted on the run's validation data" in done.stderr) == (2, True)
    done = cli(*evaluate, *other, "eval.thresholds=fixed", "eval.threshold=0.25", cwd=trained)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "other/metrics.json").read_text())
    assert {row["threshold"] for row in content["per_label"].values()} == {0.25}


def test_the_protocol_of_ap_is_the_configs(trained: Path, cli: Run, tmp_path: Path) -> None:
    """VOC's numbers, said to be such."""
    arguments = ("eval", "-c", "runs/pets", "-o", str(tmp_path / "e"), "eval.ap=voc_11point")
    assert cli(*arguments, cwd=trained).returncode == 0
    content = json.loads((tmp_path / "e/metrics.json").read_text())
    plain = json.loads((trained / "runs/pets/metrics.json").read_text())
    assert content["ap"] == "voc_11point"
    assert content["mAP"] != plain["mAP"]
    assert content["threshold_source"] == "per_label"


AWAY = object()
ODD: list[tuple[str, object]] = [
    ("ap", "voc"),
    ("ap", ["sklearn"]),
    ("per_label/*/threshold", 10**400),
    ("per_label/*/threshold", float("nan")),
    ("per_label/*/threshold", 2),
    ("per_label", []),
    ("intervals", AWAY),
    ("intervals/mAP", "x"),
    ("intervals/mAP", [[1]]),
    ("intervals/mAP/0", "x"),
    ("intervals/mAP/0", 10**400),
    ("intervals/mAP/0", float("inf")),
    ("intervals/per_label/*/AP", [1, 2, 3]),
    ("intervals/per_label/*/AP/1", None),
    ("intervals/per_label/*/F1/0", {}),
    ("cross_fitted/macro_F1", 10**400),
    ("threshold_source", "magic"),
    ("fitted_on", ["nothing"]),
    ("calibration/how", {}),
    ("calibration/Brier", "x"),
    ("calibration/ECE", "x"),
    ("calibration/ECE", 10**400),
    ("calibration/reliability", 3),
    ("calibration/reliability/0/0", None),
    ("calibration/reliability/0/1", "x"),
    ("calibration/reliability/0/2", "many"),
]


def place(content: dict[str, object], where: str, value: object) -> None:
    """Set or delete one field of metrics.json; * is the first key."""
    *keys, last = where.split("/")
    tree: Any = content
    for key in keys:
        tree = tree[next(iter(tree)) if key == "*" else int(key) if isinstance(tree, list) else key]
    last_key: Any = int(last) if isinstance(tree, list) else last
    if value is AWAY:
        del tree[last_key]
    else:
        tree[last_key] = value


@pytest.mark.parametrize("at", range(len(ODD)))
def test_odd_metrics_are_refused_by_name(run: Path, cli: Run, at: int) -> None:
    """A metrics.json that somebody wrote by hand: exit code 2, its name, and the old page stays."""
    before, path = (run / "report.html").read_bytes(), run / "metrics.json"
    content = json.loads(path.read_text())
    place(content, *ODD[at])
    path.write_text(json.dumps(content))
    done = cli("report", str(run), cwd=run.parent)
    assert done.returncode == 2, done.stderr[-2000:]
    assert f"error: {path}" in done.stderr
    assert len(done.stderr) < 2000
    assert (run / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    "line", ["7", '"x"', "{}", '{"epoch": "x"}', '{"epoch": 1, "loss": []}', "[" * 10**5, "{", "\0"]
)
def test_an_odd_history_is_refused_by_name(run: Path, cli: Run, line: str) -> None:
    """A metrics.jsonl with a line that no run writes."""
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    done = cli("report", str(run), cwd=run.parent)
    assert done.returncode == 2, done.stderr[-2000:]
    assert f"error: {run / 'metrics.jsonl'} is damaged" in done.stderr
