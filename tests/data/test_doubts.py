"""Labels that may not be what the user meant: noted with the line to paste, and that line works."""

import re
from pathlib import Path

import numpy as np
import pytest
from costs import compare_costs

from mlfinetune.config import load_config
from mlfinetune.data.doubts import (
    find_double_labels,
    find_doubtful_labels,
    find_no_labels,
    find_spellings,
    means_no_label,
)
from mlfinetune.data.load import load_splits
from mlfinetune.data.read import SplitOptions, read_splits
from mlfinetune.data.table import SourceOptions
from mlfinetune.errors import DataError

# ---- spellings --------------------------------------------------------------------------


def test_spellings_of_one_label_are_an_error() -> None:
    """Case, spaces, hyphens, underscores and Unicode forms; all in one line with their counts."""
    counts = {"hot dog": 5, "Dog": 1, "hot_dog": 2, "caf\u00e9": 3, "dog ": 2, "cat": 9}
    counts |= {"hot-dog": 1, "cafe\u0301": 1, "HotDog": 4, "type 2": 1, "type-2": 1}
    (finding,) = find_spellings(counts)
    assert (finding.severity, finding.kind) == ("error", "label_spellings")
    assert finding.items == (
        "'hot dog' (5) / 'hot_dog' (2) / 'hot-dog' (1) / 'HotDog' (4)",
        "'Dog' (1) / 'dog ' (2)",
        "'caf\u00e9' (3) / 'cafe\\u0301' (1)",
        "'type 2' (1) / 'type-2' (1)",
    )


@pytest.mark.parametrize(
    "labels",
    ["man woman", "cat cats", "-1 0 1", "1-2 12", "10-15 1015", "+ - _ #", "C C# C++", "a b"],
)
def test_different_labels_are_left_alone(labels: str) -> None:
    """Words of similar frequency, and numbers that a hyphen makes others."""
    assert find_spellings(dict.fromkeys(labels.split(), 50)) == []


@pytest.mark.parametrize(
    "typo", ["zebas", "zebrass", "zebrax", "zberas", "Zeebras", "xebras", "zebra-z"]
)
def test_a_rare_label_one_letter_off_may_be_a_typing_error(typo: str) -> None:
    """Missing, added, replaced or swapped; the frequent one is named."""
    (finding,) = find_spellings({"Zebras": 100, typo: 10, "horse": 500})
    assert (finding.severity, finding.kind) == ("warning", "label_typos")
    assert finding.items == (f"'{typo}' (10): 'Zebras'?",)
    assert find_spellings({"Zebras": 100, typo: 11, "horse": 500}) == []


@pytest.mark.parametrize(
    ("rare", "frequent"),
    [
        ("class 101", "class 102"),
        ("n02123045", "n02123046"),
        ("cats", "cat"),
        ("bat", "cat"),
        ("female", "male"),
        ("rainy", "train"),
        ("left arm", "left leg"),
    ],
)
def test_a_rare_label_is_not_always_a_typing_error(rare: str, frequent: str) -> None:
    """Numbers count, short words are alike, and two letters are another word."""
    assert find_spellings({rare: 1, frequent: 1000}) == []


def test_the_most_frequent_neighbour_is_meant() -> None:
    """A label that no image has can be a typing error too."""
    (finding,) = find_spellings(
        {"horsse": 0, "horses": 3, "horsey": 12, "horse": 40, "hoarse": 400}
    )
    assert finding.items == (
        "'horsse' (0): 'horse'?",
        "'horses' (3): 'horse'?",
        "'horse' (40): 'hoarse'?",
    )


def test_many_labels_are_not_compared_in_pairs() -> None:
    """Thousands of a long tail, and captions: four times as many cost not 16 times as much."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), 9)) for _ in range(5000)]
    tail = zip(words, rng.pareto(1, 5000) * 9, strict=True)
    counts = {word: int(count) for word, count in tail} | {word * 500: 1 for word in words[:200]}
    few = dict(list(counts.items())[:1250]) | {word * 500: 1 for word in words[:50]}
    assert compare_costs(lambda: find_spellings(counts), lambda: find_spellings(few)) < 12


@pytest.mark.parametrize(
    ("odd", "shown"),
    [
        ("hatsune_miku_\\(cosplay\\)", r"'hatsune_miku_\\(cosplay\\)' (2)"),
        ("hatsune miku\u200b (cosplay)", r"'hatsune miku\u200b (cosplay)' (2)"),
        ("hatsune\u00a0miku (cosplay)", r"'hatsune\xa0miku (cosplay)' (2)"),
        ("\ufeffhatsune miku (cosplay)", r"'\ufeffhatsune miku (cosplay)' (2)"),
        ("hatsune mi\u00adku (cosplay)", r"'hatsune mi\xadku (cosplay)' (2)"),
        ("hatsune miku （cosplay）", "'hatsune miku （cosplay）' (2)"),
        ("hatsune miku (cosplay).", "'hatsune miku (cosplay).' (2)"),
        ("hatsune miku (cosplay&#41;", "'hatsune miku (cosplay&#41;' (2)"),
    ],
)
def test_spellings_that_eyes_miss(odd: str, shown: str) -> None:
    """Escapes, invisible characters, wide letters: shown with escapes, and joined by one line."""
    plain = "hatsune miku (cosplay)"
    (finding,) = find_spellings({odd: 2, plain: 9, "cat": 9})
    assert finding.items == (f"{shown} / '{plain}' (9)",)
    assert finding.remedy.isprintable()
    assert finding.remedy.endswith(f': "{plain}"}}')


def test_the_line_to_paste_keeps_what_the_config_has() -> None:
    """Older entries lead to the newest name."""
    (finding,) = find_spellings({"Cat": 2, "cat": 9}, {"kitty": "Cat", "pup": "dog"})
    assert finding.remedy == ('data.rename_labels: {"kitty": "cat", "pup": "dog", "Cat": "cat"}')
    (finding,) = find_no_labels({"none": 2, "cat": 9}, ["misc"])
    assert finding.remedy == 'data.ignore_labels: ["misc", "none"]'


# ---- labels that say that there is none, and two labels in one ----------------------------


@pytest.mark.parametrize(
    "label",
    [
        *(
            "Unlabeled",
            "unlabelled",
            "not labeled yet",
            "no label",
            "No-Tags",
            "untagged",
            "unlabel",
        ),
        *("No Finding", "none", "None", "NaN", "NA", "n/a", "#N/A", "<NA>", "null", "(none)", "-"),
        *("--", "?", "unknown", "background", "__background__", "_background_", "__ignore__"),
        *("BACKGROUND_Google", "kein", "Keine", "k.A.", "ohne", "unbekannt", "sin etiqueta"),
        *("sans étiquette", "aucun", "senza etichetta", "nenhum", "geen", "brak", "okänd", "нет"),
        *(
            "未标注",
            "無",
            "なし",
            "タグなし",
            "없음",
            "Unclassified",
            "un\u200blabeled",
            "ｎｏｎｅ",
        ),
    ],
)
def test_labels_that_mean_no_label(label: str) -> None:
    """Words of tools and of several languages, in any case."""
    assert means_no_label(label)
    (finding,) = find_no_labels({"cat": 9, label: 3})
    assert (finding.severity, finding.kind, finding.items) == (
        "warning",
        "no_labels",
        (f"{label!r} (3)",),
    )


@pytest.mark.parametrize(
    "label",
    ["other", "misc", "normal", "negative", "noon", "notable", "Nan Goldin", "0", "tom", "+"],
)
def test_labels_that_are_labels(label: str) -> None:
    """A class for the rest is a class."""
    assert find_no_labels({label: 3}) == []


@pytest.mark.parametrize(
    "double", ["cat，dog", "cat;dog", "Cat/dog", "cat、dog", "cat + dog", "cat&dog", "cat and dog"]
)
def test_a_label_of_two_labels(double: str) -> None:
    """Its parts are labels themselves; else the sign belongs to the label."""
    (finding,) = find_double_labels({"cat": 5, "dog": 5, double: 2, "AC/DC": 3, "dog/fox": 1})
    assert (finding.kind, finding.items) == ("double_labels", (f"{double!r} (2)",))
    assert find_double_labels({"cat": 5, double: 2, "cat,cat": 1}) == []


def test_all_doubts_are_found_at_once() -> None:
    """One finding for each kind."""
    counts = {"1.0": 2, "1": 9, "none": 1, "cat": 9, "cat/1": 1, "zebras": 1, "zebra": 90}
    kinds = [finding.kind for finding in find_doubtful_labels(counts, SourceOptions())]
    assert kinds == ["label_spellings", "label_typos", "no_labels", "double_labels"]


# ---- notes of a run -------------------------------------------------------------------------


def train_on(folder: Path, cells: list[str], *lines: str) -> list[str]:
    """Return the notes of a run on pictures with these label cells; `lines` are pasted."""
    rows = [f"{number}.jpg,{cell}" for number, cell in enumerate(cells)]
    for number in range(len(cells)):
        (folder / f"{number}.jpg").touch()
    (folder / "a.csv").write_text("\n".join(["image,labels", *rows]))
    pasted = "".join(f"  {line.removeprefix('data.')}\n" for line in lines)
    (folder / "a.yaml").write_text(f"data:\n  train: a.csv\n  label_delimiter: '|'\n{pasted}")
    splits = load_splits(load_config(folder / "a.yaml"), None)
    return [*splits.notes, f"labels {'|'.join(splits.train.labels.names)}"]


def take_lines(notes: list[str]) -> list[str]:
    """Return the lines to paste, at the ends of notes."""
    return [found[0] for note in notes if (found := re.search(r"data\.\w+: [\[{].*[\]}]$", note))]


def test_numbers_spelled_twice_are_noted(tmp_path: Path) -> None:
    """As Excel and pandas leave them; the line joins them all under the frequent name."""
    cells = ["1", "1", "1.0", "00012", "12", "12", "cat", "cat|1"]
    notes = train_on(tmp_path, cells)
    (note,) = [note for note in notes if "several spellings" in note]
    assert "2 labels in several spellings" in note
    assert "'1' (3) / '1.0' (1)" in note
    assert take_lines(notes) == ['data.rename_labels: {"1.0": "1", "00012": "12"}']
    notes = train_on(tmp_path, cells, *take_lines(notes))
    assert notes[-1] == "labels 1|12|cat"
    assert take_lines(notes) == []


@pytest.mark.parametrize(
    ("odd", "shown"),
    [
        ("Café", "'Café' (1)"),
        ("cafe\u0301", r"'cafe\u0301' (1)"),  # as files of a Mac have it
        ("café\u200b", r"'café\u200b' (1)"),
    ],
)
def test_words_spelled_twice_are_noted(tmp_path: Path, odd: str, shown: str) -> None:
    """Each would be a negative of the other; the line shows where they differ, and joins them."""
    cells = ["café", "café|cat", odd, "cat"]
    notes = train_on(tmp_path, cells)
    (note,) = [note for note in notes if "several spellings" in note]
    assert shown in note
    assert "'café' (2)" in note
    (line,) = take_lines(notes)
    assert train_on(tmp_path, cells, line)[-1] == "labels café|cat"


@pytest.mark.parametrize(
    "form",
    [
        *("{0}. {1}", "{0}) {1}", "{0}: {1}", "{0} {1}", "#{0} {1}"),
        *("{1} x{0}", "{1}*{0}", "{1} ({0})"),
    ],
)
def test_labels_with_the_number_of_a_line_are_noted(tmp_path: Path, form: str) -> None:
    """`1. cat` on one picture is `2. cat` on another; the line joins them."""
    said = [form.format(number, name) for number in (1, 2) for name in ("cat", "dog")]
    cells = [f"{said[0]}|{said[3]}", f"{said[1]}|{said[2]}", said[0], said[1], form.format(1, "ox")]
    notes = train_on(tmp_path, cells)
    assert any("2 labels that stand with several numbers" in note for note in notes)
    (line,) = take_lines(notes)
    assert train_on(tmp_path, cells, line)[-1] == "labels cat|dog|ox"


def test_labels_whose_number_is_a_name_are_not_noted(tmp_path: Path) -> None:
    """One thing with several numbers may be several things; so may `stage 1`."""
    cells = ["2 door", "4 door", "stage 1|grade 1", "stage 2|grade 2", "1girl", "2girls"]
    assert take_lines(train_on(tmp_path, cells)) == []


def test_a_zero_among_words_may_mean_none(tmp_path: Path) -> None:
    """It stands in the cells without a label; among numbers it is a class."""
    notes = train_on(tmp_path, ["cat", "dog", "0", "0", "cat|dog"])
    assert take_lines(notes) == ['data.ignore_labels: ["0"]']
    assert take_lines(train_on(tmp_path, ["0", "1", "cat", "0"])) == []


def test_a_label_of_all_that_have_a_label_is_noted(tmp_path: Path) -> None:
    """It may be a total or a check mark of the table; a label that follows is said in `implies`."""
    cells = ["cat|any", "dog|any", "fox|cat|any", "", "any|fox"] * 6
    (line,) = take_lines(train_on(tmp_path, cells))
    assert line == 'data.ignore_labels: ["any"]'
    line = "implies: {cat: any, dog: any, fox: any}"
    assert take_lines(train_on(tmp_path, cells, line)) == []
    assert take_lines(train_on(tmp_path, [*cells, "any", "dog"])) == []


def test_labels_that_mean_none_are_noted(tmp_path: Path) -> None:
    """They stay labels until the line is pasted; with old entries it replaces the old line."""
    cells = ["cat", "Unlabeled", "__background__", "dog", "misc", "misc|cat", "NA", "cat|dog"]
    old = "data.ignore_labels: [misc]"
    notes = train_on(tmp_path, cells, old)
    assert notes[-1] == "labels __background__|cat|dog|NA|Unlabeled"
    wanted = 'data.ignore_labels: ["misc", "__background__", "NA", "Unlabeled"]'
    assert take_lines(notes) == [wanted]
    assert train_on(tmp_path, cells, wanted)[-1] == "labels cat|dog"


@pytest.mark.parametrize("denied", ["-cat", "!cat", "no cat", "Not_Cat", "ohne Cat", "cat-"])
def test_a_label_that_denies_another_is_noted(tmp_path: Path, denied: str) -> None:
    """It is no spelling of the other: joined, absent would become present."""
    cells = ["cat", "dog", f"dog|{denied}", "cat|dog", "dog", "cat"]
    notes = train_on(tmp_path, cells)
    assert not [note for note in notes if "several spellings" in note]
    (note,) = [note for note in notes if "may say that another one is absent" in note]
    assert f"'{denied}' (1)" in note
    (line,) = take_lines(notes)
    assert train_on(tmp_path, cells, line)[-1] == "labels cat|dog"
    counts = {"cat": 3, denied: 1, "dog": 4}
    (finding,) = find_doubtful_labels(counts, SourceOptions())
    assert finding.remedy == line


@pytest.mark.parametrize(("said", "denied"), [("+cat", "-cat"), ("HER2+", "HER2-")])
def test_plus_and_minus_are_noted(tmp_path: Path, said: str, denied: str) -> None:
    notes = train_on(tmp_path, [said, "dog", f"dog|{denied}", said])
    (line,) = take_lines(notes)
    left = train_on(tmp_path, [said, denied, "dog"], line)[-1].removeprefix("labels ").split("|")
    assert sorted(left) == [said, "dog"]


@pytest.mark.parametrize("name", ["no smoking", "-50", "x-ray", "notice", "- dog", "_dog", "dog_"])
def test_a_label_that_denies_no_other_is_not_noted(tmp_path: Path, name: str) -> None:
    """Nor is a hyphen with a space, as of a list, or an underscore."""
    notes = train_on(tmp_path, ["cat", "dog", f"dog|{name}", "cat"])
    assert "absent" not in " ".join(notes)


def test_a_doubtful_label_is_noted(tmp_path: Path) -> None:
    """Beside the label that it doubts alone."""
    notes = train_on(tmp_path, ["cat", "cat?", "dog", "dog (?)", "who?"])
    (note,) = [note for note in notes if "not sure" in note]
    assert "2 labels that may say" in note
    assert "a column 'unknown'" in note


def test_words_for_none_and_denials_can_both_be_pasted(tmp_path: Path) -> None:
    """The later line has what the earlier one has."""
    cells = ["cat", "none", "-cat|dog", "dog"]
    first, second = take_lines(train_on(tmp_path, cells))
    assert first == 'data.ignore_labels: ["none"]'
    assert train_on(tmp_path, cells, second)[-1] == "labels cat|dog"


def test_both_lines_of_check_can_be_pasted(tmp_path: Path) -> None:
    """Also where a word for no label has two spellings."""
    cells = ["cat", "Cat", "cat", "None", "none", "none", "dog", "dog"]
    counts = {"cat": 2, "Cat": 1, "None": 1, "none": 2, "dog": 2}
    findings = find_doubtful_labels(counts, SourceOptions())
    notes = train_on(tmp_path, cells, *(finding.remedy for finding in findings))
    assert notes[-1] == "labels cat|dog"
    with pytest.raises(DataError, match="no label 'None' in the data"):
        train_on(
            tmp_path, cells, 'data.rename_labels: {"None": "x"}', 'data.ignore_labels: ["None"]'
        )


def test_long_lines_are_left_to_check(tmp_path: Path) -> None:
    """A note stays a line that one can read."""
    cells = [cell for number in range(1, 41) for cell in (f"{number}", f"{number}.0")]
    (note,) = [note for note in train_on(tmp_path, cells) if "several spellings" in note]
    assert note.endswith("`mlfinetune check` prints the line for data.rename_labels")
    assert "and 30 more" in note


def test_a_spelling_of_a_label_of_train_gets_its_line(tmp_path: Path) -> None:
    """Validation has a label that eyes cannot tell from one of train."""
    (tmp_path / "v.jpg").touch()
    (tmp_path / "val.csv").write_text("image,labels\nv.jpg,cat\u200b|1.0\n")
    with pytest.raises(DataError) as caught:
        train_on(tmp_path, ["cat", "dog|1"], "val: val.csv")
    message = str(caught.value)
    assert r"'cat\u200b': 1 image, first at line 2" in message
    (line,) = take_lines(message.splitlines())
    assert line == r'data.rename_labels: {"cat\U0000200b": "cat", "1.0": "1"}'
    assert train_on(tmp_path, ["cat", "dog|1"], "val: val.csv", line)[-1] == "labels 1|cat|dog"


def test_a_label_of_nearly_every_picture_is_noted(tmp_path: Path) -> None:
    """There is little to learn, and nothing is wrong."""
    notes = train_on(tmp_path, ["pet|cat"] * 30 + ["pet"] * 20 + ["cat"])
    assert "1 label in nearly every picture of train ('pet' in 40 of 41): little to learn" in notes
    notes = train_on(tmp_path, ["pet|cat"] * 30 + ["pet"] * 10 + ["cat"] * 5)
    assert not any("nearly" in note for note in notes)


def test_a_label_of_no_picture_gets_its_line(tmp_path: Path) -> None:
    """COCO declares categories that no picture has; unless the config lists them, as it may."""
    (tmp_path / "v.jpg").touch()
    (tmp_path / "val.csv").write_text("image,cat,background\nv.jpg,1,0\n")
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").touch()
    (tmp_path / "a.csv").write_text("image,cat,background\na.jpg,1,0\nb.jpg,0,0\n")
    table, val = tmp_path / "a.csv", tmp_path / "val.csv"
    notes = read_splits(table, val, SourceOptions()).notes
    lacking = "1 label ('background') without a positive in train: cannot be learned"
    assert f"{lacking}; data.min_positives: 1 leaves such labels out" in notes
    splits = read_splits(table, val, SourceOptions(), SplitOptions(min_positives=1))
    assert splits.train.labels.names == ("cat",)
    given = SplitOptions(labels=["cat", "background"])
    assert lacking in read_splits(table, val, SourceOptions(), given).notes
