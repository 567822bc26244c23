"""A corpus of damaged, odd and malicious files, decoded and inspected in one real process.

Expected pixels are worked out here, by hand; Pillow writes files, and is no oracle.
"""

import hashlib
import io
import json
import os
import random
import struct
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Verdicts = dict[str, dict[str, Any]]

ROOT = Path(__file__).parents[2]
MAX_PIXELS = 89_000_000
SIDE = 9433  # squared, just under the cap
NO_PICTURE = "not a JPEG, PNG, WebP, GIF, BMP or TIFF picture"
TOO_LARGE = "more than data.max_pixels"

CHILD = """
import json, resource, sys
from dataclasses import asdict
from pathlib import Path
from mlfinetune.data.images import decode, inspect
from mlfinetune.errors import ImageError

def attempt(look, path):
    try:
        return look(Path(path), 89_000_000)
    except ImageError as error:
        return {"said": str(error), "reason": error.reason}
    except BaseException as error:
        return {"crash": repr(error)}

verdicts = {}
for name, path in json.load(sys.stdin).items():
    pixels, picture = attempt(decode, path), attempt(inspect, path)
    if not isinstance(pixels, dict):
        kept = pixels.tolist() if pixels.size < 20_000 else None
        pixels = {"shape": pixels.shape, "type": str(pixels.dtype), "pixels": kept}
    picture = picture if isinstance(picture, dict) else asdict(picture)
    verdicts[name] = {"path": path, "decode": pixels, "inspect": picture}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
json.dump({"verdicts": verdicts, "peak": peak}, sys.stdout)
"""


@dataclass(frozen=True)
class Case:
    """A file and what must come of it; neither pixels nor a reason: a picture or an error.

    Attributes:
        content: of the file.
        pixels: what it shows, give or take `off` levels.
        reason: a part of why it is refused.
        frames, turned: what `inspect` says.
    """

    content: bytes
    pixels: Pixels | None = None
    off: int = 0
    reason: str | None = None
    frames: bool = False
    turned: bool = False


# ---- makers -----------------------------------------------------------------------------


def smooth(height: int = 24, width: int = 40) -> Pixels:
    """A smooth picture without symmetry."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = columns * 255 // (width - 1), rows * 255 // (height - 1)
    return np.stack([red, green, (red + green) // 4], axis=2).astype(np.uint8)


def saved(image: Image.Image | Pixels, kind: str, **options: Any) -> bytes:
    """The bytes of a file of this kind."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file."""
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(size: tuple[int, int], depth: int, colour: int, data: bytes, *extra: bytes) -> bytes:
    """A PNG of these samples; `extra` chunks stand before them."""
    width, height = size
    bits = width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    line = (bits + 7) // 8
    packer, packed = zlib.compressobj(1), []
    for row in range(height):
        packed.append(
            packer.compress(b"\0" + data[row * line : (row + 1) * line].ljust(line, b"\0"))
        )
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", b"".join(packed) + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + chunk(b"IEND", b"")


def tiff(size: tuple[int, int], bits: int, data: bytes, form: int = 1, light: int = 1) -> bytes:
    """A raw grey TIFF; `form` 1 unsigned, 2 signed, 3 float; `light` 0 where zero is white."""
    tags = {256: size[0], 257: size[1], 258: bits, 259: 1, 262: light, 273: 134}
    tags |= {277: 1, 278: size[1], 279: size[0] * size[1] * bits // 8, 339: form}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0" + data


def grey(*levels: int) -> Pixels:
    """One row of grey."""
    return np.repeat(np.array(levels, np.uint8)[None, :, None], 3, axis=2)


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


TURN = chunk(b"eXIf", oriented(6).tobytes().removeprefix(b"Exif\0\0"))


def white(size: tuple[int, int]) -> Pixels:
    """A white picture, without its memory, lying on its side."""
    return np.broadcast_to(np.uint8(255), (*size, 3))


# ---- the corpus -------------------------------------------------------------------------

NOISE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
WHOLE = {
    "jpeg": saved(NOISE, "JPEG"),
    "jpeg-progressive": saved(NOISE, "JPEG", progressive=True),
    "png": saved(NOISE, "PNG"),
    "webp": saved(NOISE, "WEBP"),
    "webp-lossless": saved(NOISE, "WEBP", lossless=True),
    "gif": saved(NOISE, "GIF"),
    "bmp": saved(NOISE, "BMP"),
    "tiff": saved(NOISE, "TIFF"),
    "tiff-lzw": saved(NOISE, "TIFF", compression="tiff_lzw"),
    "tiff-deflate": saved(NOISE, "TIFF", compression="tiff_adobe_deflate"),
}
LOSSLESS = {"png", "webp-lossless", "bmp", "tiff", "tiff-lzw", "tiff-deflate"}


def damaged() -> Iterator[tuple[str, Case]]:
    """Each format whole, cut short, followed by garbage, and with bytes changed."""
    rng = random.Random(0)
    for kind, content in WHOLE.items():
        exact = NOISE if kind in LOSSLESS else None
        yield kind, Case(content, exact)
        yield f"{kind}-garbage-after", Case(content + b"garbage" * 50, exact)
        for tenth in range(1, 10):
            yield f"{kind}-cut-{tenth}", Case(content[: len(content) * tenth // 10], reason="")
        yield f"{kind}-cut-last", Case(content[:-1])
        for time in range(3):
            changed = bytearray(content)
            for _ in range(1 + 4 * time):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            yield f"{kind}-changed-{time}", Case(bytes(changed))


def strangers() -> Iterator[tuple[str, Case]]:
    """What is no picture, or none that is read."""
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
    page = b"<!DOCTYPE html><html><title>404 Not Found</title></html>\n"
    psd = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(200)
    avif = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(100)
    contents = {"empty": b"", "one-byte": b"\xff", "text": b"hello\n", "html": page, "svg": svg}
    contents |= {"psd": psd, "avif": avif, "zeros": bytes(1000)}
    contents |= {kind.lower(): saved(smooth(), kind) for kind in ("EPS", "ICO", "PPM", "PDF")}
    return ((name, Case(content, reason=NO_PICTURE)) for name, content in contents.items())


def colours() -> Iterator[tuple[str, Case]]:
    """Print colours, palettes and transparency."""
    cmyk = saved(Image.new("CMYK", (16, 8), (55, 105, 155, 0)), "JPEG", quality=100)
    shown = np.full((8, 16, 3), (200, 150, 100), np.uint8)
    yield "cmyk-adobe", Case(cmyk, shown, 4)
    yield "cmyk-tiff", Case(saved(Image.new("CMYK", (16, 8), (55, 105, 155, 0)), "TIFF"), shown)
    # Without Adobe's marker ink is not stored inverted: 200, 150, 100, 0 of it.
    plain = saved(Image.new("CMYK", (16, 8), (55, 105, 155, 255)), "JPEG", quality=100)
    start = plain.index(b"\xff\xee")
    plain = plain[:start] + plain[start + 16 :]
    yield "cmyk-plain", Case(plain, np.full((8, 16, 3), (55, 105, 155), np.uint8), 4)
    # Luma 200 without chroma is ink of 55, stored inverted: 200 of each, so grey 55.
    ycck = bytearray(saved(Image.new("CMYK", (16, 8), (55, 127, 127, 0)), "JPEG", quality=100))
    ycck[ycck.index(b"Adobe") + 11] = 2
    yield "ycck", Case(bytes(ycck), np.full((8, 16, 3), 55, np.uint8), 4)

    palette = chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]))
    half = np.array([[[255, 0, 0], [127, 255, 127], [0, 0, 255]]], np.uint8)
    data = png((3, 1), 8, 3, bytes([0, 1, 2]), palette, chunk(b"tRNS", b"\xff\x80"))
    yield "palette-half", Case(data, half, 1)
    la, rgba = png((2, 1), 8, 4, bytes([9, 0, 0, 128])), png((1, 1), 8, 6, bytes([0, 0, 0, 51]))
    yield "grey-alpha", Case(la, grey(255, 127), 1)
    yield "rgba", Case(rgba, grey(204), 1)
    yield "grey-key", Case(png((2, 1), 8, 0, b"\7\10", chunk(b"tRNS", b"\0\7")), grey(255, 8))
    two = png((4, 1), 2, 0, b"\x1b", chunk(b"tRNS", b"\0\2"))
    yield "grey-key-2-bit", Case(two, grey(0, 85, 255, 255))
    four = png((2, 1), 4, 0, b"\x07", chunk(b"tRNS", b"\0\7"))
    yield "grey-key-4-bit", Case(four, grey(0, 255))
    key = chunk(b"tRNS", struct.pack(">H", 300))
    deep = png((3, 1), 16, 0, struct.pack(">3H", 300, 301, 65535), key)
    yield "grey-key-16-bit", Case(deep, grey(255, 1, 255))
    key = chunk(b"tRNS", struct.pack(">3H", 300, 0, 65535))
    wide = png((2, 1), 16, 2, struct.pack(">6H", 300, 0, 65535, 900, 0, 65535), key)
    yield "rgb-key-16-bit", Case(wide, np.array([[[255, 255, 255], [3, 0, 255]]], np.uint8), 1)


def depths() -> Iterator[tuple[str, Case]]:
    """1 to 32 bits a sample."""
    row = (3, 1)
    deep = grey(0, 128, 255)
    yield "png-16", Case(png(row, 16, 0, struct.pack(">3H", 0, 32768, 65535)), deep)
    rgb = png((1, 1), 16, 2, struct.pack(">3H", 0, 32768, 65535))
    yield "png-rgb-16", Case(rgb, np.array([[[0, 128, 255]]], np.uint8))
    yield "png-1", Case(png(row, 1, 0, b"\xa0"), grey(255, 0, 255))
    bits = Image.fromarray(np.array([[True, False, True]]))
    for kind in ("TIFF", "BMP"):
        yield f"{kind}-1", Case(saved(bits, kind), grey(255, 0, 255))
    words = struct.pack("<3H", 0, 32768, 65535)
    yield "tiff-16", Case(tiff(row, 16, words), deep)
    yield "tiff-16-white-is-zero", Case(tiff(row, 16, words, light=0), grey(255, 127, 0))
    # Two samples in three bytes: 0, 2048, 4095, 0.
    yield "tiff-12", Case(tiff((4, 1), 12, b"\0\x08\0\xff\xf0\0"), grey(0, 128, 255, 0))
    ints = struct.pack("<3i", -(2**31), 0, 2**31 - 1)
    yield "tiff-32", Case(tiff(row, 32, ints, form=2), deep, 1)
    yield "tiff-float", Case(tiff(row, 32, struct.pack("<3f", 0, 0.5, 1), form=3), deep)
    nan = struct.pack("<3f", float("nan"), 0.5, float("inf"))
    yield "tiff-float-nan", Case(tiff(row, 32, nan, form=3), grey(0, 128, 0))


def annotated() -> Iterator[tuple[str, Case]]:
    """EXIF that turns, EXIF and ICC that are broken, and more frames than one."""
    up = smooth()
    stored = {1: up, 2: up[:, ::-1], 3: up[::-1, ::-1], 4: up[::-1], 5: up.transpose(1, 0, 2)}
    stored |= {6: np.rot90(up), 7: up[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(up, -1)}
    for way, pixels in stored.items():
        upright = np.ascontiguousarray(pixels)
        content = saved(upright, "JPEG", quality=95, subsampling=0, exif=oriented(way))
        yield f"jpeg-way-{way}", Case(content, up, 8, turned=way > 1)
        for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
            if way in (6, 7):
                content = saved(upright, kind, exif=oriented(way), **options)
                yield f"{kind}-way-{way}", Case(content, up, turned=True)
    for name, exif in {"junk": b"junk", "cut": b"Exif\0\0II*\0\xff\xff\xff\xff"}.items():
        yield f"exif-{name}", Case(saved(up, "PNG", exif=exif), up)
        yield f"exif-{name}-jpeg", Case(saved(up, "JPEG", quality=95, exif=exif), up, 20)
    yield "icc-junk", Case(saved(up, "PNG", icc_profile=b"junk" * 9), up)
    # Pillow can read the orientation of this one and cannot write the rest back.
    odd = (
        b"Exif\0\0"
        + b"MM\0*\0\0\0\x08\0\2\1\x12\0\3\0\0\0\1\0\3\0\0\x87\x69\0\4\0\0\0\1\xff\xff\xff\xf0"
    )
    yield "exif-odd", Case(saved(up[::-1, ::-1], "PNG", exif=odd + bytes(4)), up, turned=True)
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "lime", "blue")]
    red = np.full((8, 16, 3), (255, 0, 0), np.uint8)
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        yield f"{kind}-frames", Case(content, red, 2, frames=True)
    # The first frame is whole, the second is not.
    gif = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield "GIF-frames-cut", Case(gif[:-30], red, 2, frames=True)


def bombs() -> Iterator[tuple[str, Case]]:
    """Small files with large claims."""
    huge = struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)
    empty = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", huge) + empty
    yield "bomb-png", Case(bomb, reason=TOO_LARGE)
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(64_000_000), 1))
    yield "bomb-text", Case(png((1, 1), 8, 0, b"\0", text), reason="")
    gif = bytearray(WHOLE["gif"])
    gif[6:10] = struct.pack("<HH", 60000, 60000)
    yield "bomb-gif", Case(bytes(gif), reason=TOO_LARGE)
    bmp = bytearray(WHOLE["bmp"])
    bmp[18:26] = struct.pack("<ii", 2**30, 2**30)
    yield "bomb-bmp", Case(bytes(bmp), reason=TOO_LARGE)
    yield "bomb-tiff", Case(tiff((65535, 65535), 8, b"\0"), reason=TOO_LARGE)
    jpeg = bytearray(WHOLE["jpeg"])
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65000, 65000)
    yield "bomb-jpeg", Case(bytes(jpeg), reason=TOO_LARGE)
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\x3f\x42\x0f\xff\x0f\x00"
    yield "bomb-webp", Case(b"RIFF" + struct.pack("<I", len(body)) + body, reason="")
    for size in ((20_000, 1), (1, 20_000), (20_000, 4_000)):
        yield (
            "strip-{}x{}".format(*size),
            Case(png(size, 8, 4, b"", TURN), white(size), turned=True),
        )


def largest() -> Iterator[tuple[str, Case]]:
    """Pictures just under the cap, of the kinds that take most memory."""
    size, shown = (SIDE, SIDE), white((SIDE, SIDE))
    yield "large-rgba", Case(png(size, 8, 6, b"", TURN), shown, turned=True)
    key = chunk(b"tRNS", b"\0\0")
    yield "large-grey-16", Case(png(size, 16, 0, b"", TURN, key), shown, turned=True)
    palette = chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", b"\0\x80")
    yield "large-palette", Case(png(size, 8, 3, b"", palette), shown)
    yield "large-float", Case(tiff(size, 32, b"", form=3), shown - np.uint8(255))
    cmyk = saved(Image.new("CMYK", size), "JPEG", exif=oriented(6))
    yield "large-cmyk", Case(cmyk, shown, turned=True)


def corpus() -> dict[str, Case]:
    """Every file, by its name."""
    parts = (damaged(), strangers(), colours(), depths(), annotated(), bombs(), largest())
    return dict(pair for part in parts for pair in part)


def places(folder: Path) -> dict[str, tuple[str, str | None]]:
    """Odd names and things that are no files: path, and why it is refused, None where it is not."""
    (folder / "target.jpg").write_bytes(WHOLE["png"])
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "fifo.jpg")
    for link, target in {"link": "target.jpg", "loop": "loop.jpg", "gone": "no.jpg"}.items():
        (folder / f"{link}.jpg").symlink_to(target)
    (folder / "zero.jpg").symlink_to("/dev/zero")
    locked = folder / "locked.jpg"
    locked.write_bytes(WHOLE["png"])
    locked.chmod(0)
    found: dict[str, tuple[str, str | None]] = {
        "link.jpg": ("link.jpg", None),
        "loop.jpg": ("loop.jpg", "Too many levels of symbolic links"),
        "gone.jpg": ("gone.jpg", "no such file"),
        "no\nfile.jpg": ("no\nfile.jpg", "no such file"),
        "nul": ("a\0b.jpg", "null byte"),
        "folder.jpg": ("folder.jpg", "not a regular file"),
        "below a file": ("target.jpg/b.jpg", "Not a directory"),
        "long": ("x" * 300, "File name too long"),
        "fifo.jpg": ("fifo.jpg", "not a regular file"),
        "device": ("zero.jpg", "not a regular file"),
        # The superuser may read anything.
        "locked": ("locked.jpg", "Permission denied" if os.geteuid() else None),
    }
    for name in (
        "new\nline.jpg",
        "tab\t.jpg",
        "\u00e9.jpg",
        unicodedata.normalize("NFD", "\u00f6.jpg"),
    ):
        (folder / name).write_bytes(WHOLE["png"])
        found[name] = (name, None)
    return found


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """The corpus."""
    return corpus()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, cases: dict[str, Case]) -> dict[str, Any]:
    """What a process that decodes and inspects every file has to say."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = {name: str(folder / path) for name, (path, _) in places(folder).items()}
    for name, case in cases.items():
        paths[name] = str(folder / f"{name}.jpg")
        Path(paths[name]).write_bytes(case.content)
        if name == "large-float":
            os.truncate(paths[name], 134 + 4 * SIDE * SIDE)  # the rest is a hole, of zeros
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(paths),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return {**told, "noise": done.stderr}


@pytest.fixture(scope="module")
def verdicts(report: dict[str, Any]) -> Verdicts:
    """Name -> path, and what `decode` and `inspect` said."""
    return dict(report["verdicts"])


# ---- the tests --------------------------------------------------------------------------


def refused(verdict: dict[str, Any]) -> str | None:
    """The reason, or None where the file was decoded."""
    reason: str | None = verdict["decode"].get("reason")
    return reason


def difference(verdict: dict[str, Any], pixels: Pixels) -> int:
    """Levels between what was decoded and these pixels; 256 where the shape is another."""
    decoded = verdict["decode"]
    if decoded.get("shape") != list(pixels.shape):
        return 256
    if decoded["pixels"] is None:
        return 0
    return int(np.abs(np.array(decoded["pixels"]) - pixels.astype(int)).max())


def test_nothing_but_an_image_error_is_ever_raised(verdicts: Verdicts) -> None:
    """Over a hundred files, and each is an RGB picture or an ImageError."""
    assert len(verdicts) > 250
    looks = {name: (seen["decode"], seen["inspect"]) for name, seen in verdicts.items()}
    assert not [name for name, pair in looks.items() if any("crash" in look for look in pair)]
    pictures = [decoded for decoded, _ in looks.values() if "reason" not in decoded]
    assert all(decoded["type"] == "uint8" for decoded in pictures)
    assert all(decoded["shape"][2:] == [3] for decoded in pictures)


def test_an_error_names_its_file_once_and_says_why_in_a_line(verdicts: Verdicts) -> None:
    """A log line is the file and the reason."""
    for verdict in verdicts.values():
        for look in (verdict["decode"], verdict["inspect"]):
            if "reason" in look:
                assert look["said"] == f"{verdict['path']}: {look['reason']}"
                assert look["said"].count(verdict["path"]) == 1
                assert look["reason"].strip() == look["reason"] != ""
                assert len(look["reason"].splitlines()) == 1


def test_what_is_a_picture_shows_what_was_drawn(verdicts: Verdicts, cases: dict[str, Case]) -> None:
    """Pixels are those worked out by hand, exactly, or nearly so where the format loses some."""
    wrong = {
        name: (distance, refused(verdicts[name]))
        for name, case in cases.items()
        if case.pixels is not None
        and (distance := difference(verdicts[name], case.pixels)) > case.off
    }
    assert not wrong


def test_what_is_no_picture_is_refused(verdicts: Verdicts, cases: dict[str, Case]) -> None:
    """Bombs, strangers and every file that ends early, each for its reason."""
    wrong = {
        name: refused(verdicts[name])
        for name, case in cases.items()
        if case.reason is not None and case.reason not in (refused(verdicts[name]) or "?")
    }
    assert not wrong
    assert all(refused(verdicts[n]) for n, case in cases.items() if case.reason is not None)


@pytest.mark.parametrize("kind", WHOLE)
def test_the_last_byte_matters_or_nothing_is_lost(verdicts: Verdicts, kind: str) -> None:
    """A file short of its last byte is refused, or shows all that the whole file shows."""
    short = verdicts[f"{kind}-cut-last"]
    if refused(short) is None:
        assert short["decode"] == verdicts[kind]["decode"]


@pytest.mark.parametrize("kind", WHOLE)
def test_garbage_behind_a_picture_is_ignored(verdicts: Verdicts, kind: str) -> None:
    """Cameras and mail programs append all kinds of things."""
    assert verdicts[f"{kind}-garbage-after"]["decode"] == verdicts[kind]["decode"]


def test_odd_places(verdicts: Verdicts, tmp_path: Path) -> None:
    """Names of every kind are read; links, pipes, devices and folders have their reasons."""
    for name, (_, reason) in places(tmp_path).items():
        if reason is None:
            assert difference(verdicts[name], NOISE) == 0, name
        else:
            assert reason in (refused(verdicts[name]) or ""), name


def test_inspect_fails_exactly_where_decode_does(verdicts: Verdicts) -> None:
    """And for the same reason."""
    wrong = {
        name: (refused(seen), seen["inspect"].get("reason"))
        for name, seen in verdicts.items()
        if refused(seen) != seen["inspect"].get("reason")
    }
    assert not wrong


def test_inspect_tells_what_a_picture_is(verdicts: Verdicts, cases: dict[str, Case]) -> None:
    """Its turn, its frames, its size as stored, its digest."""
    for name, case in cases.items():
        seen, shape = verdicts[name]["inspect"], verdicts[name]["decode"].get("shape")
        if case.pixels is None or shape is None:
            continue
        assert (seen["turned"], seen["frames_dropped"]) == (case.turned, case.frames), name
        assert sorted((seen["width"], seen["height"])) == sorted(shape[:2]), name
        if name != "large-float":
            assert seen["digest"] == hashlib.sha256(case.content).hexdigest(), name
    stored = [verdicts[f"{kind}-way-6"]["inspect"] for kind in ("jpeg", "PNG", "TIFF", "WEBP")]
    assert [(seen["width"], seen["height"]) for seen in stored] == [(24, 40)] * 4
    assert [seen["format"] for seen in stored] == ["JPEG", "PNG", "TIFF", "WEBP"]
    modes = [verdicts[n]["inspect"]["mode"] for n in ("ycck", "png-16", "tiff-float", "rgba")]
    assert modes == ["CMYK", "I;16", "F", "RGBA"]


def test_the_hash_is_of_what_is_seen(verdicts: Verdicts) -> None:
    """The turn, the format and the compression do not change it; a mirror image does."""
    hashes = {name: int(seen["inspect"].get("dhash", "0"), 16) for name, seen in verdicts.items()}
    same = [name for name in hashes if "-way-" in name]
    assert len(same) == 14
    assert max((hashes[name] ^ hashes["jpeg-way-1"]).bit_count() for name in same) <= 4
    assert hashes["jpeg-way-1"].bit_count() > 100
    # Alpha is on white; a white page has no steps.
    assert hashes["strip-20000x1"] == hashes["rgba"] == 0


def test_memory_and_silence(report: dict[str, Any]) -> None:
    """The largest pictures allowed, decoded and inspected, need less than 2 GiB; no warnings."""
    peak = report["peak"] * (1 if sys.platform == "darwin" else 1024)
    assert peak < 2 * 2**30
    assert report["noise"] == ""
