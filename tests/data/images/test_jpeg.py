"""JPEGs by the fast decoder: Pillow's pixels and Pillow's reasons, at full size and at less."""

import io
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mlfinetune.data.batches.dataset import ImageDataset, mix_seed
from mlfinetune.data.images.decode import JpegDecoder, decode_image
from mlfinetune.data.images.jpeg import choose_jpeg_decoder
from mlfinetune.data.images.transforms import (
    TransformSpec,
    build_eval_transform,
    build_train_transform,
    to_tensor,
)
from mlfinetune.errors import ImageError

MAX_PIXELS = 10**7
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "restarts": {"restart_marker_rows": 1},
    "rgb": {"keep_rgb": True},
    "profile": {"icc_profile": b"profile" * 20_000, "comment": b"made by hand"},
}


def photograph(width: int, height: int) -> Image.Image:
    """Return noise whose finer octaves are weaker, as detail is in photographs."""
    random = np.random.default_rng(0)
    total = random.normal(0, 0.06, (height, width, 3))
    for octave in range(1, 9):
        for channel in range(3):
            noise = random.standard_normal((3 << octave, 4 << octave)).astype(np.float32)
            layer = Image.fromarray(noise).resize((width, height))
            total[..., channel] += 0.6**octave * np.asarray(layer)
    pixels = 120 + 50 * total / total.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(mode: str = "RGB", size: tuple[int, int] = (97, 61), **options: Any) -> bytes:
    """Return the bytes of a JPEG."""
    buffer = io.BytesIO()
    photograph(*size).convert(mode).save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def fast() -> JpegDecoder:
    """Return the decoder of this environment."""
    function, _ = choose_jpeg_decoder()
    assert function is not None
    return function


def outcome(path: Path, function: JpegDecoder | None) -> NDArray[np.uint8] | str:
    """Return the pixels, or the reason that there are none."""
    try:
        return decode_image(path, MAX_PIXELS, None, function)
    except ImageError as error:
        return error.reason


def assert_same_outcome(path: Path, content: bytes) -> None:
    """Assert that both decoders give nearly the same pixels, or the same reason."""
    path.write_bytes(content)
    alone, ours = outcome(path, None), outcome(path, fast())
    if isinstance(alone, str) or isinstance(ours, str):
        assert isinstance(alone, str)
        assert isinstance(ours, str)
        assert alone == ours
    else:
        assert mean_difference(alone, ours) <= 0.02


def mean_difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the mean difference of two pictures of one shape, of 255."""
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for all the examples of a generated test."""
    return tmp_path_factory.mktemp("jpegs")


# ---- the choice -------------------------------------------------------------------------


def test_torchvision_is_the_first_choice() -> None:
    """While torchvision decodes JPEGs it does, and the line for the log says so."""
    function, line = choose_jpeg_decoder()
    assert function is not None
    assert line.startswith("torchvision ")


def test_without_torchvisions_decoder_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is gone: torchcodec where it is installed, else Pillow, and the line says why."""
    monkeypatch.setattr(torch.ops, "image", SimpleNamespace())
    function, line = choose_jpeg_decoder()
    assert "has no JPEG decoder" in line
    assert line.startswith("Pillow" if function is None else "torchcodec")


def test_torchcodec_gives_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra, where it is installed, is as good."""
    pytest.importorskip("torchcodec")
    monkeypatch.setattr(torch.ops, "image", SimpleNamespace())
    for mode in ("RGB", "L"):
        for kind in ("baseline", "progressive", "4:4:4", "restarts"):
            content = jpeg(mode, **KINDS[kind])
            assert fast()(np.frombuffer(bytearray(content), np.uint8)).shape == (61, 97, 3)
            assert_same_outcome(tmp_path / "a.jpg", content)


# ---- pixels and reasons -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "kind"), [*(("RGB", kind) for kind in KINDS), ("L", "baseline"), ("L", "progressive")]
)
def test_the_decoder_gives_pillows_pixels(mode: str, kind: str) -> None:
    """Colour or grey, of every kind: (H, W, 3), interleaved, as Pillow has them."""
    content = jpeg(mode, **KINDS[kind])
    pixels = fast()(np.frombuffer(bytearray(content), np.uint8))
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    wanted = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert mean_difference(pixels, wanted) <= 0.02


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 9), (16, 16), (17, 33)])
def test_odd_sizes_are_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    """A picture that ends within a block of the JPEG ends where it should."""
    assert_same_outcome(tmp_path / "a.jpg", jpeg(size=size))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pictures_are_turned_once(tmp_path: Path, mode: str, orientation: int) -> None:
    """Whoever decodes, EXIF turns the picture as it does for Pillow."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_same_outcome(tmp_path / "a.jpg", jpeg(mode, exif=exif))


def test_an_orientation_that_pillow_cannot_read_turns_nothing(tmp_path: Path) -> None:
    """Pillow alone reads EXIF: here its entry has a type that does not exist."""
    entry = b"\x12\x01\0\0\x01\0\0\0\x03\0\0\0"
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + b"\0\0\0\0"
    assert_same_outcome(tmp_path / "a.jpg", jpeg(exif=exif))


@pytest.mark.parametrize("kind", ["baseline", "progressive"])
def test_the_decoder_refuses_a_truncated_file(tmp_path: Path, kind: str) -> None:
    """A file cut at any byte gives no grey picture, but Pillow's reason."""
    content = jpeg(**KINDS[kind])
    for length in range(2, len(content) - 2, len(content) // 25):
        with pytest.raises(RuntimeError):
            fast()(np.frombuffer(bytearray(content[:length]), np.uint8))
        assert_same_outcome(tmp_path / "a.jpg", content[:length])
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    assert "truncated" in str(outcome(tmp_path / "a.jpg", fast()))


DAMAGED = [jpeg(mode, **KINDS[kind]) for mode in ("RGB", "L") for kind in ("baseline", "restarts")]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), content=st.sampled_from([*DAMAGED, jpeg(progressive=True), jpeg("CMYK")]))
def test_damage_has_the_outcome_that_pillow_gives_it(
    folder: Path, data: st.DataObject, content: bytes
) -> None:
    """Bytes changed, lost and put in: the same picture or the same reason."""
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    assert_same_outcome(folder / "a.jpg", bytes(damaged))


# ---- the way of the data set ------------------------------------------------------------


def through_pillow(path: Path, spec: TransformSpec, seed: int | None) -> torch.Tensor:
    """Decode by Pillow alone at full size, then apply our transform."""
    image = to_tensor(decode_image(path, spec.max_pixels))
    return (
        build_eval_transform(spec)(image)
        if seed is None
        else build_train_transform(spec)(image, seed)
    )


@pytest.mark.parametrize(
    ("size", "scaled"),
    [((500, 375), False), ((2000, 1500), True), ((440, 450), True), ((1499, 2001), False)],
)
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_evaluation_sees_what_pillow_shows(
    tmp_path: Path, resize: str, size: tuple[int, int], scaled: bool
) -> None:
    """At full size the same, at less within half a grey level."""
    path, spec = tmp_path / "a.jpg", TransformSpec(96, resize, MAX_PIXELS)
    path.write_bytes(jpeg(size=size))
    image = ImageDataset(spec)[0, 0, str(path)].image
    assert image is not None
    off = float((image.float() - through_pillow(path, spec, None)).abs().mean())
    assert off <= (0.5 if scaled else 0.02)
    assert (off > 0.02) == scaled


def test_training_sees_what_pillow_shows(tmp_path: Path) -> None:
    """The crop is the same up to half a pixel, for a picture decoded at half its size."""
    path, spec = tmp_path / "a.jpg", TransformSpec(96, "crop", MAX_PIXELS, crop_scale=(0.35, 1.0))
    path.write_bytes(jpeg(size=(1600, 1200)))
    for index in range(6):
        image = ImageDataset(spec, 5)[2, index, str(path)].image
        assert image is not None
        wanted = through_pillow(path, spec, mix_seed(5, 2, index))
        off = float((image.float() - wanted).abs().mean())
        assert 0 < off <= 2


def test_a_data_set_takes_its_decoder_along(tmp_path: Path) -> None:
    """Workers that are not forked choose for themselves, and see the same."""
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(size=(400, 300)))
    dataset = ImageDataset(TransformSpec(64, "pad", MAX_PIXELS))
    copy, key = pickle.loads(pickle.dumps(dataset)), (0, 0, str(path))
    assert torch.equal(copy[key].image, dataset[key].image)  # type: ignore[arg-type]
