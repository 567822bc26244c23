"""YAML 1.2 text <-> plain containers, with the line of every key.

Scalars follow the core schema of YAML 1.2 (`1e-3` is a number, `no` and `off` are strings).
Aliases are refused, since a few lines of them can expand to gigabytes; so are duplicate keys, and
tags that would build objects. This is the only module that imports yaml.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]
"""The keys from the top to a value, such as ("data", "labels", 2)."""
Lines = dict[KeyPath, int]
"""Key path -> line in the file, from 1; 0: set by an override."""


_INDENTATION_PROBLEMS = (
    "<block",
    "character '\\t'",
    "mapping values are not allowed here",
    "could not find expected ':'",
)
"""Parts of PyYAML's messages about text with wrong indentation."""


class YamlFault(Exception):
    """Text that is no YAML of this kind; the message continues a file's name: `, line 3: ...`."""


_SCALARS: tuple[tuple[str, str, str], ...] = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
        r"|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
"""Type, pattern and possible first characters of each scalar; `\\0` stands for empty text."""


class _Loader(yaml.SafeLoader):
    """Loads YAML 1.2 scalars; refuses aliases, duplicate keys and keys that are no text."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases before they are expanded."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # its stub has none
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse keys that are no text, and keys that stand twice."""
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                problem = f"a key must be text, not a {name_kind(key)} ({str(key)[:40]}); quote it"
            elif key in seen:
                lines = f"lines {seen[key]} and {line}" if seen[key] != line else f"line {line}"
                problem = f"the key '{key}' is written twice, in {lines}; keep one"
            else:
                seen[key] = line
                continue
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return an integer: decimal, `0o17` or `0x1F`."""
        text = str(self.construct_scalar(node))
        if len(text) > 100:
            raise yaml.MarkedYAMLError(
                problem="a number of over 100 digits", problem_mark=node.start_mark
            )
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)


class _Dumper(yaml.SafeDumper):
    """Writes text in quotes where YAML 1.1 or 1.2 would take it for another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Write text with rare line breaks in double quotes, in which YAML keeps them."""
        style = '"' if any(c in data for c in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Loader.yaml_implicit_resolvers = {}  # else those of YAML 1.1 would match first
for _name, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}",
            re.compile(rf"^(?:{_pattern})$"),
            ["" if c == "\0" else c for c in _first],
        )
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {  # None is the constructor that refuses every other tag
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _PLAIN
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Dumper.add_representer(str, _Dumper.represent_str)


def parse(text: str) -> tuple[Any, Lines]:
    """Parse YAML text into plain containers; return them and the line of every key path.

    Raises:
        YamlFault: the text is no YAML of this kind; with the line, where it is known.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: Lines = {}
        if node is None:
            return None, lines
        _note_lines(node, (), lines)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = str(error.problem or error.context)
        raise YamlFault(f"{line}: {problem}{_suggest_fix(problem)}") from error
    except RecursionError as error:
        raise YamlFault(": nested too deeply") from error
    except (yaml.YAMLError, ValueError, LookupError) as error:
        raise YamlFault(f": {str(error).splitlines()[0]}") from error


def dump(tree: Any) -> str:
    """Return YAML of plain containers, keys in order, quoted so that 1.1 and 1.2 readers agree."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def name_kind(value: object) -> str:
    """Return the type of a value in YAML's words: `list`, `mapping`, `text`, `int`, ..."""
    names: dict[type, str] = {list: "list", dict: "mapping", str: "text", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _suggest_fix(problem: str) -> str:
    """Return advice for a problem of PyYAML that wrong indentation causes, else an empty text."""
    if not any(words in problem for words in _INDENTATION_PROBLEMS):
        return ""
    return (
        "; check the indentation: keys of one section start in the same column, with spaces, "
        "not tabs"
    )


def _note_lines(node: yaml.Node, path: KeyPath, lines: Lines) -> None:
    """Add the lines of a node and of all keys below it to `lines`; `path` leads to the node."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*path, str(key.value))] = key.start_mark.line + 1
            _note_lines(value, (*path, str(key.value)), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*path, index), lines)
