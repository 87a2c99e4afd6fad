"""Replay: a kept answer as it goes to a caller, its bytes made once for each second of its age."""

from collections import OrderedDict

from paceline.accelerate.cache import Found, StoredReply
from paceline.wire.http import Reply

USD = b"%.9f"  # an amount as a header's value, to a billionth of a dollar
_MEMO_BYTES = 32 * 1024 * 1024
_ENTRY_BYTES = 1500
_LARGEST_BYTES = 256 * 1024  # a larger answer is put together each time


class Replays:
    """Makes replies of stored answers. Remembers the bytes of those asked for again within a second."""

    def __init__(self) -> None:
        self._ready: OrderedDict[bytes, tuple[StoredReply, int, str, Reply]] = OrderedDict()
        self._bytes = 0

    def reply(self, key: bytes, found: Found) -> Reply:
        """The reply for a caller who asked for `key`."""
        stored: StoredReply = found.value
        age_s = int(found.age_s)
        ready = self._ready.get(key)
        if ready is not None and ready[0] is stored and ready[1] == age_s and ready[2] == found.level:
            return ready[3]
        reply = Reply(stored.status, _headers(stored, found), stored.pieces if stored.stream else stored.pieces[0])
        if stored.size_bytes > _LARGEST_BYTES:
            return reply
        reply = reply.encoded()
        if ready is not None:
            self._forget(key)
        self._ready[key] = (stored, age_s, found.level, reply)
        self._bytes += _size(reply)
        while self._bytes > _MEMO_BYTES:
            self._forget(next(iter(self._ready)))
        return reply

    def _forget(self, key: bytes) -> None:
        self._bytes -= _size(self._ready.pop(key)[3])


def _size(reply: Reply) -> int:
    return _ENTRY_BYTES + len(reply.wire or b"")


def _headers(stored: StoredReply, found: Found) -> list[tuple[bytes, bytes]]:
    """What it was stored with, where it comes from, how old it is and what it spares."""
    headers = [
        *stored.headers,
        (b"x-paceline-cache", b"hit"),
        (b"x-paceline-cache-level", found.level.encode()),
        (b"age", b"%d" % found.age_s),
        (b"x-paceline-cost-usd", b"0"),
    ]
    if found.is_stale:
        headers.append((b"x-paceline-cache-stale", b"1"))
    if stored.cost_usd is not None:
        headers.append((b"x-paceline-saved-usd", USD % stored.cost_usd))
    return headers
