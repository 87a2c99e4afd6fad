"""Several processes on one port: shared counts, a death under load, an orderly end, a dead parent."""

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path

import msgspec
import pytest
from tests.gateway.builders import COMPLETION, EVENTS, PLAIN
from tests.gateway.metrics.test_gateway_metrics import values
from tests.gateway.serving import CALL, CHAT, Serving, eventually, serving
from tests.patience import PATIENCE_S
from tests.wire.builders import STREAM_END, STREAM_HEAD, Step, chunk, run, scripted

from paceline.errors import ConfigError, UpstreamError
from paceline.gateway.workers.parent import delay_s
from paceline.gateway.workers.sockets import SPREADS, Listeners
from paceline.wire.client import HttpClient

WORKERS = 4
FEW = ("--workers", "2")


async def until_refused(url: str) -> None:
    """Until nobody takes new connections there."""
    client = HttpClient(url)
    with contextlib.suppress(UpstreamError):
        while True:
            await (await client.request("GET", "/-/health", [(b"connection", b"close")])).read()
    await client.close()


def test_successors_come_at_once_and_then_more_and_more_slowly() -> None:
    assert [delay_s(failures) for failures in range(9)] == [0.0, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert delay_s(10_000) == 10.0


def test_a_port_in_use_is_refused_whoever_has_it() -> None:
    """Also by a gateway of our own, with which the kernel would have shared it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            Listeners("127.0.0.1", port, 2)
    first = Listeners("127.0.0.1", 0, 2)
    try:
        with pytest.raises(ConfigError, match="already in use"):
            Listeners("127.0.0.1", first.port, 2)
    finally:
        first.close()
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:0"):
        Listeners("192.0.2.1", 0, 2)


@pytest.mark.parametrize("spread", [pytest.param(True, marks=pytest.mark.skipif(not SPREADS, reason="Linux")), False])
def test_every_worker_has_a_socket_of_the_port(spread: bool) -> None:
    """Its own where the kernel spreads connections, else one for all; one that was shut is opened again."""
    listeners = Listeners("127.0.0.1", 0, 3, spread=spread)
    try:
        sockets = [listeners.of(number) for number in range(3)]
        assert len({sock.fileno() for sock in sockets}) == (3 if spread else 1)
        assert {sock.getsockname()[1] for sock in sockets} == {listeners.port}
        listeners.shut(1)
        socket.create_connection(("127.0.0.1", listeners.port)).close()
        assert listeners.of(1).getsockname()[1] == listeners.port
    finally:
        listeners.close()


async def held(g: Serving) -> int:
    """Ask every worker what it holds: no call, slot or flight. How many connections they keep to the provider."""
    kept: dict[int, int] = {}
    while len(kept) < WORKERS:
        client = HttpClient(g.url)
        reply = await client.request("GET", "/-/health")
        state = msgspec.json.decode(await reply.read())
        await client.close()
        assert [state[name] for name in ("in_flight", "waiting", "flights", "upstream_busy")] == [0, 0, 0, 0]
        kept[state["pid"]] = state["upstream_idle"]
    return sum(kept.values())


@pytest.mark.slow
def test_a_killed_worker_takes_only_its_own_calls_with_it() -> None:
    """Under load: every answer is right or a broken connection, nothing hangs, a successor serves, counts add up."""

    async def main() -> None:
        async with scripted(*PLAIN) as upstream, serving("--upstream", upstream.url, "--workers", str(WORKERS)) as g:
            before = {worker.pid for worker in g.workers()}
            assert len(before) == WORKERS
            right, broken, stop = 0, 0, asyncio.Event()

            async def user() -> None:
                nonlocal right, broken
                client = HttpClient(g.url)
                try:
                    while not stop.is_set():
                        try:
                            reply = await client.request("POST", CHAT, [], CALL)
                            assert (reply.status, await reply.read()) == (200, COMPLETION)
                            right += 1
                        except UpstreamError:
                            broken += 1
                finally:
                    await client.close()

            users = [asyncio.create_task(user()) for _ in range(32)]
            await eventually(lambda: right > 300)
            victim = min(before)
            os.kill(victim, signal.SIGKILL)
            assert f"(process {victim}) was killed by SIGKILL; its successor starts now" in await g.line()
            so_far = right
            await eventually(lambda: right > so_far + 300 and len(g.workers()) == WORKERS)
            assert {worker.pid for worker in g.workers()} & before == before - {victim}
            await eventually(lambda: right > so_far + 600)
            stop.set()
            await asyncio.wait_for(asyncio.gather(*users), PATIENCE_S)
            assert broken <= 32  # what one of four held, at most every user once

            async def counted() -> dict[str, float]:
                return values((await g.get("/metrics"))[1])

            def calls(seen: dict[str, float]) -> float:
                return sum(value for name, value in seen.items() if name.startswith("paceline_calls_total"))

            async with asyncio.timeout(PATIENCE_S):
                while (seen := await counted()).get("paceline_workers") != WORKERS or calls(seen) < so_far:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert seen["paceline_worker_restarts_total"] == 1
            assert await held(g) == upstream.open  # connections kept for the next call, and nothing else
            shown = calls(seen)
            for _ in range(20):  # whoever is asked, no count goes down
                await g.client.close()
                g.client = HttpClient(g.url)
                assert calls(await counted()) >= shown
            assert await g.stop(signal.SIGTERM) == (0, "")

    run(main())


@pytest.mark.slow
def test_sigterm_lets_streams_finish_and_takes_no_new_calls(tmp_path: Path) -> None:
    """Readiness goes first; then the port is closed; the stream in flight is whole; then everything is gone."""

    async def main() -> None:
        gate = asyncio.Event()
        script: list[Step] = [STREAM_HEAD, chunk(EVENTS[0]), gate, *map(chunk, EVENTS[1:]), STREAM_END]
        config = tmp_path / "gateway.toml"
        async with scripted(*script) as upstream:
            config.write_text(f'[server]\nunready_s = 0.5\n[providers.openai]\nurl = "{upstream.url}"\n')
            async with serving("--config", str(config), *FEW) as g:
                reply = await g.client.request("POST", CHAT, [], b'{"model": "m", "stream": true}')
                assert await reply.__anext__() == EVENTS[0]
                assert (await g.get("/-/ready"))[0] == 200
                workers = g.workers()
                g.process.send_signal(signal.SIGTERM)
                while (await g.get("/-/ready"))[0] != 503:
                    pass
                await until_refused(g.url)
                gate.set()
                assert await reply.read() == b"".join(EVENTS[1:])
                _, errors = await g.process.communicate()
                assert (g.process.returncode, errors) == (0, b"")
                assert not any(worker.is_running() for worker in workers)

    run(main())


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), FEW], ids=["alone", "workers"])
def test_a_second_signal_ends_it_at_once(options: tuple[str, ...]) -> None:
    """A stream that never ends cannot keep it; Ctrl-C is exit 130."""

    async def main() -> None:
        async with (
            scripted(STREAM_HEAD, chunk(EVENTS[0]), asyncio.Event()) as upstream,
            serving("--upstream", upstream.url, *options) as g,
        ):
            reply = await g.client.request("POST", CHAT, [], b'{"model": "m", "stream": true}')
            await reply.__anext__()
            workers = g.workers()
            g.process.send_signal(signal.SIGINT)
            await until_refused(g.url)
            assert await g.stop(signal.SIGINT) == (130, "paceline: stopped\n")
            with pytest.raises(UpstreamError):
                await reply.read()
            await eventually(lambda: not any(worker.is_running() for worker in workers))

    run(main())


@pytest.mark.slow
def test_workers_end_with_their_parent() -> None:
    """A parent that is killed leaves nobody behind on the port."""

    async def main() -> None:
        async with scripted(*PLAIN) as upstream, serving("--upstream", upstream.url, *FEW) as g:
            workers = g.workers()
            g.process.kill()
            await g.process.wait()
            await eventually(lambda: not any(worker.is_running() for worker in workers))
            with pytest.raises(UpstreamError):
                await HttpClient(g.url).request("GET", "/-/health")

    run(main())


@pytest.mark.slow
def test_a_worker_that_cannot_start_ends_it_with_its_reason(tmp_path: Path) -> None:
    """One sentence, exit code 2, nothing announced, nobody left."""

    async def main() -> None:
        options = (
            "--workers",
            "2",
            "--access-log",
            str(tmp_path / "nowhere" / "log"),
            "--upstream",
            "http://127.0.0.1:1",
        )
        with pytest.raises(AssertionError, match="cannot write the access log") as failure:
            async with serving(*options):
                pass
        assert str(failure.value).count("\n") == 1

    run(main())
