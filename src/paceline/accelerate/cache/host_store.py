"""HostStore: one folder with an LMDB environment that all processes of a machine share.

    data.mdb  values  storage key -> end of life (8 bytes, big-endian ms) + envelope
              order   end of life + storage key -> nothing: what dies soonest comes first
              tags    tag id -> storage keys
              log     number (8 bytes) -> Selection: the last invalidations
    counter   the number of the last invalidation, mapped into every process: has anything happened? for ~0.1 us
    leases    one lockable byte per key (see host_leases)
    guard     locked (shared) by every process that uses the folder; holds the machine's boot id

LMDB survives any process being killed; with `sync=False`, which makes a write cost 20 us instead of 400, it does not
survive the machine losing power. So a folder written under another boot id is started afresh, and so is one that is
damaged when nobody else uses it. Reads may come from any process at any time, writes are serialised by LMDB.

The functions that write may block (another process writes, the disk is slow): `HostWriter` calls them in its thread.
"""

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import time
from pathlib import Path
from typing import Any

from paceline.errors import ConfigError

from .envelope import tags_in
from .selection import EVERYTHING, Selection

END_BYTES = 8
_LOGGED = 1_000  # invalidations kept in the log; who is further behind drops everything
_RECENT = 64  # of the log, looked through for one that was already done
_RESERVE_BYTES = 16_000_000  # of the map beyond the budget, so that there is always room to delete
_EVICT_SHARE = 0.05
_OPEN_TRIES, _OPEN_PAUSE_S = 20, 0.01
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def load_lmdb() -> Any:
    """The lmdb module. ConfigError says how to install it."""
    try:  # optional
        import lmdb
    except ImportError as error:
        msg = "the host level of the cache needs the lmdb package: pip install 'paceline[host]'"
        raise ConfigError(msg) from error
    return lmdb


class HostStore:
    """The environment of one folder in this process. Opened by the constructor; `close` when done.

    Raises:
        OSError: the folder cannot be written, or stays locked.
        lmdb.Error: it is damaged and in use by others.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.lmdb = load_lmdb()
        self.folder = folder
        self.max_bytes = max_bytes
        self.evicted = 0
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._guard = os.open(folder / "guard", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._open()
        except BaseException:
            os.close(self._guard)
            raise

    def _open(self) -> None:
        if self._is_alone():
            self._map_bytes = self.max_bytes + _RESERVE_BYTES
            boot_id = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
            seen_id, _, _ = os.pread(self._guard, 200, 0).decode("ascii", "replace").partition(" ")
            if seen_id != boot_id:
                self._wipe()
            try:
                self._open_environment()
            except (self.lmdb.Error, OSError):
                self._wipe()
                self._open_environment()
            os.ftruncate(self._guard, 0)
            os.pwrite(self._guard, f"{boot_id} {self._map_bytes}".encode(), 0)
            fcntl.flock(self._guard, fcntl.LOCK_SH)
        else:
            # One size for all: a map that grew behind another process's back would have to be mapped anew.
            self._map_bytes = int(os.pread(self._guard, 200, 0).split()[-1])
            self._open_environment()
        with contextlib.suppress(self.lmdb.Error):
            self.env.reader_check()  # places of killed readers, which keep old pages alive

    def _is_alone(self) -> bool:
        """Lock the guard: alone (True) or with others."""
        for _ in range(_OPEN_TRIES):
            for how, alone in ((fcntl.LOCK_EX, True), (fcntl.LOCK_SH, False)):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(self._guard, how | fcntl.LOCK_NB)
                    return alone
            time.sleep(_OPEN_PAUSE_S)  # another process is opening it right now
        raise OSError(errno.EBUSY, f"{self.folder} stays locked by another process")

    def _open_environment(self) -> None:
        self.env = self.lmdb.open(
            str(self.folder),
            map_size=self._map_bytes,
            max_dbs=8,
            max_readers=1024,
            sync=False,
            metasync=False,
            readahead=False,
            meminit=False,
            mode=0o600,
        )
        try:
            info, stat = self.env.info(), self.env.stat()
            if (self.folder / "data.mdb").stat().st_size < (info["last_pgno"] + 1) * stat["psize"]:
                raise self.lmdb.CorruptedError(f"{self.folder} is cut short")  # touching the rest would be SIGBUS
            self._page_bytes = int(stat["psize"])
            self.values = self.env.open_db(b"values")
            self._order = self.env.open_db(b"order")
            self._tags = self.env.open_db(b"tags", dupsort=True, dupfixed=True)
            self._log = self.env.open_db(b"log")
            if not hasattr(self, "counter"):
                self._open_counter()
        except BaseException:
            self.env.close()
            raise

    def _open_counter(self) -> None:
        counter = os.open(self.folder / "counter", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(counter, mmap.PAGESIZE)
            self._mapped = mmap.mmap(counter, mmap.PAGESIZE)
        finally:
            os.close(counter)
        self.counter = memoryview(self._mapped).cast("Q")

    def _wipe(self) -> None:
        for name in ("data.mdb", "lock.mdb", "counter"):
            (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Release everything. No transaction may be open."""
        self.env.close()
        self.counter.release()
        self._mapped.close()
        os.close(self._guard)

    def suspend(self) -> None:
        """Close the environment for the length of a fork. No transaction may be open."""
        self.env.close()

    def resume(self) -> None:
        """Open it again. OSError, lmdb.Error: it cannot be."""
        self._open_environment()

    def leave_to_parent(self) -> None:
        """In a forked child: close our copies of what is the parent's."""
        os.close(self._guard)  # the parent's lock stays with the parent's copy

    def heard_of(self, since: int) -> tuple[int, list[Selection]]:
        """The number of the last invalidation and all after `since`; everything, where the log is too short."""
        with self.env.begin(self._log) as txn:
            cursor = txn.cursor()
            last = int.from_bytes(cursor.key(), "big") if cursor.last() else 0
            if last == since:
                return last, []
            if last < since or not cursor.set_key((since + 1).to_bytes(END_BYTES, "big")):
                return last, [EVERYTHING]
            return last, [Selection.decode(data) for data in cursor.iternext(keys=False, values=True)]

    def used_bytes(self) -> int:
        """Bytes of the pages in use. About 10 us."""
        with self.env.begin() as txn:
            return self._used_bytes(txn)

    def __len__(self) -> int:
        with self.env.begin() as txn:
            return int(txn.stat(self.values)["entries"])

    def items(self) -> list[tuple[bytes, bytes]]:
        """Every key and its envelope; for an export. Reads the whole level."""
        with self.env.begin(self.values) as txn:
            return [(key, data[END_BYTES:]) for key, data in txn.cursor()]

    def put_all(self, entries: list[tuple[bytes, bytes, int, int]]) -> None:
        """Store (key, envelope, end of life in ms, number of the last invalidation when its making began).

        What an invalidation since then means is left out. Makes room first where the budget would be passed.
        lmdb.Error (MapFullError and others): nothing is stored.
        """
        wanted = sum(len(envelope) for _, envelope, _, _ in entries)
        with self.env.begin(write=True) as txn:
            last = self._last(txn)
            self.counter[0] = last  # heals what a process killed inside `forget` left
            self._make_room(txn, wanted)
            for key, envelope, end_ms, since in entries:
                if since < last and self._is_meant(txn, since, key, tags_in(envelope)):
                    continue
                self._delete(txn, key)
                end = end_ms.to_bytes(END_BYTES, "big")
                txn.put(key, end + envelope, db=self.values)
                txn.put(end + key, b"", db=self._order)
                for tag in tags_in(envelope):
                    txn.put(tag, key, db=self._tags)

    def forget(self, selection: Selection) -> int:
        """Delete what is meant, log it and say so through the counter. Returns how many entries that was."""
        last = None
        try:
            with self.env.begin(write=True) as txn:
                last = self._last(txn)
                if self._is_logged(txn, selection):
                    return 0  # every process of the machine heard it from the fleet; the first one did it for all
                keys = self._meant(txn, selection)
                for key in keys:
                    self._delete(txn, key)
                number = last + 1
                txn.put(number.to_bytes(END_BYTES, "big"), selection.encode(), db=self._log)
                if number > _LOGGED:
                    txn.delete((number - _LOGGED).to_bytes(END_BYTES, "big"), db=self._log)
                # Before the commit, while we are the only writer: later, two processes could set it in either order.
                # Who looks in between finds nothing new in the log and looks again.
                self.counter[0] = number
        except self.lmdb.Error:
            if last is not None:
                self.counter[0] = last
            raise
        return len(keys)

    def make_room(self, share: float = _EVICT_SHARE) -> int:
        """Delete what dies soonest, that share of the budget. Returns how many entries."""
        with self.env.begin(write=True) as txn:
            return self._evict(txn, int(self.max_bytes * share))

    def _make_room(self, txn: Any, wanted: int) -> None:
        used = self._used_bytes(txn)
        # A value takes up to a page more than its bytes; its index entries are small.
        if used + wanted + self._page_bytes > self.max_bytes:
            self._evict(txn, max(int(self.max_bytes * _EVICT_SHARE), 2 * wanted))

    def _evict(self, txn: Any, least_bytes: int) -> int:
        freed = count = 0
        cursor = txn.cursor(self._order)
        while freed < least_bytes and cursor.first():
            key = cursor.key()[END_BYTES:]
            freed += self._delete(txn, key) or 0
            count += 1
        self.evicted += count
        return count

    def _delete(self, txn: Any, key: bytes) -> int:
        """Delete one entry with its places in the indexes; its size, 0 where there is none."""
        data = txn.pop(key, db=self.values)
        if data is None:
            return 0
        txn.delete(data[:END_BYTES] + key, db=self._order)
        for tag in tags_in(data, END_BYTES):
            txn.delete(tag, key, db=self._tags)
        return len(data)

    def _meant(self, txn: Any, selection: Selection) -> list[bytes]:
        if selection.everything:
            return [key for key in txn.cursor(self.values).iternext(values=False) if selection.matches(key, ())]
        keys = {key for key in selection.keys if selection.matches(key, ())}
        for tag in selection.tags:
            cursor = txn.cursor(self._tags)
            if cursor.set_key(tag):
                keys.update(key for key in cursor.iternext_dup() if selection.matches(key, (tag,)))
        return [key for key in keys if txn.get(key, db=self.values) is not None]

    def _is_meant(self, txn: Any, since: int, key: bytes, tags: tuple[bytes, ...]) -> bool:
        cursor = txn.cursor(self._log)
        if not cursor.set_key((since + 1).to_bytes(END_BYTES, "big")):
            return True  # the log does not reach back that far
        return any(Selection.decode(data).matches(key, tags) for data in cursor.iternext(keys=False, values=True))

    def _is_logged(self, txn: Any, selection: Selection) -> bool:
        if not selection.id:
            return False
        cursor = txn.cursor(self._log)
        recent = itertools.islice(cursor.iterprev(keys=False, values=True), _RECENT)
        return any(Selection.decode(data).id == selection.id for data in recent)

    def _last(self, txn: Any) -> int:
        cursor = txn.cursor(self._log)
        return int.from_bytes(cursor.key(), "big") if cursor.last() else 0

    def _used_bytes(self, txn: Any) -> int:
        stats = [txn.stat(db) for db in (self.values, self._order, self._tags, self._log)]
        pages = sum(int(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"]) for s in stats)
        return pages * self._page_bytes
