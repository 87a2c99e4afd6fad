"""Levels: memory, host and fleet as one: look in order, fill those above, store in all, drop from all."""

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from .envelope import Opened, Sealer, secret_from
from .fleet import FleetLevel
from .freshness import FRESH, GONE, STALE, Freshness, refresh_takes_s
from .host import NEVER, HostLevel
from .keys import Key
from .lease import Lease
from .memory import Entry, MemoryLevel
from .policy import FLEET, HOST, MEMORY, CachePolicy
from .recent import Recent
from .recurrence import Recurrence
from .reply import StoredReply
from .selection import Selection
from .statistics import Ages, Group, Groups, LevelCounts, LevelStatistics, age_bucket
from .values import checked, copy_of, size_of

_TIMED = 8  # one look-up on the host of so many is timed
_MOST_CLAIMS = 10_000


class Found(msgspec.Struct, frozen=True):
    """An answer some level had."""

    value: Any
    level: str  # "memory", "host" or "fleet"
    age_s: float
    is_stale: bool = False  # beyond its time to live, within the policy's `stale_s`
    wants_refresh: bool = False  # this caller is the one to make it anew, in the background


class Question(msgspec.Struct, frozen=True, gc=False):
    """What is asked: the storage key, the name it has here (None: none), and whose statistics it counts in."""

    key: bytes
    name: object = None
    groups: tuple[Group, ...] = ()


class Levels:
    """The levels of one policy in this process. `close` when done; not for several threads.

    Raises:
        ConfigError: a library is missing, or the policy's secret or URL is wrong.
    """

    def __init__(self, policy: CachePolicy, now_s: Callable[[], float], draw: Callable[[], float]) -> None:
        self.policy = policy
        self.now_s = now_s
        sealer = Sealer(compress_min_bytes=policy.compress_min_bytes, key=secret_from(policy.encrypt_key_env))
        order = policy.levels
        self.memory = MemoryLevel(policy.memory.max_bytes, self.settle) if MEMORY in order else None
        self.host = HostLevel(policy.host, sealer) if HOST in order else None
        self.fleet: FleetLevel | None = None
        if FLEET in order:
            epoch = self.host.fleet_epoch if self.host is not None else None
            self.fleet = FleetLevel(policy.fleet, sealer, self._hear_fleet, epoch)
        at = order.index(FLEET) if FLEET in order else len(order)
        self.near, self.far = order[:at], order[at:]
        self._near_looks = [self._look_in_memory if name == MEMORY else self._look_on_host for name in self.near]
        self._order = order
        self._sealer = sealer
        self._ttl_s = {MEMORY: policy.memory.ttl_s, HOST: policy.host.ttl_s, FLEET: policy.fleet.ttl_s}
        # Only the level that keeps answers longest decides that one is stale: above it an answer that has been there
        # long enough is looked for further down.
        self._last = max(order, key=self._ttl_s.__getitem__, default=MEMORY)
        self._freshness = Freshness(policy.stale_s, policy.early, draw)
        self._is_early = policy.early > 0
        self._is_host_first = order[:1] == (HOST,)
        self._host_ttl_s = policy.host.ttl_s
        self._claims: dict[bytes, float] = {}  # who refreshes what is not in memory, and until when
        self._untidy = False  # the host has not applied yet what the fleet told
        self.recent = Recent()
        self.recurrence = Recurrence()
        self.ages = Ages()
        self.counts = LevelCounts()  # of memory
        self.patterns, self.tags = Groups(), Groups()
        self.stale = self.misses = self.invalidations = 0
        self.on_invalidated: Callable[[Selection], None] = lambda _: None
        self.counter = self.host.counter if self.host is not None else NEVER
        self.heard = 0
        self.hear()

    # -- looking ----------------------------------------------------------------------------------------------------

    def look_near(self, question: Question, as_type: Any = None) -> Found | None:
        """Ask the levels that answer without waiting."""
        if self.counter[0] != self.heard:
            self.hear()
        now_s = self.now_s()
        for look in self._near_looks:
            found = look(question, now_s, as_type)
            if found is not None:
                return found
        if not self.far:
            self._missed(question, now_s)
        return None

    async def look_far(self, question: Question, as_type: Any = None) -> Found | None:
        """Ask the fleet and what comes after it, and fill what comes before."""
        for level in self.far:
            if level == FLEET:
                found = await self._look_in_fleet(question, as_type)
            else:
                look = self._look_in_memory if level == MEMORY else self._look_on_host
                found = look(question, self.now_s(), as_type)
            if found is not None:
                return found
        self._missed(question, self.now_s())
        return None

    async def connect(self) -> bool:
        """Make the fleet ready. False: there is none now.

        Then the host too: what is put from now on must not be taken for older than what the fleet has just told.
        """
        ready = self.fleet is not None and await self.fleet.ready()
        if self._untidy and self.host is not None:
            self._untidy = False
            await self.host.flush()
            self.hear()
        return ready

    async def look_for_other(self, question: Question, as_type: Any, newer_than_s: float) -> Found | None:
        """An answer that another caller or process has stored meanwhile. Counts as no request."""
        if self.counter[0] != self.heard:
            self.hear()
        now_s = self.now_s()
        entry = self.memory.entries.get(question.key) if self.memory is not None else None
        if entry is not None and newer_than_s < entry.created_s and now_s < entry.expires_s:
            return Found(value=entry.value, level=MEMORY, age_s=now_s - entry.created_s)
        for level in self._order:
            opened = envelope = None
            if level == FLEET and not await self.connect():
                continue
            number = self.recent.number
            if level == HOST and self.host is not None:
                opened = self.host.get(question.key, as_type)
            elif level == FLEET and self.fleet is not None:
                got = await self.fleet.get(question.key, as_type)
                opened, envelope = got if got is not None else (None, None)
            if opened is None or opened.created_s <= newer_than_s or self.now_s() >= self._end_s(level, opened, now_s):
                continue
            if not self.recent.mean(number, question.key, opened.tags):
                self._fill_above(level, question, opened, now_s, envelope)
                return Found(value=opened.value, level=level, age_s=now_s - opened.created_s)
        return None

    def _look_in_memory(self, question: Question, now_s: float, _: Any = None) -> Found | None:
        assert self.memory is not None  # noqa: S101
        started_s = time.perf_counter()
        entry = self.memory.entries.get(question.key)
        if entry is None:
            self.counts.misses += 1
            return None
        self.settle(entry)
        verdict = self._freshness.judge(now_s, entry.expires_s, entry.dead_s, entry.compute_s)
        if verdict == GONE:
            self.memory.drop(entry)
            self.counts.misses += 1
            if entry.is_last:
                for group in question.groups:
                    group.expired += 1
            return None
        wants_refresh = verdict != FRESH and now_s >= entry.refresh_s
        if wants_refresh:
            entry.refresh_s = now_s + refresh_takes_s(entry.compute_s)
        if question.groups and entry.groups is not question.groups:
            entry.groups = question.groups
        if question.name is not None and entry.name is None:
            self.memory.call(entry, question.name)
        self.memory.entries.move_to_end(entry.key)
        entry.hits += 1
        entry.told += 1
        entry.asked_s = now_s
        self.counts.hits += 1
        age_s = now_s - entry.created_s
        self.stale += verdict == STALE
        self.ages.add(age_s)
        for group in entry.groups:
            group.hits += 1
        next_s = self.recurrence.asked(question.key, now_s)
        older_s = entry.created_s + (1 << age_bucket(age_s))
        entry.quiet_s = min(self._freshness.quiet_until_s(entry.expires_s, entry.compute_s), older_s, next_s)
        self.counts.latency.record(time.perf_counter() - started_s)
        return Found(
            value=entry.value, level=MEMORY, age_s=age_s, is_stale=verdict == STALE, wants_refresh=wants_refresh
        )

    def _look_on_host(self, question: Question, now_s: float, as_type: Any) -> Found | None:
        host = self.host
        assert host is not None  # noqa: S101
        counts = host.counts
        if counts.hits % _TIMED:
            opened = host.get(question.key, as_type)
        else:
            started_s = time.perf_counter()
            opened = host.get(question.key, as_type)
            counts.latency.record(time.perf_counter() - started_s)
        found = None
        if opened is not None:
            age_s = now_s - opened.created_s
            if 0.0 <= age_s < (opened.ttl_s or self._host_ttl_s) and not self._is_early:
                # Surely fresh: what _judge would do, without its calls.
                self.ages.counts[0 if age_s < 1.0 else age_bucket(age_s)] += 1
                for group in question.groups:
                    group.hits += 1
                self.recurrence.asked(question.key, now_s)
                found = Found(opened.value, HOST, age_s)
            else:
                found = self._judge(HOST, question, opened, now_s)
        if found is None or opened is None:
            counts.misses += 1
            return None
        counts.hits += 1
        if not self._is_host_first:
            self._fill_above(HOST, question, opened, now_s, None)
        return found

    async def _look_in_fleet(self, question: Question, as_type: Any) -> Found | None:
        fleet = self.fleet
        assert fleet is not None  # noqa: S101
        if not await self.connect():
            fleet.counts.misses += 1
            return None
        number = self.recent.number
        got = await fleet.get(question.key, as_type)
        found = None
        if got is not None and not self.recent.mean(number, question.key, got[0].tags):
            now_s = self.now_s()
            found = self._judge(FLEET, question, got[0], now_s)
        if found is None or got is None:
            fleet.counts.misses += 1
            return None
        fleet.counts.hits += 1
        if self._order[0] != FLEET:
            self._fill_above(FLEET, question, got[0], now_s, got[1])
        return found

    def _judge(self, level: str, question: Question, opened: Opened, now_s: float) -> Found | None:
        """What was read as an answer, None when it is too old."""
        age_s = now_s - opened.created_s
        expires_s = self._end_s(level, opened, now_s)
        is_last = level == self._last or opened.ttl_s > 0
        dead_s = expires_s + self.policy.stale_s if is_last else expires_s
        verdict = self._freshness.judge(now_s, expires_s, dead_s, opened.compute_s if is_last else 0.0)
        if verdict == GONE:
            for group in question.groups:
                group.expired += 1
            return None
        self.ages.add(age_s)
        self.recurrence.asked(question.key, now_s)
        for group in question.groups:
            group.hits += 1
        if verdict == FRESH:
            return Found(opened.value, level, age_s)
        return Found(opened.value, level, age_s, verdict == STALE, self._claim(question.key, now_s, opened.compute_s))

    def _end_s(self, level: str, opened: Opened, now_s: float) -> float:
        """When it becomes stale. A clock elsewhere that runs ahead does not lengthen a life."""
        return min(opened.created_s, now_s) + (opened.ttl_s or self._ttl_s[level])

    def _claim(self, key: bytes, now_s: float, compute_s: float) -> bool:
        if now_s < self._claims.get(key, -math.inf):
            return False
        if len(self._claims) >= _MOST_CLAIMS:
            self._claims.clear()
        self._claims[key] = now_s + refresh_takes_s(compute_s)
        return True

    def _missed(self, question: Question, now_s: float) -> None:
        self.misses += 1
        for group in question.groups:
            group.misses += 1
        self.recurrence.asked(question.key, now_s)

    def settle(self, entry: Entry) -> None:
        """Count the hits of an entry that nobody has counted yet."""
        hits = entry.hits - entry.told
        if hits:
            entry.told = entry.hits
            self.counts.hits += hits
            self.ages.add(entry.asked_s - entry.created_s, hits)
            for group in entry.groups:
                group.hits += hits
            self.recurrence.repeated(entry.key, hits, entry.asked_s)

    # -- storing ----------------------------------------------------------------------------------------------------

    def store(
        self,
        question: Question,
        value: Any,
        *,
        ttl_s: float | None,
        tags: tuple[bytes, ...],
        compute_s: float,
        as_type: Any = None,
        copy: bool = False,
        lease: Lease | None = None,
        created_s: float | None = None,
    ) -> tuple[Any, Awaitable[None] | None]:
        """Store an answer in every level, unless it was invalidated since `lease` was taken.

        Returns the value as the levels give it back, and the write to the fleet. TypeError: it cannot be encoded.
        """
        value, size = checked(value, as_type)
        if self.counter[0] != self.heard:
            self.hear()
        recent = self.recent
        if lease is not None and lease.number != recent.number and recent.mean(lease.number, question.key, tags):
            return value, None
        now_s = self.now_s()
        opened = Opened(value, now_s if created_s is None else created_s, ttl_s or 0.0, compute_s, b"".join(tags))
        if self.memory is not None:
            kept = msgspec.structs.replace(opened, value=copy_of(value, as_type)) if copy else opened
            self._to_memory(question, kept, now_s, size)
        if self.host is None and self.fleet is None:
            return value, None
        envelope = self._sealer.seal(
            question.key, value, created_s=opened.created_s, ttl_s=ttl_s, compute_s=compute_s, tags=tags
        )
        if self.host is not None:
            since = lease.host_number if lease is not None else self.heard
            self.host.put(question.key, envelope, self._dead_s(HOST, opened, now_s), since)
        if self.fleet is None:
            return value, None
        epoch = lease.epoch if lease is not None and lease.epoch is not None else self.fleet.epoch
        life_s = self._dead_s(FLEET, opened, now_s) - now_s
        write = self.fleet.put(question.key, envelope, life_s, tags, epoch)
        if lease is not None:
            lease.write = write
        return value, write

    def _dead_s(self, level: str, opened: Opened, now_s: float) -> float:
        is_last = level == self._last or opened.ttl_s > 0
        return self._end_s(level, opened, now_s) + (self.policy.stale_s if is_last else 0.0)

    def _fill_above(self, level: str, question: Question, opened: Opened, now_s: float, envelope: bytes | None) -> None:
        for above in self._order[: self._order.index(level)]:
            if above == MEMORY:
                self._to_memory(question, opened, now_s, None)
            elif above == HOST and self.host is not None and envelope is not None:
                self.host.put(question.key, envelope, self._dead_s(HOST, opened, now_s), self.heard)

    def _to_memory(self, question: Question, opened: Opened, now_s: float, size: int | None) -> None:
        if self.memory is None:
            return
        if size is None:
            size = size_of(opened.value)
        # What the call gave no time to live stays here for the level's own, but not longer than where it came from.
        is_last = self._last == MEMORY or opened.ttl_s > 0
        ends_s = self._end_s(self._last, opened, now_s)
        expires_s = ends_s if is_last else min(now_s + self._ttl_s[MEMORY], ends_s)
        self.memory.put(
            Entry(
                question.key,
                opened.value,
                size,
                created_s=opened.created_s,
                expires_s=expires_s,
                dead_s=expires_s + self.policy.stale_s if is_last else expires_s,
                compute_s=opened.compute_s if is_last else 0.0,
                tags=opened.tags if opened.joined_tags else (),
                name=question.name,
                groups=question.groups,
                is_last=is_last,
            )
        )
        self.counts.puts += 1

    # -- invalidating -----------------------------------------------------------------------------------------------

    async def forget(self, selection: Selection) -> int:
        """Drop what is meant everywhere; how many entries the level that held most of them lost."""
        self.invalidations += 1
        selection = msgspec.structs.replace(selection, id=os.urandom(8))
        counts = [self.apply(selection)]
        if self.host is not None:
            counts.append(await self.host.forget(selection))
        if self.fleet is not None:
            counts.append(await self.fleet.forget(selection))
        if self.host is not None or self.fleet is not None:
            self.apply(selection)  # somebody may have read from them while they were being cleared
        return max(counts)

    def apply(self, selection: Selection) -> int:
        """Drop what is meant from this process, whether stored or being computed."""
        self.recent.add(selection)
        self.on_invalidated(selection)
        return self.memory.forget(selection) if self.memory is not None else 0

    def hear(self) -> None:
        """Apply what other processes of this machine have invalidated."""
        if self.host is None:
            return
        self.counter = self.host.counter
        self.heard, selections = self.host.heard_of(self.heard)
        for selection in selections:
            self.apply(selection)

    def _hear_fleet(self, selections: list[Selection], epoch: int) -> None:
        for selection in selections:
            self.apply(selection)
        if self.host is not None:
            self.host.hear_fleet(selections, epoch)
            self._untidy = True

    # -- the rest ---------------------------------------------------------------------------------------------------

    def summary(self) -> list[LevelStatistics]:
        """Each level in use."""
        rows = []
        for name in self._order:
            if name == MEMORY and self.memory is not None:
                for entry in self.memory.entries.values():
                    self.settle(entry)
                self.counts.dropped = self.memory.too_large
                memory = self.memory
                rows.append(self.counts.summary(name, "up", len(memory), memory.used_bytes, memory.evicted))
            elif name == HOST and self.host is not None:
                entries, size, evicted = self.host.sizes()
                state = "up" if self.host.off is None else f"off: {self.host.off}"
                rows.append(self.host.summary(name, state, entries, size, evicted))
            elif name == FLEET and self.fleet is not None:
                fleet = self.fleet
                rows.append(fleet.counts.summary(name, fleet.state, fleet.entries, fleet.bytes, 0))
        return rows

    async def close(self) -> None:
        """Leave the folder and the connections."""
        if self.host is not None:
            await asyncio.to_thread(self.host.close)
            self.counter, self.heard = NEVER, 0
        if self.fleet is not None:
            await self.fleet.close()


def pattern_key(key: Key, value: Any) -> str:
    """The family an answer put without a name belongs to: the model that gave it."""
    return (value.model if isinstance(value, StoredReply) else None) or f"({type(key).__name__})"
