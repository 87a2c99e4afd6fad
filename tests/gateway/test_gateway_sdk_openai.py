"""The official openai SDK, by itself, through the gateway and on the transport: it must not see a difference."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.accelerate.sdk_doors import (
    DIRECT,
    OFF,
    SHARING,
    Doors,
    all_at_once,
    each_sharing_way,
    each_way,
    same_every_way,
    until_broken,
)
from tests.patience import PATIENCE_S
from tests.wire.builders import run

from paceline.accelerate.policy import Policy

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")
pytestmark = pytest.mark.slow

KEY = "sk-tenant-1"
MODEL = "gpt-4o-mini"
QUESTION: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is the order?"}]
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+M8AAAIBAQAY3Y2wAAAAAElFTkSuQmCC"
)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TOOL_ROUND: Any = [
    *QUESTION,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
]
IMAGE: Any = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PIXEL}}],
    }
]


class Person(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    """What a structured answer is parsed into."""

    name: str
    age: int


def sync_client(doors: Doors, **options: Any) -> Any:
    """The SDK's client, told of the way by OPENAI_BASE_URL alone, or by its http_client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", f"{doors.url}/v1")
        http = doors.sync_http_client(openai.DefaultHttpxClient)
        return openai.OpenAI(
            **{"api_key": KEY, "max_retries": 0, "timeout": PATIENCE_S, "http_client": http, **options}
        )


def async_client(doors: Doors, **options: Any) -> Any:
    """The same for its async client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", f"{doors.url}/v1")
        http = doors.http_client(openai.DefaultAsyncHttpxClient)
        return openai.AsyncOpenAI(
            **{"api_key": KEY, "max_retries": 0, "timeout": PATIENCE_S, "http_client": http, **options}
        )


def dump(answer: Any) -> Any:
    """An answer, or the list of a stream's events, as plain data."""
    if isinstance(answer, list):
        return [event.model_dump() for event in answer]
    return answer.model_dump(warnings=False)  # pydantic knows no type for what was parsed


def parsed(client: Any) -> Any:
    """A structured answer, parsed by the SDK."""
    answer = client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)
    return dump(answer)


def accumulated(client: Any) -> Any:
    """The events of the SDK's own accumulating stream."""
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, tools=[WEATHER]) as stream:
        return [event.type for event in stream], dump(stream.get_final_completion())


SCENARIOS: dict[str, Callable[[Any], Any]] = {
    "chat": lambda c: dump(c.chat.completions.create(model=MODEL, messages=QUESTION)),
    "stream": lambda c: dump(list(c.chat.completions.create(model=MODEL, messages=QUESTION, stream=True))),
    "stream_with_usage": lambda c: dump(
        list(
            c.chat.completions.create(
                model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True}
            )
        )
    ),
    "tools": lambda c: dump(c.chat.completions.create(model=MODEL, messages=QUESTION, tools=[WEATHER])),
    "tools_stream": lambda c: dump(
        list(c.chat.completions.create(model=MODEL, messages=QUESTION, tools=[WEATHER], stream=True))
    ),
    "tool_answer": lambda c: dump(c.chat.completions.create(model=MODEL, messages=TOOL_ROUND, tools=[WEATHER])),
    "structured": parsed,
    "accumulated": accumulated,
    "image": lambda c: dump(c.chat.completions.create(model=MODEL, messages=IMAGE)),
    "embeddings": lambda c: dump(c.embeddings.create(model="text-embedding-3-small", input=["a", "b"])),
    "embeddings_float": lambda c: dump(
        c.embeddings.create(model="text-embedding-3-small", input="a", encoding_format="float")
    ),
    "responses": lambda c: dump(c.responses.create(model=MODEL, input="Where?", store=False)),
    "responses_stream": lambda c: dump(list(c.responses.create(model=MODEL, input="Where?", store=False, stream=True))),
}


@each_way
def test_the_sync_sdk_sees_no_difference(way: str, policy: Policy) -> None:
    """Every kind of call, and every event of a stream; asked twice, with what may be shared asked once upstream."""

    same_every_way(way, policy, sync_client, lambda client: {name: ask(client) for name, ask in SCENARIOS.items()})


@each_way
def test_the_async_sdk_sees_no_difference(way: str, policy: Policy) -> None:
    """Plain and streamed chat, Responses and embeddings."""

    async def main(doors: Doors) -> Any:
        async with async_client(doors) as client:

            async def ask() -> list[Any]:
                streams = [
                    await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True),
                    await client.responses.create(model=MODEL, input="Where?", store=False, stream=True),
                ]
                plain = [
                    await client.chat.completions.create(model=MODEL, messages=QUESTION),
                    await client.embeddings.create(model="text-embedding-3-small", input=["a"]),
                ]
                return [dump([event async for event in stream]) for stream in streams] + [dump(a) for a in plain]

            first = await ask()
            assert await ask() == first  # one transport, so that the second comes from its memory
            return first

    with Doors(DIRECT) as doors:
        expected = run(main(doors))
    with Doors(way, policy) as doors:
        assert run(main(doors)) == expected
        assert doors.calls == (4 if policy is SHARING else 8)


@each_way
def test_what_is_no_model_call_passes(way: str, policy: Policy) -> None:
    """The list of models, and an upload as a multipart form."""

    def ask(doors: Doors) -> Any:
        with sync_client(doors) as client:
            models = [model.id for model in client.models.list()]
            uploaded = client.files.create(file=("a.jsonl", b"{}\n" * 100), purpose="batch")
            return models, uploaded.filename

    with Doors(DIRECT) as doors:
        expected = ask(doors)
    with Doors(way, policy) as doors:
        assert ask(doors) == expected
        assert b'filename="a.jsonl"' in doors.upstream.bodies[-1]


@each_way
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_errors_are_the_sdks_own(way: str, policy: Policy, *, stream: bool) -> None:
    """Class, status, body, and the headers an application reads: Retry-After and the limits."""

    def ask(doors: Doors) -> list[Any]:
        seen = []
        with sync_client(doors) as client:
            for model in ("unauthorized", "busy", "broken", "overloaded"):
                with pytest.raises(openai.APIStatusError) as caught:
                    client.chat.completions.create(model=model, messages=QUESTION, stream=stream)
                error = caught.value
                headers = error.response.headers
                told = [headers.get(name) for name in ("retry-after", "x-ratelimit-remaining-requests")]
                seen.append((caught.type, error.status_code, str(error), error.body, error.request_id, told))
        return seen

    with Doors(DIRECT) as doors:
        expected = ask(doors)
    assert expected[0][0] is openai.AuthenticationError
    assert expected[1][0] is openai.RateLimitError
    with Doors(way, policy) as doors:
        assert ask(doors) == expected
        assert ask(doors) == expected  # none of them was kept
        assert doors.calls == 8


@each_way
def test_a_stream_cut_by_the_provider_raises_after_the_events_that_came(way: str, policy: Policy) -> None:
    """The same events, then the error the SDK raises for a broken connection."""

    def ask(doors: Doors) -> Any:
        with sync_client(doors) as client:
            return until_broken(client.chat.completions.create(model="cut", messages=QUESTION, stream=True))

    with Doors(DIRECT) as doors:
        expected = ask(doors)
    assert len(expected[0]) == 3
    with Doors(way, policy) as doors:
        assert ask(doors) == expected
        assert ask(doors) == expected
        assert doors.calls == 2


@each_way
def test_the_sdks_retries_come_through(way: str, policy: Policy) -> None:
    """One call of the application, two of the provider, and Retry-After kept."""
    with Doors(way, policy) as doors:
        with (
            sync_client(doors, max_retries=1) as client,
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(openai.RateLimitError),
        ):
            waits: list[float] = []
            patch.setattr("time.sleep", waits.append)
            client.chat.completions.create(model="busy", messages=QUESTION)
        assert doors.calls == 2
        assert waits == [7.0]


@pytest.mark.parametrize("policy", [OFF, SHARING], ids=["off", "sharing"])
def test_failures_of_the_connection_are_the_sdks_own(policy: Policy) -> None:
    """On the transport: no server, and one that does not answer in time."""
    with Doors("transport", policy) as doors:
        with sync_client(doors) as client:
            doors.hold()
            with pytest.raises(openai.APITimeoutError):
                client.chat.completions.create(model=MODEL, messages=QUESTION, timeout=0.05)
            doors.upstream.gate = None
        url = doors.url
    with Doors("transport", policy) as doors:
        doors.url = url  # nobody is there any more
        with sync_client(doors) as client, pytest.raises(openai.APIConnectionError) as caught:
            client.chat.completions.create(model=MODEL, messages=QUESTION)
        assert caught.type is openai.APIConnectionError


@each_sharing_way
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_equal_calls_at_once_are_one_upstream(way: str, *, stream: bool) -> None:
    """500 in process, 100 through the gateway's connections: each caller gets the whole answer, event by event."""

    async def main(doors: Doors) -> None:
        async with async_client(doors) as client:

            async def ask() -> list[Any]:
                answer = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=stream)
                return [event.model_dump_json() async for event in answer] if stream else [answer.model_dump_json()]

            answers = await all_at_once(doors, 500 if way == "transport" else 100, ask)
            assert len({tuple(answer) for answer in answers}) == 1
            assert len(answers[0]) > 3 or not stream

    with Doors(way) as doors:
        asyncio.run(main(doors))
        assert doors.calls == 1
