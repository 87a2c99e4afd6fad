"""The gateway's spans: one for each call it answers, written to the run without ever failing a call."""

import asyncio
import contextlib
import random
import sys
from collections.abc import Sequence

from paceline.accelerate.cost import cost_usd
from paceline.clock import Clock
from paceline.gateway.asked import Asked
from paceline.gateway.headers import parent_of
from paceline.model.span import (
    ATTEMPT,
    HTTP_CLIENT,
    HTTP_METHOD,
    HTTP_STATUS,
    LIMIT_REQUESTS_PER_MIN,
    LIMIT_TOKENS_PER_MIN,
    RETRY_AFTER_S,
    TTFT_S,
    URL_PATH,
    AttributeValue,
    Span,
)
from paceline.store.spool import Spool
from paceline.wire.openai import LLM, ReplyInfo, StreamReader, Usage, read_reply
from paceline.wire.tokens import estimate_tokens

TOKENS_ESTIMATED = "paceline.tokens_estimated"  # true: the provider gave no usage, these are ours
SAVED_USD = "paceline.saved_usd"  # what a hit or a join would have cost
FLUSH_S = 0.2
_READ_BYTES = 16 * 1024 * 1024  # of a plain answer; a larger one passes unread
_SERVICE = "gateway"
_LIMITS = {
    b"x-ratelimit-limit-requests": LIMIT_REQUESTS_PER_MIN,
    b"x-ratelimit-limit-tokens": LIMIT_TOKENS_PER_MIN,
}
_random = random.Random()


class SpanSink:
    """Takes spans and has them written in the background. A disk that refuses is reported once; serving goes on."""

    def __init__(self, spool: Spool | None) -> None:
        self._spool = spool
        self._warned = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin writing every FLUSH_S seconds; `close` ends it."""
        if self._spool is not None:
            self._task = asyncio.get_running_loop().create_task(self._write())

    def append(self, span: Span) -> None:
        """Keep a span for the next write."""
        if self._spool is not None:
            self._spool.append(span)

    async def close(self) -> None:
        """Write what is left."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._spool is not None:
            try:
                self._spool.close()
            except OSError as error:
                self._warn(error)

    async def _write(self) -> None:
        assert self._spool is not None  # noqa: S101 - `start` looked
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await asyncio.to_thread(self._spool.flush)
            except OSError as error:
                self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            print(f"paceline: spans cannot be written ({error.strerror or error}); serving goes on", file=sys.stderr)


class CallRecord:
    """What happens to one call, from its arrival to its end; `finish` writes the span, once."""

    __slots__ = (
        "_clock",
        "_first_ns",
        "_headers",
        "_parent",
        "_parts",
        "_path",
        "_reader",
        "_sent_ns",
        "_sink",
        "_start_ns",
        "asked",
        "attempts",
        "cost",
        "finished",
        "info",
        "kind",
        "method",
        "outcome",
        "queued",
        "retry_after_s",
        "status",
        "step",
    )

    def __init__(
        self, sink: SpanSink, clock: Clock, method: str, path: str, kind: str, traceparent: bytes | None
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._start_ns = clock.now_ns()
        self._parent = parent_of(traceparent)
        self._path = path
        self._sent_ns = self._first_ns = 0
        self._headers: Sequence[tuple[bytes, bytes]] = ()
        self._reader: StreamReader | None = None
        self._parts: list[bytes] | None = None
        self.method = method
        self.kind = kind
        self.step: str | None = None
        self.asked: Asked | None = None
        self.outcome = "bypass"
        self.attempts = 0
        self.queued = False  # it waited for a turn or for the provider's limit
        self.retry_after_s: float | None = None
        self.status = 0
        self.info = ReplyInfo()
        self.cost: float | None = None
        self.finished = False

    def sent(self) -> None:
        """An attempt goes to the provider."""
        self.attempts += 1
        self._sent_ns = self._clock.now_ns()

    def head(self, status: int, headers: Sequence[tuple[bytes, bytes]], *, stream: bool, encoded: bool) -> None:
        """The answer begins. What is compressed passes unread."""
        self.status = status
        self._headers = headers
        if self.asked is not None and status == 200 and not encoded:
            self._reader = StreamReader() if stream else None
            self._parts = None if stream else []

    def saw(self, data: bytes) -> None:
        """A piece of the answer's body passes."""
        if not self._first_ns:
            self._first_ns = self._clock.now_ns()
        if self._reader is not None:
            self._reader.feed(data)
        elif self._parts is not None:
            self._parts.append(data)

    def shared(self, outcome: str, status: int, cost: float | None) -> None:
        """It was answered from the cache ("hit") or by another's call ("join"), which cost `cost`."""
        self.outcome, self.status, self.cost = outcome, status, cost

    def finish(self, error: str | None = None) -> None:
        """The call is over; `error` says how it failed, when its status does not."""
        if self.finished:
            return
        self.finished = True
        if self._reader is not None:
            self.info = self._reader.result()
        elif self._parts is not None and sum(map(len, self._parts)) <= _READ_BYTES:
            self.info = read_reply(b"".join(self._parts), text=False)
        self._sink.append(self._span(self._clock.now_ns(), error))

    def _span(self, end_ns: int, error: str | None) -> Span:
        asked, own = self.asked, self.outcome not in ("hit", "join")
        attributes: dict[str, AttributeValue] = dict(asked.attributes) if asked is not None else {}
        usage = self._usage(attributes) if own else None
        cost = self._cost(usage) if own else 0.0
        if not own and self.cost is not None:
            attributes[SAVED_USD] = self.cost
        self._describe(attributes)
        if self.status >= 400 and error is None:
            error = str(self.status)
        model = asked.info.model if asked is not None else None
        trace_id, parent_id = self._parent or (f"{_random.getrandbits(128):032x}", None)
        return Span(
            trace_id=trace_id,
            span_id=f"{_random.getrandbits(64) | 1:016x}",
            parent_id=parent_id,
            name=asked.name if asked is not None else f"{self.method} {self._path}",
            kind=self.kind if asked is not None else HTTP_CLIENT,
            service=_SERVICE,
            start_ns=self._start_ns,
            duration_ns=end_ns - self._start_ns,
            wait_ns=max(0, (self._sent_ns or end_ns) - self._start_ns) if self.queued else 0,
            resource=f"provider:{model}" if self.queued else None,
            status="error" if error else "ok",
            error=error,
            code=self.step,
            fingerprint=asked.fingerprint if asked is not None else None,
            model=model,
            input_tokens=usage.input_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            cost_usd=cost,
            cache=self.outcome if asked is not None else None,
            attributes=attributes,
        )

    def _usage(self, attributes: dict[str, AttributeValue]) -> Usage | None:
        """Tokens of an answered call: the provider's count, else (streams without it, cut ones) our estimate."""
        if self.asked is None or self.status != 200 or self.info.usage is not None:
            return self.info.usage
        if self._reader is None and self._parts is None:
            return None
        attributes[TOKENS_ESTIMATED] = True
        output = estimate_tokens(self.info.text) if self.kind == LLM else 0
        return Usage(input_tokens=self.asked.info.input_tokens, output_tokens=output)

    def _cost(self, usage: Usage | None) -> float | None:
        if self.asked is None:
            return None
        if usage is None:  # providers do not bill what they refuse; without any answer nobody knows
            return 0.0 if self.status >= 400 and (self._headers or not self.attempts) else None
        self.cost = cost_usd(self.asked.info.model, usage)
        return self.cost

    def _describe(self, attributes: dict[str, AttributeValue]) -> None:
        attributes[URL_PATH] = self._path
        if self.asked is None:
            attributes[HTTP_METHOD] = self.method
        if self.status:
            attributes[HTTP_STATUS] = self.status
        if self._first_ns and self._reader is not None:
            attributes[TTFT_S] = (self._first_ns - self._sent_ns) / 1e9
        if self.attempts > 1:
            attributes[ATTEMPT] = self.attempts - 1
        if self.retry_after_s is not None:
            attributes[RETRY_AFTER_S] = self.retry_after_s
        for name, value in self._headers:
            if name in _LIMITS and value.isdigit():
                attributes[_LIMITS[name]] = int(value)
