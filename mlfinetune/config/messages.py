"""Pydantic's errors in words: line, key, what was wanted, and what stands there."""

from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from mlfinetune.config.yaml12 import KeyPath, Lines
from mlfinetune.text import suggest


def describe_errors(
    errors: list[ErrorDetails], tree: Any, lines: Lines, model: type[BaseModel]
) -> list[str]:
    """Return one fault for each key, in the file's order: line, key, wanted, found.

    pydantic reports a union once for each of its types. Here the types are joined with `or`; where
    one type matched further into the document than the others, only its error is shown.

    Example: line 3 of the YAML is `batch_size: many`. Before, by pydantic, two errors:

        ('train', 'batch_size', 'constrained-int'): Input should be a valid integer
        ('train', 'batch_size', "literal['auto']"): Input should be 'auto'

    After, one fault:

        line 3: train.batch_size: wanted whole number or 'auto', got 'many'

    Args:
        errors: from `ValidationError.errors()`.
        tree: the document that was checked.
        lines: line of every key; 0: set by an override.
        model: the model that it was checked by.
    """
    messages: dict[KeyPath, dict[str, str]] = {}  # key -> wanted -> what stands there instead
    for error in errors:
        location = error["loc"]
        key = location if error["type"] == "missing" else _find_key(location, tree)
        wanted, got = _describe_error(error, model)
        messages.setdefault(key, {})[wanted] = got
    faults = []
    parents = {key[:depth] for key in messages for depth in range(len(key))}
    for key, texts in messages.items():
        if key in parents:
            continue
        line = next((lines[key[:n]] for n in range(len(key), -1, -1) if key[:n] in lines), 1)
        place = f"line {line}" if line else "override"
        text = " or ".join(texts).replace(" or wanted ", " or ") + next(iter(texts.values()))
        faults.append((line, f"{place}: {'.'.join(map(str, key)) or 'config'}: {text}"))
    return [text for _, text in sorted(faults, key=lambda fault: fault[0])]


def _find_key(location: KeyPath, tree: Any) -> KeyPath:
    """Return the keys of a pydantic location that the document has.

    The other parts of a location name types of a union: `('train', 'lr', 'constrained-float')`
    becomes `('train', 'lr')`.
    """
    keys: list[str | int] = []
    for key in location:
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            continue
        keys.append(key)
    return tuple(keys)


_WANTED = {
    "path_type": "path",
    "model_type": "mapping of keys to values",
    "dict_type": "mapping of keys to values",
    "none_required": "null",
    "bool_type": "true or false",
    "int_type": "whole number",
}


def _describe_error(error: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    """Return what was wanted (`wanted whole number`) and what stands there (`, got 'many'`)."""
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "extra_forbidden":
        known = _list_keys(model, error["loc"][:-1])
        key = str(error["loc"][-1])
        hint = suggest(key, known)
        sections = [name for name in known if key in _list_keys(model, (*error["loc"][:-1], name))]
        if sections:
            hint = f"; did you mean {' or '.join(f'{name}.{key}' for name in sections)}?"
        return f"unknown key{hint}", "" if hint or not known else f"; known: {', '.join(known)}"
    if kind == "missing":
        is_data = error["loc"] in (("data",), ("data", "train"))
        return "this key is needed" + ("; name your table or folder" if is_data else ""), ""
    if kind == "string_too_short" and value == "":
        return "wanted text", ", got ''; quote a sign that YAML uses itself, as \"|\""
    if kind == "value_error":
        return str(context["error"]), ""
    wanted = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    wanted = _WANTED.get(kind, context.get("expected", wanted))
    is_item = value is None and len(error["loc"]) > 2  # null is the default of many keys
    is_other = is_item or isinstance(value, int | float)
    quote = "; quote it" if kind == "string_type" and is_other else ""
    got = _format_value(value)
    return f"wanted {wanted}", f", got {got if len(got) <= 80 else got[:77] + '...'}{quote}"


def _format_value(value: object) -> str:
    """Return a value of the config as YAML writes it: `true` and `null`, for True and None."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(_format_value, value))}]"
    if isinstance(value, dict):
        items = (f"{_format_value(key)}: {_format_value(item)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    return repr(value)


def _list_keys(model: Any, location: KeyPath) -> list[str]:
    """Return the keys of the section at `location`."""
    for key in location:
        fields = getattr(model, "model_fields", {})
        model = fields[key].annotation if key in fields else None
    return list(getattr(model, "model_fields", ()))
