"""Our keywords in a sidecar, beside those of others."""

import re

import pytest

from mlfinetune.data.images.xmp_packet import (
    HIERARCHY,
    SUBJECT,
    TAGS_LIST,
    Keywords,
    XmpError,
    decode_packet,
    parse_packet,
    read_keywords,
)
from mlfinetune.runs.xmp_merge import Merge, merge_keywords, split_levels
from runs.sidecar_samples import BARE, DARKTABLE, LIGHTROOM, SAMPLES

PETS = "pets/best.safetensors sha256:12"


def merge(content: bytes | str | None, *labels: str, checkpoint: str = PETS) -> Merge:
    """Merge labels into a sidecar."""
    return merge_keywords(
        content.encode() if isinstance(content, str) else content, labels, checkpoint, {}
    )


def write(content: bytes | str | None, *labels: str) -> bytes:
    """Return a sidecar with these labels merged into it, which must change it."""
    merged = merge(content, *labels).content
    assert merged is not None
    return merged


def keywords(content: bytes) -> Keywords:
    """Return the keywords of a sidecar."""
    return read_keywords(parse_packet(decode_packet(content)[0]))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", SAMPLES)
def test_what_others_wrote_stays_to_the_byte(name: str, encoding: str) -> None:
    """Lines are added and no other is changed; without our labels the file is what it was."""
    before = SAMPLES[name].encode(encoding)
    merged = write(before, "cat", "sea", "animals|birds")
    assert merge(merged, "cat", "sea", "animals|birds") == Merge(None)
    assert write(merged) == before
    rest = iter(merged.decode(encoding))
    assert all(char in rest for char in before.decode(encoding))  # a subsequence
    assert keywords(merged).ours[SUBJECT] == ["cat", "birds"]
    assert keywords(merged).by_people == keywords(before).by_people


def test_a_keyword_that_people_had_is_never_ours() -> None:
    """It stays when it is predicted no more."""
    assert merge(DARKTABLE, "sea") == Merge(None)
    merged = write(DARKTABLE, "sea", "cat")
    assert keywords(write(merged, "dog")).by_people[SUBJECT] == ["sea", "A & B"]


def test_keywords_of_ours_that_no_longer_hold_go() -> None:
    """The change is told as labels; the order of the others stays."""
    first = write(DARKTABLE, "cat", "animals|birds", "dog")
    second = merge(first, "dog", "fox")
    assert (second.added, second.removed) == (("fox",), ("animals|birds", "cat"))
    assert second.content is not None
    assert keywords(second.content).ours == {
        SUBJECT: ["dog", "fox"],
        HIERARCHY: ["dog", "fox"],
        TAGS_LIST: [],
    }


def test_the_checkpoint_is_recorded() -> None:
    """Another one changes the record; the same one in a run that was moved does not."""
    first = write(None, "cat")
    assert f"<mlfinetune:checkpoint>{PETS}</mlfinetune:checkpoint>" in first.decode()
    assert merge(first, "cat", checkpoint="moved/best.safetensors sha256:12").content is None
    other = merge(first, "cat", checkpoint="pets/best.safetensors sha256:34")
    assert other.content == first.replace(b"sha256:12", b"sha256:34")
    assert other.added == other.removed == ()


def test_a_label_that_people_took_out_does_not_come_again() -> None:
    """Not with another label either, nor after a run that did not predict it."""
    merged = write(DARKTABLE, "cat", "dog")
    edited = merged.replace(b"     <rdf:li>cat</rdf:li>\n", b"", 1)
    assert merge(edited, "cat", "dog").rejected == ("cat",)
    later = write(write(edited, "fox"), "cat", "fox", "dog")
    assert keywords(later).ours[SUBJECT] == ["fox", "dog"]


def test_labels_of_several_levels() -> None:
    """The last level is the flat keyword; a slash is part of a name."""
    found = keywords(write(None, "animals|birds|tit", "b/w", "|")).ours
    assert found[SUBJECT] == ["tit", "b/w", "|"]
    assert found[HIERARCHY] == ["animals|birds|tit", "b/w"]
    assert split_levels(" a | |b ") == ["a", "b"]


def test_a_flat_label_that_ends_a_path_of_people_is_theirs() -> None:
    """A second keyword `sea` beside `places|sea` would be another one in the tree of programs."""
    text = DARKTABLE.replace("     <rdf:li>sea</rdf:li>\n", "")
    found = keywords(write(text, "sea", "cat")).ours
    assert (found[SUBJECT], found[HIERARCHY]) == (["sea", "cat"], ["cat"])


def test_lists_that_hide_others_are_complete() -> None:
    """Programs read paths in place of flat keywords, and digiKam its own list before both."""
    found = keywords(write(LIGHTROOM, "cat")).ours
    assert found == {SUBJECT: ["cat"], HIERARCHY: ["sea", "cat"], TAGS_LIST: []}
    merged = write(SAMPLES["digikam"], "animals|cat", "b/w")
    assert keywords(merged).ours[TAGS_LIST] == ["animals/cat"]
    assert merged.count(b'rdf:about="uuid:faf5bdd5') == 2  # one value for all of a file


def test_an_empty_list_is_filled() -> None:
    """Also one that is begun in no rdf:Description, and a packet without any."""
    empty = LIGHTROOM.replace("<rdf:li>sea</rdf:li>", "")
    assert "<D:subject><rdf:Bag><rdf:li>cat" in write(empty, "cat").decode()
    closed = empty.replace("<rdf:Bag></rdf:Bag>", "<rdf:Bag/>")
    assert "<D:subject><rdf:Bag><rdf:li>cat</rdf:li></rdf:Bag>" in write(closed, "cat").decode()
    for text in (BARE, re.sub("<rdf:Desc.*/>", "", BARE), re.sub("><rdf:Desc.*", "/>", BARE)):
        merged = write(text, "cat")
        assert keywords(merged).ours[SUBJECT] == ["cat"]
        assert merge(merged, "cat").content is None


@pytest.mark.parametrize(
    "label", ["<b>&\"'</b>", "]]>", "größe 猫", "&lt;", "<!-- x -->", "a\rb\nc\td"]
)
def test_a_label_with_xml_in_it_stays_text(label: str) -> None:
    """Character for character, in UTF-8 and in an encoding that lacks its letters."""
    assert keywords(write(None, label)).ours[SUBJECT] == [label]
    old = '<?xml version="1.0" encoding="ISO-8859-1"?>' + BARE
    assert keywords(write(old.encode("latin-1"), label)).ours[SUBJECT] == [label]


def test_a_record_in_other_words_is_ours_too() -> None:
    """Programs that write a sidecar anew choose prefixes, and put texts into attributes."""
    merged = write(DARKTABLE, "cat").decode()
    merged = re.sub(r"\s*<mlfinetune:checkpoint>.*</mlfinetune:checkpoint>", "", merged)
    merged = merged.replace(
        "xmlns:mlfinetune=", f'mlfinetune:checkpoint="{PETS}" xmlns:mlfinetune='
    )
    merged = re.sub(
        r"(?<!urn:)mlfinetune:", "ns1:", merged.replace("xmlns:mlfinetune", "xmlns:ns1")
    )
    assert merge(merged, "cat").content is None
    assert write(merged) == DARKTABLE.encode()


def test_what_cannot_be_merged_is_refused() -> None:
    """A property that is no list, and a file that is no XMP."""
    text = BARE.replace(
        "rdf:about=", 'xmlns:dc="http://purl.org/dc/elements/1.1/" dc:subject="a" rdf:about='
    )
    with pytest.raises(XmpError, match="its subject is no list of keywords"):
        merge(text, "cat")
    with pytest.raises(XmpError, match="no XMP"):
        merge("<gpx/>", "cat")


def test_a_new_sidecar_begins_with_the_keywords_inside_the_picture() -> None:
    """Programs read the sidecar in their place; where nothing is added there is none."""
    inside = {SUBJECT: ["holiday", "cat"]}
    content = merge_keywords(None, ["cat", "sea"], PETS, inside).content
    assert content is not None
    assert keywords(content).by_people[SUBJECT] == ["holiday", "cat"]
    assert keywords(content).ours[SUBJECT] == ["sea"]
    assert merge_keywords(None, ["cat"], PETS, inside).content is None
    assert merge(None).content is None


@pytest.mark.parametrize("label", ["cat", "animals|cat"])
def test_a_keyword_that_people_add_again_is_theirs(label: str) -> None:
    """They took ours out, and later wrote it themselves: it stays when it is predicted no more."""
    first = merge_keywords(None, [label, "fox"], "a sha256:1", {}).content
    assert first is not None
    taken_out = first
    for keyword in {"cat", label}:  # out of both lists, and not out of the record
        item = f"<rdf:li>{keyword}</rdf:li>".encode()
        lists, record = taken_out.split(b"<mlfinetune:predictedSubject", 1)
        taken_out = lists.replace(item, b"") + b"<mlfinetune:predictedSubject" + record
    second = merge_keywords(taken_out, [label, "fox"], "a sha256:1", {})
    assert second.rejected == (label,)
    content = second.content
    assert content is not None
    again = content.replace(b"<rdf:li>fox</rdf:li>", b"<rdf:li>fox</rdf:li><rdf:li>cat</rdf:li>", 1)
    third = merge_keywords(again, [], "a sha256:1", {})
    assert third.removed == ("fox",)
    assert third.content is not None
    keywords = read_keywords(parse_packet(decode_packet(third.content)[0]))
    assert keywords.by_people[SUBJECT] == ["cat"]


@pytest.mark.parametrize(
    "held",
    [
        '<dc:subject rdf:parseType="Resource"><rdf:value>sea</rdf:value></dc:subject>',
        "<dc:subject><rdf:Bag><rdf:_1>sea</rdf:_1></rdf:Bag></dc:subject>",
    ],
)
def test_keywords_in_other_forms_of_rdf_are_never_cut(held: str) -> None:
    """The file is refused, or they are still there when our tags have come and gone."""
    space = 'xmlns:dc="http://purl.org/dc/elements/1.1/"'
    rdf = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
    inner = f'<rdf:Description rdf:about="" {space}>{held}</rdf:Description>'
    packet = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {rdf}>{inner}</rdf:RDF></x:xmpmeta>'
    content = packet.encode()
    for labels in (["cat"], []):
        try:
            content = merge_keywords(content, labels, "a sha256:1", {}).content or content
        except XmpError:
            continue
        assert b"sea" in content
