"""The tagger that `mlfinetune.load` returns: the numbers of the command line, in Python."""

import io
import json
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from numpy.typing import NDArray
from PIL import Image

import mlfinetune
from mlfinetune.cli.predict import predict
from mlfinetune.data.images.decode import encode_jpeg
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.models.tagger import Tagger as Network
from mlfinetune.predicting.tagger import BATCH_SIZE, Tagger
from mlfinetune.runs import checkpoint


@pytest.fixture(scope="module")
def tagger(trained: Path) -> Tagger:
    return mlfinetune.load(trained / "runs/pets", device="cpu")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A JPEG of 640 x 480 that EXIF turns, so large that it is decoded at a smaller size."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).resize((640, 480)).save(tmp_path / "photo.jpg", exif=exif)
    return tmp_path / "photo.jpg"


def scores(tagger: Tagger, *images: Any, **options: Any) -> NDArray[np.float64]:
    found = list(tagger.predict(images, **options))
    assert [each.error for each in found] == [None] * len(images)
    return np.array([list(each.scores.values()) for each in found])


# ---- the command line's numbers -----------------------------------------------------------


def test_results_are_the_rows_of_the_command(
    trained: Path, tagger: Tagger, cli: Run, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, labels, numbers and errors, also where only a part of a batch can be read."""
    (photo.parent / "cut.jpg").write_bytes(photo.read_bytes()[:2000])
    inputs = ("images", str(photo), str(photo.parent / "cut.jpg"))
    done = cli("predict", *inputs, "-c", "runs/pets", "--format", "jsonl", cwd=trained)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    monkeypatch.chdir(trained)
    for found, row in zip(tagger.predict(row["image"] for row in rows), rows, strict=True):
        assert found.image == row["image"]
        assert found.error == row.get("error")
        assert found.labels == row.get("labels", [])
        assert {name: round(p, 6) for name, p in found.scores.items()} == row.get("scores", {})
    assert found.error


def test_both_doors_take_as_many_pictures_at_once() -> None:
    """The last digits of a number depend on it."""
    assert predict.__defaults__ is not None
    assert BATCH_SIZE in predict.__defaults__


def test_thresholds_top_and_views(trained: Path, tagger: Tagger, cli: Run) -> None:
    """As the options of those names."""
    picture = str(trained / "images/0003.png")
    cases: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
        (("--threshold", "0.3"), {"threshold": 0.3}),
        (("--top", "3"), {"top": 3}),
        (("--threshold", "0.5", "--views", "mirror"), {"threshold": 0.5, "views": "mirror"}),
    )
    for options, asked in cases:
        command = ("predict", picture, "-c", "runs/pets", "--format", "jsonl", *options)
        row = json.loads(cli(*command, cwd=trained).stdout)
        (found,) = tagger.predict(picture, **asked)
        assert found.labels == row["labels"]
        assert {name: round(p, 6) for name, p in found.scores.items()} == row["scores"]
    with pytest.warns(UserWarning, match="^mirror views are scored, but the checkpoint's thresh"):
        tagger.predict(picture, views="mirror")


def test_labels_for_people_to_look_at(trained: Path, tagger: Tagger, tmp_path: Path) -> None:
    """Of a checkpoint with a review band."""
    kept = checkpoint.load(trained / "runs/pets/best.safetensors")
    checkpoint.save(
        tmp_path / "a.safetensors", replace(kept, decision=replace(kept.decision, review=(0, 0.5)))
    )
    (found,) = mlfinetune.load(tmp_path / "a.safetensors").predict(trained / "images/0003.png")
    assert found.review == [name for name, p in found.scores.items() if p <= 0.5]
    (other,) = tagger.predict(trained / "images/0003.png")
    assert other == replace(found, review=[])


def test_what_the_checkpoint_says(trained: Path, tagger: Tagger) -> None:
    kept = checkpoint.load(trained / "runs/pets/best.safetensors")
    assert tagger.labels == list(kept.labels.names)
    assert list(tagger.thresholds) == tagger.labels
    assert tuple(tagger.thresholds.values()) == kept.decision.thresholds
    assert (tagger.image_size, tagger.backbone, tagger.calibration, tagger.views) == (
        64,
        "resnet6_tiny",
        kept.decision.calibration,
        "plain",
    )
    assert tagger.source == str(trained / "runs/pets/best.safetensors")
    assert "resnet6_tiny, 8 labels, cpu" in repr(tagger)


# ---- arrays -------------------------------------------------------------------------------


def test_probabilities_and_features_belong_together(trained: Path, tagger: Tagger) -> None:
    """Head and sigmoid make of the features what predict gives, plain and mirrored."""
    kept = checkpoint.load(trained / "runs/pets/best.safetensors")
    pictures = sorted((trained / "images").iterdir())[:5]
    for views in ("plain", "mirror"):
        features = tagger.embed(pictures, batch_size=2, views=views)
        logits = (
            features @ kept.weights["head.weight"].numpy().T + kept.weights["head.bias"].numpy()
        )
        p = tagger.probabilities(pictures, batch_size=2, views=views)
        assert (p.dtype, p.shape, features.dtype, features.shape) == (
            np.float32, (5, 8), np.float32, (5, 128),
        )  # fmt: skip
        np.testing.assert_allclose(p, 1 / (1 + np.exp(-kept.decision.calibrate(logits))), atol=1e-5)
    assert np.array_equal(tagger.probabilities(pictures), scores(tagger, *pictures).astype("f4"))
    assert tagger.probabilities([]).shape == (0, 8)
    assert tagger.embed([]).shape == (0, 128)
    for method in (tagger.probabilities, tagger.embed):
        with pytest.raises(mlfinetune.MlfinetuneError, match=r"^none\.jpg: no such file$"):
            method([pictures[0], "none.jpg"])


# ---- errors and streams -------------------------------------------------------------------


def test_a_lost_picture_is_a_result_or_raised_in_its_turn(trained: Path, tagger: Tagger) -> None:
    pictures = [trained / "images/0003.png", "none.jpg", 3, trained / "images/0003.png"]
    found = list(tagger.predict(pictures, batch_size=2))
    assert [each.error and each.error[:16] for each in found] == [
        None, "no such file", "int is no pictur", None,
    ]  # fmt: skip
    assert (found[1].labels, found[1].scores, found[2].image) == ([], {}, "images[2]")
    results = tagger.predict(pictures, on_error="raise")
    assert next(results).error is None
    with pytest.raises(mlfinetune.MlfinetuneError, match=r"^none\.jpg: no such file$"):
        next(results)


@pytest.mark.parametrize(("batch_size", "ahead"), [(1, 1), (4, 8)])
def test_pictures_are_taken_as_results_are_asked_for(
    tagger: Tagger, batch_size: int, ahead: int
) -> None:
    """Of endless ones too; with one at once, none is taken before the former is answered."""
    taken = []

    def count() -> Iterator[NDArray[np.uint8]]:
        for number, pixels in enumerate(repeat(np.zeros((8, 8, 3), np.uint8))):
            taken.append(number)
            yield pixels

    results = tagger.predict(count(), batch_size=batch_size)
    assert not taken
    for number in range(1, 4):
        next(results)
        assert len(taken) <= (number if batch_size == 1 else ahead)
    del results  # as when a caller has seen enough
    for thread in [each for each in threading.enumerate() if "mlfinetune" in each.name]:
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: wanted 1 or more"),
        ({"on_error": "skip"}, "on_error='skip': wanted 'return' or 'raise'"),
        ({"threshold": 1.5}, "threshold=1.5: wanted a number from 0 to 1"),
        ({"top": 0}, "top=0: wanted a whole number, 1 or more"),
        ({"views": "all"}, "views='all': wanted 'plain' or 'mirror'"),
        ({"images": 3}, "pictures were wanted, found int"),
    ],
)
def test_arguments_are_refused_at_once(tagger: Tagger, options: Any, message: str) -> None:
    with pytest.raises(mlfinetune.MlfinetuneError, match=message):
        tagger.predict(**{"images": [], **options})


# ---- threads ------------------------------------------------------------------------------


def test_eight_threads_get_the_numbers_of_one(trained: Path, tagger: Tagger, photo: Path) -> None:
    """With one list for all, whose Pillow image has not read its file; filters stay."""
    content = photo.read_bytes()
    paths = sorted((trained / "images").iterdir())[:4]
    wanted = scores(tagger, *paths, content, Image.open(photo), batch_size=3)
    images = [*paths, content, Image.open(photo)]
    maps = [tagger.explain(images[0], "red") for _ in range(2)]
    filters, torch_threads = warnings.filters[:], torch.get_num_threads()
    found: list[Any] = []

    def work() -> None:
        for _ in range(3):
            found.append(scores(tagger, *images, batch_size=3))
            maps.append(tagger.explain(images[0], "red"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 24
    assert all(np.array_equal(each, wanted) for each in found)
    assert all(np.array_equal(each, maps[0]) for each in maps)
    assert (warnings.filters, torch.get_num_threads()) == (filters, torch_threads)


# ---- heat maps ----------------------------------------------------------------------------


def test_a_map_covers_the_upright_picture(trained: Path, tagger: Tagger, photo: Path) -> None:
    """Of 480 x 640 pixels, whatever it is given as; its mean and the bias are the logit."""
    heat = tagger.explain(photo, "green")
    assert (heat.shape, heat.dtype) == ((640, 480), np.float32)
    for same in (photo.read_bytes(), io.BytesIO(photo.read_bytes())):
        assert np.array_equal(tagger.explain(same, "green"), heat)
    assert tagger.explain(Image.open(photo), "green").shape == (640, 480)
    weights = checkpoint.load(trained / "runs/pets/best.safetensors").weights
    bias = weights["head.bias"][tagger.labels.index("green")]
    p = scores(tagger, photo)[0, tagger.labels.index("green")]
    assert heat.mean() + bias.item() == pytest.approx(np.log(p / (1 - p)), abs=0.02)


def test_the_drawing_is_that_of_predict(
    trained: Path, tmp_path: Path, tagger: Tagger, cli: Run
) -> None:
    picture = str(trained / "images/0003.png")
    options = ("--top", "1", "--explain", str(tmp_path / "drawn"))
    assert cli("predict", picture, "-c", "runs/pets", *options, cwd=trained).returncode == 0
    (file,) = (tmp_path / "drawn").iterdir()
    (found,) = tagger.predict(picture, top=1)
    drawn = tagger.draw_explanation(picture, found.labels[0])
    assert encode_jpeg(np.asarray(drawn)) == file.read_bytes()
    assert max(tagger.draw_explanation(picture, "red", side=20).size) == 20


def test_what_computes_maps_is_built_once(tagger: Tagger) -> None:
    """Of each way to score."""
    backend = tagger.backend
    assert backend.build_explainer() is backend.build_explainer()
    other = backend.with_views("mirror")
    assert other.build_explainer() is not backend.build_explainer()


def test_what_has_no_map_is_said(trained: Path, tagger: Tagger, tmp_path: Path) -> None:
    """A label that is not there, a picture that is lost, a backbone without maps."""
    for image, label, message in (
        ("none.jpg", "gren", r"^no label 'gren'; did you mean 'green'\?$"),
        ("none.jpg", "green", r"^none\.jpg: no such file$"),
    ):
        with pytest.raises(mlfinetune.MlfinetuneError, match=message):
            tagger.explain(image, label)
    network = Network("shufflenet_v2_x0_5", 8, mean=(0.5,) * 3, std=(0.5,) * 3)
    kept = checkpoint.load(trained / "runs/pets/best.safetensors")
    other = replace(kept, backbone="shufflenet_v2_x0_5", weights=network.state_dict())
    other = replace(other, transform=TransformSpec(32, "squash", 10**6, (0.5,) * 3, (0.5,) * 3))
    checkpoint.save(tmp_path / "a.safetensors", other)
    loaded = mlfinetune.load(tmp_path / "a.safetensors")
    with pytest.raises(mlfinetune.MlfinetuneError, match="has no heat map"):
        loaded.explain(trained / "images/0003.png", "green")
    assert loaded.probabilities(trained / "images/0003.png").shape == (1, 8)
