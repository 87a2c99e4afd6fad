"""The host level: what all processes of a machine share. One store per folder and process, whoever opens it."""

import asyncio
import contextlib
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec

from .envelope import Opened, Sealer
from .host_shared import SharedStore, close_store, open_store
from .host_store import END_BYTES, load_lmdb
from .policy import HostPolicy
from .selection import Selection
from .statistics import LevelCounts, LevelStatistics

NEVER = memoryview(bytes(8)).cast("Q")  # the counter of a level that is off: nothing ever happens
_CLOSED = "closed"
_LARGEST_SHARE = 8  # a value larger than that part of the level is not stored
_WRITE_TIMEOUT_S = 5.0
_FAILURES_IN_A_ROW = 5


class HostLevel:
    """Envelopes on this machine. Whatever goes wrong makes misses, counted as errors, never an exception.

    Off (`off` says why) when the folder cannot be used, after five failures in a row, and when an invalidation could
    not be written: then this process must not read it any more.
    """

    def __init__(self, policy: HostPolicy, sealer: Sealer) -> None:
        self.lmdb = load_lmdb()
        self.policy = policy
        self.counts = LevelCounts()
        self.off: str | None = None
        self._sealer = sealer
        self._failed = self._hits_at_failure = 0
        self._opened: SharedStore | None = None
        self._shared: SharedStore | None = None  # the same while it is usable
        self._open()

    def _open(self) -> None:
        try:
            folder = Path(self.policy.path).expanduser().absolute()
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._opened = self._shared = open_store(folder.resolve(), self.policy.max_bytes, self)
        except (self.lmdb.Error, OSError, ValueError) as error:
            self.turn_off(f"cannot use {self.policy.path}: {error}")

    def turn_off(self, reason: str) -> None:
        """Use it no more in this process."""
        self.off = reason
        self._shared = None
        self.counts.errors += 1

    def forked(self, reason: str | None) -> None:
        """This is a child of the process that opened it."""
        self._opened = self._shared = None
        if self.off != _CLOSED:
            self.off = reason

    @property
    def _ready(self) -> SharedStore | None:
        if self._shared is None and self.off is None:
            self._open()
        return self._shared

    @property
    def counter(self) -> memoryview:
        """A place whose number changes with each invalidation any process made."""
        shared = self._ready
        return shared.store.counter if shared is not None else NEVER

    def get(self, key: bytes, as_type: Any = None) -> Opened | None:
        """What is stored under a key, fresh or not. About 4 us for 1 kB."""
        shared = self._shared
        if shared is None and (shared := self._ready) is None:
            return None
        writer, store = shared.writer, shared.store
        if writer.pending and (waiting := writer.pending.get(key)) is not None:
            data, offset = waiting[1], 0
        else:
            try:
                txn = store.env.begin(store.values)
                stored = txn.get(key)
                txn.abort()
            except self.lmdb.Error as error:
                self._broke(error)
                return None
            if stored is None:
                return None
            data, offset = stored, END_BYTES
        found = self._sealer.open(key, data, as_type, offset)
        counts = self.counts
        if found is None:
            counts.unreadable += 1
            return None
        counts.read_bytes += len(data)
        return found

    def put(self, key: bytes, envelope: bytes, end_s: float, since: int) -> None:
        """Store an envelope soon."""
        shared = self._ready
        if shared is None:
            return
        if len(envelope) * _LARGEST_SHARE > self.policy.max_bytes:
            self.counts.dropped += 1
        elif shared.writer.put(key, envelope, max(0, int(end_s * 1000)), since):
            self.counts.puts += 1
            self.counts.written_bytes += len(envelope)
        else:
            self.counts.dropped += 1

    def heard_of(self, since: int) -> tuple[int, list[Selection]]:
        """The number of the last invalidation, and those after `since`."""
        shared = self._ready
        if shared is None:
            return 0, []
        try:
            return shared.store.heard_of(since)
        except self.lmdb.Error as error:
            self._broke(error)
            return since, []

    async def forget(self, selection: Selection) -> int:
        """Delete what is meant for every process of the machine. Turns the level off here when that fails."""
        shared = self._ready
        if shared is None:
            return 0
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                return await asyncio.wrap_future(shared.writer.forget(selection))
        except (self.lmdb.Error, OSError, TimeoutError) as error:
            self.turn_off(f"an invalidation could not be written: {error or 'timed out'}")
            return 0

    @property
    def fleet_epoch(self) -> int | None:
        """The number of the last invalidation of the fleet that this machine has heard; None: of none yet."""
        shared = self._ready
        return shared.store.counter[1] - 1 if shared is not None and shared.store.counter[1] else None

    def hear_fleet(self, selections: list[Selection], epoch: int) -> None:
        """Apply what the fleet told, and remember up to where. What is already done for this machine is skipped."""
        shared = self._ready
        if shared is None:
            return

        def remember() -> int:
            shared.store.counter[1] = epoch + 1
            return 0

        for selection in selections:
            shared.writer.forget(selection).add_done_callback(self._heard)
        shared.writer.do(remember)

    def _heard(self, done: Future[int]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            self.turn_off(f"an invalidation could not be written: {error}")

    async def flush(self) -> None:
        """Wait until everything put so far is on disk, at most 5 s."""
        shared = self._ready
        if shared is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WRITE_TIMEOUT_S):
                    await asyncio.wrap_future(shared.writer.do(int))

    def lease(self, key: bytes) -> bool | None:
        """Take the machine's lease of a key. None: the level is off, there is none to take."""
        shared = self._ready
        return shared.leases.acquire(key) if shared is not None and self.policy.lease else None

    def release(self, key: bytes) -> None:
        """Give a lease back, after everything put before is on disk: who waits for it must find the answer."""
        shared = self._ready
        if shared is None:
            return
        if key not in shared.writer.pending:
            shared.leases.release(key)
            return

        def give_back() -> int:
            shared.leases.release(key)
            return 0

        shared.writer.do(give_back)

    def is_leased(self, key: bytes) -> bool:
        """True while some process of the machine holds the key's lease."""
        shared = self._ready
        return shared is not None and shared.leases.is_held(key)

    def items(self) -> list[tuple[bytes, Opened]]:
        """Everything readable in it. Reads the whole level."""
        shared = self._ready
        if shared is None:
            return []
        opened = ((key, self._sealer.open(key, envelope)) for key, envelope in shared.store.items())
        return [(key, found) for key, found in opened if found is not None]

    def sizes(self) -> tuple[int | None, int | None, int]:
        """Entries, bytes, and how many were evicted by this process. None: unknown."""
        shared = self._ready
        if shared is None:
            return None, None, 0
        try:
            return len(shared.store), shared.store.used_bytes(), shared.store.evicted
        except self.lmdb.Error as error:
            self._broke(error)
            return None, None, 0

    def summary(self, name: str, state: str, entries: int | None, size: int | None, evicted: int) -> LevelStatistics:
        """As a record; with the writes that were given up, of all caches of this process over this folder."""
        row = self.counts.summary(name, state, entries, size, evicted)
        writer = self._opened.writer if self._opened is not None else None
        return row if writer is None else msgspec.structs.replace(row, errors=row.errors + writer.errors)

    def close(self) -> None:
        """Write what waits and leave the folder. Blocks up to 5 s."""
        opened, self._opened, self._shared, self.off = self._opened, None, None, _CLOSED
        if opened is not None:
            close_store(opened)

    def _broke(self, error: Exception) -> None:
        self._failed = self._failed + 1 if self.counts.hits == self._hits_at_failure else 1
        self._hits_at_failure = self.counts.hits
        if isinstance(error, self.lmdb.ReadersFullError) and self._shared is not None and self._failed == 1:
            with contextlib.suppress(self.lmdb.Error):
                self._shared.store.env.reader_check()
        elif self._failed >= _FAILURES_IN_A_ROW or isinstance(
            error, self.lmdb.CorruptedError | self.lmdb.PanicError | self.lmdb.InvalidError
        ):
            self.turn_off(f"it fails: {error}")
            return
        self.counts.errors += 1
