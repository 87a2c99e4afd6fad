"""The short way records what the long way does: the same answers, whoever asked and however they came."""

import asyncio
import contextlib
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import uvloop

from paceline.load.driver import drive
from paceline.load.scenario import Scenario
from paceline.model.request import Request
from paceline.store.folder import create_run

HEADS = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 201 Created\r\nX-Cache: HIT\r\n",
    b"HTTP/1.1 200 OK\r\nx-paceline-cache: miss\r\n",
    b"HTTP/1.1 503 Busy\r\n",
    b"HTTP/1.1 200 OK\r\nx-paceline-cost-usd: 0.5\r\n",
]


def framed(head: bytes, body: bytes) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(head: bytes, body: bytes) -> bytes:
    chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n"


def answers(seed: int) -> list[tuple[bytes, int | None]]:
    """Answers of all kinds, the same one often again, as a server does; some cut in two, and where."""
    draw = random.Random(seed)
    kinds = []
    for _ in range(12):
        answer = draw.choice([framed, framed, framed, chunked])(draw.choice(HEADS), b"x" * draw.choice([0, 1, 2, 5000]))
        kinds.append((answer, draw.choice([None, None, None, 10, len(answer) - 1])))
    return [draw.choice(kinds[: draw.choice([1, 3, 12])]) for _ in range(150)]


def recorded(scenario: Scenario, said: Sequence[tuple[bytes, int | None]]) -> tuple[list[Request], list[bytes]]:
    """What is recorded of these answers, said in turn; and the requests. An answer with a number is cut there."""
    seen: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                seen.append(await reader.readuntil(b"\r\n\r\n"))
                answer, cut = said[(len(seen) - 1) % len(said)]
                writer.write(answer[:cut])
                if cut is not None:
                    await writer.drain()
                    await asyncio.sleep(0.001)
                    writer.write(answer[cut:])
        writer.close()

    async def main() -> list[Request]:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        run = create_run(Path(folder), "t")
        await drive(scenario, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", run)
        server.close()
        return run.requests()

    with tempfile.TemporaryDirectory() as folder:
        return uvloop.run(main()), seen


def outcome(request: Request) -> tuple[object, ...]:
    times = [request.intended_s <= request.started_s, request.started_s <= request.ended_s]
    if request.first_byte_s is not None:
        times += [request.started_s <= request.first_byte_s, request.first_byte_s <= request.ended_s]
    assert all(times), request
    got = (request.status, request.error, request.response_bytes, request.cache, request.cost_usd)
    return (request.index, request.endpoint, request.key, request.request_bytes, request.first_byte_s is None, *got)


def outcomes(requests: list[Request]) -> list[tuple[object, ...]]:
    return sorted(map(outcome, requests), key=str)


def scenario(**changes: object) -> Scenario:
    asked = {"name": "s", "method": "GET", "users": 1, "requests": 12, "timeout_s": 5.0, **changes}
    return Scenario(**asked)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_both_ways_record_the_same(seed: int) -> None:
    """Users who think take the long way each time, users who do not and arrivals the short one where they can."""
    said = answers(seed)
    thinking, asked = recorded(scenario(think_s=1e-9, requests=150), said)
    at_once, asked_at_once = recorded(scenario(requests=150), said)
    arriving = scenario(model="open", users=None, rate_per_s=2000.0, connections=1, requests=150)
    arrived, asked_by_arrivals = recorded(arriving, said)
    assert outcomes(at_once) == outcomes(thinking)
    assert outcomes(arrived) == outcomes(thinking)
    for requests, heads in ((thinking, asked), (at_once, asked_at_once), (arrived, asked_by_arrivals)):
        marked = [head.partition(b"traceparent: 00-")[2][:32].decode() for head in heads]
        assert marked == [request.trace_id for request in sorted(requests, key=lambda request: request.index)]


def test_an_answer_longer_than_those_before_is_read_whole() -> None:
    """As much is asked for as the answers so far were long."""
    said = [*[(framed(HEADS[0], b"x"), None)] * 5, (framed(HEADS[0], b"y" * 300_000), None)]
    requests, _ = recorded(scenario(requests=24), said)
    assert [request.response_bytes for request in requests] == [1, 1, 1, 1, 1, 300_000] * 4
    assert not any(request.error for request in requests)


def test_a_connection_closed_with_the_last_answer_is_replaced() -> None:
    """The end comes with the data: the edge that tells of both is the only one."""
    seen: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            for _ in range(3):
                seen.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(framed(HEADS[0], b"ok"))
        writer.close()

    async def main(folder: str) -> list[Request]:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        run = create_run(Path(folder), "t")
        await drive(scenario(requests=30), f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", run)
        server.close()
        return run.requests()

    with tempfile.TemporaryDirectory() as folder:
        requests = uvloop.run(main(folder))
    assert [(request.status, request.error) for request in requests] == [(200, None)] * 30
    assert len(seen) == 30


def test_every_user_and_number_has_its_request_when_many_answers_come_together() -> None:
    users = 60
    requests, heads = recorded(scenario(users=users, requests=3 * users), [(framed(HEADS[0], b"ok"), None)])
    assert sorted(request.index for request in requests) == list(range(3 * users))
    assert len({head.partition(b"traceparent: ")[2][:55] for head in heads}) == 3 * users
    assert {request.user for request in requests} <= set(range(users))
