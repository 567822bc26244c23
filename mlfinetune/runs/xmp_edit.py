"""Edits of an XMP packet's bytes: keywords come and go, all else stays as it was written.

    <rdf:Bag>                                <rdf:Bag>
      <rdf:li>sea</rdf:li>    add cat ->       <rdf:li>sea</rdf:li>
    </rdf:Bag>                                 <rdf:li>cat</rdf:li>
                                             </rdf:Bag>

What is removed takes the space before it along, so that a removal undoes an addition to the byte.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

from mlfinetune.data.images.xmp_packet import (
    CONTAINERS,
    DC,
    DIGIKAM,
    LIGHTROOM,
    OURS,
    RDF,
    Element,
    Packet,
    XmpError,
    find_container,
    list_items,
    parse_packet,
    read_text,
)

Edit = tuple[int, int, bytes]
"""First byte, byte after the last one, and the bytes that take their place."""

SKELETON = f"""\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="mlfinetune">
 <rdf:RDF xmlns:rdf="{RDF}">
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""
"""A packet without properties."""

_PREFIXES = {DC: "dc", LIGHTROOM: "lr", DIGIKAM: "digiKam", OURS: "mlfinetune"}
_ABOUT = (f"{RDF} about", "about")
_NAME = re.compile(rb"<([^\s/>]+)")
_ATTRIBUTE = re.compile(rb"""\s+(?:([^\s=:]+):)?[^\s=:]+\s*=\s*(?:"[^"]*"|'[^']*')""")
_OUR_PREFIX = re.compile(rb"""xmlns:([^\s=:]+)\s*=\s*["']%s["']""" % re.escape(OURS.encode()))


def add_properties(
    packet: Packet, lists: Mapping[str, Sequence[str]], texts: Mapping[str, str]
) -> Packet:
    """Return the packet with more items in its lists, and with more properties.

    Args:
        packet: has an rdf:RDF, and none of the `texts`.
        lists: property -> the items to add at its end; a list that is not there is begun.
        texts: property -> its text.

    Raises:
        XmpError: a property is there, and is no list.
    """
    edits, begun = list[Edit](), dict[str, Sequence[str]]()
    for name, items in lists.items():
        if not items:
            continue
        place = _find_list(packet, name)
        if place is None:
            begun[name] = items
            there = packet.find_properties(name)
            if any(_holds_more(element, list_items(element)) for element in there):
                raise XmpError("its RDF is written in a way that cannot be merged")
            edits += [_cut(packet, element) for element in there]
        else:
            edits.append(_append_items(packet.content, place, items))
    packet = _apply(packet, edits)
    return _apply(packet, [_insert_description(packet, begun, texts)] if begun or texts else [])


def remove_properties(packet: Packet, lists: Mapping[str, Sequence[str]], namespace: str) -> Packet:
    """Return the packet without some items of its lists, and without a namespace.

    A list, or an rdf:Description, that is empty then goes too.

    Args:
        packet: the packet.
        lists: property -> the items to remove.
        namespace: all of its properties go.
    """
    edits = list[Edit]()
    for holder in packet.descriptions:
        cuts = [
            cut
            for element in holder.children
            for cut in _cut_within(packet, element, lists, namespace)
        ]
        attributes = list(_cut_attributes(packet.content, holder, namespace))
        if cuts and _is_blank(packet.content, holder, cuts, namespace):
            edits.append(_cut(packet, holder))
        else:
            edits += cuts + attributes
    return _apply(packet, edits)


def _apply(packet: Packet, edits: Sequence[Edit]) -> Packet:
    """Return the packet after edits that do not overlap."""
    if not edits:
        return packet
    parts, place = list[bytes](), 0
    for start, end, text in sorted(edits):
        parts += [packet.content[place:start], text]
        place = end
    return parse_packet(b"".join([*parts, packet.content[place:]]).decode())


# ---- adding -----------------------------------------------------------------------------


def _find_list(packet: Packet, name: str) -> Element | None:
    """Return the rdf:Bag of a property; None: it is not there, or there is nothing in it.

    Raises:
        XmpError: it is there, and is no list.
    """
    elements = packet.find_properties(name)
    for container in filter(None, map(find_container, elements)):
        return container
    if packet.list_values(name):
        raise XmpError(f"its {name.rpartition(' ')[2]} is no list of keywords (rdf:Bag)")
    return None


def _append_items(content: bytes, container: Element, items: Sequence[str]) -> Edit:
    """Return the edit that puts items at the end of an rdf:Bag, spaced as the last one is."""
    match = _NAME.match(content, container.start)
    assert match is not None
    name = match[1].decode()
    prefix = name.rpartition(":")[0]
    li = f"{prefix}:li" if prefix else "li"
    last = container.find(f"{RDF} li")[-1:]
    space = _find_space(content, last[0].start) if last else b""
    text = b"".join(space + f"<{li}>{_escape(item)}</{li}>".encode() for item in items)
    if container.is_empty_tag(content):
        return container.inner - 2, container.inner, b">" + text + f"</{name}>".encode()
    place = last[0].end if last else container.inner
    return place, place, text


def _insert_description(
    packet: Packet, lists: Mapping[str, Sequence[str]], texts: Mapping[str, str]
) -> Edit:
    """Return the edit that adds an rdf:Description with these properties after the last one."""
    content, rdf, holders = packet.content, packet.rdf, packet.descriptions
    place = holders[-1].end if holders else rdf.inner
    space = _find_space(content, holders[-1].start) if holders else b"\n  "
    about = f"rdf:about={quoteattr(_find_about(holders))}"
    if not content.startswith(b"<rdf:", rdf.start):
        about = f'xmlns:rdf="{RDF}" {about}'
    text = _format_description(about, lists, texts, space.decode())
    if rdf.is_empty_tag(content):
        match = _NAME.match(content, rdf.start)
        assert match is not None
        return rdf.inner - 2, rdf.inner, b">" + text.encode() + b"</" + match[1] + b">"
    return place, place, text.encode()


def _find_about(holders: Sequence[Element]) -> str:
    """Return the value that rdf:about must have in each rdf:Description of a packet."""
    values = (holder.attributes.get(name) for holder in holders for name in _ABOUT)
    return next(filter(None, values), "")


def _format_description(
    about: str, lists: Mapping[str, Sequence[str]], texts: Mapping[str, str], space: str
) -> str:
    """Return an rdf:Description.

    Args:
        about: its first attributes.
        lists, texts: its properties.
        space: what stands before it, as a line break and spaces; its parts are indented by more.
    """
    one, two, three = (space + " " * more if "\n" in space else "" for more in (1, 2, 3))
    uris = dict.fromkeys(name.rpartition(" ")[0] for name in (*lists, *texts))
    declared = (f"{three or ' '}xmlns:{_PREFIXES[uri]}={quoteattr(uri)}" for uri in uris)
    lines = [f"{space}<rdf:Description {about}{''.join(declared)}>"]
    for name, items in lists.items():
        tag = _format_name(name)
        lines += [f"{one}<{tag}>", f"{two}<rdf:Bag>"]
        lines += [f"{three}<rdf:li>{_escape(item)}</rdf:li>" for item in items]
        lines += [f"{two}</rdf:Bag>", f"{one}</{tag}>"]
    for name, value in texts.items():
        tag = _format_name(name)
        lines.append(f"{one}<{tag}>{_escape(value)}</{tag}>")
    return "".join([*lines, f"{space}</rdf:Description>"])


def _escape(text: str) -> str:
    """Return text as XML holds it; a carriage return would else be read as a line feed."""
    return escape(text, {"\r": "&#13;"})


def _format_name(name: str) -> str:
    uri, _, local = name.rpartition(" ")
    return f"{_PREFIXES[uri]}:{local}"


# ---- removing ---------------------------------------------------------------------------


def _cut_within(
    packet: Packet, element: Element, lists: Mapping[str, Sequence[str]], namespace: str
) -> Iterator[Edit]:
    """Yield the edits that remove a property, or some of its items."""
    if element.name.startswith(f"{namespace} "):
        yield _cut(packet, element)
        return
    wanted, items = {*lists.get(element.name, ())}, list_items(element)
    gone = [item for item in items if read_text(item) in wanted]
    if gone and len(gone) == len(items):
        if _holds_more(element, items):
            raise XmpError("its RDF is written in a way that cannot be merged")
        yield _cut(packet, element)
    else:
        yield from (_cut(packet, item) for item in gone)


def _holds_more(element: Element, items: Sequence[Element]) -> bool:
    """Return whether a property has elements beside the items of its list, as rdf:value or rdf:_1.

    They may be keywords, and would go with it.
    """
    kept = {id(item) for item in items}
    others, waiting = 0, list(element.children)
    while waiting:
        each = waiting.pop()
        if id(each) not in kept:
            others += 1
            waiting += each.children
    return others > len(element.find(*CONTAINERS))


def _cut_attributes(content: bytes, holder: Element, namespace: str) -> Iterator[Edit]:
    """Yield the edits that remove the attributes of our namespace; some programs write such."""
    if not any(name.startswith(f"{namespace} ") for name in holder.attributes):
        return
    prefixes = {*_OUR_PREFIX.findall(content)}
    for match in _ATTRIBUTE.finditer(content, holder.start, holder.inner):
        if match[1] in prefixes:
            yield match.start(), match.end(), b""


def _is_blank(content: bytes, holder: Element, cuts: Sequence[Edit], namespace: str) -> bool:
    """Return whether an rdf:Description says nothing any more after the cuts."""
    others = [n for n in holder.attributes if n not in _ABOUT and not n.startswith(f"{namespace} ")]
    rest, place = b"", holder.inner
    for start, end, _ in sorted(cuts):
        rest += content[place:start]
        place = end
    return not others and not (rest + content[place : holder.inner_end]).strip()


def _cut(packet: Packet, element: Element) -> Edit:
    """Return the edit that removes an element and the space before it."""
    space = _find_space(packet.content, element.start)
    return element.start - len(space), element.end, b""


def _find_space(content: bytes, place: int) -> bytes:
    """Return the white space that ends before a byte."""
    start = place
    while start and content[start - 1 : start].isspace():
        start -= 1
    return content[start:place]
