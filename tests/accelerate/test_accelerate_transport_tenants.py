"""Who asks the same of the same server shares an answer; nobody else does, however many ask at once."""

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.accelerate.sdk_doors import GATEWAY, TRANSPORT, Doors, all_at_once, each_sharing_way
from tests.examples import examples

from paceline.accelerate.transport import AsyncTransport

httpx = pytest.importorskip("httpx")
pytestmark = pytest.mark.slow

MESSAGES = [{"role": "user", "content": "Where is my order?"}]
CHAT = {"model": "m", "messages": MESSAGES}
CONTENTS = {"contents": [{"role": "user", "parts": [{"text": "Where is my order?"}]}]}
# Dialect: the header that says who asks; paths and bodies of a plain and a streamed call.
DIALECTS: dict[str, tuple[str, dict[bool, tuple[str, dict[str, Any]]]]] = {
    "openai": (
        "authorization",
        {False: ("/v1/chat/completions", CHAT), True: ("/v1/chat/completions", {**CHAT, "stream": True})},
    ),
    "anthropic": (
        "x-api-key",
        {False: ("/v1/messages", CHAT), True: ("/v1/messages", {**CHAT, "stream": True})},
    ),
    "gemini": (
        "x-goog-api-key",
        {
            False: ("/v1beta/models/m:generateContent", CONTENTS),
            True: ("/v1beta/models/m:streamGenerateContent?alt=sse", CONTENTS),
        },
    ),
}
TENANTS = 100

Ask = tuple[int, str, bool]  # tenant, dialect, streamed
asks = st.lists(
    st.tuples(st.integers(0, TENANTS - 1), st.sampled_from(list(DIALECTS)), st.booleans()), min_size=1, max_size=200
)
everyone = [(tenant, dialect, stream) for tenant in range(TENANTS) for dialect in DIALECTS for stream in (False, True)]


async def ask(client: Any, url: str, what: Ask) -> None:
    """Ask, and find oneself in the answer."""
    tenant, dialect, stream = what
    header, calls = DIALECTS[dialect]
    path, body = calls[stream]
    name = f"key-{tenant:04}"
    answer = await client.post(url + path, json=body, headers={header: f"Bearer {name}" if "auth" in header else name})
    assert answer.status_code == 200
    said = "".join(texts(answer.content, stream=stream))
    assert said == f"{name} asked Where is my order?"


def texts(body: bytes, *, stream: bool) -> list[str]:
    """The pieces of text in an answer of any dialect."""
    events = [line[6:] for line in body.splitlines() if line.startswith(b"data: {")] if stream else [body]
    found = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name in ("text", "content") and isinstance(inner, str):
                    found.append(inner)
                else:
                    look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)

    for event in events:
        look(msgspec.json.decode(event))
    return found


def plain_client() -> Any:
    """A client for the gateway: on our transport without a policy, as httpx's own pool takes seconds for hundreds."""
    return httpx.AsyncClient(transport=AsyncTransport(), timeout=30.0)


async def _all(doors: Doors, rounds: list[list[Ask]]) -> int:
    client = doors.http_client(httpx.AsyncClient) or plain_client()
    async with client:
        for wanted in rounds:
            await asyncio.gather(*(ask(client, doors.url, what) for what in wanted))
        return doors.calls


@each_sharing_way
def test_a_hundred_tenants_ask_the_same(way: str) -> None:
    """Of three providers, plain and streamed, all at once and again: one call for each tenant, no answer crosses."""
    with Doors(way) as doors:
        assert asyncio.run(_all(doors, [everyone, everyone])) == len(everyone)


@examples(15)
@given(rounds=st.lists(asks, min_size=1, max_size=3))
def test_no_answer_crosses_in_any_order(rounds: list[list[Ask]]) -> None:
    """Any mixture of tenants, dialects and deliveries, in rounds: each gets its own, asked for once."""
    with Doors(TRANSPORT) as doors:
        assert asyncio.run(_all(doors, rounds)) == len({what for wanted in rounds for what in wanted})


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_five_hundred_equal_calls_through_the_gateway_are_one(*, stream: bool) -> None:
    """On 500 connections."""

    async def main(doors: Doors) -> None:
        async with plain_client() as client:
            await all_at_once(doors, 500, lambda: ask(client, doors.url, (1, "openai", stream)))

    with Doors(GATEWAY) as doors:
        asyncio.run(main(doors))
        assert doors.calls == 1
