"""The gateway's life: checks, start, announce, serve until told to stop, drain, flush."""

import asyncio
import contextlib
import gc
import ipaddress
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from paceline.accelerate.engine import Engine
from paceline.accelerate.policy import Policy
from paceline.clock import RunClock
from paceline.errors import ConfigError
from paceline.gateway.service import Gateway
from paceline.gateway.spans import SpanSink
from paceline.model.price import price_of
from paceline.wire.client import HttpClient, Timeouts
from paceline.wire.server import Server, serve

DRAIN_S = 5.0


class GatewayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What one gateway process is told."""

    upstream: str  # the provider's base URL, with or without /v1
    policy: Policy = Policy()
    run: Path | None = None  # the run its spans go into; None: it records nothing
    host: str = "127.0.0.1"
    port: int = 8787  # 0: any free one
    insecure_bind: bool = False  # listen on an address others can reach
    timeouts: Timeouts = Timeouts()


async def run_gateway(options: GatewayOptions, ready: Callable[[Server], None]) -> int:
    """Serve until SIGTERM or SIGINT; calls in flight get DRAIN_S to finish. `ready` is called once it listens.

    Returns the signal that stopped it. Raises ConfigError (address, URL) and InputError (run) before serving.
    """
    check_host(options.host, insecure_bind=options.insecure_bind)
    price_of("gpt-4o")  # loads the price list now (0.2 s), not during the first call
    clock, speed, sink = _recording(options.run)
    timeouts = msgspec.structs.replace(
        options.timeouts,
        first_byte_s=options.timeouts.first_byte_s / speed,
        silence_s=options.timeouts.silence_s / speed,
    )
    client = HttpClient(options.upstream.rstrip("/").removesuffix("/v1"), timeouts=timeouts)
    engine = Engine(client, options.policy, clock=clock, speed=speed, listener=sink.take if sink is not None else None)
    gateway = Gateway(engine)
    server = await serve(gateway.handle, options.host, options.port)
    if sink is not None:
        sink.start()
    _quiet_collector()
    try:
        return await _until_told(lambda: ready(server))
    finally:
        await server.close(DRAIN_S)
        await client.close()
        if sink is not None:
            await sink.close()


def check_host(host: str, *, insecure_bind: bool) -> None:
    """Refuse an address that others can reach: the gateway has no keys of its own and forwards any caller's."""
    loopback = host == "localhost"
    with contextlib.suppress(ValueError):
        loopback = loopback or ipaddress.ip_address(host).is_loopback
    if not loopback and not insecure_bind:
        msg = (
            f"refusing to listen on {host}: anyone who reaches it could use this gateway and its cache. "
            "Use --host 127.0.0.1, or --insecure-bind if only trusted callers can reach it"
        )
        raise ConfigError(msg)


def _recording(run: Path | None) -> tuple[RunClock, float, SpanSink | None]:
    if run is None:
        return RunClock(), 1.0, None
    from paceline.store.folder import open_run

    folder = open_run(run)
    return folder.clock, folder.info.speed, SpanSink(folder.spool("spans", "gateway"))


def _quiet_collector() -> None:
    """Collect garbage seldom: calls leave no cycles behind, and looking for them took a tenth of the CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


async def _until_told(ready: Callable[[], None]) -> int:
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        ready()
        await told.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return received[0]
