"""What happened to the calls, counted: one small record for each combination of names, bounded in number.

A call costs one look-up and a dozen additions (1 to 2 us; `prometheus_client` took 5 to 9 us for the same counts).
Everything else - cumulative buckets, sums over names, text - is worked out when somebody asks.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable

import msgspec

from paceline.accelerate.record import CallRecord
from paceline.gateway.keys.door import KeyCaller
from paceline.wire.call import EMBEDDING, LLM

# Upper bounds, as OpenTelemetry's GenAI conventions advise them; values above the last go to one more bucket.
SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
FIRST_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

OTHER = "other"  # stands for every name beyond the bound
MAX_NAMES = 100  # of models, of steps; keys are as many as there are
MAX_SERIES = 2_000
_MAX_MEMO = 10_000
_MAX_NAME = 80  # characters
_SHARED = "_shared_"  # in the name of a gauge that every process sees whole: the highest counts, not the sum
# OpenTelemetry's names.
_PROVIDERS = {"openai": "openai", "anthropic": "anthropic", "gemini": "gcp.gemini"}
_OPERATIONS = {LLM: "chat", EMBEDDING: "embeddings"}


class Spread(msgspec.Struct, array_like=True):
    """Counts per bucket, and the sum of what was observed. The bounds are the field's: see BOUNDS."""

    counts: list[int]
    total: float = 0.0

    def add(self, value: float, bounds: tuple[float, ...]) -> None:
        """Observe a value."""
        self.counts[bisect_left(bounds, value)] += 1
        self.total += value

    def merge(self, other: "Spread") -> None:
        """Observe everything the other did."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


class Names(msgspec.Struct, array_like=True, frozen=True):
    """What the calls of one series have in common."""

    tenant: str
    key: str
    provider: str
    operation: str  # "chat", "embeddings", as OpenTelemetry calls them; "" for what is no model call
    model: str  # as it was asked for
    served_model: str  # as it was asked of the provider: another one where a route or a fallback chose it
    step: str
    outcome: str  # hit, join, miss, bypass, refresh
    level: str  # of the cache that had the answer: memory, host, fleet; "" for none
    error: str  # "" for none


class Series(msgspec.Struct, array_like=True):
    """Counts of the calls with the same names."""

    names: Names
    seconds: Spread
    first_seconds: Spread
    queue_seconds: Spread
    input_tokens: Spread
    output_tokens: Spread
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: int = 0  # calls whose tokens the provider did not count
    cost_usd: float = 0.0
    unpriced: int = 0  # calls whose cost nobody knows
    saved_usd: float = 0.0
    retries: int = 0
    hedged: int = 0  # asked a second time for being late
    fallbacks: int = 0  # answered by another model than the one asked for, because that one failed
    wasted_usd: float = 0.0  # thought to be billed for attempts that were given up

    @classmethod
    def of(cls, names: Names) -> "Series":
        """An empty one."""
        empty = [Spread([0] * (len(bounds) + 1)) for bounds in BOUNDS.values()]
        return cls(names, empty[0], empty[1], empty[2], empty[3], empty[4])

    @property
    def calls(self) -> int:
        """How many there were."""
        return sum(self.seconds.counts)

    def merge(self, other: "Series") -> None:
        """Count everything the other did."""
        for field in BOUNDS:
            getattr(self, field).merge(getattr(other, field))
        for field in _COUNTS:
            setattr(self, field, getattr(self, field) + getattr(other, field))


BOUNDS = {
    "seconds": SECONDS,
    "first_seconds": FIRST_SECONDS,
    "queue_seconds": SECONDS,
    "input_tokens": TOKENS,
    "output_tokens": TOKENS,
}
_COUNTS = (
    "cached_tokens",
    "reasoning_tokens",
    "estimated",
    "cost_usd",
    "unpriced",
    "saved_usd",
    "retries",
    "hedged",
    "fallbacks",
    "wasted_usd",
)


class Snapshot(msgspec.Struct, array_like=True):
    """What one process has counted, in the form that is kept and merged."""

    at_s: float = 0.0  # monotonic clock of the machine
    series: list[Series] = []
    counters: dict[str, dict[str, float]] = {}  # family -> labels as text -> count
    gauges: dict[str, dict[str, float]] = {}


class Metrics:
    """Counts of one process. `take` is a listener of the engine."""

    def __init__(self, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._series: dict[Names, Series] = {}
        self._memo: dict[tuple[object, ...], Series] = {}
        self._seen: dict[str, set[str]] = {"model": set(), "step": set()}
        self._counters: dict[str, dict[str, float]] = {}
        self.gauges: Callable[[], dict[str, dict[str, float]]] = dict  # read when a snapshot is made
        self.changed = True  # since the last snapshot

    def take(self, record: CallRecord) -> None:
        """Count a finished call. 1 to 2 us."""
        asked, taken = record.asked, record.taken
        raw = (
            record.caller,
            asked.dialect if asked is not None else None,
            asked.info.model if asked is not None else None,
            taken.model if taken is not None else None,
            record.step,
            record.outcome,
            record.level,
            record.error,
            record.kind,
        )
        series = self._memo.get(raw)
        if series is None:
            series = self._find(raw, record)
        self.changed = True
        # Every call passes here, so what `Spread.add` does is written out.
        took_s, spread = (record.end_ns - record.start_ns) * 1e-9, series.seconds
        spread.counts[bisect_left(SECONDS, took_s)] += 1
        spread.total += took_s
        if record.saved_usd is not None:
            series.saved_usd += record.saved_usd
        if record.outcome == "hit":  # the rest is of calls with a provider's answer
            return
        usage = record.usage
        if usage is not None:
            read, spread = usage.input_tokens, series.input_tokens
            spread.counts[bisect_left(TOKENS, read)] += 1
            spread.total += read
            written, spread = usage.output_tokens, series.output_tokens
            spread.counts[bisect_left(TOKENS, written)] += 1
            spread.total += written
            series.cached_tokens += usage.cached_tokens
            series.reasoning_tokens += usage.reasoning_tokens
            series.estimated += record.usage_estimated
        if record.cost_usd is not None:
            series.cost_usd += record.cost_usd
        elif record.asked is not None:
            series.unpriced += 1
        if record.first_ns and record.streamed:
            series.first_seconds.add((record.first_ns - record.sent_ns) * 1e-9, FIRST_SECONDS)
        if record.queued:
            series.queue_seconds.add(max(0, (record.sent_ns or record.end_ns) - record.start_ns) * 1e-9, SECONDS)
        if record.attempts > 1:
            series.retries += record.attempts - 1
        if taken is not None:
            series.hedged += taken.hedged
            series.fallbacks += taken.fallback is not None
            series.wasted_usd += taken.wasted_usd

    def count(self, family: str, labels: str = "", amount: float = 1) -> None:
        """Add to a counter of a few; `labels` as they are written, like 'status="401"'. Not for every call."""
        family_counts = self._counters.setdefault(family, {})
        family_counts[labels] = family_counts.get(labels, 0) + amount
        self.changed = True

    def snapshot(self) -> Snapshot:
        """Everything so far. The series are the live ones: encode or merge them before the next call."""
        gauges = self.gauges()  # may count something by the way
        self.changed = False
        return Snapshot(self._now_s(), list(self._series.values()), self._counters, gauges)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from what a process before this one counted."""
        for series in snapshot.series:
            self._series[series.names] = series
            for kind, seen in self._seen.items():
                seen.add(getattr(series.names, kind))
        self._counters = snapshot.counters
        self.changed = True

    def _find(self, raw: tuple[object, ...], record: CallRecord) -> Series:
        """The series of names not seen together before; the memo and the number of series stay bounded."""
        asked, caller, taken = record.asked, record.caller, record.taken
        model = asked.info.model if asked is not None else None
        names = Names(
            tenant=caller.key.owner if isinstance(caller, KeyCaller) else "",
            key=caller.name if caller is not None else "",
            provider=_PROVIDERS.get(asked.dialect.name, asked.dialect.name) if asked is not None else "",
            operation=_OPERATIONS.get(record.kind, record.kind),
            model=self._bounded("model", model),
            served_model=self._bounded("model", (taken.model if taken is not None else None) or model),
            step=self._bounded("step", record.step),
            outcome=record.outcome,
            level=record.level or "",
            error=record.error or "",
        )
        series = self._series.get(names)
        if series is None:
            if len(self._series) >= MAX_SERIES:
                names = _others(names)
            series = self._series.setdefault(names, Series.of(names))
        if len(self._memo) >= _MAX_MEMO:
            self._memo.clear()
        self._memo[raw] = series
        return series

    def _bounded(self, kind: str, name: str | None) -> str:
        if not name:
            return ""
        name, seen = name[:_MAX_NAME], self._seen[kind]
        if name not in seen:
            if len(seen) >= MAX_NAMES:
                return OTHER
            seen.add(name)
        return name


def _others(names: Names) -> Names:
    """What is counted together beyond MAX_SERIES."""
    return msgspec.structs.replace(names, tenant=OTHER, key=OTHER, model=OTHER, served_model=OTHER, step=OTHER)


def merged(snapshots: Iterable[Snapshot], *, now_s: float, fresh_s: float) -> Snapshot:
    """One snapshot of several processes. Counts add up for ever, gauges only of those that still write."""
    whole = Snapshot(now_s, [], {}, {})
    series: dict[Names, Series] = {}
    for snapshot in snapshots:
        for one in snapshot.series:
            series.setdefault(one.names, Series.of(one.names)).merge(one)
        _add(whole.counters, snapshot.counters)
        if now_s - snapshot.at_s < fresh_s:
            _add(whole.gauges, {name: values for name, values in snapshot.gauges.items() if _SHARED not in name})
            _highest(whole.gauges, {name: values for name, values in snapshot.gauges.items() if _SHARED in name})
    whole.series = list(series.values())
    return whole


def _highest(target: dict[str, dict[str, float]], more: dict[str, dict[str, float]]) -> None:
    for family, values in more.items():
        known = target.setdefault(family, {})
        for labels, value in values.items():
            known[labels] = max(known.get(labels, value), value)


def _add(target: dict[str, dict[str, float]], more: dict[str, dict[str, float]]) -> None:
    for family, values in more.items():
        counts = target.setdefault(family, {})
        for labels, value in values.items():
            counts[labels] = counts.get(labels, 0) + value
