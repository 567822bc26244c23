"""Label names and counts that may not be what the user meant: notes for train, findings for check.

positives of each label -> one label spelled twice, typing errors, two labels in one, "no label"
train and val           -> labels that cannot be learned
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from mlfinetune.data.findings import Finding, build_finding
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.spellings import (
    NUMBER_FORM,
    choose_renames,
    clean_label,
    fold_label,
    format_ignored,
    format_renames,
    group_spellings,
    list_patterns,
)
from mlfinetune.data.table import SourceOptions
from mlfinetune.data.targets import POSITIVE, UNKNOWN
from mlfinetune.text import list_labels, list_some, pluralize, quote_exact

NEARLY_ALL = 0.95
"""Share of the pictures from which on a label stands in nearly every one."""
_FEW = 20
"""Known targets below which no share is computed."""
_MOST_PASTED = 30
"""Labels in a line to paste of a note; `check` has the whole line."""
_TYPO_RATIO = 10
"""A label is a likely typo if one that differs by a letter is this many times as frequent."""
_LONGEST = 40
"""Longest label, in letters, that is checked for typos; sentences would need too much memory."""

_NO_LABEL = re.compile(
    r"(un|non?|not|without|missing|awaiting)(yet)?"
    r"(label+ed|labels?|tagged|tags?|annotated|annotations?|class|class+ified|categori[sz]ed"
    r"|category|assigned|sorted|specified|defined|determined|findings?|objects?)"
    r"(yet|data|images?|pictures?|photos?)?"
)
_WORDS = """
none null nil nan na nothing noneoftheabove noneofthese notavailable notapplicable
unknown dontknow notsure empty blank void missing ignore ignored tbd todo background
backgroundgoogle
kein keine keins keines keinlabel keinetags keineangabe keinbefund ohne ohnelabel ohnetag
ohnetags ohneangabe ohnebefund unbekannt leer nichts hintergrund unbeschriftet ungelabelt
nichtgelabelt ungetaggt nichtgetaggt unklassifiziert nichtklassifiziert
aucun aucune sans sansetiquette sanslabel rien inconnu inconnue vide arriereplan nonrenseigne
nonannote nonetiquete nonclasse neant
sinetiqueta sinetiquetas noetiquetado sinclasificar sindatos sinhallazgos ninguno ninguna nada
desconocido desconocida vacio fondo
semetiqueta semrotulo naoetiquetado nenhum nenhuma desconhecido desconhecida vazio fundo
senzaetichetta nessuno nessuna niente sconosciuto sconosciuta vuoto sfondo
geen geenlabel zonderlabel onbekend leeg achtergrond
brak nieznany nieznane bezetykiety tło ingen inget okand ukjent utanetikett bakgrund bakgrunn
yok bilinmiyor etiketsiz arkaplan bezstitku zadny neznamy pozadi
нет неизвестно фон пусто безметки нетметки безтега
无 無 无标签 無標籤 未标注 未標註 未知 背景 空 没有 沒有 无标注 未分类
なし 不明 ラベルなし 未分類 タグなし 없음 배경 미분류 라벨없음 알수없음
"""
_NO_LABELS = frozenset(_WORDS.split())
"""Folded labels that say that there is no label, in several languages."""
_BLANKS = frozenset("-–—_.?/~*∅")
"""Signs that people put into an empty cell."""
_ABBREVIATIONS = frozenset(("k.a.", "s/d", "n/d", "n.d.", "s.d.", "n.v.", "#n/v", "#nv"))
_DENIAL = re.compile(
    r"([-!~\u00ac](?=\S)|(no|not|non|without|absent|kein|keine|ohne|nicht|pas de|sans|sin|sem"
    r"|senza)[\s_:-]+)(?P<of>.+)|(?P<of_>.*\w)-"
)
"""A label that may say that another one is absent: `-cat`, `!cat`, `no cat`, `her2-`."""
_DOUBT = re.compile(r"(?P<of>.*?[^\s(?])[\s(]*\?+\)?")
"""A label that may say that another one is not sure: `cat?`."""
_NUMBERED = re.compile(
    r"#?\d+(?:[.:)]\s*|\s+)(?P<after>[^\W\d].*)|(?P<before>.*[^\W\d])\s*(?:[x×*]\s?\d+|\(\d+\))"
)
"""A label with the number of its line, or of things: `1. cat`, `2 cat`, `cat x2`, `cat (2)`."""
_SEPARATORS = re.compile(
    r"[,;|/\\+&\n\t\r\u3001\u00b7\u2022\u30fb]|\s(?i:and|und|et|och|og|en|y|e|i|и|ve)\s"
)
"""Signs and words between two labels; after `clean_label`, which makes the wide signs narrow."""


# ---- notes ------------------------------------------------------------------------------


def note_labels(
    train: Manifest, val: Manifest, options: SourceOptions, *, given: bool
) -> list[str]:
    """Return a note for each kind of label that its user may want otherwise.

    `given` is True where the config lists the labels.
    """
    positives = train.targets.counts()[0] + val.targets.counts()[0]
    counts = dict(zip(train.labels.names, positives.tolist(), strict=True))
    return [
        *_note_spellings(counts, options),
        *_note_no_labels(counts, options),
        *_note_denials(counts, options),
        *_note_numbered(counts, options),
        *_note_unlearnable_labels(train, val, given),
        *_note_common_labels(train),
        *_note_totals(train, options),
    ]


def _note_spellings(positives: Mapping[str, int], options: SourceOptions) -> list[str]:
    """Return a note for labels with several spellings, with the line that joins them."""
    twice = [names for names in group_spellings(positives).values() if len(names) > 1]
    if not twice:
        return []
    renames = choose_renames(twice, positives)
    line = format_renames(renames, dict(options.rename_labels))
    if len(renames) > _MOST_PASTED:
        line = "`mlfinetune check` prints the line for data.rename_labels"
    listed = list_some([_join_spellings(names, positives) for names in twice])
    count = pluralize(len(twice), "label")
    return [
        f"{count} in several spellings, each a label of its own ({listed}); to join them: {line}"
    ]


def _note_no_labels(positives: Mapping[str, int], options: SourceOptions) -> list[str]:
    """Return a note for labels that may mean `no label`, with the line that leaves them out."""
    names = _find_no_labels(positives)
    if not names:
        return []
    line = format_ignored(names, options.ignore_labels)
    listed = list_some(_count_names(names, positives))
    count = pluralize(len(names), "label")
    return [
        f'{count} that may mean "no label" ({listed}); if so, this line leaves them out, and their '
        f"pictures have none of the labels: {line}"
    ]


def _note_denials(positives: Mapping[str, int], options: SourceOptions) -> list[str]:
    """Return notes for labels that may say that another one is absent, or not sure."""
    notes = []
    if names := _find_marked(positives, _DENIAL):
        # Where words for no label get a line too, this one has them as well, and may replace it.
        given = [*options.ignore_labels, *_find_no_labels(positives)]
        line = format_ignored(names, given)
        notes.append(
            f"{pluralize(len(names), 'label')} that may say that another one is absent "
            f"({list_some(_count_names(names, positives))}); "
            f"if so, this line leaves them out, and what is not listed is absent: {line}"
        )
    if names := _find_marked(positives, _DOUBT):
        notes.append(
            f"{pluralize(len(names), 'label')} that may say that another one is not sure "
            f"({list_some(_count_names(names, positives))}), each a label of its own; "
            f"a column 'unknown' lists labels that are not known"
        )
    return notes


def _note_numbered(positives: Mapping[str, int], options: SourceOptions) -> list[str]:
    """Return a note for labels that differ in a number alone, of a line or of things."""
    groups, renames = _group_numbered(positives)
    if not groups:
        return []
    line = format_renames(renames, dict(options.rename_labels))
    if len(renames) > _MOST_PASTED:
        line = "data.rename_labels"
    listed = list_some([_join_spellings(names, positives) for names in groups])
    return [
        f"{pluralize(len(groups), 'label')} that stand with several numbers, each a label of its "
        f"own ({listed}); if these count lines or things, this joins them: {line}"
    ]


def _group_numbered(positives: Mapping[str, int]) -> tuple[list[list[str]], dict[str, str]]:
    """Return the labels that differ in a number alone, and old name -> name without a number.

    `1. cat`, `2. cat`, `1. dog`, `3. dog`; one such label alone may be called so: `2 door`.
    """
    by_name: dict[str, list[str]] = {}
    for name in positives:
        if match := _NUMBERED.fullmatch(name):
            by_name.setdefault((match["after"] or match["before"]).strip(), []).append(name)
    several = {name: names for name, names in by_name.items() if len(names) > 1}
    if len(several) < 2:
        return [], {}
    return [*several.values()], {old: new for new, names in by_name.items() for old in names}


def _find_no_labels(positives: Mapping[str, int]) -> list[str]:
    """Return the labels that may mean that there is none; 0 does among words."""
    is_zero = sum(map(str.isdecimal, positives)) == 1 and len(positives) > 2
    return [name for name in positives if means_no_label(name) or (is_zero and name == "0")]


def _find_marked(positives: Mapping[str, int], pattern: re.Pattern[str]) -> list[str]:
    """Return the labels that a pattern takes for a mark beside another label."""
    plain = {fold_label(clean_label(name).strip("+")) for name in positives}  # +cat, her2+
    found = []
    for name in positives:
        match = pattern.fullmatch(clean_label(name).casefold())
        parts = match.groupdict().values() if match else ()
        if any(part and fold_label(part) in plain - {fold_label(name)} for part in parts):
            found.append(name)
    return found


def _count_names(names: Sequence[str], positives: Mapping[str, int]) -> list[str]:
    return [f"{name!r} ({positives[name]})" for name in names]


def _note_unlearnable_labels(train: Manifest, val: Manifest, given: bool) -> list[str]:
    """Return a note for labels without a positive in a side, or without a negative in train."""
    notes = []
    remedy = "" if given else "; data.min_positives: 1 leaves such labels out"
    effects = f"cannot be learned{remedy}", "no AP"
    for side, name, effect in zip((train, val), ("train", "val"), effects, strict=True):
        positives, _, _ = side.targets.counts()
        lacking = [side.labels.names[column] for column in np.flatnonzero(positives == 0)]
        if lacking:
            notes.append(f"{list_labels(lacking)} without a positive in {name}: {effect}")
    positives, negatives, unknown = train.targets.counts()
    columns = np.flatnonzero((negatives == 0) & (positives > 0))
    lacking = [train.labels.names[column] for column in columns]
    if lacking:
        hint = "; if unknown means no, set data.unknown: negative" if unknown.any() else ""
        notes.append(f"{list_labels(lacking)} without a negative in train: cannot be learned{hint}")
    return notes


def _note_common_labels(train: Manifest) -> list[str]:
    """Return a note for labels that nearly every picture of train has."""
    positives, negatives, _ = train.targets.counts()
    known = positives + negatives
    common = (negatives > 0) & (known >= _FEW) & (positives >= NEARLY_ALL * known)
    if not common.any():
        return []
    listed = [
        f"{train.labels.names[column]!r} in {positives[column]} of {known[column]}"
        for column in np.flatnonzero(common)
    ]
    count = pluralize(len(listed), "label")
    return [f"{count} in nearly every picture of train ({list_some(listed)}): little to learn"]


def _note_totals(train: Manifest, options: SourceOptions) -> list[str]:
    """Return a note for labels that are present exactly where one of the others is.

    Such a column may be a total, or a check mark; with `implies` it is a label that follows.
    """
    positives, negatives, _ = train.targets.counts()
    enough = (positives > 0) & (negatives > 0) & (positives + negatives >= _FEW)
    columns = np.flatnonzero(enough & (len(train.labels) > 2) & (not options.implies))
    for _, block in train.targets.blocks():
        if not columns.size:
            return []
        present = block[:, columns] == POSITIVE
        others = (block == POSITIVE).sum(axis=1)[:, None] > present
        wrong = (block[:, columns] != UNKNOWN) & (present != others)
        columns = columns[~wrong.any(axis=0)]
    names = [train.labels.names[column] for column in columns]
    if not names:
        return []
    line = format_ignored(names, options.ignore_labels)
    return [
        f"{list_labels(names)} in exactly the pictures that have another label; if it is a total, "
        f"or a mark of those that are done: {line}"
    ]


def _join_spellings(names: Sequence[str], positives: Mapping[str, int]) -> str:
    """Return `'1.0' (3) / '1' (120)`."""
    return " / ".join(f"{quote_exact(name)} ({positives[name]})" for name in names)


# ---- findings ---------------------------------------------------------------------------


def find_doubtful_labels(positives: Mapping[str, int], options: SourceOptions) -> list[Finding]:
    """Find labels that are probably one label, or none, or two.

    `positives` maps each label to the number of its images, after the options are applied.
    """
    return [
        *find_spellings(positives, dict(options.rename_labels)),
        *find_no_labels(positives, options.ignore_labels),
        *find_denials(positives, [*options.ignore_labels, *_find_no_labels(positives)]),
        *find_double_labels(positives),
    ]


def find_spellings(
    positives: Mapping[str, int], given: Mapping[str, str] | None = None
) -> list[Finding]:
    """Find labels that are probably one label: several spellings of it, or typos.

    Args:
        positives: label -> number of its images.
        given: `rename_labels` of the config, which the line to paste keeps.
    """
    forms = group_spellings(positives)
    alike = [names for names in forms.values() if len(names) > 1]
    return [
        *build_finding(
            "error",
            "label_spellings",
            f"{pluralize(len(alike), 'label')} with several spellings; "
            f"data.rename_labels joins them",
            [_join_spellings(names, positives) for names in alike],
            format_renames(choose_renames(alike, positives), given or {}),
        ),
        *_find_typos(forms, positives),
    ]


def _find_typos(forms: Mapping[str, Sequence[str]], positives: Mapping[str, int]) -> list[Finding]:
    """Find labels that differ by one letter from a label that is much more frequent.

    `forms` maps each folded label to its spellings, `positives` each label to its images.
    """
    images = {form: max(positives[name] for name in names) for form, names in forms.items()}
    by_pattern: dict[str, list[str]] = {}
    short = [form for form in images if len(form) <= _LONGEST and not form.startswith(NUMBER_FORM)]
    for form in short:
        for pattern in list_patterns(form):
            by_pattern.setdefault(pattern, []).append(form)
    typos = []
    for form in short:
        count = images[form]
        close = {other for pattern in list_patterns(form) for other in by_pattern[pattern]}
        likely = max(close, key=lambda other: (images[other], other), default=form)
        if len(form) >= 5 and images[likely] >= _TYPO_RATIO * max(count, 1):
            typos.append(f"{forms[form][0]!r} ({count}): {forms[likely][0]!r}?")
    message = f"{pluralize(len(typos), 'label')} that may be a typing error"
    return build_finding("warning", "label_typos", message, typos)


def find_no_labels(positives: Mapping[str, int], given: Sequence[str] = ()) -> list[Finding]:
    """Find labels that may mean `no label`, as `Unlabeled` and `background`.

    Args:
        positives: label -> number of its images.
        given: `ignore_labels` of the config, which the line to paste keeps.
    """
    names = _find_no_labels(positives)
    message = (
        f'{pluralize(len(names), "label")} that may mean "no label"; data.ignore_labels leaves '
        f"them out, and their pictures then have none of the labels"
    )
    items, line = _count_names(names, positives), format_ignored(names, given)
    return build_finding("warning", "no_labels", message, items, line)


def find_denials(positives: Mapping[str, int], given: Sequence[str] = ()) -> list[Finding]:
    """Find labels that may say that another one is absent, `-cat`, or not sure, `cat?`.

    Args:
        positives: label -> number of its images.
        given: `ignore_labels` of the config, which the line to paste keeps.
    """
    absent, unsure = (_find_marked(positives, pattern) for pattern in (_DENIAL, _DOUBT))
    count = pluralize(len(absent), "label")
    message = f"{count} that may say that another one is absent; data.ignore_labels leaves them out"
    items, line = _count_names(absent, positives), format_ignored(absent, given)
    findings = build_finding("warning", "denials", message, items, line)
    count = pluralize(len(unsure), "label")
    message = f"{count} that may say that another one is not sure; a column 'unknown' can list it"
    items = _count_names(unsure, positives)
    return [*findings, *build_finding("warning", "unsure_labels", message, items)]


def means_no_label(name: str) -> bool:
    """Return True for a label that usually says that there is none: `__background__`, `n/a`, `-`.

    `other` and `normal` are labels.
    """
    text = clean_label(name).casefold()
    if not text or set(text) <= _BLANKS or text in _ABBREVIATIONS:
        return True
    plain = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    words = {"".join(filter(str.isalnum, form)) for form in (text, plain)}
    return not words.isdisjoint(_NO_LABELS) or any(map(_NO_LABEL.fullmatch, words))


def find_double_labels(positives: Mapping[str, int]) -> list[Finding]:
    """Find labels such as `cat/dog` where `cat` and `dog` are labels too."""
    forms = {fold_label(name) for name in positives}
    items = []
    for name in positives:
        parts = [fold_label(part) for part in _SEPARATORS.split(clean_label(name)) if part.strip()]
        if len(set(parts)) > 1 and forms.issuperset(parts):
            items.append(f"{name!r} ({positives[name]})")
    message = (
        f"{pluralize(len(items), 'label')} that may be two labels each: correct the cells, or name "
        f"the sign between labels (data.label_delimiter)"
    )
    return build_finding("warning", "double_labels", message, items)
