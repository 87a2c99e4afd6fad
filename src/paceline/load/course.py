"""Course: how a scenario goes, snapshot after snapshot: rates and quantiles of the last seconds and of all of it."""

from collections import deque

import msgspec

from paceline.load.health import is_busy, is_late
from paceline.load.snapshot import Snapshot
from paceline.model.request import ResourceSample
from paceline.stats.histogram import Histogram

WINDOW_S = 10.0  # wall seconds that "recent" means
_RATE_S = 2.0  # for rates: what happens now
_POINT_S = 1.0
_MB = 1e6


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of latencies, in seconds at the provider's pace."""

    n: int
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float

    @classmethod
    def of(cls, histogram: Histogram, speed: float) -> "Quantiles | None":
        """None when nothing was recorded."""
        found = [value * speed for value in histogram.quantiles([0.5, 0.95, 0.99])]
        if not found:
            return None
        return cls(
            n=histogram.count, p50_s=found[0], p95_s=found[1], p99_s=found[2], max_s=max(histogram.max_s, 0.0) * speed
        )


class Point(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One second of the course, for a curve. None: nothing was answered in it."""

    rate_per_s: float
    failed_per_s: float
    p50_s: float | None
    p95_s: float | None


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What the watched target uses now."""

    memory_mb: float
    memory_grown_mb: float  # since the first look
    cpu_ratio: float | None  # 1 is one core; None at the first look
    threads: int


class Standing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that a display shows. Times and rates at the provider's pace; the generator's lag and CPU are wall time."""

    scenario: str
    step: str = ""
    speed: float = 1.0  # recent is the last 10 wall seconds, so ten times as many at a speed of 10
    elapsed_s: float
    duration_s: float | None = None
    left_s: float | None = None  # None while that cannot be said
    share: float = 0.0  # of the whole, 0 to 1
    requests: int | None = None
    sent: int
    done: int
    users: int | None = None
    rate_per_s: float = 0.0  # answered, over the last seconds
    asked_per_s: float | None = None  # by the schedule, over the same; None where users set the pace
    recent: Quantiles | None = None
    whole: Quantiles | None = None
    first_token: Quantiles | None = None  # recent
    tokens_per_s: float | None = None
    failures: list[tuple[str, int]] = []  # most frequent first
    recent_error_ratio: float = 0.0
    hit_ratio: float | None = None  # of all answers that say hit or miss
    lag_p99_s: float | None = None  # recent
    lag_max_s: float | None = None
    cpu_ratio: float | None = None  # of the busiest generator process, recent
    processes: int = 1
    target: Target | None = None
    point: Point | None = None  # a second of the course has just ended

    @property
    def errors(self) -> int:
        """Requests that failed."""
        return sum(count for _, count in self.failures)

    @property
    def in_flight(self) -> int:
        """Sent and not answered."""
        return self.sent - self.done

    @property
    def is_late(self) -> bool:
        """The generator sends so late that the figures may show it."""
        median_s = self.recent.p50_s if self.recent else None
        return is_late(self.lag_p99_s or 0.0, median_s)

    @property
    def is_busy(self) -> bool:
        """The generator has no CPU left."""
        return is_busy(self.cpu_ratio or 0.0)


class Course:
    """Turns snapshots into standings. About 0.2 ms each; it keeps a snapshot of every second of the last ten."""

    def __init__(self) -> None:
        self._kept: deque[Snapshot] = deque()
        self._first_sample: ResourceSample | None = None
        self._samples: deque[ResourceSample] = deque(maxlen=9)  # two seconds of them

    def take(self, now: Snapshot, resources: ResourceSample | None = None) -> Standing:
        """Where the scenario stands by this snapshot and those before it. Another scenario begins anew."""
        kept = self._kept
        if kept and (now.scenario != kept[-1].scenario or now.elapsed_s < kept[-1].elapsed_s):
            kept.clear()
        point = None
        if not kept:
            kept.append(now)
        elif _wall_s(kept[-1], now) >= _POINT_S:
            point = _point(kept[-1], now)
            kept.append(now)
        while len(kept) > 2 and _wall_s(kept[1], now) >= WINDOW_S:
            kept.popleft()
        before = kept[0] if kept[0] is not now else None
        rate_from = next((s for s in reversed(kept) if _wall_s(s, now) >= _RATE_S), before)
        rate_per_s, asked_per_s = _rates(rate_from, now)
        lag = now.lag if before is None else now.lag.since(before.lag)
        said = now.hits + now.misses
        return Standing(
            scenario=now.scenario,
            step=now.step,
            speed=now.speed,
            elapsed_s=now.elapsed_s,
            duration_s=now.duration_s,
            left_s=seconds_left(now, rate_per_s),
            share=share_done(now),
            requests=now.requests,
            sent=now.sent,
            done=now.done,
            users=now.users,
            rate_per_s=rate_per_s,
            asked_per_s=asked_per_s,
            recent=Quantiles.of(now.latencies if before is None else now.latencies.since(before.latencies), now.speed),
            whole=Quantiles.of(now.latencies, now.speed),
            first_token=Quantiles.of(
                now.first_tokens if before is None else now.first_tokens.since(before.first_tokens), now.speed
            ),
            tokens_per_s=_tokens(rate_from, now),
            failures=sorted(now.failures.items(), key=lambda item: -item[1]),
            recent_error_ratio=_error_ratio(before, now),
            hit_ratio=now.hits / said if said else None,
            lag_p99_s=lag.quantile(0.99),
            lag_max_s=now.lag.max_s if now.lag.count else None,
            cpu_ratio=_cpu_ratio(before, now),
            processes=max(1, len(now.cpu_s)),
            target=self._target(resources),
            point=point,
        )

    def _target(self, sample: ResourceSample | None) -> Target | None:
        if sample is None:
            return None
        self._first_sample = self._first_sample or sample
        if not self._samples or self._samples[-1] is not sample:
            self._samples.append(sample)
        first = self._samples[0]
        passed_s = sample.at_s - first.at_s
        return Target(
            memory_mb=sample.rss_bytes / _MB,
            memory_grown_mb=(sample.rss_bytes - self._first_sample.rss_bytes) / _MB,
            cpu_ratio=(sample.cpu_s - first.cpu_s) / passed_s if passed_s > 0 else None,
            threads=sample.threads,
        )


def share_done(snapshot: Snapshot) -> float:
    """How far it is, 0 to 1: by requests where their number is known, else by time."""
    if snapshot.requests:
        return min(1.0, snapshot.done / snapshot.requests)
    return min(1.0, snapshot.elapsed_s / snapshot.duration_s) if snapshot.duration_s else 0.0


def seconds_left(snapshot: Snapshot, rate_per_s: float) -> float | None:
    """Seconds at the provider's pace until the end, at the present rate; None while that cannot be said."""
    by_time = None if snapshot.duration_s is None else max(0.0, snapshot.duration_s - snapshot.elapsed_s)
    if snapshot.requests is None or not rate_per_s:
        return by_time
    by_rate = (snapshot.requests - snapshot.done) / rate_per_s
    return by_rate if by_time is None else min(by_time, by_rate)


def _wall_s(before: Snapshot, now: Snapshot) -> float:
    return (now.elapsed_s - before.elapsed_s) / now.speed


def _rates(before: Snapshot | None, now: Snapshot) -> tuple[float, float | None]:
    """Answered and asked for, a second; from the beginning while there is nothing before."""
    passed_s = now.elapsed_s - (before.elapsed_s if before else 0.0)
    if passed_s <= 0:
        return 0.0, None
    asked = None if now.due is None else (now.due - ((before and before.due) or 0)) / passed_s
    return (now.done - (before.done if before else 0)) / passed_s, asked


def _point(before: Snapshot, now: Snapshot) -> Point:
    passed_s = now.elapsed_s - before.elapsed_s
    found = now.latencies.since(before.latencies).quantiles([0.5, 0.95])
    return Point(
        rate_per_s=(now.done - before.done) / passed_s,
        failed_per_s=(now.errors - before.errors) / passed_s,
        p50_s=found[0] * now.speed if found else None,
        p95_s=found[1] * now.speed if found else None,
    )


def _tokens(before: Snapshot | None, now: Snapshot) -> float | None:
    passed_s = now.elapsed_s - (before.elapsed_s if before else 0.0)
    return (now.tokens - (before.tokens if before else 0)) / passed_s if now.tokens and passed_s > 0 else None


def _error_ratio(before: Snapshot | None, now: Snapshot) -> float:
    done, errors = (now.done - before.done, now.errors - before.errors) if before else (now.done, now.errors)
    return errors / done if done else 0.0


def _cpu_ratio(before: Snapshot | None, now: Snapshot) -> float | None:
    """Of the busiest process. None until there are two snapshots, or when a process is gone."""
    if before is None or len(before.cpu_s) != len(now.cpu_s) or not now.cpu_s:
        return None
    passed_s = _wall_s(before, now)
    return max(b - a for a, b in zip(before.cpu_s, now.cpu_s, strict=True)) / passed_s if passed_s > 0 else None
