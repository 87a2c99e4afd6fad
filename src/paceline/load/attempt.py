"""Attempt: one request due, and its bytes with a trace header of its own."""

import random
from typing import NamedTuple

from paceline.load.address import Address
from paceline.load.scenario import Body
from paceline.store.rows import TRACE_STEP, Naming, RowSpool, trace_low
from paceline.wire.client import encode_request

_TRACEPARENT = "00-" + "0" * 32 + "-" + "0" * 16 + "-01"
_OURS = {"host", "content-length", "traceparent"}
_MASK = (1 << 64) - 1
_MOST_ENCODED = 20_000  # bodies remembered


class Encoded:
    """One body as it goes on the wire; the trace header is put between `_before` and `_after`."""

    __slots__ = ("_after", "_base", "_before", "body", "is_short", "naming", "no_body", "wants_answer")

    def __init__(self, body: Body, naming: int, trace_base: int, before: bytes, after: bytes) -> None:
        self.body, self.naming = body, naming
        self._base = trace_base
        self._before, self._after = before, after
        self.no_body = body.method == "HEAD"
        self.wants_answer = body.wants_answer
        self.is_short = not (self.no_body or self.wants_answer)  # its answer may be read the short way

    def data(self, number: int) -> bytes:
        """The whole request; the low half of its trace id is its span id too."""
        low = b"%016x" % ((self._base + number * TRACE_STEP) & _MASK)  # trace_low without the call
        return b"".join((self._before, low, b"-", low, self._after))


class Attempt(NamedTuple):
    """One request that is due or under way. Times are seconds on time.monotonic()."""

    number: int  # its index in the scenario's sequence
    encoded: Encoded
    intended_s: float
    user: int  # -1: none
    started_s: float  # 0: not yet; a connection that the server had closed is replaced, and this is the first start


class Encoder:
    """Encodes each body once, and numbers what its records share."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self.encoded: dict[int, Encoded] = {}  # by identity: hashing a body costs more
        draw = random.SystemRandom().getrandbits  # trace ids must differ between runs and processes
        self.trace_high = f"{draw(64) or 1:016x}"
        self.trace_base = draw(64)
        self._spool: RowSpool | None = None

    def record_in(self, spool: RowSpool) -> None:
        """Where namings are written; before that, requests cannot be recorded (warming up)."""
        self._spool = spool
        self.encoded.clear()

    def encode(self, body: Body) -> Encoded:
        """The encoded form of this very object. Raises ValueError for a header with a line break."""
        return self.encoded.get(id(body)) or self._add(body)

    def trace_id(self, index: int) -> str:
        """The trace id of a request."""
        return f"{self.trace_high}{trace_low(self.trace_base, index):016x}"

    def _add(self, body: Body) -> Encoded:
        naming = 0
        if self._spool is not None:
            shared = Naming(endpoint=body.endpoint, key=body.key, text_key=body.text_key, request_bytes=len(body.data))
            naming = self._spool.name(shared)
        encoded = Encoded(body, naming, self.trace_base, *self._split(body))
        if not body.once:
            if len(self.encoded) >= _MOST_ENCODED:
                self.encoded.clear()  # they hold their bodies, so none was freed and its id reused before
            self.encoded[id(body)] = encoded
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
