"""Recurrence: after how long keys are asked again, and so what each time to live would have been worth.

A sample of the keys, chosen by their hash, is followed exactly; every other key costs one comparison. Sampling by
hash keeps the proportions of frequent and rare keys, so rates over the sample estimate rates over all (SHARDS, fixed
size: Waldspurger et al., "Efficient MRC Construction with SHARDS", FAST 2015). When the sample is full the share of
hash space that is followed shrinks, the keys outside it are forgotten and what they counted is scaled down.

For each sampled key and each candidate time to live the time of the fill that would be in force is kept: an ask
within the time to live of it would have been a hit, a later one a miss and a new fill. Between an ask and the first
moment at which any candidate would miss, every ask is a hit for all of them: those are counted, not looked at.

Not modelled: entries that leave because a level is full, and invalidations. Both make real rates lower.
"""

import heapq
import math

import msgspec

CANDIDATES_S = (1, 5, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 10_800, 21_600, 43_200, 86_400, 259_200, 604_800)
GAPS = 32  # buckets: below 1 s, below 2 s, below 4 s, ...
_SPACE = 1 << 32
_NEAR_BEST = 0.95


class TtlAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """What one time to live would have given."""

    ttl_s: float
    hit_rate: float | None  # of the keys asked so far, without limits of size; None: nothing was asked


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about how long answers should live."""

    asks: int  # of sampled keys
    keys: int  # followed now
    sampled_share: float  # of all keys
    candidates: list[TtlAdvice]
    ttl_s: float | None  # the shortest that gives 95 % of the hits of the longest; None: nothing would be hit
    gaps: list[tuple[float, int]]  # (below so many seconds, asks that came so long after the one before)


class _Followed:
    __slots__ = ("fills", "last_s", "next_s")

    def __init__(self, now_s: float) -> None:
        self.fills = [now_s] * len(CANDIDATES_S)
        self.last_s = now_s
        self.next_s = now_s + CANDIDATES_S[0]


class Recurrence:
    """Follows at most `most_keys` keys, about 1 kB each."""

    def __init__(self, most_keys: int = 2_048) -> None:
        self._most_keys = most_keys
        self._limit = _SPACE  # hashes below it are followed
        self._followed: dict[bytes, _Followed] = {}
        self._largest: list[tuple[int, bytes]] = []  # heap, largest hash first
        self._asks = 0.0
        self._hits_of_all = 0.0  # asks that every candidate would have answered
        self._hits = [0.0] * len(CANDIDATES_S)  # the others
        self._gaps = [0.0] * GAPS

    def asked(self, key: bytes, now_s: float) -> float:
        """A key is asked. Until the returned time further asks may be told in bulk, see `repeated`."""
        followed = self._followed.get(key)
        if followed is None:
            place = int.from_bytes(key[-4:], "big")
            if place >= self._limit:
                return math.inf
            self._asks += 1
            followed = self._follow(key, place, now_s)
            return math.inf if followed is None else followed.next_s
        self._asks += 1
        gap_s = now_s - followed.last_s
        self._gaps[0 if gap_s < 1.0 else _bucket(gap_s)] += 1
        followed.last_s = now_s
        if now_s < followed.next_s:
            self._hits_of_all += 1
            return followed.next_s
        fills, hits, next_s = followed.fills, self._hits, math.inf
        for i, ttl_s in enumerate(CANDIDATES_S):
            if now_s < fills[i] + ttl_s:
                hits[i] += 1
            else:
                fills[i] = now_s
            next_s = min(next_s, fills[i] + ttl_s)
        followed.next_s = next_s
        return next_s

    def repeated(self, key: bytes, asks: int, last_s: float) -> None:
        """A key was asked that many more times, the last time at `last_s`, before the time `asked` returned."""
        followed = self._followed.get(key)
        if followed is None or not asks:
            return
        self._asks += asks
        self._hits_of_all += asks
        self._gaps[0] += asks  # each below the shortest candidate, 1 s
        followed.last_s = max(followed.last_s, last_s)

    def advise(self) -> Advice:
        """What each candidate would have given so far."""
        rows = [
            TtlAdvice(ttl_s=ttl_s, hit_rate=(self._hits_of_all + self._hits[i]) / self._asks if self._asks else None)
            for i, ttl_s in enumerate(CANDIDATES_S)
        ]
        best = rows[-1].hit_rate
        near = [row.ttl_s for row in rows if best and row.hit_rate is not None and row.hit_rate >= _NEAR_BEST * best]
        return Advice(
            asks=round(self._asks),
            keys=len(self._followed),
            sampled_share=self._limit / _SPACE,
            candidates=rows,
            ttl_s=near[0] if near else None,
            gaps=[(float(1 << i), round(count)) for i, count in enumerate(self._gaps) if count],
        )

    def _follow(self, key: bytes, place: int, now_s: float) -> _Followed | None:
        followed = self._followed[key] = _Followed(now_s)
        heapq.heappush(self._largest, (-place, key))
        if len(self._followed) <= self._most_keys:
            return followed
        largest, dropped = heapq.heappop(self._largest)
        del self._followed[dropped]
        before, self._limit = self._limit, -largest
        self._scale(self._limit / before)
        return None if dropped == key else followed

    def _scale(self, factor: float) -> None:
        self._asks *= factor
        self._hits_of_all *= factor
        self._hits = [hits * factor for hits in self._hits]
        self._gaps = [count * factor for count in self._gaps]


def _bucket(gap_s: float) -> int:
    return min(int(max(gap_s, 0.0)).bit_length(), GAPS - 1)
