"""Attempt: one request due, and its bytes with a trace header of its own."""

import functools
import random
import struct
from collections.abc import Sequence
from typing import NamedTuple, cast

from paceline.load.address import Address
from paceline.load.scenario import Body
from paceline.store.rows import TRACE_STEP, Naming, RowSpool, trace_low
from paceline.wire.client import encode_request

_TRACEPARENT = "00-" + "0" * 32 + "-" + "0" * 16 + "-01"
_OURS = {"host", "content-length", "traceparent"}
_MOST_ENCODED = 20_000  # bodies remembered
_MARK_BYTES = 33  # the low half of the trace id, a hyphen, and the same again: it is the span id too


class Encoded:
    """One body as it goes on the wire; the mark of each request is put between `before` and `after`."""

    __slots__ = ("after", "before", "body", "is_short", "naming", "no_body", "wants_answer")

    def __init__(self, body: Body, naming: int, before: bytes, after: bytes) -> None:
        self.body, self.naming = body, naming
        self.before, self.after = before, after
        self.no_body = body.method == "HEAD"
        self.wants_answer = body.wants_answer
        self.is_short = not (self.no_body or self.wants_answer)  # its answer may be read the short way


class Attempt(NamedTuple):
    """One request that is due or under way. Times are seconds on time.monotonic()."""

    number: int  # its index in the scenario's sequence
    encoded: Encoded
    mark: bytes
    intended_s: float
    user: int  # -1: none
    started_s: float  # 0: not yet; a connection that the server had closed is replaced, and this is the first start


class Encoder:
    """Encodes each body once, numbers what its records share, and gives each request its mark."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._encoded: dict[int, Encoded] = {}  # by identity: hashing a body costs more
        draw = random.SystemRandom().getrandbits  # trace ids must differ between runs and processes
        self.trace_high = f"{draw(64) or 1:016x}"
        self.trace_base = draw(64)
        self._spool: RowSpool | None = None

    def record_in(self, spool: RowSpool) -> None:
        """Where namings are written; before that, requests cannot be recorded (warming up)."""
        self._spool = spool
        self._encoded.clear()

    def encode(self, body: Body) -> Encoded:
        """The encoded form of this very object. Raises ValueError for a header with a line break."""
        return self._encoded.get(id(body)) or self._add(body)

    def encode_all(self, bodies: Sequence[Body]) -> Sequence[Encoded]:
        """Of each, as `encode`; 0.05 us for one known."""
        found = list(map(self._encoded.get, map(id, bodies)))
        if None in found:
            return [self.encode(body) for body in bodies]
        return cast("list[Encoded]", found)

    def trace_id(self, index: int) -> str:
        """The trace id of a request."""
        return f"{self.trace_high}{trace_low(self.trace_base, index):016x}"

    def mark(self, index: int) -> bytes:
        """What tells this request from all others, as it goes on the wire."""
        return b"%016x-%016x" % ((trace_low(self.trace_base, index),) * 2)

    def marks(self, first: int, step: int, count: int) -> Sequence[bytes]:
        """The marks of `count` requests, every `step`-th from `first`: 0.1 us each where one alone costs 0.6."""
        import numpy as np

        indexes = np.arange(first, first + step * count, step, dtype=np.uint64)
        lows = indexes * np.uint64(TRACE_STEP) + np.uint64(self.trace_base)  # wraps, as trace_low does
        words = np.repeat(lows, 2).astype(">u8").tobytes().hex("-", 8).encode() + b"-"
        return _cutter(count).unpack(words)

    def _add(self, body: Body) -> Encoded:
        naming = 0
        if self._spool is not None:
            shared = Naming(endpoint=body.endpoint, key=body.key, text_key=body.text_key, request_bytes=len(body.data))
            naming = self._spool.name(shared)
        encoded = Encoded(body, naming, *self._split(body))
        if not body.once:
            if len(self._encoded) >= _MOST_ENCODED:
                self._encoded.clear()  # they hold their bodies, so none was freed and its id reused before
            self._encoded[id(body)] = encoded
        return encoded

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
        return before + f"00-{self.trace_high}".encode(), b"-01" + after


@functools.cache
def _cutter(count: int) -> struct.Struct:
    return struct.Struct(f"{_MARK_BYTES}sx" * count)
