"""Limits: order, bounds, deadlines and the provider's own pace, in virtual time."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.virtual_loop import now_s, run_virtual

from paceline.accelerate.limits import AdaptivePolicy, Ask, Limits, LimitsPolicy, ModelLimits, Permit, Signal
from paceline.errors import Overloaded

ADAPTIVE = AdaptivePolicy(enabled=True)
Log = list[tuple[int, float]]


def limits_of(**fields: object) -> Limits:
    return Limits(LimitsPolicy(**fields), now_s=asyncio.get_running_loop().time)  # type: ignore[arg-type]


def ask_of(**fields: object) -> Ask:
    return Ask(**{"tenant": b"t", "key": b"k", "model": "m", "deadline_s": 1e9, **fields})  # type: ignore[arg-type]


async def call(limits: Limits, length_s: float, log: Log, name: int, **fields: object) -> None:
    ask = ask_of(**fields)
    permit = limits.try_admit(ask) or await limits.admit(ask)
    try:
        log.append((name, now_s()))
        await asyncio.sleep(length_s)
    finally:
        permit.leave()


def refusal(wait_s: float, *, per_min: float | None = None) -> Signal:
    remaining = None if per_min is None else 0.0
    return Signal(status=429, retry_after_s=wait_s, limit_requests=per_min, remaining_requests=remaining)


async def refuse(limits: Limits, signal: Signal) -> tuple[Ask, Permit]:
    """A call that is let through and refused by the provider; it has not left yet."""
    ask = ask_of()
    permit = limits.try_admit(ask)
    assert permit is not None
    await asyncio.sleep(0)
    permit.heard(signal)
    return ask, permit


def test_at_most_so_many_at_once_in_the_order_they_came() -> None:
    """Three at a time, one second each: seven calls start at 0, 0, 0, 1, 1, 1, 2."""
    log: Log = []

    async def main() -> None:
        limits = limits_of(concurrency=3)
        await asyncio.gather(*(call(limits, 1.0, log, i) for i in range(7)))
        assert (limits.states()[0].peak, limits.in_flight, limits.waiting) == (3, 0, 0)

    run_virtual(main())
    assert log == [(0, 0.0), (1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 2.0)]


CALLS = st.lists(
    st.tuples(
        st.floats(0, 3), st.floats(0, 3), st.floats(0.01, 3), st.booleans(), st.integers(-1, 1), st.sampled_from(b"abc")
    ),
    max_size=25,
)


@given(st.integers(1, 4), CALLS)
def test_the_bound_is_never_broken(limit: int, calls: list[tuple[float, float, float, bool, int, int]]) -> None:
    """Arrivals, lengths, patience, priorities and cancellations of any kind: never above the limit, nothing is left."""

    async def main() -> None:
        limits = limits_of(concurrency=limit, max_queue=5, age_s=0.5)

        async def one(start_s: float, length_s: float, patience_s: float, cancel: bool, prio: int, who: int) -> None:
            await asyncio.sleep(start_s)
            deadline_s = now_s() + patience_s
            log: Log = []
            fields = {"deadline_s": deadline_s, "priority": prio, "tenant": bytes([who])}
            task = asyncio.create_task(call(limits, length_s, log, 0, **fields))
            if cancel:
                await asyncio.sleep(patience_s / 2)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert 0 <= limits.in_flight <= limit
            assert all(at_s <= deadline_s for _, at_s in log)

        await asyncio.gather(*(one(*each) for each in calls))
        assert (limits.in_flight, limits.waiting) == (0, 0)
        assert all(state.peak <= limit for state in limits.states())

    run_virtual(main())


@given(
    st.floats(0.5, 50),
    st.integers(1, 20),
    st.lists(st.floats(0, 2), min_size=1, max_size=60),
    st.lists(st.floats(0.0, 5), max_size=5),
)
def test_no_window_holds_more_than_rate_and_burst(
    per_s: float, burst: int, gaps_s: list[float], holds_s: list[float]
) -> None:
    """In any window of any length at most rate x window + burst calls pass, refusals and retries included."""
    admitted: list[float] = []

    async def main() -> None:
        limits = limits_of(requests_per_s=per_s, burst=burst, max_wait_s=1e6, adaptive=ADAPTIVE)
        holds = iter(holds_s)

        async def one() -> None:
            ask = ask_of()
            while True:
                permit = limits.try_admit(ask) or await limits.admit(ask)
                admitted.append(now_s())
                await asyncio.sleep(0.01)
                hold_s = next(holds, None)
                permit.heard(Signal(status=200) if hold_s is None else refusal(hold_s))
                permit.leave()
                if hold_s is None:
                    return

        tasks = []
        for gap_s in gaps_s:
            await asyncio.sleep(gap_s)
            tasks.append(asyncio.create_task(one()))
        await asyncio.gather(*tasks)
        assert (limits.in_flight, limits.waiting) == (0, 0)

    run_virtual(main())
    for first, last in itertools.combinations(range(len(admitted)), 2):
        assert last - first + 1 <= per_s * (admitted[last] - admitted[first]) + burst + 1e-6


def test_giving_up_in_the_queue_frees_the_place() -> None:
    """A cancelled waiter is passed over."""
    log: Log = []

    async def main() -> None:
        limits = limits_of(concurrency=1)
        tasks = [asyncio.create_task(call(limits, 1.0, log, i)) for i in range(3)]
        await asyncio.sleep(0.5)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run_virtual(main())
    assert log == [(0, 0.0), (2, 1.0)]


def test_a_large_call_that_gives_up_lets_the_small_ones_pass_at_once() -> None:
    """Who waits behind a call for many tokens does not wait for its sake once it has gone."""
    log: Log = []

    async def main() -> None:
        limits = limits_of(tokens_per_min=6000.0, max_wait_s=1e6)
        await call(limits, 0.0, log, 0, tokens=5990)
        large = asyncio.create_task(call(limits, 0.0, log, 1, tokens=6000))
        await asyncio.sleep(1.0)
        small = asyncio.create_task(call(limits, 0.0, log, 2, tokens=10))
        await asyncio.sleep(1.0)
        large.cancel()
        await small

    run_virtual(main())
    assert log == [(0, 0.0), (2, 2.0)]


def test_a_turn_that_comes_in_the_moment_of_giving_up_is_given_back() -> None:
    """Cancelled between its turn and its waking: no slot is lost."""

    async def main() -> None:
        limits = limits_of(concurrency=1)
        first = limits.try_admit(ask_of())
        assert first is not None
        waiter = asyncio.create_task(call(limits, 0.0, [], 1))
        await asyncio.sleep(0)
        first.leave()  # the turn is set ...
        waiter.cancel()  # ... and not yet taken
        await asyncio.gather(waiter, return_exceptions=True)
        assert (limits.in_flight, limits.waiting) == (0, 0)

    run_virtual(main())


def test_leaving_twice_counts_once() -> None:
    """`leave` may be called by whoever cleans up."""

    async def main() -> None:
        limits = limits_of(concurrency=1)
        permit = limits.try_admit(ask_of())
        assert permit is not None
        assert limits.try_admit(ask_of()) is None
        permit.leave()
        permit.leave()
        assert limits.in_flight == 0

    run_virtual(main())


def test_waiting_is_bounded_in_time_and_number() -> None:
    """Who waits too long, and who finds the queue full, is refused with a hint when to come again."""

    async def main() -> None:
        limits = limits_of(concurrency=1, max_queue=1)
        log: Log = []
        first = asyncio.create_task(call(limits, 10.0, log, 0))
        await asyncio.sleep(0)
        waiter = asyncio.create_task(call(limits, 1.0, log, 1, deadline_s=2.0))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="m: 1 calls wait already"):
            await call(limits, 1.0, log, 2)
        with pytest.raises(Overloaded, match="no turn within the allowed wait") as caught:
            await waiter
        assert now_s() == pytest.approx(2.0)
        assert caught.value.retry_after_s >= 1.0
        await first
        assert len(log) == 1

    run_virtual(main())


def test_a_wait_that_cannot_meet_its_deadline_is_refused_at_once_with_an_honest_estimate() -> None:
    """Ten calls a second, twenty wait: the next could pass 2.1 s from now, so a deadline in 1 s is hopeless."""

    async def main() -> None:
        limits = limits_of(requests_per_s=10.0, burst=1)
        waiters = [asyncio.create_task(call(limits, 0.0, [], i)) for i in range(21)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await limits.admit(ask_of(deadline_s=1.0))
        assert now_s() == 0.0
        assert caught.value.retry_after_s == pytest.approx(2.1)
        late: Log = []
        await call(limits, 0.0, late, 0, deadline_s=2.11)
        assert late[0][1] == pytest.approx(2.1, abs=0.001)
        await asyncio.gather(*waiters)

    run_virtual(main())


def test_a_queue_behind_slow_calls_is_estimated_from_how_long_they_take() -> None:
    """Two at a time, ten seconds each, four wait: a fifth would wait 25 s or so."""

    async def main() -> None:
        limits = limits_of(concurrency=2, max_wait_s=1e6)
        await asyncio.gather(*(call(limits, 10.0, [], i) for i in range(2)))
        waiters = [asyncio.create_task(call(limits, 10.0, [], i)) for i in range(6)]
        await asyncio.sleep(0)
        assert 15 <= limits.estimate_s(ask_of()) <= 30
        with pytest.raises(Overloaded):
            await limits.admit(ask_of(deadline_s=now_s() + 10))
        await asyncio.gather(*waiters)

    run_virtual(main())


def test_a_hold_stops_everybody_and_the_refused_call_goes_first() -> None:
    """After a 429 nobody passes for as long as it asked; then the refused one, then the others in order."""
    log: Log = []

    async def main() -> None:
        limits = limits_of(adaptive=ADAPTIVE)
        ask, permit = await refuse(limits, refusal(5.0, per_min=60.0))
        others = [asyncio.create_task(call(limits, 0.0, log, i)) for i in (1, 2)]
        await asyncio.sleep(0)
        permit.leave()
        again = await limits.admit(ask)
        log.append((0, now_s()))
        again.leave()
        await asyncio.gather(*others)

    run_virtual(main())
    assert [name for name, _ in log] == [0, 1, 2]
    assert [at_s for _, at_s in log] == pytest.approx([5.0, 6.0, 7.0], abs=0.03)


def test_several_refused_calls_come_again_in_their_first_order() -> None:
    """Whatever the order of their refusals."""
    log: list[int] = []

    async def main() -> None:
        limits = limits_of(adaptive=ADAPTIVE)
        asks = [ask_of() for _ in range(3)]
        permits = [limits.try_admit(ask) for ask in asks]
        await asyncio.sleep(0.01)

        async def again(index: int) -> None:
            permit = permits[index]
            assert permit is not None
            permit.heard(refusal(1.0, per_min=600.0))
            permit.leave()
            (await limits.admit(asks[index])).leave()
            log.append(index)

        await asyncio.gather(again(2), again(0), again(1))

    run_virtual(main())
    assert log == [0, 1, 2]


def test_a_pause_lets_calls_pass_freely_again() -> None:
    """The limit stated stays known, and what nobody used of it may be used at once."""
    log: Log = []

    async def main() -> None:
        limits = limits_of(adaptive=ADAPTIVE, max_wait_s=1e6)
        _, permit = await refuse(limits, refusal(1.0, per_min=6.0))
        permit.leave()
        await call(limits, 0.0, log, 0)
        await asyncio.sleep(100)
        await asyncio.gather(*(call(limits, 0.0, log, i) for i in range(1, 5)))

    run_virtual(main())
    assert [at_s for _, at_s in log[1:]] == pytest.approx([101.0] * 4)
    assert log[0][1] == pytest.approx(1.0)


def test_a_guessed_pace_quickens_while_it_works() -> None:
    """Without a stated limit, admissions come faster with every accepted call."""
    log: Log = []

    async def main() -> None:
        limits = limits_of(adaptive=ADAPTIVE)
        _, permit = await refuse(limits, refusal(4.0))
        permit.leave()

        async def one(name: int) -> None:
            ask = ask_of()
            permit = await limits.admit(ask)
            log.append((name, now_s()))
            permit.heard(Signal(status=200))
            permit.leave()

        await asyncio.gather(*(one(i) for i in range(12)))

    run_virtual(main())
    starts_s = [at_s for _, at_s in log]
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(starts_s)]
    assert gaps_s[0] == pytest.approx(0.4, abs=0.1)
    assert gaps_s[-1] < 0.1
    assert [name for name, _ in log] == list(range(12))


def test_a_hold_longer_than_the_deadline_refuses_at_once() -> None:
    """Nobody waits for what cannot come in time: neither who comes, nor who waits already."""

    async def main() -> None:
        limits = limits_of(adaptive=ADAPTIVE, concurrency=1)
        _, permit = await refuse(limits, Signal(status=200))
        waiter = asyncio.create_task(call(limits, 0.0, [], 0, deadline_s=60.0))
        await asyncio.sleep(0)
        permit._heard = False
        permit.heard(refusal(3600.0))
        with pytest.raises(Overloaded) as caught:
            await waiter
        assert caught.value.retry_after_s == pytest.approx(3600.0)
        permit.leave()
        with pytest.raises(Overloaded) as caught:
            await call(limits, 0.0, [], 0, deadline_s=60.0)
        assert now_s() == 0.0
        assert caught.value.retry_after_s == pytest.approx(3600.0)

    run_virtual(main())


def test_exhausted_credit_holds_nobody_and_an_exhausted_day_does() -> None:
    """No wait helps against the first; of the second the provider says how long it lasts."""

    async def main() -> None:
        limits = limits_of(adaptive=ADAPTIVE)
        await refuse(limits, Signal(status=429, quota_exhausted=True))
        assert limits.try_admit(ask_of()) is not None
        await refuse(limits, Signal(status=429, quota_exhausted=True, retry_after_s=36_000.0))
        with pytest.raises(Overloaded) as caught:
            await limits.admit(ask_of(deadline_s=60.0))
        assert caught.value.retry_after_s == pytest.approx(3600.0)  # asked again after max_hold_s: quotas get raised

    run_virtual(main())


def test_what_is_left_of_a_stated_limit_is_followed() -> None:
    """Somebody else uses the same key: the provider says 3 are left, so 3 pass and the rest at its pace."""
    log: Log = []

    async def main() -> None:
        limits = limits_of(adaptive=ADAPTIVE)
        permit = limits.try_admit(ask_of())
        assert permit is not None
        permit.heard(Signal(status=200, limit_requests=60.0, remaining_requests=3.0, reset_requests_s=57.0))
        permit.leave()
        await asyncio.gather(*(call(limits, 0.0, log, i) for i in range(6)))

    run_virtual(main())
    assert [at_s for _, at_s in log] == pytest.approx([0, 0, 0, 0, 1, 2], abs=1.01)
    assert log[-1][1] >= 2.0 - 0.01


def test_real_usage_replaces_the_estimate() -> None:
    """A call that used a tenth of what was estimated lets the next pass at once."""
    log: Log = []

    async def main() -> None:
        limits = limits_of(tokens_per_min=6000.0, max_wait_s=1e6)
        permit = limits.try_admit(ask_of(tokens=6000))
        assert permit is not None
        waiter = asyncio.create_task(call(limits, 0.0, log, 0, tokens=5000))
        await asyncio.sleep(1.0)
        permit.leave()
        permit.used(600)
        await waiter

    run_virtual(main())
    assert [at_s for _, at_s in log] == pytest.approx([1.0])


def test_gates_are_one_for_each_provider_key_and_model() -> None:
    """A model that nothing limits has none; its own limits are over the general ones."""

    async def main() -> None:
        limits = limits_of(models={"big": ModelLimits(concurrency=2)})
        small = [limits.try_admit(ask_of(model="small")) for _ in range(5)]
        assert all(small)
        big = [limits.try_admit(ask_of(model="big")) for _ in range(3)]
        assert [permit is not None for permit in big] == [True, True, False]
        assert limits.try_admit(ask_of(model="big", key=b"other")) is not None
        assert limits.in_flight == 8
        assert {(state.model, state.in_flight) for state in limits.states()} == {("big", 2), ("big", 1)}

    run_virtual(main())


def test_the_number_of_gates_is_bounded() -> None:
    """Idle gates make room; when every one is in use, a new key is told to come again."""

    async def main() -> None:
        limits = limits_of(concurrency=1)
        held = [limits.try_admit(ask_of(key=b"%d" % i)) for i in range(4096)]
        with pytest.raises(Overloaded, match="keys and models"):
            limits.try_admit(ask_of(key=b"one more"))
        first = held[0]
        assert first is not None
        first.leave()
        assert limits.try_admit(ask_of(key=b"one more")) is not None
        assert len(limits.states()) == 4096

    run_virtual(main())


def test_the_service_says_what_is_bounded_and_among_whom() -> None:
    """Printed at start-up."""
    assert Limits(LimitsPolicy()).describe() == "limits: none"
    alone = Limits(LimitsPolicy(concurrency=4, requests_per_min=600)).describe()
    assert "4 at once" in alone
    assert "10 calls/s" in alone
    assert "each process for itself" in alone
    assert "each of 4 processes keeps its part" in Limits(LimitsPolicy(concurrency=4, processes=4)).describe()
    shared = Limits(LimitsPolicy(concurrency=4, shared="redis://:secret@cache:6379/1")).describe()
    assert "all processes together (redis://cache:6379/1)" in shared
    assert "secret" not in shared
