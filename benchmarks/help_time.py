"""`mlfinetune --help` against `python -c pass`, interleaved: what does asking for help cost?

python benchmarks/help_time.py  ->  benchmarks/results/help_time.json
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 15
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "mlfinetune --help": [str(Path(sys.executable).with_name("mlfinetune")), "--help"],
}


def seconds(command: list[str]) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Time both in turn and write the medians."""
    for command in COMMANDS.values():
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "rounds": ROUNDS,
        "median_s": {name: round(value, 3) for name, value in medians.items()},
        "ratio": round(medians["mlfinetune --help"] / medians["python -c pass"], 1),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    path = Path(__file__).parent / "results" / "help_time.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
