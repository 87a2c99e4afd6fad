"""The leak verdict on synthetic soaks: eight healthy kinds, seven leaking ones.

`python tests/stats/test_stats_leak.py 100` prints the rates that the docstring of leak_verdict reports.
"""

import itertools
import math
import random
import sys
from collections import Counter
from collections.abc import Callable

import pytest

from paceline.stats.leak import LEAK, RUN_LONGER, SPIKE, STEADY, leak_verdict

Shape = Callable[[float], float]  # minutes -> MB above the base

# Minutes and readings per second. Shapes keep their place in the run; leaks in short runs are faster.
LENGTHS = {"10 min": (10, 1, 1), "2 min": (2, 4, 5), "1 min": (1, 4, 10), "1 min at 20 Hz": (1, 20, 10)}
BASE_MB = 150.0


def noise(n: int, hz: float, rng: random.Random) -> list[float]:
    """AR(1): 0.8 MB, each reading resembling those of the last 20 s."""
    alike = math.exp(-1 / (20 * hz))
    values = [rng.gauss(0, 0.8)]
    for _ in range(n - 1):
        values.append(alike * values[-1] + rng.gauss(0, 0.8 * math.sqrt(1 - alike**2)))
    return values


def spikes(total: float, rng: random.Random) -> Shape:
    starts = [rng.uniform(0, 0.93) * total for _ in range(3)]
    width = 0.067 * total
    return lambda t: sum(80 * (1 - (t - s) / width) for s in starts if s <= t < s + width)


def saw(total: float, rng: random.Random) -> Shape:
    period, phase = 0.13 * total, rng.uniform(0, 0.13) * total
    return lambda t: 25 * ((t + phase) % period) / period


def plateau(total: float, tau: float) -> Shape:
    return lambda t: 60 * (1 - math.exp(-t / (tau * total)))


def healthy(total: float, rng: random.Random) -> dict[str, Shape]:
    step_at = rng.uniform(0.2, 0.8) * total
    return {
        "flat": lambda t: 0.0,
        "plateau": plateau(total, 0.1),
        "slow plateau": plateau(total, 0.25),
        "spikes": spikes(total, rng),
        "late spike": lambda t: 90.0 if 0.85 < t / total < 0.93 else 0.0,
        "one step": lambda t: 30.0 if t > step_at else 0.0,
        "sawtooth": saw(total, rng),
        "cache fills": lambda t: 120 * min(t / total, 0.5),
    }


def leaking(total: float, rng: random.Random, faster: float) -> dict[str, Shape]:
    rate = 2 * faster
    up, down, warm = saw(total, rng), spikes(total, rng), plateau(total, 0.1)
    return {
        f"{rate / 4:g} MB/min": lambda t: rate / 4 * t,
        f"{rate:g} MB/min": lambda t: rate * t,
        f"{rate * 5:g} MB/min": lambda t: rate * 5 * t,
        f"{rate:g} under sawtooth": lambda t: rate * t + up(t),
        f"{rate:g} in steps": lambda t: rate * t // 4 * 4,
        f"{rate:g} after plateau": lambda t: rate * t + warm(t),
        f"{rate:g} with spikes": lambda t: rate * t + down(t),
    }


def series(shape: Shape, minutes: float, hz: float, rng: random.Random) -> tuple[list[float], list[float]]:
    n = int(minutes * 60 * hz)
    times_s = [i / hz for i in range(n)]
    sizes = [BASE_MB + shape(t / 60) + e for t, e in zip(times_s, noise(n, hz, rng), strict=True)]
    return times_s, [size * 1e6 for size in sizes]


def rates(length: str, n: int, *, leak: bool, seed: int = 7) -> dict[str, Counter[str]]:
    """Verdicts by kind."""
    minutes, hz, faster = LENGTHS[length]
    rng = random.Random(seed)
    said: dict[str, Counter[str]] = {}
    for _ in range(n):
        shapes = leaking(minutes, rng, faster) if leak else healthy(minutes, rng)
        for name, shape in shapes.items():
            verdict = leak_verdict(*series(shape, minutes, hz, rng)).verdict
            said.setdefault(name, Counter())[verdict] += 1
    return said


def share(said: dict[str, Counter[str]], *verdicts: str) -> float:
    total = sum(c.total() for c in said.values())
    return sum(c[v] for c in said.values() for v in verdicts) / total


@pytest.mark.parametrize("length", ["10 min", "2 min", "1 min"])
def test_healthy_services_are_rarely_called_leaky(length: str) -> None:
    """At most 5 % of 160 series, short runs included."""
    assert share(rates(length, 20, leak=False), LEAK) <= 0.05


@pytest.mark.parametrize("length", ["10 min", "2 min", "1 min"])
def test_leaks_are_found_or_asked_to_run_longer(length: str) -> None:
    """Two thirds are named outright; one in six at most is missed, the slowest and those under a sawtooth."""
    said = rates(length, 20, leak=True)
    assert share(said, LEAK) >= 0.6
    assert share(said, STEADY, SPIKE) <= 1 / 6


@pytest.mark.slow
def test_half_a_megabyte_a_minute_is_found_in_half_an_hour() -> None:
    """At least 77 % of 13 series; `python -m benchmarks.leak` has more."""
    rng = random.Random(5)
    said = [leak_verdict(*series(lambda t: 0.5 * t, 30, 1, rng)).verdict for _ in range(13)]
    assert said.count(LEAK) >= 10
    assert STEADY not in said


def test_a_clear_leak_is_named_with_its_rate() -> None:
    times_s, sizes = series(lambda t: 10 * t, 10, 1, random.Random(1))
    verdict = leak_verdict(times_s, sizes, requests_per_s=5.0)
    assert verdict.verdict == LEAK
    assert verdict.mb_per_min == pytest.approx(10, rel=0.1)
    assert verdict.mb_per_1000_requests == pytest.approx(10 / 300 * 1000, rel=0.1)
    assert verdict.confidence is not None
    assert verdict.confidence > 0.99


def test_without_a_request_rate_there_is_no_growth_per_request() -> None:
    assert leak_verdict(*series(lambda t: 10 * t, 10, 1, random.Random(1))).mb_per_1000_requests is None


def test_memory_that_rose_and_fell_back_is_a_spike() -> None:
    verdict = leak_verdict(*series(lambda t: 90.0 if 0.3 < t < 0.5 else 0.0, 1, 4, random.Random(2)))
    assert verdict.verdict == SPIKE
    assert verdict.peak_mb == pytest.approx(240, rel=0.02)
    assert verdict.floor_mb == pytest.approx(150, rel=0.02)


def test_a_flat_minute_is_steady_and_says_what_it_could_not_see() -> None:
    verdict = leak_verdict(*series(lambda _: 0.0, 1, 4, random.Random(4)))
    assert verdict.verdict == STEADY
    assert "would have shown" in verdict.reason


def test_perfectly_constant_memory_is_steady() -> None:
    assert leak_verdict(range(60), [1e8] * 60).verdict == STEADY


@pytest.mark.parametrize("n", [0, 1, 10, 26])
def test_too_few_readings_are_not_judged(n: int) -> None:
    verdict = leak_verdict([float(i) for i in range(n)], [1e8] * n)
    assert verdict.verdict == RUN_LONGER
    assert "too few" in verdict.reason
    assert verdict.mb_per_min is None


def test_a_series_of_less_than_20_seconds_is_not_judged() -> None:
    assert leak_verdict([i / 100 for i in range(1000)], [1e8 + i * 1e6 for i in range(1000)]).verdict == RUN_LONGER


@pytest.mark.parametrize("factor", [1e-3, 10.0])
def test_shifting_the_clock_changes_nothing(factor: float) -> None:
    times_s, sizes = series(lambda t: 3 * t, 2, 4, random.Random(9))
    shifted = [t + 1e6 * factor for t in times_s]
    assert leak_verdict(shifted, sizes).verdict == leak_verdict(times_s, sizes).verdict


def test_times_and_readings_must_match() -> None:
    with pytest.raises(ValueError, match="as many times as readings"):
        leak_verdict([1.0, 2.0], [1e8])


if __name__ == "__main__":
    for length, leak in itertools.product(LENGTHS, (False, True)):
        said = rates(length, int(sys.argv[1]), leak=leak)
        kinds = {name: dict(sorted(c.items())) for name, c in said.items()}
        parts = ", ".join(f"{v} {share(said, v):.0%}" for v in (LEAK, RUN_LONGER, SPIKE, STEADY))
        print(f"{length}, {'leaking' if leak else 'healthy'}: {parts}")
        for name, counts in kinds.items():
            print(f"    {name}: {counts}")
