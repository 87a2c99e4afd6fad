"""HandOver: a body that arrives in the loop and is read in another thread, a bounded amount ahead."""

import asyncio
from queue import SimpleQueue

from paceline.accelerate.transport.background import LoopThread
from paceline.accelerate.transport.binding import Source
from paceline.errors import UpstreamBroken

_AHEAD_BYTES = 256 * 1024  # taken from the source before the reader has asked for them


class HandOver:
    """The reader's side; made in the loop, where a task of its own takes from the source."""

    def __init__(self, source: Source, thread: LoopThread) -> None:
        self._source = source
        self._thread = thread
        self._queue: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
        # Each number has one writer: the loop, and the reader.
        self._put_bytes = self._taken_bytes = 0
        self._is_full = False
        self._room: asyncio.Future[None] | None = None
        self._over = False
        self._task = thread.loop.create_task(self._feed())
        thread.own(self._task)

    def __iter__(self) -> "HandOver":
        return self

    def __next__(self) -> bytes:
        """The next piece; blocks. Raises what the source raised, UpstreamBroken when the transport is closed."""
        if self._over:
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, bytes):
            self._taken_bytes += len(item)
            if self._is_full:
                self._thread.post(self._make_room)
            return item
        self._over = True
        if item is None:
            raise StopIteration
        if isinstance(item, asyncio.CancelledError):
            msg = "the transport was closed before the answer was complete"
            raise UpstreamBroken(msg, target="") from item
        raise item

    def close(self) -> None:
        """Give up what has not been read."""
        if not self._over:
            self._over = True
            self._thread.post(self._task.cancel)

    async def _feed(self) -> None:
        end: BaseException | None = None
        try:
            async for piece in self._source:
                self._queue.put(piece)
                self._put_bytes += len(piece)
                if self._put_bytes - self._taken_bytes > _AHEAD_BYTES:
                    await self._wait_for_room()
        except Exception as error:  # noqa: BLE001 - whatever it was, it is the reader's to handle
            end = error
        except asyncio.CancelledError as error:
            end = error
            raise
        finally:
            try:
                await self._source.aclose()
            finally:
                self._queue.put(end)

    async def _wait_for_room(self) -> None:
        self._room = self._thread.loop.create_future()
        self._is_full = True  # from here on the reader tells us; what it took before shows in the next line
        try:
            if self._put_bytes - self._taken_bytes > _AHEAD_BYTES // 2:
                await self._room
        finally:
            self._is_full = False
            self._room = None

    def _make_room(self) -> None:
        half_empty = self._put_bytes - self._taken_bytes <= _AHEAD_BYTES // 2
        if half_empty and self._room is not None and not self._room.done():
            self._room.set_result(None)
