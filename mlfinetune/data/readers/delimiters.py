"""The sign between the labels of a cell: a vote of all cells, and what speaks against its result.

cells -> detect_delimiter -> sign, or None -> list_dissent, find_inseparable -> notes for the user
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from mlfinetune.text import pluralize, quote_yaml

DELIMITERS = ("|", ";", ",", "；", "，", "、", "،", "؛", "\n")
"""Signs that may separate labels, the likeliest first; a space is judged apart."""

_ANY = re.compile("([" + re.escape("".join(DELIMITERS)) + "])")
_VOTERS = 5000
"""Distinct cells that vote; more would cost memory and change nothing."""
_SHARE = 0.25
"""Votes of a likelier sign, as a share of the most votes, that are no accident."""
_SHOWN = 5
_RARE = ("/", "::", "+", "&", "\\n", "#", "~", "\\", " - ", "\t", "\u3000", "<br>", "\0")
"""Signs that may separate labels, where their parts recur."""
_COMMON = (":", "_", "-")
"""Signs that labels often hold: they may separate labels where each part is a label too."""


def detect_delimiter(cells: Iterable[str]) -> str | None:
    """Return the sign that separates labels, as most cells have it; None for one label a cell.

    A cell votes for a sign if the sign joins two parts that also occur without each other.
    Parts that never occur apart are one label that holds the sign.

        cells                                              votes        delimiter
        `cat, dog`, `dog, rock; roll`, `cat`               , has 2      ,
        `tench, Tinca tinca|cat`, `tench, Tinca tinca`     | has 1      |
        `haze primary`, `clear primary`, `haze clear`      no sign      a space
        `cat / dog`, `dog / fox`, `cat`                    no sign      ` / `
        `hot dog`, `ice cream`                             no sign      None

    Without a vote (each label occurs once) the sign of the most cells is taken. A space needs many
    cells without a sign, and fewer words than such cells: then they combine a few words.
    """
    counts = Counter(text for cell in cells if (text := cell.strip()))
    if not counts:
        return None
    voters = list(islice(counts, _VOTERS))
    votes, holders = _count_votes(voters, counts)
    plain = [cell for cell in voters if not _is_split(cell)]
    words = {word for cell in plain for word in cell.split()}
    combine = len(words) < len(plain) or all(map(str.isdecimal, words))
    spaced = [cell for cell in plain if " " in cell] if combine else []
    most = max(votes.values(), default=0)
    if spaced and len(spaced) >= (10 if most else 3) * holders.total():
        return _find_lone_sign(spaced) or " "
    if not holders:
        return None
    if not most:
        return max(DELIMITERS, key=lambda sign: holders[sign])  # the first of equals
    likely = [sign for sign in DELIMITERS if votes[sign] >= max(2, _SHARE * most)]
    return likely[0] if likely else max(DELIMITERS, key=lambda sign: votes[sign])


def _find_lone_sign(cells: Sequence[str]) -> str | None:
    """Return ` / ` where half of the cells have such a sign between words, each with spaces."""
    counts: Counter[str] = Counter()
    for cell in cells:
        first, *between, last = cell.split()
        if _has_letters(first) and _has_letters(last):
            counts.update({word for word in between if all(map(_is_sign, word))})
    sign, times = max(counts.items(), key=itemgetter(1), default=("", 0))
    return f" {sign} " if 0 < len(cells) <= 2 * times else None


def _is_sign(character: str) -> bool:
    """Return whether a character is punctuation or a sign of mathematics; an emoji is neither."""
    category = unicodedata.category(character)
    return category.startswith("P") or category == "Sm"


def _count_votes(cells: Sequence[str], counts: Counter[str]) -> tuple[Counter[str], Counter[str]]:
    """Return sign -> its votes, and sign -> number of cells that hold it.

    Args:
        cells: distinct cells.
        counts: cell -> number of rows that have it.
    """
    occurrences: Counter[str] = Counter()  # part -> rows
    together: Counter[tuple[str, str]] = Counter()  # parts side by side -> rows
    signed = []  # cells with a sign: their parts and signs
    for cell in cells:
        pieces = _ANY.split(cell)
        parts = list(map(str.strip, pieces[::2]))
        occurrences.update({part: counts[cell] for part in parts if part})
        if len(parts) > 1:
            together.update({_sort_pair(pair): counts[cell] for pair in pairwise(parts)})
            signed.append((cell, parts, pieces[1::2]))
    votes: Counter[str] = Counter()
    holders: Counter[str] = Counter()
    for cell, parts, signs in signed:
        apart, between = set(), set()
        words = [_has_letters(part) for part in parts]
        for index, (pair, sign) in enumerate(zip(pairwise(parts), signs, strict=True)):
            both = together[_sort_pair(pair)]
            after = any(words[index + 1 :]) or not any(parts[index + 1 :])
            if any(words[: index + 1]) and after:
                between.add(sign)  # `cat|` ends in a sign; one of a smiley such as `;)` is none
            if all(map(_has_letters, pair)) and any(occurrences[part] > both for part in pair):
                apart.add(sign)
        holders.update(dict.fromkeys(between, counts[cell]))
        votes.update(dict.fromkeys(apart, counts[cell]))
    return votes, holders


def _is_split(cell: str) -> bool:
    """Return whether a sign stands between two parts of a cell that may be labels, or ends it."""
    parts = _ANY.split(cell)[::2]
    return sum(map(_has_letters, parts)) > 1 or (len(parts) > 1 and not parts[-1].strip())


def _has_letters(part: str) -> bool:
    """Return whether a part has a letter or a digit, so that it may be a label."""
    return any(map(str.isalnum, part))


def _sort_pair(pair: tuple[str, str]) -> tuple[str, str]:
    return pair if pair[0] <= pair[1] else (pair[1], pair[0])


def suggest_delimiter(cells: Iterable[str], noun: str = "cell") -> str | None:
    """Return a note on a sign that is no usual delimiter, where its parts stand in many cells.

    `cat/dog`, `dog/fox`, `cat`: a slash may separate labels; `AC/DC` alone may not. Of `cat_dog`
    all parts must be cells: `cat`, `dog`. `noun` is the word for a cell in the note.
    """
    counts = Counter(text for cell in cells if (text := cell.strip()))
    voters = list(islice(counts, _VOTERS))
    for sign in (*_RARE, *_COMMON):
        signed = [cell for cell in voters if sign in cell.strip(sign)]
        parts = Counter(part.strip() for cell in voters for part in cell.split(sign))
        is_sure = all if sign in _COMMON else any
        known = counts if sign in _COMMON else {p for p, times in parts.items() if times > 1}
        again = sum(is_sure(p.strip() in known for p in cell.split(sign)) for cell in signed)
        if signed and 4 * len(signed) >= len(voters) and 2 * again > len(signed):
            return (
                f"{pluralize(len(signed), noun)} with {name_delimiter(sign)}, and the parts recur, "
                f"as in {signed[0][:60]!r}; if it separates labels: "
                f"data.label_delimiter: {quote_yaml(sign)}"
            )
    return None


def list_dissent(
    cells: Iterable[tuple[int, str]], delimiter: str | None, find_place: Callable[[int], str]
) -> Iterator[str]:
    """Yield a note for each other sign that cells hold, with their number and the first of them.

    Args:
        cells: row and text of each cell.
        delimiter: the sign that separates labels.
        find_place: row -> its place in the source, as `line 3`.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    others = "".join(sign for sign in DELIMITERS if sign != delimiter)
    find_others = re.compile("[" + re.escape(others) + "]").findall
    total = 0
    for row, cell in cells:
        total += 1
        if signs := find_others(cell):
            for sign in set(signs):
                counts[sign] += 1
                first.setdefault(sign, f"{find_place(row)}: {cell.strip()[:60]!r}")
    for sign, count in counts.most_common():
        cells_hold = "1 cell holds" if count == 1 else f"{count} of {total} cells hold"
        yield f"{cells_hold} {name_delimiter(sign)} too, read as part of a label; {first[sign]}"


def find_inseparable(
    columns: NDArray[np.int64], ends: NDArray[np.int64], labels: Sequence[str], delimiter: str
) -> Iterator[str]:
    """Yield one note that names labels that never occur apart, such as `tench, Tinca tinca`.

    Args:
        columns: (P,) indices of the labels of all rows, in the order of the cells.
        ends: (N,) index in `columns` after the last label of each row.
        labels: the names of the labels.
        delimiter: the sign between them.
    """
    occurrences = np.bincount(columns, minlength=len(labels))
    same_row = np.ones(max(0, len(columns) - 1), bool)
    same_row[ends[(ends > 0) & (ends < len(columns))] - 1] = False
    first, second = columns[:-1][same_row], columns[1:][same_row]
    keys, counts = np.unique(first * len(labels) + second, return_counts=True)
    a, b = np.divmod(keys, max(1, len(labels)))
    apart = (occurrences[a] != counts) | (occurrences[b] != counts)
    order = np.argsort(-counts[~apart], kind="stable")
    pairs = [(labels[a[~apart][i]], labels[b[~apart][i]]) for i in order.tolist()]
    often = int((counts[~apart] > 1).sum())
    shown = pairs[:often] or (pairs if len(pairs) <= _SHOWN else [])
    if not shown:
        return
    names = ", ".join(f"'{a}' and '{b}'" for a, b in shown[:_SHOWN])
    more = f" and {len(shown) - _SHOWN} more pairs" if len(shown) > _SHOWN else ""
    sign = next(sign for sign in ("|", ";", ",") if sign != delimiter)
    yield (
        f"parts that never occur apart: {names}{more}; if each pair is one label that holds "
        f'{name_delimiter(delimiter)}, set data.label_delimiter: "{sign}"'
    )


def name_delimiter(delimiter: str) -> str:
    """Return the delimiter as a message names it: `a space`, `a line end`, or in quotes."""
    names = {" ": "a space", "\n": "a line end", "\t": "a tab", "\u3000": "a wide space"}
    return names.get(delimiter, f"'{delimiter}'")
