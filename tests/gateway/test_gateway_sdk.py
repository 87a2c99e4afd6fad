"""The official openai SDK through the gateway: what applications really send and accept."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.gateway.builders import COMPLETION, DONE, SHARING, ListSink, delta
from tests.wire.builders import run

from paceline.accelerate.engine import Engine
from paceline.accelerate.policy import Policy
from paceline.gateway.service import Gateway
from paceline.wire.client import HttpClient
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.openai import error_body
from paceline.wire.server import serve

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.slow
_JSON = (b"content-type", b"application/json")
QUESTION: "list[ChatCompletionMessageParam]" = [{"role": "user", "content": "hi"}]


class Provider:
    """A tiny provider: chat plain and streamed, embeddings, one model that is always over its limit."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def handle(self, request: HttpRequest) -> Reply:
        self.calls.append(request.path)
        call: dict[str, Any] = msgspec.json.decode(request.body)
        if call["model"] == "busy":
            return Reply(429, [_JSON, (b"retry-after", b"0")], error_body(429, "slow down", code="rate_limit_exceeded"))
        if request.path == "/v1/embeddings":
            texts = call["input"]
            data = [{"object": "embedding", "index": i, "embedding": [0.5, float(len(t))]} for i, t in enumerate(texts)]
            usage = {"prompt_tokens": 3, "total_tokens": 3}
            body = {"object": "list", "model": call["model"], "data": data, "usage": usage}
            return Reply(200, [_JSON], msgspec.json.encode(body))
        if call.get("stream"):
            return Reply(200, [(b"content-type", b"text/event-stream")], self._stream(call))
        return Reply(200, [_JSON, (b"x-request-id", b"req_1")], COMPLETION)

    async def _stream(self, call: dict[str, Any]) -> AsyncIterator[bytes]:
        for word in ("Hello ", "there"):
            yield delta(word)
            await asyncio.sleep(0)
        if (call.get("stream_options") or {}).get("include_usage"):
            yield delta("", usage={"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11})
        yield DONE


class Running:
    """Provider and gateway, on a loop of a thread of their own, as the sync SDK needs them."""

    def __init__(self, policy: Policy) -> None:
        self.provider = Provider()
        self.sink = ListSink()
        self.url = ""
        self._policy = policy
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: run(self._main()))

    def __enter__(self) -> "Running":
        self._thread.start()
        self._ready.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        provider = await serve(self.provider.handle, "127.0.0.1", 0)
        client = HttpClient(f"http://127.0.0.1:{provider.port}")
        server = await serve(Gateway(Engine(client, self._policy, listener=self.sink.take)).handle, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.port}/v1"
        self._ready.set()
        await self._stop.wait()
        await server.close(0.0)
        await client.close()
        await provider.close(0.0)


@pytest.fixture(params=[Policy(), SHARING], ids=["pass", "sharing"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with Running(request.param) as instance:
        yield instance


def test_the_sync_sdk_works_unchanged(running: Running) -> None:
    """Plain, streamed with usage, and embeddings; asked twice, since the second may come from the cache."""
    with openai.OpenAI(base_url=running.url, api_key="sk-test") as client:
        for _ in range(2):
            plain = client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)
            assert plain.choices[0].message.content == "Hello there"
            assert plain.usage is not None
            assert plain.usage.total_tokens == 1500
            with client.chat.completions.create(
                model="gpt-4o-mini", messages=QUESTION, stream=True, stream_options={"include_usage": True}
            ) as stream:
                chunks = list(stream)
            assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello there"
            assert chunks[-1].usage is not None
            vectors = client.embeddings.create(
                model="text-embedding-3-small", input=["a", "bcd"], encoding_format="float"
            )
            assert [item.embedding for item in vectors.data] == [[0.5, 1.0], [0.5, 3.0]]
    calls = len(running.provider.calls)
    assert calls == len([span for span in running.sink.spans if span.cache in ("bypass", "miss")])
    assert calls == (3 if any(span.cache == "hit" for span in running.sink.spans) else 6)


def test_the_async_sdk_works_unchanged(running: Running) -> None:
    """Many at once, plain and streamed."""

    async def stream(client: Any, question: str) -> str:
        chunks = await client.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": question}], stream=True
        )
        return "".join([c.choices[0].delta.content async for c in chunks])

    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=running.url, api_key="sk-test") as client:
            texts = await asyncio.gather(*(stream(client, f"q{i % 3}") for i in range(12)))
            assert texts == ["Hello there"] * 12
            plain = await client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)
            assert plain.choices[0].message.content == "Hello there"
            vectors = await client.embeddings.create(
                model="text-embedding-3-small", input=["a"], encoding_format="float"
            )
            assert vectors.data[0].embedding == [0.5, 1.0]

    asyncio.run(main())
    streamed = [span for span in running.sink.spans if span.attributes["gen_ai.request.stream"]]
    assert len(streamed) == 12
    if any(span.cache != "bypass" for span in streamed):
        assert sum(span.cache == "miss" for span in streamed) == 3


def test_the_sdk_sees_the_providers_errors(running: Running) -> None:
    """A rate limit is the SDK's own RateLimitError, and its retries come through as calls of their own."""
    with (
        openai.OpenAI(base_url=running.url, api_key="sk-test", max_retries=1) as client,
        pytest.raises(openai.RateLimitError, match="slow down"),
    ):
        client.chat.completions.create(model="busy", messages=QUESTION)
    assert [span.error for span in running.sink.spans] == ["429", "429"]
