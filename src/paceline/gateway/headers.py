"""Which headers pass the gateway, and which are between it and its neighbour only."""

import re
from collections.abc import Sequence

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
_REWRITTEN = _HOP_BY_HOP | {b"host", b"content-length", b"expect"}
_OWN_PREFIX = b"x-paceline-"
# Of a stored answer: what describes the body. Limits, dates, cookies and request ids belong to the call that made it.
_KEPT = frozenset({b"content-type", b"content-language", b"openai-model", b"openai-version"})
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def to_upstream(headers: Headers, *, readable: bool) -> list[tuple[bytes, bytes]]:
    """Headers for the provider: everything but hop-by-hop ones and our own.

    `readable`: ask for an answer that is not compressed, so that its usage can be read as it passes.
    """
    dropped = _REWRITTEN | _named_by_connection(headers)
    if readable:
        dropped |= {b"accept-encoding"}
    kept = [(n, v) for n, v in headers if n not in dropped and not n.startswith(_OWN_PREFIX)]
    return [*kept, (b"accept-encoding", b"identity")] if readable else kept


def to_client(headers: Headers, outcome: bytes, *, length: bool) -> list[tuple[bytes, bytes]]:
    """Headers for the caller, with the cache's outcome; `length`: the content-length still holds."""
    dropped = _HOP_BY_HOP | _named_by_connection(headers)
    if not length:
        dropped |= {b"content-length"}
    return [*((n, v) for n, v in headers if n not in dropped), (b"x-paceline-cache", outcome)]


def to_store(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Headers kept with a stored answer."""
    return [(name, value) for name, value in headers if name in _KEPT]


def is_event_stream(headers: Headers) -> bool:
    """True for an answer of server-sent events."""
    return any(n == b"content-type" and v.startswith(b"text/event-stream") for n, v in headers)


def parent_of(traceparent: bytes | None) -> tuple[str, str] | None:
    """Trace id and parent span id from a W3C `traceparent`; None when it is missing or malformed."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None:
        return None
    trace_id, span_id = match[1].decode(), match[2].decode()
    return (trace_id, span_id) if trace_id.strip("0") and span_id.strip("0") else None


def _named_by_connection(headers: Headers) -> set[bytes]:
    return {part.strip().lower() for name, value in headers if name == b"connection" for part in value.split(b",")}
