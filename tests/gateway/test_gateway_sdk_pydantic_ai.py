"""pydantic-ai's agents, by themselves, through the gateway and on the transport: it must not see a difference.

A run is several calls: the model asks for a tool, the agent calls it, the model answers.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
from tests.accelerate.sdk_doors import DIRECT, Doors, each_sharing_way
from tests.wire.builders import run

pydantic_ai = pytest.importorskip("pydantic_ai", reason="install pydantic-ai-slim[openai,anthropic,google]")
httpx2 = pytest.importorskip("httpx2")
pydantic = pytest.importorskip("pydantic")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning"),  # google-genai's, with aiohttp
]

QUESTION = "Where is the order?"


class Person(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    """A person."""

    name: str
    age: int


def openai_model(doors: Doors, name: str = "gpt-4o-mini") -> Any:
    """Chat completions."""
    module = pytest.importorskip("pydantic_ai.models.openai")
    providers = pytest.importorskip("pydantic_ai.providers.openai")
    http = doors.http_client(httpx2.AsyncClient)
    return module.OpenAIChatModel(
        name, provider=providers.OpenAIProvider(base_url=f"{doors.url}/v1", api_key="sk-1", http_client=http)
    )


def anthropic_model(doors: Doors, name: str = "claude-test") -> Any:
    """Messages."""
    module = pytest.importorskip("pydantic_ai.models.anthropic")
    providers = pytest.importorskip("pydantic_ai.providers.anthropic")
    http = doors.http_client(httpx2.AsyncClient)
    return module.AnthropicModel(
        name, provider=providers.AnthropicProvider(base_url=doors.url, api_key="sk-ant-1", http_client=http)
    )


def google_model(doors: Doors, name: str = "gemini-2.5-flash") -> Any:
    """generateContent."""
    module = pytest.importorskip("pydantic_ai.models.google")
    providers = pytest.importorskip("pydantic_ai.providers.google")
    # Given no timeout of its own, the provider warns of httpx's default of five seconds.
    http = doors.http_client(lambda transport: httpx2.AsyncClient(transport=transport, timeout=60.0))
    return module.GoogleModel(
        name, provider=providers.GoogleProvider(base_url=doors.url, api_key="AIza-1", http_client=http)
    )


MODELS: dict[str, Callable[..., Any]] = {"openai": openai_model, "anthropic": anthropic_model, "google": google_model}
each_provider = pytest.mark.parametrize("provider", list(MODELS))


@pytest.fixture(autouse=True)
def _real_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)


@each_sharing_way
@each_provider
def test_an_agent_sees_no_difference(provider: str, way: str) -> None:
    """A question, its stream, a tool round and a structured answer, asked twice."""

    async def main(doors: Doors) -> list[Any]:
        model = MODELS[provider](doors)
        async with model:
            agent = pydantic_ai.Agent(model, instructions="Be brief.")
            typed = pydantic_ai.Agent(model, output_type=Person)
            equipped = pydantic_ai.Agent(model)

            @equipped.tool_plain  # type: ignore[untyped-decorator]
            def weather(city: str) -> str:
                """The weather in a city."""
                return f"sunny in {city}"

            async def ask() -> list[Any]:
                answer = await agent.run(QUESTION)
                async with agent.run_stream(QUESTION) as stream:
                    pieces = [piece async for piece in stream.stream_text(debounce_by=None)]
                round_ = await equipped.run(QUESTION)
                person = await typed.run(QUESTION)
                return [answer.output, answer.usage.requests, pieces, round_.output, person.output]

            first = await ask()
            calls = doors.calls
            assert await ask() == first
            assert doors.calls == (2 * calls if doors.way == DIRECT else calls)
        await doors.close_clients()
        return first

    with Doors(DIRECT) as doors:
        expected = run(main(doors))
    assert expected[4] == Person(name="Ada", age=36)
    assert "sunny in Paris" in expected[3]
    with Doors(way) as doors:
        assert run(main(doors)) == expected


@each_sharing_way
@each_provider
def test_errors_are_pydantic_ais_own(provider: str, way: str) -> None:
    """Of a provider that refuses: class, status and body."""

    async def main(doors: Doors) -> list[Any]:
        seen = []
        for name in ("unauthorized", "broken"):
            model = MODELS[provider](doors, name)
            if hasattr(model.client, "max_retries"):
                model.client.max_retries = 0
            async with model:
                with pytest.raises(Exception) as caught:
                    await pydantic_ai.Agent(model).run(QUESTION)
                error: Any = caught.value
                seen.append((caught.type, error.status_code, error.body))
        await doors.close_clients()
        return seen

    with Doors(DIRECT) as doors:
        expected = run(main(doors))
    with Doors(way) as doors:
        assert run(main(doors)) == expected
