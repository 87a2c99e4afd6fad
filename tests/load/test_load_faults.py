"""The driver against targets that misbehave: what can be kept is kept, marked, and said in one sentence."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from paceline.errors import MeasurementError
from paceline.load.driver import drive
from paceline.load.scenario import Scenario
from paceline.model.request import Request
from paceline.model.run import ScenarioInfo
from paceline.store.folder import create_run
from paceline.store.rows import RowSpool

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Driven = tuple[list[Request], ScenarioInfo]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def closed(**changes: object) -> Scenario:
    return Scenario(name="s", **{"users": 2, "requests": 6, **changes})  # type: ignore[arg-type]


def driven(folder: Path, scenario: Scenario, talk: Talk) -> Driven:
    """Drive at a server that says exactly what `talk` says on each connection."""

    talks: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await talk(reader, writer)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(one(reader, writer))
        talks.add(task)
        task.add_done_callback(talks.discard)

    async def main() -> Driven:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        run = create_run(folder, "t")
        try:
            info = await drive(scenario, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", run)
        finally:
            server.close()
            left = list(talks)  # some go on talking when nobody listens any more
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await asyncio.sleep(0)  # transports close in the loop's next turn
        return run.requests(), info

    return uvloop.run(main())


def saying(*answers: bytes) -> Talk:
    """One answer after the other on a connection, in pieces as given; the connection stays open."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            for piece in answers:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)

    return talk


async def requests_of(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        yield await reader.readuntil(b"\r\n\r\n")


@pytest.mark.slow
def test_an_answer_of_ten_megabytes_is_counted_and_not_kept(tmp_path: Path) -> None:
    body = b"x" * 10_000_000
    requests, info = driven(
        tmp_path, closed(requests=4), saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n", body)
    )
    assert [(r.error, r.response_bytes) for r in requests] == [(None, 10_000_000)] * 4
    assert all((r.first_byte_s or 0) < r.ended_s for r in requests)
    assert info.stopped is None


@pytest.mark.slow
def test_a_request_of_ten_megabytes_is_sent_whole(tmp_path: Path) -> None:
    """It does not fit the socket's buffer: the rest follows when there is room."""
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text('"' + "x" * 10_000_000 + '"')
    received: list[int] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for _ in requests_of(reader):
            received.append(len(await reader.readexactly(10_000_002)))
            writer.write(OK)

    requests, _ = driven(tmp_path, closed(bodies=str(bodies), requests=4), talk)
    assert received == [10_000_002] * 4
    assert [(r.error, r.request_bytes) for r in requests] == [(None, 10_000_002)] * 4


@pytest.mark.parametrize(
    "answer",
    [OK, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n"],
    ids=["length", "chunked"],
)
def test_a_slow_drip_is_read_byte_by_byte(tmp_path: Path, answer: bytes) -> None:
    requests, _ = driven(tmp_path, closed(), saying(*(answer[i : i + 1] for i in range(len(answer)))))
    assert [(r.status, r.error, r.response_bytes) for r in requests] == [(200, None, 2)] * 6


def test_a_drip_that_never_ends_is_a_timeout(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.001)

    requests, _ = driven(tmp_path, closed(timeout_s=0.05, requests=2), talk)
    assert [(r.status, r.error) for r in requests] == [(200, "timeout")] * 2
    assert all(r.response_bytes for r in requests)


@pytest.mark.parametrize(
    "said",
    [b"\x00\xff" * 500, b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 banana\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 400_000],
    ids=["bytes", "ssh", "no status", "endless head"],
)
def test_garbage_is_a_connection_error(tmp_path: Path, said: bytes) -> None:
    requests, _ = driven(tmp_path, closed(timeout_s=5.0), saying(said))
    assert [r.error for r in requests] == ["connection"] * 6


@pytest.mark.parametrize(
    ("answer", "size"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", 0),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 0),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, 2),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", 2),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 2),
        (OK + b"surplus", 2),
    ],
    ids=["204", "304", "empty", "early hints", "close", "1.0", "surplus"],
)
def test_keep_alive_edge_cases_are_read_right(tmp_path: Path, answer: bytes, size: int) -> None:
    """The same answer again and again, so that heads are known after the first."""
    requests, _ = driven(tmp_path, closed(requests=12), saying(answer))
    assert Counter((r.error, r.response_bytes) for r in requests) == {(None, size): 12}
    assert all((r.first_byte_s is None) == (size == 0) for r in requests)


def test_a_known_head_with_more_or_less_body_is_still_read_right(tmp_path: Path) -> None:
    """The head is known, and the body comes in another piece."""
    turns = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turns
        async for _ in requests_of(reader):
            turns += 1
            cut = len(OK) - turns % 4
            writer.write(OK[:cut])
            await writer.drain()
            await asyncio.sleep(0.002)
            writer.write(OK[cut:])

    requests, _ = driven(tmp_path, closed(requests=16, users=1), talk)
    assert [(r.status, r.error, r.response_bytes) for r in requests] == [(200, None, 2)] * 16


def test_answers_to_head_have_no_body(tmp_path: Path) -> None:
    requests, _ = driven(
        tmp_path, closed(method="HEAD", requests=8), saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
    )
    assert [(r.error, r.response_bytes) for r in requests] == [(None, 0)] * 8


def test_all_errors_are_all_recorded(tmp_path: Path) -> None:
    requests, info = driven(tmp_path, closed(requests=60), saying(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"))
    assert Counter(r.error for r in requests) == {"status": 60}
    assert info.stopped is None


def test_answers_nobody_asked_for_do_not_answer_the_next_request(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.005)
        writer.write(b"HTTP/1.1 500 Nobody asked\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    requests, _ = driven(tmp_path, closed(users=1, requests=5, think_s=0.02), talk)
    assert [(r.status, r.error) for r in requests] == [(200, None)] * 5


def test_no_connection_is_opened_for_what_we_are_late_with(tmp_path: Path) -> None:
    """Forty arrivals due at once at a server that answers in a millisecond do not open forty connections."""
    opened = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        async for _ in requests_of(reader):
            writer.write(OK)

    scenario = closed(model="open", users=None, rate_per_s=100_000.0, requests=400, warmup=1)
    requests, _ = driven(tmp_path, scenario, talk)
    assert len(requests) == 400
    assert opened < 400


def test_a_full_disk_ends_the_scenario_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: RowSpool) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RowSpool, "flush", full)
    with pytest.raises(MeasurementError, match="no space left"):
        driven(tmp_path, closed(requests=100_000), saying(OK))


@pytest.mark.slow
def test_a_generator_that_is_killed_leaves_readable_records(tmp_path: Path) -> None:
    """`kill -9` in the middle: whole rows, a run that says it was not finished."""
    run = create_run(tmp_path, "t")

    async def main() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                async for _ in requests_of(reader):
                    served.append(1)
                    if len(served) == 500:
                        process.kill()
                    await asyncio.sleep(0.001)
                    writer.write(OK)
            writer.close()

        served: list[int] = []
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        command = ["-m", "paceline", "load", url, "--users", "4", "--requests", "100000", "--run", str(run.path)]
        whole = [sys.executable, *command]
        process = subprocess.Popen(whole, stdout=subprocess.DEVNULL, env=os.environ)  # noqa: ASYNC220
        await asyncio.to_thread(process.wait)
        server.close()

    uvloop.run(main())
    requests = run.requests()
    assert 0 < len(requests) <= 500
    assert all(r.ok for r in requests)
    assert run.info.state == "running"
