"""The memory level: this process's own objects, least recently used out first, within a budget of bytes."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from .selection import Selection

ENTRY_BYTES = 800  # what Python spends on an entry besides its value: slots, two dictionary places, key, times
_TAG_BYTES = 120


class Entry:
    """One value in memory, and when it needs a second look.

    Until `quiet_s` a hit needs nothing but counting: it is neither expired, nor due for an early refresh, nor would
    its age or recurrence fall into another bucket. All of that is decided when that time has come.
    """

    __slots__ = (
        "asked_s",
        "compute_s",
        "created_s",
        "dead_s",
        "expires_s",
        "groups",
        "hits",
        "is_last",
        "key",
        "name",
        "quiet_s",
        "refresh_s",
        "size",
        "tags",
        "told",
        "value",
    )

    def __init__(
        self,
        key: bytes,
        value: Any,
        size: int,
        *,
        created_s: float,
        expires_s: float,
        dead_s: float,
        compute_s: float = 0.0,
        tags: tuple[bytes, ...] = (),
        name: object = None,
        groups: tuple[Any, ...] = (),
        is_last: bool = True,
    ) -> None:
        self.key = key
        self.value = value
        self.size = size + ENTRY_BYTES + _TAG_BYTES * len(tags) + (0 if name is None else _name_bytes(name))
        self.created_s = created_s
        self.expires_s = expires_s  # from here on stale
        self.dead_s = dead_s  # from here on gone
        self.compute_s = compute_s
        self.tags = tags
        self.name = name  # under which get_or_compute asks for it; None: only by its storage key
        self.groups = groups  # whose statistics its hits count in
        self.is_last = is_last  # its end is the answer's, not just that of its stay here
        self.quiet_s = -math.inf
        self.refresh_s = -math.inf  # until then somebody refreshes it
        self.hits = 0
        self.told = 0  # hits already counted in the statistics
        self.asked_s = created_s


class MemoryLevel:
    """Entries by storage key and by name. Not for several threads.

    Args:
        max_bytes: Never exceeded by the sum of the entries' estimated sizes.
        on_drop: Told each entry that leaves, before it is gone.
    """

    def __init__(self, max_bytes: int, on_drop: Callable[[Entry], None] | None = None) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.evicted = 0  # entries that left for want of space
        self.too_large = 0  # values that are larger than the whole level
        self.entries: OrderedDict[bytes, Entry] = OrderedDict()
        self.named: dict[object, Entry] = {}
        self._tagged: dict[bytes, set[bytes]] = {}
        self._on_drop = on_drop

    def __len__(self) -> int:
        return len(self.entries)

    def put(self, entry: Entry) -> bool:
        """Hold an entry, in place of the one under its key. False: it is larger than the whole level."""
        old = self.entries.get(entry.key)
        if old is not None:
            self.drop(old)
        if entry.size > self.max_bytes:
            self.too_large += 1
            return False
        while self.used_bytes + entry.size > self.max_bytes:
            self.drop(next(iter(self.entries.values())))
            self.evicted += 1
        self.entries[entry.key] = entry
        self.used_bytes += entry.size
        if entry.name is not None:
            self.named[entry.name] = entry
        for tag in entry.tags:
            self._tagged.setdefault(tag, set()).add(entry.key)
        return True

    def call(self, entry: Entry, name: object) -> None:
        """Let an entry be found under a name too."""
        if entry.name is None and entry.key in self.entries:
            self.drop(entry)
            entry.name = name
            entry.size += _name_bytes(name)
            self.put(entry)

    def drop(self, entry: Entry) -> None:
        """Forget an entry it holds."""
        if self._on_drop is not None:
            self._on_drop(entry)
        del self.entries[entry.key]
        self.used_bytes -= entry.size
        if entry.name is not None:
            self.named.pop(entry.name, None)
        for tag in entry.tags:
            keys = self._tagged[tag]
            keys.discard(entry.key)
            if not keys:
                del self._tagged[tag]

    def forget(self, selection: Selection) -> int:
        """Drop what is meant and return how many that was."""
        if selection.everything:
            keys = set(self.entries)
        else:
            keys = {key for key in selection.keys if key in self.entries}
            keys.update(*(self._tagged.get(tag, ()) for tag in selection.tags))
        meant = [entry for key in keys if selection.matches(key, (entry := self.entries[key]).tags)]
        for entry in meant:
            self.drop(entry)
        return len(meant)


def _name_bytes(name: object) -> int:
    """Memory of a name; one that is a tenant and a name is a tuple."""
    if isinstance(name, str | bytes):
        return 2 * len(name)
    return 64 + sum(_name_bytes(part) for part in name) if isinstance(name, tuple) else 0
