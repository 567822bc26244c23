"""HEIC and AVIF: decoded upright as any picture; without the extra, HEIC is refused by name."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import Image

from mlfinetune.data.images.decode import DECODE_VERSION, decode_image, inspect_image
from mlfinetune.data.images.heif import load_heif, read_brand
from mlfinetune.errors import ImageError

Pixels = NDArray[np.uint8]
MAX_PIXELS = 1_000_000
ORIENTATION = 0x0112
NEEDS = "HEIC needs pillow-heif: pip install 'mlfinetune[heif]'"


def corners(height: int = 48, width: int = 64) -> Pixels:
    """Return red, green, blue and white quarters: every turn and mirror image differs."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = [250, 0, 0]
    pixels[: height // 2, width // 2 :] = [0, 250, 0]
    pixels[height // 2 :, : width // 2] = [0, 0, 250]
    pixels[height // 2 :, width // 2 :] = 250
    return pixels


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the bytes of a HEIF or AVIF file."""
    assert load_heif() is None
    file = io.BytesIO()
    image.save(file, kind, quality=95, **options)
    return file.getvalue()


def write(folder: Path, content: bytes, name: str = "a.heic") -> Path:
    """Make a file with this content."""
    path = folder / name
    path.write_bytes(content)
    return path


def reason(path: Path, look: Callable[[Path, int], object] = decode_image) -> str:
    """Return the reason for which a file is refused."""
    with pytest.raises(ImageError) as caught:
        look(path, MAX_PIXELS)
    return caught.value.reason


def assert_close(pixels: Pixels, wanted: Pixels) -> None:
    """Assert that two pictures are alike; edges of quarters may be soft."""
    assert pixels.shape == wanted.shape
    assert np.abs(pixels.astype(int) - wanted).mean() < 8


# ---- as any picture -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turn_is_made_once(tmp_path: Path, kind: str, orientation: int) -> None:
    """The result is what Pillow makes of a PNG with that EXIF."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(corners())
    png = io.BytesIO()
    image.save(png, "PNG", exif=exif)
    path = write(tmp_path, saved(image, kind, exif=exif.tobytes()))
    assert_close(
        decode_image(path, MAX_PIXELS),
        decode_image(write(tmp_path, png.getvalue(), "a.png"), MAX_PIXELS),
    )
    info = inspect_image(path, MAX_PIXELS)
    sides = (64, 48) if kind == "AVIF" or orientation < 5 else (48, 64)
    assert (info.width, info.height, info.format) == (*sides, kind)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_a_turn_in_xmp_alone_is_not_made(tmp_path: Path, kind: str) -> None:
    """Both formats say in their own boxes how they are turned; converters leave old XMP behind."""
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    path = write(tmp_path, saved(Image.fromarray(corners()), kind, xmp=xmp))
    shape = decode_image(path, MAX_PIXELS).shape
    # The writer of HEIC turns by the XMP it is given; the one of AVIF does not.
    assert shape == ((64, 48, 3) if kind == "HEIF" else (48, 64, 3))


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_alpha_is_put_on_white(tmp_path: Path, kind: str) -> None:
    """Half transparent black becomes grey."""
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 128))
    pixels = decode_image(write(tmp_path, saved(image, kind)), MAX_PIXELS)
    assert np.abs(pixels.astype(int) - 127).max() <= 3


@pytest.mark.parametrize("mode", ["L", "P", "LA"])
@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_grey_and_palettes(tmp_path: Path, kind: str, mode: str) -> None:
    """They are RGB in the end."""
    image = Image.fromarray(corners()).convert(mode)
    pixels = decode_image(write(tmp_path, saved(image, kind)), MAX_PIXELS)
    assert_close(pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB;16", "RGBA;16", "I;16"])
def test_ten_bits_become_eight(tmp_path: Path, mode: str) -> None:
    """White stays white, in color and in grey."""
    bands = {"RGB;16": 3, "RGBA;16": 4, "I;16": 1}[mode]
    samples = np.full((32, 32, bands), 65535, np.uint16)
    samples[:16, :, :3] = 0
    file = io.BytesIO()
    pillow_heif.from_bytes(mode, (32, 32), samples.tobytes()).save(file, quality=-1)
    pixels = decode_image(write(tmp_path, file.getvalue()), MAX_PIXELS)
    assert (pixels[0, 0].tolist(), pixels[-1, -1].tolist()) == ([0, 0, 0], [255, 255, 255])


def test_a_thumbnail_is_not_taken_for_the_picture(tmp_path: Path) -> None:
    """A draft of a JPEG is all of the picture; HEIC may hold a small copy made by anybody."""
    image = pillow_heif.from_pillow(Image.fromarray(corners(512, 512)))
    file = io.BytesIO()
    image.save(file, thumbnails=[256])
    path = write(tmp_path, file.getvalue())
    assert decode_image(path, MAX_PIXELS, min_side=128).shape == (512, 512, 3)
    assert inspect_image(path, MAX_PIXELS).width == 512


def test_the_first_of_several_pictures_is_taken(tmp_path: Path) -> None:
    """And the scan says that there are others."""
    for kind, name in (("HEIF", "a.heics"), ("AVIF", "a.avifs")):
        others = [Image.new("RGB", (64, 48), "black")]
        content = saved(Image.fromarray(corners()), kind, save_all=True, append_images=others)
        path = write(tmp_path, content, name)
        assert inspect_image(path, MAX_PIXELS).frames_dropped
        assert_close(decode_image(path, MAX_PIXELS), corners())


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    """Phones and chats name HEIC `.jpg`, and browsers save AVIF as `.jpg`."""
    for kind in ("HEIF", "AVIF"):
        path = write(tmp_path, saved(Image.fromarray(corners()), kind), "a.jpg")
        assert_close(decode_image(path, MAX_PIXELS), corners())
    jpeg = io.BytesIO()
    Image.fromarray(corners()).save(jpeg, "JPEG")
    assert decode_image(write(tmp_path, jpeg.getvalue(), "a.heic"), MAX_PIXELS).shape == (48, 64, 3)


# ---- damage, giants -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_every_cut_is_an_image_error(tmp_path: Path, kind: str) -> None:
    """Wherever the file ends, and whatever byte is wrong."""
    content = saved(Image.fromarray(corners()), kind)
    for end in range(1, len(content) - 1, 7):
        path = write(tmp_path, content[:end])
        assert reason(path).startswith(("cannot be decoded", "not a JPEG"))
    for index in range(0, len(content), 11):
        path = write(tmp_path, content[:index] + b"\xff" + content[index + 1 :])
        with suppress(ImageError):
            assert decode_image(path, MAX_PIXELS).shape[2] == 3


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_a_giant_is_refused_by_its_header(tmp_path: Path, kind: str) -> None:
    """The pixels after the header are never looked at: here they are gone."""
    content = saved(Image.new("RGB", (1280, 1024)), kind)
    path = write(tmp_path, content[: content.index(b"mdat") + 60] + bytes(len(content)))
    assert reason(path).startswith("1280 x 1024 pixels, more than data.max_pixels")


RAW = {
    "a.CR2": "raw file of a camera; convert it to JPEG",
    "a.dng": "raw file of a camera; convert it to JPEG",
    "a.jxl": "JPEG XL is not read; convert it to JPEG or PNG",
    "a.psd": "Photoshop is not read; convert it to JPEG or PNG",
}


@pytest.mark.parametrize("name", RAW)
def test_the_stamp_in_a_raw_file_is_not_taken_for_the_photo(tmp_path: Path, name: str) -> None:
    """Most raw files are TIFFs; what is in truth a JPEG is read, whatever its name."""
    for kind in ("TIFF", "JPEG"):
        file = io.BytesIO()
        Image.fromarray(corners()).save(file, kind)
        path = write(tmp_path, file.getvalue(), name)
        if kind == "TIFF":
            assert reason(path) == reason(path, inspect_image) == RAW[name]
        else:
            assert_close(decode_image(path, MAX_PIXELS), corners())


@pytest.mark.parametrize(
    ("head", "brand"),
    [
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0mif1avif", "HEIF"),
        (b"\0\0\0\x1cftypmp42\0\0\0\0isomavif", None),
        (b"\xff\xd8\xff\xe0", None),
        (b"", None),
    ],
)
def test_the_brands_say_what_a_container_holds(head: bytes, brand: str | None) -> None:
    """AVIF, HEIC and films share their first bytes; brands after the box do not count."""
    assert read_brand(head) == brand


# ---- without the extra ----------------------------------------------------------------------


def run_without_extra(tmp_path: Path, code: str, *arguments: object) -> str:
    """Run code in a Python that has no pillow_heif, and return what it prints."""
    shadow = tmp_path / "shadow"
    shadow.mkdir(exist_ok=True)
    (shadow / "pillow_heif.py").write_text("raise ModuleNotFoundError('no', name='pillow_heif')\n")
    paths = [str(shadow), *filter(None, [os.environ.get("PYTHONPATH")]), str(Path.cwd())]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SCAN = """
import sys
from mlfinetune.data.images.scan import scan_images
if __name__ == "__main__":
    for result in scan_images(sys.argv[1:], 10**6):
        print(result if isinstance(result, str) else result.format)
"""


def test_without_the_extra_heic_is_refused_until_it_is_installed(tmp_path: Path) -> None:
    """The reason has the fix, in the process and in the pool, and the cache does not keep it."""
    content = saved(Image.fromarray(corners()), "HEIF")
    few = [write(tmp_path, content), write(tmp_path, content, "b.jpg")]
    many = [write(tmp_path, content, f"{number}.heic") for number in range(70)]
    assert run_without_extra(tmp_path, SCAN, *few).splitlines() == [NEEDS] * 2
    assert run_without_extra(tmp_path, SCAN, *many).splitlines() == [NEEDS] * 70
    done = subprocess.run([sys.executable, "-c", SCAN, *few], capture_output=True, text=True)
    assert done.stdout.split() == ["HEIF", "HEIF"], done.stderr


def test_the_extra_is_loaded_by_the_first_heic_alone(tmp_path: Path) -> None:
    """A data set of JPEGs does not wait for it; its version is in the keys of the caches."""
    code = (
        "import sys; from pathlib import Path\n"
        "from mlfinetune.data.images.decode import decode_image\n"
        "for name in sys.argv[1:]:\n"
        "    decode_image(Path(name), 10**6); print('pillow_heif' in sys.modules)\n"
    )
    image = Image.fromarray(corners())
    avif = write(tmp_path, saved(image, "AVIF"), "a.avif")
    heic = write(tmp_path, saved(image, "HEIF"))
    done = subprocess.run(
        [sys.executable, "-c", code, avif, heic], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]
    assert pillow_heif.__version__ in DECODE_VERSION
