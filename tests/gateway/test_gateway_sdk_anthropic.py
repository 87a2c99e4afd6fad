"""The official anthropic SDK, by itself, through the gateway and on the transport: it must not see a difference."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.accelerate.sdk_doors import (
    DIRECT,
    SHARING,
    Doors,
    all_at_once,
    each_sharing_way,
    each_way,
    same_every_way,
    until_broken,
)
from tests.wire.builders import run

from paceline.accelerate.policy import Policy

anthropic = pytest.importorskip("anthropic")
pydantic = pytest.importorskip("pydantic")
pytestmark = pytest.mark.slow

KEY = "sk-ant-tenant-1"
CALL: Any = {"model": "claude-test", "max_tokens": 100, "system": "Be brief."}
QUESTION: Any = [{"role": "user", "content": "Where is the order?"}]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+M8AAAIBAQAY3Y2wAAAAAElFTkSuQmCC"
IMAGE: Any = [
    {
        "role": "user",
        "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
            {"type": "text", "text": "What is it?"},
        ],
    }
]
WEATHER: Any = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOL_ROUND: Any = [
    *QUESTION,
    {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}]},
]


class Person(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    """What a structured answer is parsed into."""

    name: str
    age: int


def sync_client(doors: Doors, **options: Any) -> Any:
    """The SDK's client, told of the way by ANTHROPIC_BASE_URL alone, or by its http_client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANTHROPIC_BASE_URL", doors.url)
        http = doors.sync_http_client(anthropic.DefaultHttpxClient)
        return anthropic.Anthropic(**{"api_key": KEY, "max_retries": 0, "http_client": http, **options})


def async_client(doors: Doors) -> Any:
    """The same for its async client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANTHROPIC_BASE_URL", doors.url)
        http = doors.http_client(anthropic.DefaultAsyncHttpxClient)
        return anthropic.AsyncAnthropic(api_key=KEY, max_retries=0, http_client=http)


def accumulated(client: Any) -> Any:
    """The events of the SDK's own accumulating stream, and what it adds up to."""
    with client.messages.stream(**CALL, messages=QUESTION) as stream:
        return [event.type for event in stream], stream.get_final_message().model_dump()


def parsed(client: Any) -> Any:
    """A structured answer, parsed by the SDK."""
    answer = client.messages.parse(**CALL, messages=QUESTION, output_format=Person)
    assert answer.parsed_output == Person(name="Ada", age=36)
    return answer.model_dump(warnings=False)


def streamed(client: Any, **fields: Any) -> Any:
    """The raw events of a stream."""
    return [event.model_dump() for event in client.messages.create(**CALL, messages=QUESTION, stream=True, **fields)]


THINKING: Any = {"type": "enabled", "budget_tokens": 1024}
SCENARIOS: dict[str, Callable[[Any], Any]] = {
    "message": lambda c: c.messages.create(**CALL, messages=QUESTION).model_dump(),
    "stream": streamed,
    "tools": lambda c: c.messages.create(**CALL, messages=QUESTION, tools=[WEATHER]).model_dump(),
    "tools_stream": lambda c: streamed(c, tools=[WEATHER]),
    "tool_answer": lambda c: c.messages.create(**CALL, messages=TOOL_ROUND, tools=[WEATHER]).model_dump(),
    "thinking": lambda c: c.messages.create(**CALL, messages=QUESTION, thinking=THINKING).model_dump(),
    "thinking_stream": lambda c: streamed(c, thinking=THINKING),
    "accumulated": accumulated,
    "structured": parsed,
    "image": lambda c: c.messages.create(**CALL, messages=IMAGE).model_dump(),
}


@each_way
def test_the_sync_sdk_sees_no_difference(way: str, policy: Policy) -> None:
    """Every kind of call, and every event of a stream; asked twice, with what may be shared asked once upstream."""
    same_every_way(way, policy, sync_client, lambda client: {name: ask(client) for name, ask in SCENARIOS.items()})


@each_way
def test_counting_tokens_passes(way: str, policy: Policy) -> None:
    """A call that is free and exact."""

    def ask(client: Any) -> Any:
        return client.messages.count_tokens(model=CALL["model"], messages=QUESTION).model_dump()

    with Doors(way, policy) as doors, sync_client(doors) as client:
        assert ask(client) == {"input_tokens": len("Where is the order?")}


@each_way
def test_the_async_sdk_sees_no_difference(way: str, policy: Policy) -> None:
    """Plain and streamed."""

    async def main(doors: Doors) -> Any:
        async with async_client(doors) as client:

            async def ask() -> list[Any]:
                events = await client.messages.create(**CALL, messages=QUESTION, stream=True)
                seen = [event.model_dump() async for event in events]
                return [seen, (await client.messages.create(**CALL, messages=QUESTION)).model_dump()]

            first = await ask()
            assert await ask() == first
            return first

    with Doors(DIRECT) as doors:
        expected = run(main(doors))
    with Doors(way, policy) as doors:
        assert run(main(doors)) == expected
        assert doors.calls == (2 if policy is SHARING else 4)


@each_way
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_errors_are_the_sdks_own(way: str, policy: Policy, *, stream: bool) -> None:
    """Class, status, body, and the headers an application reads; "overloaded" is Anthropic's own 529."""

    def ask(doors: Doors) -> list[Any]:
        seen = []
        with sync_client(doors) as client:
            for model in ("unauthorized", "busy", "broken", "overloaded"):
                with pytest.raises(anthropic.APIStatusError) as caught:
                    client.messages.create(**{**CALL, "model": model}, messages=QUESTION, stream=stream)
                error = caught.value
                headers = error.response.headers
                told = [headers.get(name) for name in ("retry-after", "anthropic-ratelimit-requests-remaining")]
                seen.append((caught.type, error.status_code, str(error), error.body, error.request_id, told))
        return seen

    with Doors(DIRECT) as doors:
        expected = ask(doors)
    assert [row[1] for row in expected] == [401, 429, 500, 529]
    assert expected[1][5] == ["7", "0"]
    with Doors(way, policy) as doors:
        assert ask(doors) == expected
        assert ask(doors) == expected  # none of them was kept
        assert doors.calls == 8


@each_way
def test_a_stream_cut_by_the_provider_raises_after_the_events_that_came(way: str, policy: Policy) -> None:
    """The same events, then the error the SDK raises for a broken connection; nothing of it is kept."""

    def ask(doors: Doors) -> Any:
        with sync_client(doors) as client:
            return until_broken(client.messages.create(**{**CALL, "model": "cut"}, messages=QUESTION, stream=True))

    with Doors(DIRECT) as doors:
        expected = ask(doors)
    assert len(expected[0]) == 3
    with Doors(way, policy) as doors:
        assert ask(doors) == expected
        assert ask(doors) == expected
        assert doors.calls == 2


@each_way
def test_a_beta_asked_for_by_header_is_another_call(way: str, policy: Policy) -> None:
    """Headers that change the answer keep answers apart."""
    with Doors(way, policy) as doors, sync_client(doors) as client:
        for beta in ("a-2025-01-01", "b-2025-01-01"):
            client.messages.create(**CALL, messages=QUESTION, extra_headers={"anthropic-beta": beta})
        assert doors.calls == 2


@each_sharing_way
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_equal_calls_at_once_are_one_upstream(way: str, *, stream: bool) -> None:
    """Each caller gets the whole answer, event by event."""

    async def main(doors: Doors) -> None:
        async with async_client(doors) as client:

            async def ask() -> list[Any]:
                answer = await client.messages.create(**CALL, messages=QUESTION, stream=stream)
                return [event.model_dump_json() async for event in answer] if stream else [answer.model_dump_json()]

            answers = await all_at_once(doors, 50, ask)
            assert len({tuple(answer) for answer in answers}) == 1
            assert len(answers[0]) > 3 or not stream

    with Doors(way) as doors:
        asyncio.run(main(doors))
        assert doors.calls == 1
