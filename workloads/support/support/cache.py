"""Caches: answers by question in memory and in Redis, values by key, and work in flight that is shared."""

import asyncio
import logging
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from support.replies import Reply
from support.settings import Settings

log = logging.getLogger("support")

T = TypeVar("T")
REDIS_TIMEOUT_S = 0.5
REDIS_PAUSE_S = 5.0  # without trying again after an error


def raw_key(message: str) -> str:
    """The message as it came."""
    return message


def text_key(message: str) -> str:
    """The message in lower case, runs of punctuation and white space as one space."""
    kept = (
        c if unicodedata.category(c)[0] in "LNM" else " " for c in unicodedata.normalize("NFKC", message).casefold()
    )
    return " ".join("".join(kept).split())


KEYS: dict[str, Callable[[str], str]] = {"raw": raw_key, "text": text_key}


class AnswerCache:
    """The least recently used answers in memory, for `cache_ttl_s`."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.key = KEYS[settings.cache_key]
        self._entries = settings.cache_entries
        self._ttl_s = settings.cache_ttl_s * settings.time_scale
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, Reply]] = OrderedDict()

    def get(self, key: str) -> Reply | None:
        """The answer kept under `key`."""
        expires, reply = self._kept.get(key, (0.0, None))
        if reply is None or expires < self._clock():
            return None
        self._kept.move_to_end(key)
        return reply

    def put(self, key: str, reply: Reply) -> None:
        """Keep an answer, at the price of the one not asked for longest."""
        self._kept[key] = (self._clock() + self._ttl_s, reply)
        self._kept.move_to_end(key)
        if len(self._kept) > self._entries:
            self._kept.popitem(last=False)


class RedisLevel:
    """The second level, shared between processes. Without a Redis that answers it holds nothing, and never fails."""

    def __init__(self, url: str, ttl_s: float) -> None:
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._down_until = 0.0
        self._redis = Redis.from_url(url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S)

    async def get(self, key: str) -> Reply | None:
        """The answer kept under `key`."""
        found = await self._try(lambda: self._redis.get(f"answer:{key}"))
        return Reply.from_json(found) if found else None

    async def put(self, key: str, reply: Reply) -> None:
        """Keep an answer for the time to live."""
        await self._try(lambda: self._redis.set(f"answer:{key}", reply.to_json(), px=self._ttl_ms))

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _try(self, call: Callable[[], Awaitable[Any]]) -> Any:
        if time.monotonic() < self._down_until:
            return None
        try:
            return await call()
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("redis does not answer, doing without for %g s: %r", REDIS_PAUSE_S, error)
            self._down_until = time.monotonic() + REDIS_PAUSE_S
            return None


class Flights(Generic[T]):
    """Work in progress by key, so that whoever asks for the same meanwhile waits instead of doing it again."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[T]] = {}

    def of(self, key: str) -> asyncio.Task[T] | None:
        """The work in progress for `key`."""
        return self._tasks.get(key)

    def start(self, key: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin `work`. It goes on when those who wait for it are gone; await it through `asyncio.shield`."""
        task = asyncio.create_task(work)
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None))
        return task


class Memo(Generic[T]):
    """Values by key, the least recently used dropped; with 0 entries it keeps nothing."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._kept: OrderedDict[str, T] = OrderedDict()
        self._flights: Flights[T] = Flights()

    async def get(self, key: str, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The value kept under `key`, made now if there is none."""
        if not self._entries:
            return await make()
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = await asyncio.shield(self._flights.of(key) or self._flights.start(key, make()))
        self._kept[key] = value
        if len(self._kept) > self._entries:
            self._kept.popitem(last=False)
        return value
