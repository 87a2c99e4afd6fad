"""The ways by which an SDK reaches the upstream: by itself, through the gateway, through the transport."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
import uvloop
from tests.accelerate.sdk_upstream import SdkUpstream
from tests.patience import PATIENCE_S

from paceline.accelerate.cache import CachePolicy
from paceline.accelerate.engine import Engine
from paceline.accelerate.policy import Policy
from paceline.accelerate.transport import AsyncTransport, Transport
from paceline.gateway.service import Gateway
from paceline.wire.client import HttpClient
from paceline.wire.server import Server, serve

OFF = Policy()
SHARING = Policy(cache=CachePolicy(enabled=True), single_flight=True)
DIRECT, GATEWAY, TRANSPORT = "direct", "gateway", "transport"

# Each way once with nothing switched on and once with everything shared.
WAYS = [(way, policy) for way in (GATEWAY, TRANSPORT) for policy in (OFF, SHARING)]
each_way = pytest.mark.parametrize(
    ("way", "policy"), WAYS, ids=[f"{way}-{'off' if policy is OFF else 'sharing'}" for way, policy in WAYS]
)
each_sharing_way = pytest.mark.parametrize("way", [GATEWAY, TRANSPORT])


class Doors:
    """An upstream, and a gateway in front of it, on a loop of a thread of their own, as sync SDKs need them."""

    def __init__(self, way: str, policy: Policy = SHARING) -> None:
        self.way = way
        self.policy = policy
        self.upstream = SdkUpstream()
        self.url = ""  # what the SDK's base URL is set to, without a version
        self.server: Server | None = None  # the gateway's
        self._made: list[Any] = []
        self._made_sync: list[Any] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._main()))

    def __enter__(self) -> "Doors":
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._made_sync:
            client.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        provider = await serve(self.upstream.handle, "127.0.0.1", 0)
        client = HttpClient(f"http://127.0.0.1:{provider.port}")
        self.server = await serve(Gateway(Engine(client, self.policy)).handle, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.port if self.way == GATEWAY else provider.port}"
        self._ready.set()
        await self._stop.wait()
        await self.server.close(0.0)
        await client.close()
        await provider.close(0.0)

    @property
    def calls(self) -> int:
        """How many requests have reached the upstream."""
        return len(self.upstream.calls)

    def http_client(self, kind: Callable[..., Any]) -> Any:
        """An async client of this class on our transport, or None where the SDK is to make its own."""
        if self.way != TRANSPORT:
            return None
        self._made.append(kind(transport=AsyncTransport(self.policy)))
        return self._made[-1]

    def sync_http_client(self, kind: Callable[..., Any]) -> Any:
        """The same for a sync one."""
        if self.way != TRANSPORT:
            return None
        self._made_sync.append(kind(transport=Transport(self.policy)))
        return self._made_sync[-1]

    async def close_clients(self) -> None:
        """Close the async clients, for SDKs that leave a client they were given to its owner."""
        for client in self._made:
            await client.aclose()

    def hold(self) -> None:
        """Let the upstream keep its answers until `let_go`."""
        self._in_loop(lambda: setattr(self.upstream, "gate", asyncio.Event()))

    async def let_go(self, waiting: int) -> None:
        """Answer, once so many callers wait for it."""
        busy = self._busy if self.way == GATEWAY else lambda: waiting
        async with asyncio.timeout(PATIENCE_S):
            while not self.calls or busy() < waiting:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.005)
            for _ in range(50):  # in process, a caller needs no more than a few turns of the loop to join
                await asyncio.sleep(0)
        gate = self.upstream.gate
        assert gate is not None
        self.upstream.gate = None
        self._in_loop(gate.set)

    def _busy(self) -> int:
        assert self.server is not None
        return self.server.busy

    def _in_loop(self, what: Callable[[], object]) -> None:
        done = threading.Event()

        def call() -> None:
            what()
            done.set()

        self._loop.call_soon_threadsafe(call)
        assert done.wait(5)


def same_every_way(way: str, policy: Policy, make_client: Callable[[Doors], Any], ask: Callable[[Any], Any]) -> None:
    """What a sync client gets directly, it gets this way too; and again, from memory where the policy shares."""
    with Doors(DIRECT) as doors, contextlib.closing(make_client(doors)) as client:
        expected = ask(client)
    with Doors(way, policy) as doors, contextlib.closing(make_client(doors)) as client:
        assert ask(client) == expected
        calls = doors.calls
        assert ask(client) == expected
        assert doors.calls == (calls if policy is SHARING else 2 * calls)


async def all_at_once(doors: Doors, count: int, ask: Callable[[], Awaitable[Any]]) -> list[Any]:
    """So many equal calls under way together, all answered by one."""
    doors.hold()
    tasks = [asyncio.ensure_future(ask()) for _ in range(count)]
    try:
        await doors.let_go(count)
    except TimeoutError:  # some failed before they asked: what of is what matters
        for task in tasks:
            task.cancel()
    answers = await asyncio.gather(*tasks)
    assert doors.calls == 1
    return answers


def until_broken(events: Iterable[Any]) -> tuple[list[Any], type[BaseException]]:
    """The events of a stream that the provider cuts, and the class of the exception that ends it."""
    seen: list[Any] = []
    with pytest.raises(Exception) as caught:
        seen.extend(event.model_dump() for event in events)
    return seen, caught.type
