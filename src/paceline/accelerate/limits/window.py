"""Window: what passed in the last minute, for providers that count so. Pure; time is handed in.

A bucket lets pass a minute's worth and its burst in some minutes. A provider that counts over a sliding minute refuses
the burst, and the larger the calls the more often. What passed is kept in cells of half a second, each of which counts
until all of it is surely out of the provider's minute, however long the calls took on their way: one cell longer.
"""

import math
from collections import deque

_CELLS = 120


class Window:
    """At most `limit` in any `span_s`. It counts always, and bounds nothing until it is `armed`."""

    __slots__ = ("_cell_s", "_cells", "_sum", "armed_until_s", "limit", "span_s")

    def __init__(self, limit: float, span_s: float) -> None:
        self.limit, self.span_s = limit, span_s
        self.armed_until_s = -math.inf
        self._cell_s = span_s / _CELLS
        self._cells: deque[list[float]] = deque()  # end of the cell, what passed in it
        self._sum = 0.0

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until so much may pass; 0.0: now. More than all of it waits for an empty window."""
        if now_s >= self.armed_until_s:
            return 0.0
        self._drop(now_s)
        short = self._sum + min(amount, self.limit) - self.limit
        if short <= 0:
            return 0.0
        for end_s, passed in self._cells:
            short -= passed
            if short <= 0:
                return end_s + self.span_s - now_s
        return 0.0

    def take(self, amount: float, now_s: float) -> None:
        """Count what passes; negative to take it back."""
        cells = self._cells
        if not cells or now_s >= cells[-1][0]:
            self._drop(now_s)
            cells.append([now_s + self._cell_s, 0.0])
        cells[-1][1] += amount
        self._sum += amount

    def arm(self, now_s: float, for_s: float) -> None:
        """The provider refused what a bucket let pass: bound it for so long."""
        self.armed_until_s = max(self.armed_until_s, now_s + for_s)

    def _drop(self, now_s: float) -> None:
        cells, before_s = self._cells, now_s - self.span_s
        while cells and cells[0][0] <= before_s:
            self._sum -= cells.popleft()[1]
