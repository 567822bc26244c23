"""Labels that follow from labels: `data.implies` fills in the targets of a table.

With siamese -> cat -> animal and dog -> animal, rows of lists:

    tags of the row     animal  cat  dog  siamese
    siamese             1       1    0    1          a child's positive makes its parents positive
    cat                 1       1    0    ?          nobody said which cat: the children are unknown
    animal              1       ?    ?    ?
    animal, dog         1       0    1    0          a child is named: its siblings stay absent
    (none)              0       0    0    0

Rows of states, 1, 0 and blank (?):

    animal cat siamese  ->  animal cat siamese
    ?      ?   1            1      1   1
    0      ?   ?            0      0   0             a parent's negative makes its children negative
    1      0   ?            1      0   0             what is 0 stays 0
    1      ?   ?            1      ?   ?
    0      1   ?            a fault of the row
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlfinetune.config.hierarchy import Implies, list_ancestors, list_parents
from mlfinetune.data.table import Fault, Table
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN, LabelSpace, Targets
from mlfinetune.errors import DataError
from mlfinetune.text import format_list, pluralize, suggest

States = NDArray[np.int8]
_KEY = "data.implies"


def apply_implies(table: Table, implies: Implies, is_one_of_several: bool = False) -> Table:
    """Return the table with the targets that follow, a note with their numbers, and its faults.

    Labels that the table lacks become columns: a parent is a label because a child implies it.

    Args:
        table: after `rename_labels`, before `ignore_labels`.
        implies: child -> parents, without a cycle.
        is_one_of_several: other tables know labels that this one lacks: these are unknown in rows
            of lists too.
    """
    if not implies or not len(table):
        return table
    space = LabelSpace(tuple(dict.fromkeys([*table.labels.names, *_list_names(implies)])))
    hierarchy = _Hierarchy.of(implies, space)
    faults: list[Fault] = []
    changed = np.zeros(3, np.int64)

    def fill(start: int, block: States) -> States:
        unnamed = table.unnamed[start : start + len(block), None]
        lacking = np.full_like(unnamed, UNKNOWN) if is_one_of_several else unnamed
        more = np.repeat(lacking, len(space) - block.shape[1], axis=1)
        before = np.concatenate([block, more], axis=1)
        listed = unnamed[:, 0] == NEGATIVE
        for row, text in sorted(hierarchy.find_contradictions(before, listed)):
            faults.append(table.build_fault(start + row, text))
        after = hierarchy.fill(before, listed)
        is_new = after != before
        for place, state in enumerate((POSITIVE, NEGATIVE, UNKNOWN)):
            changed[place] += int((is_new & (after == state)).sum())
        return after

    blocks = (fill(start, block) for start, block in table.targets.blocks(len(space)))
    targets = Targets.pack(blocks, len(space))
    counts = ", ".join(
        f"{n:,} {word}" for n, word in zip(changed, ("present", "absent", "unknown"), strict=True)
    )
    note = f"{_KEY} decides {pluralize(int(changed.sum()), 'target')}: {counts}"
    return replace(
        table,
        targets=targets,
        labels=space,
        notes=(*table.notes, note),
        faults=(*table.faults, *faults),
    )


def check_implied_names(
    implies: Implies,
    known: Sequence[str],
    renames: dict[str, str],
    labels: Sequence[str] | None,
    ignored: Sequence[str],
) -> list[str]:
    """Return notes on labels that are labels because others imply them.

    Args:
        implies: child -> parents.
        known: labels of the data, by their new names.
        renames: old name -> new name.
        labels: `data.labels`; None: those of the data.
        ignored: `data.ignore_labels`.

    Raises:
        DataError: names that no picture has, and no label implies.
    """
    ancestors = list_ancestors(implies)
    implied = {name for child in ancestors if child in known for name in ancestors[child]}
    reachable = {*known, *implied, *(labels or ())}
    faults = []
    for name in _list_names(implies):
        if labels is not None and name not in labels and name not in ignored:
            faults.append(f"{_KEY}: {name!r} is not in data.labels{suggest(name, labels)}")
        elif name not in reachable and not any(name in above for above in ancestors.values()):
            meant = suggest(name, known)
            if name in renames:
                meant = f"; it is renamed to {renames[name]!r} (data.rename_labels)"
            faults.append(f"{_KEY}: no label {name!r} in the data{meant}")
    if faults:
        raise DataError("labels that no table has\n" + format_list(faults))
    new = sorted(implied.difference(known))
    return [f"{name!r}: a label by {_KEY} alone{suggest(name, known)}" for name in new]


def _list_names(implies: Implies) -> list[str]:
    """Return children and parents, each once."""
    parents = list_parents(implies)
    return list(dict.fromkeys([*parents, *(name for names in parents.values() for name in names)]))


@dataclass(frozen=True)
class _Hierarchy:
    """The columns of a hierarchy.

    Attributes:
        names: of all columns.
        ancestors: column -> columns that it implies, through any number of steps.
        parents: the same with one step, parents before their children.
    """

    names: tuple[str, ...]
    ancestors: dict[int, list[int]]
    parents: dict[int, list[int]]

    @classmethod
    def of(cls, implies: Implies, space: LabelSpace) -> "_Hierarchy":
        column = space.column
        ancestors = {
            column[child]: [column[name] for name in above]
            for child, above in list_ancestors(implies).items()
        }
        direct = list_parents(implies)
        # A parent has fewer ancestors than its child, which has those of the parent too.
        order = sorted(direct, key=lambda child: len(ancestors[column[child]]))
        parents = {column[child]: [column[name] for name in direct[child]] for child in order}
        return cls(space.names, ancestors, parents)

    def find_contradictions(
        self, states: States, listed: NDArray[np.bool_]
    ) -> Iterator[tuple[int, str]]:
        """Yield rows where a child is present and a parent said to be absent, with the text.

        In a row of lists absence is not said.
        """
        for child, above in self.ancestors.items():
            absent = (states[:, above] == NEGATIVE) & ~listed[:, None]
            for row in np.flatnonzero((states[:, child] == POSITIVE) & absent.any(axis=1)):
                parents = [self.names[above[place]] for place in np.flatnonzero(absent[row])]
                verb = "is" if len(parents) == 1 else "are"
                yield (
                    int(row),
                    f"{self.names[child]!r} is present, and "
                    f"{', '.join(map(repr, parents))} {verb} absent ({_KEY})",
                )

    def fill(self, before: States, listed: NDArray[np.bool_]) -> States:
        """Return (n, L) states with what follows; `listed` (n,): rows of lists."""
        states = before.copy()
        for child, ancestors in self.ancestors.items():
            states[np.ix_(before[:, child] == POSITIVE, ancestors)] = POSITIVE
        present = states == POSITIVE
        named = np.zeros_like(present)  # a child of this label is present
        for child, parents in self.parents.items():
            named[:, parents] |= present[:, [child]]
        opened = present & ~named & listed[:, None]  # nobody said which of its children
        for child, parents in self.parents.items():
            above: States = states[:, parents]
            absent = (above == NEGATIVE).any(axis=1)
            states[absent & (states[:, child] == UNKNOWN), child] = NEGATIVE
            is_said = absent | (present[:, parents] & named[:, parents]).any(axis=1)
            follows = opened[:, parents].any(axis=1) & ~is_said & (states[:, child] == NEGATIVE)
            states[follows, child] = UNKNOWN
            opened[:, child] |= follows
        return states
