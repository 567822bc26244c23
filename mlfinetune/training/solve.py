"""The head by L-BFGS on stored features: candidates for the run's result, several a penalty.

    TrainingSetup -> solve_head -> Solver -> validate -> Candidate

The function is a generator, as `loop.train_epochs`: while it is suspended, the caller compares the
candidate that it has yielded.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from mlfinetune.data.batches.feature_batches import FeatureLoader
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.threads import ThreadChooser
from mlfinetune.text import pluralize
from mlfinetune.training.build import get_batch_size
from mlfinetune.training.head_rows import find_idle, read_rows
from mlfinetune.training.lbfgs import (
    ITERATIONS,
    PENALTIES,
    STRONGER_PENALTIES,
    STRONGEST_OF_FEW,
    WEAKER_PENALTIES,
    Solver,
)
from mlfinetune.training.loop import Candidate, count_images, log_candidate, validate
from mlfinetune.training.records import Penalty, Position, StepRecord
from mlfinetune.training.setup import TrainingSetup

PATIENCE = 2
"""Number of penalties in a row without a better mAP after which no weaker one is tried."""


def solve_head(
    setup: TrainingSetup, log: RunLog, only: Penalty | None = None
) -> Iterator[Candidate]:
    """Solve for the head by L-BFGS, and yield each solution as a candidate.

    At each penalty more iterations are tried while they raise the mAP. Rows that the head has
    inherited are one candidate more, in the best solution: they may know more than these pictures
    tell. Those of labels that these pictures tell nothing of stay in all.

    Args:
        only: the one solution to find; None: several, for a choice.
    """
    assert isinstance(setup.train, FeatureLoader)
    head = setup.tagger.head
    assert isinstance(head, nn.Linear)
    rows = setup.inherited or read_rows(head, ())
    idle = rows.take(find_idle(rows.columns, setup.splits.train))
    number, best_by_penalty = 0, dict[float, Candidate]()
    best: tuple[Candidate, StepRecord, dict[str, Tensor]] | None = None
    with log.bar("solving for the head", None) as bar:
        track = partial(bar.track, count=count_images)
        solver = Solver(head, setup.train.sweep, setup.loss, track)
        stops = [n for n in ITERATIONS if only is None or n <= only.iterations]
        is_few = len(setup.splits.train) < head.in_features
        strongest = STRONGEST_OF_FEW if is_few else PENALTIES[0]
        search = search_penalties(best_by_penalty, log.say, strongest)
        for l2 in search if only is None else (only.l2,):
            for record in solver.path(l2, stops):
                penalty = Penalty(l2, int(record.rates["iterations"]))
                if only is not None and penalty != only:
                    continue  # on the way to the one that is wanted
                number += 1
                idle.write(head)
                candidate = _try_solution(setup, number, penalty.describe(), record, bar.rate, log)
                candidate = replace(candidate, penalty=penalty)
                if best is None or candidate.beats(best[0]):
                    best = candidate, record, copy.deepcopy(head.state_dict())
                yield candidate
                if l2 in best_by_penalty and not candidate.beats(best_by_penalty[l2]):
                    break
                best_by_penalty[l2] = candidate
        if only is None and best is not None and len(rows) > len(idle):
            head.load_state_dict(best[2])
            rows.write(head)
            name = f"{best[0].name}, {pluralize(len(rows), 'row')} inherited"
            candidate = _try_solution(setup, number + 1, name, best[1], bar.rate, log)
            yield replace(candidate, penalty=best[0].penalty)


def _try_solution(
    setup: TrainingSetup, number: int, name: str, record: StepRecord, rate: float, log: RunLog
) -> Candidate:
    """Validate the head as it is now, and return it as a candidate."""
    with ThreadChooser().threads_for(count_head_operations(setup)):
        averages, scores = validate(setup, log)
    # Where epochs train the backbone too, metrics.jsonl holds these alone, from 1 on.
    if setup.config.model.freeze_backbone:
        log_candidate(log, number, Position().after(record), record.loss, rate, averages)
    speed = f"{record.step + 1} passes"
    return Candidate(number, name, averages["mAP"], scores, record.loss, speed)


def search_penalties(
    best_by_penalty: Mapping[float, Candidate],
    say: Callable[[str], None],
    strongest: float = PENALTIES[0],
) -> Iterator[float]:
    """Yield the penalties to try, one after the other.

    The grid is that of PENALTIES, and the stronger ones up to `strongest` before them. Penalties
    get weaker from one to the next. After PATIENCE penalties in a row without a better mAP no
    weaker one is tried. Where the best one is then at an edge of the grid, the search goes on
    beyond that edge, for as long as each penalty beats all that were tried before:

        best of the grid        tried next
        0.1                     nothing
        0.001, the weakest      0.0003; if that is better still, 0.0001
        1, the strongest        3; if that is better still, 10, and so on to 1000
        10, where it begins     30; if that is better still, 100, and so on to 1000

    Args:
        best_by_penalty: the best solution at each penalty; the caller adds that of a penalty before
            it asks for the next one.
        say: is told about each step beyond an edge.
        strongest: the first penalty to try.
    """
    first = [l2 for l2 in STRONGER_PENALTIES if l2 <= strongest]
    grid = (*reversed(first), *PENALTIES)
    for l2 in grid:
        yield l2
        if _is_past_best(list(best_by_penalty.values())):
            break
    stronger = STRONGER_PENALTIES[len(first) :]
    for edge, beyond in ((grid[-1], WEAKER_PENALTIES), (grid[0], stronger)):
        for l2 in beyond:
            if not _wins(edge, best_by_penalty):
                break
            extreme = "weakest" if l2 < edge else "strongest"
            say(f"l2 {edge:g} is the best penalty so far and the {extreme}: {l2:g} is tried too")
            yield l2
            edge = l2


def rank_equal(l2: float | None) -> float:
    """Return the rank of a penalty among solutions of equal mAP: the lowest wins.

    Strong penalties make all probabilities less sure than they need to be; 1 is weak enough. None:
    an epoch.
    """
    return max(l2 or 0.0, PENALTIES[0])


def count_head_operations(setup: TrainingSetup) -> int:
    """Return the multiplications of a forward pass of the head with one batch of features."""
    size = get_batch_size(setup.config)
    return size * setup.tagger.head.in_features * len(setup.splits.train.labels)


def _is_past_best(best_by_penalty: list[Candidate]) -> bool:
    """Tell whether none of the last PATIENCE penalties beats the one before them."""
    if len(best_by_penalty) <= PATIENCE:
        return False
    before = best_by_penalty[-PATIENCE - 1]
    return not any(candidate.beats(before) for candidate in best_by_penalty[-PATIENCE:])


def _wins(l2: float, best_by_penalty: Mapping[float, Candidate]) -> bool:
    """Tell whether this penalty has the best mAP, alone, and one that can be beaten."""
    if l2 not in best_by_penalty:
        return False
    others = [candidate for other, candidate in best_by_penalty.items() if other != l2]
    best = best_by_penalty[l2]
    is_beatable = best.mAP is not None and best.mAP < 1
    return is_beatable and all(best.beats(candidate) for candidate in others)
