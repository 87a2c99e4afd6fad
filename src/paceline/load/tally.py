"""Tally: what was answered so far, counted for whoever watches: kinds of errors, cache outcomes, first tokens."""

from collections import Counter
from typing import TYPE_CHECKING

from paceline.model.request import Request
from paceline.stats.histogram import Histogram
from paceline.store.rows import CACHES, ERRORS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HITS = ("hit", "join")


def failure(error: str, status: int | None, check: str | None = None) -> str:
    """What a kind of error is called: `status 503`, `timeout`, `check contains "ok"`."""
    detail = status if error == "status" else check if error == "check" else None
    return f"{error} {detail}" if detail else error


class Tally:
    """Counts of one process. Rows come by the block, which costs numpy as much for 500 as for 50."""

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        self.first_tokens = Histogram()
        self.hits = self.misses = self.tokens = 0

    def add_rows(self, rows: "NDArray[np.void]") -> None:
        """Requests as store/rows.py keeps them."""
        import numpy as np

        caches = np.bincount(rows["cache"], minlength=len(CACHES)).tolist()
        hits = sum(count for name, count in zip(CACHES, caches, strict=True) if name in _HITS)
        self.hits += hits
        self.misses += sum(caches[1:]) - hits
        failed = rows[rows["error"] > 0]
        if len(failed):
            kinds = failed["error"].astype(np.uint32) << 16 | failed["status"]
            for kind, count in zip(*(a.tolist() for a in np.unique(kinds, return_counts=True)), strict=True):
                self.failures[failure(str(ERRORS[kind >> 16]), kind & 0xFFFF)] += count

    def add(self, request: Request) -> None:
        """A request that was recorded in full."""
        if request.error is not None:
            self.failures[failure(request.error, request.status, request.failed_check)] += 1
        if request.cache is not None:
            self.hits += request.cache in _HITS
            self.misses += request.cache not in _HITS
        if request.first_token_s is not None:
            self.first_tokens.record(request.first_token_s - request.intended_s)
            self.tokens += request.output_tokens or len(request.gaps_s) + 1
