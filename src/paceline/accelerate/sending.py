"""Sending: one call to the provider, alone or as part of a batch of embeddings."""

from collections.abc import Awaitable, Callable

from paceline.accelerate.asked import Asked, AskedReader
from paceline.accelerate.batching.embeddings import EmbeddingBatcher
from paceline.accelerate.batching.policy import BatchPolicy
from paceline.accelerate.directives import read_directives
from paceline.accelerate.record import CallRecord
from paceline.accelerate.routing.answer import Answer
from paceline.accelerate.routing.begun import Begun
from paceline.accelerate.routing.send import Dispatcher
from paceline.accelerate.routing.taken import RouteTaken
from paceline.clock import Clock
from paceline.wire.call import EMBEDDING
from paceline.wire.http import HttpRequest, Reply


class Sender:
    """Sends calls by way of the dispatcher; joins embeddings where the policy says so."""

    def __init__(self, dispatcher: Dispatcher, reader: AskedReader, policy: BatchPolicy, clock: Clock) -> None:
        self.dispatcher = dispatcher
        # Asks the provider; see `Dispatcher.send`.
        self.send: Callable[[HttpRequest, CallRecord], Sent] = self._send if policy.enabled else dispatcher.send
        self.batcher = EmbeddingBatcher(self._send_joined, policy) if policy.enabled else None
        self._reader = reader
        self._clock = clock

    async def close(self) -> None:
        """Cancel the batches under way; their callers get ConnectionError."""
        if self.batcher is not None:
            await self.batcher.close()

    def _send(self, request: HttpRequest, record: CallRecord) -> "Sent":
        if self.batcher is not None and record.asked is not None and record.kind == EMBEDDING:
            return self._send_part(self.batcher, request, record.asked, record)
        return self.dispatcher.send(request, record)

    async def _send_part(
        self, batcher: EmbeddingBatcher, request: HttpRequest, asked: Asked, record: CallRecord
    ) -> "PartOfBatch":
        record.taken = RouteTaken()
        record.sent()
        routed = HttpRequest(request.method, asked.target, request.headers, asked.body)
        return PartOfBatch(await batcher.handle(routed, asked.tenant), record)

    async def _send_joined(self, request: HttpRequest) -> Reply:
        """Several callers' calls in one, which is nobody's: each caller's own record counts its part."""
        said = read_directives(request.method, request.target, request.headers)
        record = CallRecord(_nobody, self._clock, request.method, said.path, said.kind, None, self._clock.ticks_ns())
        if said.dialect is not None:
            record.asked = self._reader.read(said, request.target, request.body)
        answer = await self.dispatcher.send(request, record)
        return Reply(answer.status, answer.headers, await answer.whole())


class PartOfBatch:
    """One caller's part of a batch's answer, in the form of an `Answer`."""

    stream = False
    is_small = True

    def __init__(self, reply: Reply, record: CallRecord) -> None:
        assert isinstance(reply.body, bytes)  # noqa: S101 - the batcher reads answers whole
        self.status = reply.status
        self.headers = list(reply.headers)
        self._body: bytes | None = reply.body
        self._record = record
        encoded = any(name == b"content-encoding" and value != b"identity" for name, value in reply.headers)
        record.head(reply.status, reply.headers, stream=False, encoded=encoded)

    def __aiter__(self) -> "PartOfBatch":
        return self

    async def __anext__(self) -> bytes:
        """The body, once."""
        if self._body is None:
            self._record.finish()
            raise StopAsyncIteration
        return await self.whole()

    async def whole(self) -> bytes:
        """The body."""
        body, self._body = self._body or b"", None
        self._record.saw(body)
        self._record.finish()
        return body

    async def aclose(self) -> None:
        """Nothing is held."""


Sent = Begun | Awaitable[Answer | PartOfBatch]


def _nobody(record: CallRecord) -> None:
    """Hears of a call and does nothing."""
