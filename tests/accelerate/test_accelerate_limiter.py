"""The limiter: order, bound, and the provider's own pace, in virtual time."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.accelerate.builders import run_virtual

from paceline.accelerate.limiter import Gate, Limiter, retry_after_s
from paceline.accelerate.policy import ConcurrencyPolicy, RetryPolicy
from paceline.errors import Overloaded


def now() -> float:
    return asyncio.get_running_loop().time()


async def call(gate: Gate, length_s: float, log: list[tuple[int, float]], name: int, deadline_s: float = 1e9) -> None:
    await gate.enter(gate.ticket(), deadline_s)
    try:
        log.append((name, now()))
        await asyncio.sleep(length_s)
    finally:
        gate.leave()


def test_at_most_so_many_at_once_in_the_order_they_came() -> None:
    """Three at a time, one second each: seven calls start at 0, 0, 0, 1, 1, 1, 2."""
    log: list[tuple[int, float]] = []

    async def main() -> None:
        gate = Gate("m", 3, 100)
        await asyncio.gather(*(call(gate, 1.0, log, i) for i in range(7)))
        assert (gate.peak, gate.in_flight, gate.waiting) == (3, 0, 0)

    run_virtual(main())
    assert log == [(0, 0.0), (1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 2.0)]


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3), st.floats(0.01, 3), st.booleans()), max_size=25),
)
def test_the_bound_is_never_broken(limit: int, calls: list[tuple[float, float, float, bool]]) -> None:
    """Arrivals, lengths, patience and cancellations of any kind: never above the limit, and nothing is left over."""

    async def main() -> None:
        gate = Gate("m", limit, 5)

        async def one(start_s: float, length_s: float, patience_s: float, cancel: bool) -> None:
            await asyncio.sleep(start_s)
            task = asyncio.create_task(call(gate, length_s, [], 0, now() + patience_s))
            if cancel:
                await asyncio.sleep(patience_s / 2)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert 0 <= gate.in_flight <= limit

        await asyncio.gather(*(one(*c) for c in calls))
        assert (gate.in_flight, gate.waiting) == (0, 0)
        assert gate.peak <= limit

    run_virtual(main())


def test_giving_up_in_the_queue_frees_the_place() -> None:
    """A cancelled waiter is passed over."""
    log: list[tuple[int, float]] = []

    async def main() -> None:
        gate = Gate("m", 1, 100)
        tasks = [asyncio.create_task(call(gate, 1.0, log, i)) for i in range(3)]
        await asyncio.sleep(0.5)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run_virtual(main())
    assert log == [(0, 0.0), (2, 1.0)]


def test_waiting_is_bounded_in_time_and_number() -> None:
    """Who waits too long, and who finds the queue full, is refused with a hint when to come again."""

    async def main() -> None:
        gate = Gate("m", 1, 1)
        log: list[tuple[int, float]] = []
        first = asyncio.create_task(call(gate, 10.0, log, 0))
        await asyncio.sleep(0)
        waiter = asyncio.create_task(call(gate, 1.0, log, 1, deadline_s=2.0))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="m: 1 calls wait already"):
            await call(gate, 1.0, log, 2)
        with pytest.raises(Overloaded, match="no turn within the allowed wait") as caught:
            await waiter
        assert now() == 2.0
        assert caught.value.retry_after_s >= 1.0
        await first
        assert len(log) == 1

    run_virtual(main())


def test_a_hold_stops_everybody_and_the_refused_call_goes_first() -> None:
    """After a 429 nobody passes for as long as it asked; then the refused one, then the others in order."""
    log: list[tuple[int, float]] = []

    async def main() -> None:
        gate = Gate("m", None, 100)
        ticket = gate.ticket()
        await gate.enter(ticket, 1e9)
        gate.hold(5.0, per_min=60.0)
        others = [asyncio.create_task(call(gate, 0.0, log, i)) for i in (1, 2)]
        await asyncio.sleep(0)
        gate.leave()
        await gate.enter(ticket, 1e9)
        log.append((0, now()))
        gate.leave()
        await asyncio.gather(*others)

    run_virtual(main())
    assert [name for name, _ in log] == [0, 1, 2]
    assert [at for _, at in log] == pytest.approx([5.0, 6.0, 7.0], abs=0.03)


def test_the_pace_ends_with_the_queue() -> None:
    """Once nobody waits, calls pass freely again."""
    log: list[tuple[int, float]] = []

    async def main() -> None:
        gate = Gate("m", None, 100)
        gate.hold(1.0, per_min=6.0)
        await call(gate, 0.0, log, 0)
        await asyncio.sleep(100)
        await asyncio.gather(*(call(gate, 0.0, log, i) for i in range(1, 5)))

    run_virtual(main())
    assert log == [(0, 1.0), (1, 101.0), (2, 101.0), (3, 101.0), (4, 101.0)]


def test_a_guessed_pace_quickens_while_it_works() -> None:
    """Without the provider's limit, admissions come faster with every accepted call."""
    log: list[tuple[int, float]] = []

    async def main() -> None:
        gate = Gate("m", None, 100)
        gate.hold(4.0)

        async def one(name: int) -> None:
            await call(gate, 0.0, log, name)
            gate.accepted()

        await asyncio.gather(*(one(i) for i in range(12)))

    run_virtual(main())
    starts = [at for _, at in log]
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert gaps[0] == pytest.approx(0.5, abs=0.03)
    assert gaps[-1] < 0.01
    assert [name for name, _ in log] == list(range(12))


def test_a_hold_longer_than_the_deadline_refuses_at_once() -> None:
    """Nobody waits for what cannot come in time."""

    async def main() -> None:
        gate = Gate("m", None, 100)
        gate.hold(3600.0)
        with pytest.raises(Overloaded) as caught:
            await call(gate, 0.0, [], 0, deadline_s=60.0)
        assert (now(), caught.value.retry_after_s) == (0.0, 3600.0)

    run_virtual(main())


def test_gates_are_one_for_each_tenant_and_model() -> None:
    """Only what the policy limits has one."""

    async def main() -> None:
        limiter = Limiter(ConcurrencyPolicy(models={"big": 2}), RetryPolicy())
        assert limiter.gate(b"t", "small") is None
        gate = limiter.gate(b"t", "big")
        assert gate is limiter.gate(b"t", "big")
        assert gate is not limiter.gate(b"u", "big")
        await asyncio.gather(*(call(gate, 0.0, [], i) for i in range(3) if gate))
        assert (limiter.in_flight, limiter.waiting) == (0, 0)

    run_virtual(main())


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ([(b"retry-after", b"2")], 2.0),
        ([(b"retry-after", b"2"), (b"retry-after-ms", b"250")], 0.25),
        ([(b"retry-after", b"0.5")], 0.5),
        ([(b"retry-after", b"Thu, 01 Jan 1970 00:00:10 GMT")], 7.0),
        ([(b"retry-after", b"Thu, 01 Jan 1970 00:00:01 GMT")], 0.0),
        ([(b"retry-after", b"soon")], None),
        ([(b"retry-after", b"-1")], None),
        ([(b"retry-after", b"nan")], None),
        ([(b"retry-after", b"inf")], None),
        ([], None),
    ],
)
def test_retry_after_is_read_in_all_its_spellings(headers: list[tuple[bytes, bytes]], wait_s: float | None) -> None:
    """Milliseconds first, then seconds, then a date; nonsense is nothing."""
    assert retry_after_s(headers, now_s=3.0) == wait_s
