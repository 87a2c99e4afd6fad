"""Hedging: a second attempt when the first is late; what comes first is taken, the other cancelled."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from paceline.accelerate.routing.attempt import Attempt
from paceline.accelerate.routing.verdict import Verdict

Run = Callable[[Attempt], Coroutine[Any, Any, None]]


async def race(first: Attempt, after_s: float, second: Callable[[], Attempt | None], run: Run) -> Attempt:
    """The attempt that serves, else the one that failed last. The other has given everything back.

    Args:
        first: Begun, not run.
        after_s: How long it has the field to itself.
        second: Begins another attempt; None when there may be none.
        run: Runs one; failures it keeps in the attempt.

    When this raises or is cancelled, both have given everything back.
    """
    # Owned by this function: the end of it waits for both.
    tasks = {asyncio.create_task(run(first)): first}
    winner: Attempt | None = None
    try:
        done, _ = await asyncio.wait(tasks, timeout=after_s)
        if not done:
            other = second()
            if other is not None:
                tasks[asyncio.create_task(run(other))] = other
        winner = await _first_to_serve(tasks)
        return winner
    finally:
        for task, attempt in tasks.items():
            if attempt is not winner:
                _retire(task, attempt, lost=winner is not None)
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first_to_serve(tasks: dict[asyncio.Task[None], Attempt]) -> Attempt:
    pending = set(tasks)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # what is not an upstream's failure is a bug, and raised
            if tasks[task].verdict is Verdict.ANSWER or not pending:
                return tasks[task]


def _retire(task: asyncio.Task[None], attempt: Attempt, *, lost: bool) -> None:
    task.cancel()
    if not lost:  # everything is given up
        attempt.end()
    elif task.done() and attempt.verdict is not Verdict.ANSWER:
        attempt.fail()
    else:
        attempt.lose()
