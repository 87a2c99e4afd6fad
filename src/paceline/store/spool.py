"""Spool: the live end of a table, append-only JSON lines that survive `kill -9`.

A process writes whole lines with one system call and never rewrites, so a killed writer loses what it had
not flushed and at worst leaves one torn last line, which readers skip. Needs msgspec and the standard
library only: it also runs inside the recorded application.
"""

import errno
import os
import threading
from pathlib import Path

import msgspec

TABLES = ("requests", "spans", "resources")
_MAX_PENDING = 100_000  # records kept while the disk refuses them; beyond it new ones are dropped and counted
_encode = msgspec.json.Encoder().encode


class Spool:
    """Appends records of one table to `{table}-{writer}.jsonl`. Whoever creates it closes it.

    `append` is thread-safe and never touches the disk; the owner calls `flush` at least every 0.25 s.
    """

    def __init__(self, run_dir: Path, table: str, writer: str) -> None:
        if table not in TABLES:
            msg = f"table must be one of {', '.join(TABLES)}; got {table!r}"
            raise ValueError(msg)
        self.path = Path(run_dir) / f"{table}-{writer}.jsonl"
        self.dropped = 0
        self.written = 0
        self._pending: list[msgspec.Struct] = []
        self._torn = False
        self._lock = threading.Lock()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, record: msgspec.Struct) -> None:
        """Keep a record for the next flush. About 0.1 us; dropped and counted when too many wait for a full disk."""
        if len(self._pending) < _MAX_PENDING:
            self._pending.append(record)
        else:
            self.dropped += 1

    def flush(self) -> None:
        """Write what was appended, in whole lines.

        Raises:
            OSError: the disk refused (full, gone). The records are kept and tried again at the next flush.
        """
        with self._lock:
            if not self._pending or self._fd < 0:
                return
            batch, self._pending = self._pending, []
            data = b"".join(_encode(record) + b"\n" for record in batch)
            kept = 0
            try:
                kept = self._write(data)
            finally:
                self.written += kept
                if kept < len(batch):
                    self._pending = batch[kept:] + self._pending
            if kept < len(batch):
                raise OSError(errno.ENOSPC, "the disk took only part of the data", str(self.path))

    def close(self) -> None:
        """Flush and close; closing twice is fine. Raises OSError like `flush`, after closing."""
        try:
            self.flush()
        finally:
            with self._lock:
                if self._fd >= 0:
                    os.close(self._fd)
                    self._fd = -1

    def _write(self, data: bytes) -> int:
        """Write and return how many whole lines the disk took."""
        mend = b"\n" if self._torn else b""  # ends the half line an earlier failure left, so that only it is lost
        written = os.write(self._fd, mend + data) - len(mend)
        if written < 0:
            return 0
        self._torn = written > 0 and data[written - 1 : written] != b"\n"
        return data.count(b"\n", 0, written)
