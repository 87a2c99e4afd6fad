"""Recent: the last invalidations this process applied, so that what was computed before one is not stored after it."""

from collections import deque
from collections.abc import Collection

from .selection import Selection

_KEPT = 1_024


class Recent:
    """Numbers each invalidation; remembers the last 1,024."""

    def __init__(self) -> None:
        self.number = 0
        self._last: deque[Selection] = deque(maxlen=_KEPT)

    def add(self, selection: Selection) -> None:
        """One was applied."""
        self.number += 1
        self._last.append(selection)

    def mean(self, since: int, key: bytes, tags: Collection[bytes]) -> bool:
        """True when one after number `since` means the entry, or when nobody knows any more."""
        missed = self.number - since
        if missed == 0:
            return False
        if missed > len(self._last):
            return True
        return any(self._last[-i].matches(key, tags) for i in range(1, missed + 1))
