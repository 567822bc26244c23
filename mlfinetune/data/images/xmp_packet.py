"""XMP packets: the XML in which photo programs keep keywords, parsed safely, with places in it.

bytes -> decode_packet -> parse_packet -> Packet: its properties, and where each begins and ends

    <rdf:Description rdf:about="">
      <dc:subject><rdf:Bag><rdf:li>cat</rdf:li></rdf:Bag></dc:subject>      dc:subject: cat
    </rdf:Description>

A document type is refused, so that no entity can grow or name a file; size, depth and number of
elements are bounded. Source: the XMP specification, part 1 (ISO 16684-1), and expat's manual.
"""

import codecs
import re
from dataclasses import dataclass, field
from xml.parsers import expat

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
LIGHTROOM = "http://ns.adobe.com/lightroom/1.0/"
DIGIKAM = "http://www.digikam.org/ns/1.0/"
OURS = "urn:mlfinetune:xmp:1.0/"
"""Namespace of the record that says which keywords `mlfinetune predict` wrote."""

SUBJECT = f"{DC} subject"
HIERARCHY = f"{LIGHTROOM} hierarchicalSubject"
TAGS_LIST = f"{DIGIKAM} TagsList"
"""Keywords: flat; as paths `animals|birds`; as digiKam's paths `animals/birds`."""
RECORDS = {
    SUBJECT: f"{OURS} predictedSubject",
    HIERARCHY: f"{OURS} predictedHierarchicalSubject",
    TAGS_LIST: f"{OURS} predictedTagsList",
}
"""List of keywords -> the list of those in it that are ours."""
REJECTED = {name: record.replace("predicted", "rejected") for name, record in RECORDS.items()}
"""List of keywords -> the list of ours that people took out of it."""
SEPARATORS = {HIERARCHY: "|", TAGS_LIST: "/"}

MAX_BYTES = 16_000_000
MAX_DEPTH = 64
MAX_ELEMENTS = 200_000
_RDF = f"{RDF} RDF"
CONTAINERS = (f"{RDF} Bag", f"{RDF} Seq", f"{RDF} Alt")
_START_TAG = re.compile(rb"""<[^\s/>]+(?:[^>"']|"[^"]*"|'[^']*')*>""")
_DECLARED = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([\w.-]+)["']""")
_SINGLE_BYTE = re.compile(r"(iso8859-\d+|cp125\d|ascii)")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark begins it
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_UNREPRESENTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class XmpError(ValueError):
    """A packet that cannot be read; the text is the reason, in words."""


@dataclass
class Element:
    """An element of a packet.

    Attributes:
        name: namespace and local name, with a space between.
        attributes: in the same form -> value.
        start, end: bytes from the start tag to the end tag, both included.
        inner, inner_end: bytes between the tags; equal in `<a/>`.
        pieces: the characters in it that are in no child.
        children: the elements in it.
    """

    name: str
    attributes: dict[str, str]
    start: int
    inner: int
    inner_end: int = -1
    end: int = -1
    pieces: list[str] = field(default_factory=list)
    children: list["Element"] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The characters in it that are in no child."""
        return "".join(self.pieces)

    def find(self, *names: str) -> "list[Element]":
        """Return the children of these names."""
        return [child for child in self.children if child.name in names]

    def is_empty_tag(self, content: bytes) -> bool:
        """Return whether the element is written `<a/>`."""
        return content[self.inner - 2 : self.inner] == b"/>"


@dataclass(frozen=True)
class Packet:
    """A parsed packet.

    Attributes:
        content: the XML in UTF-8, without a byte order mark.
        rdf: its rdf:RDF.
    """

    content: bytes
    rdf: Element

    @property
    def descriptions(self) -> list[Element]:
        """The rdf:Description elements, which hold the properties."""
        return self.rdf.find(f"{RDF} Description")

    def find_properties(self, name: str) -> list[Element]:
        """Return the elements of a property; a program writes one, or none."""
        return [element for holder in self.descriptions for element in holder.find(name)]

    def list_values(self, name: str) -> list[str]:
        """Return the values of a property that is a list of texts, or one text; each once."""
        values = [holder.attributes.get(name, "") for holder in self.descriptions]
        for element in self.find_properties(name):
            items = list_items(element)
            values += [read_text(item) for item in items] if items else [element.text]
        return list(dict.fromkeys(value.strip() for value in values if value.strip()))


@dataclass(frozen=True)
class Keywords:
    """The keywords of a packet, list by list (SUBJECT, HIERARCHY, TAGS_LIST).

    Attributes:
        by_people: those that we did not write.
        ours: those that the packet's record says we wrote, and that are still there.
    """

    by_people: dict[str, list[str]]
    ours: dict[str, list[str]]


def read_keywords(packet: Packet) -> Keywords:
    """Return the keywords of a packet, with ours apart."""
    by_people, ours = {}, {}
    for name, record in RECORDS.items():
        recorded = {*packet.list_values(record)}
        values = packet.list_values(name)
        by_people[name] = [value for value in values if value not in recorded]
        ours[name] = [value for value in values if value in recorded]
    return Keywords(by_people, ours)


def list_items(element: Element) -> list[Element]:
    """Return the rdf:li elements of a list."""
    containers = element.find(*CONTAINERS)
    return [item for container in containers for item in container.find(f"{RDF} li")]


def find_container(element: Element) -> Element | None:
    """Return the rdf:Bag (or Seq, Alt) of a list; None: the property is no list."""
    return next(iter(element.find(*CONTAINERS)), None)


def read_text(item: Element) -> str:
    """Return the text of an rdf:li; one with qualifiers has it in rdf:value."""
    values = item.find(f"{RDF} value")
    holders = [d for d in item.find(f"{RDF} Description") for _ in d.find(f"{RDF} value")]
    values += [value for holder in holders for value in holder.find(f"{RDF} value")]
    return (values[0].text if values else item.text).strip()


def find_unrepresentable(text: str) -> str | None:
    """Return the first character that XML 1.0 cannot hold, as `U+0001`; None: it has none."""
    match = _UNREPRESENTABLE.search(text)
    return f"U+{ord(match[0]):04X}" if match else None


# ---- parsing --------------------------------------------------------------------------------


def decode_packet(content: bytes) -> tuple[str, str, bytes]:
    """Return the text of an XML file, its encoding for Python, and its byte order mark.

    first bytes                               encoding
    a byte order mark                         UTF-8, UTF-16 or UTF-32
    `<` and NULs                              UTF-16 without a mark
    `<?xml ... encoding="ISO-8859-1"?>`       this one, if it has one byte a character
    others                                    UTF-8

    Raises:
        XmpError: it is too large, or its bytes are not of this encoding.
    """
    if len(content) > MAX_BYTES:
        raise XmpError(f"{len(content):,} bytes are too many; the limit is {MAX_BYTES:,}")
    mark, encoding = next(
        ((mark, name) for mark, name in _MARKS if content.startswith(mark)), (b"", "")
    )
    if not mark:
        encoding = _guess_encoding(content)
    try:
        return content[len(mark) :].decode(encoding), encoding, mark
    except UnicodeDecodeError as error:
        place = error.start + len(mark)
        raise XmpError(f"no {encoding.upper()} text (byte {place} of {len(content)})") from error


def _guess_encoding(content: bytes) -> str:
    """Return the encoding of a text without a byte order mark."""
    if content[:1] == b"<" and content[1:2] == b"\0":
        return "utf-16-le"
    if content[:2] == b"\0<":
        return "utf-16-be"
    if declared := _DECLARED.match(content):
        try:
            name = codecs.lookup(declared[1].decode("ascii")).name
        except LookupError:
            return "utf-8"
        return name if _SINGLE_BYTE.fullmatch(name) else "utf-8"
    return "utf-8"


def parse_packet(text: str) -> Packet:
    """Parse the text of a packet.

    Raises:
        XmpError: it is not well-formed, has a document type, is larger than the bounds, or is XML
            of another kind.
    """
    content = text.encode()
    builder = _TreeBuilder(content)
    parser = expat.ParserCreate("utf-8", " ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse_document_type
    parser.StartElementHandler = lambda name, found: builder.start(
        parser.CurrentByteIndex, name, found
    )
    parser.EndElementHandler = lambda name: builder.end(parser.CurrentByteIndex)
    parser.CharacterDataHandler = builder.add_text
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        words = expat.ErrorString(error.code)
        raise XmpError(f"not well-formed XML ({words}, line {error.lineno})") from error
    assert builder.root is not None
    root = builder.root
    rdf = root if root.name == _RDF else next(iter(root.find(_RDF)), None)
    if rdf is None:
        raise XmpError(f"no XMP: its <{root.name.rpartition(' ')[2]}> holds no rdf:RDF")
    return Packet(content, rdf)


def _refuse_document_type(*_: object) -> None:
    raise XmpError("it has a DOCTYPE: entities are not read")


class _TreeBuilder:
    """Builds elements from the events of a parser; `place` is its byte."""

    def __init__(self, content: bytes) -> None:
        self.root: Element | None = None
        self._content, self._open, self._count = content, list[Element](), 0

    def start(self, place: int, name: str, attributes: dict[str, str]) -> None:
        """Begin an element."""
        self._count += 1
        if self._count > MAX_ELEMENTS or len(self._open) >= MAX_DEPTH:
            raise XmpError(f"more than {MAX_ELEMENTS:,} elements, or {MAX_DEPTH} in each other")
        tag = _START_TAG.match(self._content, place)
        assert tag is not None
        element = Element(name, attributes, place, tag.end())
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def end(self, place: int) -> None:
        """End the element that was begun last; of `<a/>` the parser tells no place of an end."""
        element = self._open.pop()
        is_empty = element.is_empty_tag(self._content)
        element.inner_end = element.inner if is_empty else place
        element.end = element.inner if is_empty else self._content.index(b">", place) + 1

    def add_text(self, text: str) -> None:
        """Add characters to the innermost element."""
        if self._open:
            self._open[-1].pieces.append(text)
