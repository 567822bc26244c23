"""Finding: one problem or oddity of a data set, as `check` reports it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A problem or an oddity of a data set.

    Attributes:
        severity: `error` where training would fail or its numbers would mislead, else `warning`.
        kind: an identifier for programs, such as `unreadable`.
        message: one line for people.
        items: the pictures, rows or labels concerned, one line each.
        remedy: the line of a config that mends it, as `data.ignore_labels: ["none"]`; empty where
            no one line does.
    """

    severity: str
    kind: str
    message: str
    items: tuple[str, ...] = ()
    remedy: str = ""


def build_finding(
    severity: str, kind: str, message: str, items: Sequence[str], remedy: str = ""
) -> list[Finding]:
    """Return a list with the finding, or an empty list where it has no items."""
    return [Finding(severity, kind, message, tuple(items), remedy)] if items else []
