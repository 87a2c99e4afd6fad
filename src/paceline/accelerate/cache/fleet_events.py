"""Invalidations of the fleet: told to every process through Redis, heard from the others, and caught up with."""

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from . import fleet_scripts as lua
from .breaker import Breaker
from .fleet_names import Names
from .policy import FleetPolicy
from .selection import EVERYTHING, Selection
from .statistics import LevelCounts

_LOGGED = 1_000  # invalidations Redis remembers for processes that were away
_MOST_UNSENT = 256  # invalidations kept while Redis is away; then one that means everything
_SLOW_S = 5.0  # limit of what no request waits for: telling invalidations, catching up
_SILENCE_S = 5.0  # after that long without an event, ask whether one was missed
_CHUNK = 1_000
_log = logging.getLogger(__name__)


class FleetEvents:
    """One process's part in them. `listen` is run for as long as a loop runs.

    Args:
        policy, names: As the level's.
        breaker, counts: The level's, which failures here count for as well.
        broke: What the level does when Redis fails.
        failures: What Redis raises.
        hear: Told invalidations others made, in order, and the number of the last.
        epoch: The number of the last invalidation this machine has heard; None: it never did. Then it is told
            EVERYTHING on connecting, if there have been any, because nobody knows what it missed.
    """

    def __init__(
        self,
        policy: FleetPolicy,
        names: Names,
        breaker: Breaker,
        counts: LevelCounts,
        *,
        broke: Callable[[BaseException], None],
        failures: tuple[type[BaseException], ...],
        hear: Callable[[list[Selection], int], None],
        epoch: int | None,
    ) -> None:
        self.policy, self.names = policy, names
        self.epoch = epoch  # the last invalidation heard; None: never connected
        self.unsent: deque[Selection] = deque()
        self.tried = asyncio.Event()  # the first subscription has succeeded, or failed
        self._breaker, self._counts = breaker, counts
        self._broke, self._failures, self._hear = broke, failures, hear
        self._client: Any = None
        self._listener: asyncio.Task[None] | None = None
        self._flusher: asyncio.Task[int] | None = None

    def begin(self, client: Any) -> None:
        """Listen in the running loop, through this client."""
        self._client, self._flusher, self.tried = client, None, asyncio.Event()
        self._listener = asyncio.get_running_loop().create_task(self._listen())  # cancelled by `end`

    async def end(self) -> None:
        """Leave."""
        for running in (self._listener, self._flusher):
            if running is not None:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    def add(self, selection: Selection) -> None:
        """To be told. Too many while Redis is away become one that means everything."""
        self.unsent.append(selection)
        if len(self.unsent) > _MOST_UNSENT:
            self.unsent.clear()
            self.unsent.append(Selection(id=os.urandom(8), everything=True))

    async def flush(self) -> int:
        """Tell what was not told; how many entries the last one meant."""
        count = 0
        while self.unsent:
            selection = self.unsent[0]
            try:
                async with asyncio.timeout(_SLOW_S):
                    count = await self._tell(selection)
            except self._failures as error:
                self._broke(error)
                return 0
            self._breaker.succeeded()
            with contextlib.suppress(ValueError):
                self.unsent.remove(selection)
        return count

    def flush_soon(self) -> None:
        """The same in the background."""
        if (self._flusher is None or self._flusher.done()) and self._breaker.allows():
            self._flusher = asyncio.get_running_loop().create_task(self.flush())

    async def since(self, epoch: int, last: int) -> list[Selection]:
        """The invalidations after `epoch`; everything, where Redis no longer knows them all."""
        told = await self._client.zrangebyscore(self.names.log, epoch + 1, last)
        if last < epoch or len(told) != last - epoch:
            return [EVERYTHING]
        return [Selection.decode(data[lua.NUMBER_BYTES :]) for data in told]

    # -- telling ----------------------------------------------------------------------------------------------------

    async def _tell(self, selection: Selection) -> int:
        # First the number: what is being computed from before is refused from here on. Then what is stored. The event
        # last, so that who hears it cannot read the old answer once more.
        told = selection.encode()
        epoch = int(await self._client.eval(lua.ANNOUNCE, 2, self.names.epoch, self.names.log, told, _LOGGED))
        count = await self._drop_meant(selection)
        await self._client.publish(self.names.channel, b"%016d" % epoch + told)
        return count

    async def _drop_meant(self, selection: Selection) -> int:
        if selection.everything:
            return await self._drop_everything(selection)
        keys = {key for key in selection.keys if selection.matches(key, ())}
        for tag in selection.tags:
            members = await self._client.zrange(self.names.tag + tag, 0, -1)
            keys.update(key for key in members if selection.matches(key, (tag,)))
        listed = list(keys)
        return sum([await self._drop(listed[at : at + _CHUNK]) for at in range(0, len(listed), _CHUNK)])

    async def _drop_everything(self, selection: Selection) -> int:
        start = count = 0
        while members := await self._client.zrange(self.names.order, start, start + _CHUNK - 1):
            meant = [key for key in members if selection.matches(key, ())]
            count += await self._drop(meant)
            start += len(members) - len(meant)
        return count

    async def _drop(self, keys: list[bytes]) -> int:
        if not keys:
            return 0
        names = (self.names.value, self.names.order, self.names.sizes, self.names.total)
        return int(await self._client.eval(lua.DROP, len(names), *names, *keys))

    # -- hearing ----------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Hear the invalidations of others for as long as the loop runs, through every loss of the connection."""
        pause_s = self.policy.retry_s
        while True:
            try:
                async with self._client.pubsub(ignore_subscribe_messages=True) as pubsub:
                    async with asyncio.timeout(_SLOW_S):
                        await pubsub.subscribe(self.names.channel)
                        await self._catch_up()
                    self.tried.set()
                    pause_s = self.policy.retry_s
                    while True:
                        message = await pubsub.get_message(timeout=_SILENCE_S)
                        await self._take(message)
            except Exception as error:  # noqa: BLE001 - whatever it is, listening must go on
                _log.debug("the fleet's invalidations are not heard", exc_info=True)
                self._counts.errors += 1
                if not self.tried.is_set():
                    self._breaker.failed(str(error))
                    self.tried.set()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 30.0)

    async def _take(self, message: dict[str, Any] | None) -> None:
        if message is not None and self.epoch is not None:
            number, told = int(message["data"][: lua.NUMBER_BYTES]), message["data"][lua.NUMBER_BYTES :]
            if number <= self.epoch + 1:  # one already caught up with too: the answer may have been read in between
                self.epoch = max(number, self.epoch)
                self._hear([Selection.decode(told)], self.epoch)
                return
        async with asyncio.timeout(_SLOW_S):
            await self._catch_up()

    async def _catch_up(self) -> None:
        """Hear what was told while nobody listened here."""
        if self.unsent:
            await self.flush()
        epoch = int(await self._client.get(self.names.epoch) or 0)
        if self.epoch is None:
            self._hear([EVERYTHING] if epoch else [], epoch)  # 0: nobody has ever invalidated anything
        elif epoch != self.epoch:
            self._hear(await self.since(self.epoch, epoch), epoch)
        self.epoch = epoch
