"""Malformed and ambiguous requests against a real socket: one refusal, nothing behind it is answered, nothing is left.

Two readers that disagree where a request ends let an attacker hide one request in another. Sources of the cases:
RFC 9112 and 9110, "HTTP Desync Attacks" (Kettle 2019, 2022), llhttp's and Node's advisories.
"""

import re

import pytest
from tests.wire.builders import known, raw, run, serving, until

from paceline.wire.http import HttpRequest, Reply
from paceline.wire.intake import Intake, ServerLimits

HIDDEN = b"GET /hidden HTTP/1.1\r\nhost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


def post(*headers: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join([b"POST / " + version, b"host: a", *headers]) + b"\r\n\r\n" + body


def get(*headers: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = b"host: a") -> bytes:
    return b"\r\n".join([line, host, *headers]) + b"\r\n\r\n"


# name: what is sent, the status of the refusal
REFUSED = {
    # --- two ways to say where the body ends
    "length-then-chunked": (post(b"content-length: 3", b"transfer-encoding: chunked", body=b"0\r\n\r\n"), 400),
    "chunked-then-length": (post(b"transfer-encoding: chunked", b"content-length: 3", body=b"0\r\n\r\n"), 400),
    "chunked-twice": (post(b"transfer-encoding: chunked", b"transfer-encoding: chunked", body=b"0\r\n\r\n"), 400),
    "identity-then-chunked": (post(b"transfer-encoding: identity", b"transfer-encoding: chunked"), 400),
    "chunked-then-identity": (post(b"transfer-encoding: chunked", b"transfer-encoding: identity"), 400),
    "chunked-in-a-list-twice": (post(b"transfer-encoding: chunked, chunked", body=b"0\r\n\r\n"), 400),
    "gzip-and-chunked": (post(b"transfer-encoding: gzip, chunked", body=b"0\r\n\r\n"), 400),
    "chunked-not-last": (post(b"transfer-encoding: chunked, identity", body=b"0\r\n\r\n"), 400),
    "almost-chunked": (post(b"transfer-encoding: xchunked", body=b"0\r\n\r\n"), 400),
    "chunked-with-parameter": (post(b"transfer-encoding: chunked;q=1", body=b"0\r\n\r\n"), 400),
    "chunked-quoted": (post(b'transfer-encoding: "chunked"', body=b"0\r\n\r\n"), 400),
    "chunked-after-vertical-tab": (post(b"transfer-encoding: \x0bchunked", body=b"0\r\n\r\n"), 400),
    "chunked-after-high-byte": (post(b"transfer-encoding: \xa0chunked", body=b"0\r\n\r\n"), 400),
    "chunked-empty": (post(b"transfer-encoding:", body=b"0\r\n\r\n"), 400),
    "chunked-space-before-colon": (post(b"transfer-encoding : chunked", body=b"0\r\n\r\n"), 400),
    "chunked-on-a-folded-line": (post(b"transfer-encoding:\r\n chunked", body=b"0\r\n\r\n"), 400),
    "chunked-in-1.0": (post(b"transfer-encoding: chunked", body=b"0\r\n\r\n", version=b"HTTP/1.0"), 400),
    "chunked-in-a-header-by-bare-lf": (post(b"x: y\ntransfer-encoding: chunked", body=b"0\r\n\r\n"), 400),
    "chunked-in-a-header-by-bare-cr": (post(b"x: y\rtransfer-encoding: chunked", body=b"0\r\n\r\n"), 400),
    # --- lengths
    "two-lengths": (post(b"content-length: 3", b"content-length: 4", body=b"abcd"), 400),
    "same-length-twice": (post(b"content-length: 3", b"content-length: 3", body=b"abc"), 400),
    "list-of-lengths": (post(b"content-length: 3, 3", body=b"abc"), 400),
    "negative-length": (post(b"content-length: -1"), 400),
    "plus-length": (post(b"content-length: +3", body=b"abc"), 400),
    "hexadecimal-length": (post(b"content-length: 0x3", body=b"abc"), 400),
    "length-with-underscore": (post(b"content-length: 1_0", body=b"a" * 10), 400),
    "length-with-space": (post(b"content-length: 1 2", body=b"a" * 12), 400),
    "length-of-other-digits": (post("content-length: ٣".encode(), body=b"abc"), 400),
    "length-overflow": (post(b"content-length: 18446744073709551619", body=b"abc"), 400),
    "empty-length": (post(b"content-length:"), 400),
    "length-above-the-bound": (post(b"content-length: 5000"), 413),
    # --- chunks
    "chunk-size-plus": (CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n", 400),
    "chunk-size-minus": (CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n", 400),
    "chunk-size-0x": (CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n", 400),
    "chunk-size-space": (CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n", 400),
    "chunk-size-leading-space": (CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n", 400),
    "chunk-size-empty": (CHUNKED + b"\r\nabc\r\n0\r\n\r\n", 400),
    "chunk-size-overflow": (CHUNKED + b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n", 400),
    "chunk-size-ends-in-lf": (CHUNKED + b"3\nabc\r\n0\r\n\r\n", 400),
    "chunk-size-ends-in-cr": (CHUNKED + b"3\rabc\r\n0\r\n\r\n", 400),
    "chunk-longer-than-said": (CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n", 400),
    "chunk-without-end": (CHUNKED + b"3\r\nabc0\r\n\r\n", 400),
    "chunk-ends-in-lf": (CHUNKED + b"3\r\nabc\n0\r\n\r\n", 400),
    "chunk-extension-with-lf": (CHUNKED + b"3;a\nb\r\nabc\r\n0\r\n\r\n", 400),
    "chunk-extension-with-nul": (CHUNKED + b"3;a\x00b\r\nabc\r\n0\r\n\r\n", 400),
    "chunk-extension-bomb": (CHUNKED + b"1;" + b"a" * 9000, 400),
    "many-extended-chunks": (CHUNKED + (b"1;" + b"e" * 400 + b"\r\nx\r\n") * 20, 400),
    "trailer-bomb": (CHUNKED + b"0\r\n" + b"x: y\r\n" * 2000, 400),
    "trailer-with-length": (CHUNKED + b"3\r\nabc\r\n0\r\ncontent-length: 5\r\n\r\n", 400),
    "trailer-with-chunked": (CHUNKED + b"3\r\nabc\r\n0\r\ntransfer-encoding: x\r\n\r\n", 400),
    "chunked-body-above-the-bound": (CHUNKED + b"1000\r\n" + b"a" * 0x1000, 413),
    # --- lines and headers
    "bare-lf-everywhere": (b"GET / HTTP/1.1\nhost: a\n\n", 400),
    "bare-lf-after-the-request-line": (b"GET / HTTP/1.1\nhost: a\r\n\r\n", 400),
    "bare-lf-after-a-header": (b"GET / HTTP/1.1\r\nhost: a\nx: y\r\n\r\n", 400),
    "bare-lf-at-the-end": (b"GET / HTTP/1.1\r\nhost: a\r\n\n", 400),
    "bare-cr-after-a-header": (b"GET / HTTP/1.1\r\nhost: a\rx: y\r\n\r\n", 400),
    "cr-cr-lf": (b"GET / HTTP/1.1\r\nhost: a\r\r\n\r\n", 400),
    "space-before-colon": (get(host=b"host : a"), 400),
    "tab-before-colon": (get(host=b"host\t: a"), 400),
    "space-in-name": (get(host=b"ho st: a"), 400),
    "empty-name": (get(b": y"), 400),
    "no-colon": (get(b"foo"), 400),
    "folded": (get(b"x: y\r\n z"), 400),
    "folded-first": (b"GET / HTTP/1.1\r\n host: a\r\n\r\n", 400),
    "nul-in-value": (get(b"x: a\x00b"), 400),
    "nul-in-name": (get(b"x\x00: y"), 400),
    "control-in-value": (get(b"x: a\x01b"), 400),
    "delete-in-value": (get(b"x: a\x7fb"), 400),
    "high-byte-in-name": (get(b"x\xff: y"), 400),
    "endless-header": (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 3000, 431),
    "many-headers": (get(*[b"x: y"] * 500), 431),
    # --- request line
    "http-0.9": (b"GET /\r\n\r\n", 505),
    "version-0.9": (get(line=b"GET / HTTP/0.9"), 505),
    "version-1.2": (get(line=b"GET / HTTP/1.2"), 400),
    "version-1.10": (get(line=b"GET / HTTP/1.10"), 400),
    "version-2.0": (get(line=b"GET / HTTP/2.0"), 505),
    "version-lower-case": (get(line=b"GET / http/1.1"), 400),
    "version-then-space": (get(line=b"GET / HTTP/1.1 "), 400),
    "http-2-preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "tls-hello": (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    "rtsp": (b"DESCRIBE rtsp://a RTSP/1.0\r\nhost: a\r\n\r\n", 501),
    "icecast": (b"SOURCE / ICE/1.0\r\nhost: a\r\n\r\n", 501),
    "unknown-method": (get(line=b"FOO / HTTP/1.1"), 400),
    "lower-case-method": (get(line=b"get / HTTP/1.1"), 400),
    "trace": (get(line=b"TRACE / HTTP/1.1"), 501),
    "connect": (get(line=b"CONNECT a:80 HTTP/1.1"), 501),
    "leading-space": (get(line=b" GET / HTTP/1.1"), 400),
    "nul-in-target": (get(line=b"GET /\x00 HTTP/1.1"), 400),
    "tab-in-target": (get(line=b"GET /a\tb HTTP/1.1"), 400),
    "space-in-target": (get(line=b"GET /a b HTTP/1.1"), 400),
    "high-byte-in-target": (get(line=b"GET /\xff HTTP/1.1"), 400),
    "target-without-slash": (get(line=b"GET a HTTP/1.1"), 400),
    "target-with-fragment": (get(line=b"GET /a#b HTTP/1.1"), 400),
    "star-for-get": (get(line=b"GET * HTTP/1.1"), 400),
    "long-target": (get(line=b"GET /" + b"a" * 3000 + b" HTTP/1.1"), 431),
    # --- who is meant
    "no-host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two-hosts": (get(b"host: b"), 400),
    "same-host-twice": (get(b"Host: a"), 400),
    "host-with-path": (get(host=b"host: a/b"), 400),
    "host-with-user": (get(host=b"host: u@a"), 400),
    "host-with-space": (get(host=b"host: a b"), 400),
    "two-hosts-in-one": (get(host=b"host: a, b"), 400),
    "absolute-other-host": (get(line=b"GET http://b/ HTTP/1.1"), 400),
    "absolute-other-port": (get(line=b"GET http://a:1/ HTTP/1.1"), 400),
    "absolute-with-user": (get(line=b"GET http://a@b/ HTTP/1.1"), 400),
    "absolute-file": (get(line=b"GET file:///etc/passwd HTTP/1.1"), 400),
    # --- other protocols on the same connection
    "upgrade": (get(b"upgrade: h2c", b"connection: upgrade"), 501),
    "upgrade-with-body": (post(b"upgrade: x", b"connection: upgrade", b"content-length: 3", body=b"abc"), 501),
    "unknown-expectation": (post(b"expect: the-unexpected", b"content-length: 3", body=b"abc"), 417),
    "garbage": (b"GARBAGE\r\n\r\n", 400),
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_and_closed(data: bytes, status: int) -> None:
    """One refusal after the good request before it; what follows is not answered and does not reach the handler."""
    reached: list[str] = []

    def handler(request: HttpRequest) -> Reply:
        reached.append(request.target)
        return Reply(200, [], request.target.encode())

    async def main() -> bytes:
        async with serving(handler, head_bytes=2000, body_bytes=2000) as server:
            answer = await raw(server.port, get() + data + HIDDEN * 2)
            await until(lambda: not server.sessions)
            return answer

    first, _, refusal = run(main()).partition(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n/")
    assert first == b""
    assert re.findall(rb"HTTP/1\.1 (\d+)", refusal) == [b"%d" % status]
    assert reached == ["/"]


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("cut", [1, 7])
def test_refused_however_it_is_cut(data: bytes, status: int, cut: int) -> None:
    """The same refusal when the bytes arrive in pieces, and never a request more."""
    intake = Intake(ServerLimits(head_bytes=2000, body_bytes=2000))
    sent = get() + data + HIDDEN
    for start in range(0, len(sent), cut):
        piece = sent[start : start + cut]
        assert known(intake, piece) is None
        intake.feed(piece)
    assert intake.refusal is not None
    assert intake.refusal.status == status
    assert [request.target for request in intake.requests] == ["/"]


ACCEPTED = {
    "leading-empty-lines": (b"\r\n\r\n" + get(), "/", b""),
    "length-with-zeros": (post(b"content-length: 003", body=b"abc"), "/", b"abc"),
    "length-with-tabs": (post(b"content-length:\t3\t", body=b"abc"), "/", b"abc"),
    "chunked-in-capitals": (post(b"Transfer-Encoding: Chunked", body=b"3\r\nabc\r\n0\r\n\r\n"), "/", b"abc"),
    "chunk-extension": (CHUNKED + b'3;a=b;c="d"\r\nabc\r\n0\r\n\r\n', "/", b"abc"),
    "trailer-is-dropped": (CHUNKED + b"3\r\nabc\r\n0\r\nauthorization: evil\r\n\r\n", "/", b"abc"),
    "absolute-target": (get(line=b"GET http://A/x?y HTTP/1.1"), "/x?y", b""),
    "absolute-target-without-path": (get(line=b"GET http://a?y HTTP/1.1"), "/?y", b""),
    "get-with-body": (get(b"content-length: 3") + b"abc", "/", b"abc"),
    "star-for-options": (get(line=b"OPTIONS * HTTP/1.1"), "*", b""),
    "high-byte-in-value": (get(b"x: a\xffb"), "/", b""),
    "host-with-port": (get(host=b"host: [::1]:80"), "/", b""),
}


@pytest.mark.parametrize(("data", "target", "body"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_what_has_one_meaning_is_taken(data: bytes, target: str, body: bytes) -> None:
    """Odd but unambiguous requests are answered, with what they say and nothing more."""
    seen: list[HttpRequest] = []

    def handler(request: HttpRequest) -> Reply:
        seen.append(request)
        return Reply(200)

    async def main() -> None:
        async with serving(handler) as server:
            await raw(server.port, data + post(b"connection: close"))

    run(main())
    assert (seen[0].target, seen[0].body) == (target, body)
    assert not [name for name, _ in seen[0].headers if name == b"authorization"]
    assert len(seen) == 2


@pytest.mark.parametrize("status", [200, 204])
def test_a_header_with_a_line_break_is_not_sent(status: int) -> None:
    """A handler that would split the answer in two gets a 500 to its client instead."""

    async def main() -> bytes:
        async with serving(lambda _: Reply(status, [(b"x", b"a\r\nset-cookie: b")])) as server:
            return await raw(server.port, post(b"connection: close"))

    answer = run(main())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"set-cookie" not in answer


def test_a_refusal_reaches_a_client_that_is_still_sending() -> None:
    """The rest of a body that is too large is thrown away, so that closing does not reset the client first."""

    async def main() -> bytes:
        async with serving(lambda _: Reply(200), body_bytes=1000) as server:
            answer = await raw(server.port, post(b"content-length: 4000000", body=b"a" * 4_000_000))
            await until(lambda: not server.sessions)
            return answer

    assert run(main()).startswith(b"HTTP/1.1 413 ")
