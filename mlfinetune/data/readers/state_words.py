"""Words for present, absent and unknown in a column of one label, in the languages of spreadsheets.

`1`, `1,0`, `TRUE`, `ja`, `x`  -> present     `0`, `.0`, `FALSCH`, `no` -> absent
``, `NaN`, `-1`                -> unknown     `.9`, `0,25`              -> by the threshold 0.5
"""

import re
from dataclasses import dataclass

from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN

THRESHOLD = 0.5
"""A fraction of at least this is present, a smaller one absent."""

_UNKNOWN_WORDS = """
nan na n/a n.a. none null #n/a #nv #n/d ? -1
unknown unsure uncertain unbekannt unklar k.a. inconnu desconocido
"""
_UNKNOWN = frozenset(("", *_UNKNOWN_WORDS.split()))
_NUMBER = re.compile(r"(?![1-9]\d{0,2},\d{3}$)[+-]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][+-]?\d+)?")
"""A number with a point or a comma; `1,000` may be a thousand, and is none."""

_TRUTH = (
    ("true", "false"),
    ("wahr", "falsch"),
    ("vrai", "faux"),
    ("verdadero", "falso"),
    ("verdadeiro", "falso"),
    ("vero", "falso"),
    ("waar", "onwaar"),
    ("prawda", "fałsz"),
    ("pravda", "nepravda"),
    ("sant", "falskt"),
    ("sand", "falsk"),
    ("sann", "usann"),
    ("tosi", "epätosi"),
    ("doğru", "yanlış"),
    ("истина", "ложь"),
    ("真", "假"),
    ("참", "거짓"),
    ("yes", "no"),
    ("ja", "nein"),
    ("ja", "nee"),
    ("ja", "nej"),
    ("ja", "nei"),
    ("oui", "non"),
    ("sí", "no"),
    ("si", "no"),
    ("sì", "no"),
    ("sim", "não"),
    ("sim", "nao"),
    ("tak", "nie"),
    ("ano", "ne"),
    ("áno", "nie"),
    ("igen", "nem"),
    ("da", "nu"),
    ("да", "нет"),
    ("kyllä", "ei"),
    ("evet", "hayır"),
    ("evet", "hayir"),
    ("はい", "いいえ"),
    ("是", "否"),
    ("예", "아니오"),
    ("present", "absent"),
    ("positive", "negative"),
    ("checked", "unchecked"),
    ("on", "off"),
    ("pos", "neg"),
    ("vorhanden", "nicht vorhanden"),
    ("present", "not present"),
    ("有", "无"),
    ("有", "無"),
    ("あり", "なし"),
    ("○", "×"),
    ("〇", "×"),
    ("+", "-"),
    ("✓", "✗"),
    ("✔", "✘"),
    ("✅", "❌"),
    ("☑", "☐"),
)
_VERDICTS = (
    ("accepted", "rejected"),
    ("accept", "reject"),
    ("approved", "declined"),
    ("agree", "disagree"),
    ("agreed", "disagreed"),
    ("correct", "incorrect"),
    ("right", "wrong"),
    ("confirmed", "refuted"),
    ("relevant", "irrelevant"),
    ("valid", "invalid"),
    ("ok", "not ok"),
    ("keep", "remove"),
    ("angenommen", "abgelehnt"),
    ("richtig", "falsch"),
)
"""Words on the label of a row; in a column of its own they are no states of a label."""
_LETTERS = (("y", "n"), ("t", "f"), ("j", "n"), ("o", "n"), ("s", "n"), ("v", "f"), ("w", "f"))
_DASHES = frozenset(("-", "–", "—"))
"""Signs for absent beside a tick or a plus; alone they may mean anything."""
_TICKS = frozenset(("x", "✓", "✔", "✅", "☑", "☒", "•", "*", "✕", "✗"))


@dataclass(frozen=True)
class CellState:
    """State of one spelling, and the kind of word that it is.

    Attributes:
        state: 1, 0 or -1.
        kind: `digit`, `blank`, `fraction`, `word`, `letter`, `tick` or `dash`.
    """

    state: int
    kind: str


def read_state(text: str) -> CellState | None:
    """Return the state of a cell's text, without space around it; None where it is no state.

    A word has one meaning here; whether a column as a whole holds states, `judge_column` says.
    """
    word = text.casefold().rstrip("\ufe0e\ufe0f")  # how an emoji is drawn: `✔️`
    if word in _UNKNOWN:
        return CellState(UNKNOWN, "blank")
    if _NUMBER.fullmatch(word):
        return _read_number(float(word.replace(",", ".")))
    if word.endswith("%") and _NUMBER.fullmatch(word[:-1].rstrip()):
        return _read_number(float(word[:-1].replace(",", ".")) / 100)
    if word in _DASHES:
        return CellState(NEGATIVE, "dash")
    if word in _POSITIVE_WORDS or word in _NEGATIVE_WORDS:
        return CellState(POSITIVE if word in _POSITIVE_WORDS else NEGATIVE, "word")
    if word in _TICKS:
        return CellState(POSITIVE, "tick")
    if word in _POSITIVE_LETTERS or word in _NEGATIVE_LETTERS:
        return CellState(POSITIVE if word in _POSITIVE_LETTERS else NEGATIVE, "letter")
    return None


def read_verdict(text: str) -> CellState | None:
    """Return the state of the label of a row by a cell beside it: `read_state`, or a verdict."""
    word = text.casefold()
    for present, absent in _VERDICTS:
        if word in (present, absent):
            return CellState(POSITIVE if word == present else NEGATIVE, "word")
    return read_state(text)


def _read_number(value: float) -> CellState | None:
    if value in (0, 1):
        return CellState(int(value), "digit")
    if value == -1:
        return CellState(UNKNOWN, "blank")
    if 0 < value < 1:
        return CellState(POSITIVE if value >= THRESHOLD else NEGATIVE, "fraction")
    return None


_POSITIVE_WORDS = frozenset(yes for yes, _ in _TRUTH)
_NEGATIVE_WORDS = frozenset(no for _, no in _TRUTH)
_POSITIVE_LETTERS = frozenset(yes for yes, _ in _LETTERS)
_NEGATIVE_LETTERS = frozenset(no for _, no in _LETTERS)


def is_pair(words: set[str]) -> bool:
    """Return whether the words are of one pair: `Ja` and `nein` are, `m` and `f` are not."""
    folded = {word.casefold().rstrip("\ufe0e\ufe0f") for word in words}
    return any(folded <= set(pair) for pair in (*_TRUTH, *_LETTERS))
