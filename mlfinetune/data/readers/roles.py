"""Roles of the columns of a table: image, split, group, labels; by their names and their cells.

header + sample of rows + options -> choose_roles -> Roles, with a note for each guess

What the config names is taken. Else usual names count, and cells decide where names do not: the
image column holds names of pictures, the split column words such as train and test.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlfinetune.data.readers.cells import quote_names
from mlfinetune.data.readers.column_names import (
    BARE_TRAIN,
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    METADATA,
    OTHER_IMAGE_NAMES,
    OTHER_LABEL_NAMES,
    SPLIT_MARKS,
    SPLIT_NAMES,
    SURE_VALUE_NAMES,
    VALUE_NAMES,
    find_split,
    is_bookkeeping,
    simplify_name,
    split_words,
)
from mlfinetune.data.readers.column_sample import Sample
from mlfinetune.data.readers.delimiters import detect_delimiter
from mlfinetune.data.readers.split_columns import describe_rivals
from mlfinetune.data.table import SourceOptions
from mlfinetune.errors import DataError
from mlfinetune.text import suggest

NONE = "none"
"""Value of `split_column` and `value_column`: the table has no such column."""
_UNKNOWN = "unknown"
_LAST_RESORTS = ("id", "name")
_DERIVED = frozenset(("thumb", "thumbnail", "mask", "masks", "preview", "annotation", "icon"))
"""Words in the name of a column of pictures that are not the pictures themselves."""
_LONG_LABEL = 60
"""Letters; text cells that are longer on average are captions, and no labels."""


@dataclass(frozen=True)
class Roles:
    """Role of each column.

    Attributes:
        image: the column of picture names.
        split: the columns that say which split a row is in: of words, which agree, or marks of 1
            and 0.
        group: the column of `data.group_by`.
        lists: the columns of lists of labels; empty where each label has a column.
        unknown: the column of labels that nobody looked for, beside `lists`.
        value: the column that may say whether the one label of its row is there; all rows decide.
        more_lists: columns that hold labels by their names, and are not used.
        whole: cells of `lists` are one label each.
        states: the columns that may be one label each, where `lists` is empty.
        given: the config names the columns in `states`.
        left_out: columns of states that are no labels by their names.
        choices: config key -> value that makes the same choice, for each guess by cells or by an
            unusual name.
    """

    image: str = ""
    split: tuple[str, ...] = ()
    group: str | None = None
    lists: tuple[str, ...] = ()
    unknown: str | None = None
    value: str | None = None
    more_lists: tuple[str, ...] = ()
    whole: bool = False
    states: tuple[str, ...] = ()
    given: bool = False
    left_out: tuple[str, ...] = ()
    choices: tuple[tuple[str, str | tuple[str, ...]], ...] = ()


def choose_roles(
    path: Path, header: Sequence[str], options: SourceOptions, sample: Sample
) -> Roles:
    """Return the role of each column.

    Raises:
        DataError: there is no image column; a column that the config names is missing; it is
            unclear which column is the split, or which columns are labels.
    """
    return _Chooser(path, header, options, sample).choose()


class _Chooser:
    """Chooses one role after the other; `used` has the columns that are taken."""

    def __init__(
        self, path: Path, header: Sequence[str], options: SourceOptions, sample: Sample
    ) -> None:
        self.path = path
        self.header = [name for name in header if name]
        self.options = options
        self.sample = sample
        self.used: set[str] = set()
        self.image = ""
        self.choices: list[tuple[str, str | tuple[str, ...]]] = []

    def choose(self) -> Roles:
        """Return all roles."""
        options = self.options
        for name, key in (
            (options.image_column, "image_column"),
            (options.split_column, "split_column"),
            (options.value_column, "value_column"),
            (options.group_by, "group_by"),
        ):
            if name != NONE or key not in ("split_column", "value_column"):
                self._require_column(name, key)
        for key, names in (
            ("label_column", options.label_column),
            ("label_columns", options.label_columns or ()),
        ):
            for name in names:
                self._require_column(name, key)
        self.used |= {*options.label_column, *(options.label_columns or ())}
        named = (options.split_column, options.value_column, options.group_by)
        self.used |= {name for name in named if name}
        image = options.image_column or self._find_image()
        self.image = image
        self.used.add(image)
        if options.split_column == NONE:
            split: tuple[str, ...] = ()
        else:
            split = (options.split_column,) if options.split_column else self._find_split()
        self.used |= {*split}
        roles = replace(self._choose_labels(), image=image, split=split, group=options.group_by)
        return replace(roles, choices=tuple(self.choices))

    def _require_column(self, name: str | None, key: str) -> None:
        """Raise DataError where the config names a column that is missing."""
        if name is not None and name not in self.header:
            hint = suggest(name, self.header)
            if not hint and key != "group_by":
                hint = "; null finds it by itself"
            raise DataError(
                f"{self.path}: no column '{name}' (data.{key}){hint}; columns: "
                f"{quote_names(self.header)}"
            )

    @property
    def _free(self) -> list[str]:
        return [name for name in self.header if name not in self.used]

    # ---- image ------------------------------------------------------------------------------

    def _find_image(self) -> str:
        """Return the image column: usual names first, but cells that are pictures beat a name.

        header           cells                   image column
        image, file      `1`, `a.jpg`            file: the other is a label
        Datei, Tags      `a.jpg`, `Hund`         Datei, by its cells
        image, Bild      `a.jpg`, `b.jpg`        image, by its name
        image_id, label  `0001`, `cat`           image_id: a name without ending

        Raises:
            DataError: no column is likely.
        """
        usual = self._find_named(IMAGE_COLUMNS)
        label_names = {*LABEL_COLUMNS, *OTHER_LABEL_NAMES}
        free = [name for name in self._free if simplify_name(name) not in label_names]
        pictures = [name for name in free if self.sample[name].picture_share >= 0.9]
        pictures.sort(key=lambda name: bool(_DERIVED & set(split_words(name))))
        originals = [name for name in pictures if not _DERIVED & set(split_words(name))]
        others = [name for name in self._free if simplify_name(name) in OTHER_IMAGE_NAMES]
        others.sort(key=lambda name: simplify_name(name) in _LAST_RESORTS)
        texts = [name for name in usual if not self._is_state_or_number(name)]
        for name in (
            *(name for name in usual if self.sample[name].picture_share >= 0.5),
            *originals,
            *texts,
            *pictures,
            *(name for name in usual if not self.sample[name].holds_states),
            *(name for name in others if not self.sample[name].holds_states),
            *usual,
        ):
            if name not in usual:
                self.choices.append(("image_column", name))
            return name
        raise DataError(
            f"{self.path}: no image column among {self.sample.describe(self.header)}; wanted "
            f"{', '.join(IMAGE_COLUMNS)}, or name it with data.image_column"
        )

    def _is_state_or_number(self, name: str) -> bool:
        column = self.sample[name]
        return column.holds_states or column.is_numeric

    def _find_named(self, names: Sequence[str]) -> list[str]:
        """Return the free columns with one of these names, in the order of `names`."""
        simple = [simplify_name(name) for name in names]
        found = [name for name in self._free if simplify_name(name) in simple]
        exact = {name.casefold(): rank for rank, name in enumerate(names)}
        return sorted(found, key=lambda name: exact.get(name.casefold(), len(names)))

    # ---- split ------------------------------------------------------------------------------

    def _find_split(self) -> tuple[str, ...]:
        """Return the split column, or the columns that mark splits with 1 and 0; nothing without.

        Raises:
            DataError: two columns hold words for splits, and differ.
        """
        worded = [name for name in self._free if self._is_split(name)]
        named = [name for name in self._free if name.casefold() == "split"]
        if named and (named[0] in worded or not worded):
            return (named[0],)
        if len({tuple(map(find_split, self.sample[name].texts)) for name in worded}) > 1:
            raise DataError(f"{self.path}: {describe_rivals(self.sample.describe(worded), worded)}")
        if worded:
            return tuple(worded)
        marks = [name for name in self._free if simplify_name(name) in SPLIT_MARKS]
        marks = [name for name in marks if self.sample[name].holds_marks]
        bare = [name for name in marks if simplify_name(name) in BARE_TRAIN]
        return tuple(marks) if len(bare) < len(marks) else ()

    def _is_split(self, name: str) -> bool:
        """Return whether the cells are words for splits: most in a column so named, else all.

        A sorted table may begin with a thousand rows of train. `valid` alone may be a status.

        Raises:
            DataError: a column named like a split holds such words, and more often others.
        """
        column = self.sample[name]
        words = split_words(name)
        if simplify_name(name) in SPLIT_NAMES or {"split", "fold", "subset"} & set(words):
            if 0 < column.split_share < 0.5:
                raise DataError(
                    f"{self.path}: {self.sample.describe([name])} holds some words for splits, and "
                    f"more that are none; write train, val or test into each cell, or, if it is no "
                    f"split, set data.split_column: none"
                )
            return column.split_share >= 0.5
        splits = {find_split(text) for text in column.counts}
        return None not in splits and bool(splits - {"val"})

    # ---- labels -----------------------------------------------------------------------------

    def _choose_labels(self) -> Roles:
        """Return the roles of the label columns.

        The config decides; then columns of lists by their names; then columns of states; then a
        single column of text that looks like labels. Columns of one state, such as the number of
        the only annotator, count as states only where there is no such text.
        """
        options = self.options
        if options.label_columns is not None:
            return Roles(states=options.label_columns, given=True)
        unknown = next((n for n in self._free if n.casefold() == _UNKNOWN), None)
        if options.label_column:
            return self._describe_lists(options.label_column, unknown)
        may_be_labels = [name for name in self._free if not is_bookkeeping(name)]
        left_out = tuple(
            name
            for name in self._free
            if name not in may_be_labels and self.sample[name].holds_states
        )
        usual = self._find_named(LABEL_COLUMNS)
        others = [name for name in may_be_labels if simplify_name(name) in OTHER_LABEL_NAMES]
        named = [*usual, *(name for name in others if name not in usual)]
        states = [name for name in may_be_labels if self._holds_states(name, usual, others)]
        lists = [name for name in named if name not in states]
        lists = self._put_verdicts_last(lists, may_be_labels)
        if lists:
            if lists[0] not in usual or lists[0].casefold() not in LABEL_COLUMNS:
                self.choices.append(("label_column", lists[0]))
            self._refuse_states_beside(lists[0], states)
            roles = self._describe_lists(lists[:1], unknown)
            return replace(roles, more_lists=tuple(lists[1:]))
        if numbered := self._find_numbered(may_be_labels):
            self.choices.append(("label_column", tuple(numbered)))
            return self._describe_lists(numbered, unknown)
        vary = any(self.sample[name].varies for name in states)
        if not vary and (text := self._find_text_labels(may_be_labels)):
            self.choices.append(("label_column", text))
            return self._describe_lists([text], unknown)
        return Roles(states=tuple(may_be_labels), left_out=left_out)

    def _refuse_states_beside(self, label: str, states: Sequence[str]) -> None:
        """Raise DataError where a column named `label` holds 0 and 1, and others do so too."""
        images = self.sample[self.image].texts
        alike = [name for name in states if self.sample[name].holds_digits]
        is_state = self.sample[label].holds_digits and len(set(images)) == len(images)
        if alike and is_state and self.options.value_column is None:
            raise DataError(
                f"{self.path}: {self.sample.describe([label, *alike])}: is '{label}' a label as "
                f"the others are? If so: data.label_columns: [{quote_names([label, *alike])}]; "
                f"if it holds the labels 0 and 1: data.label_column: {label}"
            )

    def _put_verdicts_last(self, lists: list[str], names: Sequence[str]) -> list[str]:
        """Return columns of labels; those that may say whether the label of a row is there last.

        Pictures then stand in several rows: `image, tag, label` above `a.jpg, cat, 1`. The other
        column may have an unusual name.
        """
        images = self.sample[self.image].texts
        verdicts = [name for name in lists if self.sample[name].holds_verdicts]
        is_long = len(set(images)) < len(images)
        if not verdicts or not is_long or self.options.value_column == NONE:
            return lists
        worded = [name for name in lists if name not in verdicts]
        if not worded and (text := self._find_text_labels(names)):
            worded = [text]
        return [*worded, *(name for name in verdicts if name not in worded)]

    def _holds_states(self, name: str, usual: Sequence[str], others: Sequence[str]) -> bool:
        """Return whether the cells are states, and not labels that read like states.

        column             cells                      result
        label, tags        `0`, `1`                   False: numbers of classes
        class, target      `0`, `1`                   True
        class, target      `positive`, `negative`     False: names of classes
        cat                `0`, `1`, `yes`            True
        """
        column = self.sample[name]
        if name in usual:
            return False
        return column.holds_digits if name in others else column.holds_states

    def _describe_lists(self, columns: Sequence[str], unknown: str | None) -> Roles:
        """Return the roles where labels stand in lists, or perhaps one a row with a value."""
        value = self._find_value(columns[0]) if len(columns) == 1 else None
        stems = {_find_stem(name) for name in columns}
        whole = len(columns) > 1 and len(stems) == 1 and None not in stems
        return Roles(lists=tuple(columns), unknown=unknown, value=value, whole=whole)

    def _find_value(self, label: str) -> str | None:
        """Return the column that may say whether the label of its row is there; None without one.

        Its cells are states, and each cell of `label` is one label.
        """
        if given := self.options.value_column:
            return None if given == NONE else given
        named = [n for n in self._free if n != label and simplify_name(n) in VALUE_NAMES]
        named.sort(key=lambda name: simplify_name(name) not in SURE_VALUE_NAMES)
        values = [name for name in named if self.sample[name].holds_values]
        if not values or detect_delimiter(self.sample[label].texts) in ("|", ";", ","):
            return None
        return values[0]

    def _find_numbered(self, names: Sequence[str]) -> list[str]:
        """Return columns of labels with numbers, such as tag1, tag2, tag3; else nothing.

        They have one stem, and hold text that is no states.
        """
        by_stem: dict[str, list[str]] = {}
        for name in names:
            if (stem := _find_stem(name)) is not None:
                by_stem.setdefault(stem, []).append(name)
        known = {*map(simplify_name, LABEL_COLUMNS), *OTHER_LABEL_NAMES}
        for stem, columns in by_stem.items():
            with_text = [n for n in columns if self.sample[n].texts]
            is_text = all(not self._is_state_or_number(name) for name in with_text)
            is_known = simplify_name(stem) in known or simplify_name(stem) + "s" in known
            if len(columns) > 1 and with_text and is_text and is_known:
                return columns
        return []

    def _find_text_labels(self, names: Sequence[str]) -> str | None:
        """Return the only column of text that looks like labels; None if there is none, or several.

        Labels are short, and some of them stand in several cells.
        """
        likely = [name for name in names if self._looks_like_labels(name)]
        return likely[0] if len(likely) == 1 else None

    def _looks_like_labels(self, name: str) -> bool:
        column = self.sample[name]
        if column.has_lists:
            return True
        if METADATA & {*split_words(name), simplify_name(name)}:
            return False
        if not column.texts or self._is_state_or_number(name) or column.picture_share > 0:
            return False
        delimiter = detect_delimiter(column.texts)
        labels = Counter(
            part.strip() for text in column.texts for part in text.split(delimiter or "\0")
        )
        length = sum(map(len, labels)) / len(labels)
        return length <= _LONG_LABEL and len(labels) < labels.total()


def _find_stem(name: str) -> str | None:
    """Return the name of a numbered column without its number: `Tag 2` is tag; None for others."""
    match = re.fullmatch(r"(.*[^\W\d_])[\s_.-]*\d+", name)
    return match[1].casefold() if match else None
