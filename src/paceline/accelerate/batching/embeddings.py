"""EmbeddingBatcher: embedding calls that come within a few milliseconds become one call to the provider."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from paceline.accelerate.batching.joining import EmbeddingCall, join, joined_headers, read_embedding, split
from paceline.accelerate.batching.policy import BatchPolicy
from paceline.wire.http import Headers, HttpRequest, Reply

Send = Callable[[HttpRequest], Awaitable[Reply]]

# The batch as a whole cannot be read or is too long: one input of one caller may be the cause.
_REFUSALS = (400, 413, 422)
_OF_THE_BODY = (b"content-length", b"content-encoding", b"transfer-encoding")


class BatchStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the start."""

    calls: int  # that could be joined
    batches: int  # sent, of two calls or more
    batched_calls: int  # that got their answer from one
    lone_calls: int  # that found no company
    resent_calls: int  # sent again alone because their batch was refused or its answer could not be read
    waiting: int  # now, for their window to end
    in_flight: int  # batches, now


@dataclass(eq=False, slots=True)
class _Caller:
    request: HttpRequest
    call: EmbeddingCall
    key: tuple[object, ...]
    answer: asyncio.Future[Reply | None]  # None: send it alone


@dataclass(eq=False, slots=True)
class _Batch:
    callers: list[_Caller] = field(default_factory=list)
    inputs: int = 0
    tokens: int = 0
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None  # once it is sent


class EmbeddingBatcher:
    """Joins embedding calls of one tenant, model and set of parameters. Stands before whatever sends requests.

    A call that finds no company within the window goes as it came, and so does everything that is no embedding call.
    An error of the provider goes to each caller of the batch, but for one that says the request itself is wrong: then
    each call is sent alone, so that only the one at fault fails. A caller that leaves is missed by nobody; when all of
    them have left, the batch is cancelled. At most `policy.max_inputs` and `max_tokens` are held in one batch, a call
    above them is not held at all.

    `send` raises what it likes: each caller of the batch gets it. `close` cancels what is under way.
    """

    def __init__(self, send: Send, policy: BatchPolicy | None = None) -> None:
        self._send = send
        self._policy = policy or BatchPolicy(enabled=True)
        self._open: dict[tuple[object, ...], _Batch] = {}
        self._sent: set[_Batch] = set()
        self._calls = self._batches = self._batched = self._lone = self._resent = 0

    async def handle(self, request: HttpRequest, tenant: bytes = b"") -> Reply:
        """Answer one request. Cancelling it leaves the batch to the others.

        Calls whose credentials differ are never joined; `tenant` keeps apart callers who share the provider's key.
        """
        policy = self._policy
        call = read_embedding(request) if policy.enabled else None
        if call is None or len(call.inputs) >= policy.max_inputs or call.tokens >= policy.max_tokens:
            return await self._send(request)
        self._calls += 1
        caller = _Caller(request, call, (tenant, *call.key), asyncio.get_running_loop().create_future())
        batch = self._joined(caller)
        try:
            reply = await caller.answer
        finally:
            self._leave(batch, caller)
        return reply if reply is not None else await self._send(request)

    def statistics(self) -> BatchStatistics:
        """How often calls found company."""
        return BatchStatistics(
            calls=self._calls,
            batches=self._batches,
            batched_calls=self._batched,
            lone_calls=self._lone,
            resent_calls=self._resent,
            waiting=sum(len(batch.callers) for batch in self._open.values()),
            in_flight=len(self._sent),
        )

    async def close(self) -> None:
        """Cancel everything under way and wait until it is; callers still waiting get ConnectionError."""
        for key in list(self._open):
            batch = self._open.pop(key)
            if batch.timer is not None:
                batch.timer.cancel()
            _fail(batch, ConnectionError("the batcher was closed"))
        tasks = [batch.task for batch in self._sent if batch.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _joined(self, caller: _Caller) -> _Batch:
        """Put a call into the batch of its kind; sends it when it is full."""
        key, call, policy = caller.key, caller.call, self._policy
        batch = self._open.get(key)
        if batch is not None and (
            batch.inputs + len(call.inputs) > policy.max_inputs or batch.tokens + call.tokens > policy.max_tokens
        ):
            self._flush(key)
            batch = None
        if batch is None:
            batch = self._open[key] = _Batch()
            batch.timer = asyncio.get_running_loop().call_later(policy.window_s, self._flush, key)
        batch.callers.append(caller)
        batch.inputs += len(call.inputs)
        batch.tokens += call.tokens
        if batch.inputs == policy.max_inputs or batch.tokens == policy.max_tokens:
            self._flush(key)
        return batch

    def _flush(self, key: tuple[object, ...]) -> None:
        """The window has ended, or the batch is full."""
        batch = self._open.pop(key)
        if batch.timer is not None:
            batch.timer.cancel()
        if len(batch.callers) == 1:
            self._lone += 1
            self._answer(batch.callers, [None])  # its caller sends it, as it came
            return
        self._batches += 1
        self._sent.add(batch)
        batch.task = asyncio.get_running_loop().create_task(self._run(batch))  # cancelled by its last caller or `close`

    def _leave(self, batch: _Batch, caller: _Caller) -> None:
        batch.callers.remove(caller)
        if batch.task is not None:
            if not batch.callers:
                batch.task.cancel()
            return
        batch.inputs -= len(caller.call.inputs)
        batch.tokens -= caller.call.tokens
        if not batch.callers and self._open.get(caller.key) is batch:
            del self._open[caller.key]
            if batch.timer is not None:
                batch.timer.cancel()

    async def _run(self, batch: _Batch) -> None:
        """Send a batch and give each caller its part."""
        callers = list(batch.callers)
        try:
            await self._ask(callers)
        except asyncio.CancelledError:
            _fail(batch, ConnectionError("the batched call was given up"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, it is the callers' to handle
            _fail(batch, error)
        finally:
            self._sent.discard(batch)

    async def _ask(self, callers: list[_Caller]) -> None:
        calls = [caller.call for caller in callers]
        first = callers[0].request
        request = HttpRequest("POST", calls[0].target, joined_headers(first.headers), join(calls), peer=first.peer)
        reply = await self._send(request)
        body = await _whole(reply)
        if reply.status != 200 and reply.status not in _REFUSALS:
            self._batched += len(callers)
            self._answer(callers, [Reply(reply.status, reply.headers, body)] * len(callers))
            return
        try:
            if reply.status != 200:
                raise ValueError
            bodies = split(calls, body)
        except ValueError:  # msgspec.DecodeError is one
            self._resent += len(callers)
            self._answer(callers, [None] * len(callers))
            return
        self._batched += len(callers)
        headers: Headers = [header for header in reply.headers if header[0] not in _OF_THE_BODY]
        headers = [*headers, (b"x-paceline-batch", b"%d" % len(callers))]
        self._answer(callers, [Reply(200, headers, part) for part in bodies])

    @staticmethod
    def _answer(callers: list[_Caller], replies: "list[Reply] | list[None] | list[Reply | None]") -> None:
        for caller, reply in zip(callers, replies, strict=True):
            if not caller.answer.done():  # gone
                caller.answer.set_result(reply)


def _fail(batch: _Batch, error: Exception) -> None:
    for caller in batch.callers:
        if not caller.answer.done():
            caller.answer.set_exception(error)


async def _whole(reply: Reply) -> bytes:
    """The body; an iterator is read to its end and closed."""
    body = reply.body
    if isinstance(body, bytes):
        return body
    if isinstance(body, list):
        return b"".join(body)
    try:
        return b"".join([piece async for piece in body])
    finally:
        close = getattr(body, "aclose", None)
        if close is not None:
            await close()
