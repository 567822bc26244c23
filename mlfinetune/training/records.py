"""Records of training: one optimizer step, and the position between two steps.

Batch -> train_step -> StepRecord;  Position.after(StepRecord) -> Position
"""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, known to be finite, or skipped.

    Attributes:
        epoch: from 0.
        step: optimizer steps since the start, from 0.
        loss: mean over the known targets of the batch.
        grad_norm: before clipping.
        rates: `lr` and `head_lr` of the step, or the `l2` that the head was solved with.
        images: pictures in the batch, in all processes.
        settled: no later step has been taken; always so at the end of an epoch.
        paused: settled because some process asked for it.
        skipped: why the step was not taken, with its pictures; empty where it was.
    """

    epoch: int
    step: int
    loss: float
    grad_norm: float
    rates: dict[str, float]
    images: int
    settled: bool
    paused: bool = False
    skipped: str = ""


@dataclass(frozen=True)
class Position:
    """Where training stands, between two steps.

    Attributes:
        step: optimizer steps that were taken.
        loss_sum, images: of the epoch that is under way, its loss an image times its images;
            0 once it has been validated.
        last: `grad_norm` and rates of the step before.
        skipped: steps before this one, in a row, that were not taken.
    """

    step: int = 0
    loss_sum: float = 0.0
    images: int = 0
    last: dict[str, float] = field(default_factory=dict)
    skipped: int = 0

    def after(self, record: StepRecord) -> "Position":
        """One step further."""
        if record.skipped:
            return replace(self, step=record.step + 1, skipped=self.skipped + 1)
        return Position(
            record.step + 1,
            self.loss_sum + record.loss * record.images,
            self.images + record.images,
            {"grad_norm": record.grad_norm, **record.rates},
        )

    def epoch(self, steps: int) -> int:
        """The epoch, from 0, that is under way or comes next; `steps` an epoch."""
        return (self.step - 1 if self.images else self.step) // steps
