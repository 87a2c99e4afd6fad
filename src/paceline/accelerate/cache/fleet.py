"""The fleet level: what all machines share, in Redis. One client per event loop; no request waits for long."""

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from paceline.errors import ConfigError

from . import fleet_scripts as lua
from .breaker import Breaker
from .envelope import Opened, Sealer
from .fleet_reader import FleetReader
from .policy import FleetPolicy
from .selection import EVERYTHING, Selection
from .statistics import LevelCounts

_LOGGED = 1_000  # invalidations Redis remembers for processes that were away
_MOST_UNSENT = 256  # invalidations kept while Redis is away; then one that means everything
_SLOW_S = 5.0  # limit of what no request waits for: telling invalidations, catching up
_SILENCE_S = 5.0  # after that long without an event, ask whether one was missed
_CHUNK = 1_000
_MOST_WRITES = 1_000  # under way at once; more are dropped: a cache may forget
_MOST_WRITE_BYTES = 64_000_000
_log = logging.getLogger(__name__)


class FleetLevel:
    """Envelopes in Redis. Whatever goes wrong makes misses, counted as errors, never an exception.

    Args:
        policy: Where and how.
        sealer: Opens what is read.
        hear: Told invalidations others made, in order, and the number of the last.
        epoch: The number of the last invalidation this machine has heard; None: it never did. Then it is told
            EVERYTHING on connecting, if there have been any, because nobody knows what it missed.
    """

    def __init__(
        self,
        policy: FleetPolicy,
        sealer: Sealer,
        hear: Callable[[list[Selection], int], None],
        epoch: int | None = None,
    ) -> None:
        try:  # optional
            import redis.asyncio
            import redis.exceptions
        except ImportError as error:
            msg = "the fleet level of the cache needs the redis package: pip install 'paceline[redis]'"
            raise ConfigError(msg) from error
        self._failures = (redis.exceptions.RedisError, OSError, TimeoutError, ValueError, AssertionError)
        self._wire_errors = (redis.exceptions.ConnectionError, redis.exceptions.ResponseError)
        self._make_client = _client_maker(policy)
        self.policy = policy
        self.counts = LevelCounts()
        self.breaker = Breaker(policy.failures, policy.retry_s)
        self.entries: int | None = None  # as of our last write
        self.bytes: int | None = None
        self.epoch = epoch  # the last invalidation heard; None: never connected
        self._sealer = sealer
        self._hear = hear
        self._unsent: deque[Selection] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None
        self._reader: Any = None
        self._listener: asyncio.Task[None] | None = None
        self._flusher: asyncio.Task[int] | None = None
        self._tried = asyncio.Event()
        self._writes = 0
        self._write_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        names = "{" + policy.namespace + "}:"
        self._value = (names + "v:").encode()
        self._lease = (names + "l:").encode()
        self._tag = (names + "t:").encode()
        self._order, self._sizes, self._total, self._epoch, self._log = (
            (names + part).encode() for part in ("order", "sizes", "bytes", "epoch", "log")
        )
        self._channel = names + "events"

    @property
    def state(self) -> str:
        """ "up", or why it is not used."""
        if self.breaker.is_open:
            return f"down: {self.breaker.reason}"
        if self.epoch is None:
            return f"down: {self.breaker.reason}" if self.breaker.reason else "not connected yet"
        if self._unsent:
            return f"{len(self._unsent)} invalidations not told yet"
        return "up"

    async def ready(self) -> bool:
        """Connect where needed. False: leave it alone now. Waits for the first subscription, at most `timeout_s`."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._client = loop, self._make_client()
            pool = self._client.connection_pool
            self._reader = FleetReader(pool.make_connection, self.policy.connections, *self._wire_errors)
            self._flusher = None
            self._writes = self._write_bytes = 0
            self._tasks = set()
            self._tried = asyncio.Event()
            self._listener = loop.create_task(self._listen())
        if not self._tried.is_set() and not await self._within(self._tried.wait()):
            self._tried.set()  # whoever comes next need not wait as well
        if self._unsent:
            self._flush_soon()
            return False
        return self.epoch is not None and self.breaker.allows()

    async def get(self, key: bytes, as_type: Any = None) -> tuple[Opened, bytes] | None:
        """What is stored under a key, fresh or not, and its envelope. To be asked when it is `ready`."""
        started_s = time.perf_counter()
        try:
            async with asyncio.timeout(self.policy.timeout_s):
                data = await self._reader.get(self._value + key)
        except self._failures as error:
            self._broke(error)
            return None
        self.breaker.succeeded()
        self.counts.latency.record(time.perf_counter() - started_s)
        if data is None:
            return None
        found = self._sealer.open(key, data, as_type) if type(data) is bytes else None
        if found is None:
            self.counts.unreadable += 1
            return None
        self.counts.read_bytes += len(data)
        return found, data

    def put(
        self, key: bytes, envelope: bytes, life_s: float, tags: tuple[bytes, ...], epoch: int | None
    ) -> Awaitable[None] | None:
        """Begin to store an envelope. `epoch`: as `lease` gave it before its making began."""
        too_much = self._writes >= _MOST_WRITES or self._write_bytes + len(envelope) > _MOST_WRITE_BYTES
        if too_much or life_s < 0.001:
            self.counts.dropped += 1
            return None
        self._writes += 1
        self._write_bytes += len(envelope)
        task = asyncio.get_running_loop().create_task(self._put(key, envelope, life_s, tags, epoch))

        def over(_: object) -> None:
            self._writes = max(0, self._writes - 1)
            self._write_bytes = max(0, self._write_bytes - len(envelope))

        task.add_done_callback(over)
        self.keep(task)
        return task

    def keep(self, task: asyncio.Task[None]) -> None:
        """Finish that before closing."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _put(
        self, key: bytes, envelope: bytes, life_s: float, tags: tuple[bytes, ...], epoch: int | None
    ) -> None:
        if not await self.ready():
            return
        keys = [self._value, self._order, self._sizes, self._total, self._epoch, *(self._tag + tag for tag in tags)]
        for _ in range(3):
            arguments = (key, envelope, int(life_s * 1000), "" if epoch is None else epoch, self.policy.max_bytes or 0)
            try:
                async with asyncio.timeout(max(_SLOW_S, self.policy.timeout_s)):
                    answer = await self._client.eval(lua.PUT, len(keys), *keys, *arguments)
                    if answer[0]:
                        self.entries, self.bytes = int(answer[1]), int(answer[2])
                        self.counts.puts += 1
                        self.counts.written_bytes += len(envelope)
                        self.breaker.succeeded()
                        return
                    between = await self._since(epoch or 0, int(answer[1]))
            except (*self._failures, TypeError, IndexError) as error:
                self._broke(error)
                return
            if any(selection.matches(key, tags) for selection in between):
                return
            epoch = int(answer[1])
        self.counts.dropped += 1

    async def lease(self, key: bytes, token: bytes) -> tuple[bool, int] | None:
        """Take the fleet's lease of a key, and the number of the last invalidation. None: there is no lease to take."""
        if not await self.ready():
            return None
        arguments = (self._lease + key, self._epoch, token, int(self.policy.lease_s * 1000))
        answer = await self._ask(self._client.eval(lua.LEASE, 2, *arguments))
        try:
            return None if answer is None else (bool(answer[0]), int(answer[1]))
        except (TypeError, ValueError, IndexError):
            return None

    async def renew(self, key: bytes, token: bytes) -> bool:
        """Say that the holder lives. False: it is no longer the holder, or Redis is away."""
        if not await self.ready():
            return False
        arguments = (self._lease + key, token, int(self.policy.lease_s * 1000))
        return bool(await self._ask(self._client.eval(lua.RENEW, 1, *arguments)))

    async def release(self, key: bytes, token: bytes) -> None:
        """Give a lease back, even to a Redis that just failed: others wait for it. Where that fails it expires."""
        if self._loop is asyncio.get_running_loop():
            await self._ask(self._client.eval(lua.RELEASE, 1, self._lease + key, token))

    async def is_leased(self, key: bytes) -> bool:
        """True while some process holds the key's lease."""
        return await self.ready() and bool(await self._ask(self._client.exists(self._lease + key)))

    async def forget(self, selection: Selection) -> int:
        """Delete what is meant and tell every process; how many entries that was.

        While it cannot be told it is kept, this process does not read the level, and it is tried again.
        """
        self._unsent.append(selection)
        if len(self._unsent) > _MOST_UNSENT:
            self._unsent.clear()
            self._unsent.append(Selection(id=os.urandom(8), everything=True))
        if self._loop is not asyncio.get_running_loop():
            await self.ready()
        if not self.breaker.allows():
            return 0
        return await self._flush()

    async def sizes(self) -> tuple[int | None, int | None]:
        """Entries and bytes, asked of Redis."""
        if not await self.ready():
            return None, None
        entries = await self._ask(self._client.zcard(self._order))
        size = await self._ask(self._client.get(self._total))
        with contextlib.suppress(TypeError, ValueError):
            self.entries, self.bytes = int(entries), max(0, int(size or 0))
        return self.entries, self.bytes

    async def close(self) -> None:
        """Finish what is being written, within 5 s, and end the subscription and the connections."""
        if self._loop is not asyncio.get_running_loop():
            return  # the loop they belong to is gone, and they with it
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_SLOW_S)
            for task in late:
                task.cancel()
        for running in (self._listener, self._flusher):
            if running is not None:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        self._loop, client, self._client = None, self._client, None
        await self._within(self._reader.close())
        await self._within(client.aclose())

    async def _ask(self, command: Awaitable[Any]) -> Any:
        """The answer of one command that a request waits for; None: it failed."""
        try:
            async with asyncio.timeout(self.policy.timeout_s):
                answer = await command
        except self._failures as error:
            self._broke(error)
            return None
        self.breaker.succeeded()
        return answer

    async def _within(self, work: Awaitable[Any]) -> bool:
        """Wait for something, at most `timeout_s`; True: it came."""
        try:
            async with asyncio.timeout(self.policy.timeout_s):
                await work
        except self._failures as error:
            self._broke(error)
            return False
        return True

    def _broke(self, error: BaseException) -> None:
        self.counts.errors += 1
        slow = isinstance(error, TimeoutError)
        self.breaker.failed(f"no answer within {self.policy.timeout_s:g} s" if slow else str(error))

    async def _flush(self) -> int:
        """Tell what was not told; how many entries the last one meant."""
        count = 0
        while self._unsent:
            selection = self._unsent[0]
            try:
                async with asyncio.timeout(_SLOW_S):
                    count = await self._tell(selection)
            except self._failures as error:
                self._broke(error)
                return 0
            self.breaker.succeeded()
            with contextlib.suppress(ValueError):
                self._unsent.remove(selection)
        return count

    def _flush_soon(self) -> None:
        if (self._flusher is None or self._flusher.done()) and self.breaker.allows():
            self._flusher = asyncio.get_running_loop().create_task(self._flush())

    async def _tell(self, selection: Selection) -> int:
        # First the number: what is being computed from before is refused from here on. Then what is stored. The event
        # last, so that who hears it cannot read the old answer once more.
        told = selection.encode()
        epoch = int(await self._client.eval(lua.ANNOUNCE, 2, self._epoch, self._log, told, _LOGGED))
        count = await self._drop_meant(selection)
        await self._client.publish(self._channel, b"%016d" % epoch + told)
        return count

    async def _drop_meant(self, selection: Selection) -> int:
        if selection.everything:
            return await self._drop_everything(selection)
        keys = {key for key in selection.keys if selection.matches(key, ())}
        for tag in selection.tags:
            members = await self._client.zrange(self._tag + tag, 0, -1)
            keys.update(key for key in members if selection.matches(key, (tag,)))
        listed = list(keys)
        return sum([await self._drop(listed[at : at + _CHUNK]) for at in range(0, len(listed), _CHUNK)])

    async def _drop_everything(self, selection: Selection) -> int:
        start = count = 0
        while members := await self._client.zrange(self._order, start, start + _CHUNK - 1):
            meant = [key for key in members if selection.matches(key, ())]
            count += await self._drop(meant)
            start += len(members) - len(meant)
        return count

    async def _drop(self, keys: list[bytes]) -> int:
        if not keys:
            return 0
        names = (self._value, self._order, self._sizes, self._total)
        return int(await self._client.eval(lua.DROP, len(names), *names, *keys))

    async def _listen(self) -> None:
        """Hear the invalidations of others for as long as the loop runs, through every loss of the connection."""
        pause_s = self.policy.retry_s
        while True:
            try:
                async with self._client.pubsub(ignore_subscribe_messages=True) as pubsub:
                    async with asyncio.timeout(_SLOW_S):
                        await pubsub.subscribe(self._channel)
                        await self._catch_up()
                    self._tried.set()
                    pause_s = self.policy.retry_s
                    while True:
                        message = await pubsub.get_message(timeout=_SILENCE_S)
                        await self._take(message)
            except Exception as error:  # noqa: BLE001 - whatever it is, listening must go on
                _log.debug("the fleet's invalidations are not heard", exc_info=True)
                self.counts.errors += 1
                if not self._tried.is_set():
                    self.breaker.failed(str(error))
                    self._tried.set()
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
        if self._unsent:
            await self._flush()
        epoch = int(await self._client.get(self._epoch) or 0)
        if self.epoch is None:
            self._hear([EVERYTHING] if epoch else [], epoch)  # 0: nobody has ever invalidated anything
        elif epoch != self.epoch:
            self._hear(await self._since(self.epoch, epoch), epoch)
        self.epoch = epoch

    async def _since(self, epoch: int, last: int) -> list[Selection]:
        """The invalidations after `epoch`; everything, where Redis no longer knows them all."""
        told = await self._client.zrangebyscore(self._log, epoch + 1, last)
        if last < epoch or len(told) != last - epoch:
            return [EVERYTHING]
        return [Selection.decode(data[lua.NUMBER_BYTES :]) for data in told]


def _client_maker(policy: FleetPolicy) -> Callable[[], Any]:
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    def make() -> Any:
        pool = BlockingConnectionPool.from_url(
            policy.url,
            max_connections=policy.connections,
            timeout=policy.timeout_s,
            protocol=2,
            socket_timeout=None,  # every command has its own limit around it
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
        )
        return Redis.from_pool(pool)

    try:
        make()
    except ValueError as error:
        msg = f"cache.fleet.url is wrong: {error}"
        raise ConfigError(msg) from error
    return make
