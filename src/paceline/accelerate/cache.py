"""The exact cache: complete answers in this process's memory, least recently used out first."""

import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

_ENTRY_BYTES = 600  # what Python spends on an entry besides its bytes, about


class StoredReply(msgspec.Struct, frozen=True, kw_only=True):
    """One complete answer of status 200. `pieces` are the events of a stream, or the whole body as one."""

    headers: list[tuple[bytes, bytes]]
    pieces: list[bytes]
    stream: bool
    cost_usd: float | None = None  # what it cost when it was made, and so what a hit saves

    @property
    def size_bytes(self) -> int:
        """Memory it takes, about."""
        return _ENTRY_BYTES + sum(map(len, self.pieces)) + sum(len(n) + len(v) for n, v in self.headers)


class MemoryCache:
    """Holds at most `max_bytes`, each entry at most `ttl_s`. Not for several threads."""

    def __init__(self, max_bytes: int, ttl_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self.ttl_s = ttl_s
        self.used_bytes = 0
        self.evicted = 0
        self._now_s = now_s
        self._entries: OrderedDict[bytes, tuple[float, int, StoredReply]] = OrderedDict()  # expiry, size, reply

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> StoredReply | None:
        """The answer stored under `key`, unless it is too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] <= self._now_s():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry[2]

    def put(self, key: bytes, reply: StoredReply) -> None:
        """Store an answer, pushing out the least recently used; one larger than the whole cache is not kept."""
        if key in self._entries:
            self._drop(key)
        size = reply.size_bytes
        if size > self.max_bytes:
            return
        while self.used_bytes + size > self.max_bytes:
            self._drop(next(iter(self._entries)))
            self.evicted += 1
        self._entries[key] = (self._now_s() + self.ttl_s, size, reply)
        self.used_bytes += size

    def _drop(self, key: bytes) -> None:
        self.used_bytes -= self._entries.pop(key)[1]
