"""generate_batch: many calls through, a few at once, each with its result or its error."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

C = TypeVar("C")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Result(Generic[R]):
    """What came of one call: a value, or an error."""

    index: int  # of the call among the calls
    value: R | None
    error: Exception | None  # TimeoutError: the deadline passed, before it was sent when `took_s` is 0
    took_s: float

    @property
    def ok(self) -> bool:
        """True when there is a value."""
        return self.error is None


async def generate_batch(
    calls: Iterable[C],
    send: Callable[[C], Awaitable[R]],
    *,
    concurrency: int = 4,
    batch_size: int | None = None,
    deadline_s: float | None = None,
    on_result: Callable[[Result[R]], None] | None = None,
) -> list[Result[R]]:
    """Send every call, at most `concurrency` at once; results in the order of the calls.

    Args:
        calls: Taken one by one as places become free, so they may be made as they go.
        send: Makes one call. What it raises becomes that call's error; the others go on.
        concurrency: At least 1; providers' free tiers and small servers do best with 3 to 5.
        batch_size: Wait for that many to be through before the next are begun (for providers that want pauses, or
            to save between batches); None refills each place at once, which is faster.
        deadline_s: Seconds from now for all; what is not through by then is cancelled, its error a TimeoutError.
        on_result: Hears of each call as it ends, in that order. What it raises ends the batch.

    Cancelling it cancels the calls under way and leaves nothing running.
    """
    for name, value in (("concurrency", concurrency), ("batch_size", batch_size)):
        if value is not None and value < 1:
            msg = f"{name} must be at least 1; got {value}"
            raise ValueError(msg)
    until_s = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
    results: list[Result[R]] = []
    numbered = enumerate(calls)

    async def work(some: Iterator[tuple[int, C]]) -> None:
        for index, call in some:
            result = await _one(index, call, send, until_s)
            results.append(result)
            if on_result is not None:
                on_result(result)

    while True:
        some = numbered if batch_size is None else iter(_next(numbered, batch_size))
        before = len(results)
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(concurrency, batch_size or concurrency)):
                    tasks.create_task(work(some))
        except BaseExceptionGroup as errors:  # of `on_result` or of making the calls; `send` never raises here
            raise errors.exceptions[0] from None
        if batch_size is None or len(results) == before:
            return sorted(results, key=lambda result: result.index)


def _next(calls: Iterator[tuple[int, C]], count: int) -> list[tuple[int, C]]:
    return [call for _, call in zip(range(count), calls, strict=False)]


async def _one(index: int, call: C, send: Callable[[C], Awaitable[R]], until_s: float | None) -> Result[R]:
    loop = asyncio.get_running_loop()
    if until_s is not None and loop.time() >= until_s:
        return Result(index, None, TimeoutError("the deadline passed before the call was sent"), 0.0)
    start_s = loop.time()
    try:
        async with asyncio.timeout_at(until_s):
            value = await send(call)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        error = ConnectionError("the call was cancelled from inside")
        return Result(index, None, error, loop.time() - start_s)
    except Exception as error:  # noqa: BLE001 - a result like any other; the caller decides
        return Result(index, None, error, loop.time() - start_s)
    return Result(index, value, None, loop.time() - start_s)
