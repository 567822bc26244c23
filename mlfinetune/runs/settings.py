"""Settings that results were made with, and the difference of two.

run directory: config.yaml; folder of eval: metrics.json -> read_settings -> key: value
two of these -> list_differences -> key: (value of A, value of B)
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mlfinetune.config import load_config
from mlfinetune.errors import ConfigError
from mlfinetune.runs import directory

_CHANGE_NOTHING = ("output", "note", "train.workers", "train.trackers", "train.save_minutes")
"""Keys that change no weight and no number. The list of training/resume.py is longer: a resumed run
may also change keys that change numbers, but no weight."""
NOT_SET = "not set"
"""Stands for a key that one side has and the other lacks, as in a mapping of labels."""


def read_settings(folder: Path, content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return dotted key -> value of a run directory, or of a folder that eval wrote.

    Besides the config's keys there are `checkpoint`, the name of the file, and `versions`.

    Args:
        folder: a run directory, or a folder of eval's results.
        content: of its metrics.json.

    Returns:
        None where the settings are not known: results of an older version.
    """
    config = content.get("settings")
    if not isinstance(config, dict):
        try:
            config = load_config(folder / directory.CONFIG).model_dump(mode="json")
        except ConfigError:
            return None
    settings = flatten_settings(config)
    if settings.get("model.levels") == "auto":  # of an earlier version, which had one
        settings["model.levels"] = 1
    settings["checkpoint"] = Path(str(content.get("checkpoint", directory.BEST))).name
    versions = content.get("versions")
    if isinstance(versions, dict):
        settings |= {f"versions.{name}": version for name, version in versions.items()}
    return settings


def flatten_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return dotted key -> value of a config, without the keys that change no number."""
    return leave_out(flatten_keys(config), _CHANGE_NOTHING)


def flatten_keys(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to dotted keys: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten_keys(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def leave_out(flat: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the dotted keys that are none of `names`, nor below one of them."""
    return {
        key: value
        for key, value in flat.items()
        if not any(key == name or key.startswith(f"{name}.") for name in names)
    }


def list_differences(
    a: Mapping[str, Any], b: Mapping[str, Any]
) -> dict[str, tuple[object, object]]:
    """Return the keys whose values differ, with both; versions only where both are known."""
    differing = {}
    for key in sorted({*a, *b}):
        pair = a.get(key, NOT_SET), b.get(key, NOT_SET)
        is_unknown = key.startswith("versions.") and NOT_SET in pair
        if pair[0] != pair[1] and not is_unknown:
            differing[key] = pair
    return differing
