"""The knee of servers whose knee is known: a simulated queue, scripted edges, and a real single worker."""

import asyncio
import random
from pathlib import Path

import msgspec
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples

from paceline.errors import ConfigError
from paceline.load.gates import parse_objective
from paceline.load.knee import Knee, KneeSearch, Trial, driven_trials, find_knee, queue_growth, trial_scenario
from paceline.load.scenario import Scenario
from paceline.load.schedule import arrivals
from paceline.model.request import Request
from paceline.stats.quantiles import quantiles
from paceline.store.folder import create_run
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve

SERVICE_S = 0.01


def scenario(**changes: object) -> Scenario:
    return Scenario(name="k", model="open", rate_per_s=1, duration_s=1, **changes)  # type: ignore[arg-type]


def p95_of_queue(due: list[float]) -> float:
    """P95 of a single worker that takes SERVICE_S for each, first come first served (M/D/1 for Poisson arrivals)."""
    free_s, latencies = 0.0, []
    for at_s in due:
        free_s = max(free_s, at_s) + SERVICE_S
        latencies.append(free_s - at_s)
    return quantiles(latencies, [0.95])[0]


def found(search: KneeSearch, limit_s: float, arrivals_: str = "poisson") -> Knee:
    base = scenario(arrivals=arrivals_)

    async def measure(rate_per_s: float, number: int) -> Trial:
        one = trial_scenario(base, search, rate_per_s, number)
        p95_s = p95_of_queue([t for t in arrivals(one) if t >= search.warmup_s])
        missed = f"p95_s {p95_s:.3f}" if p95_s > limit_s else None
        return Trial(rate_per_s=rate_per_s, missed=missed, p95_s=p95_s)

    return asyncio.run(find_knee(search, measure))


@pytest.mark.slow
def test_the_knee_of_an_m_d_1_queue_is_found() -> None:
    """Where P95 reaches 40 ms is known from 100,000 simulated requests a rate; the search sees 100 s at a time."""
    knee = found(KneeSearch(trial_s=100, precision=0.05), limit_s=0.04)
    assert knee.limited_by == "objective"
    assert knee.rate_per_s is not None
    assert knee.above_per_s is not None
    assert knee.rate_per_s * 0.93 <= true_knee(0.04) <= knee.above_per_s * 1.07
    assert knee.above_per_s <= knee.rate_per_s * 1.05
    assert len(knee.trials) < 20


def true_knee(limit_s: float) -> float:
    """By bisection over long simulations with the same random numbers."""
    rng = random.Random(1)
    gaps = [rng.expovariate(1) for _ in range(100_000)]
    low, high = 10.0, 99.9
    while high / low > 1.005:
        rate = (low * high) ** 0.5
        at_s, due = 0.0, []
        for gap in gaps:
            at_s += gap / rate
            due.append(at_s)
        low, high = (rate, high) if p95_of_queue(due) <= limit_s else (low, rate)
    return low


def scripted(
    search: KneeSearch, edge: float, *, trouble_above: float = float("inf"), odd: set[int] | None = None
) -> Knee:
    """A target that keeps its objective up to `edge`, but for the trials in `odd`, which come out wrong."""

    async def measure(rate_per_s: float, number: int) -> Trial:
        held = (rate_per_s <= edge) != (number in (odd or set()))
        trouble = "the load generator was late" if rate_per_s > trouble_above else None
        held = held and trouble is None
        return Trial(rate_per_s=rate_per_s, missed=None if held else "p95_s", trouble=trouble)

    return asyncio.run(find_knee(search, measure))


@examples(40)
@given(st.floats(0.02, 90_000), st.floats(0.01, 0.5))
def test_a_sharp_edge_lies_in_the_interval_however_it_is_placed(edge: float, precision: float) -> None:
    knee = scripted(KneeSearch(precision=precision, most_trials=200), edge)
    assert knee.limited_by == "objective"
    assert knee.rate_per_s is not None
    assert knee.above_per_s is not None
    assert knee.rate_per_s <= edge < knee.above_per_s <= knee.rate_per_s * (1 + precision) * 1.000001


def test_one_unlucky_trial_near_the_edge_does_not_move_it() -> None:
    plain = scripted(KneeSearch(), 100)
    last = len(plain.trials) - 2
    unlucky = scripted(KneeSearch(), 100, odd={last})
    assert (unlucky.rate_per_s, unlucky.above_per_s) == (plain.rate_per_s, plain.above_per_s)
    assert len(unlucky.trials) == len(plain.trials) + 1


def test_when_the_generator_is_the_limit_it_says_so_and_stops() -> None:
    knee = scripted(KneeSearch(), 1_000, trouble_above=300)
    assert knee.limited_by == "generator"
    assert knee.rate_per_s == 256
    assert knee.above_per_s is None
    assert "the load generator was late" in knee.why
    assert [t.rate_per_s for t in knee.trials[-2:]] == [512, 512]


@pytest.mark.parametrize(
    ("search", "edge", "limited_by", "rate"),
    [
        (KneeSearch(most_per_s=50), 1e9, "highest rate", 50),
        (KneeSearch(), 0.0001, "lowest rate", None),
        (KneeSearch(most_trials=5), 1e9, "trials", 16),
    ],
)
def test_other_ends_are_named(search: KneeSearch, edge: float, limited_by: str, rate: float | None) -> None:
    knee = scripted(search, edge)
    assert (knee.limited_by, knee.rate_per_s) == (limited_by, rate)
    assert knee.why


def test_low_rates_are_tried_longer() -> None:
    search = KneeSearch(warmup_s=5, trial_s=10, least_requests=100)
    assert trial_scenario(scenario(), search, 2, 0).duration_s == 55
    assert trial_scenario(scenario(), search, 200, 0).duration_s == 15


@pytest.mark.parametrize(
    ("base", "objectives", "says"),
    [
        (scenario(), [], "say what must be kept"),
        (scenario(), ["should p95_s<1"], "say what must be kept"),
        (Scenario(name="k", users=1, requests=1), ["p95_s<1"], "the knee is a rate"),
    ],
)
def test_what_has_no_knee_is_refused(base: Scenario, objectives: list[str], says: str, tmp_path: Path) -> None:
    asked = [parse_objective(text) for text in objectives]
    with pytest.raises(ConfigError, match=says):
        driven_trials(base, "http://127.0.0.1:1", create_run(tmp_path, "t"), KneeSearch(), asked)


@pytest.mark.parametrize(
    ("rate_per_s", "growing"), [(80, False), (95, False), (104, False), (112, True), (150, True), (400, True)]
)
def test_a_queue_that_grows_is_told_from_a_busy_one(rate_per_s: float, growing: bool) -> None:
    """Capacity is 100/s: 10 s of latencies, each well below any objective on them for the first two overloads."""
    free_s, requests = 0.0, []
    for i, at_s in enumerate(arrivals(msgspec.structs.replace(scenario(), rate_per_s=rate_per_s, duration_s=10))):
        free_s = max(free_s, at_s) + SERVICE_S
        requests.append(
            Request(
                index=i,
                scenario="k",
                endpoint="",
                trace_id="",
                intended_s=at_s,
                started_s=at_s,
                ended_s=free_s,
                status=200,
            )
        )
    assert (queue_growth(requests) is not None) == growing


@pytest.mark.slow
def test_the_knee_of_a_real_worker_over_the_wire_is_below_its_capacity(tmp_path: Path) -> None:
    """One worker, 5 ms each, so 200/s at most; every trial is a scenario of the run."""
    free_s = 0.0

    async def worker(_: HttpRequest) -> Reply:
        nonlocal free_s
        now_s = asyncio.get_running_loop().time()
        free_s = max(free_s, now_s) + 0.005
        await asyncio.sleep(free_s - now_s)
        return Reply(200, [], b"ok")

    search = KneeSearch(start_per_s=80, warmup_s=0.05, trial_s=0.3, least_requests=20, precision=0.6, repeats=1)

    async def work() -> tuple[Knee, list[str]]:
        server = await serve(worker, "127.0.0.1", 0)
        run = create_run(tmp_path, "t")
        try:
            measure = driven_trials(
                scenario(method="GET"), f"http://127.0.0.1:{server.port}", run, search, [parse_objective("p95_s<0.1")]
            )
            for _ in range(5):  # a machine that stalls spoils one search, or its first rate; not five
                knee = await find_knee(search, measure)
                names = [info.name for info in run.info.scenarios]
                if knee.rate_per_s is not None:
                    break
                run.info.scenarios.clear()
            return knee, names
        finally:
            await server.close(grace_s=0)

    knee, names = uvloop.run(work())
    assert knee.limited_by in ("objective", "generator")  # a busy machine may be late
    assert 80 <= (knee.rate_per_s or 0) < 300
    assert all(
        trial.missed is None or "p95_s" in trial.missed or "latency rose" in trial.missed for trial in knee.trials
    )
    assert len(names) == len(knee.trials)
    assert names[0] == "k 80/s #1"
