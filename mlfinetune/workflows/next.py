"""`mlfinetune next`: pictures without labels -> features, probabilities -> those to label next.

Pictures of the run are left out by path, by content, and as near duplicates. Features come from the
cache, or from the one forward pass that probabilities need.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from mlfinetune.config import Config, restore_config
from mlfinetune.data.images.decode import make_thumbnail
from mlfinetune.data.inputs import expand_inputs, require_inputs
from mlfinetune.data.known_sides import number_paths
from mlfinetune.data.lines import read_lines, wait_for_lines
from mlfinetune.data.load import hash_files
from mlfinetune.data.targets import LabelSpace
from mlfinetune.errors import DataError
from mlfinetune.location import Location
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.near_duplicates import NEAR
from mlfinetune.metrics.next_choice import SAMPLE, Choice, choose_pictures, find_least
from mlfinetune.models.onnx_session import OnnxNetwork
from mlfinetune.predicting.onnx_backend import refuse
from mlfinetune.predicting.remote import fetch_checkpoint, parse_source
from mlfinetune.predicting.scorer import load_network
from mlfinetune.report.picks import Tile, render_picks
from mlfinetune.runs import directory
from mlfinetune.runs.checkpoint import Checkpoint
from mlfinetune.runs.label_studio_tasks import find_interface, name_model
from mlfinetune.runs.labelled import Labelled, mark_first, read_labelled
from mlfinetune.runs.picks import (
    ChosenPicture,
    describe_reason,
    is_outside,
    name_files,
    write_table,
    write_tasks,
)
from mlfinetune.runs.rule import describe_decision
from mlfinetune.runs.sidecars import name_checkpoint
from mlfinetune.runtime.device import oom_as_device_error, prepare_device
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.atomic import try_writing_file, write_atomic, writing_text
from mlfinetune.text import display_path, mask_secrets, pluralize
from mlfinetune.training.pool import FeaturePool, PoolPart, list_pictures


@dataclass(frozen=True)
class NextRequest:
    """Arguments of `mlfinetune next`.

    Attributes:
        checkpoint: run directory, checkpoint file, or the URL of one.
        inputs: pictures, as predict takes them.
        count: number of pictures to choose.
        output: table to write, with its page and its tasks beside it; None: the table alone goes
            to `open_output`.
    """

    checkpoint: str
    inputs: tuple[str, ...]
    count: int
    output: Path | None


@dataclass(frozen=True)
class Candidates:
    """Pictures that may be chosen, and the numbers of those that may not.

    Attributes:
        names: as they were given.
        known: number of pictures that the run has, by path or content.
        repeated: number of those that were given before, by path or content.
    """

    names: tuple[str, ...]
    known: int
    repeated: int


def run(
    request: NextRequest,
    stdin: TextIO,
    open_output: Callable[[], AbstractContextManager[TextIO]],
    device_name: str,
    log: RunLog,
) -> list[str]:
    """Choose pictures, and write the table, the page and the tasks.

    Args:
        request: run, pictures, number.
        stdin: paths, one a line, read where `-` is among the inputs.
        open_output: opens the output of a table without a file.
        device_name: auto, cpu, cuda, cuda:N or mps.
        log: says what was left out, and why.

    Returns:
        A line for each picture that could not be read.

    Raises:
        MlfinetuneError: inputs, checkpoint, device or output that cannot be used.
    """
    require_inputs(request.inputs)
    if request.output is not None:
        for path in name_files(request.output):
            try_writing_file(path)
    device = prepare_device(device_name)
    source = parse_source(request.checkpoint)
    file = (
        fetch_checkpoint(source) if isinstance(source, str) else directory.find_checkpoint(source)
    )
    loaded, network = load_network(file, device)
    if isinstance(network, OnnxNetwork):
        refuse(str(source), "features")
    config = restore_config(loaded.config, file)
    pool = FeaturePool(loaded, network, config, device, log)
    log.say(f"checkpoint {_show(source)}: {describe_decision(loaded.decision)}; {pool.how}")
    labelled = read_labelled(config, file.parent, loaded.labels, log)
    candidates = _list_candidates(request.inputs, stdin, labelled, log)
    with oom_as_device_error():
        known, least = _read_known(pool, labelled, config.model.freeze_backbone, log)
        part = pool.read(candidates.names, "features of new pictures")
        features, logits = pool.tabulate(part)
    probabilities = sigmoid(loaded.decision.calibrate(logits))
    thresholds = np.array(loaded.decision.thresholds)
    choice = choose_pictures(
        probabilities, thresholds, labelled.positives, features, known, request.count, least
    )
    log.say(_count(request.count, candidates, part, choice))
    names = [candidates.names[row] for row in part.rows]
    chosen = _describe(choice, names, probabilities, loaded, labelled.positives)
    if request.output is None:
        with open_output() as output:
            write_table(output, chosen, loaded.labels)
    else:
        _write_files(
            request.output, chosen, loaded, config, name_checkpoint(str(source), file), log
        )
    return [f"{candidates.names[row]}: {reason}" for row, reason in sorted(part.faults.items())]


def _show(source: Location) -> str:
    return display_path(source) if isinstance(source, Path) else mask_secrets(source)


def _list_candidates(
    inputs: Sequence[str], stdin: TextIO, labelled: Labelled, log: RunLog
) -> Candidates:
    """List the pictures that the run does not have, each once.

    Raises:
        DataError: there is no picture at all.
    """
    names = list(wait_for_lines(expand_inputs(inputs, read_lines(stdin))))
    if not names:
        raise DataError(f"no pictures in {' '.join(inputs)}")
    numbers = number_paths(names)
    is_known = np.isin(numbers, labelled.numbers)
    is_first = mark_first(numbers)
    rows = np.flatnonzero(is_first & ~is_known)
    contents = hash_files(list_pictures([names[row] for row in rows]), range(len(rows)), log)
    is_known[rows] = np.isin(contents, labelled.contents)
    is_first[rows] = mark_first(contents) | (contents < 0)
    fresh = is_first & ~is_known
    return Candidates(
        tuple(names[row] for row in np.flatnonzero(fresh)),
        known=int(is_known.sum()),
        repeated=int((~is_first & ~is_known).sum()),
    )


def _read_known(
    pool: FeaturePool, labelled: Labelled, is_frozen: bool, log: RunLog
) -> tuple[NDArray[np.float16], float]:
    """Return the features of the labelled pictures, and the similarity of near duplicates."""
    part = pool.read(labelled.paths, "features of labelled pictures")
    features, _ = pool.tabulate(part)
    if part.faults:
        log.say(
            f"{pluralize(len(part.faults), 'labelled picture')} could not be read: near duplicates "
            f"of those are not left out"
        )
    apart = np.flatnonzero(labelled.is_first[part.rows])  # copies would raise the bound
    some = np.random.default_rng(0).permutation(apart)[:SAMPLE]
    targets = labelled.read_targets(part.rows[some]) if is_frozen else None
    least = find_least(features[some], targets)
    if least > NEAR:
        log.say(
            f"this network finds different pictures alike: near duplicates are those of a "
            f"similarity of {least:.3f}, not {NEAR:g}"
        )
    return features, least


def _count(wanted: int, candidates: Candidates, part: PoolPart, choice: Choice) -> str:
    """Return the numbers of all pictures in a line; they add up."""
    left = len(part) - len(choice.near_known) - len(choice.near_picked) - len(choice.picks)
    numbers = {
        "of the run itself": candidates.known,
        "given before": candidates.repeated,
        "unreadable": len(part.faults),
        "near duplicates of labelled ones": len(choice.near_known),
        "near duplicates of chosen ones": len(choice.near_picked),
        "not chosen": left,
    }
    total = candidates.known + candidates.repeated + len(candidates.names)
    rest = "".join(f", {number} {what}" for what, number in numbers.items() if number)
    line = f"{pluralize(total, 'picture')}: {len(choice.picks)} chosen{rest}"
    if len(choice.picks) < wanted:
        line += f"; -n {wanted} asked for more than there are"
    return line


def _describe(
    choice: Choice,
    names: Sequence[str],
    probabilities: NDArray[np.floating],
    loaded: Checkpoint,
    positives: NDArray[np.int64],
) -> list[ChosenPicture]:
    """Return the chosen pictures with their reasons and proposed labels, in order."""
    labels, decision = loaded.labels, loaded.decision
    chosen = []
    for rank, pick in enumerate(choice.picks, 1):
        p = probabilities[pick.row]
        over = np.flatnonzero(p >= decision.limits)
        proposed = over[np.argsort(-p[over], kind="stable")]
        reason = describe_reason(pick.labels, labels, p, decision.thresholds, positives)
        chosen.append(
            ChosenPicture(names[pick.row], rank, pick.score, reason, p, tuple(proposed.tolist()))
        )
    return chosen


def _write_files(
    output: Path,
    chosen: Sequence[ChosenPicture],
    loaded: Checkpoint,
    config: Config,
    checkpoint: str,
    log: RunLog,
) -> None:
    """Write the tasks, the page, and last the table."""
    table, page, tasks = name_files(output)
    labels = loaded.labels
    interface, about_interface = find_interface(config)
    log.say(about_interface)
    with writing_text(tasks) as file:
        write_tasks(file, chosen, labels, name_model(checkpoint), interface)
    most, model = loaded.transform.max_pixels, name_model(checkpoint)
    about = f"{pluralize(len(chosen), 'picture')}, the most useful first, chosen by {model}."
    tiles = [_make_tile(one, labels) for one in chosen]
    html = render_picks(model, (about, _HOW), tiles, lambda p, side: make_thumbnail(p, side, most))
    write_atomic(page, html.encode(errors="backslashreplace"))
    with writing_text(table) as file:
        write_table(file, chosen, labels, table.parent)
    if outside := sum(is_outside(table.parent, one.image) for one in chosen):
        log.say(
            f"{pluralize(outside, 'picture')} not below the folder of {display_path(table)}: to "
            f"train from there, set data.allow_outside_root: true"
        )
    log.say(f"{display_path(table)}; page {page.name}; tasks of Label Studio {tasks.name}")


def _make_tile(one: ChosenPicture, labels: LabelSpace) -> Tile:
    tags = ((labels.names[column], float(one.probabilities[column])) for column in one.proposed)
    return Tile(one.image, one.rank, one.reason, tuple(tags))


_HOW = (
    "Bold: labels over their thresholds, proposed by the tagger; people decide. Below: the labels "
    "for which the picture is chosen, because it is near their thresholds. Rare labels count more, "
    "and no picture is like one before it."
)
