"""The fleet level: what all machines share, in Redis. One client per event loop; no request waits for long."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from paceline.errors import ConfigError

from . import fleet_scripts as lua
from .breaker import Breaker
from .envelope import Opened, Sealer
from .fleet_events import FleetEvents
from .fleet_names import Names
from .fleet_reader import FleetReader
from .policy import FleetPolicy
from .selection import Selection
from .statistics import LevelCounts

_SLOW_S = 5.0  # limit of what no request waits for: telling invalidations, catching up
_MOST_WRITES = 1_000  # under way at once; more are dropped: a cache may forget
_MOST_WRITE_BYTES = 64_000_000


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
        self._sealer = sealer
        self._names = names = Names.of(policy.namespace)
        self._events = FleetEvents(
            policy,
            names,
            self.breaker,
            self.counts,
            broke=self._broke,
            failures=self._failures,
            hear=hear,
            epoch=epoch,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None
        self._reader: Any = None
        self._writes = 0
        self._write_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def epoch(self) -> int | None:
        """The number of the last invalidation heard; None: never connected."""
        return self._events.epoch

    @property
    def state(self) -> str:
        """ "up", or why it is not used."""
        if self.breaker.is_open:
            return f"down: {self.breaker.reason}"
        if self.epoch is None:
            return f"down: {self.breaker.reason}" if self.breaker.reason else "not connected yet"
        if self._events.unsent:
            return f"{len(self._events.unsent)} invalidations not told yet"
        return "up"

    async def ready(self) -> bool:
        """Connect where needed. False: leave it alone now. Waits for the first subscription, at most `timeout_s`."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._client = loop, self._make_client()
            pool = self._client.connection_pool
            self._reader = FleetReader(pool.make_connection, self.policy.connections, *self._wire_errors)
            self._writes = self._write_bytes = 0
            self._tasks = set()
            self._events.begin(self._client)
        tried = self._events.tried
        if not tried.is_set() and not await self._within(tried.wait()):
            tried.set()  # whoever comes next need not wait as well
        if self._events.unsent:
            self._events.flush_soon()
            return False
        return self.epoch is not None and self.breaker.allows()

    async def get(self, key: bytes, as_type: Any = None) -> tuple[Opened, bytes] | None:
        """What is stored under a key, fresh or not, and its envelope. To be asked when it is `ready`."""
        started_s = time.perf_counter()
        try:
            async with asyncio.timeout(self.policy.timeout_s):
                data = await self._reader.get(self._names.value + key)
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
        keys = [
            self._names.value,
            self._names.order,
            self._names.sizes,
            self._names.total,
            self._names.epoch,
            *(self._names.tag + tag for tag in tags),
        ]
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
                    between = await self._events.since(epoch or 0, int(answer[1]))
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
        arguments = (self._names.lease + key, self._names.epoch, token, int(self.policy.lease_s * 1000))
        answer = await self._ask(self._client.eval(lua.LEASE, 2, *arguments))
        try:
            return None if answer is None else (bool(answer[0]), int(answer[1]))
        except (TypeError, ValueError, IndexError):
            return None

    async def renew(self, key: bytes, token: bytes) -> bool:
        """Say that the holder lives. False: it is no longer the holder, or Redis is away."""
        if not await self.ready():
            return False
        arguments = (self._names.lease + key, token, int(self.policy.lease_s * 1000))
        return bool(await self._ask(self._client.eval(lua.RENEW, 1, *arguments)))

    async def release(self, key: bytes, token: bytes) -> None:
        """Give a lease back, even to a Redis that just failed: others wait for it. Where that fails it expires."""
        if self._loop is asyncio.get_running_loop():
            await self._ask(self._client.eval(lua.RELEASE, 1, self._names.lease + key, token))

    async def is_leased(self, key: bytes) -> bool:
        """True while some process holds the key's lease."""
        return await self.ready() and bool(await self._ask(self._client.exists(self._names.lease + key)))

    async def forget(self, selection: Selection) -> int:
        """Delete what is meant and tell every process; how many entries that was.

        While it cannot be told it is kept, this process does not read the level, and it is tried again.
        """
        self._events.add(selection)
        if self._loop is not asyncio.get_running_loop():
            await self.ready()
        if not self.breaker.allows():
            return 0
        return await self._events.flush()

    async def sizes(self) -> tuple[int | None, int | None]:
        """Entries and bytes, asked of Redis."""
        if not await self.ready():
            return None, None
        entries = await self._ask(self._client.zcard(self._names.order))
        size = await self._ask(self._client.get(self._names.total))
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
        await self._events.end()
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
