"""`mlfinetune models`: backbones by name, with their size, and the weights on this machine."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from mlfinetune.errors import ConfigError
from mlfinetune.models.backbones import BACKBONES
from mlfinetune.models.preprocessing import (
    count_parameters,
    find_preprocessing,
    list_weights,
)
from mlfinetune.models.pretrained import is_cached
from mlfinetune.models.timm_backbones import (
    PREFIX,
    count_timm_parameters,
    has_timm,
    is_timm,
    list_timm_names,
)
from mlfinetune.text import suggest

MAX_COUNTED = 20
"""Models of timm whose parameters are counted: each is built for that, without memory."""


@dataclass(frozen=True)
class BackboneEntry:
    """A backbone that `model.backbone` takes.

    Attributes:
        name: as `model.backbone` takes it.
        parameters: with 1,000 classes; None: not counted.
        image_size: side of the pictures in pixels, with `model.image_size: auto`.
        weights: names for `model.weights`, the best one first.
        cached: those that are on this machine.
    """

    name: str
    parameters: int | None
    image_size: int
    weights: tuple[str, ...]
    cached: tuple[str, ...]


@dataclass(frozen=True)
class BackboneList:
    """The backbones that match, and what is not shown, in words."""

    entries: tuple[BackboneEntry, ...]
    notes: tuple[str, ...]


def run(pattern: str | None) -> BackboneList:
    """List the backbones that match a pattern; without one, those of torchvision.

    Args:
        pattern: of the shell (`timm/vit_*`), or a part of a name.

    Raises:
        ConfigError: no name matches.
    """
    names, notes = _find_names(pattern)
    of_timm = sum(map(is_timm, names))
    counts = of_timm <= MAX_COUNTED
    if not counts:
        notes.append(
            f"{of_timm} models of timm: their parameters are counted where at most {MAX_COUNTED} "
            f"match"
        )
    return BackboneList(tuple(_describe(name, counts) for name in names), tuple(notes))


def _find_names(pattern: str | None) -> tuple[list[str], list[str]]:
    """Return the names that match, and notes on those that are not looked at."""
    of_torchvision = [name for name in BACKBONES if list_weights(name)]
    if pattern is None:
        hint = "" if has_timm() else ', after pip install "mlfinetune[timm]"'
        return of_torchvision, [f"timm has more: mlfinetune models '{PREFIX}*'{hint}"]
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    known, notes = list(of_torchvision), []
    if has_timm():
        known += list_timm_names()
    else:
        notes.append('models of timm need an extra: pip install "mlfinetune[timm]"')
    names = [name for name in known if fnmatchcase(name, pattern)]
    if not names:
        whole = sorted({*known, *(name.partition(".")[0] for name in known)})
        hint = suggest(pattern.strip("*"), whole) or "."
        raise ConfigError(" ".join([f"no backbone matches '{pattern}'{hint}", *notes]))
    return names, notes


def _describe(name: str, counts: bool) -> BackboneEntry:
    weights = list_weights(name)
    if is_timm(name):
        parameters = count_timm_parameters(name) if counts else None
        weights = weights[:1] if "." in name else weights
    else:
        parameters = count_parameters(name)
    return BackboneEntry(
        name,
        parameters,
        find_preprocessing(name, weights[0] if weights else None).image_size,
        tuple(weights),
        tuple(each for each in weights if is_cached(name, each)),
    )
