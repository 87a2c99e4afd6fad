"""The gateway's spans: one for each call it answers, written to the run without ever failing a call."""

import asyncio
import contextlib
import random
import sys

from paceline.accelerate.headers import parent_of
from paceline.accelerate.record import CallRecord
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

TOKENS_ESTIMATED = "paceline.tokens_estimated"  # true: the provider gave no usage, these are ours
SAVED_USD = "paceline.saved_usd"  # what a hit or a join would have cost
FLUSH_S = 0.2
_SERVICE = "gateway"
_LIMITS = {
    b"x-ratelimit-limit-requests": LIMIT_REQUESTS_PER_MIN,
    b"x-ratelimit-limit-tokens": LIMIT_TOKENS_PER_MIN,
}
_random = random.Random()


class SpanSink:
    """Has the spans of calls written in the background. A disk that refuses is reported once; serving goes on."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._warned = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin writing every FLUSH_S seconds; `close` ends it."""
        self._task = asyncio.get_running_loop().create_task(self._write())

    def take(self, record: CallRecord) -> None:
        """Keep a finished call's span for the next write."""
        self._spool.append(span_of(record))

    async def close(self) -> None:
        """Write what is left."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        try:
            self._spool.close()
        except OSError as error:
            self._warn(error)

    async def _write(self) -> None:
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


def span_of(record: CallRecord) -> Span:
    """The span of a finished call."""
    asked, usage = record.asked, record.usage
    model = asked.info.model if asked is not None else None
    trace_id, parent_id = parent_of(record.traceparent) or (f"{_random.getrandbits(128):032x}", None)
    return Span(
        trace_id=trace_id,
        span_id=f"{_random.getrandbits(64) | 1:016x}",
        parent_id=parent_id,
        name=asked.name if asked is not None else f"{record.method} {record.path}",
        kind=record.kind if asked is not None else HTTP_CLIENT,
        service=_SERVICE,
        start_ns=record.started_unix_ns,
        duration_ns=record.end_ns - record.start_ns,
        wait_ns=max(0, (record.sent_ns or record.end_ns) - record.start_ns) if record.queued else 0,
        resource=f"provider:{model}" if record.queued else None,
        status="error" if record.error else "ok",
        error=record.error,
        code=record.step,
        fingerprint=asked.fingerprint if asked is not None else None,
        model=model,
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        cached_tokens=usage.cached_tokens if usage else None,
        cost_usd=record.cost_usd,
        cache=record.outcome if asked is not None else None,
        attributes=_attributes(record),
    )


def _attributes(record: CallRecord) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = dict(record.asked.attributes) if record.asked is not None else {}
    attributes[URL_PATH] = record.path
    if record.usage_estimated:
        attributes[TOKENS_ESTIMATED] = True
    if record.saved_usd is not None:
        attributes[SAVED_USD] = record.saved_usd
    if record.asked is None:
        attributes[HTTP_METHOD] = record.method
    if record.status:
        attributes[HTTP_STATUS] = record.status
    if record.first_ns and record.streamed:
        attributes[TTFT_S] = (record.first_ns - record.sent_ns) / 1e9
    if record.attempts > 1:
        attributes[ATTEMPT] = record.attempts - 1
    if record.retry_after_s is not None:
        attributes[RETRY_AFTER_S] = record.retry_after_s
    for name, value in record.headers:
        if name in _LIMITS and value.isdigit():
            attributes[_LIMITS[name]] = int(value)
    return attributes
