"""Pydantic's complaints about a document in words: line, key, and what was wanted."""

from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from mlfinetune.config.yaml12 import Lines, Where
from mlfinetune.text import suggest


def describe_errors(
    errors: list[ErrorDetails], tree: Any, lines: Lines, model: type[BaseModel]
) -> list[str]:
    """One fault a key, in the file's order: its line, its path and what was wanted.

    A union reports every branch that failed: branches are joined with `or`, and where one got
    further into the document than the others, it alone speaks.
    """
    messages: dict[Where, dict[str, str]] = {}
    for error in errors:
        where = error["loc"] if error["type"] == "missing" else _place(error["loc"], tree)
        wanted, got = _message(error, model)
        messages.setdefault(where, {})[wanted] = got
    faults = []
    above = {where[:depth] for where in messages for depth in range(len(where))}
    for where, parts in messages.items():
        if where in above:
            continue
        line = next((lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in lines), 1)
        place = f"line {line}" if line else "override"
        text = " or ".join(parts).replace(" or wanted ", " or ") + next(iter(parts.values()))
        faults.append((line, f"{place}: {'.'.join(map(str, where)) or 'config'}: {text}"))
    return [text for _, text in sorted(faults, key=lambda fault: fault[0])]


def _place(loc: Where, tree: Any) -> Where:
    """The part of a pydantic location that the document has; the rest names union branches."""
    where: list[str | int] = []
    for key in loc:
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            continue
        where.append(key)
    return tuple(where)


_WANTED = {
    "path_type": "path",
    "model_type": "mapping of keys to values",
    "dict_type": "mapping of keys to values",
    "none_required": "null",
}


def _message(error: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    """What was wanted, and what stands there instead."""
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "extra_forbidden":
        known = _keys(model, error["loc"][:-1])
        hint = suggest(str(error["loc"][-1]), known)
        return f"unknown key{hint}", "" if hint or not known else f"; known: {', '.join(known)}"
    if kind == "missing":
        return "this key is needed", ""
    if kind == "value_error":
        return str(context["error"]), ""
    wanted = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    wanted = _WANTED.get(kind, context.get("expected", wanted))
    quote = "; quote it" if kind == "string_type" and isinstance(value, int | float) else ""
    got = repr(value)
    return f"wanted {wanted}", f", got {got if len(got) <= 80 else got[:77] + '...'}{quote}"


def _keys(model: Any, where: Where) -> list[str]:
    """The keys of the section at `where`."""
    for key in where:
        fields = getattr(model, "model_fields", {})
        model = fields[key].annotation if key in fields else None
    return list(getattr(model, "model_fields", ()))
