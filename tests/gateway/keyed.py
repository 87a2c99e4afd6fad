"""A gateway in this process that asks for keys, between a real client socket and a scripted upstream."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from tests.gateway.builders import CHAT
from tests.wire.builders import ScriptedServer, Step, scripted

from paceline.accelerate.engine import Engine
from paceline.accelerate.policy import Policy
from paceline.accelerate.record import CallRecord
from paceline.gateway.access_log import AccessLog
from paceline.gateway.invalidation import drop, nobody_else
from paceline.gateway.keys.door import Door
from paceline.gateway.keys.file import Key, new_key
from paceline.gateway.keys.quota import Meter
from paceline.gateway.keys.table import Table
from paceline.gateway.metrics.counts import Metrics
from paceline.gateway.metrics.shared import SharedMetrics
from paceline.gateway.pages import Pages
from paceline.gateway.service import Gateway
from paceline.wire.client import HttpClient
from paceline.wire.server import serve

OPENAI_SECRET, ANTHROPIC_SECRET, GEMINI_SECRET = b"sk-openai-secret", b"sk-ant-secret", b"gemini-secret"
CREDENTIALS = {
    "openai": (b"authorization", b"Bearer " + OPENAI_SECRET),
    "anthropic": (b"x-api-key", ANTHROPIC_SECRET),
    "gemini": (b"x-goog-api-key", GEMINI_SECRET),
}
Header = tuple[bytes, bytes]


def bearer(presented: str) -> Header:
    """The header an OpenAI client sends."""
    return (b"authorization", b"Bearer " + presented.encode())


@dataclass
class KeyedGateway:
    """What a test of keys looks at."""

    upstream: ScriptedServer
    gateway: Gateway
    metrics: Metrics
    client: HttpClient
    records: list[CallRecord]

    async def send(self, method: str, target: str, *headers: Header, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of one request."""
        reply = await self.client.request(method, target, list(headers), body)
        return reply.status, await reply.read()

    async def ask(self, presented: str, text: str = "hi", **fields: Any) -> tuple[int, str, bytes]:
        """A chat call with a key: status, cache outcome, body."""
        call = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **fields}
        reply = await self.client.request("POST", CHAT, [bearer(presented)], msgspec.json.encode(call))
        outcome = (reply.header(b"x-paceline-cache") or b"").decode()
        return reply.status, outcome, await reply.read()


def door_for(
    keys: Sequence[Key] | None, credentials: Mapping[str, Header] = CREDENTIALS, table: Table | None = None
) -> Door:
    """A door that knows these keys."""
    table = table or Table(1)
    return Door(
        [(key, Meter(key, table, i, 0)) for i, key in enumerate(keys)] if keys is not None else None, credentials
    )


@contextlib.asynccontextmanager
async def keyed(
    keys: Sequence[Key] | None,
    *script: Step,
    scripts: list[list[Step]] | None = None,
    policy: Policy | None = None,
    credentials: Mapping[str, Header] = CREDENTIALS,
    log: AccessLog | None = None,
) -> AsyncIterator[KeyedGateway]:
    """A gateway with these keys before an upstream that plays the script."""
    async with scripted(*script, scripts=scripts) as upstream:
        metrics, records = Metrics(), []

        def heard(record: CallRecord) -> None:
            records.append(record)
            metrics.take(record)
            if log is not None:
                log.take(record)

        forward = HttpClient(upstream.url)
        engine = Engine(forward, policy, listener=heard)
        pages = Pages(SharedMetrics(metrics), drop=lambda meant: drop(engine.cache, meant, nobody_else), log=log)
        gateway = Gateway(engine, door=door_for(keys, credentials), pages=pages)
        server = await serve(gateway.handle, "127.0.0.1", 0)
        client = HttpClient(f"http://127.0.0.1:{server.port}")
        try:
            yield KeyedGateway(upstream, gateway, metrics, client, records)
        finally:
            await client.close()
            await server.close(0.0)
            await forward.close()


def make(name: str = "alice", **may: object) -> tuple[str, Key]:
    """A key and what the file keeps of it."""
    return new_key(name, **may)
