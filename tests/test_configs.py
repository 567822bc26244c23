"""Every recipe in configs/ loads and says how to run it."""

from pathlib import Path

import pytest

from mlfinetune.config import load_config

RECIPES = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def test_the_recipes_are_there() -> None:
    """The three recipes that the README names."""
    assert {"demo.yaml", "frozen.yaml", "finetune.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_loads_and_opens_with_its_command(path: Path) -> None:
    """At its head: the schema for editors, and the command that runs it."""
    schema, command, *_ = path.read_text().splitlines()
    assert (path.parent / schema.removeprefix("# yaml-language-server: $schema=")).is_file()
    assert command.startswith(f"# mlfinetune train configs/{path.name}")
    assert load_config(path).data.train.is_absolute()


def test_the_recipes_differ_in_what_trains() -> None:
    """frozen.yaml trains the head alone, finetune.yaml everything."""
    frozen, full = (
        load_config(RECIPES[0].parent / f"{name}.yaml") for name in ("frozen", "finetune")
    )
    assert frozen.model.freeze_backbone
    assert not full.model.freeze_backbone
