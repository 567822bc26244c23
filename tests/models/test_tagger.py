"""The tagger and its pretrained weights: layers, freezing, groups, files, downloads."""

import hashlib
import io
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import pytest
import torch
import torchvision
from conftest import Promise
from safetensors.torch import save_file
from torch import Tensor, nn

from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.targets import LabelSpace
from mlfinetune.errors import ConfigError, WeightsError
from mlfinetune.metrics.types import DecisionRule
from mlfinetune.models.backbones import BACKBONES, PooledResNet, is_resnet
from mlfinetune.models.pretrained import download_weights, load_pretrained
from mlfinetune.models.tagger import Tagger
from mlfinetune.runs import checkpoint
from mlfinetune.runs.checkpoint import Checkpoint
from mlfinetune.training.optim import build_optimizer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
State = dict[str, Tensor]


def tagger(labels: int = 3, frozen: bool = False, bias: Tensor | None = None) -> Tagger:
    """Return a resnet18 with random weights."""
    return Tagger("resnet18", labels, mean=MEAN, std=STD, frozen=frozen, bias=bias)


def pictures(count: int = 2, side: int = 32) -> Tensor:
    """Return noise, as the loader gives it."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator).to(torch.uint8)


def copied(module: nn.Module) -> State:
    """Return every parameter and buffer as it is now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: State, two: State) -> bool:
    """Return whether both have the same names and bits."""
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def steps(model: Tagger, count: int) -> None:
    """Take optimizer steps that change everything that can change."""
    groups = model.parameter_groups(1e-2, 1e-2, 0.1)
    optimizer = build_optimizer(groups, "adamw", 0.9)
    for _ in range(count):
        model.train()
        optimizer.zero_grad()
        model(pictures()).square().mean().backward()
        optimizer.step()


@pytest.fixture(scope="module")
def state() -> State:
    """Return weights of a resnet18 that differ from what a fresh one has, in every buffer too."""
    torch.manual_seed(1)
    model = torchvision.models.get_model("resnet18", weights=None)
    for name, buffer in model.named_buffers():
        buffer.copy_(torch.tensor(7) if "tracked" in name else torch.rand_like(buffer) + 0.5)
    return copied(model)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that is gone after the test, for weights are large."""
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def shared() -> Tagger:
    """Return a tagger for tests that leave it as it is."""
    torch.manual_seed(2)
    return tagger().eval()


@pytest.fixture(scope="module")
def made() -> Tagger:
    """Return the tagger behind `model`; making one takes long."""
    return tagger()


@pytest.fixture
def model(made: Tagger) -> Tagger:
    """Return a tagger with zeros in its backbone, to load weights into."""
    for value in made.features.state_dict().values():
        value.zero_()
    return made


# ---- layers -----------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "side"), [(1, 64), (4, 32), (3, 48)])
def test_logits_are_float32_a_label(shared: Tagger, count: int, side: int) -> None:
    """uint8 pictures become one finite float32 logit a label."""
    logits = shared(pictures(count, side))
    assert logits.shape == (count, 3)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_logits_are_float32_under_autocast(shared: Tagger) -> None:
    """bfloat16 ends before the head: logits are near those of float32, and not rounded."""
    with torch.no_grad():
        exact = shared(pictures())
        with torch.autocast("cpu", torch.bfloat16):
            logits = shared(pictures())
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    assert 0 < (logits - exact).abs().max() < 0.1


def test_features_are_all_but_the_last_linear_layer(shared: Tagger) -> None:
    """The backbone computes what torchvision's network computes before its `fc`."""
    reference = torchvision.models.get_model("resnet18", weights=None).eval()
    reference.fc = nn.Identity()
    reference.load_state_dict(shared.features.state_dict())
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        features = reference((pictures() / 255 - mean) / std)
        torch.testing.assert_close(shared(pictures()), shared.head(features))
    assert features.shape == (2, 512)


def test_the_head_is_kaiming_normal() -> None:
    """200,000 weights have the spread, the centre and the shape of N(0, 2/F)."""
    torch.manual_seed(0)
    weight = tagger(400).head.weight.detach()
    std = (2 / 512) ** 0.5
    assert weight.shape == (400, 512)
    assert weight.std().item() == pytest.approx(std, rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=std / 100)
    assert (weight.abs() < std).float().mean().item() == pytest.approx(0.6827, abs=0.005)


def test_the_bias_is_zero_or_given() -> None:
    """The head starts without bias, or with the one it is given."""
    bias = torch.tensor([-3.0, 0.5, 2.0])
    assert torch.equal(tagger().head.bias.detach(), torch.zeros(3))
    assert torch.equal(tagger(bias=bias).head.bias.detach(), bias)


def test_a_checkpoint_holds_no_constants(shared: Tagger) -> None:
    """The state dict is torchvision's without fc, and the head; mean and std are the spec's."""
    wanted = torchvision.models.get_model("resnet18", weights=None).state_dict()
    names = {f"features.{name}" for name in wanted if not name.startswith("fc.")}
    assert shared.state_dict().keys() == names | {"head.weight", "head.bias"}


# ---- frozen -----------------------------------------------------------------------------


@pytest.mark.faults
def test_frozen_means_frozen(promise: Promise) -> None:
    """50 steps with train() before each leave all of the backbone bitwise as it was."""
    model = tagger(frozen=True)
    before, head = copied(model.features), copied(model.head)
    steps(model, 50)
    after = copied(model.features)
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    promise("P17", len(before), changed)
    assert not torch.equal(model.head.weight, head["weight"])
    assert not torch.equal(model.head.bias, head["bias"])


def test_a_frozen_backbone_stays_in_evaluation_mode() -> None:
    """train() reaches the head alone, and the head alone gets gradients."""
    model = tagger(frozen=True).train()
    assert model.training
    assert model.head.training
    assert not any(module.training for module in model.features.modules())
    model(pictures()).sum().backward()
    assert all(p.grad is None for p in model.features.parameters())


def test_what_is_not_frozen_moves() -> None:
    """One step moves every parameter's tensor and every BatchNorm buffer."""
    model = tagger()
    before = copied(model)
    steps(model, 1)
    after = copied(model)
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_evaluation_moves_no_buffer(shared: Tagger) -> None:
    """Looking at pictures in evaluation mode teaches BatchNorm nothing."""
    before = copied(shared)
    shared.eval()(pictures())
    assert same(copied(shared), before)


# ---- parameter groups -------------------------------------------------------------------


def test_every_parameter_is_in_one_group(shared: Tagger) -> None:
    """No trainable parameter is forgotten and none is there twice."""
    groups = shared.parameter_groups(1e-4, 1e-3, 0.01)
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in shared.parameters()}


def test_groups_have_their_rates_and_decay(shared: Tagger) -> None:
    """The head has its own rate; biases and BatchNorm take no weight decay."""
    head = {id(p) for p in shared.head.parameters()}
    for group in shared.parameter_groups(1e-4, 1e-3, 0.01):
        for parameter in group["params"]:
            assert group["initial_lr"] == (1e-3 if id(parameter) in head else 1e-4)
            assert group["weight_decay"] == (0.01 if parameter.ndim > 1 else 0.0)


def test_frozen_parameters_are_in_no_group() -> None:
    """A frozen backbone leaves the optimizer the head's two tensors."""
    model = tagger(frozen=True)
    groups = model.parameter_groups(1e-4, 1e-3, 0.01)
    ids = {id(p) for group in groups for p in group["params"]}
    assert ids == {id(p) for p in model.head.parameters()}


# ---- backbones --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in BACKBONES if "tiny" not in name and is_resnet(name)]
)
def test_every_resnet_gives_its_maps(name: str) -> None:
    """Every name builds torchvision's ResNet class, with a head of its own width."""
    with torch.device("meta"):
        model = Tagger(name, 2, mean=MEAN, std=STD)
        two_levels = Tagger(name, 2, levels=2, mean=MEAN, std=STD)
    assert isinstance(model.features, PooledResNet)
    assert model.head.in_features in (512, 2048)
    assert two_levels.head.in_features == model.head.in_features * 3 / 2
    assert two_levels.features.state_dict().keys() == model.features.state_dict().keys()


def test_the_known_backbones_are_there() -> None:
    """ResNets and other classifiers are offered, quantized ones are not."""
    assert {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152"} <= set(BACKBONES)
    assert {"resnext50_32x4d", "wide_resnet50_2"} <= set(BACKBONES)
    assert not any("quantized" in name for name in BACKBONES)


@pytest.mark.parametrize(("name", "near"), [("resnet-50", "resnet50"), ("ResNet18", "resnet18")])
def test_an_unknown_backbone_gets_the_nearest(name: str, near: str) -> None:
    """The error names the key, the slip and the name that was meant."""
    with pytest.raises(ConfigError, match=rf"^model.backbone: no '{name}'.*mean '{near}'\?"):
        Tagger(name, 2, mean=MEAN, std=STD)


# ---- weights from a file ----------------------------------------------------------------

Change = Callable[[State], Any]


def prefixed(prefix: str) -> Change:
    """Return every key behind this prefix."""
    return lambda state: {prefix + key: value for key, value in state.items()}


def without(*ends: str) -> Change:
    """Return a change of a state: it removes the keys that have one of these endings."""
    return lambda state: {key: v for key, v in state.items() if not key.endswith(ends)}


def within(file: State, **changes: Tensor) -> State:
    """Return the state with other tensors in place of some, keys' dots written as __."""
    return file | {key.replace("__", "."): value for key, value in changes.items()}


def as_own(state: State) -> State:
    """Return the state with the keys of our checkpoints."""
    features = {f"features.{k}": v for k, v in state.items() if not k.startswith("fc.")}
    return features | {"head.weight": torch.ones(9, 512), "head.bias": torch.ones(9)}


def write(path: Path, state: Any) -> Path:
    """Write a .pth or .safetensors file."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


FLAT: dict[str, Change] = {
    "plain": lambda state: state,
    "without fc": without("fc.weight", "fc.bias"),
    "module prefix": prefixed("module."),
    "our own keys": as_own,
    "module prefix on our own keys": lambda state: prefixed("module.")(as_own(state)),
}
NESTED: dict[str, Change] = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best": 0.5},
    "model": lambda state: {"model": state, "args": {"lr": 0.1}},
    "state_dict with module": lambda state: {"state_dict": prefixed("module.")(state)},
}


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("form", FLAT)
def test_backbone_weights_load(
    folder: Path, state: State, model: Tagger, form: str, ending: str
) -> None:
    """Both kinds of file load bitwise in every form people have, and the head stays."""
    head = copied(model.head)
    load_pretrained(model, "resnet18", str(write(folder / f"w{ending}", FLAT[form](state))))
    assert same(copied(model.features), without("fc.weight", "fc.bias")(state))
    assert same(copied(model.head), head)


@pytest.mark.parametrize("form", NESTED)
def test_wrapped_weights_load(folder: Path, state: State, model: Tagger, form: str) -> None:
    """A training script's file, with weights one level down, loads."""
    load_pretrained(model, "resnet18", str(write(folder / "w.pth", NESTED[form](state))))
    assert same(copied(model.features), without("fc.weight", "fc.bias")(state))


@pytest.mark.parametrize(
    ("dtype", "ending"),
    [
        (torch.float16, ".pth"),
        (torch.float16, ".safetensors"),
        (torch.bfloat16, ".safetensors"),
        (torch.float64, ".pth"),
    ],
)
def test_other_floats_become_float32(
    folder: Path, state: State, model: Tagger, dtype: torch.dtype, ending: str
) -> None:
    """Weights stored in another type have their values, in float32."""
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    load_pretrained(model, "resnet18", str(write(folder / f"w{ending}", cast)))
    for name, value in model.features.state_dict().items():
        assert value.dtype == state[name].dtype
        assert torch.equal(value, cast[name].to(value.dtype))


def test_counts_of_batches_may_be_missing(folder: Path, state: State, model: Tagger) -> None:
    """Old files lack num_batches_tracked; the counts stay what they were."""
    path = write(folder / "w.pth", without("num_batches_tracked")(state))
    load_pretrained(model, "resnet18", str(path))
    loaded = copied(model.features)
    assert all(value == 0 for name, value in loaded.items() if "tracked" in name)
    assert torch.equal(loaded["layer4.1.bn2.running_var"], state["layer4.1.bn2.running_var"])


def test_a_checkpoint_of_ours_is_a_weights_file(folder: Path, state: State, model: Tagger) -> None:
    """best.safetensors of one run starts the next, whatever its labels were."""
    spec = TransformSpec(image_size=32, resize="squash", max_pixels=9)
    labels = LabelSpace(tuple("abcdefghi"))
    content = Checkpoint(
        as_own(state), labels, spec, "resnet18", DecisionRule.plain(len(labels)), {}, "", 1, {}
    )
    checkpoint.save(folder / "best.safetensors", content)
    load_pretrained(model, "resnet18", str(folder / "best.safetensors"))
    assert same(copied(model.features), without("fc.weight", "fc.bias")(state))


def light(backbone: str) -> State:
    """Return zeros in the backbone's shapes, which take no room in a .pth file."""
    with torch.device("meta"):
        shapes = torchvision.models.get_model(backbone, weights=None).state_dict()
    return {key: torch.zeros(()).expand(value.shape) for key, value in shapes.items()}


CONV = torch.zeros(64, 3, 7, 7)
UNFIT: dict[str, tuple[Change, str]] = {
    "shape": (
        lambda s: within(s, conv1__weight=torch.zeros(64, 1, 7, 7)),
        "conv1.weight: shape (64, 1, 7, 7), wanted (64, 3, 7, 7)",
    ),
    "missing": (without("layer1.0.conv1.weight"), "missing: layer1.0.conv1.weight"),
    "unknown": (lambda s: within(s, extra__weight=CONV), "unknown: extra.weight"),
    "NaN": (
        lambda s: within(s, bn1__running_var=torch.full((64,), torch.nan)),
        "bn1.running_var: holds values that are not finite",
    ),
    "infinity": (
        lambda s: within(s, conv1__weight=torch.full_like(CONV, -torch.inf)),
        "conv1.weight: holds values that are not finite",
    ),
    "beyond float32": (
        lambda s: within(s, conv1__weight=torch.full_like(CONV, 1e300, dtype=torch.float64)),
        "conv1.weight: holds values that are not finite",
    ),
    "empty": (lambda s: {}, "missing: conv1.weight"),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_weights_that_do_not_fit_are_named(folder: Path, shared: Tagger, fault: str) -> None:
    """The message holds the file and the key; the model stays as it was."""
    change, words = UNFIT[fault]
    path, before = write(folder / "w.pth", change(light("resnet18"))), copied(shared)
    with pytest.raises(WeightsError) as caught:
        load_pretrained(shared, "resnet18", str(path))
    assert str(caught.value).startswith(
        f"model.weights: {path} does not fit the model.backbone resnet18\n"
    )
    assert words in str(caught.value)
    assert same(copied(shared), before)


def test_ten_faults_are_shown_and_the_rest_counted(folder: Path, shared: Tagger) -> None:
    """Weights of which 13 keys are wrong say so in ten lines and a count."""
    strangers = {f"stranger{i:02}": torch.zeros(1) for i in range(13)}
    path = write(folder / "w.pth", light("resnet18") | strangers)
    with pytest.raises(WeightsError) as caught:
        load_pretrained(shared, "resnet18", str(path))
    _, *shown, last = str(caught.value).splitlines()
    assert shown == [f"  unknown: stranger{i:02}" for i in range(10)]
    assert last == "  ... and 3 more"


def test_another_architecture_does_not_fit(folder: Path, shared: Tagger) -> None:
    """A resnet50's file is no resnet18's."""
    path = write(folder / "w.pth", light("resnet50"))
    with pytest.raises(
        WeightsError,
        match=r"(?s)does not fit the model.backbone resnet18\n.*conv3.*\n.*and \d+ more$",
    ):
        load_pretrained(shared, "resnet18", str(path))


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {"a": "b"}}, torch.ones(3)])
def test_a_file_without_weights_says_so(folder: Path, shared: Tagger, content: object) -> None:
    """Lists, numbers and lone tensors are no state dict."""
    path = write(folder / "w.pth", content)
    with pytest.raises(WeightsError, match=r"holds no state dict of tensors") as caught:
        load_pretrained(shared, "resnet18", str(path))
    assert str(path) in str(caught.value)


def test_keys_that_are_no_names_are_refused(folder: Path, shared: Tagger) -> None:
    """Tensors numbered instead of named are an error with the file, not a crash."""
    path = write(folder / "w.pth", {0: torch.ones(3), 1: torch.ones(3)})
    with pytest.raises(WeightsError) as caught:
        load_pretrained(shared, "resnet18", str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "folder"])
def test_files_that_cannot_be_read_are_named(
    folder: Path, shared: Tagger, kind: str, ending: str
) -> None:
    """Whatever is wrong with a file, the message holds the key and the file."""
    path = folder / f"w{ending}"
    whole = write(folder / f"whole{ending}", {"conv1.weight": CONV}).read_bytes()
    contents = {"empty": b"", "text": b"<html>not found</html>\n", "truncated": whole[:-99]}
    if kind in contents:
        path.write_bytes(contents[kind])
    if kind == "folder":
        path.mkdir()
    with pytest.raises(WeightsError, match=r"^model\.weights: ") as caught:
        load_pretrained(shared, "resnet18", str(path))
    assert str(path) in str(caught.value)


@dataclass
class Payload:
    """An object that makes a folder when it is unpickled."""

    canary: Path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.canary),)


def saved(content: object, **options: Any) -> bytes:
    """Return the bytes that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


PICKLES: dict[str, Callable[[Payload], bytes]] = {
    "pickle 0": lambda p: pickle.dumps(p, 0),
    "pickle 2": lambda p: pickle.dumps(p, 2),
    "pickle 4": lambda p: pickle.dumps({"conv1.weight": p}, 4),
    "pickle 5": lambda p: pickle.dumps([p], 5),
    "zip": lambda p: saved(p),
    "zip, a value": lambda p: saved({"conv1.weight": p}),
    "zip, deep": lambda p: saved({"state_dict": {"conv1.weight": CONV}, "args": [{"x": p}]}),
    "legacy": lambda p: saved({"conv1.weight": p}, _use_new_zipfile_serialization=False),
    "a key": lambda p: saved({("conv1.weight", p.canary.name): [p]}),
    "a module": lambda p: saved(nn.Linear(2, 2)),
}


@pytest.mark.parametrize("ending", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("form", PICKLES)
def test_no_weights_file_runs_code(folder: Path, shared: Tagger, form: str, ending: str) -> None:
    """A pickle with a payload is refused, and the payload never runs."""
    canary, path = folder / "canary", folder / f"w{ending}"
    path.write_bytes(PICKLES[form](Payload(canary)))
    with pytest.raises(WeightsError) as caught:
        load_pretrained(shared, "resnet18", str(path))
    assert str(path) in str(caught.value)
    assert not canary.exists()


def test_the_payload_would_run(folder: Path) -> None:
    """The payload of these tests works where someone unpickles it."""
    pickle.loads(PICKLES["pickle 4"](Payload(folder / "canary")))
    assert (folder / "canary").is_dir()


@pytest.mark.parametrize(
    ("name", "near"), [("IMAGENET1K_V3", "IMAGENET1K_V1"), ("imagenet1k_v1", "IMAGENET1K_V1")]
)
def test_an_unknown_weight_name_gets_the_nearest(shared: Tagger, name: str, near: str) -> None:
    """The error names the backbone, the name that was meant, and the other ways."""
    with pytest.raises(WeightsError) as caught:
        load_pretrained(shared, "resnet18", name)
    assert f"model.weights: resnet18 has no '{name}'; did you mean '{near}'?" in str(caught.value)
    assert "file, a run directory such as runs/pets, or null" in str(caught.value)


# ---- weights from the network -----------------------------------------------------------


@dataclass
class Answer:
    """What the server sends: the head of the response and the bytes that follow."""

    head: str
    body: bytes = b""


class Server(ThreadingHTTPServer):
    """A server on loopback with one Answer a path, and the paths it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []

    def url(self, name: str, answer: Answer) -> str:
        """Where `answer` is from now on."""
        self.answers[f"/{name}"] = answer
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    """Sends the Answer byte for byte and closes."""

    def do_GET(self) -> None:
        """One request."""
        assert isinstance(self.server, Server)
        self.server.asked.append(self.path)
        answer = self.server.answers[self.path]
        self.wfile.write(answer.head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + answer.body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of torch.hub's downloads, moved here; loopback needs no proxy."""
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder / "torch" / "hub" / "checkpoints"


@pytest.fixture
def server(cache: Path) -> Iterator[Server]:
    """Return a running server."""
    with Server() as running:
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


BODY = saved({"conv1.weight": torch.arange(6000.0)})
NAME = f"tiny-{hashlib.sha256(BODY).hexdigest()[:8]}.pth"


def ok(body: bytes, length: int) -> Answer:
    """Return 200 with a body, and this length in the header."""
    return Answer(f"HTTP/1.1 200 OK\nContent-Length: {length}", body)


def test_a_download_is_cached(server: Server, cache: Path) -> None:
    """The second call asks nobody, and gives the same weights."""
    url = server.url(NAME, ok(BODY, len(BODY)))
    first, second = download_weights(url), download_weights(url)
    assert torch.equal(first["conv1.weight"], torch.arange(6000.0))
    assert same(first, second)
    assert server.asked == [f"/{NAME}"]
    assert [path.name for path in cache.iterdir()] == [NAME]


def test_a_download_leaves_standard_output_alone(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output carries results alone; progress is for standard error."""
    download_weights(server.url(NAME, ok(BODY, len(BODY))))
    assert capsys.readouterr().out == ""


CUT = f"{0x1000:x}\r\n".encode() + BODY[:0x1000] + b"\r\n"
BROKEN: dict[str, tuple[Answer, str]] = {
    "404": (Answer("HTTP/1.1 404 Not Found\nContent-Length: 3", b"no\n"), "404"),
    "500": (Answer("HTTP/1.1 500 Out of Order\nContent-Length: 0"), "500"),
    "truncated": (ok(BODY[:5000], len(BODY)), "hash"),
    "nothing": (ok(b"", len(BODY)), "hash"),
    "chunks cut short": (Answer("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", CUT), ""),
    "wrong hash": (ok(BODY[:-1] + b"!", len(BODY)), "hash"),
    "login page": (ok(b"<html>log in</html>", 19), "hash"),
    "no HTTP": (Answer("SSH-2.0-OpenSSH_9.2"), ""),
    "redirect in a circle": (Answer(f"HTTP/1.1 302 Found\nLocation: /{NAME}"), ""),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_failed_download_says_what_to_do(server: Server, cache: Path, kind: str) -> None:
    """What was tried, why it failed, where the file goes, which key; no half file stays."""
    answer, words = BROKEN[kind]
    url = server.url(NAME, answer)
    with pytest.raises(WeightsError) as caught:
        download_weights(url)
    message = str(caught.value)
    assert message.startswith(f"cannot download {url}: ")
    assert words in message
    assert f"put the file at {cache / NAME}, or set model.weights to a local" in message
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.invalid"])
def test_no_connection_says_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """A refused connection and an unknown host are the user's to mend."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://{host}:{free.getsockname()[1]}/{NAME}"
        with pytest.raises(WeightsError) as caught:
            download_weights(url)
    assert str(caught.value).startswith(f"cannot download {url}: ")
    assert f"put the file at {cache / NAME}, or set model.weights" in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made_stops_no_download(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where torch's folder should be: the weights are loaded for this run alone."""
    (folder / "torch").write_text("in the way")
    weights = download_weights(server.url(NAME, ok(BODY, len(BODY))))
    assert torch.equal(weights["conv1.weight"], torch.arange(6000.0))
    assert "set TORCH_HOME to a folder" in capsys.readouterr().err


def test_a_download_works_after_a_failure(server: Server, cache: Path) -> None:
    """A truncated download leaves nothing that stands in the way of the next."""
    url = server.url(NAME, ok(BODY[:5000], len(BODY)))
    with pytest.raises(WeightsError):
        download_weights(url)
    server.url(NAME, ok(BODY, len(BODY)))
    assert torch.equal(download_weights(url)["conv1.weight"], torch.arange(6000.0))


def test_a_prepared_cache_needs_no_network(
    cache: Path, state: State, model: Tagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file where the error said to put it is used, behind a proxy that answers nobody."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    cache.mkdir(parents=True)
    url = torchvision.models.get_weight("ResNet18_Weights.IMAGENET1K_V1").url
    write(cache / url.rpartition("/")[2], state)
    load_pretrained(model, "resnet18", "IMAGENET1K_V1")
    assert same(copied(model.features), without("fc.weight", "fc.bias")(state))


def test_without_network_the_error_names_the_weights(
    cache: Path, shared: Tagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision's name leads to its address, and to the place that a prepared file takes."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    url = torchvision.models.get_weight("ResNet18_Weights.IMAGENET1K_V1").url
    with pytest.raises(WeightsError) as caught:
        load_pretrained(shared, "resnet18", "IMAGENET1K_V1")
    assert f"cannot download {url}: " in str(caught.value)
    assert f"put the file at {cache / url.rpartition('/')[2]}, or " in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"<html>", BODY[:5000], saved([1, 2])])
def test_a_bad_file_in_the_cache_is_named(server: Server, cache: Path, content: bytes) -> None:
    """What lies in the cache and cannot be loaded is named, to be deleted by its owner."""
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(content)
    url = server.url(NAME, ok(BODY, len(BODY)))
    with pytest.raises(WeightsError, match=r"cannot be loaded: .*; delete it") as caught:
        download_weights(url)
    assert str(cache / NAME) in str(caught.value)
    assert (cache / NAME).read_bytes() == content


def test_the_cache_runs_no_code(server: Server, cache: Path, folder: Path) -> None:
    """A pickle with a payload in the cache is refused as one in a file."""
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(PICKLES["zip"](Payload(folder / "canary")))
    with pytest.raises(WeightsError, match="cannot be loaded"):
        download_weights(server.url(NAME, ok(BODY, len(BODY))))
    assert not (folder / "canary").exists()


def test_a_server_that_stalls_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is accepted and never answered ends as a failed download."""
    monkeypatch.setattr("mlfinetune.models.pretrained.STALLED_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/{NAME}"
        with pytest.raises(WeightsError, match="timed out"):
            download_weights(url)
    assert socket.getdefaulttimeout() is None
