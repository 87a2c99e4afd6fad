"""What the operator of a running gateway tells it: to stop, to read its configuration again. And the money, kept."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from paceline.errors import ConfigError
from paceline.gateway.config import GatewayConfig, Sources
from paceline.gateway.keys.table import Ledger
from paceline.gateway.lifecycle.reload import needs_restart
from paceline.gateway.metrics.counts import Metrics
from paceline.gateway.metrics.text import label

SAVE_S = 2.0  # how often what the keys spent is written down


async def reload(
    sources: Sources,
    old: GatewayConfig,
    ledger: Ledger,
    apply: Callable[[GatewayConfig, Mapping[str, int]], Awaitable[None]],
    metrics: Metrics,
) -> GatewayConfig:
    """Read the configuration again and apply it; a wrong one changes nothing. Says in one line what came of it."""
    try:
        new = sources.load()
        await apply(new, admit_keys(ledger, new))
    except ConfigError as error:
        with contextlib.suppress(ConfigError):
            admit_keys(ledger, old)
        say(f"the old configuration stays in force: {error}")
        metrics.count("paceline_reloads_total", label("result", "refused"))
        return old
    metrics.count("paceline_reloads_total", label("result", "applied"))
    restart = needs_restart(old, new)
    later = f"; {', '.join(restart)} after a restart" if restart else ""
    say(f"new configuration in force ({', '.join(sources.files) or 'nothing was read from a file'}){later}")
    return new


def say(message: str) -> None:
    """One line to the operator."""
    print(f"paceline: {message}", file=sys.stderr, flush=True)


def admit_keys(ledger: Ledger, config: GatewayConfig) -> dict[str, int]:
    """Rows of the keys, with what they had spent. ConfigError: the file of it is damaged or cannot be written."""
    ledger.keep_in(Path(config.spent_file) if config.spent_file is not None else None)
    return ledger.rows(key.id for key in config.keys)


@contextlib.asynccontextmanager
async def keeping(ledger: Ledger) -> AsyncIterator[None]:
    """Save the ledger every SAVE_S seconds and at the end. A disk that refuses is reported once."""
    warned = False

    def save() -> None:
        nonlocal warned
        try:
            ledger.save()
        except ConfigError as error:
            if not warned:
                say(f"{error}; budgets go on from what is in memory")
            warned = True

    async def repeat() -> None:
        while True:
            await asyncio.sleep(SAVE_S)
            save()

    task = asyncio.get_running_loop().create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        save()


@contextlib.asynccontextmanager
async def signals() -> AsyncIterator[AsyncIterator[int]]:
    """SIGTERM, SIGINT and SIGHUP as they arrive."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[int] = asyncio.Queue()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, arrived.put_nowait, number)

    async def each() -> AsyncIterator[int]:
        while True:
            yield await arrived.get()

    try:
        yield each()
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def unless_told_again(draining: Coroutine[Any, Any, None], told: AsyncIterator[int]) -> None:
    """Drain, or until a second signal says to end at once."""

    async def again() -> None:
        async for number in told:
            if number != signal.SIGHUP:
                return

    tasks = [asyncio.ensure_future(draining), asyncio.ensure_future(again())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def spent_gauges(ledger: Ledger, config: GatewayConfig) -> dict[str, dict[str, float]]:
    """What the keys with a budget have spent."""
    spent: dict[str, float] = {}
    names = {key.id: key.name for key in config.keys if key.has_budget}
    for key_id, money in ledger.spent_usd().items():
        if key_id in names:
            for period, usd in zip(("day", "month"), money, strict=True):
                spent[f"{label('key', names[key_id])},{label('period', period)}"] = usd
    return {"paceline_key_spent_usd": spent}
