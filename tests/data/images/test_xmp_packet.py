"""XMP packets are parsed safely, and keywords are found in them."""

import pytest

from mlfinetune.data.images import xmp_packet
from mlfinetune.data.images.xmp_packet import (
    HIERARCHY,
    SUBJECT,
    XmpError,
    decode_packet,
    find_unrepresentable,
    parse_packet,
    read_keywords,
)

HEAD = (
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
    ' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:lr="http://ns.adobe.com/lightroom/1.0/"'
    ' xmlns:m="urn:mlfinetune:xmp:1.0/">'
)


def read(body: str, encoding: str = "utf-8", prolog: str = "") -> dict[str, list[str]]:
    """Return the keywords of people in an rdf:Description with this content."""
    text = f"{prolog}{HEAD}<rdf:Description>{body}</rdf:Description></rdf:RDF>"
    return read_keywords(parse_packet(decode_packet(text.encode(encoding))[0])).by_people


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_packets_of_each_encoding_are_read(encoding: str) -> None:
    """With and without a byte order mark; a declaration in the XML does not count against it."""
    body = "<dc:subject><rdf:Bag><rdf:li>größe 猫</rdf:li></rdf:Bag></dc:subject>"
    prolog = f'<?xml version="1.0" encoding="{encoding[:6]}"?>' if "16" in encoding else ""
    assert read(body, encoding, prolog)[SUBJECT] == ["größe 猫"]


def test_a_declared_encoding_of_one_byte_a_character_is_read() -> None:
    """Old programs of Windows write such."""
    body = "<dc:subject><rdf:Bag><rdf:li>größe</rdf:li></rdf:Bag></dc:subject>"
    prolog = '<?xml version="1.0" encoding="windows-1252"?>'
    assert read(body, "cp1252", prolog)[SUBJECT] == ["größe"]


@pytest.mark.parametrize(
    "body",
    [
        "<dc:subject><rdf:Bag><rdf:li>a &lt; b</rdf:li><rdf:li> sea\n</rdf:li></rdf:Bag>"
        "</dc:subject>",
        "<dc:subject><rdf:Seq><rdf:li><![CDATA[a < b]]></rdf:li><rdf:li>s&#101;a</rdf:li>"
        "<rdf:li>sea</rdf:li><rdf:li/></rdf:Seq></dc:subject>",
        '<dc:subject><rdf:Bag><rdf:li rdf:parseType="Resource"><rdf:value>a &lt; b</rdf:value>'
        "</rdf:li><rdf:li><!-- x -->sea</rdf:li></rdf:Bag></dc:subject>",
    ],
)
def test_keywords_are_read_however_they_are_written(body: str) -> None:
    """Bag or Seq, entities or CDATA, with qualifiers; each once, blank ones not."""
    assert read(body)[SUBJECT] == ["a < b", "sea"]


def test_a_keyword_alone_may_be_a_text_or_an_attribute() -> None:
    """Some programs write no list for one."""
    assert read("<dc:subject>sea</dc:subject>")[SUBJECT] == ["sea"]
    text = f'{HEAD}<rdf:Description dc:subject="sea"/></rdf:RDF>'
    assert read_keywords(parse_packet(text)).by_people[SUBJECT] == ["sea"]


def test_keywords_that_the_record_names_are_ours() -> None:
    """One that the record names, and that is not there any more, is nobody's."""
    body = (
        "<dc:subject><rdf:Bag><rdf:li>sea</rdf:li><rdf:li>cat</rdf:li></rdf:Bag></dc:subject>"
        "<m:predictedSubject><rdf:Bag><rdf:li>cat</rdf:li><rdf:li>dog</rdf:li></rdf:Bag>"
        "</m:predictedSubject>"
    )
    found = read_keywords(
        parse_packet(f"{HEAD}<rdf:Description>{body}</rdf:Description></rdf:RDF>")
    )
    assert (found.by_people[SUBJECT], found.ours[SUBJECT]) == (["sea"], ["cat"])
    assert found.by_people[HIERARCHY] == found.ours[HIERARCHY] == []


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
HOSTILE = {
    "billion laughs": (f'<!DOCTYPE r [<!ENTITY l0 "ha">{LAUGHS}]><r>&l9;</r>', "DOCTYPE"),
    "external entity": ('<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><r>&x;</r>', "DOC"),
    "parameter entity": ('<!DOCTYPE r [<!ENTITY % x SYSTEM "http://host/x"> %x;]><r/>', "DOCTYPE"),
    "external document type": ('<!DOCTYPE r SYSTEM "http://host/x.dtd"><r/>', "DOCTYPE"),
    "unknown entity": ("<r>&nbsp;</r>", "not well-formed XML (undefined entity, line 1)"),
    "depth": ("<r>" * 1000, "more than 200,000 elements, or 64 in each other"),
    "cut": (HEAD, "not well-formed XML (no element found, line 1)"),
    "empty": ("", "not well-formed XML (no element found, line 1)"),
    "other XML": ("<gpx><trk/></gpx>", "no XMP: its <gpx> holds no rdf:RDF"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_packet_is_refused_in_words(name: str) -> None:
    """No entity is expanded, no file and no host is asked; the reason is told."""
    text, reason = HOSTILE[name]
    with pytest.raises(XmpError) as caught:
        parse_packet(text)
    assert reason in str(caught.value)


def test_size_and_number_of_elements_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of gigabytes, or of a million elements, takes no memory."""
    with pytest.raises(XmpError, match=r"16,000,001 bytes are too many; the limit is 16,000,000"):
        decode_packet(bytes(xmp_packet.MAX_BYTES + 1))
    monkeypatch.setattr(xmp_packet, "MAX_ELEMENTS", 3)
    with pytest.raises(XmpError, match="more than 3 elements"):
        parse_packet("<a><b/><b/><b/></a>")


def test_bytes_of_another_encoding_are_refused() -> None:
    """The place of the first wrong byte is told."""
    with pytest.raises(XmpError, match=r"no UTF-8 text \(byte 1 of 3\)"):
        decode_packet(b"<\xff>")


def test_characters_that_xml_cannot_hold_are_found() -> None:
    """Tabs, line breaks and every script can be held."""
    assert find_unrepresentable("größe\t猫\n<b>&\U0001f600") is None
    assert [find_unrepresentable(f"a{c}b") for c in "\x01\x1b\ufffe"] == [
        "U+0001",
        "U+001B",
        "U+FFFE",
    ]
