"""The official google-genai SDK, by itself, through the gateway and on the transport: it must not see a difference."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import pytest
from tests.accelerate.sdk_doors import (
    DIRECT,
    SHARING,
    TRANSPORT,
    Doors,
    all_at_once,
    each_sharing_way,
    each_way,
    same_every_way,
    until_broken,
)
from tests.wire.builders import run

from paceline.accelerate.policy import Policy

genai = pytest.importorskip("google.genai")
httpx = pytest.importorskip("httpx")
pydantic = pytest.importorskip("pydantic")
# By itself the SDK's async side uses aiohttp where that is installed, and warns of how it does.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")]

types = genai.types
KEY = "AIza-tenant-1"
MODEL = "gemini-2.5-flash"
QUESTION = "Where is the order?"
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+M8AAAIBAQAY3Y2wAAAAAElFTkSuQmCC")


class Person(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    """What a structured answer is parsed into."""

    name: str
    age: int


def client_of(doors: Doors) -> Any:
    """The SDK's client, told of the way by GOOGLE_GEMINI_BASE_URL alone, or by its httpx clients."""
    options: dict[str, Any] = {}
    if doors.way == TRANSPORT:
        options["httpx_client"] = doors.sync_http_client(httpx.Client)
        options["httpx_async_client"] = doors.http_client(httpx.AsyncClient)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOOGLE_GEMINI_BASE_URL", doors.url)
        return genai.Client(api_key=KEY, http_options=types.HttpOptions(**options))


def dump(answer: Any) -> Any:
    """An answer as plain data, without the HTTP headers it carries."""
    return answer.model_dump(exclude={"sdk_http_response"})


def tools() -> Any:
    """A tool and the wish to use it."""
    schema = types.Schema(type="OBJECT", properties={"city": types.Schema(type="STRING")})
    declared = types.FunctionDeclaration(name="weather", parameters=schema)
    return types.GenerateContentConfig(tools=[types.Tool(function_declarations=[declared])])


def structured(client: Any) -> Any:
    """A structured answer, parsed by the SDK."""
    config = types.GenerateContentConfig(response_mime_type="application/json", response_schema=Person)
    answer = client.models.generate_content(model=MODEL, contents=QUESTION, config=config)
    assert answer.parsed == Person(name="Ada", age=36)
    return answer.text


def image() -> Any:
    """A picture and a question."""
    return [types.Part.from_bytes(data=PIXEL, mime_type="image/png"), types.Part(text="What is it?")]


def streamed(client: Any, config: Any = None) -> Any:
    """The pieces of a stream."""
    return [dump(a) for a in client.models.generate_content_stream(model=MODEL, contents=QUESTION, config=config)]


SCENARIOS: dict[str, Callable[[Any], Any]] = {
    "content": lambda c: dump(c.models.generate_content(model=MODEL, contents=QUESTION)),
    "stream": streamed,
    "tools": lambda c: dump(c.models.generate_content(model=MODEL, contents=QUESTION, config=tools())),
    "tools_stream": lambda c: streamed(c, tools()),
    "structured": structured,
    "image": lambda c: dump(c.models.generate_content(model=MODEL, contents=image())),
    "embeddings": lambda c: dump(c.models.embed_content(model="gemini-embedding-001", contents=["a", "b"])),
}


@each_way
def test_the_sync_sdk_sees_no_difference(way: str, policy: Policy) -> None:
    """Every kind of call, and every piece of a stream; asked twice, with what may be shared asked once upstream."""
    same_every_way(way, policy, client_of, lambda client: {name: ask(client) for name, ask in SCENARIOS.items()})


@each_way
def test_counting_tokens_passes(way: str, policy: Policy) -> None:
    """A call that is free and exact."""
    with Doors(way, policy) as doors, client_of(doors) as client:
        assert client.models.count_tokens(model=MODEL, contents=QUESTION).total_tokens == 5


@each_way
def test_the_async_sdk_sees_no_difference(way: str, policy: Policy) -> None:
    """Plain and streamed."""

    async def main(doors: Doors) -> Any:
        client = client_of(doors)
        async with client.aio as models:

            async def ask() -> list[Any]:
                pieces = await models.models.generate_content_stream(model=MODEL, contents=QUESTION)
                seen = [dump(piece) async for piece in pieces]
                return [seen, dump(await models.models.generate_content(model=MODEL, contents=QUESTION))]

            first = await ask()
            assert await ask() == first
        await doors.close_clients()
        client.close()
        return first

    with Doors(DIRECT) as doors:
        expected = run(main(doors))
    with Doors(way, policy) as doors:
        assert run(main(doors)) == expected
        assert doors.calls == (2 if policy is SHARING else 4)


@each_way
def test_errors_are_the_sdks_own(way: str, policy: Policy) -> None:
    """Class, status, and the whole body: Google's advice when to come again is in it."""

    def ask(doors: Doors) -> list[Any]:
        seen = []
        with client_of(doors) as client:
            for model in ("unauthorized", "busy", "broken", "overloaded"):
                with pytest.raises(genai.errors.APIError) as caught:
                    client.models.generate_content(model=model, contents=QUESTION)
                error = caught.value
                seen.append((caught.type, error.code, error.status, error.message, error.details))
        return seen

    with Doors(DIRECT) as doors:
        expected = ask(doors)
    assert [row[1] for row in expected] == [401, 429, 500, 503]
    assert expected[1][4]["error"]["details"][0]["retryDelay"] == "7s"
    with Doors(way, policy) as doors:
        assert ask(doors) == expected
        assert ask(doors) == expected  # none of them was kept
        assert doors.calls == 8


@each_way
def test_a_stream_cut_by_the_provider_raises_after_the_pieces_that_came(way: str, policy: Policy) -> None:
    """The same pieces, then an error of the connection; nothing of it is kept."""

    def ask(doors: Doors) -> Any:
        with client_of(doors) as client:
            pieces, error = until_broken(client.models.generate_content_stream(model="cut", contents=QUESTION))
            return [piece["candidates"] for piece in pieces], error

    with Doors(DIRECT) as doors:
        expected = ask(doors)
    assert len(expected[0]) == 3
    with Doors(way, policy) as doors:
        assert ask(doors) == expected
        assert ask(doors) == expected
        assert doors.calls == 2


@each_sharing_way
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_equal_calls_at_once_are_one_upstream(way: str, *, stream: bool) -> None:
    """Each caller gets the whole answer, piece by piece."""

    async def main(doors: Doors) -> None:
        client = client_of(doors)
        async with client.aio as models:

            async def ask() -> list[Any]:
                if not stream:
                    return [(await models.models.generate_content(model=MODEL, contents=QUESTION)).text]
                pieces = await models.models.generate_content_stream(model=MODEL, contents=QUESTION)
                return [piece.text async for piece in pieces]

            answers = await all_at_once(doors, 50, ask)
            assert len({tuple(answer) for answer in answers}) == 1
            assert len(answers[0]) > 3 or not stream
        await doors.close_clients()
        client.close()

    with Doors(way) as doors:
        asyncio.run(main(doors))
        assert doors.calls == 1
