"""mlfinetune beside its peers: the same pictures, weights, epochs and batches, one after another.

python benchmarks/peers/run.py --train train.csv --val val.csv --images images --task frozen
    ->  benchmarks/results/peers.json

What is equal and what is not: README.md in this folder.
"""

import argparse
import csv
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tokenize
from importlib.metadata import distributions
from pathlib import Path

import job
import numpy as np

HERE = Path(__file__).parent
RESULT = HERE.parent / "results" / "peers.json"
REQUIREMENTS = HERE / "requirements.txt"
SCRIPTS = {
    "fastai": "with_fastai.py",
    "transformers": "with_transformers.py",
    "timm": "with_timm.py",
    "lightly-train": "with_lightly_train.py",
}
NAMES = ["mlfinetune", *SCRIPTS]
VARIANTS = {
    "mlfinetune-uncached": [
        "train.cache_features=off",
        "train.head_lr=1e-2",
        "train.weight_decay=0.1",
    ],
    "mlfinetune-solved": ["train.solve_head_first=true"],
}
"""Variants of mlfinetune, run only if they are named: frozen with features computed in every epoch,
as the peers do; and fine-tuning from the head that a frozen run ends with."""
OURS = {"mlfinetune", *VARIANTS}
SAMPLE_S = 1.0  # a sample of a large process takes its driver some 20 ms


# ---- the peers' environment ---------------------------------------------------------------


def environment(folder: Path) -> Path:
    """Return the Python of the peers' environment; make it if missing or of other versions.

    A .pth file lets it see this environment's packages after its own: the same torch for all.
    """
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = f"{sys.prefix} {platform.python_version()}\n{REQUIREMENTS.read_text()}"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"making the peers' environment in {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", query], check=True, capture_output=True, text=True)
    own = [path for path in sys.path if path.endswith("site-packages")]
    Path(found.stdout.strip(), "project.pth").write_text("\n".join(own) + "\n")
    install = [python, "-m", "pip", "install", "-qq", "--requirement", REQUIREMENTS]
    subprocess.run(install, check=True)
    stamp.write_text(wanted)
    return python


def warm(python: Path, names: list[str], images: list[Path]) -> None:
    """Import everything and read every picture once, so that no run pays for a first read."""
    for path in images:
        path.read_bytes()
    for name in names:
        if name in OURS:
            command = [sys.executable, "-c", "import mlfinetune.workflows.train"]
        else:
            load = f"import runpy; runpy.run_path({str(HERE / SCRIPTS[name])!r}, run_name='warm')"
            command = [python, "-c", load]
        where = {**os.environ, "PYTHONPATH": str(HERE)}
        subprocess.run(
            command, env=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )  # one that fails here will say so in its run


# ---- the job ------------------------------------------------------------------------------


def spread(table: Path, wanted: int | None) -> list[dict[str, str]]:
    """Return `wanted` rows, evenly spread: a table sorted by name begins with few labels."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    count = min(wanted or len(rows), len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def write(rows: list[dict[str, str]], path: Path) -> str:
    """Write a table with the columns image and labels."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["image", "labels"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def tables(options: argparse.Namespace, folder: Path) -> tuple[str, str, list[str]]:
    """Write the subsets; return the files and the labels. Val keeps only the labels of train."""
    train, val = spread(options.train, options.train_rows), spread(options.val, options.val_rows)
    train = [row for row in train if row["labels"]]
    labels = sorted({label for row in train for label in row["labels"].split("|")})
    for row in val:
        row["labels"] = "|".join(x for x in row["labels"].split("|") if x in labels)
    val = [row for row in val if row["labels"]]
    return write(train, folder / "train.csv"), write(val, folder / "val.csv"), labels


def random_weights(path: Path) -> Path:
    """Write a random backbone in torchvision's layout, to measure speed alone."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import resnet50

    torch.manual_seed(0)
    state = resnet50().state_dict()
    save_file({k: v for k, v in state.items() if not k.startswith("fc.")}, path)
    return path


def hardware() -> tuple[bool, int]:
    """Return whether bfloat16 is fast, and the number of workers, by mlfinetune's rules."""
    import torch

    cores = len(os.sched_getaffinity(0))
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0), min(16, cores)
    flags = Path("/proc/cpuinfo").read_text().split()
    return "amx_bf16" in flags or "avx512_bf16" in flags, 1


# ---- one run ------------------------------------------------------------------------------


def command(name: str, task: job.Job, python: Path) -> list[str]:
    """Return the command of a run; mlfinetune's config and the others' job mean the same."""
    if name not in OURS:
        return [str(python), str(HERE / SCRIPTS[name]), str(Path(task.folder, "job.json"))]
    keys = {
        "data.train": task.train,
        "data.val": task.val,
        "data.images": task.images,
        "model.weights": task.weights,
        "train.epochs": task.epochs,
        "train.batch_size": task.batch_size,
        "train.workers": task.workers,
        "train.precision": "bfloat16" if task.bf16 else "float32",
    }
    overrides = [f"{key}={value}" for key, value in keys.items()] + VARIANTS.get(name, [])
    config = str(HERE / f"mlfinetune_{task.task}.yaml")
    run = ["-m", "mlfinetune", "train", config, *overrides, "-o", f"{task.folder}/run"]
    return [sys.executable, *run]


def isolated(folder: Path) -> dict[str, str]:
    """Return an environment with empty caches, no hub and no usage reports."""
    caches = ("MLFINETUNE_CACHE", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "FASTAI_HOME")
    caches += ("LIGHTLY_TRAIN_CACHE_DIR", "MPLCONFIGDIR")
    quiet = {
        "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
        "HF_HUB_OFFLINE": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }
    return {**os.environ, **{key: str(folder / "cache") for key in caches}, **quiet}


def timed(line: list[str], folder: Path) -> tuple[float, int]:
    """Run a command; return seconds from start to exit, and peak bytes with its children.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    log = folder / "log.txt"
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            line, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=isolated(folder)
        )
        peak = [0]
        watcher = threading.Thread(target=watch, args=(process, peak), daemon=True)
        watcher.start()
        code = process.wait()
        seconds = time.perf_counter() - started
    watcher.join()
    if code:
        raise RuntimeError(f"exit code {code}\n{log.read_text(errors='replace')[-2000:]}")
    return seconds, peak[0]


def watch(process: subprocess.Popen, peak: list[int]) -> None:
    """Sample the memory of the process tree until it ends; shared pages count once."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(map(resident, tree(process.pid))))
        time.sleep(SAMPLE_S)


def tree(pid: int) -> list[int]:
    """Return a process and all processes below it."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").glob("*/children"))
        children = [int(child) for task in tasks for child in task.read_text().split()]
    except OSError:  # it has ended
        return []
    return [pid, *(below for child in children for below in tree(child))]


def resident(pid: int) -> int:
    """Return bytes in memory, each shared page divided by its users; 0: the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def outcome(name: str, task: job.Job) -> tuple[np.ndarray, float]:
    """Return the (N, L) scores of the best epoch, and the seconds spent for this driver alone."""
    if name not in OURS:
        kept = np.load(Path(task.folder, "scores.npz"))
        return kept["scores"], float(kept["aside_s"])
    with Path(task.folder, "run", "predictions.csv").open(encoding="utf-8", newline="") as file:
        found = {row["image"]: row for row in csv.DictReader(file)}
    with Path(task.val).open(encoding="utf-8", newline="") as file:
        rows = [found[row["image"]] for row in csv.DictReader(file)]
    return np.array([[float(row[label]) for label in task.labels] for row in rows]), 0.0


def measure(name: str, task: job.Job, python: Path) -> dict[str, float]:
    """Return seconds, mAP and MiB of one run in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        task.folder = folder
        Path(folder, "job.json").write_text(json.dumps(vars(task)))
        seconds, peak = timed(command(name, task, python), Path(folder))
        scores, aside = outcome(name, task)
    truth = job.targets(Path(task.val), task.labels)
    return {
        "seconds": seconds - aside,
        "mAP": job.macro_map(truth, scores),
        "peak_MiB": peak / 2**20,
    }


# ---- lines of code ------------------------------------------------------------------------


def written(name: str, task: str) -> int:
    """Return the number of lines that a user writes, without blank lines and comments."""
    if name in OURS:
        text = (HERE / f"mlfinetune_{task}.yaml").read_text()
        lines = [x for x in map(str.strip, text.splitlines()) if x and not x.startswith("#")]
        return len(lines) + len(VARIANTS.get(name, []))
    return code_lines((HERE / SCRIPTS[name]).read_text())


def code_lines(text: str) -> int:
    """Return the lines of Python with a token that is neither comment nor docstring."""
    spaces = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT}
    lines: set[int] = set()
    starts = True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_docstring = starts and token.type == tokenize.STRING
        if token.type not in spaces | {tokenize.ENDMARKER} and not is_docstring:
            lines.update(range(token.start[0], token.end[0] + 1))
        if token.type not in {tokenize.NL, tokenize.COMMENT}:
            starts = token.type in {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    return len(lines)


# ---- all of them --------------------------------------------------------------------------


def compare(options: argparse.Namespace, python: Path, folder: Path) -> tuple[dict, dict]:
    """Return the settings, and the numbers of every peer: medians over the rounds."""
    train, val, labels = tables(options, folder)
    weights = options.weights or random_weights(folder / "random.safetensors")
    bf16, workers = hardware()
    bf16 = bf16 if options.precision == "auto" else options.precision == "bfloat16"
    task = job.Job(
        options.task, train, val, str(options.images.absolute()), labels,
        str(weights.absolute()), options.epochs, options.batch_size, workers, bf16, "",
    )  # fmt: skip
    counts = [len(Path(table).read_text().splitlines()) - 1 for table in (train, val)]
    settings = {
        "train_rows": counts[0],
        "val_rows": counts[1],
        "labels": len(labels),
        "weights": "file" if options.weights else "random",
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "precision": "bfloat16" if bf16 else "float32",
        "workers": workers,
        "rounds": options.rounds,
    }
    print(f"{options.task}: {settings}", flush=True)
    pictures = [options.images / row["image"] for row in spread(Path(train), None)]
    pictures += [options.images / row["image"] for row in spread(Path(val), None)]
    warm(python, options.only, pictures)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
    for number in range(1, options.rounds + 1):
        for name in options.only:
            found = attempt(name, task, python)
            runs[name] += [found] if found else []
            shown = {key: round(value, 4) for key, value in found.items()} or "failed"
            print(f"round {number}  {name}: {shown}", flush=True)
    return settings, {name: summary(name, options.task, found) for name, found in runs.items()}


def attempt(name: str, task: job.Job, python: Path) -> dict[str, float]:
    """Return the numbers of one run; an empty dict, and a printed line, where it failed."""
    try:
        return measure(name, task, python)
    except RuntimeError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return {}


def summary(name: str, task: str, runs: list[dict[str, float]]) -> dict:
    """Return medians of the rounds, lines of code, and every time."""
    if not runs:
        return {"failed": True, "lines": written(name, task)}
    digits = {"seconds": 1, "mAP": 4, "peak_MiB": 0}
    medians = {k: round(statistics.median(r[k] for r in runs), n) for k, n in digits.items()}
    every = [round(run["seconds"], 1) for run in runs]
    return {**medians, "lines": written(name, task), "all_seconds": every}


def versions(python: Path) -> dict[str, str]:
    """Return the versions of the peers, and of the packages below them."""
    wanted = {"mlfinetune", "torch", "torchvision", "accelerate", *SCRIPTS}
    paths = [str(path) for path in python.parent.parent.glob("lib/python*/site-packages")]
    found = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions()}
    found |= {
        d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions(path=paths)
    }
    return {name: found[name] for name in sorted(wanted) if name in found}


def save(output: Path, task: str, settings: dict, peers: dict, found: dict[str, str]) -> dict:
    """Write to the file of results; keep runs of other peers with the same settings."""
    result = json.loads(output.read_text()) if output.exists() else {"tasks": {}}
    before = result["tasks"].get(task, {})
    if before.get("settings") == settings:
        peers = {**before["peers"], **peers}
    cpu = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    result["machine"] = f"{cpu[0].partition(': ')[2]}, {len(os.sched_getaffinity(0))} cores"
    result["versions"] = found
    result["tasks"][task] = {"settings": settings, "peers": peers}
    output.write_text(json.dumps(result, indent=2) + "\n")
    return peers


def show(task: str, peers: dict) -> None:
    """Print a table for people."""
    print(f"\n{task:<20}{'seconds':>9}{'mAP':>8}{'peak MiB':>10}{'lines':>7}{'mlfinetune is':>15}")
    ours = peers.get("mlfinetune", {}).get("seconds")
    for name, row in peers.items():
        if row.get("failed"):
            print(f"{name:<20}   failed")
            continue
        times = f"{row['seconds'] / ours:.2f}x as fast" if ours and name != "mlfinetune" else ""
        print(
            f"{name:<20}{row['seconds']:>9.1f}{row['mAP']:>8.4f}{row['peak_MiB']:>10.0f}"
            f"{row['lines']:>7}{times:>15}"
        )


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--train", type=Path, required=True, help="table with the columns image and labels (a|b)")
    add("--val", type=Path, required=True, help="the same for validation")
    add("--images", type=Path, required=True, help="root of the tables' paths")
    add("--task", choices=["frozen", "finetune"], default="frozen")
    add("--weights", type=Path, help="backbone, .safetensors in torchvision's keys; else random")
    add("--train-rows", type=int, help="so many, spread evenly; default: all")
    add("--val-rows", type=int, help="so many, spread evenly; default: all")
    add("--epochs", type=int, default=5)
    add("--batch-size", type=int, default=32)
    add("--rounds", type=int, default=1, help="times that the whole set is run")
    add("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    add("--only", nargs="+", choices=[*NAMES, *VARIANTS], default=NAMES)
    add("--env", type=Path, default=Path(tempfile.gettempdir(), "mlfinetune-peers"))
    add("--output", type=Path, default=RESULT)
    add("--new-env", action="store_true", help="make the peers' environment anew")
    return parser.parse_args()


def main() -> None:
    """Run every peer in turn, write the result, print the table."""
    options = arguments()
    if options.new_env:
        shutil.rmtree(options.env, ignore_errors=True)
    python = environment(options.env.absolute())
    with tempfile.TemporaryDirectory() as folder:
        settings, peers = compare(options, python, Path(folder))
    peers = save(options.output, options.task, settings, peers, versions(python))
    show(options.task, peers)
    sys.exit(any(row.get("failed", False) for row in peers.values()))


if __name__ == "__main__":
    main()
