"""Statistics: what each level did, and which families of keys and which tags hit."""

import msgspec

from paceline.stats.histogram import Histogram

from .recurrence import Advice

_MOST_GROUPS = 256
OTHER = "(other)"
_AGES = 32


class LevelStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One level, as this process saw it. `entries` and `bytes` are the whole level's, None: unknown."""

    name: str
    state: str  # "up", or why it is not used
    hits: int
    misses: int
    errors: int
    hit_rate: float | None  # None: nothing was asked
    puts: int
    dropped: int  # not stored: too large, or too much was waiting to be written
    evicted: int
    unreadable: int  # damaged, of another version, or sealed with another secret
    entries: int | None
    bytes: int | None
    read_bytes: int
    written_bytes: int
    latency_p50_s: float | None  # of a look-up; memory and host: of a sample
    latency_p99_s: float | None


class GroupStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One family of keys, or one tag. `expired` of the misses found an answer that had just become too old."""

    name: str
    hits: int
    misses: int
    expired: int
    hit_rate: float | None


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, since the cache was made, for this process."""

    requests: int
    hits: int
    misses: int  # asked of no level with success; joined, waited for, or computed
    hit_rate: float | None
    computed: int
    joined: int  # shared the computation of another caller of this process
    waited: int  # took the answer another process was computing
    stale: int  # hits beyond their time to live
    refreshed: int  # made anew in the background
    failed: int  # computations that raised
    invalidations: int
    levels: list[LevelStatistics]
    patterns: list[GroupStatistics]
    tags: list[GroupStatistics]
    ages: list[tuple[float, int]]  # (below so many seconds, hits of that age)
    recurrence: Advice


class LevelCounts:
    """Counts of one level."""

    def __init__(self) -> None:
        self.hits = self.misses = self.errors = self.puts = self.dropped = self.unreadable = 0
        self.read_bytes = self.written_bytes = 0
        self.latency = Histogram()

    def summary(self, name: str, state: str, entries: int | None, size: int | None, evicted: int) -> LevelStatistics:
        """As a record."""
        asked = self.hits + self.misses
        return LevelStatistics(
            name=name,
            state=state,
            hits=self.hits,
            misses=self.misses,
            errors=self.errors,
            hit_rate=self.hits / asked if asked else None,
            puts=self.puts,
            dropped=self.dropped,
            evicted=evicted,
            unreadable=self.unreadable,
            entries=entries,
            bytes=size,
            read_bytes=self.read_bytes,
            written_bytes=self.written_bytes,
            latency_p50_s=self.latency.quantile(0.5),
            latency_p99_s=self.latency.quantile(0.99),
        )


class Group:
    """Counts of one family of keys or one tag."""

    __slots__ = ("expired", "hits", "misses", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.hits = self.misses = self.expired = 0


class Groups:
    """Groups by name, the first 256; what comes later counts as "(other)"."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}

    def __getitem__(self, name: str) -> Group:
        group = self._groups.get(name)
        if group is None:
            if len(self._groups) >= _MOST_GROUPS:
                name = OTHER
            group = self._groups.setdefault(name, Group(name))
        return group

    def summary(self) -> list[GroupStatistics]:
        """As records, the most asked first."""
        rows = [
            GroupStatistics(
                name=g.name,
                hits=g.hits,
                misses=g.misses,
                expired=g.expired,
                hit_rate=g.hits / (g.hits + g.misses) if g.hits + g.misses else None,
            )
            for g in self._groups.values()
        ]
        return sorted(rows, key=lambda row: -(row.hits + row.misses))


class Ages:
    """How old answers were when they were given, by powers of two of a second."""

    def __init__(self) -> None:
        self.counts = [0] * _AGES

    def add(self, age_s: float, hits: int = 1) -> None:
        """Count hits of one age."""
        self.counts[0 if age_s < 1.0 else age_bucket(age_s)] += hits

    def summary(self) -> list[tuple[float, int]]:
        """(below so many seconds, hits) of the ages that occurred."""
        return [(float(1 << i), hits) for i, hits in enumerate(self.counts) if hits]

    @property
    def total(self) -> int:
        """All hits."""
        return sum(self.counts)


def age_bucket(age_s: float) -> int:
    """Which bucket an age falls into: 0 below 1 s, 1 below 2 s, 2 below 4 s, ..."""
    return min(int(max(age_s, 0.0)).bit_length(), _AGES - 1)
