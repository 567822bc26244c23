"""The house holds: docs/architecture.md shows it as it is, and what import-linter cannot see."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlfinetune"
PAGE = (ROOT / "docs/architecture.md").read_text()
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES} - {PACKAGE})

RIDDLES = ("What", "Which", "Those", "The same", "How", "Where")
"""First words of a docstring whose subject is missing."""


def text_blocks(heading: str) -> list[str]:
    """Return the text blocks of one section of the page."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```text\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


# ---- the floors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "container"), [(0, "mlfinetune"), (1, "mlfinetune.training"), (2, "mlfinetune.data")]
)
def test_the_page_shows_the_floors_that_are_held(number: int, container: str) -> None:
    """Same rooms on the same floors, the highest first, counted down to 1."""
    shown = [line.split(maxsplit=1) for line in text_blocks("Floors")[number].splitlines()]
    (held,) = [
        contract["layers"]
        for contract in CONTRACTS
        if contract["type"] == "layers" and contract["containers"] == [container]
    ]
    assert [rooms for _, rooms in shown] == held
    assert [int(floor) for floor, _ in shown] == list(range(len(held), 0, -1))


# ---- the tree -------------------------------------------------------------------------------


def tree() -> set[str]:
    """Return every path in the page's tree, relative to the package; a folder ends in /."""
    named: set[str] = set()
    above: dict[int, str] = {2: ""}
    for line in text_blocks("The rooms")[0].splitlines()[1:]:
        indent = len(line) - len(line.lstrip())
        words = line.split()
        for word in words:
            if not re.fullmatch(r"\w+(\.py|\.json|/)", word):
                break
            named.add(above[indent] + word)
        if words and words[0].endswith("/"):
            above[indent + 2] = above[indent] + words[0]
    return named


def test_the_tree_names_every_folder_and_module() -> None:
    """None is missing, none is invented, none is named twice."""
    there = {str(path.relative_to(PACKAGE)) for path in MODULES if path.name != "__init__.py"}
    there |= {f"{folder.relative_to(PACKAGE)}/" for folder in FOLDERS}
    there |= {"__init__.py", "config/schema.json"}
    assert tree() == there


def test_every_folder_of_the_tree_has_a_sentence() -> None:
    """Its line says what it is for."""
    for line in text_blocks("The rooms")[0].splitlines()[1:]:
        first, *rest = line.split() or ["."]
        assert not first.endswith("/") or len(rest) > 1, line


def test_paths_of_the_page_are_there() -> None:
    """A path in code marks leads to a file or folder of the package or the repository."""
    for name in set(re.findall(r"`([\w./]+(?:/|\.py|\.md|\.yaml))`", PAGE)):
        places = (ROOT / name, PACKAGE / name, PACKAGE / "data/readers" / name)
        places += (PACKAGE / "data/images" / name,)
        assert name in ("utils.py", "__init__.py") or any(one.exists() for one in places), name


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/*.md")), ids=lambda path: path.name)
def test_links_of_a_page_lead_somewhere(path: Path) -> None:
    """Files beside the page are there, and so are the headings that links name."""
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        there = path.parent / name if name else path
        assert there.exists(), link
        headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in headings}
        assert not anchor or anchor in anchors, link


# ---- one library, one home ------------------------------------------------------------------


def test_the_page_shows_the_homes_that_are_held() -> None:
    """The table of libraries is that of the contracts `LIBRARY lives in ROOM`."""
    (body,) = re.findall(r"^\| library \| home \|\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    shown = {}
    for line in body.splitlines():
        libraries, homes = (cell.split(", ") for cell in line.strip("| ").split(" | "))
        shown |= {library: set(homes) for library in libraries}
    held = {}
    for contract in CONTRACTS:
        if not re.search(r" lives? in ", contract["name"]):
            continue
        for library in contract["forbidden_modules"]:
            arrows = (one.split(" -> ") for one in contract["ignore_imports"])
            held[library] = {
                room.removeprefix("mlfinetune.").removesuffix(".**")
                for room, imported in arrows
                if imported == library
            }
    for part, whole in (("pydantic_core", "pydantic"), ("markupsafe", "jinja2")):
        assert held.pop(part) == held[whole]
    assert shown == held


def test_triton_lives_in_the_kernel() -> None:
    """It is looked for by name elsewhere, and imported here alone."""
    importing = re.compile(r"^\s*(?:import|from) triton", re.MULTILINE)
    found = [path for path in MODULES if importing.search(path.read_text())]
    assert found == [PACKAGE / "loss/kernel.py"]


# ---- docstrings -----------------------------------------------------------------------------


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield place and first line of each docstring: of modules, classes, functions, constants."""
    places = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, places) and (text := ast.get_docstring(node)):
            line = getattr(node, "lineno", 1)
            yield f"{path.relative_to(PACKAGE)}:{line}", text.splitlines()[0]
        for before, after in pairwise(node.body if isinstance(node, places) else ()):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if is_text and isinstance(before, ast.Assign | ast.AnnAssign):
                place = f"{path.relative_to(PACKAGE)}:{after.lineno}"
                yield place, str(after.value.value)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_begin_with_their_subject(path: Path) -> None:
    """`Everything one run needs`, and not `What a run is made of`."""
    riddle = re.compile(rf"(?:{'|'.join(RIDDLES)})\b")
    assert [(place, line) for place, line in docstrings(path) if riddle.match(line)] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(PACKAGE)))
def test_every_folder_introduces_itself(folder: Path) -> None:
    """Three lines at least: the purpose, what goes in and out, and where to start."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) >= 3
    assert "->" in text or ("In:" in text and "Out:" in text)
    start = re.search(r"Start at ([\w/]+\.py)", text)
    assert start is not None
    assert (folder / start[1]).is_file()


# ---- what no contract can see -----------------------------------------------------------------


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a new Python has loaded after `statement`."""
    code = f"{statement}\nimport sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_cli_loads_no_torch() -> None:
    """Importing the CLI loads typer and none of the heavy libraries."""
    loaded = loaded_by("import mlfinetune.cli")
    assert "typer" in loaded
    assert not loaded & {"torch", "torchvision", "numpy", "sklearn", "PIL", "yaml"}


def test_a_config_loads_without_torch() -> None:
    """A fault in the config is shown before torch is loaded."""
    loaded = loaded_by("import mlfinetune.config")
    assert "yaml" in loaded
    assert not loaded & {"torch", "torchvision", "numpy"}


def test_no_file_is_longer_than_400_lines() -> None:
    """A longer file has a second room inside."""
    assert [path.name for path in MODULES if len(path.read_text().splitlines()) > 400] == []


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda path: path.name
)
def test_a_page_is_finished(path: Path) -> None:
    """It has no marks of a merge, and no line that waits for a table."""
    assert re.findall(r"^(?:[<>|]{7} .*|[A-Z]{5,})$", path.read_text(), re.MULTILINE) == []
