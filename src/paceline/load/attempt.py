"""Attempt: one request on the wire, from the moment it is due to its Request record."""

import asyncio
import random
import re
import time
from collections.abc import Callable, Sequence

from paceline.load.pool import Address, Pool
from paceline.load.scenario import Body, Scenario
from paceline.model.request import Request
from paceline.wire.client import Connection, encode_request
from paceline.wire.sse import SseParser

TIMEOUT, CONNECTION, STATUS = "timeout", "connection", "status"
_TRACEPARENT = "00-" + "0" * 32 + "-" + "0" * 16 + "-01"
_OURS = {"host", "content-length", "traceparent"}
_CACHE_WORD = re.compile(rb"\b(hit|miss|join)\b", re.IGNORECASE)
_ids = random.Random()  # not seeded: trace ids must differ between runs


class Encoder:
    """Bytes of a body's request, encoded once, with a fresh trace header each time."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._encoded: dict[int, tuple[Body, bytes, bytes]] = {}  # by identity: hashing a body costs more

    def encode(self, body: Body) -> tuple[str, bytes]:
        """The trace id and the whole request. Raises ValueError for a header with a line break."""
        found = self._encoded.get(id(body))
        if found is None:
            found = self._encoded[id(body)] = (body, *self._split(body))
        _, before, after = found
        trace_id = f"{_ids.getrandbits(128):032x}"
        parent = f"00-{trace_id}-{_ids.getrandbits(64):016x}-01"
        return trace_id, before + parent.encode() + after

    def _split(self, body: Body) -> tuple[bytes, bytes]:
        headers = {"accept": "*/*", "user-agent": "paceline-load", "traceparent": _TRACEPARENT}
        host = self._address.authority
        for name, value in body.headers:
            if name.lower() == "host":
                host = value
            elif name.lower() not in _OURS:
                headers[name.lower()] = value
        pairs = [(name.encode("latin-1"), value.encode()) for name, value in headers.items()]
        data = encode_request(body.method, self._address.prefix + body.path, host, pairs, body.data)
        before, _, after = data.partition(_TRACEPARENT.encode())
        return before, after


class Attempt:
    """One request: the exchange on a connection, its timer, and what was seen. Reports itself once to `done`.

    Times are seconds on time.monotonic(). Failures are data: nothing here raises.
    """

    __slots__ = (
        "_cache_names",
        "_connection",
        "_data",
        "_done",
        "_events",
        "_last_event_s",
        "_pool",
        "_retry",
        "_timer",
        "body",
        "cache",
        "ended_s",
        "error",
        "first_byte_s",
        "gaps_s",
        "index",
        "intended_s",
        "response_bytes",
        "started_s",
        "status",
        "trace_id",
        "user",
    )

    def __init__(
        self,
        index: int,
        body: Body,
        intended_s: float,
        user: int | None,
        *,
        cache_names: Sequence[bytes],
        done: "Callable[[Attempt], None]",
    ) -> None:
        self.index, self.body, self.intended_s, self.user = index, body, intended_s, user
        self.started_s = self.ended_s = 0.0
        self.first_byte_s: float | None = None
        self.status: int | None = None
        self.error: str | None = None
        self.cache: str | None = None
        self.response_bytes = 0
        self.gaps_s: list[float] = []
        self.trace_id = ""
        self._cache_names = cache_names
        self._done = done
        self._data = b""
        self._events: SseParser | None = None
        self._last_event_s: float | None = None
        self._connection: Connection | None = None
        self._retry = False

    def send(self, pool: Pool, encoder: Encoder, timeout_s: float) -> None:
        """Ask the pool for a connection and start the clock of the time limit."""
        self._pool = pool
        self.trace_id, self._data = encoder.encode(self.body)
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self.give_up, TIMEOUT)
        pool.submit(self)

    def give_up(self, error: str) -> None:
        """End it now as a failure of this kind, wherever it is."""
        self.error = self.error or error
        if self._connection is not None:
            self._connection.abort()  # ends the exchange: on_done
        elif not self.ended_s:
            self._pool.withdraw(self)
            self._finish(None)

    # --- Job: called by the pool ---------------------------------------------------------------------------------

    def begin(self, connection: Connection, *, reused: bool) -> None:
        """Send on this connection."""
        self._connection = connection
        # Only a connection that was idle can have been closed under us, and only once in a row.
        self._retry = reused and not self.started_s
        self.started_s = self.started_s or time.monotonic()
        connection.start(self._data, self)

    def refuse(self, error: Exception) -> None:
        """No connection could be opened."""
        self.started_s = time.monotonic()
        self._finish(error)

    # --- Exchange: called by the connection ----------------------------------------------------------------------

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Status, whether it streams, and what the cache says."""
        self.status = status
        found: dict[bytes, bytes] = {}
        for name, value in headers:
            if name == b"content-type":
                if value.startswith(b"text/event-stream"):
                    self._events = SseParser()
            elif name in self._cache_names:
                found[name] = value
        for name in self._cache_names:
            if name in found:
                word = _CACHE_WORD.search(found[name])
                self.cache = word[1].decode().lower() if word else None
                return

    def on_body(self, data: bytes) -> None:
        """First byte, size, and the gaps between streamed events (0 for events that arrive together)."""
        now_s = time.monotonic()
        if self.first_byte_s is None:
            self.first_byte_s = now_s
        self.response_bytes += len(data)
        if self._events is None:
            return
        for event in self._events.feed(data):
            if event == b"[DONE]":
                continue
            if self._last_event_s is not None:
                self.gaps_s.append(now_s - self._last_event_s)
            self._last_event_s = now_s

    def on_done(self, error: Exception | None, reusable: bool) -> None:
        """Whole, or broken; a kept-alive connection that the server closed under us is replaced, as any client does."""
        connection, self._connection = self._connection, None
        assert connection is not None  # noqa: S101 - an exchange has one
        self._pool.release(connection, reusable=reusable)
        if error is not None and self._retry and not connection.answered and self.error is None:
            self._pool.drop_idle()
            self._pool.submit(self)
            return
        self._finish(error)

    def _finish(self, error: Exception | None) -> None:
        self._timer.cancel()
        self.ended_s = time.monotonic()
        self.started_s = self.started_s or self.ended_s
        if self.error is None:
            if error is not None:
                self.error = CONNECTION
            elif self.status is not None and self.status >= 400:
                self.error = STATUS
        self._done(self)

    def record(self, scenario: Scenario, zero_s: float) -> Request:
        """The Request record; `zero_s` is the start of the run on time.monotonic()."""
        return Request(
            index=self.index,
            scenario=scenario.name,
            endpoint=self.body.endpoint,
            trace_id=self.trace_id,
            intended_s=self.intended_s - zero_s,
            started_s=self.started_s - zero_s,
            first_byte_s=None if self.first_byte_s is None else self.first_byte_s - zero_s,
            ended_s=self.ended_s - zero_s,
            status=self.status,
            error=self.error,
            request_bytes=len(self.body.data),
            response_bytes=self.response_bytes,
            cache=self.cache,
            key=self.body.key,
            text_key=self.body.text_key,
            user=self.user,
            gaps_s=self.gaps_s,
        )
