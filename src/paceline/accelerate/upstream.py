"""Sending a call to the provider: through its gate, again after a 429 the policy absorbs, watched as it passes."""

import asyncio
import time

from paceline.accelerate.headers import is_event_stream, to_upstream
from paceline.accelerate.limiter import Gate, Limiter, retry_after_s
from paceline.accelerate.policy import Policy
from paceline.accelerate.record import CallRecord
from paceline.errors import Overloaded, UpstreamBroken, UpstreamError, UpstreamTimeout
from paceline.wire.call import decode_object
from paceline.wire.client import ClientReply, HttpClient
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.openai import error_body

_BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)  # between attempts when a 429 does not say how long
_WHOLE_BYTES = 4 * 1024 * 1024
_JSON = (b"content-type", b"application/json")


class Answer:
    """The provider's answer: status, headers, and the body as an iterator that records what passes.

    Its slot and connection are held until it is exhausted or `aclose`d.
    """

    def __init__(self, reply: ClientReply, record: CallRecord, gate: Gate | None, body: bytes | None = None) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self.stream = is_event_stream(reply.headers)
        encoded = (reply.header(b"content-encoding") or b"identity") != b"identity"
        self._reply = reply
        self._record = record
        self._gate = gate
        self._body = body  # read already
        self._over = False
        record.head(reply.status, reply.headers, stream=self.stream, encoded=encoded)

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> bytes:
        """The next piece; UpstreamError where the provider broke off."""
        if self._body is not None:
            data, self._body = self._body, None
            return data
        try:
            data = await self._reply.__anext__()
        except StopAsyncIteration:
            self._end(None)
            raise
        except UpstreamError as error:
            self._end(error_name(error))
            raise
        self._record.saw(data)
        return data

    @property
    def is_small(self) -> bool:
        """True when it is worth taking whole before a byte is sent on: then a broken one becomes a clean 502."""
        length = self._reply.header(b"content-length")
        return int(length) <= _WHOLE_BYTES if length is not None else self._record.asked is not None

    async def whole(self) -> bytes:
        """The whole body; UpstreamError when it breaks off or is larger than the client's limit."""
        if self._body is not None:
            self._end(None)
            return self._body
        try:
            body = await self._reply.read()
        except BaseException as error:
            self._end(error_name(error))
            raise
        self._record.saw(body)
        self._end(None)
        return body

    async def aclose(self) -> None:
        """Give up what has not arrived."""
        self._reply.close()
        self._end("client_closed")

    def _end(self, error: str | None) -> None:
        if not self._over:
            self._over = True
            if self._gate is not None:
                self._gate.leave()
            self._record.finish(error)


class Upstream:
    """The provider behind its limiter."""

    def __init__(self, client: HttpClient, policy: Policy, *, speed: float = 1.0) -> None:
        """`speed`: a simulated provider runs that many times faster than the limits it states."""
        self.client = client
        self.limiter = Limiter(policy.concurrency, policy.retry_429)
        self._policy = policy
        self._speed = speed

    async def send(self, request: HttpRequest, record: CallRecord) -> Answer:
        """Send and wait for the head. Raises UpstreamTimeout, UpstreamBroken, Overloaded; then nothing is held."""
        asked = record.asked
        gate = self.limiter.gate(asked.tenant, asked.info.model or "") if asked is not None else None
        headers = to_upstream(request.headers, readable=asked is not None)
        target, body = (asked.target, asked.body) if asked is not None else (request.target, request.body)
        if gate is None:
            record.sent()
            reply = await self.client.request(request.method, target, headers, body)
            return Answer(reply, record, None)
        ticket, start_s = gate.ticket(), asyncio.get_running_loop().time()
        while True:
            await self._enter(gate, ticket, start_s, record)
            try:
                record.sent()
                reply = await self.client.request(request.method, target, headers, body)
                if reply.status != 429 or not self._policy.retry_429.enabled:
                    gate.accepted()
                    return Answer(reply, record, gate)
                refusal = await reply.read()
            except BaseException:
                gate.leave()
                raise
            if not self._absorb(reply, refusal, gate, record, start_s):
                return Answer(reply, record, gate, refusal)
            gate.leave()

    async def _enter(self, gate: Gate, ticket: int, start_s: float, record: CallRecord) -> None:
        retries = self._policy.retry_429
        # A first turn may wait as long as the queue allows; coming again after a 429 is bounded by what is left.
        allowed_s = retries.max_wait_s if record.attempts or not self._limited else self._policy.concurrency.max_wait_s
        before_s = asyncio.get_running_loop().time()
        await gate.enter(ticket, start_s + allowed_s)
        record.queued |= asyncio.get_running_loop().time() - before_s > 0.0005

    @property
    def _limited(self) -> bool:
        return self._policy.concurrency.limit is not None or bool(self._policy.concurrency.models)

    def _absorb(self, reply: ClientReply, refusal: bytes, gate: Gate, record: CallRecord, start_s: float) -> bool:
        """Hold the gate as the 429 asks. False: the caller has to see it (no quota left, or too long a wait)."""
        wait_s = retry_after_s(reply.headers, time.time())
        record.retry_after_s = wait_s
        error = (decode_object(refusal) or {}).get("error")
        if isinstance(error, dict) and error.get("code") == "insufficient_quota":
            return False
        if reply.header(b"x-should-retry") == b"false":
            return False
        if wait_s is None:
            wait_s = _BACKOFF_S[min(record.attempts, len(_BACKOFF_S)) - 1] / self._speed
        per_min = reply.header(b"x-ratelimit-limit-requests")
        gate.hold(wait_s, int(per_min) * self._speed if per_min and per_min.isdigit() else None)
        record.queued = True
        waited_s = asyncio.get_running_loop().time() - start_s
        return waited_s + wait_s <= self._policy.retry_429.max_wait_s


def error_name(error: BaseException) -> str:
    """How a span calls it."""
    match error:
        case asyncio.CancelledError():
            return "client_closed"
        case UpstreamTimeout():
            return "upstream_timeout"
        case UpstreamBroken():
            return "upstream_broken"
        case Overloaded():
            return "429"
    return type(error).__name__


def error_reply(error: Exception, outcome: bytes) -> Reply:
    """What the caller gets when there is no answer from the provider: 504, 502 or 429, worded as OpenAI does."""
    headers = [_JSON, (b"x-paceline-cache", outcome)]
    if isinstance(error, Overloaded):
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
        return Reply(429, headers, error_body(429, str(error), code="gateway_overloaded"))
    status = 504 if isinstance(error, UpstreamTimeout) else 502
    code = "upstream_timeout" if status == 504 else "upstream_error"
    return Reply(status, headers, error_body(status, f"the model server failed: {error}", code=code))
