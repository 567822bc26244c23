"""Records of training: one optimizer step, the position between two steps, a choice made before.

    Batch -> train_step -> StepRecord;  Position.after(StepRecord) -> Position

`Position` is stored in resume.pt by its field names: they are a file format.
"""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step: its numbers are finite, or the step was skipped.

    Attributes:
        epoch: from 0.
        step: optimizer steps since the start of the run, from 0.
        loss: mean over the known targets of the batch.
        grad_norm: norm of the gradient before clipping.
        rates: `lr` and `head_lr` of the step; of the L-BFGS solver `l2` and `iterations`.
        images: pictures in the batch, on all ranks together.
        settled: no later step has been taken yet, so model and optimizer are in the state after
            this step. Always true at the end of an epoch.
        save_requested: some rank asked for the resume state to be saved here.
        skipped: reason why the step was not taken, with its pictures; empty if it was taken.
    """

    epoch: int
    step: int
    loss: float
    grad_norm: float
    rates: dict[str, float]
    images: int
    settled: bool
    save_requested: bool = False
    skipped: str = ""


@dataclass(frozen=True)
class Penalty:
    """A solution of the solver: its ridge penalty, and its number of iterations."""

    l2: float
    iterations: int

    def describe(self) -> str:
        """Return `l2 0.01, 30 iterations`."""
        return f"l2 {self.l2:g}, {self.iterations} iterations"


@dataclass(frozen=True)
class Choice:
    """A choice among the candidates of a run, made on other pictures than those it validates.

        frozen, L-BFGS     Choice(start=Penalty(0.01, 30))               the head is solved for
        frozen, AdamW      Choice(epoch=7)                               the head after epoch 7
        the backbone too   Choice(epoch=4)
                           Choice(Penalty(0.1, 10), epoch=4)             from a solved head
                           Choice(None, epoch=5, end=Penalty(1, 3))      solved for again after it

    Attributes:
        start: of the head that is solved for at the beginning; None: it is not.
        epoch: to train to, of `train.epochs`; 0: no epoch.
        end: of the head that is solved for again after that epoch; None: it is not.
    """

    start: Penalty | None = None
    epoch: int = 0
    end: Penalty | None = None

    def describe(self) -> str:
        """Return `epoch 4, then the head solved for with l2 1, 3 iterations`."""
        solved = None if self.end is None else f"the head solved for with {self.end.describe()}"
        if not self.epoch:
            return "" if self.start is None else self.start.describe()
        return f"epoch {self.epoch}" + (f", then {solved}" if solved else "")


@dataclass(frozen=True)
class Position:
    """The place between two optimizer steps from which training continues.

    Attributes:
        step: optimizer steps that were taken.
        loss_sum, images: of the epoch under way: sum of (loss of a batch * its pictures), and the
            number of pictures. Both are 0 once the epoch has been validated.
        last: `grad_norm` and rates of the last step.
        skipped: number of steps just before this position, in a row, that were skipped.
    """

    step: int = 0
    loss_sum: float = 0.0
    images: int = 0
    last: dict[str, float] = field(default_factory=dict)
    skipped: int = 0

    def after(self, record: StepRecord) -> "Position":
        """Return the position after the step of `record`."""
        if record.skipped:
            return replace(self, step=record.step + 1, skipped=self.skipped + 1)
        return Position(
            record.step + 1,
            self.loss_sum + record.loss * record.images,
            self.images + record.images,
            {"grad_norm": record.grad_norm, **record.rates},
        )

    def epoch(self, steps: int) -> int:
        """Return the epoch, from 0, that is under way or comes next.

        With 3 steps an epoch:

            step 2, images 16   epoch 0   its third step is missing
            step 3, images 24   epoch 0   trained, but not validated yet
            step 3, images  0   epoch 1   epoch 0 is validated

        Args:
            steps: optimizer steps an epoch.
        """
        return (self.step - 1 if self.images else self.step) // steps
