"""A histogram of durations: 0.4 % precise at any size, at most 200 kB, mergeable.

Whole nanoseconds fall into buckets by their power of two and the next 7 bits, so a bucket is at most 1/128 of its
value wide, and the middle of it at most 0.4 % off. A record is an append; every 4,096 of them are counted together by
numpy, three times cheaper than counting each at once in Python. `benchmarks/load.py` measures it.
"""
# ruff: noqa: SLF001 - histograms look into each other

import math
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BITS = 7  # linear bits below the leading one
_LARGEST_NS = (1 << 50) - 1  # 13 days; longer durations count as that
_BUCKETS = (50 - _BITS + 1) << _BITS
_PENDING = 4096  # 0.2 ms to count


class _Saved(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    counts: list[tuple[int, int]]  # (bucket, count), empty buckets left out
    sum_s: float
    min_s: float | None
    max_s: float | None


class Histogram:
    """Durations in seconds. Not for several threads at once; give each its own and merge."""

    __slots__ = ("_count", "_counts", "_max_s", "_min_s", "_pending", "_sum_s")

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * _BUCKETS))
        self._pending: list[float] = []  # recorded, not counted yet
        self._count = 0
        self._sum_s = 0.0
        self._min_s = math.inf
        self._max_s = -math.inf

    @classmethod
    def of(cls, durations_s: Iterable[float]) -> "Histogram":
        """A histogram of these durations."""
        histogram = cls()
        for duration_s in durations_s:
            histogram.record(duration_s)
        return histogram

    def record(self, duration_s: float) -> None:
        """Count one duration; a negative one counts as zero."""
        pending = self._pending
        pending.append(duration_s)
        if len(pending) >= _PENDING:
            self._settle()

    def record_all(self, durations_s: "NDArray[np.float64]") -> None:
        """Count many at once, about 30 ns each."""
        import numpy as np

        if not len(durations_s):
            return
        durations_s = np.maximum(durations_s, 0.0)
        ns = np.minimum(durations_s * 1e9, _LARGEST_NS).astype(np.int64)
        # frexp gives the bit length of any whole number below 2**53.
        shift = np.maximum(np.frexp(ns.astype(np.float64))[1] - _BITS - 1, 0)
        buckets = (shift.astype(np.int64) << _BITS) + (ns >> shift)
        counts = np.frombuffer(self._counts, dtype=np.uint64)
        counts += np.bincount(buckets, minlength=_BUCKETS).astype(np.uint64)
        self._count += len(durations_s)
        self._sum_s += float(durations_s.sum())
        self._min_s = min(self._min_s, float(durations_s.min()))
        self._max_s = max(self._max_s, float(durations_s.max()))

    def _settle(self) -> None:
        """Count what is pending."""
        if self._pending:
            import numpy as np

            pending, self._pending = self._pending, []
            self.record_all(np.frombuffer(array("d", pending), dtype=np.float64))

    @property
    def count(self) -> int:
        """How many were recorded."""
        return self._count + len(self._pending)

    @property
    def sum_s(self) -> float:
        """Exact sum."""
        self._settle()
        return self._sum_s

    @property
    def min_s(self) -> float:
        """The shortest; infinite when empty."""
        self._settle()
        return self._min_s

    @property
    def max_s(self) -> float:
        """The longest; minus infinity when empty."""
        self._settle()
        return self._max_s

    def merge(self, other: "Histogram") -> "Histogram":
        """A new histogram that answers as one that saw the samples of both."""
        return Histogram.merged([self, other])

    @classmethod
    def merged(cls, parts: "Iterable[Histogram]") -> "Histogram":
        """A new histogram that answers as one that saw the samples of all."""
        import numpy as np

        whole = cls()
        counts = np.frombuffer(whole._counts, dtype=np.uint64)
        for part in parts:
            counts += np.frombuffer(part._counted(), dtype=np.uint64)
            whole._count += part._count
            whole._sum_s += part._sum_s
            whole._min_s = min(whole._min_s, part._min_s)
            whole._max_s = max(whole._max_s, part._max_s)
        return whole

    @property
    def mean_s(self) -> float | None:
        """Exact mean; None when empty."""
        return self.sum_s / self.count if self.count else None

    def quantile(self, q: float) -> float | None:
        """The q-th quantile in seconds by nearest rank, as `stats.quantiles.quantile`; None when empty.

        At most 0.4 % (or 1 ns) off.
        """
        found = self.quantiles([q])
        return found[0] if found else None

    def quantiles(self, qs: Sequence[float]) -> list[float]:
        """Several at the price of one, about 20 us; an empty list when nothing was recorded."""
        import numpy as np

        if not all(0 <= q <= 1 for q in qs):
            msg = f"q must lie in 0 to 1; got {', '.join(map(str, qs))}"
            raise ValueError(msg)
        self._settle()
        if not self._count:
            return []
        ranks = [max(1, math.ceil(q * self._count - 1e-9)) for q in qs]
        seen = np.cumsum(np.frombuffer(self._counts, dtype=np.uint64))
        buckets = np.searchsorted(seen, np.array(ranks, dtype=np.uint64))
        return [min(max(_middle_ns(int(b)) / 1e9, self._min_s), self._max_s) for b in buckets]

    def copy(self) -> "Histogram":
        """Another one with the same contents."""
        other = Histogram()
        other._take(self, array("Q", self._counted()))
        return other

    def since(self, earlier: "Histogram") -> "Histogram":
        """What was recorded after `earlier` was copied from this one. Its extremes are those of buckets, not exact."""
        import numpy as np

        mine, before = (np.frombuffer(h._counted(), dtype=np.uint64) for h in (self, earlier))
        counts = mine - before
        new = Histogram()
        new._take(self, array("Q", counts.tobytes()))
        new._count -= earlier._count
        new._sum_s -= earlier._sum_s
        filled = np.flatnonzero(counts)
        ends = (_middle_ns(int(filled[0])) / 1e9, _middle_ns(int(filled[-1])) / 1e9) if len(filled) else None
        new._min_s, new._max_s = ends or (math.inf, -math.inf)
        new._max_s = min(new._max_s, self._max_s)
        return new

    def _counted(self) -> "array[int]":
        self._settle()
        return self._counts

    def _take(self, other: "Histogram", counts: "array[int]") -> None:
        self._counts, self._count, self._sum_s = counts, other._count, other._sum_s
        self._min_s, self._max_s = other._min_s, other._max_s

    def encode(self) -> bytes:
        """The histogram as JSON."""
        import numpy as np

        self._settle()
        all_counts = np.frombuffer(self._counts, dtype=np.uint64)
        filled = np.flatnonzero(all_counts)
        counts = list(zip(filled.tolist(), all_counts[filled].tolist(), strict=True))
        ends = (self._min_s, self._max_s) if self._count else (None, None)
        return msgspec.json.encode(_Saved(1, counts, self._sum_s, *ends))

    @classmethod
    def decode(cls, data: bytes) -> "Histogram":
        """The histogram that `encode` gave. Raises ValueError for anything else."""
        saved = msgspec.json.decode(data, type=_Saved)
        histogram = cls()
        for bucket, count in saved.counts:
            if not (0 <= bucket < _BUCKETS and count > 0):
                msg = f"not a saved histogram: bucket {bucket} with count {count}"
                raise ValueError(msg)
            histogram._counts[bucket] += count
            histogram._count += count
        histogram._sum_s = saved.sum_s
        if saved.min_s is not None and saved.max_s is not None:
            histogram._min_s, histogram._max_s = saved.min_s, saved.max_s
        return histogram

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        self._settle()
        other._settle()
        # Sums of floats depend on the order they were added in.
        same_sum = math.isclose(self._sum_s, other._sum_s, rel_tol=1e-9, abs_tol=1e-12)
        return same_sum and (self._counts, self._min_s, self._max_s) == (other._counts, other._min_s, other._max_s)

    __hash__ = None  # type: ignore[assignment]  # it changes


def _middle_ns(bucket: int) -> float:
    shift = (bucket >> _BITS) - 1
    if shift <= 0:
        return bucket  # one value a bucket
    return ((bucket - (shift << _BITS)) << shift) + ((1 << shift) - 1) / 2
