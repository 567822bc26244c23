"""Report -> a model card: Markdown with the front matter that Hugging Face reads.

Everything that comes from data stays text: in Markdown every sign that could mean something is
written as a character reference, and the front matter is written by a YAML library.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mlfinetune.config import yaml12
from mlfinetune.report import words
from mlfinetune.report.view import Report

MARK = "<!-- written by mlfinetune card -->"
"""Stands in every card, so that a README of another origin is not overwritten."""
MAX_ROWS = 1000
"""Labels of the card's table; more make a page that nobody reads."""
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>()#+!|&~$@:\"'^=-]|(?<=www)\.|(?<=\d)\.")
"""Signs that mean something in Markdown: `1.` begins a list, and readers make links of `www.`."""
_METRICS = {
    "mAP": "mean_average_precision",
    "micro_AP": "average_precision",
    "macro_F1": "f1",
    "micro_F1": "f1",
}
"""Names of numbers in the front matter -> their types, as Hugging Face calls them."""


@dataclass(frozen=True)
class CardFacts:
    """Facts of a run that its report does not hold.

    Attributes:
        name: of the tagger, such as the run directory's name.
        about: (name, value) lines on data, network and training.
        backbone: name of the network.
        dataset: name of the data.
        split: part of the data that the numbers are of.
        per_label: name of the file that has all labels.
        loss: in words.
    """

    name: str
    about: tuple[tuple[str, str], ...]
    backbone: str
    dataset: str
    split: str
    per_label: str
    loss: str


def render_card(report: Report, facts: CardFacts) -> str:
    """Return the card, Markdown in UTF-8."""
    environment = Environment(
        loader=PackageLoader("mlfinetune.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["text"] = escape_markdown
    groups = words.group_by_verdict(report)
    return environment.get_template("card.md.j2").render(
        front=yaml12.dump(_clean(_build_front_matter(report, facts))),
        mark=MARK,
        report=report,
        facts=facts,
        words=words,
        groups=groups,
        sure=words.has_intervals(report),
        rows=sorted(report.labels, key=lambda row: row.column)[:MAX_ROWS],
        hidden=max(0, len(report.labels) - MAX_ROWS),
    )


def escape_markdown(value: object) -> str:
    """Return text that Markdown and HTML show as it is, on one line.

    Example:
        >>> escape_markdown("<b> | *x*")
        '&#60;b&#62; &#124; &#42;x&#42;'
    """
    text = " ".join(str(words.replace_unprintable(str(value))).split())
    return _MARKDOWN.sub(lambda match: f"&#{ord(match[0])};", text)


def _build_front_matter(report: Report, facts: CardFacts) -> dict[str, Any]:
    """Return the metadata block: library, tags, and the metrics as a model index."""
    numbers = {number.name: number for number in (*report.headline, *report.averages)}
    metrics = []
    for name, kind in _METRICS.items():
        number = numbers.get(name)
        if number is None or number.value is None:
            continue
        metric: dict[str, Any] = {"type": kind, "name": name.replace("_", " ")}
        metric["value"] = round(number.value, 4)
        if number.low is not None and number.high is not None:
            metric["args"] = {"interval_95": [round(number.low, 4), round(number.high, 4)]}
        metrics.append(metric)
    task = {"type": "image-classification", "name": "Multi-label image classification"}
    data = {"type": "images", "name": facts.dataset, "split": facts.split}
    front: dict[str, Any] = {
        "library_name": "mlfinetune",
        "pipeline_tag": "image-classification",
        "tags": ["multi-label-image-classification", "image-tagging", facts.backbone],
    }
    if metrics:
        front["metrics"] = list(dict.fromkeys(metric["type"] for metric in metrics))
        result = {"task": task, "dataset": data, "metrics": metrics}
        front["model-index"] = [{"name": facts.name, "results": [result]}]
    return front


def _clean(tree: Any) -> Any:
    """Return containers whose texts have no control characters, which YAML cannot hold."""
    if isinstance(tree, Mapping):
        return {key: _clean(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_clean(value) for value in tree]
    return words.replace_unprintable(tree)
