"""Cache: answers kept in memory, on the host and in the fleet, computed once however many ask at once."""

import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any, TypeVar, overload

from .computations import Computations, Work
from .decorate import Cached
from .envelope import MOST_TAGS
from .keys import KEY_BYTES, Key, name_of, named_key, partition_of, pattern_of, tag_id
from .lease import Lease
from .leases import Leases
from .levels import Found, Levels, Question, pattern_key
from .memory import Entry, MemoryLevel
from .policy import MEMORY, CachePolicy
from .recurrence import Advice
from .selection import Selection, selected, several
from .statistics import Statistics
from .values import copy_of

T = TypeVar("T")
_MEMO, _MEMO_NAME_BYTES = 16_384, 256


class Cache:
    """Answers by tenant and key, in the levels of a policy. One per process; for one event loop at a time.

    Close it when done: `async with Cache(...) as cache`, or `await cache.close()`.

    Args:
        policy: Which levels; the default is memory alone.
        now_s: Unix seconds; tests pass a fake.
        draw: Uniform numbers in [0, 1), for early refresh.

    Raises:
        ConfigError: a level needs a library that is not installed, or its settings are wrong.
    """

    def __init__(
        self,
        policy: CachePolicy | None = None,
        *,
        now_s: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.policy = policy or CachePolicy()
        self._now_s = now_s
        self._levels = levels = Levels(self.policy, now_s, draw)
        self._leases = Leases(levels)
        # As `lease`, among the processes of this host and at once: all there is to ask where `asks_far` is False.
        self.lease_here: Callable[[bytes], Lease | None] = self._leases.take_here
        self._computations = Computations(levels, self._leases, self.policy.wait_s)
        levels.on_invalidated = self._computations.forget
        first = levels.memory if self.policy.levels[:1] == (MEMORY,) else None
        self._named: dict[object, Entry] = first.named if first is not None else {}
        self._entries: OrderedDict[bytes, Entry] = first.entries if first is not None else OrderedDict()
        self._has_far = bool(levels.far)
        self._memo: dict[object, tuple[Question, Collection[str] | None]] = {}

    # -- the library's door -----------------------------------------------------------------------------------------

    @overload
    async def get_or_compute(
        self,
        key: Key,
        fn: Callable[[], Awaitable[T]],
        *,
        ttl_s: float | None = None,
        tags: Collection[str] = (),
        tenant: str | bytes | None = None,
        as_type: Any = None,
        copy: bool = False,
    ) -> T: ...

    @overload
    async def get_or_compute(
        self,
        key: Key,
        fn: Callable[[], T],
        *,
        ttl_s: float | None = None,
        tags: Collection[str] = (),
        tenant: str | bytes | None = None,
        as_type: Any = None,
        copy: bool = False,
    ) -> T: ...

    async def get_or_compute(
        self,
        key: Key,
        fn: Callable[[], Any],
        *,
        ttl_s: float | None = None,
        tags: Collection[str] = (),
        tenant: str | bytes | None = None,
        as_type: Any = None,
        copy: bool = False,
    ) -> Any:
        """The answer stored under a key, else what `fn` gives, which is stored.

        Equal keys asked at once are computed once, across processes where host or fleet are on. When a caller is
        cancelled the computation goes on for the others.

        Args:
            key: A str, bytes, a number, or a tuple of such. Everything the answer depends on belongs in it.
            fn: Makes the answer; a coroutine function or a plain one. What it raises is raised and never stored.
            ttl_s: How long the answer may be given, in every level; None: each level's own time.
            tags: Names under which `invalidate` finds it, at most 64.
            tenant: Whose it is: no other tenant ever gets it. None is a partition of its own.
            as_type: What the answer is decoded to, for types that MessagePack does not know apart (tuples, structs,
                dataclasses, dates).
            copy: Give each caller an object of its own. Otherwise all get the same one and must not change it.

        Raises:
            TypeError: the answer or the key cannot be encoded; the message names the type.
            ValueError: `ttl_s` is not above 0, or there are too many tags.
        """
        # A hit in memory is the path everything else is paid for: no call that is not needed, no other frame.
        kind = type(key)
        name = key if kind is str or kind is bytes else name_of(key)
        if tenant is not None:
            name = (tenant, name)
        entry = self._named.get(name)
        if entry is not None:
            now_s = self._now_s()
            levels = self._levels
            if now_s < entry.quiet_s and levels.counter[0] == levels.heard:
                entry.hits += 1
                entry.asked_s = now_s
                self._entries.move_to_end(entry.key)
                return entry.value if not copy else copy_of(entry.value, as_type)
        question = self._question(name, key, tenant, tags)
        found = self._levels.look_near(question, as_type)
        if found is None and self._has_far:
            found = await self._levels.look_far(question, as_type)
        if found is None:
            work = Work(fn, _checked_ttl(ttl_s), _tag_ids(tags), as_type, copy)
            value = await self._computations.result(question, work)
        else:
            value = found.value
            if found.wants_refresh:
                work = Work(fn, ttl_s, _tag_ids(tags), as_type, copy)
                self._computations.refresh(question, work, self._now_s() - found.age_s)
        return copy_of(value, as_type) if copy else value

    def cached(
        self,
        *,
        ttl_s: float | None = None,
        tags: Collection[str] | Callable[..., Collection[str]] = (),
        key: Callable[..., Key] | None = None,
        tenant: str | bytes | Callable[..., str | bytes | None] | None = None,
        as_type: Any = None,
        copy: bool = False,
    ) -> Callable[[Callable[..., Coroutine[Any, Any, T]]], Cached[T]]:
        """Decorate a coroutine function so that equal calls share an answer; see `Cached`.

        `key`, `tags` and `tenant` may be functions of the call's arguments. Without `key` it is the function's full
        name and all arguments, bound to their parameters.
        """

        def decorate(function: Callable[..., Coroutine[Any, Any, T]]) -> Cached[T]:
            return Cached(self, function, ttl_s=ttl_s, tags=tags, key=key, tenant=tenant, as_type=as_type, copy=copy)

        return decorate

    async def invalidate(
        self,
        *,
        tags: Iterable[str] = (),
        keys: Iterable[Key] = (),
        storage_keys: Iterable[bytes] = (),
        tenant: str | bytes | None = None,
        everything: bool = False,
    ) -> int:
        """Drop answers from every level; every process hears of it, and what is being computed is not stored.

        Args:
            tags: Answers with one of these, of all tenants or of `tenant`.
            keys: As given to `get_or_compute`, of `tenant`, or of none.
            storage_keys: As `storage_key` gave them.
            tenant: Alone: all answers of that tenant.
            everything: All answers; of `tenant`, if named.

        Returns:
            How many entries the level that held most of them lost.

        A level that does not answer is told later, and not read until then by this process.
        """
        selection = selected(tags=tags, keys=keys, storage_keys=storage_keys, tenant=tenant, everything=everything)
        return await self._levels.forget(selection)

    async def forget(self, selection: Selection) -> int:
        """`invalidate` for what `selected` gave."""
        return await self._levels.forget(selection)

    def hear(self, selection: Selection) -> int:
        """Drop what another process has invalidated, from this process alone; how many entries its memory lost."""
        return self._levels.apply(selection)

    # -- the engine's door ------------------------------------------------------------------------------------------

    def peek(self, key: bytes) -> Found | None:
        """What the levels that answer at once (those before the fleet) have under a storage key."""
        entry = self._entries.get(key)
        if entry is not None:
            now_s = self._now_s()
            levels = self._levels
            if now_s < entry.quiet_s and levels.counter[0] == levels.heard:
                entry.hits += 1
                entry.asked_s = now_s
                self._entries.move_to_end(key)
                return Found(value=entry.value, level=MEMORY, age_s=now_s - entry.created_s)
        return self._levels.look_near(Question(key))

    @property
    def asks_far(self) -> bool:
        """True where there are levels that have to be waited for: `get` then says more than `peek`."""
        return self._has_far

    async def get(self, key: bytes) -> Found | None:
        """What the other levels have; to be asked after `peek`."""
        return await self._levels.look_far(Question(key)) if self._has_far else None

    def put(
        self,
        key: bytes,
        value: Any,
        *,
        ttl_s: float | None = None,
        tags: Collection[str] = (),
        compute_s: float = 0.0,
        lease: Lease | None = None,
        created_s: float | None = None,
    ) -> Awaitable[None] | None:
        """Store an answer in every level. Returns the write to the fleet, which need not be awaited.

        Args:
            key: A storage key.
            value: A StoredReply, or whatever `get_or_compute` could store.
            ttl_s: See `get_or_compute`.
            tags: See `get_or_compute`.
            compute_s: What making it took, for early refresh.
            lease: The one under which it was made. If what it means was invalidated meanwhile it is not stored.
            created_s: Unix seconds from which its age counts; None: now.
        """
        if len(key) != KEY_BYTES:
            msg = f"a storage key has {KEY_BYTES} bytes, see storage_key(); got {len(key)}"
            raise ValueError(msg)
        group = self._levels.patterns[pattern_key(key, value)]
        group.misses += 1
        groups = (group, *(self._levels.tags[tag] for tag in tags)) if tags else (group,)
        question = Question(key, None, groups)
        return self._levels.store(
            question,
            value,
            ttl_s=None if ttl_s is None else _checked_ttl(ttl_s),
            tags=_tag_ids(tags) if tags else (),
            compute_s=compute_s,
            lease=lease or self._leases.get(key),
            created_s=created_s,
        )[1]

    async def lease(self, key: bytes) -> Lease | None:
        """The right to compute a key, across processes where host or fleet are on. Release it after `put`.

        None: somebody, in this process or another, is computing it: `await wait_for(key, deadline_s)`.
        """
        return await self._leases.take(key)

    async def wait_for(
        self, key: bytes, deadline_s: float, *, as_type: Any = None, newer_than_s: float = 0.0
    ) -> Found | None:
        """Wait for the answer whoever holds the key's lease is computing.

        None: it gave the lease back, or died, without an answer, or `deadline_s` (loop time) has come.
        """
        return await self._leases.wait_for(Question(key), deadline_s, as_type, newer_than_s)

    # -- what is known ----------------------------------------------------------------------------------------------

    def advise(self) -> Advice:
        """For each of 16 times to live the hit rate it would have had on what was asked so far."""
        self._levels.summary()
        return self._levels.recurrence.advise()

    def statistics(self) -> Statistics:
        """Everything counted since the cache was made. Visits every entry in memory: 1 ms for 10,000."""
        levels = self._levels
        rows = levels.summary()
        hits, misses, made = levels.ages.total, levels.misses, self._computations
        return Statistics(
            requests=hits + misses,
            hits=hits,
            misses=misses,
            hit_rate=hits / (hits + misses) if hits + misses else None,
            computed=made.computed,
            joined=made.joined,
            waited=made.waited,
            stale=levels.stale,
            refreshed=made.refreshed,
            failed=made.failed,
            invalidations=levels.invalidations,
            levels=rows,
            patterns=levels.patterns.summary(),
            tags=levels.tags.summary(),
            ages=levels.ages.summary(),
            recurrence=levels.recurrence.advise(),
        )

    @property
    def memory(self) -> MemoryLevel | None:
        """This process's own level; None: it is off."""
        return self._levels.memory

    async def measure(self) -> None:
        """Ask Redis for the size of the fleet level; otherwise `statistics` says what the last write saw."""
        if self._levels.fleet is not None:
            await self._levels.fleet.sizes()

    async def flush(self) -> None:
        """Wait until the host level has written what was put."""
        if self._levels.host is not None:
            await self._levels.host.flush()

    async def close(self) -> None:
        """Cancel what is being computed, write what waits, leave folder and connections. Bounded to seconds."""
        await self._computations.close()
        self._leases.release_all()
        await self._levels.close()

    async def __aenter__(self) -> "Cache":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    # -- names ------------------------------------------------------------------------------------------------------

    def _question(self, name: Any, key: Key, tenant: str | bytes | None, tags: Collection[str]) -> Question:
        known = self._memo.get(name)
        if known is not None and known[1] is tags:
            return known[0]
        levels = self._levels
        if known is not None:
            digest, pattern = known[0].key, known[0].groups[0]
        else:
            digest = named_key(partition_of(tenant), name if tenant is None else name[1])
            pattern = levels.patterns[pattern_of(key)]
        question = Question(digest, name, (pattern, *(levels.tags[tag] for tag in several(tags))))
        if len(self._memo) >= _MEMO:
            self._memo.clear()
        if not isinstance(key, str | bytes) or len(key) <= _MEMO_NAME_BYTES:
            # Held by identity: a tuple written in the code is one object, and cannot change; a list could.
            self._memo[name] = question, tags if type(tags) is tuple else None
        return question


def _tag_ids(tags: Collection[str]) -> tuple[bytes, ...]:
    if not tags:
        return ()
    ids = tuple(sorted({tag_id(tag) for tag in several(tags)}))
    if len(ids) > MOST_TAGS:
        msg = f"an answer can have {MOST_TAGS} tags; got {len(ids)}"
        raise ValueError(msg)
    return ids


def _checked_ttl(ttl_s: float | None) -> float | None:
    if ttl_s is not None and not ttl_s > 0:
        msg = f"ttl_s must be above 0, or None for each level's own; got {ttl_s}"
        raise ValueError(msg)
    return ttl_s
