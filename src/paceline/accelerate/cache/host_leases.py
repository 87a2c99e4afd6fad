"""HostLeases: which process of a machine computes a key, as locks that the kernel releases when their holder dies.

A lease is a POSIX record lock on one byte of a file, at an offset taken from the key: no file per key, no process
waits in the kernel, and `kill -9` of a holder frees it at once. Locks of one process do not exclude each other, so
the process keeps the set of its own.
"""

import fcntl
import os
from pathlib import Path


class HostLeases:
    """The lock file of one folder in this process. OSError: it cannot be opened."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / "leases", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._held: set[int] = set()

    def acquire(self, key: bytes) -> bool:
        """Take the key's lease; False: somebody has it. About 2 us."""
        place = _place(key)
        if place in self._held:
            return False
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):
            return False
        self._held.add(place)
        return True

    def release(self, key: bytes) -> None:
        """Give a lease back; nothing where it is not held."""
        place = _place(key)
        if place in self._held:
            self._held.discard(place)
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)

    def is_held(self, key: bytes) -> bool:
        """True while some process, this one included, has the key's lease."""
        if not self.acquire(key):
            return True
        self.release(key)
        return False

    def close(self) -> None:
        """Give every lease back."""
        self._held.clear()
        os.close(self._file)


def _place(key: bytes) -> int:
    return int.from_bytes(key[-8:], "big") >> 2
