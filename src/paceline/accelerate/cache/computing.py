"""Computing: one computation of an answer that several callers of this process wait for."""

import asyncio
from collections.abc import Collection, Coroutine
from contextvars import ContextVar
from typing import Any

from .lease import Lease

computing: ContextVar[frozenset[bytes]] = ContextVar("paceline_cache_computing", default=frozenset())


class Flight:
    """A computation under way, in a task of its own: a caller that goes away does not take it from the others.

    When the last caller has gone it is cancelled. A refresh in the background has no callers and runs to its end.
    """

    __slots__ = ("_background", "_waiting", "lease", "loop", "tags", "task")

    def __init__(self, work: Coroutine[Any, Any, Any], tags: Collection[bytes], *, background: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.tags = tags
        self.lease: Lease | None = None
        self.task = self.loop.create_task(work)
        self.task.add_done_callback(_retrieved)
        self._background = background
        self._waiting = 0

    async def result(self) -> Any:
        """The answer, or what computing it raised."""
        self._waiting += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self._waiting -= 1
            if not self._waiting and not self._background:
                self.task.cancel()  # nothing happens when it is over


def _retrieved(task: asyncio.Task[Any]) -> None:
    """An exception that no caller waited for is not asyncio's to complain about."""
    if not task.cancelled():
        task.exception()
