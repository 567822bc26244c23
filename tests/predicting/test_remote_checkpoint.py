"""Checkpoints behind URLs: fetched once, known by the digest that they name."""

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import huggingface_hub.constants
import pytest
from conftest import Run
from storage.servers import Server, serving

import mlfinetune
from mlfinetune.errors import CheckpointError
from mlfinetune.predicting.remote import fetch_checkpoint
from mlfinetune.runs import checkpoint
from mlfinetune.storage import files


@pytest.fixture
def server(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of a run directory, and an empty cache."""
    monkeypatch.setenv("MLFINETUNE_CACHE", str(tmp_path / "cache"))
    there = tmp_path / "there" / "pets"
    there.mkdir(parents=True)
    shutil.copy(trained / "runs/pets/best.safetensors", there)
    with serving(there.parent) as found:
        yield found


def test_a_run_behind_a_url_is_fetched_once(trained: Path, server: Server) -> None:
    """Its directory or its file; of one that is kept, the start alone is asked for."""
    picture = trained / "images/0003.png"
    tagger = mlfinetune.load(f"{server.url}/pets", device="cpu")
    assert tagger.source == f"{server.url}/pets"
    (kept,) = Path(fetch_checkpoint(f"{server.url}/pets/best.safetensors")).parent.iterdir()
    assert server.asked == {"/pets/best.safetensors": 3}
    local = mlfinetune.load(trained / "runs/pets", device="cpu")
    assert list(tagger.predict(picture)) == list(local.predict(picture))
    content = kept.read_bytes()
    kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fetch_checkpoint(f"{server.url}/pets").read_bytes() == content


def test_another_file_at_the_same_url_is_heard_of(server: Server, tmp_path: Path) -> None:
    first = fetch_checkpoint(f"{server.url}/pets")
    path = tmp_path / "there/pets/best.safetensors"
    checkpoint.save(path, replace(checkpoint.load(path), epoch=7))
    assert checkpoint.load(fetch_checkpoint(f"{server.url}/pets")).epoch == 7
    assert first.is_file()


def test_what_cannot_be_loaded_is_said(server: Server, tmp_path: Path) -> None:
    """By the URL, without its secrets."""
    (tmp_path / "there/a.safetensors").write_text("<html>")
    for url, message in (
        ("/none?token=secret", r"/none\?token=\*\*\*: no such object"),
        ("/a.safetensors", r"/a\.safetensors is not a complete checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=f"^{server.url}{message}"):
            mlfinetune.load(server.url + url)
    with pytest.raises(CheckpointError, match="no user or password in a URL"):
        mlfinetune.load("https://me:secret@host/a.safetensors")
    with pytest.raises(CheckpointError, match="no such checkpoint: none"):
        mlfinetune.load("none")


def test_predict_takes_the_url(trained: Path, server: Server, cli: Run) -> None:
    picture = "images/0003.png"
    done = cli("predict", picture, "-c", f"{server.url}/pets", cwd=trained)
    assert done.stderr.startswith(f"checkpoint {server.url}/pets: 8 labels")
    assert done.stdout == cli("predict", picture, "-c", "runs/pets", cwd=trained).stdout


def test_eval_takes_the_url_with_data(
    trained: Path, tmp_path: Path, server: Server, cli: Run
) -> None:
    url, scored = f"{server.url}/pets", tmp_path / "scored"
    done = cli("eval", "-c", url, "--data", "tags.csv", "-o", str(scored), cwd=trained)
    assert done.returncode == 0, done.stderr
    assert (scored / "metrics.json").is_file()
    done = cli("eval", "-c", url, "--data", "tags.csv", cwd=trained)
    assert done.returncode == 2
    assert "name the data to score with --data TABLE" in done.stderr


# ---- the hub ------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, for the model user/pets-v1.5 with one file."""

    protocol_version = "HTTP/1.1"
    content = b""

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/user/pets-v1.5"):
            file = {
                "type": "file",
                "path": "best.safetensors",
                "oid": "1",
                "size": len(self.content),
            }
            about = {"id": "user/pets-v1.5", "sha": "0" * 40, "siblings": []}
            self.answer(200, json.dumps([file] if "/tree/" in self.path else about).encode())
        elif self.path == "/user/pets-v1.5/resolve/main/best.safetensors":
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self.answer(206, self.content[first : last + 1])
        else:
            self.answer(404, b"{}")

    do_HEAD = do_GET

    def answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


def test_a_checkpoint_of_the_hub(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its file or its repository, and a new version too; a missing one is said."""
    monkeypatch.setenv("MLFINETUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(files, "PAUSE_S", 0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{hub.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    fsspec.get_filesystem_class("hf").clear_instance_cache()
    path = trained / "runs/pets/best.safetensors"
    monkeypatch.setattr(Hub, "content", path.read_bytes())
    for name in ("user/pets-v1.5", "user/pets-v1.5/best.safetensors"):
        assert fetch_checkpoint(f"hf://{name}").read_bytes() == Hub.content
    assert mlfinetune.load("hf://user/pets-v1.5").source == "hf://user/pets-v1.5"
    longer = replace(checkpoint.load(path), versions={"of": "another length" * 100})
    checkpoint.save(tmp_path / "new.safetensors", longer)
    monkeypatch.setattr(Hub, "content", (tmp_path / "new.safetensors").read_bytes())
    assert fetch_checkpoint("hf://user/pets-v1.5").read_bytes() == Hub.content
    with pytest.raises(CheckpointError, match=r"hf://user/none/best\.safetensors"):
        fetch_checkpoint("hf://user/none")
    hub.shutdown()
    fsspec.get_filesystem_class("hf").clear_instance_cache()
