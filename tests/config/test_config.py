"""The config: what its YAML means, what is refused and in which words, where paths point."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from costs import compare_costs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from mlfinetune.config import (
    SCHEMA,
    Config,
    DataConfig,
    build_overrides,
    build_schema,
    dump_config,
    load_config,
    load_tree,
)
from mlfinetune.config.sections import AugmentConfig, LossConfig, ModelConfig, TrainConfig
from mlfinetune.errors import ConfigError
from mlfinetune.loss import asymmetric_loss, focal_loss

DATA = "data: {train: train.csv}\n"


def write(folder: Path, content: str | bytes, name: str = "pets.yaml") -> Path:
    """Make a config file with this content, byte for byte."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fault(path: Path, *overrides: str) -> str:
    """Return the message with which the config is refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("sign", "?#;&")
def test_a_url_with_a_token_is_refused(tmp_path: Path, sign: str) -> None:
    """It would be kept in the run's files; a part without a secret is kept."""
    start = f"https://h/t.csv{'?x=1' if sign == '&' else ''}{sign}"
    path = write(tmp_path, f"data: {{train: '{start}token=abc'}}")
    assert "no token or signature in a URL" in fault(path)
    load_config(write(tmp_path, f"data: {{train: '{start}part=abc'}}"))


def outcome(path: Path, *overrides: str) -> Config | ConfigError:
    """Return the config, or the error that it is refused with; other exceptions pass through."""
    try:
        return load_config(path, overrides)
    except ConfigError as error:
        return error


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for all the examples of a generated test."""
    return tmp_path_factory.mktemp("configs")


# ---- YAML 1.2 scalars -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 1e-3), ("1e1", 10.0), ("1E+1", 10.0), (".5", 0.5), ("2.", 2.0), ("+3", 3.0)],
)
def test_exponents_without_a_dot_are_numbers(tmp_path: Path, text: str, number: float) -> None:
    """YAML 1.1 reads 1e-3 as text; here it is the number that people mean."""
    config = load_config(write(tmp_path, f"{DATA}train: {{lr: {text}}}"))
    assert config.train.lr == number


@pytest.mark.parametrize(
    ("text", "number"), [("010", 10), ("0o17", 15), ("0x1f", 31), ("+12", 12), ("0", 0)]
)
def test_integers_follow_yaml_1_2(tmp_path: Path, text: str, number: int) -> None:
    """010 is ten, octal is 0o, hexadecimal is 0x."""
    assert load_config(write(tmp_path, f"{DATA}train: {{seed: {text}}}")).train.seed == number


def test_one_e_one_is_a_float(tmp_path: Path) -> None:
    """A float does not become a count of epochs, even a whole one."""
    message = fault(write(tmp_path, f"{DATA}train: {{epochs: 1e1}}"))
    assert "line 2: train.epochs: wanted whole number, got 10.0" in message


WORDS = "no No NO off OFF yes on y n 2024-01-01 2001-12-14t21:59:43.10-05:00 1_000 0b1 1:30 = << e3"


@pytest.mark.parametrize("word", WORDS.split())
def test_yaml_1_1_words_stay_strings(tmp_path: Path, word: str) -> None:
    """A word that YAML 1.1 takes for a truth value, a date or base 60 is a label."""
    config = load_config(write(tmp_path, f"data:\n  train: a.csv\n  labels: [cat, {word}]"))
    assert config.data.labels == ["cat", word]


@pytest.mark.parametrize("scalar", ["010", "1e3", ".5", "0x1f", "true", "~", "null", "Null"])
def test_a_label_that_is_no_string_is_refused(tmp_path: Path, scalar: str) -> None:
    """Labels are never turned into strings behind the user's back."""
    message = fault(write(tmp_path, f"data:\n  train: a.csv\n  labels:\n  - cat\n  - {scalar}"))
    assert "line 5: data.labels.1: wanted string, got " in message
    assert "; quote it" in message


@pytest.mark.parametrize(("text", "truth"), [("true", True), ("True", True), ("FALSE", False)])
def test_truth_values_are_true_and_false(tmp_path: Path, text: str, truth: bool) -> None:
    """true and false in three spellings are booleans."""
    config = load_config(write(tmp_path, f"{DATA}model: {{freeze_backbone: {text}}}"))
    assert config.model.freeze_backbone is truth


@pytest.mark.parametrize("word", ["yes", "on", "1", "'true'"])
def test_nothing_else_is_a_truth_value(tmp_path: Path, word: str) -> None:
    """A switch takes true or false, nothing like them."""
    message = fault(write(tmp_path, f"{DATA}model: {{freeze_backbone: {word}}}"))
    assert "line 2: model.freeze_backbone: wanted true or false, got" in message


# ---- files that are refused -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        (DATA + "train: {}\nmodel: {}\ntrain: {}\n", "train", (2, 4)),
        ("data:\n  train: a\n  val: b\n\n  train: c\n", "train", (2, 5)),
        (DATA + "loss:\n  pos_weight:\n    cat: 1\n    cat: 2\n", "cat", (4, 5)),
        (DATA + "train:\n  lr: 1\n  'lr': 1\n", "lr", (3, 4)),
    ],
)
def test_duplicate_keys_are_refused(
    tmp_path: Path, text: str, key: str, lines: tuple[int, int]
) -> None:
    """The second of two equal keys is an error that names both lines."""
    message = fault(write(tmp_path, text))
    words = f"the key '{key}' is written twice, in lines {lines[0]} and {lines[1]}; keep one"
    assert f", line {lines[1]}: {words}" in message


@pytest.mark.parametrize(
    "text",
    [
        "data:\n  train: a.csv\n   val: b.csv\n",
        "data:\n\ttrain: a\n",
        "data:\n  train: a\n model: {}\n",
    ],
)
def test_wrong_indentation_is_explained(tmp_path: Path, text: str) -> None:
    """The line of PyYAML's message stays; the advice follows it."""
    message = fault(write(tmp_path, text))
    assert re.search(r", line \d: ", message)
    assert message.endswith("start in the same column, with spaces, not tabs")


@pytest.mark.parametrize("text", ["data: [a, b\n", "data: 'a\n", "data: @a\n"])
def test_other_errors_of_yaml_do_not_blame_the_indentation(tmp_path: Path, text: str) -> None:
    """A bracket or a quote that is not closed, a character that must be quoted."""
    assert "indentation" not in fault(write(tmp_path, text))


def test_aliases_are_refused(tmp_path: Path) -> None:
    """An alias is an error that names its line."""
    message = fault(write(tmp_path, "data: &d {train: a.csv}\nmodel: *d\n"))
    assert ", line 2: aliases (*name) are not allowed" in message


def test_billion_laughs_are_refused_at_once(tmp_path: Path) -> None:
    """Nine levels of nine aliases never unfold: they cost no more than three do."""

    def refuse(levels: int) -> None:
        bomb = "a0: &a0 [lol]\n"
        for i in range(1, levels + 1):
            bomb += f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n"
        assert "aliases" in fault(write(tmp_path, bomb))

    assert compare_costs(lambda: refuse(9), lambda: refuse(3)) < 10


def test_merge_keys_have_no_meaning(tmp_path: Path) -> None:
    """`<<` is an unknown key, not a way around the checks."""
    message = fault(write(tmp_path, "data:\n  <<: {train: a.csv}\n"))
    assert "data.<<: unknown key" in message
    assert "data.train: this key is needed" in message


def test_a_tag_builds_no_object(tmp_path: Path) -> None:
    """A file cannot call Python."""
    made = tmp_path / "made"
    message = fault(write(tmp_path, f"{DATA}x: !!python/object/apply:os.mkdir ['{made}']\n"))
    assert "pets.yaml, line 2: could not determine a constructor for the tag" in message
    assert not made.exists()


@pytest.mark.parametrize(
    "value",
    [
        "!!python/name:os.system x",
        "!!python/tuple [a]",
        "!mine x",
        "!!int x",
        "!!int ''",
        "!!float x",
        "!!float ''",
        "!!bool x",
        "!!timestamp x",
        "!!set [a]",
        "!!omap x",
        "!!pairs [x]",
        "!!map x",
        "!!binary é",
    ],
)
def test_tags_that_do_not_fit_are_refused(tmp_path: Path, value: str) -> None:
    """A tag on the wrong kind of value is a fault in the file, not a bug in the program."""
    path = write(tmp_path, f"{DATA}output: {value}\n")
    assert str(path) in fault(path)


@pytest.mark.parametrize(
    "text", ["[" * 5000, "{a: " * 5000, "- " * 5000, "[" * 900 + "]" * 900, "? " * 5000]
)
def test_deep_nesting_is_refused(tmp_path: Path, text: str) -> None:
    """Depth ends in an error with the file's name."""
    path = write(tmp_path, text)
    assert fault(path) == f"{path}: nested too deeply"


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000, "1e" + "9" * 5000])
def test_endless_numbers_are_refused(tmp_path: Path, number: str) -> None:
    """A number too long to print is still a fault of the file."""
    assert "pets.yaml" in fault(write(tmp_path, f"{DATA}train: {{seed: {number}}}"))
    assert "pets.yaml" in fault(write(tmp_path, f"{DATA}train: {{lr: {number}}}"))


def test_not_utf_8_is_refused(tmp_path: Path) -> None:
    """Latin-1 is named as what it is not, with the first bad byte."""
    path = write(tmp_path, "data: {train: caf\xe9}".encode("latin-1"))
    assert fault(path) == f"{path}: not UTF-8 text (byte 17)"


def test_control_characters_are_refused(tmp_path: Path) -> None:
    """A NUL in the text is an error with the file's name."""
    assert "pets.yaml: " in fault(write(tmp_path, "data: {train: a\0b}"))


@pytest.mark.parametrize("name", ["absent.yaml", "folder"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    """A missing file with the system's reason; of a folder, that `init` makes a config for it."""
    (tmp_path / "folder").mkdir()
    words = {
        "absent.yaml": "cannot read the config",
        "folder": "is data, not a config: `mlfinetune init",
    }
    assert str(tmp_path / name) in fault(tmp_path / name)
    assert words[name] in fault(tmp_path / name)


def test_a_table_is_no_config(tmp_path: Path) -> None:
    """The first thing to try is `train tags.csv`: the message says what to do."""
    path = write(tmp_path, "image,labels", "tags.csv")
    assert fault(path).endswith(f"`mlfinetune init {path}` writes one for it")


NO_CONFIGS = {
    "tags.csv.gz": b"\x1f\x8b\x08",
    "tags.JSONL": b"{}",
    "tags.json": b'[{"image": "a.jpg"}]',
    "tags.txt": b"image,labels\na.jpg,cat\n",
    "shard.tar": b"\0\xff",
}


@pytest.mark.parametrize("name", NO_CONFIGS)
def test_other_data_is_no_config(tmp_path: Path, name: str) -> None:
    """By its ending, or where it is a list or a text that no config is."""
    path = write(tmp_path, NO_CONFIGS[name], name)
    assert fault(path) == (
        f"{path} is data, not a config: `mlfinetune init {path}` writes one for it"
    )


def test_a_mapping_in_json_may_be_a_config(tmp_path: Path) -> None:
    """YAML holds JSON."""
    path = write(tmp_path, '{"data": {"train": "a.csv"}}', "pets.json")
    assert load_config(path).data.train == tmp_path / "a.csv"


@pytest.mark.parametrize("name", ["", " ", "dog "])
def test_new_names_of_labels_are_names(tmp_path: Path, name: str) -> None:
    """A label of no letters would be a column of its own."""
    text = f"data: {{train: a.csv, rename_labels: {{Dog: '{name}'}}}}"
    assert "wanted a new name" in fault(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "kind"), [("- a\n", "list"), ("hello", "text"), ("3", "int"), ("true", "bool")]
)
def test_the_top_is_a_mapping(tmp_path: Path, text: str, kind: str) -> None:
    """A file that is no mapping says what it is instead."""
    message = fault(write(tmp_path, text))
    assert message.endswith(f": wanted keys and values at the top, found a {kind}")


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~\n", "{}"])
def test_an_empty_file_lacks_its_needed_key(tmp_path: Path, text: str) -> None:
    """The one key without a default is asked for."""
    message = fault(write(tmp_path, text))
    assert ": 1 fault\n" in message
    assert message.endswith(": data: this key is needed; name your table or folder")


def test_a_second_document_is_refused(tmp_path: Path) -> None:
    """Nothing after `---` is ignored silently."""
    message = fault(write(tmp_path, f"{DATA}---\n{DATA}"))
    assert ", line 2: but found another document" in message


def test_a_byte_order_mark_and_crlf_are_no_fault(tmp_path: Path) -> None:
    """Files from Windows load."""
    path = write(tmp_path, b"\xef\xbb\xbfdata:\r\n  train: a.csv\r\ntrain:\r\n  epochs: 3\r\n")
    config = load_config(path)
    assert config.data.train == tmp_path / "a.csv"
    assert config.train.epochs == 3


# ---- faults -----------------------------------------------------------------------------


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    """One error holds each fault with its line, its key and the nearest known one."""
    path = write(
        tmp_path,
        "modle: {}\ntrain:\n  lr: 0\n  batchsize: 4\n  precision: half\ndata:\n  max_pixels: '3'\n",
    )
    assert fault(path).splitlines() == [
        f"{path}: 6 faults",
        "  line 1: modle: unknown key; did you mean 'model'?",
        "  line 3: train.lr: wanted greater than 0, got 0",
        "  line 4: train.batchsize: unknown key; did you mean 'batch_size'?",
        "  line 5: train.precision: wanted 'auto', 'float32' or 'bfloat16', got 'half'",
        "  line 6: data.train: this key is needed; name your table or folder",
        "  line 7: data.max_pixels: wanted whole number, got '3'",
    ]


def test_ten_faults_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    """A long list of faults is cut, in the file's order, and says by how much."""
    path = write(tmp_path, DATA + "".join(f"zzz{i:02}: 1\n" for i in range(13)))
    first, *shown, last = fault(path).splitlines()
    assert first == f"{path}: 13 faults"
    assert [line.split(":")[:2] for line in shown] == [
        [f"  line {i + 2}", f" zzz{i:02}"] for i in range(10)
    ]
    assert last == "  ... and 3 more"


def test_exactly_ten_faults_are_all_shown(tmp_path: Path) -> None:
    """Nothing is counted where nothing is left out."""
    message = fault(write(tmp_path, DATA + "".join(f"zzz{i}: 1\n" for i in range(10))))
    assert len(message.splitlines()) == 11
    assert "more" not in message


def test_without_a_near_key_the_known_ones_are_listed(tmp_path: Path) -> None:
    """A key like no other gets the section's keys."""
    message = fault(write(tmp_path, f"{DATA}loss: {{qqqq: 1}}"))
    assert "line 2: loss.qqqq: unknown key; known: name, pos_weight, label_smoothing" in message


@pytest.mark.parametrize("key", ["Train", "TRAIN", " train "])
def test_the_nearest_key_ignores_case_and_space(tmp_path: Path, key: str) -> None:
    """`Train` is one slip from `train`."""
    assert "did you mean 'train'?" in fault(write(tmp_path, f"{DATA}'{key}': {{}}"))


@pytest.mark.parametrize("value", ["", "[]", "text", "3"])
def test_a_section_is_a_mapping(tmp_path: Path, value: str) -> None:
    """A section that is no mapping is one fault on its line."""
    message = fault(write(tmp_path, f"{DATA}train: {value}\n"))
    assert ": 1 fault\n  line 2: train: wanted mapping of keys to values, got " in message


def test_a_key_that_is_a_number_has_its_own_line(tmp_path: Path) -> None:
    """Keys are strings; the fault stands where the key stands, in words."""
    message = fault(write(tmp_path, f"{DATA}\n7: 2\n"))
    assert "line 3" in message
    assert "wanted Keys should" not in message


@pytest.mark.parametrize(
    ("value", "shown"),
    [("many", "'many'"), ("1.5", "1.5"), ("[1]", "[1]"), ("null", "null"), ("true", "true")],
)
def test_the_union_of_workers_speaks_once(tmp_path: Path, value: str, shown: str) -> None:
    """A value that fits no branch of a union is one fault that names every branch."""
    message = fault(write(tmp_path, f"{DATA}train: {{workers: {value}}}"))
    assert message.splitlines()[1:] == [
        f"  line 2: train.workers: wanted whole number or 'auto', got {shown}"
    ]


@pytest.mark.parametrize("value", ["3", "automatic", "[1]", "true"])
def test_the_union_of_pos_weight_speaks_once(tmp_path: Path, value: str) -> None:
    """Neither `auto` nor a map of labels: one fault."""
    message = fault(write(tmp_path, f"{DATA}loss: {{pos_weight: {value}}}"))
    assert ": 1 fault\n  line 2: loss.pos_weight: wanted 'auto' or mapping of keys" in message


def test_the_branch_that_got_further_speaks_alone(tmp_path: Path) -> None:
    """In a map of labels the bad weights are the faults, not the missing `auto`."""
    text = DATA + "loss:\n  pos_weight:\n    cat: -1\n    dog: x\n    eel: 2\n"
    assert fault(write(tmp_path, text)).splitlines()[1:] == [
        "  line 4: loss.pos_weight.cat: wanted greater than 0, got -1",
        "  line 5: loss.pos_weight.dog: wanted number, got 'x'",
    ]


@pytest.mark.parametrize(
    ("section", "first", "second"),
    [
        ("train", "workers: -3", "lr: 0"),
        ("augment", "crop_scale: [1, 0.5]", "rand_augment: 99"),
        ("data", "labels: [a, a]", "max_pixels: 0"),
    ],
)
def test_no_fault_hides_another(tmp_path: Path, section: str, first: str, second: str) -> None:
    """Two faults in one section are both told, each with its own key and line."""
    train = "  train: a.csv\n" if section == "data" else ""
    text = f"{section}:\n  {first}\n  {second}\n{train}" + ("" if train else DATA)
    message = fault(write(tmp_path, text))
    assert f"line 2: {section}.{first.split(':')[0]}" in message
    assert f"line 3: {section}.{second.split(':')[0]}" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {train: a, val: b, val_fraction: 0.2}", "give val or val_fraction, not both"),
        ("data: {train: a, label_columns: [x], label_column: y}", "label_columns"),
        ("data: {train: a, labels: [x, y, x]}", "'x' twice"),
        (DATA + "augment: {crop_scale: [0, 1]}", "crop_scale"),
        (DATA + "augment: {crop_scale: [0.5, 1.5]}", "crop_scale"),
        (DATA + "augment: {crop_scale: [0.5]}", "crop_scale"),
        (DATA + "augment: {crop_scale: [0.1, 0.2, 0.3]}", "crop_scale"),
        (DATA + "train: {workers: -1}", "workers"),
        (DATA + "train: {lr: .nan}", "finite"),
        (DATA + "train: {head_lr: .inf}", "finite"),
        (DATA + "train: {weight_decay: 1e400}", "finite"),
        (DATA + "loss: {pos_weight: {cat: .inf}}", "finite"),
    ],
)
def test_contradictions_and_bad_ranges_are_refused(tmp_path: Path, text: str, words: str) -> None:
    """Values that fit their type and still make no sense are faults."""
    message = fault(write(tmp_path, text))
    assert words in message
    assert ": 1 fault\n" in message


# ---- overrides --------------------------------------------------------------------------


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    """`key=value` beats the file, the later one beats the earlier, the rest stays."""
    path = write(tmp_path, f"{DATA}train: {{epochs: 3, lr: 0.5, seed: 7}}")
    config = load_config(path, ["train.epochs=4", "train.lr=1e-3", "train.epochs=5"])
    assert (config.train.epochs, config.train.lr, config.train.seed) == (5, 1e-3, 7)


@pytest.mark.parametrize(
    ("override", "section", "value"),
    [
        ("data.labels=[no, 'a, b']", "data", ["no", "a, b"]),
        ("model.weights=null", "model", None),
        ("model.freeze_backbone=true", "model", True),
        ("augment.crop_scale=[0.5, 1]", "augment", (0.5, 1.0)),
        ("loss.pos_weight=auto", "loss", "auto"),
        ("loss.pos_weight={cat: 2, dog: 1e1}", "loss", {"cat": 2.0, "dog": 10.0}),
        ("loss.pos_weight.cat=2", "loss", {"cat": 2.0}),
        ("data.label_column=a=b", "data", "a=b"),
    ],
)
def test_override_values_are_yaml(
    tmp_path: Path, override: str, section: str, value: object
) -> None:
    """Lists, maps, null and text with an equals sign can be given on the command line."""
    config = load_config(write(tmp_path, DATA), [override])
    key = override.partition("=")[0].split(".")[1]
    assert getattr(getattr(config, section), key) == value


def test_a_deep_override_joins_the_map_of_the_file(tmp_path: Path) -> None:
    """One label's weight is set, those of the file stay."""
    path = write(tmp_path, f"{DATA}loss: {{pos_weight: {{cat: 1, dog: 3}}}}")
    assert load_config(path, ["loss.pos_weight.cat=2"]).loss.pos_weight == {"cat": 2.0, "dog": 3.0}


def test_a_deep_override_replaces_a_word(tmp_path: Path) -> None:
    """`pos_weight: auto` gives way to a map."""
    path = write(tmp_path, f"{DATA}loss: {{pos_weight: auto}}")
    assert load_config(path, ["loss.pos_weight.cat=2"]).loss.pos_weight == {"cat": 2.0}


def test_a_whole_section_can_be_overridden(tmp_path: Path) -> None:
    """`train={...}` replaces the section; its other keys return to their defaults."""
    path = write(tmp_path, f"{DATA}train: {{epochs: 3}}")
    assert load_config(path, ["train={lr: 0.5}"]).train == TrainConfig(lr=0.5)


def test_an_empty_section_takes_overrides(tmp_path: Path) -> None:
    """`train:` with nothing below it is filled by its override."""
    assert load_config(write(tmp_path, f"{DATA}train:\n"), ["train.epochs=2"]).train.epochs == 2


def test_the_needed_key_can_come_from_an_override(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty file with `data.train=` is a config."""
    monkeypatch.chdir(tmp_path)
    assert load_config(write(tmp_path, ""), ["data.train=a.csv"]).data.train == tmp_path / "a.csv"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lr", "override 'train.lr': wanted section.key=value"),
        ("=3", "override '=3': wanted section.key=value"),
        (".lr=3", "override '.lr=3': wanted section.key=value"),
        ("train..lr=3", "override 'train..lr=3': wanted section.key=value"),
        ("train.lr=[", "override 'train.lr=['"),
        ("train.lr=*x", "aliases (*name) are not allowed"),
        ("train.lr={a: 1, a: 2}", "the key 'a' is written twice, in line 1; keep one"),
        ("train.lr=!!bool x", "override 'train.lr=!!bool x'"),
        ("train.epochs=x", "override: train.epochs: wanted whole number, got 'x'"),
        ("train.epoch=3", "override: train.epoch: unknown key; did you mean 'epochs'?"),
        ("trian.epochs=3", "trian: unknown key; did you mean 'train'?"),
        ("train.epochs.x=3", "override: train.epochs: wanted whole number"),
        ("train=3", "override: train: wanted mapping of keys to values, got 3"),
        ("data.train=", "override: data.train: wanted path or URL, got null"),
        ("loss.pos_weight.cat=-2", "override: loss.pos_weight.cat: wanted greater than 0"),
    ],
)
def test_bad_overrides_are_named(tmp_path: Path, override: str, words: str) -> None:
    """A fault in an override is one line that says so."""
    message = fault(write(tmp_path, DATA), override)
    assert ": 1 fault\n" in message
    assert words in message


def test_faults_of_file_and_overrides_come_together(tmp_path: Path) -> None:
    """Overrides speak first, then the file by its lines."""
    path = write(tmp_path, f"{DATA}train:\n  lr: 0\n")
    lines = fault(path, "nonsense", "train.epochs=x").splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "override 'nonsense'",
        "override",
        "line 3",
    ]


def test_an_override_mends_the_file(tmp_path: Path) -> None:
    """A bad value in the file is no fault where an override replaces it."""
    path = write(tmp_path, f"{DATA}train: {{epochs: x}}")
    assert load_config(path, ["train.epochs=2"]).train.epochs == 2


def test_an_override_hides_no_broken_section(tmp_path: Path) -> None:
    """`train: 3` stays a fault when an override sets a key below it."""
    message = fault(write(tmp_path, f"{DATA}train: 3\n"), "train.epochs=2")
    assert "line 2: train: wanted mapping of keys to values, got 3" in message


# ---- paths ------------------------------------------------------------------------------


def test_paths_in_the_file_start_at_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths in the file mean the same from any current folder."""
    (tmp_path / "sub").mkdir()
    text = "data: {train: t.csv, val: ../v.csv, images: /abs}\noutput: out\n"
    write(tmp_path / "sub", text)
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("sub/pets.yaml"))
    assert config.data.train == tmp_path / "sub" / "t.csv"
    assert config.data.val is not None
    assert config.data.val.resolve() == (tmp_path / "v.csv").resolve()
    assert config.data.images == Path("/abs")
    assert config.output == tmp_path / "sub" / "out"


def test_paths_in_overrides_start_at_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths in overrides start at the current folder, as in a shell."""
    (tmp_path / "here").mkdir()
    path = write(tmp_path, "data: {train: t.csv, val: v.csv}\n")
    monkeypatch.chdir(tmp_path / "here")
    config = load_config(
        path, ["data.val=w.csv", "output=out", "data.images=/abs", "model.weights=w.pt"]
    )
    assert config.data.train == tmp_path / "t.csv"
    assert config.data.val == tmp_path / "here" / "w.csv"
    assert config.data.images == Path("/abs")
    assert config.output == tmp_path / "here" / "out"
    assert config.model.weights == str(tmp_path / "here" / "w.pt")


def test_a_section_override_has_paths_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`data={train: x}` is an override as any other."""
    (tmp_path / "here").mkdir()
    path = write(tmp_path, DATA)
    monkeypatch.chdir(tmp_path / "here")
    assert load_config(path, ["data={train: x.csv}"]).data.train == tmp_path / "here" / "x.csv"


@pytest.mark.parametrize("name", ["resnet.pth", "a/b.safetensors", "w.pt", "pytorch_model.bin"])
def test_weight_files_become_paths(tmp_path: Path, name: str) -> None:
    """Weights with a file's ending lie beside the config."""
    config = load_config(write(tmp_path, f"{DATA}model: {{weights: {name}}}"))
    assert config.model.weights == str(tmp_path / name)


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT"])
def test_weight_names_stay_names(tmp_path: Path, name: str) -> None:
    """torchvision's names are no paths."""
    config = load_config(
        write(tmp_path, f"{DATA}model: {{weights: {name}}}"), [f"model.weights={name}"]
    )
    assert config.model.weights == name


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~/data` is below $HOME."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load_config(write(tmp_path, "data: {train: ~/t.csv}\n"))
    assert config.data.train == tmp_path / "home" / "t.csv"


@pytest.mark.parametrize("value", ["''", "~nosuchuser/t.csv"])
def test_paths_that_lead_nowhere_are_refused(tmp_path: Path, value: str) -> None:
    """An empty path and a home that is not there are faults, not the current folder."""
    assert "data.train" in fault(write(tmp_path, f"data: {{train: {value}}}\n"))


def test_the_default_output_has_the_name_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """runs/<config file's name>, in the current folder."""
    (tmp_path / "here").mkdir()
    path = write(tmp_path, DATA, "cats.v2.yaml")
    monkeypatch.chdir(tmp_path / "here")
    assert load_config(path).output == tmp_path / "here" / "runs" / "cats.v2"


# ---- the Config itself ------------------------------------------------------------------


def test_every_default_stands(tmp_path: Path) -> None:
    """A config of one key has the defaults that the contract lists."""
    config = load_config(write(tmp_path, DATA))
    assert (config.model.backbone, config.model.weights) == ("resnet50", "auto")
    assert (config.model.image_size, config.model.resize) == ("auto", "squash")
    assert (config.train.epochs, config.train.batch_size, config.train.seed) == (10, 32, 0)
    assert (config.train.lr, config.train.head_lr, config.train.weight_decay) == (1e-4, 1e-3, 0.01)
    assert (config.train.precision, config.train.workers) == ("auto", "auto")
    assert (config.data.empty_labels, config.data.max_pixels) == ("negative", 89_000_000)
    assert config.loss.pos_weight is None


def test_a_config_is_frozen(tmp_path: Path) -> None:
    """Nobody changes a config after it was checked."""
    config = load_config(write(tmp_path, DATA))
    with pytest.raises(ValidationError, match="frozen"):
        config.train.lr = 3.0
    with pytest.raises(ValidationError, match="frozen"):
        config.output = Path("elsewhere")
    assert config.train.lr == 1e-4


NASTY = ["no", "1e-3", "~", "", " a ", "'", '"', "\n", "a\nb\n", "\t", "#", "a: b", "- a", "[", "{"]
NASTY += ["*a", "&a", "!a", "%a", "@a", "`", "|", ">", "?", "010", "0o17", "0x1f", "0b1", "1_0"]
NASTY += ["null", "true", "yes", "2024-01-01", "1:30", "=", "<<", ".inf", ".nan", "-", "---", "..."]
NASTY += ["\x85", "\u2028", "\ufeff", "\0", "\r\n", "😀", "é", "e\u0301", "x" * 300, "a b " * 99]
TEXT = st.sampled_from(NASTY) | st.text(st.characters(codec="utf-8"), max_size=20)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
SHARE = st.floats(min_value=0, max_value=1)
ABSOLUTE = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9).map(
    lambda name: Path(os.path.normpath(Path("/data") / name.lstrip("/")))
)
CONFIGS = st.builds(
    Config,
    data=st.builds(
        DataConfig,
        train=ABSOLUTE,
        images=st.none() | ABSOLUTE,
        label_column=st.none() | TEXT,
        val_fraction=st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
        labels=st.none() | st.lists(TEXT, min_size=1, max_size=6, unique=True),
        allow_outside_root=st.booleans(),
    ),
    model=st.builds(ModelConfig, weights=st.sampled_from([None, "IMAGENET1K_V1", "/w/a b.pth"])),
    augment=st.builds(
        AugmentConfig,
        crop_scale=st.tuples(SHARE, SHARE).map(sorted).filter(lambda pair: pair[0] > 0).map(tuple),
        horizontal_flip=SHARE,
    ),
    train=st.builds(
        TrainConfig,
        lr=POSITIVE,
        weight_decay=POSITIVE,
        seed=st.integers(0, 2**63 - 1),
        workers=st.just("auto") | st.integers(0, 99),
        clip_grad_norm=st.none() | POSITIVE,
    ),
    loss=st.builds(
        LossConfig,
        pos_weight=st.none() | st.just("auto") | st.dictionaries(TEXT, POSITIVE, max_size=6),
    ),
    output=ABSOLUTE,
)


@settings(max_examples=100, deadline=None)
@given(config=CONFIGS)
def test_what_is_dumped_loads_as_it_was(folder: Path, config: Config) -> None:
    """Any label and any number survive the way to YAML and back."""
    assert load_config(write(folder, dump_config(config))) == config


@pytest.mark.parametrize("label", NASTY)
def test_each_nasty_label_survives(tmp_path: Path, label: str) -> None:
    """Labels that YAML would take for something else come back, as items and as keys."""
    loss = LossConfig(pos_weight={label: 2.0})
    data = DataConfig(train=Path("/t.csv"), labels=[label])
    config = Config(data=data, loss=loss, output=Path("/o"))
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_a_dumped_config_means_the_same_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolved config in a run directory points to the same data."""
    config = load_config(write(tmp_path, DATA))
    (tmp_path / "run").mkdir()
    monkeypatch.chdir("/")
    assert load_config(write(tmp_path / "run", dump_config(config), "config.yaml")) == config


def test_the_schema_that_ships_is_that_of_the_models() -> None:
    """Editors check by the same rules as `load_config`; the message names the fix."""
    assert SCHEMA.read_text() == build_schema(), "make docs"


# ---- anything at all --------------------------------------------------------------------

TOKENS = ["data", "train", "loss", "pos_weight", "lr", "cat", ":", ": ", " ", "\n", "\n  ", "- "]
TOKENS += ["[", "]", "{", "}", ",", "'", '"', "|", ">", "? ", "#", "%", "~", "<<", "&a ", "*a", "!"]
TOKENS += ["!!bool ", "!!int ", "!!float ", "!!set ", "!!omap ", "!!timestamp ", "!!binary "]
TOKENS += ["1e3", "0x1f", "010", ".nan", "-1", "null", "true", "---", "...", "\t", "\\u0000"]
SOUP = st.lists(st.sampled_from(TOKENS), max_size=25).map("".join)


@settings(max_examples=250, deadline=None)
@given(content=(SOUP | SOUP.map(DATA.__add__) | st.text() | st.binary()))
@example(DATA + "output: !!bool x\n")
@example("data: !!timestamp x\n")
@example("data: {train: '\\ud800'}")
def test_any_file_is_a_config_or_a_config_error(folder: Path, content: str | bytes) -> None:
    """No file brings the program down."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    path = write(folder, data)
    result = outcome(path)
    assert isinstance(result, Config) or str(path) in str(result)


@settings(max_examples=150, deadline=None)
@given(override=st.text() | SOUP | st.tuples(SOUP, SOUP).map("=".join) | SOUP.map("data.".__add__))
def test_any_override_is_taken_or_a_config_error(folder: Path, override: str) -> None:
    """No override brings the program down."""
    path = write(folder, DATA)
    result = outcome(path, override)
    assert isinstance(result, Config) or str(path) in str(result)


# ---- the loss ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("{gamma_neg: 2}", "loss.gamma_neg: belongs to asl; take it out, or set loss.name: asl"),
        (
            "{name: focal, clip: 0.1}",
            "loss.clip: belongs to asl; take it out, or set loss.name: asl",
        ),
        (
            "{name: asl, alpha: 0.5}",
            "loss.alpha: belongs to focal; take it out, or set loss.name: focal",
        ),
    ],
)
def test_a_setting_of_another_loss_is_refused(tmp_path: Path, loss: str, words: str) -> None:
    """A setting that would have no effect is a fault that names its owner."""
    message = fault(write(tmp_path, f"{DATA}loss: {loss}"))
    assert words in message
    assert ": 1 fault\n  line 2: loss" in message


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("{name: bce}", "loss.name: wanted 'sce', 'asl' or 'focal', got 'bce'"),
        ("{backend: cuda}", "loss.backend: wanted 'auto', 'triton' or 'torch', got 'cuda'"),
        ("{name: asl, gamma_neg: -1}", "loss.gamma_neg"),
        ("{name: asl, clip: 1}", "loss.clip"),
        ("{name: focal, alpha: 0}", "loss.alpha"),
        ("{name: focal, gamma: .inf}", "loss.gamma"),
    ],
)
def test_settings_of_the_loss_out_of_range_are_refused(
    tmp_path: Path, loss: str, words: str
) -> None:
    """Before any data is read, with the key."""
    assert f"line 2: {words}" in fault(write(tmp_path, f"{DATA}loss: {loss}"))


@pytest.mark.parametrize(("name", "function"), [("asl", asymmetric_loss), ("focal", focal_loss)])
def test_a_resolved_loss_says_its_defaults(
    tmp_path: Path, name: str, function: Callable[..., Tensor]
) -> None:
    """A loss gets its own defaults; 0 is a setting, not a missing one."""
    loss = load_config(write(tmp_path, f"{DATA}loss: {{name: {name}}}")).loss
    for key in ("gamma_neg", "gamma_pos", "clip", "gamma", "alpha"):
        assert getattr(loss, key) == (function.__kwdefaults__ or {}).get(key)
    assert load_config(write(tmp_path, f"{DATA}loss: {{name: asl, clip: 0}}")).loss.clip == 0
    assert load_config(write(tmp_path, DATA)).loss.gamma is None


@pytest.mark.parametrize(
    "loss", ["{name: asl, gamma_neg: 0, clip: 0.1}", "{name: focal, alpha: 0.5, backend: torch}"]
)
def test_a_dumped_loss_loads_as_it_was(tmp_path: Path, loss: str) -> None:
    """The resolved config of a run reproduces its loss."""
    config = load_config(write(tmp_path, f"{DATA}loss: {loss}"))
    assert load_config(write(tmp_path, dump_config(config), "config.yaml")) == config


def test_a_key_without_its_section_is_named_with_it(tmp_path: Path) -> None:
    """The nearest key may be in another section; a tab is written as people write it."""
    path = tmp_path / "a.yaml"
    path.write_text("data: {train: a.csv}\n")
    with pytest.raises(ConfigError, match=r"did you mean data\.label_delimiter"):
        load_config(path, ["label_delimiter=;"])
    assert load_config(path, ["data.label_delimiter=\\t"]).data.label_delimiter == "\t"


def test_overrides_of_python() -> None:
    """Each value stands for itself: YAML reads no other from its text."""
    values = {"data.train": Path("a b.csv"), "train": {"lr": 1e-5, "epochs": 3}}
    values |= {
        "data.label_delimiter": "|",
        "data.labels": ["no", "é😀", "1"],
        "model.weights": None,
    }
    config = load_tree({}, build_overrides(values))
    assert (config.data.train, config.data.label_delimiter) == (Path("a b.csv").absolute(), "|")
    assert list(config.data.labels or ()) == ["no", "é😀", "1"]
    assert (config.train.lr, config.train.epochs, config.model.weights) == (1e-5, 3, None)
    for bad in (float("nan"), object(), {1: object()}):
        with pytest.raises(ConfigError, match="a config holds texts, numbers"):
            build_overrides({"train.lr": bad})
