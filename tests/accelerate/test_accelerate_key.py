"""Keys: what counts as the same call, and whose it is."""

from typing import Any

import pytest

from paceline.accelerate.key import call_key, plain, tenant_of
from paceline.wire.dialects import DIALECTS

CALL: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "What is it?"}]}


def key(
    call: dict[str, Any] | None = None, *, tenant: bytes = b"t" * 32, target: str = "/v1/x", mode: str = "exact"
) -> bytes:
    dialect, call = DIALECTS[0], call or CALL
    return call_key(tenant, b"", dialect, target, call, dialect.canonical(call), mode=mode)


def test_tenants_never_share() -> None:
    """Any header that says whose call it is makes another tenant; order and other headers do not."""
    bob, eve = (b"authorization", b"Bearer bob"), (b"authorization", b"Bearer eve")
    organisation, other = (b"openai-organization", b"o"), (b"user-agent", b"x")
    assert len({tenant_of(h) for h in ([], [bob], [eve], [bob, organisation], [bob, eve])}) == 5
    assert tenant_of([bob, other, organisation]) == tenant_of([organisation, bob])
    assert key(tenant=tenant_of([bob])) != key(tenant=tenant_of([eve]))


def test_delivery_path_and_every_field_matter() -> None:
    """Streamed and plain are separate, as are paths and any field that is not hygiene."""
    variants = [key(), key({**CALL, "stream": True}), key({**CALL, "temperature": 0}), key(target="/v1/y")]
    assert len(set(variants)) == 4
    reordered = dict(reversed(CALL.items()))
    assert key(reordered) == key({**CALL, "user": "bob"}) == key({**CALL, "stream": False}) == key()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("What's your  Return policy?", "whats your return policy"),
        ("“Hi”, he said…", "hi he said"),
        ("Hello!\n", "hello"),
        ("ﬁne", "fine"),
    ],
)
def test_text_mode_ignores_how_it_is_typed(left: str, right: str) -> None:
    """Case, white space, quotes and marks at the end of a word."""
    calls = [{"model": "m", "messages": [{"role": "user", "content": text}]} for text in (left, right)]
    assert key(calls[0], mode="text") == key(calls[1], mode="text")
    assert key(calls[0]) != key(calls[1])


@pytest.mark.parametrize(
    ("left", "right"),
    [("1+1", "11"), ("1.5", "15"), ("is it -3", "is it 3"), ("10%", "10"), ("a<b", "a>b"), ("5!", "5"), ("a*b", "ab")],
)
def test_text_mode_keeps_what_means_something(left: str, right: str) -> None:
    """Numbers and formulas are not typing habits."""
    assert plain(left) != plain(right)


def test_text_mode_leaves_other_fields_alone() -> None:
    """Image addresses and arguments are compared to the letter."""

    def image(url: str) -> dict[str, Any]:
        part = {"type": "image_url", "image_url": {"url": url}}
        return {"messages": [{"role": "user", "content": [{"type": "text", "text": "Look"}, part]}]}

    assert key(image("data:QUJD"), mode="text") != key(image("data:qujd"), mode="text")
    assert key({"input": ["One", "two?"]}, mode="text") == key({"input": ["one", "TWO"]}, mode="text")
