"""The sync transport: one loop in a thread for the process, bounded hand-over, no dead locks, safe after a fork."""

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.gateway.builders import COMPLETION, EVENTS, JSON, PLAIN
from tests.patience import PATIENCE_S
from tests.wire.builders import RESET, STALL, STREAM_END, STREAM_HEAD, ScriptedServer, chunk, ok, run, scripted

from paceline.accelerate.cache import CachePolicy
from paceline.accelerate.policy import Policy
from paceline.accelerate.record import CallRecord
from paceline.accelerate.transport import AsyncTransport, Transport, TransportSettings, background
from paceline.accelerate.transport.hand_over import HandOver

httpx = pytest.importorskip("httpx")
httpx2 = pytest.importorskip("httpx2")

OFF = Policy()
SHARING = Policy(cache=CachePolicy(enabled=True), single_flight=True)
CHAT = "/v1/chat/completions"
CALL = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
STREAMED = {**CALL, "stream": True}
both_modules = pytest.mark.parametrize("module", [httpx, httpx2], ids=["httpx", "httpx2"])
both_policies = pytest.mark.parametrize("policy", [OFF, SHARING], ids=["off", "sharing"])


class Upstream:
    """A scripted server with a loop of its own, for callers that block theirs."""

    def __init__(self, *script: Any, scripts: list[list[Any]] | None = None) -> None:
        self._script, self._scripts = script, scripts
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: run(self._main()))
        self.server = ScriptedServer()

    def __enter__(self) -> "Upstream":
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with scripted(*self._script, scripts=self._scripts) as self.server:
            self._ready.set()
            await self._stop.wait()

    def until(self, condition: Any) -> None:
        """Wait until something has happened there."""

        async def poll() -> None:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():  # noqa: ASYNC110 - the condition is anything
                    await asyncio.sleep(0.001)

        asyncio.run_coroutine_threadsafe(poll(), self._loop).result()

    def set(self, event: asyncio.Event) -> None:
        """Let the script go on."""
        self._loop.call_soon_threadsafe(event.set)


def settled(transport: Transport, upstream: Upstream) -> None:
    """Nothing is held but connections kept for the next call."""

    def is_settled() -> bool:
        (state,) = transport.state().values()
        held = sum(state.get(name, 0) for name in ("in_flight", "waiting", "flights", "upstream_busy"))
        return held == 0 and upstream.server.open == state["upstream_idle"]

    upstream.until(is_settled)


@pytest.fixture(autouse=True)
def _thread_ends() -> Iterator[None]:
    """The transport's thread is gone when its last transport is closed."""
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "paceline-transport"]


@both_modules
@both_policies
def test_an_answer_is_what_the_modules_own_transport_gives(module: Any, policy: Policy) -> None:
    """Plain and streamed, asked twice; the second from memory where there is a policy."""
    events = [[STREAM_HEAD, *(chunk(event) for event in EVENTS), STREAM_END]]
    with Upstream(*PLAIN) as plain, Upstream(scripts=events) as streamed:
        with module.Client() as own:
            theirs = own.post(plain.server.url + CHAT, json=CALL)
        with module.Client(transport=Transport(policy)) as client:
            for _ in range(2):
                ours = client.post(plain.server.url + CHAT, json=CALL)
                assert (ours.status_code, ours.content) == (200, theirs.content)
                assert isinstance(ours, module.Response)
                with client.stream("POST", streamed.server.url + CHAT, json=STREAMED) as response:
                    assert b"".join(response.iter_bytes()) == b"".join(EVENTS)
        assert len(streamed.server.requests) == (2 if policy is OFF else 1)


@both_policies
def test_a_stream_comes_piece_by_piece_and_is_released_half_read(policy: Policy) -> None:
    """The first event is here while the server holds the rest back; closing, or forgetting, gives it up."""
    with Upstream(STREAM_HEAD, chunk(EVENTS[0]), STALL) as upstream:
        transport = Transport(policy)
        with httpx.Client(base_url=upstream.server.url, transport=transport) as client:
            with client.stream("POST", CHAT, json=STREAMED) as response:
                assert next(response.iter_bytes()) == EVENTS[0]
            settled(transport, upstream)
            forgotten = client.send(client.build_request("POST", CHAT, json=STREAMED), stream=True)
            assert next(forgotten.iter_bytes()) == EVENTS[0]
            forgotten.stream = None  # the cycle httpx makes of a response and its stream
            del forgotten, response
            settled(transport, upstream)


@both_policies
def test_failures_are_the_modules_own_exceptions(policy: Policy) -> None:
    """Silence before and in an answer, and a cut."""
    with (
        Upstream(STALL) as silent,
        Upstream(STREAM_HEAD, chunk(EVENTS[0]), STALL) as stuck,
        Upstream(STREAM_HEAD, chunk(EVENTS[0]), RESET) as cut,
        httpx.Client(transport=Transport(policy), timeout=httpx.Timeout(PATIENCE_S, read=0.3)) as client,
    ):
        with pytest.raises(httpx.ReadTimeout):
            client.post(silent.server.url + CHAT, json=CALL)
        for upstream, kind in ((stuck, httpx.ReadTimeout), (cut, httpx.RemoteProtocolError)):
            with client.stream("POST", upstream.server.url + CHAT, json=STREAMED) as response:
                pieces = response.iter_bytes()
                assert next(pieces) == EVENTS[0]
                with pytest.raises(kind):
                    next(pieces)


def test_threads_share_one_call() -> None:
    """Eight threads ask the same at once: one call reaches the server."""
    go = asyncio.Event()
    with Upstream(go, *PLAIN) as upstream:
        transport = Transport(SHARING)
        with httpx.Client(base_url=upstream.server.url, transport=transport) as client, ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(client.post, CHAT, json=CALL) for _ in range(8)]
            upstream.until(lambda: upstream.server.requests)
            upstream.set(go)
            assert {call.result().content for call in calls} == {COMPLETION}
        assert len(upstream.server.requests) == 1


def test_a_slow_reader_holds_the_sender_back() -> None:
    """A long answer is taken a bounded amount ahead, and is complete in the end."""
    body = bytes(range(256)) * 4096 * 8
    with (
        Upstream(ok(body)) as upstream,
        httpx.Client(transport=Transport(), timeout=5.0) as client,
        client.stream("GET", upstream.server.url) as response,
    ):
        source: Any = response.stream
        while not isinstance(source, HandOver):
            source = getattr(source, "_source", None) or source._stream
        pieces = response.iter_raw()
        first = next(pieces)
        upstream.until(lambda: source._is_full)
        assert source._put_bytes - source._taken_bytes < 2 * 256 * 1024
        assert first + b"".join(pieces) == body


@both_policies
def test_uploads_pass_through_the_modules_own_transport(policy: Policy) -> None:
    """Bodies that are not there at once: a multipart form, and a generator."""
    with Upstream(ok(b"{}", JSON)) as upstream:
        with httpx.Client(transport=Transport(policy), base_url=upstream.server.url) as client:
            assert client.post("/v1/files", files={"file": ("a.jsonl", b"x")}).json() == {}
            generated = client.post("/v1/audio", content=iter([b"one", b"two"]), headers={"content-length": "6"})
            assert generated.json() == {}
        assert upstream.server.requests[1].endswith(b"onetwo")


def test_a_proxy_set_in_the_settings_is_used() -> None:
    """By httpx's own transport."""
    with Upstream(*PLAIN) as proxy:
        settings = TransportSettings(proxy=proxy.server.url)
        for policy in (OFF, SHARING):
            with httpx.Client(transport=Transport(policy, settings=settings)) as client:
                assert client.post("http://models.example" + CHAT, json=CALL).content == COMPLETION
        assert all(request.startswith(b"POST http://models.example/") for request in proxy.server.requests)


# --- threads, loops, processes -------------------------------------------------------------------------------------


def test_a_sync_call_from_a_running_loop_does_not_dead_lock() -> None:
    """It blocks that loop, as any sync call does, and returns."""
    with Upstream(*PLAIN) as upstream:

        async def main() -> None:
            with httpx.Client(transport=Transport(SHARING)) as client:
                assert client.post(upstream.server.url + CHAT, json=CALL).content == COMPLETION
            async with httpx.AsyncClient(transport=AsyncTransport(SHARING)) as client:
                assert (await client.post(upstream.server.url + CHAT, json=CALL)).content == COMPLETION

        asyncio.run(main())


def test_a_sync_call_from_the_transports_own_loop_is_refused() -> None:
    """A listener that makes a call there would wait for itself."""
    caught: list[BaseException] = []
    with Upstream(*PLAIN) as upstream:
        url = upstream.server.url + CHAT

        def heard(_: CallRecord) -> None:
            try:
                client.post(url, json=CALL)
            except RuntimeError as error:
                caught.append(error)

        with httpx.Client(transport=Transport(SHARING, listener=heard)) as client:
            assert client.post(url, json=CALL).content == COMPLETION
    assert "async transport" in str(caught[0])


def test_closing_ends_what_is_being_read_and_waited_for() -> None:
    """A reader in another thread gets an exception and no hang; a later request opens the transport again."""
    with Upstream(scripts=[[STREAM_HEAD, chunk(EVENTS[0]), STALL], [STALL], PLAIN]) as upstream:
        transport = Transport()
        client = httpx.Client(base_url=upstream.server.url, transport=transport)
        with ThreadPoolExecutor(2) as pool:

            def stream() -> None:
                with client.stream("POST", CHAT, json=STREAMED) as response:
                    list(response.iter_bytes())

            reading = pool.submit(stream)
            upstream.until(lambda: upstream.server.requests)
            waiting = pool.submit(client.post, CHAT, json=CALL)
            upstream.until(lambda: len(upstream.server.requests) == 2)
            transport.close()
            for task in (reading, waiting):
                with pytest.raises(httpx.RemoteProtocolError):
                    task.result(5)
        assert client.post(CHAT, json=CALL).content == COMPLETION
        client.close()


def test_the_loop_is_shared_and_ends_with_its_last_user() -> None:
    """Two transports, one thread; stopping it ends a call that waits."""
    first, second = background.lease(), background.lease()
    assert first is second
    started = threading.Event()

    async def hang() -> None:
        started.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(first.run, hang())
        started.wait(5)
        background.release(first)
        assert not waiting.done()
        background.release(second)
        with pytest.raises(Exception, match="closed"):
            waiting.result(5)
    closed = hang()
    with contextlib.closing(closed), pytest.raises(Exception, match="closed"):
        first.run(closed)


FORK = """
import os, sys, threading
import httpx
from paceline.accelerate.cache import CachePolicy
from paceline.accelerate.policy import Policy
from paceline.accelerate.transport import Transport

url = sys.argv[1]
client = httpx.Client(transport=Transport(Policy(cache=CachePolicy(enabled=True))))
call = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ask = lambda text: client.post(url, json={**call, "user": "x", "n": text}).status_code
assert ask(1) == 200
child = os.fork()
assert ask(2) == 200
if child == 0:
    assert ask(3) == 200
    assert [t.name for t in threading.enumerate()].count("paceline-transport") == 1
    client.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert ask(4) == 200
print("fine")
"""


@pytest.mark.slow
def test_a_forked_child_starts_its_own_loop() -> None:
    """Parent and child both go on, neither touches the other's connections; nothing is said at exit."""
    with Upstream(*PLAIN) as upstream:
        command = [sys.executable, "-W", "ignore", "-c", FORK, upstream.server.url + CHAT]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")
