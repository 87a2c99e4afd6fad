"""The gateway's life: one process, or several below a parent; checks, start, announcement, signals, end."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from paceline.gateway.config import GatewayConfig, Sources
from paceline.gateway.keys.table import Ledger, Table
from paceline.gateway.lifecycle.process import Address, Place, ServingProcess
from paceline.gateway.lifecycle.told import admit_keys, keeping, reload, signals, spent_gauges, unless_told_again
from paceline.gateway.workers.parent import Parent

Ready = Callable[[GatewayConfig, Address], None]


class Recording(NamedTuple):
    """What is written down of calls; the default: nothing."""

    run: Path | None = None  # the run their spans go into
    answers: bool = False  # prompts and answers as well


async def run_gateway(sources: Sources, ready: Ready, recording: Recording) -> int:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the configuration again, a second signal ends it at once.

    `ready` is called once it listens; `recording`: what is written down. Returns the signal that stopped it. Raises
    ConfigError (files, address, URL) and InputError (run) before serving.
    """
    config = sources.load()
    serve = _serve_alone if config.server.workers == 1 else _serve_together
    return await serve(sources, config, ready, recording)


async def _serve_alone(sources: Sources, config: GatewayConfig, ready: Ready, recording: Recording) -> int:
    table = Table(1)
    ledger = Ledger(table)
    process = ServingProcess(
        Place(table=table, run=recording.run, record_answers=recording.answers, started_ns=time.time_ns())
    )
    number = 0
    try:
        address = await process.start(config, admit_keys(ledger, config))
        process.more_gauges = lambda: {"paceline_workers": {"": 1.0}, **spent_gauges(ledger, config)}
        async with keeping(ledger), signals() as told:
            ready(config, address)
            async for number in told:
                if number != signal.SIGHUP:
                    break
                config = await reload(sources, config, ledger, process.apply, process.metrics)
            await unless_told_again(process.drain(), told)
    finally:
        await process.close()
    return number


async def _serve_together(sources: Sources, config: GatewayConfig, ready: Ready, recording: Recording) -> int:
    number = 0
    async with (
        signals() as told,
        Parent(config, run=recording.run, record_answers=recording.answers, started_ns=time.time_ns()) as parent,
        keeping(parent.ledger),
    ):
        ready(config, parent.address)
        async for number in told:
            if number != signal.SIGHUP:
                break
            config = await reload(sources, config, parent.ledger, parent.apply, parent.metrics)
        await unless_told_again(parent.drain(), told)
    return number
