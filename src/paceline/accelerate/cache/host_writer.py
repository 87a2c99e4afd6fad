"""HostWriter: the thread that writes to the host level, so that no slow disk and no other process stops the loop."""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from .host_store import HostStore
from .selection import Selection

_MOST_PENDING_BYTES = 64_000_000  # then entries are dropped: a cache may forget
_BATCH = 64
_log = logging.getLogger(__name__)


class _Put:
    __slots__ = ("end_ms", "envelope", "key", "since")

    def __init__(self, key: bytes, envelope: bytes, end_ms: int, since: int) -> None:
        self.key, self.envelope, self.end_ms, self.since = key, envelope, end_ms, since


class _Do:
    """Something to be done in its turn, after everything before it is written."""

    __slots__ = ("action", "done")

    def __init__(self, action: Callable[[], int]) -> None:
        self.action = action
        self.done: Future[int] = Future()


class HostWriter:
    """Writes in the order told, entries in batches. `pending` holds what is not on disk yet."""

    def __init__(self, store: HostStore) -> None:
        self._store = store
        self._queue: deque[_Put | _Do] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._busy = threading.Lock()  # held while something is written
        self._thread: threading.Thread | None = None
        self._pending_bytes = 0
        self.pending: dict[bytes, tuple[int, bytes]] = {}  # end of life in ms, envelope
        self.errors = 0  # writes that were given up
        self.dropped = 0  # entries not taken, because too many were waiting

    def put(self, key: bytes, envelope: bytes, end_ms: int, since: int) -> bool:
        """Store an entry soon. False: too much is waiting already."""
        if self._pending_bytes + len(envelope) > _MOST_PENDING_BYTES:
            self.dropped += 1
            return False
        self.pending[key] = (end_ms, envelope)
        self._tell(_Put(key, envelope, end_ms, since), len(envelope))
        return True

    def forget(self, selection: Selection) -> Future[int]:
        """Delete what is meant and tell every process. The result: how many entries; its error: it was not done."""
        for key in list(self.pending):
            if selection.everything or selection.tags or key in selection.keys:
                self.pending.pop(key, None)  # a pending entry is a shortcut: dropping more of them is never wrong
        return self.do(lambda: self._store.forget(selection))

    def do(self, action: Callable[[], int]) -> Future[int]:
        """Run something after all that was told before."""
        job = _Do(action)
        self._tell(job, 0)
        return job.done

    def pause(self, timeout_s: float) -> bool:
        """Wait until nothing is being written and write nothing more before `go_on`. False: a write takes longer."""
        return self._busy.acquire(timeout=timeout_s)

    def go_on(self) -> None:
        """Write again."""
        self._busy.release()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Write what waits and end the thread. False: it did not end in time."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _tell(self, job: _Put | _Do, size: int) -> None:
        with self._wake:
            if self._closing:
                if isinstance(job, _Do):
                    job.done.cancel()
                return
            self._pending_bytes += size
            self._queue.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="paceline-cache-writer", daemon=True)
                self._thread.start()
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._queue:
                    if self._closing:
                        return
                    self._wake.wait()
                jobs = [self._queue.popleft()]
                while isinstance(jobs[-1], _Put) and self._queue and len(jobs) < _BATCH:
                    jobs.append(self._queue.popleft())
            puts = [job for job in jobs if isinstance(job, _Put)]
            with self._busy:
                if puts:
                    self._write(puts)
                if isinstance(jobs[-1], _Do):
                    self._act(jobs[-1])

    def _act(self, job: _Do) -> None:
        try:
            job.done.set_result(job.action())
        except (self._store.lmdb.Error, OSError) as error:
            self.errors += 1
            job.done.set_exception(error)

    def _write(self, puts: list[_Put]) -> None:
        failures = (self._store.lmdb.Error, OSError)
        try:
            self._store.put_all([_row(put) for put in puts])
        except failures:
            for put in puts:  # one too large, or no room: the others still fit
                try:
                    self._write_one(put)
                except failures as error:
                    self.errors += 1
                    _log.debug("the host level did not store an entry: %s", error)
        with self._wake:
            self._pending_bytes -= sum(len(put.envelope) for put in puts)
        for put in puts:
            if (waiting := self.pending.get(put.key)) is not None and waiting[1] is put.envelope:
                self.pending.pop(put.key, None)

    def _write_one(self, put: _Put) -> None:
        """Store one entry; where the map is full, first free the places of killed readers and what dies soonest."""
        try:
            self._store.put_all([_row(put)])
        except self._store.lmdb.MapFullError:
            with contextlib.suppress(self._store.lmdb.Error):
                self._store.env.reader_check()
            self._store.make_room()
            self._store.put_all([_row(put)])


def _row(put: _Put) -> tuple[bytes, bytes, int, int]:
    return put.key, put.envelope, put.end_ms, put.since
