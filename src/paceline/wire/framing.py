"""The bytes of HTTP/1.1 messages: header lines, and of answers also status line and chunks."""

from collections.abc import Sequence
from http import HTTPStatus

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_OK = _STATUS_LINES[200]
_KEPT, _LAST = b"\r\n", b"connection: close\r\n\r\n"
_WITHOUT_BODY = (204, 304)


class EncodedHeaders(tuple[tuple[bytes, bytes], ...]):
    """Headers together with their `lines` as they are sent; for those that go out more than once."""

    lines: bytes
    has_length: bool  # a content-length is among them

    def plus(self, name: bytes, value: bytes) -> "EncodedHeaders":
        """These and one more (no content-length), whose name and value are known to hold no line break."""
        more = EncodedHeaders((*self, (name, value)))
        more.lines = b"%b%b: %b\r\n" % (self.lines, name, value)
        more.has_length = self.has_length
        return more


def encode_headers(headers: Sequence[tuple[bytes, bytes]]) -> EncodedHeaders:
    """These headers, encoded once. ValueError when one holds a line break: it would be a second header or message."""
    encoded = EncodedHeaders(headers)
    encoded.lines = header_lines(headers)
    encoded.has_length = has_header(headers, b"content-length")
    return encoded


def header_lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """These headers as they are sent. ValueError as in `encode_headers`."""
    if isinstance(headers, EncodedHeaders):
        return headers.lines
    lines = b"".join([name + b": " + value + b"\r\n" for name, value in headers])
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
        msg = f"a header holds a line break: {lines[:200]!r}"
        raise ValueError(msg)
    return lines


def chunk(data: bytes) -> bytes:
    """One chunk; `data` must not be empty, that would be the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def has_header(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bool:
    """True when a header of that (lower-case) name is there."""
    for key, _ in headers:  # noqa: SIM110 - every reply passes here, and `any` with a generator takes twice as long
        if key == name:
            return True
    return False


def encode_head(
    status: int,
    headers: Sequence[tuple[bytes, bytes]],
    *,
    length: int | None = None,
    chunked: bool = False,
    keep_alive: bool = True,
) -> bytes:
    """Status line to empty line. ValueError when a header holds a line break: it would be a second header or answer."""
    if chunked:
        return _encode(status, headers, b"transfer-encoding: chunked\r\n", b"", keep_alive)
    return _encode(status, headers, b"content-length: %d\r\n" % length if length is not None else b"", b"", keep_alive)


def encode_whole(
    status: int,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes | list[bytes],
    *,
    chunks: bool = True,
    keep_alive: bool = True,
    with_body: bool = True,
) -> bytes:
    """An answer that is all here. A list is sent as chunks where the client knows them (`chunks`)."""
    is_usual = keep_alive and with_body and status == 200
    if is_usual and isinstance(body, bytes) and isinstance(headers, EncodedHeaders) and not headers.has_length:
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (_OK, headers.lines, len(body), body)
    framing = b""
    if isinstance(body, list):
        if chunks:
            framing = b"transfer-encoding: chunked\r\n"
            body = b"".join([*map(chunk, filter(None, body)), LAST_CHUNK])
        else:
            body = b"".join(body)
    if not framing and status not in _WITHOUT_BODY and not has_header(headers, b"content-length"):
        framing = b"content-length: %d\r\n" % len(body)
    return _encode(status, headers, framing, body if with_body else b"", keep_alive)


def _encode(
    status: int, headers: Sequence[tuple[bytes, bytes]], framing: bytes, body: bytes, keep_alive: bool
) -> bytes:
    lines = headers.lines if isinstance(headers, EncodedHeaders) else header_lines(headers)
    start = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    return b"".join((start, lines, framing, _KEPT if keep_alive else _LAST, body))
