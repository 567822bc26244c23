"""Spellings of label names: which names are one label, and the lines of a config that join them.

`Hot-Dog`, `hot dog`     one form, hotdog          case, spaces, hyphens, underscores
`1.0`, `1`, `01`, `+1`   one number
`cat\\u200b`, `cat`       an invisible character
`R&amp;B`, `R&B`         an escape of HTML
"""

import html
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from mlfinetune.text import quote_yaml

_NUMBER = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*)|,([0-9]{1,2}))?(?:e([+-]?[0-9]{1,4}))?")
"""A number; three digits after a comma would be thousands."""
NUMBER_FORM = "number "
"""Start of the form of a number; no other form has a space."""
_WEIGHTED = re.compile(r"\(+([^():]+):[0-9.]+\)+")
"""A label with its weight, as prompts of image generators have it."""
_QUOTES = str.maketrans(dict.fromkeys("‘’‚‛′`´", "'") | dict.fromkeys("“”„‟″«»", '"'))
_BRACKETS = ("''", '""')
"""Pairs of signs around a label that are no part of it."""
_TRAILING = ".,;:、。"
"""Signs at the end of a label that are no part of it."""


def group_spellings(names: Iterable[str]) -> dict[str, list[str]]:
    """Return form -> the names that have this form, in order of their first appearance."""
    forms: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        forms[fold_label(name)].append(name)
    return forms


def fold_label(name: str) -> str:
    """Return the form that all spellings of a label have in common.

    Hot-Dog, hot_dog                hotdog     case, spaces, hyphens, underscores
    hatsune_miku_\\(cosplay\\)        hatsunemiku(cosplay)
    ｃａｔ, cat + a no-width space  cat        width and invisible characters
    R&amp;B, caf\\u00e9, “cat”, cat.  R&B, café, cat, cat
    1.0, 01, +1, 1e0                one form   numbers, see `fold_number`
    (cat:1.2)                       cat        the weight of a prompt
    C, C++, C#; 1-2, 12; -1, 1      different
    cat, -cat, her2, her2-          different  a minus at one end may say that it is absent
    """
    form = clean_label(name).casefold()
    if number := fold_number(form):
        return number
    if match := _WEIGHTED.fullmatch(form):
        form = match[1]
    stripped = form.rstrip(_TRAILING + " ") or form
    if stripped[:1] + stripped[-1:] in _BRACKETS and len(stripped) > 2:
        stripped = stripped[1:-1].strip()
    # Between digits a mark stays, as NUL: -1 is another label than 1, and 1-2 than 12.
    form = re.sub(r"(^|(?<=[0-9]))[\s_-]+(?=[0-9])", "\0", stripped)
    form = re.sub(r"^-(?=\w)|(?<=\w)-$", "\0", form)
    return re.sub(r"[\s_-]+", "", form) or name


def clean_label(name: str) -> str:
    """Return the label in one script of Unicode: no escapes, invisible signs or odd quotes."""
    if "&" in name:
        name = html.unescape(name)
    if "\\" in name:
        name = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), name)
        name = re.sub(r"\\(?=[^\w\s])", "", name)
    if name.isascii() and name.isprintable():
        return name.strip()
    form = unicodedata.normalize("NFKC", _mend_encoding(name)).translate(_QUOTES)
    kept = (
        "-" if unicodedata.category(char) == "Pd" or char == "\u2212" else char
        for char in form
        if char.isspace() or not _is_invisible(char)
    )
    return "".join(kept).strip()


def _is_invisible(char: str) -> bool:
    """Return True for a control or format character, or a variant selector as emoji have."""
    return unicodedata.category(char) in ("Cc", "Cf") or "\ufe00" <= char <= "\ufe0f"


def _mend_encoding(name: str) -> str:
    """Return `café` for `cafÃ©`: UTF-8 that was read as cp1252; any other text as it is."""
    try:
        return name.encode("cp1252").decode("utf-8")
    except UnicodeError:
        return name


def fold_number(text: str) -> str:
    """Return one form for all spellings of a number, or an empty text for what is none.

    1, 1.0, 01, +1, 1e0, 1,0   number 1e0
    1000, 1e3                  number 1e3
    1.1; 1.10; -1              different: versions and sections are written so
    1-2, 1,000, 1a             none
    """
    match = _NUMBER.fullmatch(text.strip().casefold())
    if match is None or not (match[2] or match[3] or match[4]):
        return ""
    sign, whole, point, comma, exponent = match.groups(default="")
    fraction = point + comma
    if fraction.strip("0") and not exponent:
        return f"{NUMBER_FORM}{sign.strip('+')}{whole.lstrip('0')}.{fraction}"
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    power = int(exponent or 0) - len(fraction) + len(digits) - len(significant)
    value = f"{sign.strip('+')}{significant}e{power}" if significant else "0"
    return NUMBER_FORM + value


def choose_renames(
    groups: Iterable[Collection[str]], positives: Mapping[str, int]
) -> dict[str, str]:
    """Return old name -> new name, where each group becomes its most frequent name.

    Of names that are equally frequent the plainest wins: no invisible character, then the shortest.
    """
    renames: dict[str, str] = {}
    for names in groups:
        best = max(names, key=lambda name: (positives[name], name == clean_label(name), -len(name)))
        renames |= {name: best.strip() for name in names if name != best.strip()}
    return renames


def format_renames(renames: Mapping[str, str], given: Mapping[str, str]) -> str:
    """Return the line of a config that renames labels: `data.rename_labels: {"1.0": "1"}`.

    Args:
        renames: the new entries.
        given: entries that the config has. They stay, and lead to the newest name.
    """
    chained = {old: renames.get(new, new) for old, new in given.items()}
    entries = {**chained, **{old: new for old, new in renames.items() if old not in given}}
    pairs = ", ".join(f"{quote_yaml(old)}: {quote_yaml(new)}" for old, new in entries.items())
    return f"data.rename_labels: {{{pairs}}}"


def format_ignored(names: Iterable[str], given: Iterable[str]) -> str:
    """Return the line of a config that leaves labels out, those that it has `given` first."""
    quoted = ", ".join(map(quote_yaml, dict.fromkeys([*given, *names])))
    return f"data.ignore_labels: [{quoted}]"


def list_patterns(form: str) -> set[str]:
    """Return patterns of a word; two words share one if they differ by one typing error.

    A typing error is a letter that is missing, added or replaced, or two neighbors that are
    swapped. With ? for the wildcard, `cat` has: ?cat c?at ca?t cat? (missing), ?at c?t ca?
    (replaced), ??act c??at (swapped). Digits are kept: label 12 is no typo of label 13.
    """
    letters = [index for index, letter in enumerate(form) if not letter.isdecimal()]
    patterns = {f"{form[:index]}\0{form[index:]}" for index in range(len(form) + 1)}
    patterns |= {f"{form[:index]}\0{form[index + 1 :]}" for index in letters}
    for index in letters:
        if form[index + 1 : index + 2] and not form[index + 1].isdecimal():
            pair = "".join(sorted(form[index : index + 2]))
            patterns.add(f"{form[:index]}\0\0{pair}{form[index + 2 :]}")
    return patterns
