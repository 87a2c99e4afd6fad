"""The driver against real servers: what it records, and how it behaves when the target misbehaves."""

import asyncio
import contextlib
import itertools
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from paceline.errors import ConfigError, ServiceError
from paceline.load.driver import Snapshot, drive
from paceline.load.health import Health
from paceline.load.scenario import Scenario
from paceline.load.shapes import stays
from paceline.model.request import Request
from paceline.model.run import ScenarioInfo
from paceline.store.folder import create_run
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve

Handler = Callable[[HttpRequest], Reply | Awaitable[Reply]]
Driven = tuple[list[Request], ScenarioInfo]


def closed(**changes: object) -> Scenario:
    return Scenario(name="s", **{"users": 4, "requests": 20, **changes})  # type: ignore[arg-type]


def arriving(**changes: object) -> Scenario:
    return Scenario(name="s", model="open", **{"rate_per_s": 400.0, "requests": 40, **changes})  # type: ignore[arg-type]


def driven(folder: Path, scenario: Scenario, handler: Handler, **options: Any) -> Driven:
    """Drive the scenario at a server with this handler."""

    async def both() -> Driven:
        server = await serve(handler, "127.0.0.1", 0)
        try:
            return await at(folder, scenario, server.port, **options)
        finally:
            await server.close(grace_s=0)

    return uvloop.run(both())


async def at(folder: Path, scenario: Scenario, port: int, *, speed: float = 1.0, **options: Any) -> Driven:
    run = create_run(folder, "t", speed=speed)
    info = await drive(scenario, f"http://127.0.0.1:{port}", run, **options)
    assert run.info.scenarios == [info]
    return run.requests(), info


def answer(_: HttpRequest) -> Reply:
    return Reply(200, [(b"content-type", b"application/json")], b"{}")


@contextlib.asynccontextmanager
async def raw_server(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server that says exactly what `talk` says, for answers no real server would give."""

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def test_a_closed_scenario_sends_its_sequence_once_in_order(tmp_path: Path) -> None:
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text("\n".join(json.dumps({"q": i}) for i in range(50)))
    seen: list[HttpRequest] = []

    def handler(request: HttpRequest) -> Reply:
        seen.append(request)
        return answer(request)

    requests, info = driven(tmp_path, closed(bodies=str(bodies), requests=50, path="/chat?v=1"), handler)
    assert [r.index for r in sorted(requests, key=lambda r: r.index)] == list(range(50))
    assert sorted(json.loads(r.body)["q"] for r in seen) == list(range(50))
    assert {r.target for r in seen} == {"/chat?v=1"}
    assert {r.user for r in requests} <= set(range(4))
    assert all(r.ok and r.status == 200 and r.endpoint == "POST /chat?v=1" for r in requests)
    assert all(r.intended_s <= r.started_s <= (r.first_byte_s or 0) <= r.ended_s for r in requests)
    assert info.requests == 50
    assert info.stopped is None


def test_never_more_requests_are_in_flight_than_there_are_users(tmp_path: Path) -> None:
    now = peak = 0

    async def handler(request: HttpRequest) -> Reply:
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        await asyncio.sleep(0.002)
        now -= 1
        return answer(request)

    driven(tmp_path, closed(users=5, requests=60), handler)
    assert peak == 5


def test_every_request_carries_its_own_trace_header(tmp_path: Path) -> None:
    seen: list[str | None] = []

    def handler(request: HttpRequest) -> Reply:
        seen.append(request.header("traceparent"))
        return answer(request)

    requests, _ = driven(tmp_path, closed(headers={"X-Team": "blue", "Traceparent": "mine"}), handler)
    assert {f"00-{r.trace_id}" for r in requests} == {(s or "")[:35] for s in seen}
    assert len(set(seen)) == 20
    assert all(re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", s or "") for s in seen)


def test_open_latency_counts_from_the_intended_start(tmp_path: Path) -> None:
    """One connection and a server that takes 20 ms: the queue before the connection is in the latency."""

    async def handler(request: HttpRequest) -> Reply:
        await asyncio.sleep(0.02)
        return answer(request)

    requests, info = driven(tmp_path, arriving(rate_per_s=200.0, requests=10, connections=1), handler)
    assert len(requests) == 10
    last = requests[-1]
    assert last.latency_s >= 0.15 > last.service_s  # ten services of 20 ms, started 45 ms apart in the schedule
    assert [round((r.intended_s - requests[0].intended_s) * 1e3, 3) for r in requests] == [5.0 * i for i in range(10)]
    assert info.arrivals == "constant"


def test_a_faster_provider_is_sent_a_faster_schedule(tmp_path: Path) -> None:
    """At speed 10 the wall gaps are a tenth, and reading multiplies them back."""
    requests, info = driven(tmp_path, arriving(rate_per_s=50.0, requests=20), answer, speed=10.0)
    gaps = [b.intended_s - a.intended_s for a, b in itertools.pairwise(requests)]
    assert gaps == pytest.approx([0.02] * 19, abs=1e-6)
    assert info.ended_s - info.started_s == pytest.approx(requests[-1].ended_s - requests[0].intended_s, abs=0.6)


@pytest.mark.parametrize(
    ("headers", "cache"),
    [
        ([(b"X-Cache", b"HIT from edge")], "hit"),
        ([(b"x-cache", b"Miss")], "miss"),
        ([(b"x-cache", b"miss"), (b"X-Paceline-Cache", b"join")], "join"),
        ([(b"x-cache", b"bypass")], None),
        ([], None),
    ],
    ids=["hit", "miss", "join", "bypass", "none"],
)
def test_the_cache_header_is_read(tmp_path: Path, headers: list[tuple[bytes, bytes]], cache: str | None) -> None:
    requests, _ = driven(tmp_path, closed(requests=4), lambda _: Reply(200, headers, b"x"))
    assert {r.cache for r in requests} == {cache}


def test_streamed_answers_have_a_first_byte_and_gaps(tmp_path: Path) -> None:
    async def events() -> AsyncIterator[bytes]:
        for i in range(4):
            yield b"data: %d\n\n" % i
            await asyncio.sleep(0.005)
        yield b"data: [DONE]\n\n"

    def handler(_: HttpRequest) -> Reply:
        return Reply(200, [(b"content-type", b"text/event-stream; charset=utf-8")], events())

    requests, _ = driven(tmp_path, closed(users=1, requests=2), handler)
    for request in requests:
        assert len(request.gaps_s) == 3
        assert all(gap >= 0.004 for gap in request.gaps_s)
        assert request.first_byte_s is not None
        assert request.ended_s - request.first_byte_s >= 0.015


def test_error_statuses_are_data(tmp_path: Path) -> None:
    statuses = iter([200, 429, 500, 404, 200])
    requests, info = driven(tmp_path, closed(users=1, requests=5), lambda _: Reply(next(statuses), body=b"no"))
    assert [(r.status, r.error) for r in requests] == [
        (200, None),
        (429, "status"),
        (500, "status"),
        (404, "status"),
        (200, None),
    ]
    assert info.stopped is None


def test_a_slow_answer_is_a_timeout_and_the_next_request_succeeds(tmp_path: Path) -> None:
    calls = 0

    async def handler(request: HttpRequest) -> Reply:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.sleep(60)
        return answer(request)

    requests, _ = driven(tmp_path, closed(users=1, requests=3, timeout_s=0.03), handler)
    assert [r.error for r in requests] == ["timeout", None, None]
    assert requests[0].latency_s >= 0.028  # the loop's timers count whole milliseconds
    assert requests[0].status is None


def test_waiting_for_a_connection_counts_towards_the_timeout(tmp_path: Path) -> None:
    async def handler(request: HttpRequest) -> Reply:
        await asyncio.sleep(60)
        return answer(request)

    requests, _ = driven(tmp_path, arriving(requests=3, connections=1, timeout_s=0.03), handler)
    assert [r.error for r in requests] == ["timeout"] * 3


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["closed", "half a body", "garbage", "bad chunk"],
)
def test_broken_answers_are_connection_errors_and_the_run_goes_on(tmp_path: Path, reply: bytes) -> None:
    async def main() -> Driven:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply)

        async with raw_server(talk) as port:
            return await at(tmp_path, closed(users=2, requests=10), port)

    requests, _ = uvloop.run(main())
    assert [r.error for r in requests] == ["connection"] * 10


def test_a_connection_that_the_server_closes_when_idle_is_no_error(tmp_path: Path) -> None:
    """Each connection answers one request and is closed without notice, as a keep-alive time-out does."""

    async def main() -> Driven:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        async with raw_server(talk) as port:
            return await at(tmp_path, closed(users=3, requests=30), port)

    requests, _ = uvloop.run(main())
    assert Counter(r.error for r in requests) == {None: 30}


def test_a_target_that_goes_away_ends_the_scenario_early(tmp_path: Path) -> None:
    async def main() -> Driven:
        served = 0

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal served
            while served < 20:
                await reader.readuntil(b"\r\n\r\n")
                served += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        async with raw_server(talk) as port:
            return await at(tmp_path, closed(users=2, requests=5000), port)

    requests, info = uvloop.run(main())
    assert info.stopped == "50 connection errors in a row: the target is gone"
    assert 70 <= len(requests) <= 80
    assert requests[-1].error == "connection"


@pytest.mark.parametrize(("bound", "said"), [(0.2, "20%"), (0.005, "0.5%")])
def test_too_many_errors_end_the_scenario_where_asked(tmp_path: Path, bound: float, said: str) -> None:
    scenario = closed(requests=2000, stop_error_ratio=bound)
    requests, info = driven(tmp_path, scenario, lambda _: Reply(503))
    assert info.stopped is not None
    assert info.stopped.endswith(f"above the bound of {said}")
    assert 100 <= len(requests) <= 104


def test_a_target_that_cannot_be_reached_is_refused_before_the_start(tmp_path: Path) -> None:
    async def main() -> None:
        server = await serve(answer, "127.0.0.1", 0)
        await server.close()
        await at(tmp_path, closed(), server.port)

    with pytest.raises(ServiceError, match=r"nothing listens on 127\.0\.0\.1"):
        uvloop.run(main())


def test_a_host_name_that_does_not_resolve_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"cannot resolve the host name 'no-such-host\.invalid'"):
        uvloop.run(drive(closed(), "http://no-such-host.invalid:80", create_run(tmp_path, "t")))


@pytest.mark.parametrize("url", ["ftp://x", "http://", "localhost:80", "http://x:port"])
def test_what_is_no_url_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="URL"):
        uvloop.run(drive(closed(), url, create_run(tmp_path, "t")))


def test_more_users_than_descriptors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ulimit -n"):
        uvloop.run(drive(closed(users=10_000_000), "http://127.0.0.1:1", create_run(tmp_path, "t")))


def test_interrupting_keeps_what_was_answered_and_says_so(tmp_path: Path) -> None:
    """Answered requests are recorded; those in flight get a moment, then are left out."""
    run = create_run(tmp_path, "t")

    async def main() -> None:
        started = asyncio.Event()

        async def handler(request: HttpRequest) -> Reply:
            if len(served) == 10:
                started.set()
                await asyncio.sleep(0.02)
            served.append(request)
            return answer(request)

        served: list[HttpRequest] = []
        server = await serve(handler, "127.0.0.1", 0)
        task = asyncio.ensure_future(drive(closed(users=1, requests=1000), f"http://127.0.0.1:{server.port}", run))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.close()

    uvloop.run(main())
    assert len(run.requests()) == 11
    assert all(r.ok for r in run.requests())
    assert run.info.scenarios[0].stopped == "interrupted"
    assert run.info.scenarios[0].requests == 11


def test_users_start_over_the_ramp(tmp_path: Path) -> None:
    async def handler(request: HttpRequest) -> Reply:
        await asyncio.sleep(0.05)  # so that no user is free for a second request
        return answer(request)

    requests, _ = driven(tmp_path, closed(users=4, requests=4, ramp_s=0.04), handler)
    due_s = [stay.start_s for stay in stays(closed(users=4, ramp_s=0.04))]
    starts = [r.intended_s - requests[0].intended_s for r in requests]
    assert starts == pytest.approx([at_s - due_s[0] for at_s in due_s], abs=1e-6)


def test_a_user_thinks_between_requests(tmp_path: Path) -> None:
    requests, _ = driven(tmp_path, closed(users=1, requests=4, think_s=0.01), answer)
    pauses = [b.intended_s - a.ended_s for a, b in itertools.pairwise(requests)]
    assert all(0.008 <= pause <= 0.01 + 1e-6 for pause in pauses)  # never later than due, whatever the machine does


def test_a_closed_scenario_can_end_by_time(tmp_path: Path) -> None:
    requests, info = driven(tmp_path, closed(requests=None, duration_s=0.05), answer)
    assert len(requests) > 4
    assert requests[-1].intended_s < info.started_s + 0.05


def test_warm_up_requests_are_sent_but_not_recorded(tmp_path: Path) -> None:
    seen: list[HttpRequest] = []

    def handler(request: HttpRequest) -> Reply:
        seen.append(request)
        return answer(request)

    requests, _ = driven(tmp_path, closed(requests=4, warmup=3), handler)
    assert len(seen) == 7
    assert len(requests) == 4


def test_progress_tells_where_the_scenario_stands(tmp_path: Path) -> None:
    shown: list[Snapshot] = []
    driven(tmp_path, closed(), answer, progress=shown.append)
    assert shown[-1].done == shown[-1].sent == shown[-1].requests == 20
    assert shown[-1].errors == 0
    assert shown[-1].quantile_s(0.5) is not None


def test_a_bug_in_a_callback_ends_the_scenario_instead_of_hanging(tmp_path: Path) -> None:
    def broken(_: Snapshot) -> None:
        msg = "no terminal"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="no terminal"):
        driven(tmp_path, closed(users=1, requests=10_000), answer, progress=broken)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    """After a scenario with time-outs no task of ours remains and the server sees every connection closed."""

    async def main() -> tuple[set[asyncio.Task[object]], int]:
        async def handler(request: HttpRequest) -> Reply:
            await asyncio.sleep(0.05 if request.target == "/" else 0)
            return answer(request)

        server = await serve(handler, "127.0.0.1", 0)
        await at(tmp_path, closed(users=8, requests=8, timeout_s=0.01), server.port)
        left = {t for t in asyncio.all_tasks() if "paceline/load/" in str(getattr(t.get_coro(), "cr_code", ""))}
        await asyncio.sleep(0.01)
        busy = server.busy
        await server.close(grace_s=0)
        return left, busy

    left, busy = uvloop.run(main())
    assert not left
    assert not busy


@pytest.mark.parametrize(
    ("late_s", "latency_s", "troubled"),
    [(0.001, 0.01, False), (0.05, 0.01, True), (0.05, 2.0, False), (0.5, 2.0, True)],
)
def test_a_late_generator_is_in_trouble_when_it_shows_in_the_figures(
    late_s: float, latency_s: float, troubled: bool
) -> None:
    health = Health()
    for _ in range(100):
        health.late(late_s)
    assert bool(health.trouble(latency_s)) is troubled
