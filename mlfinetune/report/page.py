"""Report -> one self-contained HTML string.

Everything that comes from data stays text: Jinja escapes it. The page's content security policy
allows only the page's own script and style, by their hashes, and no request to anywhere.
"""

import base64
import hashlib
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mlfinetune.data.images import overlay
from mlfinetune.report import plots, words
from mlfinetune.report.pictures import TORN_PICTURES, TORN_SHOWN, select_suspects
from mlfinetune.report.view import Report, Series
from mlfinetune.runs import directory

_TRAINING = (
    ("Loss", ("loss",), False),
    ("mAP, and macro F1 at threshold 0.5", ("mAP", "macro_F1"), False),
    ("Learning rates", ("lr", "head_lr"), True),
    ("Ridge penalty", ("l2",), True),
)


def render(report: Report) -> str:
    """Return the page: HTML in UTF-8 that loads nothing from outside."""
    style = read_asset("style.css") + _write_thumbnail_styles(report)
    script = read_asset("script.js")
    page = make_environment().get_template("page.html.j2")
    return page.render(
        report=report,
        style=Markup(style),
        script=Markup(script),
        policy=(
            f"default-src 'none'; img-src data:; style-src {hash_source(style)}; "
            f"script-src {hash_source(script)}; base-uri 'none'; form-action 'none'"
        ),
        scale=overlay.SCALE.tobytes().hex(),
        groups=words.group_by_verdict(report),
        sure=words.has_intervals(report),
        training=_plot_training(report.training),
        suspects=[report.suspects[index] for index in select_suspects(report)],
        torn=report.torn[:TORN_SHOWN],
        torn_pictures=TORN_PICTURES,
        columns={row.label: row.column for row in report.labels},
        suspects_file=directory.SUSPECTS,
        most=max((n for row in report.matrix.counts for n in row), default=1),
    )


@cache  # a template is compiled once a process
def make_environment() -> Environment:
    """Return the environment of the pages: it escapes everything."""
    environment = Environment(
        loader=PackageLoader("mlfinetune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=words.replace_unprintable,
    )
    environment.globals["words"] = words
    environment.globals["plots"] = plots
    return environment


def _plot_training(series: tuple[Series, ...]) -> list[plots.Plot]:
    by_name = {line.name: line for line in series}
    groups = (
        (title, [by_name[name] for name in names if name in by_name], log)
        for title, names, log in _TRAINING
    )
    return [plots.plot_training(group, title, log) for title, group, log in groups if group]


def _write_thumbnail_styles(report: Report) -> str:
    """Return a CSS class for each picture: one in several lists is in the page once."""
    return "".join(
        f".p{index}{{background-image:url(data:image/jpeg;base64,{encode_base64(picture.jpeg)})}}\n"
        for index, picture in report.pictures.items()
        if picture.jpeg is not None
    )


def read_asset(name: str) -> str:
    """Return the text of a file beside the templates."""
    return (resources.files("mlfinetune.report") / "templates" / name).read_text("utf-8")


def hash_source(text: str) -> str:
    """Return the policy's source expression for an inline element with this text."""
    return f"'sha256-{encode_base64(hashlib.sha256(text.encode()).digest())}'"


def encode_base64(content: bytes) -> str:
    """Return bytes as a data URL has them."""
    return base64.b64encode(content).decode()
