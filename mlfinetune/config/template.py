"""The commented config that `mlfinetune init` writes: a template in which settings take a place.

Setting("data.images", "photos", "the pictures")
->  data:
      train: tags.csv
      images: photos             # the pictures
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from mlfinetune.text import quote_yaml

_TEMPLATE = """\
data:
  train: ""
  # format: auto               # detected; name it where the guess is wrong
  bad_images: error
  empty_labels: negative     # a picture without a label has none of them; or unknown, error
  # min_positives: 10        # leave out labels with fewer pictures
  # unknown: ignore          # unknown targets (blank cells) are masked; negative takes them for no
  # ignore_labels: []
  # rename_labels: {}        # old: new; joins spellings

model:
  backbone: resnet50
  weights: auto              # the best published ones, a name, a file, or null: random
  # levels: auto             # 2 of a ResNet: the means of layer3 besides layer4's; 1: layer4 alone
  freeze_backbone: false     # true: only the head, on features computed once; no rate to tune
  image_size: auto           # pixels of a side: 224 for a ResNet
  resize: squash             # squash | crop | pad

train:
  epochs: 10
  batch_size: 32             # out of memory? halve it, or set accumulate: 2
  lr: 1e-4                   # of the backbone
  head_lr: 1e-3
  # early_stopping: 3        # epochs without a better mAP
  # seed: 0

loss:
  pos_weight: null           # auto: rare labels weigh more

# output: runs
"""

_NEW_KEYS_BEFORE = "  bad_images:"
"""The line before which keys of the data get their place, where the template has none for them."""
_PLAIN = re.compile(r"(?:/|(?:\.\.?/)*)[A-Za-z_][\w./+-]*", re.ASCII)
_KEYWORDS = ("null", "true", "false", "yes", "no", "on", "off")
_WIDTH = 28
"""Column of the comments, at least."""


@dataclass(frozen=True)
class Setting:
    """A key of the config and its value.

    Attributes:
        key: with its section, as `data.images`; `output` has none.
        value: text, a number, a bool, None, or a list or mapping of these.
        why: the comment beside it; empty: the template's stays.
        is_comment: the key is shown in a comment, for the user to take up.
    """

    key: str
    value: Any
    why: str = ""
    is_comment: bool = False


def fill_template(head: Sequence[str], settings: Iterable[Setting]) -> str:
    """Return the text of a config; a later setting of a key replaces an earlier one.

    Args:
        head: lines of the comment at the top.
        settings: what differs from the template.
    """
    lines = _TEMPLATE.splitlines()
    for setting in settings:
        _put_setting(lines, setting)
    return "\n".join([*(f"# {line}" for line in head), "", *lines, ""])


def make_relative(setting: Setting, folder: Path) -> Setting:
    """Return the setting with a path relative to `folder`; any other value stays."""
    if not isinstance(setting.value, Path):
        return setting
    return replace(setting, value=os.path.relpath(setting.value, folder))


def format_value(value: Any) -> str:
    """Return a value as YAML in one line; text is quoted where it needs it."""
    if isinstance(value, str | PathLike):
        text = str(value)
        is_plain = _PLAIN.fullmatch(text) and text.casefold() not in _KEYWORDS
        return text if is_plain else quote_yaml(text)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, dict):
        pairs = (f"{format_value(str(key))}: {format_value(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    return json.dumps(value)


def _put_setting(lines: list[str], setting: Setting) -> None:
    """Put a setting into the line of its key, or into a new line of its section."""
    section, _, key = setting.key.rpartition(".")
    first, last = _find_section(lines, section)
    indent = "  " if section else ""
    pattern = re.compile(rf"{indent}(?:# )?{re.escape(key)}:.*?(?:\s# (.*))?")
    for index in range(first, last):
        if match := pattern.fullmatch(lines[index]):
            lines[index] = _format_line(indent, key, setting, match[1] or "")
            return
    place = last
    if section == "data":
        place = next(n for n in range(first, last) if lines[n].startswith(_NEW_KEYS_BEFORE))
    lines.insert(place, _format_line(indent, key, setting, ""))


def _find_section(lines: list[str], section: str) -> tuple[int, int]:
    """Return the range of the lines of a section; it is begun where the template has none."""
    if not section:
        return 0, len(lines)
    if f"{section}:" not in lines:
        lines[-1:] = [f"{section}:", "", lines[-1]]  # before the line of `output`
    first = lines.index(f"{section}:") + 1
    return first, lines.index("", first)


def _format_line(indent: str, key: str, setting: Setting, comment: str) -> str:
    """Return `  key: value     # comment`."""
    mark = "# " if setting.is_comment else ""
    line = f"{indent}{mark}{key}: {format_value(setting.value)}"
    comment = setting.why or comment
    return f"{line:<{_WIDTH}} # {comment}" if comment else line
