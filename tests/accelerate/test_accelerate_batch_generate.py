"""Many calls go through a few at a time, and each has its result."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.accelerate.builders import run_virtual

from paceline.accelerate.batching.generate import Result, generate_batch


class Sender:
    """Takes as many seconds as the call says; a negative call fails after as many. Counts how many are under way."""

    def __init__(self) -> None:
        self.now = self.most = self.cancelled = 0
        self.started: list[float] = []

    async def __call__(self, seconds: float) -> float:
        self.started.append(asyncio.get_running_loop().time())
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(abs(seconds))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1
        if seconds < 0:
            raise ConnectionError(f"after {-seconds:g}")
        return seconds


def values(results: list[Result[float]]) -> list[float | str | None]:
    return [str(result.error) if result.error else result.value for result in results]


def test_results_come_in_the_order_of_the_calls_and_one_failure_stops_no_other() -> None:
    sender = Sender()
    results = run_virtual(generate_batch([3.0, 1.0, -2.0, 0.5], sender, concurrency=4))
    assert values(results) == [3.0, 1.0, "after 2", 0.5]
    assert [result.index for result in results] == [0, 1, 2, 3]
    assert [result.took_s for result in results] == [3.0, 1.0, 2.0, 0.5]


def test_a_place_is_refilled_at_once() -> None:
    sender = Sender()
    run_virtual(generate_batch([4.0, 1.0, 1.0, 1.0], sender, concurrency=2))
    assert sender.started == [0.0, 0.0, 1.0, 2.0]


def test_with_a_batch_size_the_next_wait_for_the_last() -> None:
    sender = Sender()
    run_virtual(generate_batch([4.0, 1.0, 1.0, 1.0, 1.0], sender, concurrency=4, batch_size=2))
    assert sender.started == [0.0, 0.0, 4.0, 4.0, 5.0]


def test_what_is_not_through_by_the_deadline_is_an_error() -> None:
    async def main() -> None:
        sender = Sender()
        results = await generate_batch([1.0, 5.0, 1.5, 1.0], sender, concurrency=2, deadline_s=2.0)
        assert [result.ok for result in results] == [True, False, False, False]
        assert all(isinstance(result.error, TimeoutError) for result in results[1:])
        assert [result.took_s for result in results] == [1.0, 2.0, 1.0, 0.0]
        assert asyncio.get_running_loop().time() == 2.0
        assert sender.now == 0
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())


def test_cancelling_leaves_nothing_running() -> None:
    async def main() -> None:
        sender = Sender()
        task = asyncio.create_task(generate_batch([9.0] * 10, sender, concurrency=3))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (sender.now, sender.cancelled) == (0, 3)
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())


def test_a_call_cancelled_from_inside_is_an_error_like_any_other() -> None:
    async def send(call: int) -> int:
        if call == 1:
            raise asyncio.CancelledError
        return call

    results = run_virtual(generate_batch(range(3), send, concurrency=1))
    assert [result.ok for result in results] == [True, False, True]


def test_results_are_told_as_they_come() -> None:
    heard: list[float | None] = []
    run_virtual(generate_batch([3.0, 1.0, 2.0], Sender(), on_result=lambda result: heard.append(result.value)))
    assert heard == [1.0, 2.0, 3.0]


def test_a_listener_that_fails_ends_the_batch() -> None:
    def listen(result: Result[float]) -> None:
        raise KeyError(result.index)

    sender = Sender()
    with pytest.raises(KeyError):
        run_virtual(generate_batch([1.0, 9.0, 9.0], sender, concurrency=2, on_result=listen))
    assert (sender.now, sender.cancelled) == (0, 1)


def test_calls_are_made_as_they_are_needed() -> None:
    made = []

    def calls() -> Iterator[float]:
        for n in range(5):
            made.append(n)
            yield 1.0

    async def main() -> None:
        task = asyncio.create_task(generate_batch(calls(), Sender(), concurrency=2))
        await asyncio.sleep(0.5)
        assert made == [0, 1]
        await task

    run_virtual(main())


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"batch_size": 0}], ids=str)
def test_wrong_bounds_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        run_virtual(generate_batch([1.0], Sender(), **wrong))  # type: ignore[arg-type]


@pytest.mark.slow
@given(
    st.lists(st.floats(-3, 3), max_size=12),
    st.integers(1, 5),
    st.none() | st.integers(1, 5),
    st.none() | st.floats(0, 5),
)
def test_never_more_at_once_and_a_result_for_each(
    calls: list[float], concurrency: int, batch_size: int | None, deadline_s: float | None
) -> None:
    sender = Sender()
    results = run_virtual(
        generate_batch(calls, sender, concurrency=concurrency, batch_size=batch_size, deadline_s=deadline_s)
    )
    assert [result.index for result in results] == list(range(len(calls)))
    assert sender.most <= min(concurrency, batch_size or concurrency)
    assert sender.now == 0
    if deadline_s is None:
        assert [result.ok for result in results] == [call >= 0 for call in calls]
