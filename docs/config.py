"""Writes the tables of docs/config.md from the config's schema: `make docs`.

    mlfinetune/config/schema.json -> one table for each section -> between the two marks of the page

The text outside the marks is written by hand. A test compares the page with the schema.
"""

import json
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_suffix(".md")
SCHEMA = Path(__file__).parents[1] / "mlfinetune" / "config" / "schema.json"
BEGIN, END = "<!-- keys: begin, written by `make docs` -->\n", "<!-- keys: end -->\n"

Schema = dict[str, Any]
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
_NAMES = {
    "string": "text",
    "integer": "whole number",
    "boolean": "`true`, `false`",
    "null": "`null`",
}


def fill(page: str, schema: Schema) -> str:
    """Return `page` with the tables of `schema` between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{build_tables(schema)}\n{END}{after}"


def build_tables(schema: Schema) -> str:
    """Return a heading and a table for each section, and one for the keys outside of sections."""
    parts, loose = [], {}
    for name, prop in schema["properties"].items():
        if "$ref" in prop:
            section = schema["$defs"][prop["$ref"].rpartition("/")[2]]
            heading = f"\n### {name}\n\n{section['description']}\n\n"
            parts.append(heading + _build_table(section["properties"], section.get("required", [])))
        else:
            loose[name] = prop
    parts.append("\n### Outside of the sections\n\n" + _build_table(loose, []))
    return "".join(parts)


def _build_table(properties: Schema, required: list[str]) -> str:
    lines = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for key, prop in properties.items():
        default = "required" if key in required else f"`{_format_value(prop['default'])}`"
        cells = (f"`{key}`", default, _describe_values(prop), prop.get("description", ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _describe_values(prop: Schema) -> str:
    """Return what a key takes: names, or a kind with its bounds; "or" joins alternatives."""
    if "anyOf" in prop:
        return " or ".join(_describe_values(option) for option in prop["anyOf"])
    if "enum" in prop:
        return ", ".join(f"`{value}`" for value in prop["enum"])
    if "const" in prop:
        return f"`{prop['const']}`"
    kind = prop["type"]
    if kind == "array":
        if "prefixItems" in prop:
            return "[" + ", ".join(_describe_values(item) for item in prop["prefixItems"]) + "]"
        return f"list of {_describe_values(prop['items'])}"
    if kind == "object":
        return f"map from label to {_describe_values(prop['additionalProperties'])}"
    if prop.get("format") == "path":
        return "path"
    bounds = [f"{word} {_format_bound(prop[k])}" for k, word in _BOUNDS.items() if k in prop]
    return " ".join([_NAMES.get(kind, kind), " and ".join(bounds)]).strip()


def _format_bound(value: float) -> str:
    """Return `4,096`, or `2^63` for a power of two that nobody reads in digits."""
    power = int(value).bit_length() - 1
    return f"2^{power}" if value == 2**power > 2**30 else f"{value:,}"


def _format_value(value: Any) -> str:
    """Return a default as YAML has it: null, true, [0.35, 1.0], resnet50."""
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(), json.loads(SCHEMA.read_text())))
