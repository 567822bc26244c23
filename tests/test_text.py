"""Words for messages: secrets in URLs."""

from collections.abc import Callable

import pytest
from costs import compare_costs

from mlfinetune.text import make_printable, mask_secrets

MASKED = {
    "http://me:secret@host/a.jpg": "http://***@host/a.jpg",
    "cannot read http:/me:secret@host/a": "cannot read http:/***@host/a",
    "s3://secret@bucket": "s3://***@bucket",
    "http://me:se/cr@et?secret#x@host/": "http://***@host/",
    "'https://h/a?w=1&token=secret&x=2'": "'https://h/a?w=1&token=***&x=2'",
    "https://h/a?X-Amz-Credential=secret%2F1&X-Amz-Signature=secret: 403": (
        "https://h/a?X-Amz-Credential=***&X-Amz-Signature=***: 403"
    ),
    "(https://h/a?sv=2024&sig=secret%3D)": "(https://h/a?sv=2024&sig=***)",
    "https://h/a#access_token=secret": "https://h/a#access_token=***",
    "{'Authorization': 'Bearer secret.x'}": "{'Authorization': 'Bearer ***'}",
}
KEPT = (
    "https://host:8080/a@b.jpg?author=Smith&monkey=2",
    "C:/Users/me@work/a.jpg",
    "file:///home/me@work/a.jpg",
    "key=value; write to me@host.org: soon",
    "http://[::1]:8080/a@b",
)


@pytest.mark.parametrize(("text", "masked"), MASKED.items())
def test_a_secret_in_a_url_is_masked(text: str, masked: str) -> None:
    """The rest of the text stays, so that the URL can still be told."""
    assert mask_secrets(text) == masked
    assert make_printable(text) == masked
    assert mask_secrets(masked) == masked


@pytest.mark.parametrize("text", KEPT)
def test_a_text_without_secrets_stays(text: str) -> None:
    """A port, a folder with an @, an address, and words that begin or end like a secret's name."""
    assert mask_secrets(text) == text


@pytest.mark.parametrize(
    "build",
    [
        lambda count: "a" * 10 * count,
        lambda count: "http://a:" * count,
        lambda count: "?" + "token" * 2 * count,
        lambda count: "?token=" + ":" * 10 * count + "x",
    ],
    ids=["word", "urls", "name", "signs"],
)
def test_a_long_text_is_masked_in_one_pass(build: Callable[[int], str]) -> None:
    """A table may hold anything in place of a URL: 4 times of it cost not 16 times as much."""
    long, short = build(4000), build(1000)
    assert compare_costs(lambda: mask_secrets(long), lambda: mask_secrets(short)) < 10


def test_what_is_long_is_masked_too() -> None:
    """A secret of any length, and one with many signs after it."""
    assert mask_secrets(f"http://me:{'s' * 9000}@host/") == "http://***@host/"
    assert (
        mask_secrets(f"https://h/a?token={'s' * 9000}{':' * 20}")
        == f"https://h/a?token=***{':' * 8}"
    )
