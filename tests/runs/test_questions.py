"""Folders of eval's results: chosen when they are written, and one command's alone."""

import json
from pathlib import Path

import pytest

from mlfinetune.errors import CheckpointError
from mlfinetune.runs import directory
from mlfinetune.runs.questions import Question, make_eval_folder, try_eval_folder


def ask(run: Path, split: str | None = None, **overrides: object) -> Question:
    """Return a question about the best checkpoint of a run."""
    return Question(run / directory.BEST, None, split, None, overrides)


def answer(question: Question, folder: Path) -> None:
    """Write what tells the question of a folder."""
    content = {"question": question.to_dict(folder)}
    (folder / directory.METRICS).write_text(json.dumps(content))


def test_two_commands_at_once_get_a_folder_each(tmp_path: Path) -> None:
    """Both begin before either has written; later each replaces its own."""
    one, two = ask(tmp_path), ask(tmp_path, threshold=0.3)
    for question in (one, two):
        try_eval_folder(question, None)
    assert list(tmp_path.iterdir()) == []
    folders = [make_eval_folder(question, None) for question in (one, two)]
    assert [folder.name for folder in folders] == ["eval", "eval-2"]
    for question, folder in zip((one, two), folders, strict=True):
        answer(question, folder)
        assert make_eval_folder(question, None) == folder
    (tmp_path / "eval-test").symlink_to("gone")
    assert make_eval_folder(ask(tmp_path, "test"), None).name == "eval-test-2"


@pytest.mark.parametrize("there", [False, True])
def test_an_output_that_another_command_took_is_left_alone(tmp_path: Path, there: bool) -> None:
    """Scores of hours go beside it; the next command is refused before it scores."""
    one, two, output = ask(tmp_path), ask(tmp_path, "test"), tmp_path / "a/b"
    if there:
        output.mkdir(parents=True)
    for question in (one, two):
        try_eval_folder(question, output)
    assert make_eval_folder(one, output) == output
    answer(one, output)
    beside = make_eval_folder(two, output)
    assert beside == output.with_name("b-2")
    answer(two, beside)
    assert make_eval_folder(two, tmp_path / "a/c") == tmp_path / "a/c"
    assert make_eval_folder(one, output) == output
    with pytest.raises(CheckpointError, match=r"holds metrics.json of another question"):
        try_eval_folder(two, output)
