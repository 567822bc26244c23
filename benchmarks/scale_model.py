"""Scaling of training to 1,024 GPUs: arithmetic, not a measurement.

The arithmetic compares the time to exchange gradients with the time of a step. `Assumed` has every
assumption; `table()` gives the table of docs/scale.md. One number can be compared with a published
one: NVIDIA's DeepLearningExamples report 2,470 images/s on an A100 and 16,621 on eight (ResNet-50,
PyTorch, AMP).
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PARAMETERS = 23_508_032 + 80 * 2049
"""Number of weights of a ResNet-50 without its last layer, and of a head for 80 labels."""
BATCH_NORMS = 53


@dataclass(frozen=True)
class Assumed:
    """Assumptions of the arithmetic.

    Attributes:
        images_per_s: of one GPU with a large batch.
        least_step_s: a step cannot be shorter, whatever its batch: Python launches its kernels.
        gpus: of a machine.
        inside: bytes/s that an all-reduce moves between the GPUs of a machine.
        between: bytes/s of a machine's link to the others.
        latency_s: of one hop of a collective between machines; inside it is a quarter.
        backward: share of a step that is backward pass, behind which gradients travel.
        last_bucket: share of the gradients that are complete only at its end.
        spread: standard deviation of a step's time, as a share; all wait for the slowest.
    """

    images_per_s: float = 2470
    least_step_s: float = 0.020
    gpus: int = 8
    inside: float = 200e9
    between: float = 25e9
    latency_s: float = 20e-6
    backward: float = 0.6
    last_bucket: float = 0.1
    spread: float = 0.02


FAST, SLOW = Assumed(), Assumed(between=25e9 / 8)
"""Machines linked by 200 and by 25 Gbit/s."""
SIZES = (1, 8, 16, 64, 256, 1024)
TOGETHER = 1024
"""A batch size that a ResNet-50 is known to train well with."""


def exchange_s(gpus: int, size: float, assumed: Assumed) -> float:
    """Return the seconds of an all-reduce of `size` bytes: inside the machines, then between."""
    here, machines = min(gpus, assumed.gpus), math.ceil(gpus / assumed.gpus)
    hops = math.log2(here) / 4 + math.log2(machines)
    inside = 2 * (here - 1) / here * size / assumed.inside
    between = 2 * (machines - 1) / machines * size / assumed.between
    return inside + between + 2 * hops * assumed.latency_s


def step_s(gpus: int, batch: float, assumed: Assumed, synced: bool = False) -> float:
    """Return the seconds of a step with `batch` images on each GPU."""
    compute = max(batch / assumed.images_per_s, assumed.least_step_s)
    compute *= 1 + assumed.spread * math.sqrt(2 * math.log(gpus))
    gradients = exchange_s(gpus, 4 * PARAMETERS, assumed)
    hidden = min((1 - assumed.last_bucket) * gradients, assumed.backward * compute)
    statistics = 2 * BATCH_NORMS * exchange_s(gpus, 4 * 1024, assumed) if synced else 0.0
    return compute + gradients - hidden + statistics


def rate(gpus: int, batch: float, assumed: Assumed, synced: bool = False) -> float:
    """Return the images/s of all GPUs."""
    return gpus * batch / step_s(gpus, batch, assumed, synced)


def table() -> list[dict[str, float]]:
    """Return a row for each number of GPUs: images/s, and the share of perfect scaling."""
    rows = []
    for gpus in SIZES:
        row: dict[str, float] = {"gpus": gpus}
        for name, assumed in (("fast", FAST), ("slow", SLOW)):
            row[f"{name}: 64 each"] = rate(gpus, 64, assumed)
            row[f"{name}: 64 each, share"] = row[f"{name}: 64 each"] / (gpus * rate(1, 64, assumed))
            synced = gpus > TOGETHER / 16
            row[f"{name}: {TOGETHER} in all"] = rate(gpus, TOGETHER / gpus, assumed, synced)
        rows.append(row)
    return rows


def lines() -> list[str]:
    """Return the rows of the table as docs/scale.md has them."""
    return [
        f"| {row['gpus']:,} "
        + "".join(
            f"| {row[f'{link}: 64 each']:,.0f} | {row[f'{link}: 64 each, share']:.2f} "
            for link in ("fast", "slow")
        )
        + "".join(f"| {row[f'{link}: {TOGETHER} in all']:,.0f} " for link in ("fast", "slow"))
        + "|"
        for row in table()
    ]


def main() -> None:
    """Write and print the table."""
    eight = rate(8, 256, replace(FAST)) / 8 / FAST.images_per_s
    print(f"8 GPUs, 256 images each: {eight:.2f} of perfect; published: {16621 / 8 / 2470:.2f}")
    print("\n".join(lines()))
    result = {"assumed": asdict(FAST), "slow link": SLOW.between, "rows": table()}
    (RESULTS / "scale_model.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
