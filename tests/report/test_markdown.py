"""Markdown of a model card: whatever data holds stays text."""

import html
import re

import pytest
from hostile import HOSTILE
from hypothesis import given
from hypothesis import strategies as st

from mlfinetune.report.card import escape_markdown


@given(st.text())
def test_escaped_text_is_the_text(text: str) -> None:
    """A reader of character references gets it back, on one line."""
    shown = escape_markdown(text)
    assert "\n" not in shown
    assert not re.search(r"[<>|`*_\[\]\\]|&(?!#\d+;)", shown)
    kept = html.unescape(shown)
    assert kept == " ".join(kept.split())
    if text.isprintable():
        assert kept == " ".join(text.split())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_cells_of_a_table(name: str) -> None:
    """No sign of HTML, of a link or of another cell is left."""
    assert not re.search(r"[<>|`\[\]()*_:]", escape_markdown(name))
