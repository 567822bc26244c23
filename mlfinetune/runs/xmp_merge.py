"""A sidecar and the labels of its picture: which keywords come, which go, which are ours.

    by others     ours before           labels      by others   ours after
    sea           cat, dog              cat, fox    sea         cat, fox
    sea, cat      (none)                cat         sea, cat    (none: cat is not ours)
    sea           cat, taken out since  cat         sea         (none: people have rejected it)
    sea, cat      cat, taken out once   fox         sea, cat    fox (people's own cat stays)

A record in the file says which keywords are ours and where they come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlfinetune.data.images.xmp_packet import (
    HIERARCHY,
    OURS,
    RECORDS,
    REJECTED,
    SEPARATORS,
    SUBJECT,
    TAGS_LIST,
    Packet,
    XmpError,
    decode_packet,
    parse_packet,
)
from mlfinetune.runs.xmp_edit import SKELETON, add_properties, remove_properties

Lists = Mapping[str, Sequence[str]]
"""List of keywords (SUBJECT, HIERARCHY, TAGS_LIST) -> the keywords in it."""

_CHECKPOINT = f"{OURS} checkpoint"


@dataclass(frozen=True)
class Merge:
    """A sidecar with the labels of its picture.

    Attributes:
        content: the bytes of the file; None: it stays as it is.
        added: labels that come.
        removed: keywords of ours that go.
        rejected: labels that people took out of the file, and that do not come again.
    """

    content: bytes | None
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()


@dataclass(frozen=True)
class _State:
    """The keywords of a packet, list by list.

    Attributes:
        by_people: those that are not ours.
        ours: those that we wrote, and that are there.
        gone: those that we wrote, and that people took out.
        checkpoint: of the record; empty: there is none.
        is_stale: the record still calls some of `gone` ours; were people to add one again, it
            would be taken for ours.
    """

    by_people: dict[str, list[str]]
    ours: dict[str, list[str]]
    gone: dict[str, list[str]]
    checkpoint: str
    is_stale: bool = False

    def is_same(self, other: "_State") -> bool:
        """Return whether our part is the same; order says nothing."""
        pairs = [(self.ours, other.ours), (self.gone, other.gone)]
        same = all({*a[name]} == {*b[name]} for a, b in pairs for name in RECORDS)
        digests = [state.checkpoint.rpartition(" ")[2] for state in (self, other)]
        return same and digests[0] == digests[1]  # a run may be moved


def merge_keywords(
    content: bytes | None, labels: Sequence[str], checkpoint: str, inside: Lists
) -> Merge:
    """Return a sidecar with these labels as keywords, beside those of others.

    Args:
        content: the sidecar; None: there is none.
        labels: `animals|birds` is a path, whose last level is the flat keyword.
        checkpoint: name and digest of what predicted them.
        inside: keywords in the picture itself. A new sidecar begins with them, since programs read
            it in their place.

    Raises:
        XmpError: the sidecar is no XMP, or cannot be merged.
    """
    text, encoding, mark = (SKELETON, "utf-8", b"") if content is None else decode_packet(content)
    packet = parse_packet(text)
    if content is None:
        packet = add_properties(packet, inside, {})
    before = _read_state(packet)
    rejected = tuple(x for x in labels if split_levels(x)[-1] in before.gone[SUBJECT])
    after = _plan(before, [label for label in labels if label not in rejected], checkpoint)
    is_needless = content is None and not any(after.ours.values())
    if is_needless or (before.is_same(after) and not before.is_stale):
        return Merge(None, rejected=rejected)
    bare = remove_properties(packet, before.ours, OURS)
    edited = add_properties(bare, *_list_properties(after))
    read = _read_state(edited)
    if not read.is_same(after) or read.by_people != before.by_people:
        raise XmpError("its RDF is written in a way that cannot be merged")
    old, new = _list_labels(before), _list_labels(after)
    return Merge(
        mark + edited.content.decode().encode(encoding, "xmlcharrefreplace"),
        tuple(label for label in new if label not in old),
        tuple(label for label in old if label not in new),
        rejected,
    )


def split_levels(label: str) -> list[str]:
    """Return the levels of a label: `animals|birds` has two; `b/w` has one."""
    levels = [level.strip() for level in label.split("|") if level.strip()]
    return levels or [label]


def _read_state(packet: Packet) -> _State:
    by_people, ours, gone = dict[str, list[str]](), dict[str, list[str]](), dict[str, list[str]]()
    is_stale = False
    for name, record in RECORDS.items():
        values, recorded = packet.list_values(name), packet.list_values(record)
        rejected = packet.list_values(REJECTED[name])
        by_people[name] = [value for value in values if value not in recorded]
        ours[name] = [value for value in values if value in recorded]
        lost = dict.fromkeys((*recorded, *rejected))
        gone[name] = [value for value in lost if value not in values]
        is_stale |= not {*recorded} <= {*values}
    checkpoint = " ".join(packet.list_values(_CHECKPOINT))
    return _State(by_people, ours, gone, checkpoint, is_stale)


def _plan(before: _State, labels: Sequence[str], checkpoint: str) -> _State:
    """Return the keywords that are to be there, with these labels.

    digiKam's list is kept up where there is one: digiKam then reads no other. For the same reason a
    list of paths that we begin repeats the flat keywords of people, which would else be hidden.
    """
    people = before.by_people
    paths = [split_levels(label) for label in labels]
    paths = [levels for levels in paths if len(levels) > 1 or levels[0] not in people[SUBJECT]]
    ours = {SUBJECT: [levels[-1] for levels in paths], HIERARCHY: [], TAGS_LIST: []}
    if people[TAGS_LIST] or before.ours[TAGS_LIST]:
        ours[TAGS_LIST] = _join_levels(paths, people[TAGS_LIST], "/")
    ours[HIERARCHY] = _join_levels(paths, people[HIERARCHY], "|")
    if ours[HIERARCHY] and not people[HIERARCHY]:
        ours[HIERARCHY] = [*people[SUBJECT], *ours[HIERARCHY]]
    for name, keywords in ours.items():
        ours[name] = [x for x in dict.fromkeys(keywords) if x not in people[name]]
    gone = {name: [x for x in before.gone[name] if x not in ours[name]] for name in RECORDS}
    has_any = any(map(any, (*ours.values(), *gone.values())))
    return _State(people, ours, gone, checkpoint if has_any else "")


def _join_levels(paths: Sequence[Sequence[str]], by_people: Sequence[str], sign: str) -> list[str]:
    """Return the labels as paths; a label of one level that ends a path of people is theirs."""
    leaves = {keyword.rpartition(sign)[2].strip() for keyword in by_people}
    return [
        sign.join(levels)
        for levels in paths
        if not (len(levels) == 1 and levels[0] in leaves)
        and not any(sign in level for level in levels)
    ]


def _list_properties(state: _State) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the lists and the texts that a packet gets."""
    lists = {name: keywords for name, keywords in state.ours.items() if keywords}
    lists |= {RECORDS[name]: keywords for name, keywords in state.ours.items() if keywords}
    lists |= {REJECTED[name]: keywords for name, keywords in state.gone.items() if keywords}
    return lists, {_CHECKPOINT: state.checkpoint} if state.checkpoint else {}


def _list_labels(state: _State) -> list[str]:
    """Return our keywords as labels: paths of several levels, and flat ones that end none."""
    sign = SEPARATORS[HIERARCHY]
    paths = [keyword for keyword in state.ours[HIERARCHY] if sign in keyword]
    leaves = {path.rpartition(sign)[2] for path in paths}
    return [*paths, *(keyword for keyword in state.ours[SUBJECT] if keyword not in leaves)]
