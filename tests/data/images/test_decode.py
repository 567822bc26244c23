"""Picture files of every kind become RGB uint8, or an ImageError with the file's name."""

import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mlfinetune.data.images import transforms
from mlfinetune.data.images.decode import decode_image, make_thumbnail
from mlfinetune.errors import DataError, ImageError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 1_000_000
ROOT = Path(__file__).parents[3]
LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True, "exact": True},
}
SAVE: dict[str, dict[str, Any]] = {
    **LOSSLESS,
    "JPEG": {"quality": 95},
    "AVIF": {"quality": 95},
    "GIF": {},
}


def gradient(height: int = 24, width: int = 40) -> Pixels:
    """Return a smooth picture without symmetry: red grows to the right, green downwards."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = columns * 255 // (width - 1), rows * 255 // (height - 1)
    return np.stack([red, green, (red + green) // 4], axis=2).astype(np.uint8)


def encoded(image: Image.Image | Pixels, kind: str, **options: Any) -> bytes:
    """Return the bytes of a file of this kind."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, kind, **{**SAVE.get(kind, {}), **options})
    return buffer.getvalue()


def write(folder: Path, content: bytes, name: str = "picture.bin") -> Path:
    """Make a file with this content."""
    path = folder / name
    path.write_bytes(content)
    return path


def read(folder: Path, image: Image.Image | Pixels, kind: str, **options: Any) -> Pixels:
    """Return the pixels of a picture that is saved and decoded."""
    return decode_image(write(folder, encoded(image, kind, **options)), MAX_PIXELS)


def fault(path: Path, max_pixels: int = MAX_PIXELS) -> str:
    """Return the message with which the file is refused; assert that it begins with its name."""
    with pytest.raises(ImageError) as caught:
        decode_image(path, max_pixels)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    return caught.value.reason


def outcome(path: Path) -> Pixels | ImageError:
    """Return the picture or the error it is refused with; any other exception passes through."""
    try:
        return decode_image(path, MAX_PIXELS)
    except ImageError as error:
        return error


def assert_picture_or_fault(path: Path) -> None:
    """Assert that the result is a usable picture, or an ImageError with the file's name."""
    result = outcome(path)
    if isinstance(result, ImageError):
        assert str(result).startswith(f"{path}: ")
    else:
        assert result.dtype == np.uint8
        assert result.shape[2:] == (3,)
        assert result.size > 0


def difference(a: Pixels, b: Pixels) -> int:
    """Return the largest difference of two pictures in grey levels."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return one chunk of a PNG file."""
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    """Return a PNG of RGB with this header and next to no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for all the examples of a generated test."""
    return tmp_path_factory.mktemp("pictures")


# ---- formats ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_keep_every_pixel(tmp_path: Path, kind: str) -> None:
    """PNG, BMP, TIFF and lossless WebP give back what was saved."""
    np.testing.assert_array_equal(read(tmp_path, gradient(), kind), gradient())


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_come_close(tmp_path: Path, kind: str) -> None:
    """JPEG, AVIF and lossy WebP differ by a few grey levels, channel for channel."""
    lossy: dict[str, Any] = {"quality": 98}
    lossy |= {"JPEG": {"subsampling": 0}, "AVIF": {"subsampling": "4:4:4"}}.get(
        kind, {"lossless": False}
    )
    assert difference(read(tmp_path, gradient(), kind, **lossy), gradient()) < 12


def test_gif_keeps_its_palette(tmp_path: Path) -> None:
    """A GIF of four colours has exactly those."""
    colours = np.array([[0, 0, 0], [255, 0, 0], [10, 200, 30], [1, 2, 255]], np.uint8)
    pixels = colours[np.arange(12).reshape(3, 4) % 4]
    palette = Image.fromarray(pixels).quantize(4, dither=Image.Dither.NONE)
    np.testing.assert_array_equal(read(tmp_path, palette, "GIF"), pixels)


@pytest.mark.parametrize("kind", SAVE)
def test_the_content_decides_not_the_name(tmp_path: Path, kind: str) -> None:
    """A file of any kind may have any of the endings, or none."""
    content = encoded(gradient(), kind)
    for name in ("a.jpg", "b.png", "c.tif", "d"):
        assert decode_image(write(tmp_path, content, name), MAX_PIXELS).shape == (24, 40, 3)


def test_every_format_opens_in_a_fresh_process(tmp_path: Path) -> None:
    """Pillow loads its decoders late; the first picture of a process decodes as any other."""
    code = (
        "import sys; from pathlib import Path\n"
        "from mlfinetune.data.images.decode import decode_image\n"
        "assert decode_image(Path(sys.argv[1]), 10**6).shape == (24, 40, 3)"
    )
    for kind in ("WEBP", "JPEG", "AVIF"):
        path = write(tmp_path, encoded(gradient(), kind))
        command = [sys.executable, "-c", code, path]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr


def test_a_decoded_picture_becomes_a_tensor(tmp_path: Path) -> None:
    """The array is contiguous uint8, and to_tensor takes it without a warning."""
    pixels = read(tmp_path, gradient(), "PNG")
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    tensor = transforms.to_tensor(pixels)
    np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), gradient())


def test_a_picture_of_one_pixel_is_a_picture(tmp_path: Path) -> None:
    """Small is no fault."""
    pixel = np.full((1, 1, 3), 77, np.uint8)
    for kind in LOSSLESS:
        np.testing.assert_array_equal(read(tmp_path, pixel, kind), pixel)


# ---- EXIF -------------------------------------------------------------------------------

# What a camera stores of an upright picture under each orientation.
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_turns_the_picture_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    """All eight orientations give the upright picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](gradient()))
    upright = read(tmp_path, stored, kind, exif=exif)
    assert upright.shape == gradient().shape
    assert difference(upright, gradient()) <= (20 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_do_not_exist_ask_for_nothing(tmp_path: Path, orientation: int) -> None:
    """Only 2 to 8 turn a picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read(tmp_path, gradient(), "PNG", exif=exif), gradient())


@pytest.mark.parametrize("exif", [b"garbage", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_broken_exif_asks_for_nothing(tmp_path: Path, exif: bytes) -> None:
    """A picture with unreadable EXIF is still a picture."""
    np.testing.assert_array_equal(read(tmp_path, gradient(), "PNG", exif=exif), gradient())


# ---- alpha ------------------------------------------------------------------------------

ALPHA = np.array([[0, 64, 128, 255]], np.uint8)


def on_white(grey: int) -> NDArray[np.float64]:
    """Return a grey level under ALPHA on a white page."""
    return (grey * (ALPHA / 255.0) + 255 * (1 - ALPHA / 255.0))[..., None]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_rgba_lies_on_white(tmp_path: Path, kind: str) -> None:
    """Transparent pixels are white, whatever colour hides below."""
    pixels = np.zeros((1, 4, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, ALPHA
    expected = np.concatenate([on_white(200), on_white(0), on_white(0)], axis=2)
    assert np.abs(read(tmp_path, pixels, kind) - expected).max() <= 1
    assert (read(tmp_path, pixels, kind)[0, 0] == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_with_alpha_lies_on_white(tmp_path: Path, kind: str) -> None:
    """LA as RGBA."""
    pixels = np.stack([np.full_like(ALPHA, 40), ALPHA], axis=2)
    out = read(tmp_path, Image.fromarray(pixels, "LA"), kind)
    assert np.abs(out - on_white(40)).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(tmp_path: Path, kind: str) -> None:
    """Palettes hide transparency in one entry."""
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    out = read(tmp_path, image, kind, transparency=1)
    assert out.tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_a_palette_with_alpha_lies_on_white(tmp_path: Path) -> None:
    """A PNG palette may have an alpha for each entry."""
    image = Image.fromarray(np.arange(4, dtype=np.uint8)[None])
    image.putpalette([0] * 12)
    out = read(tmp_path, image, "PNG", transparency=ALPHA.tobytes())
    assert np.abs(out - on_white(0)).max() <= 1


def test_a_transparent_colour_is_white(tmp_path: Path) -> None:
    """RGB and grey PNG may name one colour as transparent."""
    red = np.array([[[255, 0, 0], [254, 0, 0]]], np.uint8)
    out = read(tmp_path, red, "PNG", transparency=(255, 0, 0))
    assert out.tolist() == [[[255, 255, 255], [254, 0, 0]]]
    grey = np.array([[7, 8]], np.uint8)
    assert read(tmp_path, grey, "PNG", transparency=7)[0, :, 0].tolist() == [255, 8]


def test_alpha_and_orientation_together(tmp_path: Path) -> None:
    """A turned picture keeps its transparency."""
    exif = Image.Exif()
    exif[0x0112] = 3
    red = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    out = read(tmp_path, red, "PNG", transparency=(255, 0, 0), exif=exif)
    assert out.tolist() == [[[0, 0, 255], [255, 255, 255]]]


# ---- modes and bit depths ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_palettes_give_their_colours(tmp_path: Path, kind: str) -> None:
    """Indices are looked up."""
    image = Image.fromarray(np.array([[2, 0], [1, 2]], np.uint8))
    image.putpalette([9, 8, 7, 250, 0, 1, 0, 99, 0])
    out = read(tmp_path, image, kind)
    assert out.tolist() == [[[0, 99, 0], [9, 8, 7]], [[250, 0, 1], [0, 99, 0]]]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_one_bit_is_black_and_white(tmp_path: Path, kind: str) -> None:
    """A bit is 0 or 255, not 0 or 1."""
    bits = np.array([[True, False, True], [False, False, True]])
    out = read(tmp_path, Image.fromarray(bits), kind)
    np.testing.assert_array_equal(out, np.repeat(bits[..., None], 3, 2) * np.uint8(255))


def test_grey_fills_three_channels(tmp_path: Path) -> None:
    """An 8-bit grey picture keeps its levels."""
    grey = gradient()[..., 0]
    out = read(tmp_path, grey, "PNG")
    np.testing.assert_array_equal(out, np.repeat(grey[..., None], 3, 2))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_close_to_its_rgb(tmp_path: Path, kind: str) -> None:
    """Print colours are neither inverted nor washed out."""
    out = read(tmp_path, Image.fromarray(gradient()).convert("CMYK"), kind)
    assert difference(out, gradient()) <= (20 if kind == "JPEG" else 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_scale_linearly(tmp_path: Path, kind: str) -> None:
    """A ramp over all of 16 bits covers 0 to 255 evenly."""
    ramp = np.linspace(0, 65535, 1024).round().astype(np.uint16)[None]
    out = read(tmp_path, Image.fromarray(ramp), kind)
    np.testing.assert_array_equal(out[0, :, 0], np.rint(ramp[0] / 257))
    assert (out[..., 0] == out[..., 1]).all()
    assert (out[..., 0] == out[..., 2]).all()


def test_big_endian_sixteen_bits_are_read_as_such(tmp_path: Path) -> None:
    """The order of the bytes is not mixed up."""
    image = Image.new("I;16B", (2, 1))
    image.putpixel((1, 0), 257 * 100)
    assert read(tmp_path, image, "TIFF")[0, :, 0].tolist() == [0, 100]


@pytest.mark.parametrize(
    ("samples", "levels"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 257 * 100, 65535], [0, 100, 255]),
        ([0, 1_000_000, 2_550_000], [0, 100, 255]),
        ([-100, 0, 155], [0, 100, 255]),
        ([5, 5, 5], [5, 5, 5]),
        ([2**31 - 1, 0, -(2**31)], [255, 128, 0]),
    ],
)
def test_32_bit_integers_scale_by_their_range(
    tmp_path: Path, samples: list[int], levels: list[int]
) -> None:
    """8-bit and 16-bit values keep their meaning; others go from least to most."""
    image = Image.fromarray(np.array([samples], np.int32))
    out = read(tmp_path, image, "TIFF")
    assert np.abs(out[0, :, 0].astype(int) - levels).max() <= 1


@pytest.mark.parametrize(
    ("samples", "levels"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([0.0, 25700.0, 65535.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 1e30, 2e30], [0, 128, 255]),
        ([float("nan"), 0.5, 1.0], [0, 128, 255]),
        ([float("inf"), 0.5, 1.0], [0, 128, 255]),
        ([float("nan")] * 3, [0, 0, 0]),
        ([-7.0] * 3, [0, 0, 0]),
    ],
)
def test_floats_scale_by_their_range(
    tmp_path: Path, samples: list[float], levels: list[int]
) -> None:
    """Values to 1, 255 or 65535 by that range; others from least to most; NaN is black."""
    image = Image.fromarray(np.array([samples], np.float32))
    out = read(tmp_path, image, "TIFF")
    assert np.abs(out[0, :, 0].astype(int) - levels).max() <= 1


# ---- pictures of more than one block ----------------------------------------------------


@pytest.mark.parametrize("orientation", STORED)
def test_the_parts_of_a_large_picture_fall_into_place(tmp_path: Path, orientation: int) -> None:
    """Two blocks of rows, each turned by itself."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = gradient(1100, 1000)
    stored = np.ascontiguousarray(STORED[orientation](large))
    path = write(tmp_path, encoded(stored, "PNG", exif=exif, compress_level=0))
    np.testing.assert_array_equal(decode_image(path, 1_100_000), large)


def test_one_row_may_be_longer_than_a_block(tmp_path: Path) -> None:
    """A row is cut into parts where it is as long as that."""
    row = np.arange(1_200_000, dtype=np.uint32)[None].view(np.uint8).reshape(1, -1, 4)[..., :3]
    path = write(tmp_path, encoded(np.ascontiguousarray(row), "PNG", compress_level=0))
    np.testing.assert_array_equal(decode_image(path, row.size), row)


def test_the_range_of_samples_is_that_of_the_whole_picture(tmp_path: Path) -> None:
    """The brightest float stands in the last block, the darkest in the first."""
    samples = np.zeros((1100, 1000), np.float32)
    samples[0, 0], samples[-1, -1] = -100.0, 155.0
    out = decode_image(write(tmp_path, encoded(Image.fromarray(samples), "TIFF")), samples.size)
    assert out[[0, 5, -5, -1], [0, 5, -5, -1], 0].tolist() == [0, 100, 100, 255]


# ---- several frames ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_frame_counts(tmp_path: Path, kind: str) -> None:
    """Animations, pages and the second eye of an MPO are left alone."""
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "lime", "blue")]
    out = read(tmp_path, frames[0], kind, save_all=True, append_images=frames[1:])
    assert out.shape == (8, 16, 3)
    assert difference(out, np.array(frames[0])) <= 2


# ---- the size cap -----------------------------------------------------------------------


def test_the_cap_is_inclusive(tmp_path: Path) -> None:
    """A picture of exactly max_pixels is read, one pixel more is refused."""
    path = write(tmp_path, encoded(gradient(), "PNG"))
    assert decode_image(path, 24 * 40).shape == (24, 40, 3)
    assert "40 x 24 pixels, more than data.max_pixels (959)" in fault(path, 24 * 40 - 1)


def huge(kind: str) -> bytes:
    """Return a small file whose header claims 60000 x 60000 pixels."""
    content = bytearray(encoded(gradient(), kind) if kind != "PNG" else png(60000, 60000))
    if kind == "BMP":
        content[18:26] = struct.pack("<ii", 60000, 60000)
    elif kind == "GIF":
        content[6:10] = struct.pack("<HH", 60000, 60000)
    elif kind == "JPEG":
        start = content.index(b"\xff\xc0") + 5
        content[start : start + 4] = struct.pack(">HH", 60000, 60000)
    return bytes(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_a_huge_picture_is_refused_undecoded(tmp_path: Path, kind: str) -> None:
    """Gigabytes of pixels in a few bytes take no memory."""
    path = write(tmp_path, huge(kind), "bomb.jpg")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert fault(path, 89_000_000) == (
        "60000 x 60000 pixels, more than data.max_pixels (89,000,000) allows"
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize(
    "chunk", [b"zTXt" + b"k\0\0", b"iCCP" + b"k\0\0", b"iTXt" + b"k\0\1\0\0\0"]
)
def test_a_text_bomb_is_harmless(tmp_path: Path, chunk: bytes) -> None:
    """A PNG whose compressed text swells to 64 MB is refused without the memory for it."""
    bomb = png_chunk(chunk[:4], chunk[4:] + zlib.compress(bytes(64_000_000), 1))
    path = write(tmp_path, png(2, 2, bomb), "text.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert fault(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # KiB


# ---- files that are refused -------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The commonest fault has the plainest words."""
    assert fault(tmp_path / "absent.jpg") == "no such file"


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    """A folder with a picture's name is refused."""
    (tmp_path / "x.jpg").mkdir()
    assert fault(tmp_path / "x.jpg") == "not a regular file"


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    """A FIFO is refused before it is opened."""
    path = tmp_path / "pipe.jpg"
    os.mkfifo(path)
    reasons: list[str] = []
    thread = threading.Thread(target=lambda: reasons.append(fault(path)), daemon=True)
    thread.start()
    thread.join(timeout=5)
    assert reasons == ["not a regular file"]


@pytest.mark.parametrize(
    "content", [b"", b"hello\n", b"\xff\xd8\xff", bytes(100), b"GIF89a", b"BM"]
)
def test_a_file_that_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty files, text and bare signatures, under a picture's name."""
    reason = fault(write(tmp_path, content, "x.jpg"))
    assert reason
    assert (reason == "an empty file") == (not content)


@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO", "TGA", "PCX", "JPEG2000"])
def test_other_formats_are_refused(tmp_path: Path, kind: str) -> None:
    """Pillow's other decoders are never reached, PostScript's least of all."""
    path = write(tmp_path, encoded(gradient(32, 32), kind), "x.jpg")
    assert fault(path) == "not a JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF picture"


def test_names_that_the_system_refuses(tmp_path: Path) -> None:
    """A NUL, a name too long and a link to itself are faults of one file."""
    loop = tmp_path / "loop.jpg"
    loop.symlink_to(loop)
    for path in (loop, tmp_path / ("x" * 300), tmp_path / "a\0b.jpg", tmp_path / "loop.jpg" / "b"):
        assert fault(path)


def test_the_reason_has_one_line(tmp_path: Path) -> None:
    """A log takes a line for each file."""
    for cut in (3, 30, 100):
        path = write(tmp_path, encoded(gradient(), "JPEG")[:cut])
        assert "\n" not in fault(path)


def test_an_image_error_crosses_processes() -> None:
    """Loader workers pickle their errors; a DataError catches them."""
    error = ImageError("a.jpg", "no such file")
    twin = pickle.loads(pickle.dumps(error))
    assert isinstance(twin, DataError)
    assert (str(twin), twin.reason) == ("a.jpg: no such file", "no such file")


# ---- a faster decoder for plain JPEGs ---------------------------------------------------

PLAIN: dict[str, dict[str, Any]] = {"JPEG": {}, "grey": {"mode": "L"}}
PARTICULAR: dict[str, dict[str, Any]] = {
    "CMYK": {"mode": "CMYK"},
    "turned": {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0"},
    "MPO": {"kind": "MPO", "save_all": True, "append_images": [Image.fromarray(gradient())]},
    "PNG": {"kind": "PNG"},
    "16 bits": {"kind": "PNG", "mode": "I;16"},
}


def special(kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    """Return the bytes of one of the pictures above."""
    grey = Image.fromarray(gradient()).convert("L")
    if mode == "I;16":
        return encoded(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), kind, **options)
    return encoded(Image.fromarray(gradient()).convert(mode), kind, **options)


@pytest.mark.parametrize("name", [*PLAIN, *PARTICULAR])
def test_plain_jpegs_alone_go_to_the_decoder(tmp_path: Path, name: str) -> None:
    """Its answer is taken as it is; any other picture is Pillow's, which knows what to do."""
    content = special(**(PLAIN | PARTICULAR)[name])
    path, given = write(tmp_path, content), []
    answer = np.full((24, 40, 3), 7, np.uint8)

    def decoder(content: Pixels) -> Pixels:
        given.append(content.tobytes())
        return answer

    pixels = decode_image(path, MAX_PIXELS, None, decoder)
    assert given == ([content] if name in PLAIN else [])
    np.testing.assert_array_equal(pixels, answer if given else decode_image(path, MAX_PIXELS))


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, ValueError])
def test_what_the_decoder_refuses_pillow_decodes(tmp_path: Path, error: type[Exception]) -> None:
    """After any error of the fast decoder, the picture is the one that Pillow gives."""

    def decoder(content: Pixels) -> Pixels:
        raise error("not mine")

    path = write(tmp_path, encoded(gradient(), "JPEG"))
    pixels = decode_image(path, MAX_PIXELS, None, decoder)
    np.testing.assert_array_equal(pixels, decode_image(path, MAX_PIXELS))


def test_a_picture_of_another_size_than_its_header_is_not_taken(tmp_path: Path) -> None:
    """The size that the cap was checked with is the size that comes back."""
    path = write(tmp_path, encoded(gradient(), "JPEG"))
    pixels = decode_image(path, MAX_PIXELS, None, lambda content: gradient(240, 400))
    np.testing.assert_array_equal(pixels, decode_image(path, MAX_PIXELS))


def test_the_cap_comes_before_the_decoder(tmp_path: Path) -> None:
    """A picture over the cap is refused with the same words, whole or scaled, undecoded."""
    path, given = write(tmp_path, encoded(gradient(), "JPEG")), []

    def decoder(content: Pixels) -> Pixels:
        given.append(len(content))
        return gradient()

    for least in (None, 1):
        with pytest.raises(ImageError) as caught:
            decode_image(path, 24 * 40 - 1, least, decoder)
        assert caught.value.reason == fault(path, 24 * 40 - 1)
    assert not given


def test_what_lies_behind_a_picture_stays_on_disk(tmp_path: Path) -> None:
    """Gigabytes behind a small JPEG are not read for the decoder."""
    path, given = write(tmp_path, encoded(gradient(), "JPEG")), []
    os.truncate(path, 1 << 31)

    def decoder(content: Pixels) -> Pixels:
        given.append(len(content))
        return gradient()

    np.testing.assert_array_equal(decode_image(path, MAX_PIXELS, None, decoder), gradient())
    assert 0 < given[0] < 2 << 20


# ---- JPEGs at less than their size ------------------------------------------------------


@pytest.mark.parametrize(
    ("least", "size"),
    [
        (1, (48, 80)),
        (48, (48, 80)),
        (49, (96, 160)),
        (96, (96, 160)),
        (97, (192, 320)),
        (193, None),
    ],
)
def test_a_jpeg_keeps_the_least_side(
    tmp_path: Path, least: int, size: tuple[int, int] | None
) -> None:
    """A JPEG is decoded at 1/8, 1/4, 1/2 or 1/1: the smallest whose sides are long enough."""
    path = write(tmp_path, encoded(gradient(384, 640), "JPEG"))
    pixels, size = decode_image(path, MAX_PIXELS, least), size or (384, 640)
    assert pixels.shape == (*size, 3)
    assert difference(pixels, gradient(*size)) < 12


@pytest.mark.parametrize(
    ("size", "wanted"), [((388, 644), (97, 161)), ((386, 640), (193, 320)), ((385, 640), None)]
)
def test_a_jpeg_is_divided_without_remainder(
    tmp_path: Path, size: tuple[int, int], wanted: tuple[int, int] | None
) -> None:
    """Half a pixel too many would stretch the picture by as much."""
    path = write(tmp_path, encoded(gradient(*size), "JPEG"))
    assert decode_image(path, MAX_PIXELS, 1).shape[:2] == (wanted or size)


@pytest.mark.parametrize("orientation", STORED)
def test_a_smaller_jpeg_is_turned_all_the_same(tmp_path: Path, orientation: int) -> None:
    """The sides change places, the picture stands upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](gradient(240, 400)))
    path = write(tmp_path, encoded(stored, "JPEG", exif=exif))
    assert difference(decode_image(path, MAX_PIXELS, 100), gradient(120, 200)) <= 8


@pytest.mark.parametrize("name", ["CMYK", "MPO", "grey"])
def test_particular_jpegs_are_scaled_too(tmp_path: Path, name: str) -> None:
    """All that libjpeg decodes it can decode at half the size."""
    path = write(tmp_path, special(**(PLAIN | PARTICULAR)[name]))
    halves = decode_image(path, MAX_PIXELS).reshape(12, 2, 20, 2, 3).mean((1, 3))
    assert np.abs(decode_image(path, MAX_PIXELS, 12) - halves).max() < 4


@pytest.mark.parametrize("kind", [*LOSSLESS, "GIF"])
def test_other_formats_keep_their_size(tmp_path: Path, kind: str) -> None:
    """Only JPEGs can be decoded at less."""
    path = write(tmp_path, encoded(gradient(), kind))
    np.testing.assert_array_equal(decode_image(path, MAX_PIXELS, 1), decode_image(path, MAX_PIXELS))


@pytest.mark.parametrize("least", [None, 12, 13])
def test_the_decoder_has_the_pictures_of_full_size(tmp_path: Path, least: int | None) -> None:
    """Pillow decodes at smaller sizes, the fast decoder at full size, from the same bytes."""
    path = write(tmp_path, encoded(gradient(), "JPEG"))
    answer = np.zeros((12, 20, 3) if least == 12 else (24, 40, 3), np.uint8)
    pixels = decode_image(path, MAX_PIXELS, least, lambda content: answer)
    assert pixels.shape == answer.shape
    assert (pixels is answer) == (least != 12)


def test_a_truncated_jpeg_fails_alike_at_any_size(tmp_path: Path) -> None:
    """Scaled or not, half a file is refused with the same words."""
    content = encoded(gradient(300, 500), "JPEG")
    path = write(tmp_path, content[: len(content) // 2])
    for least in (1, 100):
        with pytest.raises(ImageError) as caught:
            decode_image(path, MAX_PIXELS, least)
        assert caught.value.reason == fault(path)


# ---- damage -----------------------------------------------------------------------------

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
VALID = {kind: encoded(NOISE, kind) for kind in SAVE}


@pytest.mark.parametrize("kind", SAVE)
def test_a_truncated_file_is_refused_or_read(folder: Path, kind: str) -> None:
    """A file cut at any byte is a picture or an ImageError."""
    content = VALID[kind]
    for cut in range(0, len(content), max(1, len(content) // 80)):
        assert_picture_or_fault(write(folder, content[:cut]))


@pytest.mark.parametrize("kind", SAVE)
def test_half_a_file_is_no_picture(tmp_path: Path, kind: str) -> None:
    """Half a picture is never filled up with grey."""
    assert fault(write(tmp_path, VALID[kind][: len(VALID[kind]) // 2]))


MAGIC = [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*"]
MAGIC += [b"RIFF\x40\0\0\0WEBPVP8 ", b"RIFF\x40\0\0\0WEBPVP8X", png(3, 3)[:33]]


@settings(max_examples=150, deadline=None)
@given(magic=st.sampled_from(MAGIC), rest=st.binary(max_size=200))
def test_any_bytes_are_a_picture_or_an_image_error(folder: Path, magic: bytes, rest: bytes) -> None:
    """No file brings the program down."""
    assert_picture_or_fault(write(folder, magic + rest))


@settings(max_examples=250, deadline=None)
@given(
    content=st.sampled_from(list(VALID.values())),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1),
    early=st.booleans(),
)
def test_flipped_bits_are_a_picture_or_an_image_error(
    folder: Path, content: bytes, flips: list[tuple[float, int]], early: bool
) -> None:
    """Damage in the header or in the pixels is no other exception."""
    damaged = bytearray(content)
    for place, bit in flips:
        damaged[int(place * (100 if early else len(damaged)))] ^= 1 << bit
    assert_picture_or_fault(write(folder, bytes(damaged)))


@pytest.mark.parametrize("side", [8, 20, 100])
def test_a_thumbnail_is_whole_upright_and_never_enlarged(tmp_path: Path, side: int) -> None:
    """The longer side is what was asked for, or the picture's own."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    path = write(tmp_path, encoded(gradient(), "JPEG", exif=exif))
    small = Image.open(io.BytesIO(make_thumbnail(path, side, MAX_PIXELS)))
    assert (small.format, max(small.size)) == ("JPEG", min(side, 40))
    assert small.width / small.height == pytest.approx(24 / 40, abs=0.1)


def test_an_unreadable_picture_has_a_thumbnail(tmp_path: Path) -> None:
    """Its thumbnail is a square of the side that was asked for."""
    shown = make_thumbnail(write(tmp_path, b"no picture"), 50, MAX_PIXELS)
    assert Image.open(io.BytesIO(shown)).size == (50, 50)
