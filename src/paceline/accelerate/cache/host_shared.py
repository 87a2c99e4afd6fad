"""SharedStore: a folder opened once in this process, whoever uses it, and never across a fork.

LMDB forbids opening a folder twice in one process and using one that was opened before a fork; closing an inherited
one in the child would take away the parent's places in the table of readers (seen with lmdb 3.0: the parent's next
read fails with BadRslotError). So before a fork every folder is closed, and afterwards each process opens its own.
That needs the thread that uses the folder to be the one that forks; where another one does, the child goes without.
"""

import contextlib
import os
import threading
import weakref
from pathlib import Path
from typing import Protocol

from .host_leases import HostLeases
from .host_store import HostStore
from .host_writer import HostWriter


class StoreUser(Protocol):
    """Something that uses a store."""

    def forked(self, reason: str | None) -> None:
        """This is a child now: open the store anew when needed, or, for that reason, never."""
        ...


class SharedStore:
    """An open folder with its writer and its leases. OSError, lmdb.Error: it cannot be used."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.users = 0
        self.folder = folder
        self.store = HostStore(folder, max_bytes)
        self.writer = HostWriter(self.store)
        self.leases = HostLeases(folder)
        self._thread = threading.get_ident()
        self.is_suspended = False

    def suspend(self) -> None:
        """Close the environment, between two writes. Not where another thread may be reading, or a write hangs."""
        if threading.get_ident() == self._thread and self.writer.pause(_PAUSE_S):
            self.store.suspend()
            self.is_suspended = True

    def resume(self) -> None:
        """Open it again, in the parent."""
        if self.is_suspended:
            self.is_suspended = False
            with contextlib.suppress(OSError, self.store.lmdb.Error):
                self.store.resume()  # where that fails every read does, and the level turns itself off
            self.writer.go_on()

    def leave_to_parent(self) -> None:
        """In the child: let go of the parent's files. Its locks stay with it."""
        self.store.leave_to_parent()
        with contextlib.suppress(OSError):
            self.leases.close()


_PAUSE_S = 5.0
_opened: dict[Path, SharedStore] = {}
_users: weakref.WeakSet[StoreUser] = weakref.WeakSet()
_inherited: list[SharedStore] = []  # what cannot be closed in a child is kept from being collected
_watching = False


def open_store(folder: Path, max_bytes: int, user: StoreUser) -> SharedStore:
    """The open folder; `close_store` when done. `user` is told of forks. OSError, lmdb.Error: it cannot be used."""
    global _watching
    if not _watching:
        os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
        _watching = True
    shared = _opened.get(folder)
    if shared is None:
        shared = _opened[folder] = SharedStore(folder, max_bytes)
    shared.users += 1
    _users.add(user)
    return shared


def close_store(shared: SharedStore) -> None:
    """One user less; the last one's leaving writes what waits and closes the folder. Blocks up to 5 s."""
    shared.users -= 1
    if shared.users:
        return
    if _opened.get(shared.folder) is shared:
        del _opened[shared.folder]
    if shared.writer.close():
        shared.leases.close()
        shared.store.close()


def _before_fork() -> None:
    for shared in _opened.values():
        shared.suspend()


def _after_in_parent() -> None:
    for shared in _opened.values():
        shared.resume()


def _after_in_child() -> None:
    open_still = [shared for shared in _opened.values() if not shared.is_suspended]
    for shared in _opened.values():
        shared.leave_to_parent()
    _inherited.extend(open_still)
    _opened.clear()
    for user in _users:
        user.forked("it was open when another thread forked; make the Cache after forking" if open_still else None)
