"""A gateway in this process between a real client socket and a scripted upstream."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from tests.wire.builders import STREAM_END, STREAM_HEAD, ScriptedServer, Step, chunk, ok, scripted, until

from paceline.accelerate.cache import CachePolicy
from paceline.accelerate.engine import Engine
from paceline.accelerate.policy import Policy
from paceline.accelerate.record import CallRecord
from paceline.clock import Clock
from paceline.gateway.service import Gateway
from paceline.gateway.spans import span_of
from paceline.model.span import Span
from paceline.wire.client import ClientReply, HttpClient, Timeouts
from paceline.wire.server import Server, serve
from paceline.wire.sse import encode

CHAT = "/v1/chat/completions"
CACHING = Policy(cache=CachePolicy(enabled=True))
SHARING = Policy(cache=CachePolicy(enabled=True), single_flight=True)
JSON = b"content-type: application/json"

COMPLETION = msgspec.json.encode(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello there"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500},
    }
)
COST_USD = 1000 * 0.15e-6 + 500 * 0.6e-6  # of COMPLETION, by gpt-4o-mini's price


def delta(text: str, **extra: Any) -> bytes:
    """One event of a streamed completion."""
    choices = [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini"}
    return encode(msgspec.json.encode({**head, "choices": choices, **extra}))


DONE = encode(b"[DONE]")
EVENTS = [delta("Hel"), delta("lo "), delta("there"), DONE]
STREAM: list[Step] = [STREAM_HEAD, *(chunk(event) for event in EVENTS), STREAM_END]
PLAIN: list[Step] = [ok(COMPLETION, JSON)]


class ListSink:
    """Keeps spans in a list."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def take(self, record: CallRecord) -> None:
        self.spans.append(span_of(record))


@dataclass
class Bench:
    """Everything a gateway test looks at."""

    upstream: ScriptedServer
    engine: Engine
    server: Server
    client: HttpClient
    forward: HttpClient  # the engine's to the provider
    sink: ListSink = field(default_factory=ListSink)

    @property
    def spans(self) -> list[Span]:
        return self.sink.spans

    async def ask(
        self, text: str = "hi", *, headers: tuple[tuple[bytes, bytes], ...] = (), path: str = CHAT, **fields: Any
    ) -> ClientReply:
        """Send a chat call and wait for the head of the answer."""
        call = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **fields}
        return await self.client.request(
            "POST", path, [(b"content-type", b"application/json"), *headers], msgspec.json.encode(call)
        )

    async def say(self, text: str = "hi", **options: Any) -> tuple[int, str, bytes]:
        """Send a chat call; status, cache outcome and whole body."""
        reply = await self.ask(text, **options)
        outcome = (reply.header(b"x-paceline-cache") or b"").decode()
        return reply.status, outcome, await reply.read()

    async def settled(self) -> None:
        """Nothing is held any more: no slot, flight, task or connection but those kept for reuse."""
        await until(
            lambda: not self.engine.is_busy and self.server.busy == 0 and self.upstream.open == self.forward.idle
        )


@contextlib.asynccontextmanager
async def bench(
    *script: Step,
    policy: Policy | None = None,
    scripts: list[list[Step]] | None = None,
    timeouts: Timeouts | None = None,
    clock: Clock | None = None,
    kept: int = 0,
) -> AsyncIterator[Bench]:
    """A gateway with `policy` before an upstream that plays the script; checked to be clean at the end.

    `kept`: connections to the upstream that are open from the start, so that calls are sent at once.
    """
    async with scripted(*script, scripts=scripts) as upstream:
        sink = ListSink()
        forward = HttpClient(upstream.url, timeouts=timeouts)
        engine = Engine(forward, policy, listener=sink.take, detail=True, clock=clock)
        server = await serve(Gateway(engine).handle, "127.0.0.1", 0)
        await forward.warm(kept)
        client = HttpClient(f"http://127.0.0.1:{server.port}")
        try:
            yield Bench(upstream, engine, server, client, forward, sink)
        finally:
            await client.close()
            await server.close(0.0)
            await engine.close()
            await forward.close()
