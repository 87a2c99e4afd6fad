"""Pending: something under way that needs no task while it goes well.

Who waits for it may be called when it is ready (`on_ready`), or await it. What went well is there as `value`; anything
else has to be awaited, and what is left to do is done then, by whoever awaits.
"""

import asyncio
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class Pending(Generic[T]):
    """A value that comes by a callback, or failing that by awaiting. Await it once, or `cancel` it.

    Whoever makes one calls `_ready` or `_fail` once, from the event loop. Cancelled before it is awaited, or while it
    is, it holds nothing any more.
    """

    # Of the class until they differ: every call makes one of these, and an `__init__` would be called for nothing else.
    value: T | None = None  # where it went well
    _error: Exception | None = None
    _is_ready = False
    _tell: Callable[[], None] | None = None

    def on_ready(self, tell: Callable[[], None]) -> None:
        """Call `tell` once it is ready: in the same moment when it is already."""
        if self._is_ready:
            tell()
        else:
            self._tell = tell

    def cancel(self) -> None:
        """Nobody wants it any more: give back what it holds. `_ready` is not heard of any more."""
        self._tell = None

    def __await__(self) -> Generator[object, None, T]:
        return self._outcome().__await__()

    async def _rest(self) -> T:
        """What is left to do when it is ready without a value."""
        raise NotImplementedError

    def _ready(self, value: T | None = None) -> None:
        self.value = value
        self._is_ready = True
        tell = self._tell
        if tell is not None:
            self._tell = None
            tell()

    def _fail(self, error: Exception) -> None:
        """Whoever awaits it gets this."""
        self._error = error
        self._ready()

    async def _outcome(self) -> T:
        if not self._is_ready:
            waiter = asyncio.get_running_loop().create_future()

            def wake() -> None:
                if not waiter.done():
                    waiter.set_result(None)

            self._tell = wake
            try:
                await waiter
            except BaseException:
                self.cancel()
                raise
        if self._error is not None:
            raise self._error
        return self.value if self.value is not None else await self._rest()
