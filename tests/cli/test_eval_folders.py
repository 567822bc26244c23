"""Where eval writes: each question has a folder, and nothing else is overwritten."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Run

from mlfinetune.runs.results import read_scores, read_seen

RUN = "runs/pets"


@pytest.fixture(scope="module")
def project(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of a finished run with its data, and a table with splits.

    Other tests of the same process may have evaluated the run; their results stay behind.
    """
    folder = tmp_path_factory.mktemp("project") / "p"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("eval", "eval-*", "pets-*"))
    config = folder / RUN / "config.yaml"
    config.write_text(config.read_text().replace(str(trained), str(folder)))
    header, *rows = (folder / "tags.csv").read_text().splitlines()
    sides = [f"{row},{('val', 'test')[at % 2]}" for at, row in enumerate(rows)]
    (folder / "other.csv").write_text("\n".join([f"{header},split", *sides]))
    return folder


def ask(project: Path, cli: Run, *arguments: str) -> tuple[str, str]:
    """Run eval; return the folder of the results and what was said."""
    done = cli("eval", "-c", RUN, *arguments, cwd=project)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1].removeprefix("results in "), done.stderr


def digest(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below `folder`."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_each_question_has_a_folder_of_its_own(project: Path, cli: Run) -> None:
    """The same one replaces its results and says so; others get another name."""
    questions = {
        (): "eval",
        ("--data", "other.csv"): "eval-other",
        ("--data", "other.csv", "--split", "test"): "eval-other-test",
        ("eval.thresholds=fixed",): "eval-2",
        ("eval.thresholds=fixed", "eval.threshold=0.3"): "eval-3",
    }
    for arguments, name in questions.items():
        found, said = ask(project, cli, *arguments)
        assert (found, "replaced" in said) == (f"{RUN}/{name}", False)
    before = digest(project / RUN / "eval")
    for arguments in list(questions)[::3]:
        found, said = ask(project, cli, *arguments, "train.workers=0")
        assert found == f"{RUN}/{questions[arguments]}"
        assert f"{found}: results of the same question are replaced" in said
    assert digest(project / RUN / "eval").keys() == before.keys()
    done = cli("eval", "-c", f"{RUN}/last.safetensors", cwd=project)
    assert "results in runs/pets/eval-last" in done.stderr


def test_a_moved_run_replaces_its_own_results(project: Path, cli: Run, tmp_path: Path) -> None:
    """The question is kept relative to its folder."""
    ask(project, cli)
    moved = Path(shutil.copytree(project, tmp_path / "moved"))
    found, said = ask(moved, cli)
    assert found == f"{RUN}/eval"
    assert "replaced" in said


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ("runs/pets", "is a run directory"),
        ("scored", "another question (data: None there, '../other.csv' now"),
        ("mine", "holds predictions.csv of an older version, or of something else"),
        ("old", "holds metrics.json"),
        ("a-file", "Not a directory"),
        ("a-file/below", "Not a directory"),
        ("/proc/none", "cannot write into /proc/none"),
    ],
)
def test_a_folder_of_other_things_is_refused_before_scoring(
    project: Path, cli: Run, there: str, said: str
) -> None:
    """Nothing in it is touched."""
    if not (project / "scored").is_dir():
        ask(project, cli, "-o", "scored")
        (project / "mine").mkdir()
        (project / "mine/predictions.csv").write_text("by predict")
        (project / "old").mkdir()
        (project / "old/metrics.json").write_text('{"mAP": 1}')
        (project / "a-file").write_text("x")
    before = digest(project)
    done = cli("eval", "-c", RUN, "--data", "other.csv", "-o", there, cwd=project)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "checkpoint " not in done.stderr  # the line with which scoring begins
    assert digest(project) == before


def test_a_folder_of_other_files_is_written_to(project: Path, cli: Run) -> None:
    """Their names are others; the same command again replaces its own results."""
    (project / "notes").mkdir()
    (project / "notes/notes.txt").write_text("x")
    assert "replaced" not in ask(project, cli, "-o", "notes")[1]
    assert "replaced" in ask(project, cli, "-o", "notes")[1]
    assert (project / "notes/notes.txt").read_text() == "x"


def test_a_refused_rule_is_refused_before_scoring(project: Path, cli: Run) -> None:
    """Other data never fit thresholds: no folder, no scores."""
    asked = ("--data", "other.csv", "-o", "refused", "eval.thresholds=global")
    done = cli("eval", "-c", RUN, *asked, cwd=project)
    assert done.returncode == 2
    assert "fitted on the run's validation data" in done.stderr
    assert "checkpoint " not in done.stderr
    assert not (project / "refused").exists()


# ---- pictures that the model was trained on -----------------------------------------------


def test_pictures_of_training_are_told(project: Path, cli: Run) -> None:
    """On the screen, in metrics.json, on the page, and at each suspect that it has seen."""
    done = cli("eval", "-c", RUN, "--data", "tags.csv", "eval.thresholds=fixed",
               "eval.threshold=0.01", "-o", "seen", cwd=project)  # fmt: skip
    said = "the model was trained on 19 of these 24 pictures: it has seen their answers"
    assert f"warning: {said}" in " ".join(done.stdout.split())
    assert json.loads((project / "seen/metrics.json").read_text())["seen_in_training"] == 19
    for _ in range(2):  # `report` knows it from the folder alone
        assert f"Warning: {said}" in (project / "seen/report.html").read_text()
        with (project / "seen/suspects.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        marked = {row["image"] for row in rows if "trained on this picture" in row["why"]}
        seen = read_seen(project / "seen", 24)
        assert seen is not None
        names = np.array(read_scores(project / "seen").names)
        assert marked == {row["image"] for row in rows} & set(names[seen])
        assert cli("report", "seen", cwd=project).returncode == 0
    done = cli("eval", "-c", RUN, cwd=project)
    assert "trained on" not in done.stdout + (project / RUN / "eval/report.html").read_text()


def test_copies_of_training_pictures_are_told_by_their_bytes(project: Path, cli: Run) -> None:
    """Other names, another folder, another table."""
    names = [line.split(",")[0] for line in (project / "tags.csv").read_text().splitlines()[1:]]
    validation = (project / RUN / "predictions.csv").read_text()
    trained_on = [name for name in names if name not in validation]
    (project / "copies").mkdir()
    for number, name in enumerate(trained_on[:6]):
        shutil.copy(project / name, project / f"copies/{number}.jpg")
    rows = "".join(f"{number}.jpg,red\n" for number in range(6))
    (project / "copies/tags.csv").write_text("image,labels\n" + rows)
    done = cli("eval", "-c", RUN, "--data", "copies/tags.csv", cwd=project)
    assert "the model was trained on all 6 of these pictures" in done.stdout
    for path in (project / "copies").glob("*.jpg"):  # the same names, other bytes
        path.write_bytes(path.read_bytes() + b"!")
    done = cli("eval", "-c", RUN, "--data", "copies/tags.csv", cwd=project)
    assert done.returncode == 0
    assert "trained on" not in done.stdout


def test_training_tells_of_validation_pictures_that_it_has_seen(pictures: Path, cli: Run) -> None:
    """Two tables that share bytes, not names; of a resumed run, the former tables count too."""
    header, *rows = (pictures / "tags.csv").read_text().splitlines()
    shutil.copy(pictures / rows[8].split(",")[0], pictures / "images/copy.jpg")
    copy = f"images/copy.jpg,{rows[8].split(',')[1]}"
    (pictures / "val.csv").write_text("\n".join([header, *rows[:8], copy]))
    (pictures / "train.csv").write_text("\n".join([header, *rows[8:]]))
    sides = ("data.train=train.csv", "data.val=val.csv", "data.label_delimiter=|")
    done = cli("train", "pets.yaml", *sides, cwd=pictures)
    assert done.returncode == 0, done.stderr
    said = "the model was trained on 1 of these 9 pictures"
    assert f"warning: {said}" in done.stderr
    assert f"Warning: {said}" in (pictures / RUN / "report.html").read_text()
    assert f"warning: {said}" in cli("eval", "-c", RUN, cwd=pictures).stdout
    (pictures / "train.csv").write_text("\n".join([header, *rows[9:]]))
    more = (*sides, "train.epochs=2", "--resume", "--allow-changed")
    done = cli("train", "pets.yaml", *more, cwd=pictures)
    assert done.returncode == 0, done.stderr
    assert f"warning: {said}" in done.stderr


def test_a_run_of_an_older_version_says_what_its_table_says(
    pictures: Path, cli: Run, tmp_path: Path
) -> None:
    """Without trained_on.npz nothing is known of other data; `--split train` is certain."""
    header, *rows = (pictures / "tags.csv").read_text().splitlines()
    sides = [f"{row},{'val' if at < 8 else 'train'}" for at, row in enumerate(rows)]
    (pictures / "tags.csv").write_text("\n".join([f"{header},split", *sides]))
    done = cli("train", "pets.yaml", "model.freeze_backbone=true", cwd=pictures)
    assert done.returncode == 0, done.stderr
    for _ in range(2):
        done = cli("eval", "-c", RUN, "--split", "train", cwd=pictures)
        assert "the model was trained on all 16 of these pictures" in done.stdout
        (pictures / RUN / "trained_on.npz").unlink(missing_ok=True)
    done = cli("eval", "-c", RUN, "--data", "tags.csv", cwd=pictures)
    assert "trained on" not in done.stdout
    content = json.loads((pictures / RUN / "eval-tags/metrics.json").read_text())
    assert content["seen_in_training"] is None


def test_a_damaged_record_of_training_is_found_before_scoring(
    project: Path, cli: Run, tmp_path: Path
) -> None:
    """Hours of scoring are not lost to it, and the message says what helps."""
    shutil.copytree(project / RUN, tmp_path / "run")
    record = tmp_path / "run/trained_on.npz"
    record.write_bytes(record.read_bytes()[:-9])
    asked = ("eval", "-c", str(tmp_path / "run"), "--data", "tags.csv")
    done = cli(*asked, cwd=project)
    assert done.returncode == 2
    assert "trained_on.npz is damaged" in done.stderr
    assert "checkpoint " not in done.stderr  # the line with which scoring begins
    record.unlink()
    assert cli(*asked, cwd=project).returncode == 0


# ---- every command that works long tries to write first -----------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "pets.yaml", "-o", "a-file/run"),
        ("train", "pets.yaml", "-o", "/proc/none/run"),
        ("predict", "images", "-c", RUN, "-o", "a-file/p.csv"),
        ("predict", "images", "-c", RUN, "-o", "none/p.csv"),
        ("predict", "images", "-c", RUN, "-o", "images", "--format", "csv"),
        ("split", "tags.csv", "-o", "none/s.csv"),
        ("init", "tags.csv", "-o", "a-file/c.yaml"),
        ("init", "images", "--table", "/proc/t.csv"),
    ],
)
def test_commands_try_to_write_before_they_work(
    project: Path, cli: Run, arguments: tuple[str, ...]
) -> None:
    """One line on the output, before a picture is read or a model loaded."""
    (project / "a-file").write_text("x")
    done = cli(*arguments, cwd=project)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: cannot write")
