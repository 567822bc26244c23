"""Labels that follow from labels, as `data.implies` says: a child, and the parents that it implies.

{siamese: cat, cat: [animal, pet]} -> list_ancestors -> siamese: cat, animal, pet
                                                        cat: animal, pet
"""

from collections.abc import Mapping

Implies = Mapping[str, str | list[str]]
"""Child -> its parent, or its parents."""


def list_parents(implies: Implies) -> dict[str, tuple[str, ...]]:
    """Return child -> its parents, each once."""
    return {
        child: (parents,) if isinstance(parents, str) else tuple(dict.fromkeys(parents))
        for child, parents in implies.items()
    }


def list_ancestors(implies: Implies) -> dict[str, tuple[str, ...]]:
    """Return child -> every label that it implies, through any number of steps, nearest first.

    Args:
        implies: without a cycle.
    """
    parents = list_parents(implies)
    found: dict[str, tuple[str, ...]] = {}
    for child in parents:
        ancestors = dict.fromkeys(parents[child])
        waiting = list(ancestors)
        for name in waiting:
            more = [x for x in parents.get(name, ()) if x not in ancestors]
            ancestors |= dict.fromkeys(more)
            waiting += more
        found[child] = tuple(ancestors)
    return found


def find_cycle(implies: Implies) -> list[str]:
    """Return labels that imply each other, the first again at the end; []: none do.

    {cat: animal, animal: cat} -> [cat, animal, cat]
    """
    parents = list_parents(implies)
    done: set[str] = set()
    for start in parents:
        path, branches = [start], [iter(parents[start])]
        while path:
            name = next(branches[-1], None)
            if name is None:
                done.add(path.pop())
                branches.pop()
            elif name in path:
                return [*path[path.index(name) :], name]
            elif name not in done:
                path.append(name)
                branches.append(iter(parents.get(name, ())))
    return []
