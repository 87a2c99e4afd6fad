"""The simulation's parts against closed forms."""

import random
from math import factorial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.project.app import Quota
from paceline.project.engine import Agenda, Bucket, Gatekeeper, Processor, Store

RATE_PER_S, SERVICE_S = 0.7, 1.0


def mean_stay_s(arrivals: int, servers: int, rate_per_s: float, *, seed: int) -> float:
    """Mean time in a queue with Poisson arrivals, exponential service and `servers` at a gate."""
    rng, agenda = random.Random(seed), Agenda()
    gate = Gatekeeper(agenda, None, queued=True, size=servers)
    stays: list[float] = []

    def serve(came_s: float) -> None:
        agenda.at(agenda.now + rng.expovariate(1 / SERVICE_S), leave, came_s)

    def leave(came_s: float) -> None:
        stays.append(agenda.now - came_s)
        gate.leave()

    def come(_: Any) -> None:
        gate.ask(1, serve, agenda.now)

    at_s = 0.0
    for _ in range(arrivals):
        at_s += rng.expovariate(rate_per_s)
        agenda.at(at_s, come, None)
    agenda.run()
    return sum(stays) / len(stays)


def erlang_stay_s(servers: int, rate_per_s: float) -> float:
    """Mean time in M/M/c, by Erlang's C formula."""
    load = rate_per_s * SERVICE_S
    waiting = load**servers / factorial(servers) * servers / (servers - load)
    share = waiting / (sum(load**k / factorial(k) for k in range(servers)) + waiting)
    return share * SERVICE_S / (servers - load) + SERVICE_S


@pytest.mark.slow
@pytest.mark.parametrize("servers", [1, 3], ids=["M/M/1", "M/M/3"])
def test_a_gate_with_places_waits_as_erlang_says(servers: int) -> None:
    """The mean stay of 60,000 customers is within 4 % of the formula."""
    stay_s = mean_stay_s(60_000, servers, RATE_PER_S * servers, seed=4)
    assert stay_s == pytest.approx(erlang_stay_s(servers, RATE_PER_S * servers), rel=0.04)


@pytest.mark.slow
def test_a_processor_shared_in_turn_is_an_m_m_1_queue() -> None:
    """Sharing changes who waits, not the mean: 1 / (mu - lambda) with exponential work."""
    rng, agenda = random.Random(3), Agenda()
    cpu = Processor(agenda, 1, slice_s=0.2)
    stays: list[float] = []

    def come(came_s: float) -> None:
        cpu.do(rng.expovariate(1), 0, lambda c: stays.append(agenda.now - c), came_s)

    at_s = 0.0
    for _ in range(30_000):
        at_s += rng.expovariate(0.5)
        agenda.at(
            at_s, lambda came_s: cpu.do(rng.expovariate(1), 0, lambda c: stays.append(agenda.now - c), came_s), at_s
        )
    agenda.run()
    assert sum(stays) / len(stays) == pytest.approx(1 / (1 - 0.5), rel=0.05)


@pytest.mark.slow
def test_a_closed_loop_is_a_machine_repairman() -> None:
    """N users who think, one server: throughput is (1 - p0) / service, p0 from the finite sum."""
    users, think_s, rng, agenda = 6, 4.0, random.Random(5), Agenda()
    gate = Gatekeeper(agenda, None, queued=True, size=1)
    done = 0

    def ask(user: int) -> None:
        gate.ask(1, serve, user)

    def serve(user: int) -> None:
        agenda.at(agenda.now + rng.expovariate(1 / SERVICE_S), leave, user)

    def leave(user: int) -> None:
        nonlocal done
        done += 1
        gate.leave()
        if agenda.now < 30_000:
            agenda.at(agenda.now + rng.expovariate(1 / think_s), ask, user)

    for user in range(users):
        agenda.at(rng.random(), ask, user)
    agenda.run()
    idle = 1 / sum(factorial(users) / factorial(users - k) * (SERVICE_S / think_s) ** k for k in range(users + 1))
    assert done / agenda.now == pytest.approx((1 - idle) / SERVICE_S, rel=0.03)


def test_a_full_queue_passes_at_the_limit() -> None:
    """600 requests/min with a burst of 10: 110 calls that come at once pass within 10 s."""
    agenda = Agenda()
    quota = Quota(requests_per_min=600, burst_requests=10)
    gate = Gatekeeper(agenda, quota, queued=True, size=None)
    passed: list[float] = []
    for _ in range(110):
        gate.ask(1, lambda _: passed.append(agenda.now), None)
    agenda.run()
    assert passed[:10] == [0.0] * 10
    assert passed[-1] == pytest.approx(10.0)


def test_without_a_queue_a_call_is_turned_away_and_takes_nothing() -> None:
    """What is refused does not use the limit up."""
    agenda = Agenda()
    gate = Gatekeeper(agenda, Quota(tokens_per_min=600, burst_tokens=100), queued=False, size=None)
    assert gate.ask(80, lambda _: None, None)
    assert not gate.ask(80, lambda _: None, None)
    assert gate.ask(20, lambda _: None, None)


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 30)), min_size=1, max_size=60),
    st.floats(30, 600),
    st.floats(1, 50),
)
def test_a_bucket_never_gives_more_than_its_size_and_rate(
    asks: list[tuple[float, float]], per_min: float, size: float
) -> None:
    """Over any prefix: taken amounts, each at most the size, stay below size + rate x time."""
    bucket = Bucket(per_min, size)
    now_s = taken = 0.0
    for pause_s, amount in asks:
        now_s += pause_s
        if bucket.ready_s(now_s, amount) <= now_s:
            bucket.take(amount)
            taken += min(amount, size)
        assert taken <= size + per_min / 60 * now_s + 1e-6


def test_a_processor_takes_turns() -> None:
    """A short work that comes during a long one ends after the turns both had."""
    agenda = Agenda()
    cpu = Processor(agenda, 1, slice_s=0.010)
    ends: dict[str, float] = {}
    for name, work_s in (("long", 0.100), ("short", 0.010)):
        cpu.do(work_s, 0.0, lambda n: ends.update({n: agenda.now}), name)
    agenda.run()
    assert ends["short"] == pytest.approx(0.020)
    assert ends["long"] == pytest.approx(0.110)


def test_a_store_forgets_the_least_recently_used_and_the_old() -> None:
    """Bounds of a cache hold: entries by use, age by ttl."""
    store = Store(2, 10.0)
    store.put("a", 0.0)
    store.put("b", 1.0)
    assert store.has("a", 2.0)
    store.put("c", 3.0)
    assert not store.has("b", 3.0)
    assert store.has("a", 10.0)
    assert not store.has("a", 10.1)
