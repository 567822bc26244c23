"""The config of a run: defaults <- YAML file <- `section.key=value`; checked once, then frozen.

In: a YAML file and overrides. Out: Config, or one ConfigError with all faults, keys and lines.
Start at sections.py (every key and its default); messages.py words the faults.

    load_config(path, overrides) -> Config
    load_tree(tree, overrides)   -> Config of containers that Python made
    build_config(tree, overrides) -> Config without a file
    dump_config(config)          -> YAML text that loads to the same Config
    restore_config(tree, origin) -> Config of a checkpoint

YAML is version 1.2 (yaml12.py): `1e-3` is a number, `no` and `off` are strings. Relative paths in
the file are relative to the file, those in overrides to the current folder.
"""

import json
import os
import reprlib
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlfinetune.config import yaml12
from mlfinetune.config.data_section import DataConfig
from mlfinetune.config.messages import describe_errors
from mlfinetune.config.sections import (
    LOSS_SETTINGS,
    MAX_IMAGE_SIZE,
    SOLVED_HEADS,
    Config,
    EvalConfig,
)
from mlfinetune.config.yaml12 import Lines, name_kind
from mlfinetune.errors import CheckpointError, ConfigError
from mlfinetune.location import (
    FORMATS,
    SHARED_ENDINGS,
    find_ending,
    is_url,
    strip_file_protocol,
)
from mlfinetune.text import format_list, mask_secrets, pluralize

__all__ = [
    "LOSS_SETTINGS",
    "MAX_IMAGE_SIZE",
    "SCHEMA",
    "SOLVED_HEADS",
    "Config",
    "DataConfig",
    "EvalConfig",
    "build_config",
    "build_overrides",
    "build_schema",
    "dump_config",
    "load_config",
    "load_tree",
    "restore_config",
]

SCHEMA = Path(__file__).with_name("schema.json")
"""The JSON schema for editors, named by a `# yaml-language-server: $schema=` line in the YAML."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config, apply overrides and check it; every path in the result is absolute.

    Args:
        path: the YAML file.
        overrides: texts `section.key=value`, the value in YAML: `train.lr=1e-3`.

    Raises:
        ConfigError: all faults, each with its key and line.
    """
    tree, lines = _read_yaml(path)
    faults: list[str] = []
    if tree is not None and not isinstance(tree, dict):
        if find_ending(path) in SHARED_ENDINGS:
            raise _refuse_data(path)
        raise ConfigError(f"{path}: wanted keys and values at the top, found a {name_kind(tree)}")
    tree = _make_paths_absolute(tree or {}, path.absolute().parent, faults)
    config = _check_tree(tree, lines, overrides, faults, f"{path}: ")
    if config.output is not None:
        return config
    return config.model_copy(update={"output": Path("runs").absolute() / path.stem})


def load_tree(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Check the content of a config, as `load_config` does; relative paths start from here.

    Args:
        tree: sections, keys and values, as YAML would give them; a Path may stand for its text.
        overrides: as in `load_config`.

    Raises:
        ConfigError: all faults, each with its key.
    """
    faults: list[str] = []
    plain = _make_paths_absolute(json.loads(_to_json(tree)), Path.cwd(), faults)
    config = _check_tree(plain, {}, overrides, faults, "config: ")
    if config.output is not None:
        return config
    return config.model_copy(update={"output": Path("runs/run").absolute()})


def build_overrides(values: Mapping[str, Any]) -> list[str]:
    """Return overrides as texts: `train.epochs=3` of `{"train.epochs": 3}`.

    A section may hold its keys: `{"train": {"epochs": 3}}`.

    Raises:
        ConfigError: a value that YAML cannot have.
    """
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise ConfigError('overrides are a dictionary, such as {"train.epochs": 3}')
    flat: dict[str, Any] = {}
    for name, value in values.items():
        is_section = "." not in name and isinstance(value, Mapping)
        flat |= (
            {f"{name}.{key}": inner for key, inner in value.items()}
            if is_section
            else {name: value}
        )
    return [f"{name}={_to_json(value)}" for name, value in flat.items()]


def _to_json(value: Any) -> str:
    """Return plain containers as JSON, which YAML reads; a Path becomes its text."""
    try:
        return json.dumps(value, default=os.fspath, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{reprlib.repr(value)}: a config holds texts, numbers, lists and dictionaries, and "
            f"not this ({error})"
        ) from error


def build_config(tree: dict[str, dict[str, Any]], overrides: Sequence[str]) -> Config:
    """Return the Config of plain containers with overrides applied, where there is no file yet.

    Raises:
        ConfigError: all faults, each with its key.
    """
    tree = {section: dict(values) for section, values in tree.items()}
    lines: Lines = {}
    return _check_tree(tree, lines, overrides, [], "")


def _check_tree(
    tree: dict[str, Any], lines: Lines, overrides: Sequence[str], faults: list[str], origin: str
) -> Config:
    """Apply overrides to a tree in place, and return its Config.

    Args:
        tree: sections, keys and values.
        lines: line of each key; an override gets line 0.
        overrides: texts `section.key=value`.
        faults: faults that were found before.
        origin: begin of the message, such as `a.yaml: `.

    Raises:
        ConfigError: all faults, each with its key.
    """
    faults = list(faults)
    for override in overrides:
        faults += _apply_override(tree, lines, override)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        faults += describe_errors(error.errors(), tree, lines, Config)
    if faults:
        raise ConfigError(f"{origin}{pluralize(len(faults), 'fault')}\n{format_list(faults)}")
    return config


def dump_config(config: Config) -> str:
    """Return the config as YAML, which `load_config` reads back to an equal Config."""
    return yaml12.dump(config.model_dump(mode="json"))


def restore_config(tree: dict[str, Any], origin: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the Config that a checkpoint holds, with overrides applied.

    Args:
        tree: plain containers, from `Config.model_dump(mode="json")`.
        origin: the checkpoint's file, for messages.
        overrides: texts `section.key=value`.

    Raises:
        CheckpointError: the tree is no config of this version.
        ConfigError: an override has faults.
    """
    config, faults = _validate_tree(tree, {})
    if config is None:
        raise CheckpointError(
            f"{origin}: the checkpoint's config is not of this version\n{format_list(faults)}"
        )
    lines: Lines = {}
    tree, faults = dict(tree), []
    for override in overrides:
        faults += _apply_override(tree, lines, override)
    config, more = _validate_tree(tree, lines)
    if config is None or faults:
        raise ConfigError(f"overrides\n{format_list([*faults, *more])}")
    return config


def _validate_tree(tree: dict[str, Any], lines: Lines) -> tuple[Config | None, list[str]]:
    """Return the Config of plain containers, or None and its faults."""
    try:
        return Config.model_validate_json(json.dumps(tree)), []
    except ValidationError as error:
        return None, describe_errors(error.errors(), tree, lines, Config)
    except RecursionError:
        return None, ["nested too deeply"]


def build_schema() -> str:
    """Return the JSON schema of the config; the file SCHEMA must hold this text."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"


_MAX_BYTES = 8_000_000
"""Size limit of a config: room for half a million labels, which take a minute and 2 GB to parse."""
_DATA_ENDINGS = FORMATS.keys() - set(SHARED_ENDINGS)


def _read_yaml(path: Path) -> tuple[Any, Lines]:
    """Read a YAML file; return its content, and the line of every key.

    Raises:
        ConfigError: it cannot be read, or is no YAML.
    """
    is_data = path.suffix.lower() == ".gz" or find_ending(path) in _DATA_ENDINGS
    if path.is_dir() or (is_data and path.is_file()):
        raise _refuse_data(path)
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES and find_ending(path) in SHARED_ENDINGS:
            raise _refuse_data(path)
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"{path}: more than {_MAX_BYTES:,} bytes, too large for a config")
        return yaml12.parse(content.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except yaml12.YamlFault as fault:
        raise ConfigError(f"{path}{fault}") from fault


def _refuse_data(path: Path) -> ConfigError:
    """Return the error that a file or folder is data."""
    command = shlex.join(["mlfinetune", "init", str(path)])
    return ConfigError(f"{path} is data, not a config: `{command}` writes one for it")


# ---- paths and overrides ----------------------------------------------------------------

_PATH_KEYS = (
    ("data", "train"),
    ("data", "val"),
    ("data", "images"),
    ("model", "weights"),
    ("output",),
)


_SIGNS = frozenset("|>#&*!%@`,;:?-")
"""Values of an override that are text: YAML uses these signs itself, a delimiter may be one."""


def _make_paths_absolute(tree: dict[str, Any], folder: Path, faults: list[str]) -> dict[str, Any]:
    """Return a copy of `tree` with absolute paths; relative ones are relative to `folder`.

    URLs, and names of torchvision's weights, stay as they are. A path `~user` of an unknown user,
    and a URL that cannot be there, are added to `faults`.
    """
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for *section, key in _PATH_KEYS:
        parent = tree.get(section[0]) if section else tree
        value = parent.get(key) if isinstance(parent, dict) else None
        if key == "weights" and isinstance(value, str) and not _is_path(value):
            continue  # one of torchvision's names
        name = ".".join([*section, key])
        make = partial(_make_path_absolute, section, name, folder, faults)
        if isinstance(value, list) and key in ("train", "val"):
            value = [make(each) for each in value]
        else:
            value = make(value)
        if isinstance(parent, dict) and key in parent:
            parent[key] = value
    return tree


def _is_path(weights: str) -> bool:
    return bool(Path(weights).suffix) or "/" in weights


def _make_path_absolute(
    section: Sequence[str], name: str, folder: Path, faults: list[str], value: Any
) -> Any:
    """Return one path absolute; URLs, and values that are no path, stay as they are."""
    if not isinstance(value, str) or not value:
        return value
    if is_url(value):
        if fault := _find_url_fault(section, value):
            faults.append(f"{name}: {fault}")
        return value
    value = strip_file_protocol(value)
    try:
        return os.path.normpath(folder / Path(value).expanduser())
    except RuntimeError as error:  # ~user of an unknown user
        faults.append(f"{name}: {value}: {error}")
        return value


def _find_url_fault(section: Sequence[str], url: str) -> str:
    """Return what is wrong with a URL as a value of the config; an empty text: nothing."""
    if section != ["data"]:
        return f"{url} is a URL, wanted a path of this machine: download it, and name the file"
    if mask_secrets(url) != url and any(sign in url for sign in "?#;"):
        return (
            f"{url}: no token or signature in a URL, it would be kept in the run's files; "
            f"download the table, and name the file"
        )
    return ""


def _apply_override(tree: dict[str, Any], lines: Lines, text: str) -> list[str]:
    """Set one `section.key=value` in `tree` and `lines`, in place; return its faults.

        tree                      text                     tree afterwards
        {train: {lr: 0.1}}        train.lr=1e-3            {train: {lr: 0.001}}
        {}                        loss.pos_weight.cat=2    {loss: {pos_weight: {cat: 2}}}
        {data: {train: a.csv}}    data.train=b.csv         {data: {train: /current/folder/b.csv}}
        {train: 3}                train.lr=1e-3            unchanged: `train: 3` is reported later
        {}                        data.label_delimiter=|   {data: {label_delimiter: "|"}}: one sign
                                                           is text, though YAML uses it for more
        any                       train.lr                 unchanged, and a fault: no value

    In `lines` the key gets line 0, which `describe_errors` shows as `override`.
    """
    dotted, equals, value_text = text.partition("=")
    if not equals or not all(dotted.split(".")):
        return [f"override '{text}': wanted section.key=value"]
    try:
        is_sign = value_text.strip() in _SIGNS
        value = value_text.strip() if is_sign else yaml12.parse(value_text)[0]
    except yaml12.YamlFault as fault:
        return [f"override '{text}'{fault}"]
    keys = tuple(dotted.split("."))
    layer: Any = value
    for key in reversed(keys):
        layer = {key: layer}
    faults: list[str] = []
    layer = _make_paths_absolute(layer, Path.cwd(), faults)
    if _merge_layer(tree, layer, keys):
        _mark_overridden(lines, keys)
    return faults


def _merge_layer(tree: dict[str, Any], layer: dict[str, Any], keys: Sequence[str]) -> bool:
    """Set the value at `keys` of `tree` to that of `layer`; return whether it could be set."""
    parent = tree
    for depth, key in enumerate(keys[:-1]):
        section = parent.get(key)
        if not isinstance(section, dict):
            if depth == 0 and section is not None:  # `train: 3` stays: the check reports it
                return False
            section = {}
        parent[key] = dict(section)  # a copy: the caller's tree stays as it is
        parent = parent[key]
        layer = layer[key]
    parent[keys[-1]] = layer[keys[-1]]
    return True


def _mark_overridden(lines: Lines, keys: tuple[str, ...]) -> None:
    """Give line 0 to the key path and to new keys above it; drop the lines of the old value."""
    for stale in [key_path for key_path in lines if key_path[: len(keys)] == keys]:
        del lines[stale]
    lines[keys] = 0
    for depth in range(1, len(keys)):
        lines.setdefault(keys[:depth], 0)
