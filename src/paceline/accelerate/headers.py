"""Which headers pass the gateway, and which are between it and its neighbour only."""

import re
from collections.abc import Sequence

from paceline.wire.framing import EncodedHeaders, encode_headers
from paceline.wire.known_answer import AnswerHeaders

Headers = Sequence[tuple[bytes, bytes]]

# RFC 9110, 7.6.1, and what the client of the next hop writes itself.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_FRAMING = _HOP_BY_HOP | {b"content-length"}
_REWRITTEN = _FRAMING | {b"host", b"expect"}
_REWRITTEN_READABLE = _REWRITTEN | {b"accept-encoding"}
_OWN_PREFIX = b"x-paceline-"
_OWN_PREFIX_BYTES = len(_OWN_PREFIX)
_PLAIN_CONNECTION = (b"keep-alive", b"close")  # names no other header
# Of a stored answer: what describes the body. Limits, dates, cookies and request ids belong to the call that made it.
_KEPT = frozenset({b"content-type", b"content-language", b"openai-model", b"openai-version"})
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def to_upstream(headers: Headers, *, readable: bool) -> list[tuple[bytes, bytes]]:
    """Headers for the provider: everything but hop-by-hop ones and our own.

    `readable`: ask for an answer that is not compressed, so that its usage can be read as it passes.
    """
    dropped = _with_named(_REWRITTEN_READABLE if readable else _REWRITTEN, headers)
    kept = [header for header in headers if header[0] not in dropped and not header[0].startswith(_OWN_PREFIX)]
    if readable:
        kept.append((b"accept-encoding", b"identity"))
    return kept


def to_client(headers: Headers, outcome: bytes, *, length: bool) -> EncodedHeaders:
    """Headers for the caller, with the cache's outcome; `length`: the content-length still holds.

    Worked out once for answers with the same head, where it does not.
    """
    if length or not isinstance(headers, AnswerHeaders):
        return _to_client(headers, outcome, length)
    known: EncodedHeaders | None = headers.notes.get(outcome)
    if known is None:
        known = headers.notes[outcome] = _to_client(headers, outcome, length)
    return known


def _to_client(headers: Headers, outcome: bytes, length: bool) -> EncodedHeaders:
    dropped = _HOP_BY_HOP if length else _FRAMING
    kept: list[tuple[bytes, bytes]] = []
    for header in headers:  # every miss passes here: one loop, no calls
        name = header[0]
        if name in dropped:
            if name == b"connection" and header[1].lower() not in _PLAIN_CONNECTION:
                dropped = _with_named(dropped, headers)
                kept = [each for each in kept if each[0] not in dropped]
        # Another layer of ours behind this one says such things, too; the caller wants to know what this one did.
        elif name[:_OWN_PREFIX_BYTES] != _OWN_PREFIX:
            kept.append(header)
    kept.append((b"x-paceline-cache", outcome))
    return encode_headers(kept)


def answer_kind(headers: Headers) -> tuple[bool, bool]:
    """Whether an answer is a stream of events, and whether it is compressed."""
    if not isinstance(headers, AnswerHeaders):
        return _answer_kind(headers)
    known: tuple[bool, bool] | None = headers.notes.get(answer_kind)
    if known is None:
        known = headers.notes[answer_kind] = _answer_kind(headers)
    return known


def _answer_kind(headers: Headers) -> tuple[bool, bool]:
    stream = encoded = False
    for name, value in headers:
        if name == b"content-type":
            stream = value.startswith(b"text/event-stream")
        elif name == b"content-encoding":
            encoded = value != b"identity"
    return stream, encoded


def to_store(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Headers kept with a stored answer. One list for answers with the same head: not to be modified."""
    if not isinstance(headers, AnswerHeaders):
        return [header for header in headers if header[0] in _KEPT]
    known: list[tuple[bytes, bytes]] | None = headers.notes.get(to_store)
    if known is None:
        known = headers.notes[to_store] = [header for header in headers if header[0] in _KEPT]
    return known


def parent_of(traceparent: bytes | None) -> tuple[str, str] | None:
    """Trace id and parent span id from a W3C `traceparent`; None when it is missing or malformed."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None:
        return None
    trace_id, span_id = match[1].decode(), match[2].decode()
    return (trace_id, span_id) if trace_id.strip("0") and span_id.strip("0") else None


def _with_named(dropped: frozenset[bytes], headers: Headers) -> frozenset[bytes]:
    """The set, and what the connection header names besides."""
    for name, value in headers:
        if name == b"connection":
            dropped |= {part.strip().lower() for part in value.split(b",")}
    return dropped
