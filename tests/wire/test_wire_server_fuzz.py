"""Any bytes, cut anywhere: the same requests come out, nothing crashes, hangs or is left."""

import asyncio
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.examples import examples
from tests.wire.builders import known, raw, run, serving, until

from paceline.wire.http import HttpRequest, Reply
from paceline.wire.intake import Intake, ServerLimits

LIMITS = ServerLimits(head_bytes=4000, body_bytes=4000)
TOKEN = st.text("abcdefgh-_!~", min_size=1, max_size=8)
VALUE = st.text("ab:;,= \t\"'\xff", max_size=12).map(str.strip)
PARTS = [
    *(b"POST /v1/x?y=1 HTTP/1.1\r\n", b"GET / HTTP/1.0\r\n", b"GET http://a/ HTTP/1.1\r\n", b"HTTP/2.0"),
    *(b"host: a\r\n", b"Host:  a\r\n", b"x: y\r\n", b"expect: 100-continue\r\n", b"connection: close\r\n"),
    *(b"content-length: 5\r\n", b"Content-Length:3\r\n", b"transfer-encoding: chunked\r\n", b"upgrade: x\r\n"),
    *(b"hello", b"5\r\nhello\r\n", b"0\r\n\r\n", b"3;x=y\r\nabc\r\n", b"ffffffff\r\n"),
    *(b"\r\n", b"\n", b"\r", b" ", b"\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A valid request, its body by length or in chunks."""
    body = draw(st.binary(max_size=40))
    lines = [f"{draw(st.sampled_from(['POST', 'PUT']))} /{draw(TOKEN)} HTTP/1.1", "host: a"]
    lines += [f"x-{draw(TOKEN)}: {draw(VALUE)}" for _ in range(draw(st.integers(0, 4)))]
    if draw(st.booleans()):
        framed, framing = body, f"content-length: {len(body)}"
    else:
        cut = draw(st.integers(0, len(body)))
        chunks = [piece for piece in (body[:cut], body[cut:]) if piece]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in chunks) + b"0\r\n\r\n"
        framing = "Transfer-Encoding: chunked"
    lines.insert(draw(st.integers(1, len(lines))), framing)
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + framed


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut into pieces of these lengths, in turn."""
    found, start, turn = [], 0, 0
    while start < len(data):
        length = cuts[turn % len(cuts)]
        found.append(data[start : start + length])
        start, turn = start + length, turn + 1
    return found


def read(parts: list[bytes]) -> tuple[list[tuple[Any, ...]], int | None]:
    """What comes of it: the requests, and the refusal's status. Known heads are used as a session uses them."""
    intake = Intake(LIMITS)
    found: list[HttpRequest] = []
    for part in parts:
        request = known(intake, part)
        if request is None:
            intake.feed(part)
            found += intake.requests
            intake.requests.clear()
        else:
            found.append(request)
    status = intake.refusal.status if intake.refusal is not None else None
    return [(r.method, r.target, tuple(r.headers), r.body, r.keep_alive, r.chunks) for r in found], status


@pytest.mark.slow
@given(st.lists(requests(), min_size=1, max_size=5), st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_requests_cut_anywhere_are_the_same_requests(sent: list[bytes], cuts: list[int]) -> None:
    """One packet each, one packet for all, or any pieces: the same list of requests and no refusal."""
    each, refusal = read(sent)
    assert refusal is None
    assert len(each) == len(sent)
    assert read([b"".join(sent)]) == (each, None)
    assert read(pieces(b"".join(sent), cuts)) == (each, None)


@pytest.mark.slow
@given(requests(), st.lists(st.tuples(st.integers(0, 400), st.sampled_from([*PARTS, b"0", b"7", b"1"])), max_size=3))
@example(b"POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab", [(45, b"1")])
def test_a_known_head_takes_nothing_the_parser_would_not(first: bytes, edits: list[tuple[int, bytes]]) -> None:
    """What is taken without the parser is the very request the parser makes of it."""
    intake = Intake(LIMITS)
    intake.feed(first)
    second = first
    for at, new in edits:
        second = second[:at] + new + second[at + len(new) :]
    taken = known(intake, second)
    if taken is not None:
        [parsed], refusal = read([second])
        assert refusal is None
        assert parsed[:4] == (taken.method, taken.target, tuple(taken.headers), taken.body)
        assert parsed[4:] == (True, True)


def test_a_head_that_comes_again_is_known() -> None:
    """Only the digits of content-length and the body differ: the parser is not asked, notes are shared."""
    intake = Intake(LIMITS)
    head = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nX: y\r\n\r\n"
    intake.feed(head % 2 + b"ab")
    first = intake.requests[0]
    first.notes["seen"] = True
    again = known(intake, head % 11 + b"hello again")
    assert again is not None
    assert (again.body, again.header("content-length"), again.notes) == (b"hello again", "11", {"seen": True})
    for other in (head % 3 + b"ab", head % 2 + b"abc", head % 2, b"", head % 5000 + b"a" * 5000, b"x" + head % 0):
        assert known(intake, other) is None


@pytest.mark.slow
@given(st.lists(st.sampled_from(PARTS) | st.binary(max_size=6), max_size=12), st.lists(st.integers(1, 50), min_size=1))
def test_any_bytes_give_the_same_however_they_are_cut(parts: list[bytes], cuts: list[int]) -> None:
    """Requests and refusal do not depend on the packets."""
    data = b"".join(parts)
    assert read(pieces(data, cuts)) == read([data])


@pytest.mark.slow
@examples(60)
@given(st.lists(st.sampled_from(PARTS) | requests() | st.binary(max_size=20), max_size=10))
def test_a_server_survives_any_bytes(parts: list[bytes]) -> None:
    """After any bytes the client gets the end; no error, session or task is left, and the next client is served."""
    problems: list[Any] = []

    async def handler(request: HttpRequest) -> Reply:
        await asyncio.sleep(0)
        return Reply(200, [], [request.body, b"x"])

    async def main() -> bytes:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        async with serving(handler, head_bytes=500, body_bytes=500) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0)
            writer.write_eof()
            await reader.read()
            writer.close()
            await until(lambda: not server.sessions)
            good = await raw(server.port, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            await until(lambda: len(asyncio.all_tasks()) == 1)
            return good

    assert run(main()).startswith(b"HTTP/1.1 200 ")
    assert not problems
