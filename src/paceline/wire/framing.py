"""The bytes of HTTP/1.1 answers: status line, header lines, chunks."""

from collections.abc import Sequence
from http import HTTPStatus

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_WITHOUT_BODY = (204, 304)


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
    parts = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
    parts += [name + b": " + value + b"\r\n" for name, value in headers]
    if length is not None:
        parts.append(b"content-length: %d\r\n" % length)
    elif chunked:
        parts.append(b"transfer-encoding: chunked\r\n")
    if not keep_alive:
        parts.append(b"connection: close\r\n")
    head = b"".join(parts)
    if head.count(b"\n") != len(parts) or head.count(b"\r") != len(parts):
        msg = f"a header of the answer holds a line break: {head[:200]!r}"
        raise ValueError(msg)
    return head + b"\r\n"


def encode_whole(
    status: int,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes | list[bytes],
    *,
    chunks: bool = True,
    keep_alive: bool = True,
) -> tuple[bytes, bytes]:
    """Head and body of an answer that is all here. A list is sent as chunks where the client knows them (`chunks`)."""
    length = None
    chunked = chunks and isinstance(body, list)
    if isinstance(body, list):
        body = b"".join([*map(chunk, filter(None, body)), LAST_CHUNK] if chunked else body)
    if not chunked and status not in _WITHOUT_BODY and not has_header(headers, b"content-length"):
        length = len(body)
    return encode_head(status, headers, length=length, chunked=chunked, keep_alive=keep_alive), body
