"""A corpus of damaged, odd and malicious files, decoded and inspected in one real process.

Expected pixels are worked out here, by hand; Pillow writes files, and is no oracle.
"""

import csv
import hashlib
import io
import json
import os
import random
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import Promise, Run, prepare
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Verdicts = dict[str, dict[str, Any]]
Cases = Iterator[tuple[str, "Case"]]

ROOT = Path(__file__).parents[3]
SIDE = 9433  # squared, just under the cap
NO_PICTURE = "not a JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF picture"

CHILD = """
import json, re, resource, sys
from dataclasses import asdict
from pathlib import Path
from mlfinetune.data.images.decode import decode_image, inspect_image
from mlfinetune.errors import ImageError
def attempt(look, path):
    try: return look(Path(path), 89_000_000)
    except ImageError as error: return {"said": str(error), "reason": error.reason}
    except BaseException as error: return {"crash": repr(error)}
def high_water():
    "Bytes; not from ru_maxrss where that begins with the peak of the parent, as on Linux."
    if sys.platform == "darwin": return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * int(re.search(r"VmHWM:\\s+([0-9]+)", Path("/proc/self/status").read_text())[1])

verdicts = {}
for name, path in json.load(sys.stdin).items():
    pixels, picture = attempt(decode_image, path), attempt(inspect_image, path)
    if not isinstance(pixels, dict):
        kept = pixels if pixels.size < 20_000 else pixels.reshape(-1, 3)[[0, 1000, -1]]
        pixels = {"shape": pixels.shape, "type": str(pixels.dtype), "pixels": kept.tolist()}
    picture = picture if isinstance(picture, dict) else asdict(picture)
    peak = high_water()
    verdicts[name] = {"path": path, "decode": pixels, "inspect": picture, "peak": peak}
json.dump(verdicts, sys.stdout)
"""


class Case(NamedTuple):
    """A file, and what it shows, give or take `off` levels, or a part of why it is refused."""

    content: bytes
    pixels: Pixels | None = None
    off: int = 0
    reason: str | None = None
    frames: bool = False
    turned: bool = False


def saved(image: Image.Image | Pixels, kind: str, **options: Any) -> bytes:
    """Return the bytes of a file of this kind."""
    file, drawn = io.BytesIO(), isinstance(image, Image.Image)
    (image if drawn else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return one chunk of a PNG file."""
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(size: tuple[int, int], depth: int, colour: int, data: bytes, *extra: bytes) -> bytes:
    """Return a PNG of one row of samples, above rows of zeros; `extra` chunks stand before them."""
    width, height = size
    line = 1 + (width * depth * {2: 3, 4: 2, 6: 4}.get(colour, 1) + 7) // 8
    packer = zlib.compressobj(1)
    body = packer.compress(b"\0" + data.ljust(line - 1, b"\0"))
    body += b"".join(packer.compress(bytes(line)) for _ in range(height - 1)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    chunks = [header, *extra, chunk(b"IDAT", body), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(size: tuple[int, int], bits: int, data: bytes, form: int = 1, light: int = 1) -> bytes:
    """Return a raw grey TIFF; `form`: 1 unsigned, 2 signed, 3 float; `light` 0: zero is white."""
    tags = {256: size[0], 257: size[1], 258: bits, 259: 1, 262: light, 273: 134}
    tags |= {277: 1, 278: size[1], 279: size[0] * size[1] * bits // 8, 339: form}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0" + data


def patched(content: bytes, at: int, patch: bytes) -> bytes:
    """Return a file with some bytes replaced."""
    return content[:at] + patch + content[at + len(patch) :]


def grey(*levels: int) -> Pixels:
    """Return one row of grey."""
    return np.repeat(np.array(levels, np.uint8)[None, :, None], 3, axis=2)


def flat(height: int, width: int, *colour: int) -> Pixels:
    """Return one colour, without the memory for it."""
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3))


def oriented(way: int) -> bytes:
    """Return EXIF with this orientation of the camera."""
    return b"Exif\0\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x0112, 3, 1, way) + bytes(4)


NOISE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
WHOLE = {kind.lower(): saved(NOISE, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP")} | {
    "jpeg-progressive": saved(NOISE, "JPEG", progressive=True),
    "webp-lossless": saved(NOISE, "WEBP", lossless=True),
    "tiff": saved(NOISE, "TIFF"),
    "tiff-lzw": saved(NOISE, "TIFF", compression="tiff_lzw"),
    "tiff-deflate": saved(NOISE, "TIFF", compression="tiff_adobe_deflate"),
}
LOSSY = {"jpeg", "jpeg-progressive", "webp", "gif"}


def damaged() -> Cases:
    """Return each format complete, cut short, followed by garbage, and with bytes changed."""
    rng = random.Random(0)
    for kind, content in WHOLE.items():
        exact = None if kind in LOSSY else NOISE
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


def strangers() -> Cases:
    """Return files that are no pictures, or of formats that are not read."""
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
    page = b"<!DOCTYPE html><html><title>404 Not Found</title></html>\n"
    psd = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(200)
    avif = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(100)
    contents = {"one-byte": b"\xff", "text": b"hello\n", "html": page, "svg": svg}
    contents |= {"psd": psd, "zeros": bytes(1000)}
    contents |= {kind.lower(): saved(NOISE, kind) for kind in ("EPS", "ICO", "PPM", "PDF")}
    yield "empty", Case(b"", reason="an empty file")
    yield "avif", Case(avif, reason="cannot be decoded (a damaged AVIF file)")
    yield from ((name, Case(content, reason=NO_PICTURE)) for name, content in contents.items())


def colours() -> Cases:
    """Return files with ink, which JPEG stores inverted, and with transparency on white."""
    ink, shown = Image.new("CMYK", (16, 8), (55, 105, 155, 0)), flat(8, 16, 200, 150, 100)
    adobe = saved(ink, "JPEG", quality=100)
    at = adobe.index(b"\xff\xee")
    yield "cmyk-adobe", Case(adobe, shown, 4)
    yield "cmyk-plain", Case(adobe[:at] + adobe[at + 16 :], shown, 4)
    yield "cmyk-tiff", Case(saved(ink, "TIFF"), shown)
    # Stored as luma 200 without chroma: ink of 55, to be inverted to 200, which shows as 55.
    ycck = saved(Image.new("CMYK", (16, 8), (55, 127, 127, 0)), "JPEG", quality=100)
    yield "ycck", Case(patched(ycck, ycck.index(b"Adobe") + 11, b"\2"), flat(8, 16, 55, 55, 55), 4)
    palette = chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]))
    half = np.array([[[255, 0, 0], [127, 255, 127], [0, 0, 255]]], np.uint8)
    shown = png((3, 1), 8, 3, b"\0\1\2", palette, chunk(b"tRNS", b"\xff\x80"))
    yield "palette-half", Case(shown, half, 1)
    yield "grey-alpha", Case(png((2, 1), 8, 4, bytes([9, 0, 0, 128])), grey(255, 127), 1)
    yield "rgba", Case(png((1, 1), 8, 6, bytes([0, 0, 0, 51])), grey(204), 1)
    key = chunk(b"tRNS", b"\0\1")
    yield "grey-key-1-bit", Case(png((2, 1), 1, 0, b"\x40", key), grey(0, 255))
    yield "grey-key-2-bit", Case(png((4, 1), 2, 0, b"\x1b", key), grey(0, 255, 170, 255))
    yield "grey-key-4-bit", Case(png((3, 1), 4, 0, b"\x01\x20", key), grey(0, 255, 34))
    yield "grey-key", Case(png((3, 1), 8, 0, b"\0\1\2", key), grey(0, 255, 2))
    key, deep = chunk(b"tRNS", struct.pack(">H", 300)), struct.pack(">3H", 300, 301, 65535)
    yield "grey-key-16-bit", Case(png((3, 1), 16, 0, deep, key), grey(255, 1, 255))
    key = chunk(b"tRNS", struct.pack(">3H", 300, 0, 65535))
    deep = struct.pack(">6H", 300, 0, 65535, 900, 0, 65535)
    pair = np.array([[[255, 255, 255], [3, 0, 255]]], np.uint8)
    yield "rgb-key-16-bit", Case(png((2, 1), 16, 2, deep, key), pair, 1)


def depths() -> Cases:
    """Return files with 1 to 32 bits a sample."""
    row, steps = (3, 1), grey(0, 128, 255)
    big, little = (struct.pack(f"{order}3H", 0, 32768, 65535) for order in "><")
    yield "png-1", Case(png(row, 1, 0, b"\xa0"), grey(255, 0, 255))
    yield "png-16", Case(png(row, 16, 0, big), steps)
    yield "png-rgb-16", Case(png((1, 1), 16, 2, big), np.array([[[0, 128, 255]]], np.uint8))
    for kind in ("TIFF", "BMP"):
        bits = Image.fromarray(np.array([[True, False, True]]))
        yield f"{kind}-1", Case(saved(bits, kind), grey(255, 0, 255))
    # Two samples in three bytes: 0, 2048, 4095, 0.
    yield "tiff-12", Case(tiff((4, 1), 12, b"\0\x08\0\xff\xf0\0"), grey(0, 128, 255, 0))
    yield "tiff-16", Case(tiff(row, 16, little), steps)
    yield "tiff-16-white-is-zero", Case(tiff(row, 16, little, light=0), grey(255, 127, 0))
    extremes = struct.pack("<3i", -(2**31), 0, 2**31 - 1)
    yield "tiff-32", Case(tiff(row, 32, extremes, form=2), steps, 1)
    odd = struct.pack("<5f", 0, 0.5, 1, float("nan"), float("inf"))
    yield "tiff-float", Case(tiff((5, 1), 32, odd, form=3), grey(0, 128, 255, 0, 0))


def annotated() -> Cases:
    """Return files whose EXIF turns, with broken EXIF and ICC, and with several frames."""
    rows, columns = np.mgrid[0:24, 0:40]
    up = np.stack([columns * 6, rows * 11, rows + columns], axis=2).astype(np.uint8)
    stored = {1: up, 2: up[:, ::-1], 3: up[::-1, ::-1], 4: up[::-1], 5: up.transpose(1, 0, 2)}
    stored |= {6: np.rot90(up), 7: up[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(up, -1)}
    for way, pixels in stored.items():
        options = {"exif": oriented(way), "quality": 95, "subsampling": 0}
        side = np.ascontiguousarray(pixels)
        yield f"JPEG-way-{way}", Case(saved(side, "JPEG", **options), up, 8, turned=way > 1)
        for kind in ("PNG", "TIFF", "WEBP") if way in (6, 7) else ():
            content = saved(side, kind, exif=oriented(way), lossless=True)
            yield f"{kind}-way-{way}", Case(content, up, turned=True)
    yield "broken-png", Case(saved(up, "PNG", exif=b"junk", icc_profile=b"junk" * 9), up)
    yield "broken-jpeg", Case(saved(up, "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff"), up, 20)
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        yield f"{kind}-frames", Case(content, flat(8, 16, 255, 0, 0), 2, frames=True)
        if kind == "GIF":  # the first frame is whole
            yield "GIF-cut", Case(content[:-30], flat(8, 16, 255, 0, 0), frames=True)


def bombs() -> Cases:
    """Return small files with large claims, and large pictures, up to the cap."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0))
    contents = {
        "png": patched(WHOLE["png"], 8, header),
        "gif": patched(WHOLE["gif"], 6, b"\xff" * 4),
        "bmp": patched(WHOLE["bmp"], 18, struct.pack("<ii", 2**30, 2**30)),
        "jpeg": patched(WHOLE["jpeg"], WHOLE["jpeg"].index(b"\xff\xc0") + 5, b"\xf0" * 4),
        "webp": patched(WHOLE["webp-lossless"], 21, struct.pack("<I", 2**28 - 1)),
        "tiff": tiff((65535, 65535), 8, b"\0"),
    }
    for kind, content in contents.items():
        yield f"bomb-{kind}", Case(content, reason="more than data.max_pixels")
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(64_000_000), 1))
    yield "bomb-text", Case(png((1, 1), 8, 0, b"\0", text), reason="cannot be decoded")
    turn = chunk(b"eXIf", oriented(6)[6:])
    for size in ((20_000, 1), (1, 20_000), (20_000, 4_000)):
        pixels = flat(*size, 0, 0, 0)
        yield "strip-{}x{}".format(*size), Case(png(size, 8, 0, b"", turn), pixels, turned=True)
    size, pixels = (SIDE, SIDE), flat(SIDE, SIDE, 255, 255, 255)
    yield "large-rgba", Case(png(size, 8, 6, b"", turn), pixels, turned=True)
    yield "large-float", Case(tiff(size, 32, b"", form=3), flat(SIDE, SIDE, 0, 0, 0))
    cmyk = saved(Image.new("CMYK", size), "JPEG", exif=oriented(6))
    yield "large-cmyk", Case(cmyk, pixels, turned=True)


def places(folder: Path) -> dict[str, str | None]:
    """Return odd names and entries that are no files -> the reason; None: they are read."""
    read = ["new\nline.jpg", "tab\t.jpg", "\u00e9.jpg", "o\u0308.jpg", "target.jpg", "locked.jpg"]
    for name in read:
        (folder / name).write_bytes(WHOLE["png"])
    (folder / "locked.jpg").chmod(0)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "fifo.jpg")
    links = {"link": "target.jpg", "loop": "loop.jpg", "gone": "no.jpg", "device": "/dev/zero"}
    for link, target in links.items():
        (folder / f"{link}.jpg").symlink_to(target)
    return dict.fromkeys([*read, "link.jpg"]) | {
        "loop.jpg": "Too many levels of symbolic links",
        "gone.jpg": "no such file",
        "no\nfile.jpg": "no such file",
        "a\0b.jpg": "embedded null",
        "folder.jpg": "not a regular file",
        "target.jpg/b.jpg": "Not a directory",
        "x" * 300: "File name too long",
        "fifo.jpg": "not a regular file",
        "device.jpg": "not a regular file",
        # The superuser may read anything.
        "locked.jpg": "Permission denied" if os.geteuid() else None,
    }


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """Return every file, by its name."""
    parts = (damaged, strangers, colours, depths, annotated, bombs)
    return dict(pair for part in parts for pair in part())


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory, cases: dict[str, Case]) -> Verdicts:
    """Return the output of a process that decodes and inspects every file; it ends in time."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = {name: str(folder / name) for name in places(folder)}
    for name, case in cases.items():
        paths[name] = str(folder / f"{name}.jpg")
        Path(paths[name]).write_bytes(case.content)
    # The samples are a hole in the file, zeros that take no room.
    os.truncate(paths["large-float"], 134 + 4 * SIDE * SIDE)
    call, told = [sys.executable, "-c", CHILD], json.dumps(paths)
    done = subprocess.run(call, input=told, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return dict(json.loads(done.stdout))


def refused(verdict: dict[str, Any]) -> str | None:
    """Return the reason, or None where the file was decoded."""
    return verdict["decode"].get("reason")


def difference(verdict: dict[str, Any], pixels: Pixels) -> int:
    """Return the largest difference from these pixels in levels; 256: another shape."""
    if verdict["decode"].get("shape") != list(pixels.shape):
        return 256
    decoded = np.array(verdict["decode"]["pixels"])
    return int(np.abs(decoded - (pixels if decoded.ndim == 3 else pixels[0, 0]).astype(int)).max())


def test_nothing_but_an_image_error_is_ever_raised(verdicts: Verdicts) -> None:
    """Of more than 200 files each is an RGB picture or an ImageError."""
    assert len(verdicts) > 200
    assert not {n: v for n, v in verdicts.items() if "crash" in v["decode"] | v["inspect"]}
    assert {v["decode"]["type"] for v in verdicts.values() if refused(v) is None} == {"uint8"}


def test_decode_and_inspect_refuse_the_same(verdicts: Verdicts) -> None:
    """In the same words: the file, named once, and the reason in one line."""
    for name, verdict in verdicts.items():
        reason = refused(verdict)
        assert verdict["inspect"].get("reason") == reason, name
        if reason is not None:
            assert verdict["decode"]["said"] == f"{verdict['path']}: {reason}", name
            assert verdict["path"] not in reason, name
            assert reason.strip().splitlines() == [reason], name


def test_what_is_a_picture_shows_what_was_drawn(verdicts: Verdicts, cases: dict[str, Case]) -> None:
    """Pixels are those worked out by hand, exactly, or nearly so where the format loses some."""
    drawn = {name: case for name, case in cases.items() if case.pixels is not None}
    far = {name: difference(verdicts[name], case.pixels) for name, case in drawn.items()}
    wrong = {n: (far[n], refused(verdicts[n])) for n, case in drawn.items() if far[n] > case.off}
    assert not wrong


def test_what_is_no_picture_is_refused(verdicts: Verdicts, cases: dict[str, Case]) -> None:
    """Bombs, strangers and every file that ends early, each for its reason."""
    for name, case in cases.items():
        if case.reason is not None:
            said = refused(verdicts[name])
            assert said, name
            assert case.reason in said, name


def test_ends_of_files(verdicts: Verdicts) -> None:
    """Garbage behind a picture is ignored; without its last byte all of it shows, or none."""
    for kind in WHOLE:
        whole, short = verdicts[kind]["decode"], verdicts[f"{kind}-cut-last"]
        assert verdicts[f"{kind}-garbage-after"]["decode"] == whole, kind
        assert refused(short) or short["decode"] == whole, kind


def test_odd_places(verdicts: Verdicts, tmp_path: Path) -> None:
    """Names of every kind are read; links, pipes, devices and folders have their reasons."""
    for name, reason in places(tmp_path).items():
        assert (reason or "nothing") in (refused(verdicts[name]) or "nothing"), name
        assert reason or difference(verdicts[name], NOISE) == 0, name


def test_inspect_tells_what_a_picture_is(verdicts: Verdicts, cases: dict[str, Case]) -> None:
    """Its turn, its frames, its size as stored, its digest."""
    for name, case in cases.items():
        seen = verdicts[name]["inspect"]
        if case.pixels is not None:
            assert (seen["turned"], seen["frames_dropped"]) == (case.turned, case.frames), name
            if name != "large-float":
                assert seen["digest"] == hashlib.sha256(case.content).hexdigest(), name
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        seen = verdicts[f"{kind}-way-6"]["inspect"]
        assert (seen["format"], seen["width"], seen["height"]) == (kind, 24, 40)
    modes = [verdicts[n]["inspect"]["mode"] for n in ("ycck", "png-16", "tiff-float", "rgba")]
    assert modes == ["CMYK", "I;16", "F", "RGBA"]


def test_the_hash_is_of_what_is_seen(verdicts: Verdicts) -> None:
    """The turn, the format and the compression do not change it; a white page has no steps."""
    same = [int(v["inspect"]["dhash"], 16) for name, v in verdicts.items() if "-way-" in name]
    assert len(same) == 14
    assert max((one ^ same[0]).bit_count() for one in same) <= 4
    # Brighter to the right and downwards, everywhere.
    assert min(one.bit_count() for one in same) > 124
    assert int(verdicts["large-rgba"]["inspect"]["dhash"], 16) == 0


def test_memory(verdicts: Verdicts) -> None:
    """The largest pictures allowed, decoded and inspected, need less than 2 GiB."""
    assert max(verdict["peak"] for verdict in verdicts.values()) < 2 * 2**30


# ---- each is named once -----------------------------------------------------------------


@pytest.mark.faults
def test_each_bad_file_is_named_once_with_a_reason(
    tmp_path: Path, cases: dict[str, Case], cli: Run, promise: Promise
) -> None:
    """P13: check, train and predict name every bad file of more than 100; the counts add up."""
    prepare(tmp_path)
    bad = {
        f"images/{name}.jpg": case.content
        for name, case in cases.items()
        if case.reason is not None
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    with (tmp_path / "tags.csv").open("a") as file:
        file.writelines(f"{name},red\n" for name in bad)
    lines = {f"line {at}": name for at, name in enumerate(bad, 26)}

    done = cli("check", "pets.yaml", "--json", cwd=tmp_path)
    items = [item for f in json.loads(done.stdout)["findings"] for item in f["items"]]
    checked = Counter(lines.get(item.partition(":")[0]) for item in items if "line" in item[:4])

    done = cli("train", "pets.yaml", "data.bad_images=skip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"images found = {24} used + {len(bad)} skipped" in done.stderr
    with (tmp_path / "runs/pets/skipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    skipped = Counter(row["image"] for row in rows if row["reason"])

    done = cli("predict", "images", "-c", "runs/pets", "--format", "jsonl", cwd=tmp_path)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 3
    assert len(told) == 24 + len(bad)
    predicted = Counter(row["image"] for row in told if row.get("error"))

    counts = {name: (checked[name], skipped[name], predicted[name]) for name in bad}
    assert sum(skipped.values()) == len(bad) == sum(predicted.values())
    promise("P13", len(bad), {name: c for name, c in counts.items() if c != (1, 1, 1)})
