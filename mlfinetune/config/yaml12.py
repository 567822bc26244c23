"""YAML 1.2 text <-> plain containers, with the line of every key.

Scalars follow the core schema of YAML 1.2 (`1e-3` is a number, `no` and `off` are strings).
Aliases are refused, since a few lines of them can stand for gigabytes; so are duplicate keys
and tags that would build objects.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

Where = tuple[str | int, ...]
"""A key path, such as ("data", "labels", 2)."""
Lines = dict[Where, int]
"""Key path -> line, from 1."""


class YamlFault(Exception):
    """Text that is not YAML as we read it; reads on after a file's name."""


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


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars; no aliases; no duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # its stub has none
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                problem = f"a key must be text, not a {name_kind(key)} ({str(key)[:40]}); quote it"
            elif key in seen:
                problem = f"the key '{key}' stands in line {seen[key]} already"
            else:
                seen[key] = line
                continue
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        if len(text) > 100:
            raise yaml.MarkedYAMLError(
                problem="a number of over 100 digits", problem_mark=node.start_mark
            )
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 would take for another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Double quotes keep the line breaks that YAML would fold."""
        style = '"' if any(c in data for c in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Loader.yaml_implicit_resolvers = {}  # else YAML 1.1's come first
for _name, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}",
            re.compile(rf"^(?:{_pattern})$"),
            ["" if c == "\0" else c for c in _first],
        )
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _PLAIN
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Dumper.add_representer(str, _Dumper.represent_str)


def parse(text: str) -> tuple[Any, Lines]:
    """YAML text -> plain containers, and the line of every key path.

    Raises:
        YamlFault: with the line, where one is known.
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
        raise YamlFault(f"{line}: {error.problem or error.context}") from error
    except RecursionError as error:
        raise YamlFault(": nested too deeply") from error
    except (yaml.YAMLError, ValueError, LookupError) as error:
        raise YamlFault(f": {str(error).splitlines()[0]}") from error


def dump(tree: Any) -> str:
    """Plain containers -> YAML, keys in their order, quoted so that 1.1 and 1.2 readers agree."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def name_kind(value: object) -> str:
    """What a value is, in YAML's words."""
    names: dict[type, str] = {list: "list", dict: "mapping", str: "text"}
    return names.get(type(value), type(value).__name__)


def _note_lines(node: yaml.Node, where: Where, lines: dict[Where, int]) -> None:
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*where, str(key.value))] = key.start_mark.line + 1
            _note_lines(value, (*where, str(key.value)), lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _note_lines(value, (*where, i), lines)
