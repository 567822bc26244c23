"""Keywords beside and inside a picture, as two photo programs write them."""

from pathlib import Path

import pytest
from PIL import Image
from runs.photo_programs import run_tool
from runs.sidecar_samples import SAMPLES

from mlfinetune.data.images.keywords import find_keywords, list_labels, read_inside
from mlfinetune.data.images.xmp_packet import HIERARCHY, SUBJECT, TAGS_LIST, XmpError

FORMATS = ("jpg", "png", "tif", "webp")


def draw(path: Path) -> Path:
    """Write a small picture."""
    Image.new("RGB", (8, 8), "red").save(path)
    return path


@pytest.fixture(scope="module")
def by_exiftool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a picture of each format, whose XMP exiftool wrote."""
    folder = tmp_path_factory.mktemp("exiftool")
    pictures = [draw(folder / f"a.{ending}") for ending in (*FORMATS, "avif")]
    tags = (
        "-XMP-dc:Subject=größe 猫",
        "-XMP-dc:Subject=<b>&\"'",
        "-XMP-lr:HierarchicalSubject=a|b",
    )
    run_tool("exiftool", "-q", "-overwrite_original", *tags, *pictures)
    iptc = ("-IPTC:Keywords=Grün", "-IPTC:Keywords=sea", "-CodedCharacterSet=")
    run_tool("exiftool", "-q", "-overwrite_original", *iptc, draw(folder / "latin.jpg"))
    cut = (f"-IPTC:Keywords={'ä' * 32}", "-IPTC:Keywords=ä", "-CodedCharacterSet=utf8")
    long = (f"-XMP-dc:Subject={'ä' * 40}", *cut)
    run_tool("exiftool", "-q", "-overwrite_original", *long, draw(folder / "long.tif"))
    return folder


@pytest.mark.parametrize("ending", [*FORMATS, "avif"])
def test_exiftools_keywords_are_read(by_exiftool: Path, ending: str) -> None:
    """Special characters, every script, and paths."""
    found = read_inside(by_exiftool / f"a.{ending}").by_people
    assert (found[SUBJECT], found[HIERARCHY]) == (["größe 猫", "<b>&\"'"], ["a|b"])


@pytest.mark.parametrize("ending", FORMATS)
def test_exiv2s_keywords_are_read(tmp_path: Path, ending: str) -> None:
    """XMP in each format."""
    picture = draw(tmp_path / f"a.{ending}")
    for word in ("größe 猫", "sea"):
        run_tool("exiv2", "-M", f"set Xmp.dc.subject XmpBag {word}", picture)
    assert set(read_inside(picture).by_people[SUBJECT]) == {"größe 猫", "sea"}


def test_iptc_is_read_in_both_of_its_encodings(by_exiftool: Path, tmp_path: Path) -> None:
    """Latin-1 of old programs, UTF-8 of others; a keyword that it cuts is not one more."""
    assert read_inside(by_exiftool / "latin.jpg").by_people[SUBJECT] == ["Grün", "sea"]
    assert read_inside(by_exiftool / "long.tif").by_people[SUBJECT] == ["ä" * 40, "ä"]
    picture = draw(tmp_path / "a.jpg")
    run_tool("exiv2", "-M", "add Iptc.Application2.Keywords String größe", picture)
    assert read_inside(picture).by_people[SUBJECT] == ["größe"]


def test_a_picture_that_cannot_be_opened_has_none(tmp_path: Path) -> None:
    """The scan of pictures will name it."""
    (tmp_path / "a.jpg").write_bytes(b"text")
    assert read_inside(tmp_path / "a.jpg").by_people == {}
    assert read_inside(tmp_path / "b.jpg").by_people == {}


def test_hostile_xmp_inside_a_picture_is_refused(tmp_path: Path) -> None:
    """As in a sidecar."""
    packet = b'<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><r>&x;</r>'
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", xmp=packet)
    with pytest.raises(XmpError, match="DOCTYPE"):
        read_inside(tmp_path / "a.jpg")
    assert find_keywords(tmp_path / "a.jpg") == {}


@pytest.mark.parametrize("name", ["a.jpg.xmp", "a.xmp", "a.jpg.XMP", "a.XMP"])
def test_keywords_in_a_sidecar_go_before_those_inside(tmp_path: Path, name: str) -> None:
    """A sidecar without any says nothing of the picture's own."""
    packet = SAMPLES["lightroom"].replace(">sea<", ">inside<").encode()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", xmp=packet)
    assert find_keywords(tmp_path / "a.jpg") == {SUBJECT: ["inside"]}
    (tmp_path / name).write_text(SAMPLES["lightroom"])
    assert find_keywords(tmp_path / "a.jpg") == {SUBJECT: ["sea"]}
    (tmp_path / name).write_text(SAMPLES["lightroom"].replace("<rdf:li>sea</rdf:li>", ""))
    assert find_keywords(tmp_path / "a.jpg") == {SUBJECT: ["inside"]}
    assert find_keywords(tmp_path / "a.jpg", inside=False) == {}


@pytest.mark.parametrize(
    ("flat", "paths", "leaf", "path"),
    [
        (["birds"], ["animals|birds"], ["birds"], ["animals", "birds"]),
        (["animals", "birds"], ["animals|birds"], ["birds"], ["animals", "birds"]),
        (["sea"], ["animals|birds"], ["birds", "sea"], ["animals", "birds", "sea"]),
        (
            ["animals", "birds"],
            ["animals", "animals|birds"],
            ["animals", "birds"],
            ["animals", "birds"],
        ),
        (["b/w", "a|b"], [], ["b/w", "a|b"], ["b/w", "a|b"]),
        (["sea", "darktable", "changed"], ["sea", "darktable|changed"], ["sea"], ["sea"]),
    ],
)
def test_levels_of_keywords(
    flat: list[str], paths: list[str], leaf: list[str], path: list[str]
) -> None:
    """As `data.folder_labels`; the words above a keyword are no labels of a leaf."""
    keywords = {SUBJECT: flat, HIERARCHY: paths}
    assert list_labels(keywords, "leaf") == leaf
    assert list_labels(keywords, "path") == path
    digikam = {SUBJECT: flat, TAGS_LIST: [words.replace("|", "/") for words in paths]}
    assert list_labels(digikam, "leaf") == leaf
