"""The source holds no way to run what a file says: read as a syntax tree, not as text."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import LONGEST

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for room in ("mlfinetune", "configs", "benchmarks") for path in (ROOT / room).rglob("*.py")
)
NEVER = {
    *("eval", "exec", "compile", "__import__"),
    *(
        "os.system",
        "os.popen",
        "os.startfile",
        "subprocess.getoutput",
        "subprocess.getstatusoutput",
    ),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
    *("shelve.open", "dill.load", "cloudpickle.load", "joblib.load", "pandas.read_pickle"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all"),
}
SAFE = {"torch.load": "weights_only", "torch.hub.load_state_dict_from_url": "weights_only"}
"""Calls that are allowed with this argument, True."""


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` for a name or an attribute; empty for other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        above = dotted(node.value)
        return f"{above}.{node.attr}" if above else ""
    return ""


def imported(tree: ast.AST) -> dict[str, str]:
    """Return local name -> the name that was imported."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {one.asname: one.name for one in node.names if one.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return names


def faults(text: str) -> Iterator[str]:
    """Return line and call of each call that is forbidden."""
    tree = ast.parse(text)
    known = imported(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = dotted(node.func).partition(".")
        called = known.get(first, first) + dot + rest
        given = {k.arg: k.value for k in node.keywords}
        values = {k: v.value for k, v in given.items() if isinstance(v, ast.Constant)}
        wrong = called in NEVER
        wrong |= called in SAFE and values.get(SAFE.get(called)) is not True
        wrong |= "shell" in given and values.get("shell") is not False
        wrong |= "allow_pickle" in given and values.get("allow_pickle") is not False
        if wrong:
            yield f"line {node.lineno}: {ast.unparse(node)[:80]}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_a_file_says(path: Path) -> None:
    """No unpickling, no unsafe YAML, no shell, no eval and no exec."""
    assert list(faults(path.read_text())) == []


def test_every_room_is_read() -> None:
    """The three folders are where they were."""
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == {
        "mlfinetune",
        "configs",
        "benchmarks",
    }
    assert len(SOURCES) > 100


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "exec(code)",
        "import os\nos.system('ls')",
        "from os import system as run\nrun('ls')",
        "import pickle as p\np.loads(b'')",
        "from pickle import load\nload(file)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=safe)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "from subprocess import run\nrun('ls', shell=yes)",
    ],
)
def test_it_would_be_seen(text: str) -> None:
    """Under any name it was imported by."""
    assert len(list(faults(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "import torch\ntorch.load(path, weights_only=True)",
        "import re\nre.compile('a')",
        "import torch\ntorch.compile(model)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import subprocess\nsubprocess.run(['ls'])",
    ],
)
def test_the_harmless_is_let_be(text: str) -> None:
    """Methods of the same name, and safe arguments."""
    assert list(faults(text)) == []


def test_processes_meet_in_one_room() -> None:
    """import-linter knows packages, not their parts: torch.distributed lives in runtime."""
    wrong = []
    for path in (ROOT / "mlfinetune").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [str(path) for name in names if name.startswith("torch.distributed")]
    assert {Path(path).name for path in wrong} == {"distributed.py", "rendezvous.py"}


def test_the_longest_tests_are_there() -> None:
    """A file that was renamed would no longer be put first."""
    assert not [name for name in LONGEST if not (ROOT / f"tests/{name}.py").is_file()]
