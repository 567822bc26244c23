"""Rows of a head that come from another one, by the names of their labels.

labels now, labels before -> match_labels -> which row becomes which
state of a former head    -> HeadRows.write -> these rows of the new head
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlfinetune.data.manifest import Manifest
from mlfinetune.text import list_labels


@dataclass(frozen=True)
class HeadRows:
    """Rows of a linear head, each with its column of the targets.

    Attributes:
        columns: n numbers of labels.
        weight: (n, F).
        bias: (n,).
    """

    columns: tuple[int, ...]
    weight: Tensor
    bias: Tensor

    def __len__(self) -> int:
        return len(self.columns)

    def take(self, columns: Sequence[int]) -> "HeadRows":
        """Return the rows of these labels, which must be among `columns`."""
        places = _place_on([self.columns.index(column) for column in columns], self.weight)
        return HeadRows(tuple(columns), self.weight[places], self.bias[places])

    @torch.no_grad()
    def write(self, head: nn.Module) -> None:
        """Write the rows into a head; its other rows stay as they are."""
        if not self.columns:
            return
        state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
        for name, rows in (("weight", self.weight), ("bias", self.bias)):
            state[name][_place_on(self.columns, state[name])] = rows.to(state[name])
        head.load_state_dict(state)


def read_rows(head: nn.Module, columns: Sequence[int]) -> HeadRows:
    """Return a copy of these rows of a head."""
    state = head.state_dict()
    places = _place_on(columns, state["weight"])
    return HeadRows(tuple(columns), state["weight"][places].clone(), state["bias"][places].clone())


def _place_on(columns: Sequence[int], tensor: Tensor) -> Tensor:
    """Return the numbers as an index on the device of a tensor."""
    return torch.tensor(columns, dtype=torch.long, device=tensor.device)


def match_labels(
    labels: Sequence[str], before: Sequence[str], renamed: Mapping[str, str]
) -> dict[int, int]:
    """Return column of a label -> its column before, for the labels that stay.

    A label with a new name (`renamed`, old -> new) stays, unless another one had that name:

        labels       before       renamed                    result
        cat dog fox  dog cat      {}                         {0: 1, 1: 0}
        cat dog      kitty dog    {kitty: cat}               {0: 0, 1: 1}
        cat          kitty tom    {kitty: cat, tom: cat}     {}: neither row is that of both
    """
    column = {name: index for index, name in enumerate(before)}
    old_names: dict[str, list[str]] = {}
    for old, new in renamed.items():
        if old in column:
            old_names.setdefault(new, []).append(old)
    found = {}
    for index, name in enumerate(labels):
        names = [name] if name in column else old_names.get(name, [])
        if len(names) == 1:
            found[index] = column[names[0]]
    return found


def describe_rows(labels: Sequence[str], before: Sequence[str], rows: Mapping[int, int]) -> str:
    """Tell which labels stay, which are new, and which went; `rows` is from `match_labels`."""
    stay = [labels[index] for index in rows]
    new = [name for index, name in enumerate(labels) if index not in rows]
    kept = set(rows.values())
    gone = [name for index, name in enumerate(before) if index not in kept]
    return (
        f"{list_labels(stay, ' that stay' if len(stay) != 1 else ' that stays')}; "
        f"new: {list_labels(new)}; gone: {list_labels(gone)}"
    )


def find_idle(columns: Sequence[int], train: Manifest) -> tuple[int, ...]:
    """Return the labels of which `train` has no positive or no negative: nothing tells their row.

    A solver would make such a row 0, whatever it was before.
    """
    positives, negatives, _ = train.targets.counts()
    return tuple(column for column in columns if not positives[column] or not negatives[column])
