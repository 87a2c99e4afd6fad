"""LangChain's chat models and embeddings, by themselves, through the gateway and on the transport.

One question, its stream, a tool, a structured answer and an embedding for each provider: what LangChain adds to the
SDKs it is built on. Their own tests cover the rest.
"""

from collections.abc import Callable
from typing import Any

import pytest
from tests.accelerate.sdk_doors import DIRECT, TRANSPORT, Doors, each_sharing_way
from tests.wire.builders import run

pydantic = pytest.importorskip("pydantic")
pytest.importorskip("langchain_core", reason="LangChain is not installed: pip install langchain-openai")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning"),  # google-genai's, with aiohttp
]

QUESTION = "Where is the order?"
PROVIDERS = ("openai", "anthropic", "google")


class Person(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    """A person."""

    name: str
    age: int


def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def openai_model(doors: Doors) -> Any:
    """ChatOpenAI takes both clients."""
    module = pytest.importorskip("langchain_openai")
    httpx = pytest.importorskip("httpx2")
    return module.ChatOpenAI(
        model="gpt-4o-mini",
        api_key="sk-1",
        base_url=f"{doors.url}/v1",
        max_retries=0,
        http_client=doors.sync_http_client(httpx.Client),
        http_async_client=doors.http_client(httpx.AsyncClient),
    )


def anthropic_model(doors: Doors) -> Any:
    """ChatAnthropic takes none: its SDK clients are replaced by ours."""
    module = pytest.importorskip("langchain_anthropic")
    anthropic = pytest.importorskip("anthropic")
    model = module.ChatAnthropic(
        model="claude-test", api_key="sk-ant-1", base_url=doors.url, max_retries=0, max_tokens=100
    )
    if doors.way == TRANSPORT:
        kind, async_kind = anthropic.DefaultHttpxClient, anthropic.DefaultAsyncHttpxClient
        options = model._client_params
        model._client = anthropic.Anthropic(**options, http_client=doors.sync_http_client(kind))
        model._async_client = anthropic.AsyncAnthropic(**options, http_client=doors.http_client(async_kind))
    return model


def google_model(doors: Doors) -> Any:
    """ChatGoogleGenerativeAI holds a genai client, which is replaced by one on our transports."""
    module = pytest.importorskip("langchain_google_genai")
    genai = pytest.importorskip("google.genai")
    httpx = pytest.importorskip("httpx")
    model = module.ChatGoogleGenerativeAI(model="gemini-2.5-flash", api_key="AIza-1", base_url=doors.url, max_retries=1)
    if doors.way == TRANSPORT:
        options = genai.types.HttpOptions(
            base_url=doors.url,
            httpx_client=doors.sync_http_client(httpx.Client),
            httpx_async_client=doors.http_client(httpx.AsyncClient),
        )
        model.client = genai.Client(api_key="AIza-1", http_options=options)
    return model


MODELS: dict[str, Callable[[Doors], Any]] = {
    "openai": openai_model,
    "anthropic": anthropic_model,
    "google": google_model,
}


async def close(provider: str, model: Any) -> None:
    """Close the model's own async client, which LangChain leaves open."""
    match provider:
        case "openai":
            await model.root_async_client.close()
        case "anthropic":
            await model._async_client.close()
        case "google":
            await model.client.aio.aclose()


def plain(message: Any) -> Any:
    """A message, or a piece of one, without the ids that LangChain draws at random."""
    usage, calls = message.usage_metadata, getattr(message, "tool_calls", [])
    return message.content, usage, [(call["name"], call["args"]) for call in calls], message.response_metadata


@each_sharing_way
@pytest.mark.parametrize("provider", PROVIDERS)
def test_langchain_sees_no_difference(provider: str, way: str) -> None:
    """Sync: a question, its stream, a tool and a structured answer, each asked twice."""

    def ask(model: Any) -> list[Any]:
        return [
            plain(model.invoke(QUESTION)),
            [plain(piece) for piece in model.stream(QUESTION)],
            plain(model.bind_tools([weather]).invoke(QUESTION)),
            model.with_structured_output(Person).invoke(QUESTION),
        ]

    with Doors(DIRECT) as doors:
        expected = ask(MODELS[provider](doors))
    assert expected[2][2] == [("weather", {"city": "Paris"})]
    assert expected[3] == Person(name="Ada", age=36)
    with Doors(way) as doors:
        model = MODELS[provider](doors)
        assert ask(model) == expected
        calls = doors.calls
        assert ask(model) == expected
        assert doors.calls == calls


@each_sharing_way
@pytest.mark.parametrize("provider", PROVIDERS)
def test_langchains_async_side_sees_no_difference(provider: str, way: str) -> None:
    """A question and its stream."""

    async def main(doors: Doors) -> list[Any]:
        model = MODELS[provider](doors)

        async def ask() -> list[Any]:
            return [plain(await model.ainvoke(QUESTION)), [plain(piece) async for piece in model.astream(QUESTION)]]

        first = await ask()
        assert await ask() == first
        await doors.close_clients()
        await close(provider, model)
        return first

    with Doors(DIRECT) as doors:
        expected = run(main(doors))
    with Doors(way) as doors:
        assert run(main(doors)) == expected
        assert doors.calls == 2


@each_sharing_way
def test_embeddings_of_langchain_openai(way: str) -> None:
    """A document and a query."""
    module = pytest.importorskip("langchain_openai")
    httpx = pytest.importorskip("httpx2")

    def ask(doors: Doors) -> Any:
        embeddings = module.OpenAIEmbeddings(
            model="text-embedding-3-small",
            api_key="sk-1",
            base_url=f"{doors.url}/v1",
            check_embedding_ctx_length=False,  # else it counts tokens with a file from the network
            http_client=doors.sync_http_client(httpx.Client),
            http_async_client=doors.http_client(httpx.AsyncClient),
        )
        return embeddings.embed_documents(["a", "b"]), embeddings.embed_query("c")

    with Doors(DIRECT) as doors:
        expected = ask(doors)
    with Doors(way) as doors:
        assert ask(doors) == expected


@each_sharing_way
@pytest.mark.parametrize("provider", PROVIDERS)
def test_errors_are_langchains_own(provider: str, way: str) -> None:
    """Of a provider that is over its limit."""

    def ask(doors: Doors) -> Any:
        model = MODELS[provider](doors)
        model = model.model_copy(update={"model_name" if provider == "openai" else "model": "busy"})
        with pytest.raises(Exception) as caught:
            model.invoke(QUESTION)
        return caught.type, str(caught.value)

    with Doors(DIRECT) as doors:
        expected = ask(doors)
    with Doors(way) as doors:
        assert ask(doors) == expected
