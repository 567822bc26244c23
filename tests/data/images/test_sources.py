"""Pictures in memory give the pixels of their files."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlfinetune.data.images.decode import decode_image
from mlfinetune.data.images.sources import find_scale, is_picture, name_picture, read_picture
from mlfinetune.errors import ImageError

MOST = 10**6
RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def read(picture: object) -> np.ndarray[Any, Any]:
    return read_picture(picture, "x", MOST, None, None)


def test_files_bytes_and_images_are_one(tmp_path: Path) -> None:
    """Of modes that are no RGB too, and turned by EXIF; Pillow's image may be opened or loaded."""
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = np.dstack([RGB, RGB[..., 0]])
    paths = [
        save(Image.fromarray(RGB), tmp_path / "turned.jpg", exif=exif),
        save(Image.fromarray(alpha), tmp_path / "alpha.png"),
        save(Image.fromarray(RGB[..., 0]).convert("1"), tmp_path / "bits.png", transparency=1),
        save(Image.fromarray(RGB).convert("P"), tmp_path / "palette.gif"),
        save(Image.fromarray(RGB[..., 0].astype("u2") * 257), tmp_path / "deep.tiff"),
        save(Image.fromarray(RGB).convert("CMYK"), tmp_path / "print.jpg"),
    ]
    for path in paths:
        wanted = decode_image(path, MOST)
        content = path.read_bytes()
        with path.open("rb") as file, Image.open(path) as opened:
            kinds = (path, str(path), content, bytearray(content), memoryview(content), file)
            for kind in (*kinds, io.BytesIO(content), opened, opened):
                np.testing.assert_array_equal(read(kind), wanted, f"{path.name} {type(kind)}")
            assert name_picture(file, 0) == name_picture(path, 0) == str(path)


def test_samples(tmp_path: Path) -> None:
    """Grey, RGB and RGBA on white; read-only, reversed and strided arrays are taken too."""
    frozen = RGB.copy()
    frozen.flags.writeable = False
    for given in (RGB, frozen, RGB[..., ::-1][..., ::-1], np.asfortranarray(RGB)):
        pixels = read(given)
        np.testing.assert_array_equal(pixels, RGB)
        assert pixels.flags.writeable
    grey = np.repeat(RGB[..., :1], 3, 2)
    np.testing.assert_array_equal(read(RGB[..., 0]), grey)
    np.testing.assert_array_equal(read(RGB[..., :1]), grey)
    alpha = np.dstack([RGB, np.zeros_like(RGB[..., 0])])
    assert (read(alpha) == 255).all()


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (RGB.astype(np.float32), "an array of float32; wanted uint8, from 0 to 255"),
        (RGB.transpose(2, 0, 1), r"shape \(3, 5, 7\); wanted .*; transpose\(1, 2, 0\) puts the"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\); wanted \(height, width, 3\)"),
        (np.zeros((1001, 1000, 3), np.uint8), "1000 x 1001 pixels, more than"),
        (Image.new("1", (1001, 1000)), "1001 x 1000 pixels, more than"),
        (b"", "an empty file"),
        (b"no picture", "not a JPEG"),
        (io.StringIO("text"), "opened as text; open it with 'rb'"),
        (None, "NoneType is no picture; wanted a path"),
    ],
)
def test_what_is_no_picture_is_said(picture: object, reason: str) -> None:
    with pytest.raises(ImageError, match=f"^x: .*{reason}"):
        read(picture)


def test_one_picture_or_several() -> None:
    for one in (
        "a.jpg",
        Path("a.jpg"),
        b"",
        io.BytesIO(),
        RGB,
        RGB[..., 0],
        Image.new("L", (1, 1)),
    ):
        assert is_picture(one)
    for several in (["a.jpg"], RGB[None], iter(()), {"a.jpg"}):
        assert not is_picture(several)
    assert name_picture(RGB, 3) == "images[3]"


def test_the_scale_of_a_jpeg_that_is_decoded_smaller(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (640, 480)), tmp_path / "a.jpg")
    pixels = decode_image(path, MOST, min_side=100)
    assert pixels.shape == (120, 160, 3)
    assert find_scale(path, "x", pixels, MOST) == 4
    assert find_scale(path.read_bytes(), "x", pixels, MOST) == 4
    assert find_scale(RGB, "x", RGB, MOST) == 1
