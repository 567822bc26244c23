"""Report -> one self-contained HTML string.

Whatever comes from data is text: Jinja escapes it, and the page's own content security policy
lets nothing run but its one script, by hash, and lets nothing be fetched.
"""

import base64
import hashlib
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mlfinetune.report import plots, words
from mlfinetune.report.pictures import suspects_shown
from mlfinetune.report.view import Report, Series
from mlfinetune.runs import directory

_TRAINING = (
    ("Loss", ("loss",), False),
    ("mAP and macro F1", ("mAP", "macro_F1"), False),
    ("Learning rates", ("lr", "head_lr"), True),
    ("Ridge penalty", ("l2",), True),
)


def render(report: Report) -> str:
    """The page: UTF-8 text that asks for nothing outside of itself."""
    style = _asset("style.css") + _thumbnails(report)
    script = _asset("script.js")
    page = _environment().get_template("page.html.j2")
    return page.render(
        report=report,
        style=Markup(style),
        script=Markup(script),
        policy=(
            f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
            f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
        ),
        groups=words.by_standing(report),
        sure=words.has_intervals(report),
        training=_training(report.training),
        suspects=[report.suspects[at] for at in suspects_shown(report)],
        suspects_file=directory.SUSPECTS,
        most=max((n for row in report.matrix.counts for n in row), default=1),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mlfinetune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=words.visible,
    )
    environment.globals["words"] = words
    environment.globals["plots"] = plots
    return environment


def _training(series: tuple[Series, ...]) -> list[plots.Plot]:
    by_name = {one.name: one for one in series}
    groups = (
        (title, [by_name[name] for name in names if name in by_name], log)
        for title, names, log in _TRAINING
    )
    return [plots.training(group, title, log) for title, group, log in groups if group]


def _thumbnails(report: Report) -> str:
    """A class for each picture, so that those in several lists are in the page once."""
    return "".join(
        f".p{index}{{background-image:url(data:image/jpeg;base64,{_base64(picture.jpeg)})}}\n"
        for index, picture in report.pictures.items()
        if picture.jpeg is not None
    )


def _asset(name: str) -> str:
    return (resources.files("mlfinetune.report") / "templates" / name).read_text("utf-8")


def _hash(text: str) -> str:
    """The source expression of an inline element with this text."""
    return f"'sha256-{_base64(hashlib.sha256(text.encode()).digest())}'"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
