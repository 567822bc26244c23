"""Encodings and gzip of tables: what is told by the bytes, what is guessed, what is refused."""

import codecs
import gzip
from pathlib import Path

import pytest

from mlfinetune.data.readers.csv_table import read_csv
from mlfinetune.data.readers.text_file import detect_encoding
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.location import find_ending

ROWS = "image,labels\nKäfer.jpg,Straße|Käfer\nb.jpg,Wolf\n"


def read(folder: Path, content: bytes, name: str = "t.csv") -> Table:
    """Return the Table of a file with these bytes."""
    path = folder / name
    path.write_bytes(content)
    return read_csv(path, SourceOptions())


def refusal(folder: Path, content: bytes) -> str:
    """Return the message with which these bytes are refused, without the file's name."""
    with pytest.raises(DataError) as caught:
        read(folder, content)
    return str(caught.value).removeprefix(str(folder / "t.csv"))


def guess(folder: Path, text: str, encoding: str) -> tuple[str, list[str]] | None:
    """Return encoding and notes for a table with this text as labels; None: it is refused."""
    path = folder / "t.csv"
    path.write_bytes(f"image,labels\na.jpg,{text}\n".encode(encoding))
    try:
        return detect_encoding(path, guess=True)
    except DataError:
        return None


# ---- encodings --------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1252"]
)
def test_every_encoding_gives_the_same_table(tmp_path: Path, encoding: str, end: str) -> None:
    """With every line end; UTF-16 has its mark."""
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    table = read(tmp_path, mark + ROWS.replace("\n", end).encode(encoding))
    assert table.names == ("Käfer.jpg", "b.jpg")
    assert table.labels.names == ("Straße", "Käfer", "Wolf")
    assert table.find_place(1) == "line 3"


def test_excels_unicode_text_is_read(tmp_path: Path) -> None:
    """UTF-16 with tabs, in a .txt file; the tab is said, for it is not what .txt has."""
    table = read(tmp_path, ROWS.replace(",", "\t").encode("utf-16"), "Unicode Text.txt")
    assert table.labels.names == ("Straße", "Käfer", "Wolf")
    assert table.notes[0] == "columns separated by a tab"


def test_a_guessed_encoding_is_said_with_its_words(tmp_path: Path) -> None:
    """A wrong guess is then seen."""
    table = read(tmp_path, ROWS.encode("cp1252"))
    note = "not UTF-8: read as Windows-1252 (cp1252), e.g. 'Käfer', 'Straße'"
    assert table.notes[0] == note


@pytest.mark.parametrize(
    "text", ["été", "garçon", "Ærø båd", "l’été", "Öl", "niño", "crème brûlée", "20 °C, 5 €", "Å b"]
)
def test_words_of_western_europe_are_windows_1252(tmp_path: Path, text: str) -> None:
    """As Excel writes them; one word of ASCII letters and others is enough."""
    found = guess(tmp_path, f"{text}|Käfer", "cp1252")
    assert found is not None
    assert found[0] == "cp1252"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("кот", "cp1251"),
        ("собака", "koi8-r"),
        ("猫", "shift-jis"),
        ("ネコ", "shift-jis"),
        ("狗", "gbk"),
        ("고양이", "euc-kr"),
        ("żółw", "cp1250"),
        ("γάτα", "cp1253"),
        ("Käfer", "mac-roman"),
        ("Straße", "mac-roman"),
        ("Käfer", "cp850"),
        ("Möwe", "cp437"),
    ],
)
def test_other_encodings_are_not_guessed(tmp_path: Path, text: str, encoding: str) -> None:
    """As Windows-1252 they would be other words."""
    assert guess(tmp_path, text, encoding) is None


def test_utf8_with_a_broken_byte_is_refused(tmp_path: Path) -> None:
    """As Windows-1252 each of its letters would be two."""
    content = ROWS.encode() + b"c.jpg,B\xe4r\n"
    wanted = ": not UTF-8 text (byte 0xe4); save it as UTF-8 (in Excel: CSV UTF-8)"
    assert refusal(tmp_path, content) == wanted


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_its_mark_is_refused(tmp_path: Path, encoding: str) -> None:
    """Every other byte is a NUL; which is it, and is it all?"""
    text = refusal(tmp_path, ROWS.encode(encoding))
    assert text.startswith(": this looks like UTF-16 without its byte order mark; save it as UTF-8")


def test_a_letter_on_the_edge_of_a_block_is_whole(tmp_path: Path) -> None:
    """The file is read in blocks of a MiB, which may end in the midst of a letter."""
    row = "a.jpg,cat\n"
    head = "image,labels\n" + row * 110_000
    for shift in range(3):
        content = (head[: 2**20 - 20].rpartition("\n")[0] + "\n").encode()
        content += b"x" * (2**20 - len(content) - 6 + shift) + ".jpg,猫\n".encode()
        table = read(tmp_path, content)
        assert table.labels.names == ("cat", "猫")


# ---- gzip -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv.gz", "t.tsv.gz", "T.CSV.GZ", "t.csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_a_packed_table_is_unpacked_on_the_way(tmp_path: Path, name: str, encoding: str) -> None:
    """The first bytes tell, and not the name: browsers unpack, and keep the name."""
    text = ROWS.replace(",", "\t") if ".tsv" in name else ROWS
    for content in (gzip.compress(text.encode(encoding)), text.encode(encoding)):
        assert read(tmp_path, content, name).labels.names == ("Straße", "Käfer", "Wolf")


@pytest.mark.parametrize("damage", ["cut", "flipped", "checksum"])
def test_damaged_gzip_is_refused(tmp_path: Path, damage: str) -> None:
    """A download that was cut off, or a flipped bit."""
    content = bytearray(gzip.compress(ROWS.encode() * 50))
    if damage == "cut":
        content = content[:-20]
    else:
        content[len(content) // 2 if damage == "flipped" else -5] ^= 0xFF
    text = refusal(tmp_path, bytes(content))
    assert text.startswith(": damaged gzip (")
    assert text.endswith("; unpack or download it again")


def test_a_packed_table_that_grows_without_end_is_refused(tmp_path: Path) -> None:
    """40 KB become 40 MB in one line: no more than a row is ever in memory."""
    content = gzip.compress(b"image,labels\n" + b"a" * 40_000_000)
    assert ": a row of more than 16,777,216 characters" in refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.csv", ".csv"), ("A.TSV.Gz", ".tsv"), ("a.b.jsonl.gz", ".jsonl"), ("a.gz", ""), ("a", "")],
)
def test_the_ending_is_that_of_the_table(name: str, ending: str) -> None:
    """Without .gz, in small letters."""
    assert find_ending(name) == ending
