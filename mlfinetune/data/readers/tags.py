"""Tags in a small text file, for the readers of sidecar files and of tar shards.

bytes -> find_encoding -> text -> tags         is_prose(tags): sentences, which are no tags
tags of all files -> suggest_separator, find_valued: another sign between them; `cat: 0.9`
"""

import codecs
import re
from collections.abc import Iterator, Sequence

from mlfinetune.data.readers.delimiters import detect_delimiter, name_delimiter, suggest_delimiter
from mlfinetune.data.readers.state_words import read_state
from mlfinetune.data.table import LabelLists
from mlfinetune.errors import DataError
from mlfinetune.text import quote_yaml

MAX_BYTES = 1_000_000
"""Largest text file, in bytes, that is taken for a list of tags."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_BOX = re.compile(rf"\d+(?:\s+{_NUMBER}){{4,}}")
"""A class and at least four numbers: a box or an outline as YOLO writes it."""
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_WESTERN = re.compile(r"[\x20-\x7e\s]|[À-ÖØ-öø-ÿŠšŽžŒœŸ‘’“”–—…€£°´·«»©®]")
"""Characters of tags in a western language; other encodings also give signs like ¤ and ƒ."""
_SHARE = r"(?:0?[.,]\d+|1[.,]0+)"
_WITH_VALUE = re.compile(
    rf".+[:=]\s*(?:[01]?[.,]\d+|[01])|.+\s{_SHARE}|.+\s\({_SHARE}\)|{_SHARE}\s.+"
    r"|.+[:=\s(]\d{1,3}(?:[.,]\d+)?\s?%\)?|\(.+:\d*[.,]?\d+\)"
)
"""A label with its value: `cat:0.9`, `cat 0.9`, `cat (0.9)`, `0.9 cat`, `cat 90%`; `(cat:1.2)`, as
image generators weigh it."""
_WITH_WORD = re.compile(r".+[:=]\s*([^\s:=]+)")
"""A label with a word, which may be its state: `cat: yes`, `cat=nein`."""
_VALUE = re.compile(r"^[\d.,]+\s+|[:=\s(]\s*(?:[\d.,]+\s?%?\)?|[^\W\d]+)$")
_ESCAPE = re.compile(r"&(?:[a-zA-Z]{2,8}|#\d{2,6});")
"""A sign as HTML writes it, such as `&amp;`."""
_QUOTED = re.compile(r"""(?:"[^"]*"|'[^']*'|`[^`]*`|“[^”]*”|„[^“”]*[“”]|«[^»]*»)""")
_ALL_QUOTED = re.compile(rf"{_QUOTED.pattern}(?:(?:\s*+[,;|]\s*+|\s++){_QUOTED.pattern})*")
"""One label in quotes, or several."""
_SMALL_WORDS = frozenset(
    ("a", "an", "the", "of", "on", "in", "with", "and", "is", "are", "to", "at")
)
"""Words of English sentences."""
_LOOKED_AT = 20_000
"""Cells among which sentences are looked for."""
_LONG, _SENTENCE = 8, 4
"""Words in a tag, on average, above which a text is prose; and from which on if it ends so."""


def find_encoding(content: bytes) -> str | None:
    """Return the encoding of a text, for Python; None where it is not known.

    bytes                              result
    UTF-8, with or without its mark    utf-8-sig
    UTF-16 with its mark               utf-16
    `größe` in Windows-1252            cp1252
    `кот` in Windows-1251              None: as Windows-1252 it would be three odd letters
    """
    if content.startswith(_MARKS):
        return "utf-16"
    try:
        content.decode("utf-8-sig")
        return "utf-8-sig"
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    odd = sum(not letter.isascii() for letter in text)
    letters = sum(letter.isascii() and letter.isalpha() for letter in text)
    plausible = all(map(_WESTERN.fullmatch, text)) and odd <= letters
    return "cp1252" if plausible else None


def parse_tags(content: bytes, origin: object, delimiter: str | None) -> list[str] | str:
    """Return the tags of a text file, or the text of an error.

    Args:
        content: `cat, hot dog`, or one tag per line, or both.
        origin: name of the file, for the message.
        delimiter: separates tags in a line; None: a comma.

    Raises:
        DataError: the file holds boxes.
    """
    try:
        text = content.decode(find_encoding(content) or "utf-8-sig")
    except UnicodeDecodeError as error:
        return f"not UTF-8 text (byte {error.object[error.start]:#04x}); save it as UTF-8"
    if "\0" in text:
        return "not UTF-8 text (it holds NUL characters); save it as UTF-8"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and all(map(_BOX.fullmatch, lines)):
        raise DataError(
            f"{origin} holds boxes as YOLO writes them ('{lines[0][:60]}'), not tags; convert them "
            f"to COCO JSON, or set data.format where the .txt files are not to be read"
        )
    parts = (part.strip() for line in lines for part in line.split(delimiter or ","))
    return list(dict.fromkeys(part for part in parts if part))


def is_prose(tags: list[str]) -> bool:
    """Return whether tags are in truth sentences: captions, which cannot be learnt as labels.

    tags of one file                                                 result
    `hot dog`, `cat`                                                 False
    `a man in a wetsuit riding a wave on top of a surfboard`         True: many words a tag
    `A cat sleeps on the sofa.`                                      True: it ends as a sentence
    `1girl solo long_hair blue_eyes smile hat dress sky cloud sea`   True: separated by spaces
    """
    words = sum(len(tag.split()) for tag in tags) / max(1, len(tags))
    return words > _LONG or (words >= _SENTENCE and tags[-1].endswith((".", "!", "?")))


def refuse_prose(origin: object, prose: list[str], count: int, ending: str) -> None:
    """Raise DataError where more than half of `count` files hold prose.

    Args:
        origin: the folder or tar, for the message.
        prose: the text of each file that holds prose.
        count: the number of files that are not empty.
        ending: of these files, as `.caption`.

    Raises:
        DataError: they are captions.
    """
    if 2 * len(prose) > count:
        raise DataError(
            f"{origin}: {len(prose)} of {count} {ending} files hold sentences, not tags "
            f"('{prose[0][:60]}'); write tags between commas, or name a table of labels in "
            f"data.train. Where they are tags between spaces: data.label_delimiter: ' '"
        )


def find_valued(names: Sequence[str]) -> str:
    """Return the first of several labels, where each has a value, as `cat: 0.9`; else nothing.

    `version 0.9`, `version 1.0` are labels: one word before all numbers.
    """
    if not all(map(_has_value, names)):
        return ""
    return names[0] if len({_VALUE.sub("", name) for name in names}) > 1 else ""


def _has_value(name: str) -> bool:
    """Return whether a label has a number, or a word for present or absent in any language."""
    if _WITH_VALUE.fullmatch(name):
        return True
    word = _WITH_WORD.fullmatch(name)
    state = read_state(word[1]) if word else None
    return state is not None and state.kind == "word"


def suggest_separator(origin: object, lists: LabelLists, ending: str) -> Iterator[str]:
    """Yield a note where no file has two tags, and another sign than a comma may separate them.

    `cat sofa`, `cat`, `dog sofa`: a space may be the sign; `hot dog`, `ice cream`: it is none.

    Args:
        origin: the folder or tar, for the message.
        lists: the tags of each file.
        ending: of these files, as `.txt`.

    Raises:
        DataError: each tag has a value.
    """
    names = lists.labels.names
    if valued := find_valued(names):
        raise DataError(
            f"{origin}: each tag in the {ending} files has a value, such as '{valued}'; wanted "
            f"tags alone, or a table of one row for each tag, with columns image, label and value"
        )
    columns, ends = lists.positives()
    texts = [names[column] for column in columns]
    if len(texts) > len({*ends.tolist()} - {0}):
        return
    if (sign := detect_delimiter(texts)) is None:
        note = suggest_delimiter(texts, "file")
        yield from [note] if note else []
        return
    signed = [text for text in texts if sign in text]
    yield (
        f"{len(signed)} of {len(texts)} {ending} files hold {name_delimiter(sign)} and no comma, "
        f"and the parts recur, as in {signed[0][:60]!r}; if it separates tags: "
        f"data.label_delimiter: {quote_yaml(sign)}"
    )


def find_odd_cells(cells: Sequence[str], delimiter: str | None) -> str:
    """Return why the cells of a label column would be misread, and what to do; else nothing.

    cells, most of them                               read with the delimiter
    `A cat on a sofa.`, `Two dogs run on the grass`   a space, or none: words, or sentences
    `"black cat", "dog"`, `'cat'`                     any: quotes are no part of a label
    `R&amp;B;cat`: a single one                       `;`: `R&amp` and `B`

    Args:
        cells: the texts of all cells that are no lists.
        delimiter: the sign between labels that was detected.
    """
    texts = [text for cell in cells if (text := cell.strip())]
    quoted = [text for text in texts if _ALL_QUOTED.fullmatch(text)]
    if 2 * len(quoted) > len(texts):
        return (
            f"hold labels in quotes ({quoted[0][:60]}); write cat|dog or a list such as "
            f'["cat", "dog"]; data.label_delimiter reads them with their quotes'
        )
    if delimiter == ";" and (escaped := next(filter(_ESCAPE.search, texts), "")):
        return (
            f"hold signs as HTML writes them ({escaped[:60]!r}), and ';' between labels; write the "
            f"sign itself, or set data.label_delimiter"
        )
    if delimiter in (None, " "):
        texts = texts[:_LOOKED_AT]
        words = [text.casefold().split() for text in texts]
        small = [some for some in words if not _SMALL_WORDS.isdisjoint(some)]
        ends = [text for text in texts if len(text.split()) >= _SENTENCE and text.endswith(".")]
        long = sum(map(len, words)) > _SENTENCE * len(words)
        recur = 2 * len(set(texts)) <= len(texts)  # names of classes
        worded = delimiter is None or 2 * len(small) > len(texts)  # tags in a row are as long
        if 2 * len(ends) > len(texts) or (long and worded and not recur):
            return (
                f"hold sentences ({(ends or texts)[0][:60]!r}), no labels; write labels with a "
                f"sign between them, as cat|dog. Where they are labels: data.label_delimiter"
            )
    return ""
