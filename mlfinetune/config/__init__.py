"""The config: defaults <- YAML <- `key=value`, checked once, never changed after.

    load(path, overrides) -> Config      every fault in one ConfigError, with its path and line
    dump(config)          -> YAML text   that loads to the same Config

YAML as `mlfinetune.yaml12` reads it: `1e-3` is a number, `no` and `off` are strings.
Relative paths in the file are relative to the file, those in overrides to the current folder.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlfinetune.config import yaml12
from mlfinetune.config.messages import describe_errors
from mlfinetune.config.sections import LOSS_SETTINGS, MAX_IMAGE_SIZE, Config, DataConfig, EvalConfig
from mlfinetune.config.yaml12 import Lines, name_kind
from mlfinetune.errors import CheckpointError, ConfigError
from mlfinetune.location import is_url
from mlfinetune.text import format_list

__all__ = [
    "LOSS_SETTINGS",
    "MAX_IMAGE_SIZE",
    "SCHEMA",
    "Config",
    "DataConfig",
    "EvalConfig",
    "build_schema",
    "dump_config",
    "load_config",
    "restore_config",
]

SCHEMA = Path(__file__).with_name("schema.json")
"""For editors, by way of a `# yaml-language-server: $schema=` line."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read, override and check a config; every path in the result is absolute.

    Args:
        path: the YAML file.
        overrides: `section.key=value` each, the value in YAML.

    Raises:
        ConfigError: all faults, each with its key and line.
    """
    tree, lines = _read(path)
    faults: list[str] = []
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path}: wanted keys and values at the top, found a {name_kind(tree)}")
    tree = _rebase(tree or {}, path.absolute().parent, faults)
    for override in overrides:
        faults += _override(tree, lines, override)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        faults += describe_errors(error.errors(), tree, lines, Config)
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(f"{path}: {count}\n{format_list(faults)}")
    if config.output is not None:
        return config
    return config.model_copy(update={"output": Path("runs").absolute() / path.stem})


def dump_config(config: Config) -> str:
    """The config as YAML that `load` reads back to an equal Config."""
    tree = config.model_dump(mode="json")
    return yaml12.dump(tree)


def restore_config(tree: dict[str, Any], origin: Path, overrides: Sequence[str] = ()) -> Config:
    """The Config of plain containers, as `Config.model_dump(mode="json")` gave them.

    Args:
        tree: from a checkpoint.
        origin: the checkpoint's file.
        overrides: as `load` takes them.

    Raises:
        CheckpointError: they are another version's.
        ConfigError: an override has faults.
    """
    config, faults = _restored(tree, {})
    if config is None:
        raise CheckpointError(
            f"{origin}: the checkpoint's config is not of this version\n{format_list(faults)}"
        )
    lines: Lines = {}
    tree, faults = dict(tree), []
    for override in overrides:
        faults += _override(tree, lines, override)
    config, more = _restored(tree, lines)
    if config is None or faults:
        raise ConfigError(f"overrides\n{format_list([*faults, *more])}")
    return config


def _restored(tree: dict[str, Any], lines: Lines) -> tuple[Config | None, list[str]]:
    """The Config, or what is wrong with it."""
    try:
        return Config.model_validate_json(json.dumps(tree)), []
    except ValidationError as error:
        return None, describe_errors(error.errors(), tree, lines, Config)
    except RecursionError:
        return None, ["nested too deeply"]


def build_schema() -> str:
    """The JSON schema of the config; the file SCHEMA holds it."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"


_MAX_BYTES = 8_000_000
"""Half a million labels by name; as YAML they take a minute, and 2 GB, to read."""
_DATA = {".csv", ".tsv", ".jsonl", ".parquet"}


def _read(path: Path) -> tuple[Any, Lines]:
    if path.is_dir() or (path.suffix.lower() in _DATA and path.is_file()):
        raise ConfigError(f"{path} is data, no config: `mlfinetune init {path}` writes one for it")
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"{path}: more than {_MAX_BYTES:,} bytes are no config")
        return yaml12.parse(content.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except yaml12.YamlFault as fault:
        raise ConfigError(f"{path}{fault}") from fault


# ---- paths and overrides ----------------------------------------------------------------

_PATHS = (("data", "train"), ("data", "val"), ("data", "images"), ("model", "weights"), ("output",))


def _rebase(tree: dict[str, Any], folder: Path, faults: list[str]) -> dict[str, Any]:
    """A copy of `tree` with its relative paths made absolute from `folder`."""
    tree = {k: dict(v) if isinstance(v, dict) else v for k, v in tree.items()}
    for *section, key in _PATHS:
        parent = tree.get(section[0]) if section else tree
        value = parent.get(key) if isinstance(parent, dict) else None
        if not isinstance(value, str) or not value:
            continue
        if key == "weights" and not Path(value).suffix:  # one of torchvision's names
            continue
        if section == ["data"] and is_url(value):
            continue
        assert isinstance(parent, dict)
        try:
            parent[key] = os.path.normpath(folder / Path(value).expanduser())
        except RuntimeError as error:  # ~someone who is not there
            faults.append(f"{'.'.join([*section, key])}: {value}: {error}")
    return tree


def _override(tree: dict[str, Any], lines: Lines, text: str) -> list[str]:
    """Set one `a.b=value` in `tree`; the faults, if any."""
    dotted, equals, value_text = text.partition("=")
    if not equals or not all(dotted.split(".")):
        return [f"override '{text}': wanted section.key=value"]
    try:
        value, _ = yaml12.parse(value_text)
    except yaml12.YamlFault as fault:
        return [f"override '{text}'{fault}"]
    where = tuple(dotted.split("."))
    layer: Any = value
    for key in reversed(where):
        layer = {key: layer}
    faults: list[str] = []
    layer = _rebase(layer, Path.cwd(), faults)
    parent = tree
    for depth, key in enumerate(where[:-1]):
        below = parent.get(key)
        if not isinstance(below, dict):
            if depth == 0 and below is not None:  # `train: 3` stays, and is reported
                return faults
            below = {}
        parent[key] = dict(below)
        parent, layer = parent[key], layer[key]
    parent[where[-1]] = layer[where[-1]]
    for stale in [w for w in lines if w[: len(where)] == where]:
        del lines[stale]
    lines[where] = 0
    for depth in range(1, len(where)):
        lines.setdefault(where[:depth], 0)
    return faults
