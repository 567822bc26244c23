"""Lists in the text of a cell, as JSON, Python, numpy and Postgres print them, become labels.

`["caf\u00e9", "5\" gun"]`  `{'cat', 'dog'}`  `{"choices": ["cat", "dog"]}` -> list of labels
"""

import ast
import io
import json
import math
import re
import tokenize
import warnings
from itertools import pairwise
from typing import Any

LIST_KEYS = ("choices", "labels", "label", "tags", "classes", "class", "categories", "name")
"""Keys of an object that hold its labels, as Label Studio and others write them."""

_VALUE_KEYS = {"confidence", "score", "probability", "prob", "value", "present"}

_CALL = re.compile(
    r"(?:(?:np\.|numpy\.|pd\.)?(?:set|frozenset|list|tuple|array|Index|Series)\((.*)\)"
    r"|[A-Za-z_][\w.]*\(\s*([\[{(].*[\]})])\s*\))",
    re.DOTALL,
)
"""A call that prints a list: `set()`, `array([...])`, `Counter({...})`."""
_ANGLES = re.compile(r"(?:<[^<>]+>\s*)+")
_DTYPE = re.compile(r",\s*dtype=[\w.'\"<>]+\s*$")
_PAIRS = {"[": "]", "{": "}", "(": ")"}
_BARE_ITEM = r'(?:\s*"(?:[^"\\]|\\.)*"\s*|\s*\'(?:[^\'\\]|\\.)*\'\s*|[^,"\'\[\]{}()]*+)'
_BARE = re.compile(rf"{_BARE_ITEM}(?:,{_BARE_ITEM})*")
_ITEM = re.compile(_BARE_ITEM)
_NUMBERS = re.compile(r"\s*-?[\d.]+(?:\s+-?[\d.]+)+\s*")
_SIDE_BY_SIDE = re.compile(r"['\"]\s+['\"]")
_HALF = re.compile(r"[\[{(]+\s*['\"]")
_PRINTED = re.compile(r"[\"']\s*[\[{]")
"""A list that was printed twice, as JSON in JSON."""
_TUPLE = re.compile(r"\([^()]*,[^()]*\)")
_LONGEST = 1_000_000


def may_be_list(text: str) -> bool:
    """Return whether a cell begins or ends with a bracket: a quick look, before the next two."""
    return text[0] in "[{(<\"'" or text[-1] in "]})"


def looks_quoted(text: str) -> bool:
    """Return whether a cell is surely meant as a list: a bracket beside a quote, or brackets alone.

    `["cat"]`, `('cat',)`, `{"a": 1}`, `set()`, `[]`, `["cat", "dog`   True
    `[cat, dog]`, `{cat}`, `(cosplay)`, `cat`                          False
    """
    if _HALF.match(text) or _PRINTED.match(text) or _CALL.fullmatch(text):
        return True
    inner = _strip_brackets(text)
    if inner is None:
        return False
    first = inner.strip()[:1]
    return not first or (first in "[{(" and ("'" in inner or '"' in inner))


def looks_bare(text: str) -> bool:
    """Return whether a cell may be a list of bare words, as spreadsheets and Postgres have it.

    `[cat, dog]`, `{cat,dog}`, `(cat, dog)`, `<cat><dog>`; a label may look so too.
    """
    is_list = text[:1] in ("[", "{") and _strip_brackets(text) is not None
    return is_list or bool(_ANGLES.fullmatch(text)) or bool(_TUPLE.fullmatch(text))


def is_round(text: str) -> bool:
    """Return whether a cell is `(cat, dog)` or `(cat)`: a list where all cells are so."""
    return bool(re.fullmatch(r"\([^()]*\)", text))


def is_cut_short(text: str) -> bool:
    """Return whether a cell begins as a list of bare words, and does not end as one."""
    return text[:1] in ("[", "{") and _strip_brackets(text) is None


def _strip_brackets(text: str) -> str | None:
    """Return the text between the outer brackets; None where there are none."""
    if _CALL.fullmatch(text):
        text = _strip_call(text) or "[]"
    closing = _PAIRS.get(text[:1])
    return text[1:-1] if len(text) > 1 and closing is not None and text[-1] == closing else None


def _strip_call(text: str) -> str:
    """Return the argument of `set(...)`, `array(...)` and alike, without its dtype."""
    match = _CALL.fullmatch(text)
    return text if match is None else _DTYPE.sub("", match[1] or match[2] or "").strip()


def parse_container(text: str) -> tuple[str, ...]:
    """Return the labels of a list, set, tuple or object in text.

        `["caf\u00e9", "5\" gun"]`      JSON: café, 5" gun
        `{'cat', 'dog'}`, `('cat',)`      Python
        `['cat' 'dog']`, `[0 2]`          numpy
        `{cat,"hot dog"}`, `[cat, dog]`   Postgres; bare words
        `{"choices": ["cat", "dog"]}`     Label Studio
        `{"cat": 1, "dog": 0}`, `[{"name": "cat"}]`

    Raises:
        ValueError: the text cannot be parsed, or holds lists in lists.
    """
    if len(text) > _LONGEST:
        raise ValueError("a list of more than a million characters")
    text = _strip_call(text)
    if not text:
        return ()
    if _ANGLES.fullmatch(text):
        return read_labels(re.findall(r"<([^<>]+)>", text))
    value = _parse_value(text)
    if isinstance(value, str) and value != text:
        return parse_container(value.strip())
    return () if value == {} else read_labels(value)  # {} is Python's empty set, badly printed


def _parse_value(text: str) -> Any:
    """Return the value that the text prints, in the first syntax that fits.

    Raises:
        ValueError: none fits.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if _strip_brackets(text) is None:
        raise ValueError("its brackets do not match")
    inner = text[1:-1]
    if _SIDE_BY_SIDE.search(inner) and (items := _read_side_by_side(inner)) is not None:
        return items
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `\(`: the backslash stays
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    if _NUMBERS.fullmatch(inner):
        return inner.split()
    if _BARE.fullmatch(inner):
        return [_unquote(item) for item in _split_bare(inner) if item not in _NOTHING]
    raise ValueError("neither JSON nor a Python list")


_NOTHING = ("nan", "NaN", "None", "null")
"""Words in a list without quotes that are no labels."""


def _read_side_by_side(inner: str) -> list[str] | None:
    """Return the strings of `'cat' 'dog'`, which Python would join to one; None with commas.

    Raises:
        ValueError: some strings have a comma between them, and some have none.
    """
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(f"({inner})").readline))[1:]
    except (tokenize.TokenError, SyntaxError):
        return None
    kinds = [token.string if token.type == tokenize.OP else token.type for token in tokens]
    if "..." in kinds:
        raise ValueError("cut short by `...`")
    kinds = [kind for kind in kinds if kind not in (tokenize.NL, tokenize.NEWLINE)]
    is_text = [kind == tokenize.STRING for kind in kinds]
    if not any(a and b for a, b in pairwise(is_text)):
        return None
    if "," in kinds:
        raise ValueError("a comma is missing between two labels")
    strings = [token.string for token in tokens if token.type == tokenize.STRING]
    return [str(ast.literal_eval(string)) for string in strings]


def _split_bare(inner: str) -> list[str]:
    """Return the items between commas outside of quotes."""
    items, start = [], 0
    while start <= len(inner):
        match = _ITEM.match(inner, start)
        assert match is not None
        items.append(match[0].strip())
        start = match.end() + 1
    return items


def _unquote(item: str) -> str:
    """Return an item without its quotes and its backslashes."""
    if len(item) > 1 and item[0] == item[-1] and item[0] in "'\"":
        return re.sub(r"\\(.)", r"\1", item[1:-1])
    return item


def read_labels(value: Any) -> tuple[str, ...]:
    """Return the labels of a parsed value; None and NaN are no labels.

    Raises:
        ValueError: lists in lists, or an object that names no labels.
    """
    if isinstance(value, dict):
        if not value:
            raise ValueError("an object without keys")
        return _read_object(value)
    if not isinstance(value, list | tuple | set | frozenset):
        return read_labels([value])
    labels: list[str] = []
    for item in value:
        if isinstance(item, dict):
            labels += _read_object(item)
        elif isinstance(item, list | tuple | set | frozenset):
            raise ValueError("a list in a list")
        elif item is ... or item == "...":
            raise ValueError("cut short by `...`")
        elif item is not None and not (isinstance(item, float) and math.isnan(item)):
            labels.append(str(item).strip())
    order = sorted(labels) if isinstance(value, set | frozenset) else labels
    return tuple(dict.fromkeys(label for label in order if label))


def _read_object(value: dict[Any, Any]) -> tuple[str, ...]:
    """Return the labels of an object: those of its key `choices` or alike, or its true keys.

    Raises:
        ValueError: it names no labels.
    """
    if set(map(str, value)) & _VALUE_KEYS:
        raise ValueError("an object with a value beside its label; write one row for each label")
    keys = [key for key in LIST_KEYS if key in value]
    if len(keys) == 1 and not isinstance(value[keys[0]], bool | int | float | dict):
        return read_labels(value[keys[0]])
    if all(state in (0, 1) and not isinstance(state, str) for state in value.values()):
        return tuple(str(key).strip() for key, state in value.items() if state)
    if len(value) == 1 and isinstance(only := next(iter(value.values())), list):
        return read_labels(only)
    if value and all(isinstance(state, int | float) for state in value.values()):
        raise ValueError("an object with a number for each label; wanted 1 or 0 for each")
    raise ValueError("an object whose labels have no known key")
