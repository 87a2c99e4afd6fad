"""One serving process: made, listening, given new configurations, drained, flushed."""

import asyncio
import gc
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from paceline.accelerate.cache import Selection
from paceline.accelerate.engine import Engine
from paceline.accelerate.record import CallRecord, Listener
from paceline.accelerate.recorded import AnswersWriter, recorded
from paceline.clock import RunClock
from paceline.gateway.access_log import AccessLog
from paceline.gateway.config import GatewayConfig
from paceline.gateway.invalidation import Dropped, Tell, drop, nobody_else
from paceline.gateway.keys.table import Table
from paceline.gateway.lifecycle.reload import Composition
from paceline.gateway.metrics.counts import Metrics
from paceline.gateway.metrics.engine import EngineMetrics
from paceline.gateway.metrics.shared import WRITE_S, SharedMetrics
from paceline.gateway.pages import Pages
from paceline.gateway.spans import SpanSink
from paceline.model.price import price_of
from paceline.wire.server import Server, ServerLimits, serve


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What one process is among those that serve together."""

    number: int = 0
    table: Table
    folder: Path | None = None  # where they write their counts for each other; None: there is one process
    sock: socket.socket | None = None  # bound; None: it binds by itself
    run: Path | None = None  # the run its spans go into; None: it records nothing
    record_answers: bool = False  # calls and answers as well
    started_ns: int = 0


class Address(msgspec.Struct, frozen=True):
    """Where a gateway really listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class ServingProcess:
    """One process that serves: `start` it, `apply` new configurations, `close` it (draining first)."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._clock, self._speed, self._sink = _recording(place)
        self._answers = _answers(place)
        self.metrics = Metrics()
        self._engine_metrics = EngineMetrics(self._engine, self.metrics)
        self.shared = SharedMetrics(self.metrics, place.folder, place.number)
        self._log: AccessLog | None = None
        self._composition: Composition | None = None
        self._server: Server | None = None
        self._pages: Pages | None = None
        self._writer: asyncio.Task[None] | None = None
        self.tell: Tell = nobody_else  # the other processes, what is dropped
        self.more_gauges: Callable[[], dict[str, dict[str, float]]] = dict  # of who runs this process

    async def start(self, config: GatewayConfig, rows: Mapping[str, int]) -> Address:
        """Serve. Raises ConfigError (address, URL, file) and InputError (run)."""
        price_of("gpt-4o")  # loads the price list now (0.2 s), not during the first call
        self.shared.resume()
        if config.server.access_log is not None:
            self._log = AccessLog(
                config.server.access_log, dropped=lambda: self.metrics.count("paceline_access_log_dropped_total")
            )
        self._pages = Pages(
            self.shared,
            state=self._state,
            more={"/-/cache": self._cache_page, "/-/limits": self._limits_page, "/-/prompts": self._prompts_page},
            drop=self._drop,
            log=self._log,
            started_ns=self._place.started_ns,
        )
        self._composition = Composition(
            self._listener(),
            self._pages,
            self._place.table,
            self._place.number,
            clock=self._clock,
            speed=self._speed,
            detail=self._sink is not None,
            tapes=self._answers is not None,
        )
        gateway = self._composition.apply(config, rows)
        limits = ServerLimits(connections=config.server.connections, body_bytes=config.server.body_bytes)
        host, port = config.server.host, config.server.port
        self._server = await serve(gateway.handle, host, port, limits=limits, sock=self._place.sock)
        self.metrics.gauges = self._gauges
        self._writer = asyncio.get_running_loop().create_task(self._write())  # cancelled by `close`
        if self._log is not None:
            self._log.start()
        if self._sink is not None:
            self._sink.start()
        _quiet_collector()
        return Address(host, self._server.port)

    async def apply(self, config: GatewayConfig, rows: Mapping[str, int]) -> None:
        """Answer new calls by a new configuration. ConfigError: the old one goes on."""
        assert self._composition is not None  # noqa: S101 - started before
        self._composition.apply(config, rows)
        if self._log is not None:
            self._log.reopen()

    async def drain(self) -> None:
        """Say it is not ready, stop accepting, let calls in flight finish as long as the configuration allows."""
        if self._server is None or self._pages is None or self._composition is None:
            return
        self._pages.ready = False
        assert self._composition.config is not None  # noqa: S101 - it serves, so it has one
        server = self._composition.config.server
        if server.unready_s:
            await asyncio.sleep(server.unready_s)
        await self._server.close(server.drain_s)

    async def close(self) -> None:
        """Cut what is left and write what is kept."""
        if self._server is not None:
            await self._server.close(0.0)
        if self._writer is not None:
            self._writer.cancel()
        if self._composition is not None:
            await self._composition.close()
        if self._sink is not None:
            await self._sink.close()
        if self._answers is not None:
            self._answers.close()
        if self._log is not None:
            self._log.close()
        self.shared.write()

    def _listener(self) -> Listener:
        """Everybody who hears of a finished call, as one function."""
        count = self.metrics.take
        others: list[Listener] = [listener.take for listener in (self._sink, self._log) if listener is not None]
        if self._answers is not None:
            others.append(self._keep_answer)

        if not others:
            return count

        def tell(record: CallRecord) -> None:
            count(record)
            for take in others:
                take(record)

        return tell

    def _keep_answer(self, record: CallRecord) -> None:
        call = recorded(record, time.time())
        if call is not None and self._answers is not None:
            self._answers.add(call)

    def _state(self) -> Mapping[str, Any]:
        return {**self._engine().state(), "worker": self._place.number, "pid": os.getpid()}

    def _cache_page(self) -> Mapping[str, Any]:
        cache = self._engine().cache
        return {"worker": self._place.number, "cache": cache.statistics() if cache is not None else None}

    async def _drop(self, selection: Selection) -> Dropped:
        return await drop(self._engine().cache, selection, self.tell)

    def hear(self, selection: Selection) -> int:
        """Drop what another process was told to; how many entries this one lost."""
        cache = self._engine().cache
        return cache.hear(selection) if cache is not None else 0

    def _limits_page(self) -> Mapping[str, Any]:
        limits = self._engine().limits
        return {"worker": self._place.number, "limits": limits.states() if limits is not None else []}

    def _prompts_page(self) -> Mapping[str, Any]:
        prefixes = self._engine().prefixes
        return {"worker": self._place.number, "templates": prefixes.report() if prefixes is not None else []}

    def _engine(self) -> Engine:
        assert self._composition is not None  # noqa: S101 - started before
        assert self._composition.gateway is not None  # noqa: S101
        return self._composition.gateway.engine

    def _gauges(self) -> dict[str, dict[str, float]]:
        open_requests = float(self._server.busy if self._server is not None else 0)
        return {"paceline_open_requests": {"": open_requests}, **self._engine_metrics.gauges(), **self.more_gauges()}

    async def _write(self) -> None:
        while True:
            await asyncio.sleep(WRITE_S)
            self.shared.write()
            if self._answers is not None:
                self._answers.flush()


def _recording(place: Place) -> tuple[RunClock, float, SpanSink | None]:
    if place.run is None:
        return RunClock(), 1.0, None
    from paceline.store.folder import open_run

    folder = open_run(place.run)
    writer = "gateway" if place.folder is None else f"gateway-{place.number}"
    return folder.clock, folder.info.speed, SpanSink(folder.spool("spans", writer))


def _answers(place: Place) -> AnswersWriter | None:
    if place.run is None or not place.record_answers:
        return None
    return AnswersWriter(place.run, f"gateway-{place.number}")


def _quiet_collector() -> None:
    """Collect garbage seldom: calls leave no cycles behind, and looking for them took a tenth of the CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
