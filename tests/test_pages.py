"""The pages are true: commands run, examples hold, configs load, links lead to something.

A block of bash runs, or has a line before it that says what it needs: `<!-- needs: GPU -->`.
"""

import doctest
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest
from conftest import COMMAND, TINY, Promise, Run, prepare
from distributed import group
from torch.distributed.run import get_args_parser

from mlfinetune.config import load_config

ROOT = Path(__file__).parent.parent
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *DOCS]
OTHERS = ["SECURITY.md", "CHANGELOG.md", "benchmarks/peers/README.md"]
LANGUAGES = {"bash", "python", "yaml", "csv", "text"}
NEEDS = ("GPU", "cluster", "hub")
"""Marks of blocks that no test runs."""
LAUNCHER = "torchrun --standalone --nproc-per-node 8 -m mlfinetune "


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and what its mark says it needs."""

    page: str
    language: str
    text: str
    needs: str | None


def read_page(name: str) -> str:
    return (ROOT / name).read_text()


def read_blocks(page: str) -> list[Block]:
    pattern = r"^(?:<!-- needs: (.*?) -->\n+)?```(.*)\n((?:.*\n)*?)```$"
    found = re.findall(pattern, read_page(page), re.MULTILINE)
    return [Block(page, language, text, needs or None) for needs, language, text in found]


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of one language that need nothing special."""
    return [b.text for b in read_blocks(page) if b.language == language and b.needs is None]


def pages_with(language: str) -> list[str]:
    return [page for page in PAGES if blocks(page, language)]


def run(command: str, cwd: Path, **environment: str) -> str:
    """Run a shell command, which must succeed, and return its standard output."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=cwd,
        env={**os.environ, "PATH": path, "MAKEFLAGS": "", **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def classify(line: str) -> str:
    """Return how a line is run: `here`, `piped`, `group` (processes as torchrun's), or `shell`."""
    bare = re.sub(r"'[^']*'", "", line)
    if re.fullmatch(r"[^$|<>&;\\]* \| mlfinetune [^$|<>&;\\]*", bare):
        return "piped"
    if re.search(r"[$|<>&;\\]", bare):
        return "shell"
    if line.startswith(LAUNCHER):  # tests/distributed has torchrun itself, too
        return "shell" if line.startswith(f"{LAUNCHER}train ") else "group"
    return "here" if line.startswith("mlfinetune ") else "shell"


def run_block(text: str, cwd: Path, cli: Run, **environment: str) -> str:
    """Return the output of a block; what needs no new process gets none, which saves seconds each.

    Where 8 processes are asked for two are started: this machine may have no more cores. The
    command is that of the tests, which knows their tiny network.
    """
    if "$" in text:  # what a line sets another line reads
        if re.search(r"^(?!\w+=|mlfinetune |  |\Z)", text, re.MULTILINE):
            return run_script(text, cwd, **environment)
        text = expand(text, cwd)
    out = ""
    for how, lines in groupby(text.splitlines(), classify):
        if how == "shell":
            out += run_script("\n".join(lines), cwd, **environment)
            continue
        for line in lines:
            if how == "group":
                arguments = shlex.split(line.removeprefix(LAUNCHER))
                out += group.run(2, *arguments, cwd=cwd, **environment).out
                continue
            before, _, command = line.rpartition(" | ") if how == "piped" else ("", "", line)
            stdin = run_script(before, cwd, **environment) if before else ""
            done = cli(*shlex.split(command)[1:], cwd=cwd, stdin=stdin, **environment)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            out += done.stdout
    return out


def run_script(text: str, cwd: Path, **environment: str) -> str:
    text = text.replace(LAUNCHER, f"torchrun --standalone --nproc-per-node 2 {COMMAND[1]} ")
    ours = f'mlfinetune() {{ {shlex.join(COMMAND)} "$@"; }}'
    return run(f"{ours}\n{text}", cwd, **environment)


def expand(text: str, cwd: Path) -> str:
    """Return the commands of a script as the shell reads them, a line each."""
    return run(f"""mlfinetune() {{ printf '%q ' mlfinetune "$@"; echo; }}\n{text}""", cwd)


def count_commands(text: str) -> int:
    return len(text.replace("\\\n", "").splitlines())


def prepare_runs(folder: Path, trained: Path) -> None:
    """Copy a finished run to runs/pets and runs/pets-2; it was trained on the files here."""
    for name in ("pets", "pets-2"):
        run_directory = shutil.copytree(trained / "runs/pets", folder / "runs" / name)
        config = run_directory / "config.yaml"
        config.write_text(config.read_text().replace(str(trained), str(folder)))


def prepare_site(folder: Path) -> None:
    """Make the files that the pages name: pets.yaml with its table, photos/, tagged/."""
    prepare(folder)
    shutil.copytree(folder / "images", folder / "photos")
    shutil.copytree(folder / "images", folder / "tagged")
    for line in (folder / "tags.csv").read_text().splitlines()[1:]:
        name, labels = line.split(",")
        text = folder / "tagged" / Path(name).with_suffix(".txt").name
        text.write_text(labels.replace("|", ", "))


# ---- commands -------------------------------------------------------------------------------


def test_every_block_is_one_that_a_test_knows() -> None:
    """Of a known language, and with a known mark."""
    for block in [block for page in PAGES for block in read_blocks(page)]:
        assert block.language in LANGUAGES, block
        assert block.needs is None or (block.needs in NEEDS and block.language == "bash"), block
    for page in PAGES:
        assert read_page(page).count("\n```") == 2 * len(read_blocks(page)), page


def test_the_blocks_of_the_readme_are_known() -> None:
    """Each is run by a test of its own below."""
    first_words = [
        [line.split()[:2] for line in text.splitlines()] for text in blocks("README.md", "bash")
    ]
    assert first_words == [
        [["make", "demo"], ["make", "test"]],
        [["pip", "install"]],
        [["mlfinetune", "train"], ["mlfinetune", "eval"], ["mlfinetune", "predict"]],
    ]


def test_make_demo_reaches_its_figure_and_shows_where_things_are() -> None:
    """`make demo`: validation mAP of at least 0.95, and the names of what it left."""
    out = run("make demo", ROOT)
    metrics = json.loads((ROOT / "runs/demo/metrics.json").read_text())
    assert metrics["mAP"] >= 0.95
    evaluated = json.loads((ROOT / "runs/demo/eval/metrics.json").read_text())
    assert evaluated["mAP"] == metrics["mAP"]
    assert len((ROOT / "demo/predictions.csv").read_text().splitlines()) == 1001
    for name in ("runs/demo/", "demo/predictions.csv", "per_label.csv"):
        assert name in out
    assert "epoch" not in run("make demo 2>&1", ROOT)  # again: seconds, no training


def test_make_test_runs_the_checks_and_these_tests() -> None:
    """`make test` is what runs this; its recipe holds every check."""
    recipe = run("make -n -B test", ROOT)
    for command in ("ruff format --check", "ruff check", "mypy", "lint-imports", "-m pytest"):
        assert command in recipe
    assert re.search(r"docs/python.md > (\S+)\n\S*mypy mlfinetune \1$", recipe, re.MULTILINE)
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_the_targets_that_pages_name_are_there() -> None:
    """Every `make TARGET`, in blocks and in sentences, marked or not."""
    targets = re.findall(r"^([\w-]+):", read_page("Makefile"), re.MULTILINE)
    for page in [*PAGES, "SECURITY.md"]:
        for name in re.findall(r"(?:`|^)make ([a-z][\w-]*)", read_page(page), re.MULTILINE):
            assert name in targets, f"{page}: make {name}"
        for line in (x for b in read_blocks(page) for x in b.text.splitlines()):
            if line.startswith("make "):
                run(line.replace("make ", "make -n ", 1), ROOT)  # its recipe, which is not run


@pytest.mark.faults
def test_pip_install_gives_a_working_command(tmp_path: Path, promise: Promise) -> None:
    """A built and installed package answers, with every file that it needs."""
    (command,) = blocks("README.md", "bash")[1].splitlines()
    assert command == "pip install ."
    run(f"python -m pip install --quiet --no-deps --no-build-isolation --target {tmp_path} .", ROOT)
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    assert "mlfinetune" in run(f"{tmp_path}/bin/mlfinetune --version", tmp_path, **environment)
    where = run(
        "python -P -c 'import mlfinetune; print(mlfinetune.__file__)'", tmp_path, **environment
    )
    assert where.startswith(str(tmp_path))
    for file in ("config/schema.json", "report/templates/page.html.j2", "py.typed"):
        assert (tmp_path / "mlfinetune" / file).is_file()
    promise("P19", 1, [])


@pytest.mark.faults
def test_the_three_commands(tmp_path: Path, cli: Run, promise: Promise) -> None:
    """On the two lines of the README, and settings that make the run small.

    tests/cli/test_init.py trains with the defaults, on weights from torchvision's cache.
    """
    prepare_site(tmp_path)
    assert TINY.startswith(blocks("README.md", "yaml")[0])
    commands = blocks("README.md", "bash")[2]
    assert run_block(commands, tmp_path, cli).count("mAP over") == 2
    assert (tmp_path / "runs/pets/eval/metrics.json").is_file()
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 25
    promise("P19", count_commands(commands), [])


@pytest.mark.faults
@pytest.mark.parametrize("page", [page for page in pages_with("bash") if page != "README.md"])
def test_the_commands_of_a_page(
    tmp_path: Path, trained: Path, cli: Run, promise: Promise, page: str
) -> None:
    """In their order, where there are pictures, a config and two finished runs.

    Those of `make` are left out: what they start are the tests, or takes minutes.
    """
    prepare_site(tmp_path)
    prepare_runs(tmp_path, trained)
    environment = {"MLFINETUNE_CACHE": str(tmp_path / "cache")}
    for text in blocks(page, "bash"):
        commands = re.sub(r"^make .*\n", "", text, flags=re.MULTILINE)  # their test is above
        if commands:
            run_block(commands, tmp_path, cli, **environment)
            promise("P19", count_commands(commands), [])


# ---- what the commands leave, where the page says so --------------------------------------


def test_marked_scripts_can_be_read() -> None:
    """Those for a cluster: bash takes them, and torchrun knows their options."""
    scripts = [b.text for page in PAGES for b in read_blocks(page) if b.needs == "cluster"]
    assert len(scripts) == 2
    for script in scripts:
        run(f"bash -n <<'END'\n{script}END", ROOT)
    known = {name.replace("_", "-") for name in get_args_parser()._option_string_actions}
    words = "\n".join(
        line for script in scripts for line in script.splitlines() if "#SBATCH" not in line
    )
    options = set(re.findall(r"--[a-z][a-z-]+", words))
    assert len(options) >= 6
    for option in options:
        assert option in known, option


def test_the_table_of_scale_is_what_the_arithmetic_gives() -> None:
    model = runpy.run_path(str(ROOT / "benchmarks/scale_model.py"))
    assert "\n".join(model["lines"]()) in read_page("docs/scale.md")
    kept = json.loads((ROOT / "benchmarks/results/scale_model.json").read_text())
    for row, now in zip(kept["rows"], model["table"](), strict=True):
        assert row == pytest.approx(now)


# ---- examples and configs -------------------------------------------------------------------


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_of_a_page(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    """In its order; a session of `>>>` gives the lines that it shows.

    A block that begins with `# name.py` is a file, which others may import.
    """
    prepare_site(tmp_path)
    prepare_runs(tmp_path, trained)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, object] = {}
    for text in blocks(page, "python"):
        if name := re.match(r"# (\w+\.py)\n", text):
            (tmp_path / name[1]).write_text(text)
        if ">>>" not in text:
            exec(compile(text, page, "exec"), names)
            continue
        said: list[str] = []
        session = doctest.DocTestParser().get_doctest(text, names, page, page, 0)
        failed, tried = doctest.DocTestRunner().run(session, out=said.append, clear_globs=False)
        assert tried
        assert not failed, "".join(said)
        names = session.globs


def test_metrics_has_examples_to_check_by_hand() -> None:
    assert (
        len(re.findall(r"^\*\*Example \d\.\*\*", read_page("docs/metrics.md"), re.MULTILINE)) >= 4
    )


@pytest.mark.parametrize(
    "text", [text for page in PAGES for text in blocks(page, "yaml")], ids=lambda text: text[:40]
)
def test_the_configs_load(tmp_path: Path, text: str) -> None:
    """Every YAML block is a whole config; of several tables this is the first."""
    (tmp_path / "pets.yaml").write_text(text)
    tables = load_config(tmp_path / "pets.yaml").data.train
    first = tables[0] if isinstance(tables, tuple) else tables
    assert first == tmp_path / "tags.csv"


def test_the_example_names_every_default_as_it_is(tmp_path: Path) -> None:
    """The README's config differs from the defaults in its paths alone, and has 25 lines."""
    text = blocks("README.md", "yaml")[1]
    assert len(text.splitlines()) <= 25
    (tmp_path / "pets.yaml").write_text(text)
    (tmp_path / "bare.yaml").write_text("data: {train: tags.csv}")
    example, bare = load_config(tmp_path / "pets.yaml"), load_config(tmp_path / "bare.yaml")
    for section in ("model", "augment", "train", "loss", "eval"):
        assert getattr(example, section) == getattr(bare, section)
    paths = {"train", "val", "images"}
    assert example.data.model_dump(exclude=paths) == bare.data.model_dump(exclude=paths)


def test_the_page_of_keys_is_written_from_the_schema() -> None:
    page = runpy.run_path(str(ROOT / "docs/config.py"))
    schema = json.loads(page["SCHEMA"].read_text())
    assert page["PAGE"].read_text() == page["fill"](page["PAGE"].read_text(), schema), "make docs"
    for section in schema["$defs"].values():
        for key in section["properties"]:
            assert f"\n| `{key}` |" in page["build_tables"](schema)


# ---- the pages themselves -------------------------------------------------------------------


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_links_and_pictures_lead_to_something(page: str) -> None:
    """Files are there, and so are the headings that are named after a #."""
    text = re.sub(r"^```.*?^```", "", read_page(page), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
            assert heading in anchors, f"{page}: {link}"


def test_files_that_pages_name_are_there() -> None:
    """Scripts, results, tests and recipes, each by its path."""
    for page in [*PAGES, "SECURITY.md"]:
        text = read_page(page)
        for name in re.findall(r"`((?:benchmarks|tests|configs|docs)/[\w/.]+\.\w+)`", text):
            assert (ROOT / name).is_file(), f"{page}: {name}"


def test_the_readme_is_for_one_sitting() -> None:
    """At most 200 lines; the picture; and every page of docs is linked."""
    text = read_page("README.md")
    assert len(text.splitlines()) <= 200
    assert "](docs/images/report.png)" in text
    for page in [*DOCS, "CONTRIBUTING.md", "SECURITY.md"]:
        assert f"]({page})" in text, page


def test_a_page_opens_with_its_question() -> None:
    for page in DOCS:
        opening = read_page(page).split("\n\n")[1]
        assert "?" in opening, page


def test_the_readme_shows_real_output() -> None:
    """No block is a placeholder, and the table has the form that the program prints."""
    assert all(len(text.splitlines()) > 1 for text in blocks("README.md", "text"))
    table = re.compile(r"^  mAP       0\.9[5-9]\d\d     macro F1", re.MULTILINE)
    assert table.search(read_page("README.md"))


def test_the_security_page_names_tests_that_are_there() -> None:
    """Each promise of SECURITY.md has its file."""
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", read_page("SECURITY.md")))
    assert len(named) >= 8
    assert all((ROOT / name).is_file() for name in named)


def test_the_promises_are_those_that_were_counted() -> None:
    counted = json.loads((ROOT / "benchmarks/results/faults.json").read_text())["promises"]
    page = read_page("docs/reliability.md")
    rows = re.findall(r"^\| (P\d+) \| .* \| ([\d,]+) \| (\d+) \|$", page, re.MULTILINE)
    wanted = [(name, f"{row['trials']:,}", str(row["failures"])) for name, row in counted.items()]
    assert rows == wanted
    assert [name for name, *_ in rows] == [f"P{n}" for n in range(1, 21)]
