"""What snapshots come to, one after the other."""

import msgspec
import pytest

from paceline.load.course import Course, share_done
from paceline.load.snapshot import Snapshot, in_step, together
from paceline.model.request import ResourceSample
from paceline.stats.histogram import Histogram


def snapshot(**changes: object) -> Snapshot:
    return Snapshot(
        **{"scenario": "chat", "elapsed_s": 3.0, "requests": 500, "sent": 130, "done": 120, **changes}  # type: ignore[arg-type]
    )


def growing(seconds: int, *, speed: float = 1.0, **changes: object) -> list[Snapshot]:
    """A snapshot a wall second of 10 answers a second; those of second i took i * 0.1 s, one of them fails."""
    latencies = Histogram()
    made = []
    for second in range(seconds + 1):
        for _ in range(10 if second else 0):
            latencies.record(second * 0.1)
        made.append(
            snapshot(
                elapsed_s=second * speed,
                speed=speed,
                sent=10 * second + 2,
                done=10 * second,
                due=11 * second,
                failures={"timeout": second} if second else {},
                latencies=latencies.copy(),
                cpu_s=(0.5 * second, 0.25 * second),
                **changes,
            )
        )
    return made


def test_rates_and_recent_quantiles_are_of_the_last_seconds() -> None:
    course = Course()
    for now in growing(30):
        standing = course.take(now)
    assert (standing.rate_per_s, standing.asked_per_s) == (10.0, 11.0)
    assert standing.recent is not None
    assert standing.whole is not None
    assert (standing.recent.n, standing.whole.n) == (100, 300)
    assert standing.recent.p50_s == pytest.approx(2.5, rel=0.01)  # of seconds 21 to 30
    assert standing.whole.p50_s == pytest.approx(1.5, rel=0.01)
    assert standing.recent_error_ratio == 0.1
    assert (standing.errors, standing.in_flight) == (30, 2)
    assert standing.cpu_ratio == 0.5  # of the busiest
    assert standing.left_s == pytest.approx(20.0)
    assert standing.point is not None
    assert standing.point.p95_s == pytest.approx(3.0, rel=0.01)


def test_times_and_rates_are_at_the_providers_pace() -> None:
    course = Course()
    for now in growing(4, speed=10.0):
        standing = course.take(now)
    assert standing.whole is not None
    assert standing.whole.max_s == pytest.approx(4.0)
    assert standing.rate_per_s == 1.0
    assert standing.cpu_ratio == 0.5  # wall time


def test_another_scenario_begins_anew() -> None:
    course = Course()
    for now in growing(5):
        course.take(now)
    standing = course.take(growing(1, scenario="next")[1])
    assert standing.whole is not None
    assert standing.whole.n == 10
    assert standing.rate_per_s == 10.0


def test_the_first_snapshot_has_no_figures_and_no_failure() -> None:
    standing = Course().take(snapshot(elapsed_s=0.0, sent=0, done=0))
    assert (standing.whole, standing.recent, standing.rate_per_s, standing.left_s) == (None, None, 0.0, None)


def test_the_end_is_whichever_comes_first() -> None:
    def left_s(**changes: object) -> float | None:
        course = Course()
        course.take(snapshot(elapsed_s=0.0, sent=0, done=0, **changes))
        return course.take(snapshot(**changes)).left_s

    assert left_s(duration_s=8.0) == 5.0
    assert left_s(duration_s=30.0) == 9.5
    assert left_s(requests=None, duration_s=60.0) == 57.0


def test_the_share_stays_within_0_and_1() -> None:
    assert share_done(snapshot()) == 0.24
    assert share_done(snapshot(requests=None, duration_s=2.0)) == 1.0
    assert share_done(snapshot(requests=None)) == 0.0


def test_the_watched_target_is_shown_with_its_growth() -> None:
    def sample(at_s: float, rss_bytes: int) -> ResourceSample:
        return ResourceSample(at_s=at_s, service="app", processes=1, threads=7, cpu_s=at_s / 2, rss_bytes=rss_bytes)

    course = Course()
    course.take(snapshot(elapsed_s=1.0), sample(1.0, 100_000_000))
    target = course.take(snapshot(elapsed_s=2.0), sample(2.0, 130_000_000)).target
    assert target is not None
    assert (target.memory_mb, target.memory_grown_mb, target.cpu_ratio, target.threads) == (130.0, 30.0, 0.5, 7)


def test_a_snapshot_comes_back_equal_from_another_process() -> None:
    made = growing(3)[-1]
    assert Snapshot.decode(made.encode()) == made
    with pytest.raises(msgspec.DecodeError):
        Snapshot.decode(b"{}")


def test_snapshots_of_several_processes_add_up() -> None:
    part = growing(3)[-1]
    whole = together([part, part])
    assert (whole.sent, whole.done, whole.errors, whole.due, whole.requests) == (64, 60, 6, 66, 500)
    assert whole.latencies.count == 60
    assert whole.cpu_s == (1.5, 0.75) * 2
    assert whole.quantile_s(0.5) == part.quantile_s(0.5)


def test_a_step_is_said_with_every_snapshot() -> None:
    told: list[Snapshot] = []
    in_step("scenario 2 of 3", told.append)(snapshot())
    assert [s.step for s in told] == ["scenario 2 of 3"]
