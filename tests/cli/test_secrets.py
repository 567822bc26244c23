"""Passwords, tokens and signatures in URLs: nobody reads them, and no run keeps them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Run, prepare
from storage.servers import Server, serving

USER = "http://me:hidden@host.invalid"


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", f"{USER}/a.yaml"),
        ("check", "pets.yaml", f"model.weights={USER}/a.pth"),
        ("check", "pets.yaml", f"output={USER}/a"),
        ("check", "pets.yaml", f"data.train={USER}/a.csv"),
        ("check", "pets.yaml", "data.train=https://host.invalid/get?token=hidden&name=a.csv"),
        ("check", "pets.yaml", f"nonsense={USER}"),
        ("eval", "-c", "runs/pets", "--data", "https://host.invalid/a.csv?sig=hidden"),
        ("eval", "-c", f"{USER}/run"),
        ("init", f"{USER}/a.csv"),
        ("compare", f"{USER}/a", "runs/pets"),
        ("predict", f"{USER}/a.jpg"),
        ("report", "runs/pets", f"http://me:hidden@{'long.' * 30}invalid"),
        (f"{USER}/",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_mistake_does_not_echo_a_secret(
    trained: Path, cli: Run, arguments: tuple[str, ...]
) -> None:
    """The URL is named without it."""
    done = cli(*arguments, cwd=trained)
    assert done.returncode == 2
    assert "hidden" not in done.stdout + done.stderr


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Serve pictures, and write a table of their signed URLs; one is not there."""
    there = prepare(tmp_path / "there")
    header, *rows = (there / "tags.csv").read_text().splitlines()
    with serving(there) as found:
        signed = [
            f"{found.url}/{row.replace(',', '?w=9&X-Amz-Signature=hidden,', 1)}" for row in rows
        ]
        signed.append(f"{found.url}/none.jpg?token=hidden,cat")
        (tmp_path / "signed.csv").write_text("\n".join([header, *signed]))
        (tmp_path / "pets.yaml").write_text((there / "pets.yaml").read_text())
        yield found


def test_signed_pictures_train_and_leave_no_signature_to_read(
    tmp_path: Path, server: Server, cli: Run
) -> None:
    """Neither in messages, nor in the log, the page, the config or the numbers of the run."""
    asked = ("data.train=signed.csv", "data.allow_outside_root=true", "model.image_size=32")
    done = cli("check", "pets.yaml", *asked, cwd=tmp_path)
    assert "none.jpg?token=***" in done.stdout
    texts = [done.stdout, done.stderr]
    done = cli("train", "pets.yaml", *asked, "data.bad_images=skip", "-o", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert cli("train", "run/config.yaml", "--resume", cwd=tmp_path).returncode == 0
    assert cli("eval", "-c", "run", cwd=tmp_path).returncode == 0
    texts += [done.stdout, done.stderr]
    texts += [
        (tmp_path / "run" / name).read_text()
        for name in ("train.log", "report.html", "config.yaml", "metrics.json", "metrics.jsonl")
    ]
    shown = [line for text in texts for line in text.splitlines() if "=hidden" in line]
    assert not [line[:200] for line in shown]
    assert "X-Amz-Signature=hidden" in (tmp_path / "run/predictions.csv").read_text()
