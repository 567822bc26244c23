"""`mlfinetune card`: a README.md that people read, and whose head Hugging Face's own code reads."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import Run
from huggingface_hub import ModelCard

from mlfinetune.config import yaml12


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run."""
    return Path(shutil.copytree(trained / "runs/pets", tmp_path / "pets"))


def write_card(cli: Run, run: Path, *options: str) -> str:
    done = cli("card", str(run), *options, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()).read_text()


def test_the_head_is_read_by_the_hub_s_own_code(run: Path, cli: Run) -> None:
    """Its numbers are those of metrics.json, with their intervals."""
    write_card(cli, run)
    data = ModelCard.load(run / "README.md").data
    content = json.loads((run / "metrics.json").read_text())
    assert data.library_name == "mlfinetune"
    results = {result.metric_name: result for result in data.eval_results}
    assert set(results) == {"mAP", "micro AP", "macro F1", "micro F1"}
    for name, result in results.items():
        assert result.metric_value == pytest.approx(content[name.replace(" ", "_")], abs=5e-5)
        assert result.dataset_split == "validation"
    assert results["mAP"].metric_args["interval_95"] == pytest.approx(
        content["intervals"]["mAP"], abs=5e-5
    )


def test_it_says_what_a_user_of_the_tagger_asks(run: Path, cli: Run) -> None:
    """Labels with their thresholds, data, protocol, weak points and the ways to use it."""
    card = write_card(cli, run)
    content = json.loads((run / "metrics.json").read_text())
    for label, row in content["per_label"].items():
        assert f"| {label} | {row['threshold']:.4f} |" in card
    for text in (
        "tags.csv",
        "What it is weak at",
        "mlfinetune predict",
        "mlfinetune.load(",
        "ONNX",
    ):
        assert text in card
    assert str(run.parent) not in card  # folders are nobody's business


def test_several_levels_are_named(run: Path, cli: Run) -> None:
    """One is what a reader expects, and is not."""
    config, row = run / "config.yaml", "the means of the maps of the last 3 levels"
    text = re.sub(r"(?m)^  levels: \d$", "  levels: 3", config.read_text())
    for levels in (3, 1):
        config.write_text(text.replace("  levels: 3\n", f"  levels: {levels}\n"))
        assert (row in write_card(cli, run)) == (levels == 3)


def test_a_readme_of_another_origin_stays(run: Path, cli: Run) -> None:
    """A card may be written again, and elsewhere; a file that people wrote is not touched."""
    first = write_card(cli, run)
    assert write_card(cli, run) == first
    (run / "README.md").write_text("my notes")
    done = cli("card", str(run), cwd=run.parent)
    assert done.returncode == 2
    assert "did not write it; name another file with -o" in done.stderr
    assert (run / "README.md").read_text() == "my notes"
    assert write_card(cli, run, "-o", str(run / "CARD.md")) == first


@pytest.mark.parametrize("lost", ["metrics.json", "best.safetensors", "config.yaml"])
def test_a_run_that_is_not_whole_is_refused(lost: str, run: Path, cli: Run) -> None:
    """The file that it lacks is named."""
    (run / lost).unlink()
    done = cli("card", str(run), cwd=run.parent)
    assert done.returncode == 2
    assert f"holds no {lost}" in done.stderr


def test_names_that_would_break_the_head_stay_names(run: Path, cli: Run) -> None:
    """The run's name is whatever a folder may be called."""
    odd = run.rename(run.parent / "a: [b] # 'c' \"d\"\n- e")
    card = write_card(cli, odd, "-o", str(run.parent / "card.md"))
    head, _ = yaml12.parse(card.split("---\n")[1])
    assert " ".join(head["model-index"][0]["name"].replace("\ufffd", " ").split()) == (
        "a: [b] # 'c' \"d\" - e"
    )
