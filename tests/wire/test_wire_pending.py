"""Pending: called back or awaited, it comes once; cancelled, it holds nothing."""

import asyncio
from collections.abc import Callable

import pytest

from paceline.wire.pending import Pending


class Work(Pending[str]):
    """Something under way."""

    def __init__(self, later: Callable[[], str] = lambda: "later") -> None:
        super().__init__()
        self.cancelled = 0
        self.later = later
        self.done = self._ready
        self.fail = self._fail

    def cancel(self) -> None:
        super().cancel()
        self.cancelled += 1

    async def _rest(self) -> str:
        return self.later()


@pytest.mark.parametrize("early", [True, False])
def test_a_value_is_told_in_the_moment_it_comes(early: bool) -> None:
    """And at once to who asks when it is there."""
    work, told = Work(), list[str | None]()
    if early:
        work.done("now")
    work.on_ready(lambda: told.append(work.value))
    if not early:
        assert told == []
        work.done("now")
    assert told == ["now"]


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(("value", "got"), [("now", "now"), (None, "later")])
def test_awaiting_gives_the_value_or_does_the_rest(early: bool, value: str | None, got: str) -> None:
    """Whether it comes before anybody waits or after."""

    async def main() -> None:
        work = Work()
        if early:
            work.done(value)
        else:
            asyncio.get_running_loop().call_soon(work.done, value)
        assert await work == got
        assert work.cancelled == 0

    asyncio.run(main())


def test_a_failure_is_raised_where_it_is_awaited() -> None:
    """Not where it happened."""

    async def main() -> None:
        work = Work()
        asyncio.get_running_loop().call_soon(work.fail, OSError("broken"))
        with pytest.raises(OSError, match="broken"):
            await work

    asyncio.run(main())


@pytest.mark.parametrize("ready", [True, False])
def test_a_waiter_that_is_cancelled_cancels_what_it_waits_for(ready: bool) -> None:
    """Also between the moment it is ready and the waiter's turn: what was left to do is done by nobody."""

    async def main() -> None:
        work = Work()

        async def wait() -> str:
            return await work

        waiter = asyncio.create_task(wait())
        await asyncio.sleep(0)
        if ready:
            work.done()
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert work.cancelled == 1
        work.on_ready(lambda: None)

    asyncio.run(main())
