"""CallRecord: what happens to one call on its way through the layer, told once to whoever listens."""

from collections.abc import Callable, Sequence

import msgspec

from paceline.accelerate.asked import Asked, input_tokens
from paceline.accelerate.caller import Caller
from paceline.accelerate.cost import cost_usd
from paceline.accelerate.routing.taken import RouteTaken
from paceline.clock import Clock
from paceline.wire.call import COUNT, LLM, ReplyInfo, StreamReader, Usage
from paceline.wire.http import HttpRequest
from paceline.wire.tokens import estimate_tokens

_READ_BYTES = 16 * 1024 * 1024  # of a plain answer; a larger one passes unread
_NOTHING_SAID = ReplyInfo()

Listener = Callable[["CallRecord"], None]


class Tape:
    """The request as it came and the answer's bytes, of a call that is recorded with them."""

    __slots__ = ("pieces", "request")

    def __init__(self, request: HttpRequest) -> None:
        self.request = request
        self.pieces: list[bytes] = []


class CallRecord(msgspec.Struct, eq=False):
    """One call, from its arrival to its end. `finish` works out usage and cost and tells the listener, once.

    Times are ticks of the clock, in nanoseconds; 0: it did not come to that. A Struct, for every call makes one.
    """

    _listener: Listener
    clock: Clock
    method: str
    path: str
    kind: str  # of the model call; "" for anything else
    traceparent: bytes | None  # W3C, as the caller sent it
    start_ns: int  # when it came
    caller: Caller | None = None
    priority: int = 0  # in queues; higher goes first
    step: str | None = None
    asked: Asked | None = None  # None: not a model call
    outcome: str = "bypass"  # "hit", "join", "miss" where answers are shared; "refresh": made anew for nobody
    level: str | None = None  # of the cache that had the answer
    tape: Tape | None = None  # where calls are recorded with their answers
    taken: RouteTaken | None = None  # where the call went; None: nowhere
    attempts: int = 0
    queued: bool = False  # it waited for a turn or for the provider's limit
    retry_after_s: float | None = None  # what the provider last asked for
    status: int = 0
    headers: Sequence[tuple[bytes, bytes]] = ()  # of the provider's answer
    info: ReplyInfo = _NOTHING_SAID
    usage: Usage | None = None
    usage_estimated: bool = False  # the provider gave no usage, this is our estimate
    cost_usd: float | None = None  # None: unknown; 0 for what the provider was not asked
    saved_usd: float | None = None  # what a hit or a join would have cost
    error: str | None = None  # how it failed: "upstream_timeout", "client_closed", "429"; None: it did not
    sent_ns: int = 0
    first_ns: int = 0
    end_ns: int = 0
    finished: bool = False
    streamed: bool = False  # its answer came, readable, as a stream of events
    _is_readable: bool = False  # the answer is one of a model call, and not compressed
    _reader: StreamReader | None = None  # of a stream
    _parts: list[bytes] | None = None  # of any other answer

    @property
    def started_unix_ns(self) -> int:
        """When it came, since the Unix epoch."""
        return self.clock.unix_ns(self.start_ns)

    def sent(self) -> None:
        """An attempt goes to the provider."""
        self.attempts += 1
        self.sent_ns = self.clock.ticks_ns()

    def head(self, status: int, headers: Sequence[tuple[bytes, bytes]], *, stream: bool, encoded: bool) -> None:
        """The answer begins. What is compressed passes unread."""
        self.status = status
        self.headers = headers
        if self.asked is not None and status == 200 and not encoded:
            self._is_readable = True
            self.streamed = stream
            if stream:
                self._reader = self.asked.dialect.stream_reader()
            else:
                self._parts = []

    def saw(self, data: bytes) -> None:
        """A piece of the answer's body passes."""
        if self.tape is not None:
            self.tape.pieces.append(data)
        if not self.first_ns:
            self.first_ns = self.clock.ticks_ns()
        if self._reader is not None:
            self._reader.feed(data)
        elif self._parts is not None:
            self._parts.append(data)

    def joined(self, status: int, cost_usd: float | None, level: str | None) -> None:
        """It was answered by another's call, which cost that much; or by what that found in a level of the cache."""
        self.outcome, self.status, self.saved_usd, self.level = "join", status, cost_usd, level

    def hit(self, status: int, cost_usd: float | None, level: str) -> None:
        """It was answered from a level of the cache, which spared that much, and is over."""
        self.finished = True
        self.outcome, self.status, self.saved_usd, self.level = "hit", status, cost_usd, level
        self.cost_usd = 0.0
        self.end_ns = self.clock.ticks_ns()
        self._listener(self)

    def answered(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes, *, encoded: bool) -> None:
        """All of a plain answer is here, and the call over: `head`, `saw` and `finish` in one."""
        if self.finished:
            return
        self.finished = True
        self.status = status
        self.headers = headers
        if self.tape is not None:
            self.tape.pieces.append(body)
        self.first_ns = self.end_ns = self.clock.ticks_ns()
        if self.asked is not None and status == 200 and not encoded:
            self._is_readable = True
            if len(body) <= _READ_BYTES:
                self.info = self.asked.dialect.read_reply(body, text=False)
        self._close(None)

    def finish(self, error: str | None = None) -> None:
        """The call is over; `error` says how it failed, when its status does not."""
        if self.finished:
            return
        self.finished = True
        if self._reader is not None:
            self.info = self._reader.result()
        elif self._parts and sum(map(len, self._parts)) <= _READ_BYTES:
            assert self.asked is not None  # noqa: S101 - `head` looked
            self.info = self.asked.dialect.read_reply(b"".join(self._parts), text=False)
        self.end_ns = self.clock.ticks_ns()
        self._close(error)

    def _close(self, error: str | None) -> None:
        if self.outcome == "join":
            self.cost_usd = 0.0
        else:
            usage = self.info.usage
            self.usage_estimated |= self.info.usage_partial
            self.usage = usage if usage is not None and self.kind != COUNT else self._usage()
            self.cost_usd = self._cost()
            if self.caller is not None:
                self.caller.charge(self.usage, self.cost_usd)
        if error is None and self.status >= 400:
            error = str(self.status)
        self.error = error
        self._listener(self)

    def _usage(self) -> Usage | None:
        """Tokens of an answered call: the provider's count, else (streams without it, cut ones) our estimate."""
        if self.kind == COUNT:
            return None
        if self.asked is None or self.status != 200 or self.info.usage is not None:
            return self.info.usage
        if not self._is_readable:
            return None
        self.usage_estimated = True
        output = estimate_tokens(self.info.text) if self.kind == LLM else 0
        return Usage(input_tokens=input_tokens(self.asked), output_tokens=output)

    def _cost(self) -> float | None:
        if self.asked is None:
            return None
        if self.kind == COUNT:  # free with all providers
            return 0.0
        if self.usage is None:  # providers do not bill what they refuse; without any answer nobody knows
            return 0.0 if self.status >= 400 and (self.headers or not self.attempts) else None
        asked, taken = self.asked, self.taken
        model = taken.model if taken is not None and taken.model is not None else asked.info.model
        cost = cost_usd(model, self.usage, asked.dialect.price_provider, answered_by=self.info.model)
        if cost is None or taken is None:
            return cost
        return None if taken.wasted_unknown else cost + taken.wasted_usd  # what was given up is billed, too
