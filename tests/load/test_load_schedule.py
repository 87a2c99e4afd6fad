"""Arrivals have the rate and burstiness asked for; the pacer is never early and catches up."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable

import pytest
import uvloop

from paceline.load import schedule
from paceline.load.scenario import Scenario
from paceline.load.schedule import Pacer, arrivals

RUNNERS = [pytest.param(uvloop.run, id="uvloop"), pytest.param(asyncio.run, id="asyncio")]


def scenario(**changes: object) -> Scenario:
    return Scenario(name="s", model="open", **{"rate_per_s": 50.0, "duration_s": 100.0, **changes})  # type: ignore[arg-type]


def test_constant_arrivals_are_evenly_spaced() -> None:
    assert list(arrivals(scenario(rate_per_s=4.0, duration_s=1.0))) == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("changes", "cv"),
    [({"arrivals": "poisson"}, 1.0), ({"arrivals": "gamma", "cv": 3.0}, 3.0), ({"arrivals": "gamma", "cv": 0.5}, 0.5)],
    ids=["poisson", "bursty", "regular"],
)
def test_random_arrivals_have_the_rate_and_the_burstiness(changes: dict[str, object], cv: float) -> None:
    due = list(arrivals(scenario(duration_s=600.0, **changes)))
    gaps = [b - a for a, b in itertools.pairwise(due)]
    assert len(due) == pytest.approx(30_000, rel=0.05)
    assert statistics.pstdev(gaps) / statistics.mean(gaps) == pytest.approx(cv, rel=0.1)
    assert due == sorted(due)


def test_arrivals_repeat_for_a_seed_and_differ_between_seeds() -> None:
    random = scenario(arrivals="poisson")
    assert arrivals(random) == arrivals(random)
    assert arrivals(random) != arrivals(scenario(arrivals="poisson", seed=1))


def test_arrivals_end_at_the_number_of_requests() -> None:
    assert len(arrivals(scenario(requests=7))) == 7
    assert len(arrivals(scenario(requests=7, duration_s=None))) == 7


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize("timerfd", [True, False], ids=["timerfd", "timer"])
def test_every_due_time_fires_once_in_order_and_never_early(
    run: Callable[..., None], timerfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not timerfd:
        monkeypatch.setattr(schedule, "_timerfd", lambda: None)
    fired: list[tuple[int, float, float]] = []

    async def pace() -> None:
        start_s = time.monotonic()
        over = asyncio.Event()
        due_s = [start_s - 1, start_s, *(start_s + i / 500 for i in range(1, 20))]

        def fire(i: int, at_s: float) -> None:
            fired.append((i, at_s, time.monotonic()))
            if i == len(due_s) - 1:
                over.set()

        Pacer(due_s, fire)
        await over.wait()

    run(pace())
    assert [i for i, _, _ in fired] == list(range(21))
    assert all(now_s >= due_s for _, due_s, now_s in fired)


def test_a_stopped_pacer_fires_no_more() -> None:
    fired: list[int] = []

    async def pace() -> None:
        start_s = time.monotonic()

        def fire(i: int, _: float) -> None:
            fired.append(i)
            pacer.stop()

        pacer = Pacer([start_s, start_s, start_s + 0.01], fire)
        await asyncio.sleep(0.03)
        pacer.stop()

    uvloop.run(pace())
    assert fired == [0]
