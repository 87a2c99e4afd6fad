"""Driving: one scenario under way in this process, or this process's share of it."""

import asyncio
import bisect
import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from paceline.errors import ConfigError
from paceline.load.address import Address
from paceline.load.attempt import Encoder
from paceline.load.deck import Deck
from paceline.load.demand import Demand, busiest
from paceline.load.expiry import Expiry
from paceline.load.guard import guarded
from paceline.load.ledger import Ledger
from paceline.load.scenario import CLOSED, Scenario
from paceline.load.schedule import Pacer, arrivals
from paceline.load.shapes import Stay, stays
from paceline.load.short_way import short_way
from paceline.load.snapshot import Snapshot
from paceline.load.source import Share, source_of
from paceline.load.turns import Turns
from paceline.model.run import ScenarioInfo
from paceline.stats.histogram import Histogram
from paceline.store.folder import RunFolder, open_run

INTERRUPTED = "interrupted"
_BEAT_S = 0.05
_BEATS_PER_SNAPSHOT = 5
_GRACE_S = 2.0  # after Ctrl-C, for what is in flight
_WARMED_S = 1.0  # connections of users who start within this time are opened before the start


class Driving:
    """One scenario from preparation to the last record; Turns does the sending, in callbacks of one event loop."""

    def __init__(
        self,
        scenario: Scenario,
        address: Address,
        run: RunFolder,
        speed: float,
        progress: Callable[[Snapshot], None] | None = None,
        share: Share | None = None,
    ) -> None:
        self.scenario, self.speed, self.share = scenario, speed, share or Share()
        self._run, self._progress = run, progress
        self._loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[None] = self._loop.create_future()
        self._encoder = Encoder(address)
        hooks = {"over": self._end, "stop": self.stop, "fail": self._fail}
        self._turns = Turns(scenario, address, self.share, speed, **hooks)  # type: ignore[arg-type]
        self._demand = Demand(self._turns.pool)
        self._timeout_s = scenario.timeout_s / speed
        self._expiry = Expiry(self._turns.pool, self._timeout_s, self._turns.end_unsent, self._fail)
        self._ledger: Ledger | None = None
        self._zero_s = (run.info.start_ns - run.clock.offset_ns) / 1e9  # start of the run on time.monotonic()
        self._start_s = self._end_s = time.monotonic()
        self._stays: Sequence[Stay] = ()
        self._pacer: Pacer | None = None
        self._due_s: Sequence[float] = ()  # on time.monotonic()
        self._total = 0
        self._beat_timer: asyncio.TimerHandle | None = None
        self.health = self._turns.health
        self.stopped: str | None = None

    @property
    def sent(self) -> int:
        """Requests that were due so far."""
        return self._turns.sent

    @property
    def done(self) -> int:
        """Requests that ended so far."""
        return self._turns.done

    @property
    def latencies(self) -> Histogram:
        """Of those that ended, as far as they are written."""
        return self._ledger.latencies if self._ledger is not None else Histogram()

    # --- before and after ----------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Read the bodies, connect, warm up. Raises ServiceError, ConfigError or InputError."""
        import numpy as np  # noqa: F401 - 0.1 s that must not fall into the run

        scenario, share, turns = self.scenario, self.share, self._turns
        if turns.is_closed:
            self._stays = stays(scenario)
            self._offsets_s: Sequence[float] = [stay.start_s for stay in self._stays[share.part :: share.of]]
            source = source_of(scenario, scenario.requests, share)
            warm = max(1, sum(offset_s <= _WARMED_S for offset_s in self._offsets_s))
        else:
            due = arrivals(scenario)
            if not due:
                msg = f"scenario {scenario.name!r} sends no request: its duration_s is too short for its rate_per_s"
                raise ConfigError(msg)
            self._offsets_s = due[share.part :: share.of]
            self._total = len(due)  # of all processes
            source = source_of(scenario, len(due), share)
            warm = self._demand.lines_for(busiest(self._offsets_s) * self.speed)
            turns.pool.allow(warm)
        await turns.pool.warm(warm)
        if share.part == 0:
            await self._warm_up()
        self._ledger = turns.ledger = Ledger(self._run, scenario.name, self._zero_s, self._encoder)
        turns.source, turns.deck = source, Deck(source, self._encoder, share)

    async def _warm_up(self) -> None:
        """Send `warmup` requests, one after the other, not recorded; they say how long an answer takes."""
        count = self.scenario.warmup
        if not count:
            return
        share = Share()
        source = source_of(msgspec.structs.replace(self.scenario, requests=count), count, share)
        deck = Deck(source, self._encoder, share)
        while (card := deck.take(-1)) is not None:
            took_s = await self._turns.warm_up(card, self._timeout_s)
            if took_s is None:
                return
            self._demand.warmed(took_s)

    async def run(self, start_s: float | None = None) -> None:
        """Send until the scenario is over; `start_s` on time.monotonic(), so that several processes start together.

        CancelledError: nothing more was sent, what was in flight got 2 s.
        """
        with _uncollected():
            self._begin(start_s)
            try:
                await self._finished
            except asyncio.CancelledError:
                self._finished = self._loop.create_future()
                self.stop(INTERRUPTED)
                await asyncio.wait([self._finished], timeout=_GRACE_S)
                raise

    def _begin(self, start_s: float | None) -> None:
        turns = self._turns
        # The first request, too, can be on time.
        self._start_s = time.monotonic() + 0.01 if start_s is None else start_s
        stops_s = [self._start_s + stay.stop_s / self.speed for stay in self._stays]
        self._due_s = [self._start_s + offset_s / self.speed for offset_s in self._offsets_s]
        turns.begin(stops_s, len(self._due_s))
        turns.readiness.take = short_way(turns)
        self._pacer = Pacer(self._due_s, guarded(turns.join if turns.is_closed else turns.arrive, self._fail))
        turns.readiness.between = self._pacer.catch_up
        self._beat(time.monotonic(), 0)
        self._expiry.start()
        turns.end_if_over()  # a share may be empty

    def stop(self, reason: str) -> None:
        """Send nothing more; what is in flight goes on."""
        self.stopped = self.stopped or reason
        self._turns.stopping = True
        if self._pacer is not None:
            self._pacer.stop()
        self._turns.end_if_over()

    def stop_soon(self, reason: str) -> None:
        """Send nothing more, and end when what is in flight has had 2 s."""
        self.stop(reason)
        self._loop.call_later(_GRACE_S, self._end)

    def _end(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)

    def _fail(self, error: Exception) -> None:
        """A bug or a full disk ends the scenario."""
        self._turns.stopping = True
        if not self._finished.done():
            self._finished.set_exception(error)

    async def close(self) -> None:
        """End timers, connections and what is still in flight; write the last records."""
        if self._pacer is not None:
            self._pacer.stop()
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        self._expiry.stop()
        self._turns.stopping = self._turns.closing = True
        if self.sent > self.done:  # ended by us, so they say nothing about the target
            self.stopped = f"{self.stopped}; {self.sent - self.done} requests in flight left out"
        await self._turns.pool.close()
        self._turns.readiness.close()
        self._end_s = time.monotonic()
        self.health.stop()
        if self._ledger is not None:
            self._ledger.close()
        if self._progress is not None and self.sent:
            self._progress(self.snapshot())

    # --- beside --------------------------------------------------------------------------------------------------

    def _beat(self, due_s: float, beats: int) -> None:
        """Every 0.05 s: how late is this loop? Write records; every fifth time show progress."""
        now_s, turns = time.monotonic(), self._turns
        if turns.is_closed and beats:
            self.health.late(now_s - due_s)
        turns.ledger.flush()  # small pieces: a flush is time in which nothing is sent
        if not turns.is_closed:
            self._demand.fit(self._due_s, now_s)
        if beats % _BEATS_PER_SNAPSHOT == 0:
            self._read()
            if self._progress is not None:
                self._progress(self.snapshot())
        next_s = max(due_s + _BEAT_S, now_s)
        self._beat_timer = self._loop.call_later(next_s - now_s, guarded(self._beat, self._fail), next_s, beats + 1)

    def _read(self) -> None:
        service_s = self._turns.ledger.read()
        if service_s is not None:
            self._demand.seen(service_s)

    def snapshot(self) -> Snapshot:
        """Where it stands."""
        now_s = min(time.monotonic(), self._end_s) if self._end_s > self._start_s else time.monotonic()
        scenario, turns, tally = self.scenario, self._turns, self._turns.ledger.tally
        begun = bisect.bisect_right(self._due_s, now_s)  # users who came, or arrivals that were due
        return Snapshot(
            scenario=scenario.name,
            speed=self.speed,
            elapsed_s=max(0.0, now_s - self._start_s) * self.speed,
            duration_s=scenario.duration_s,
            requests=scenario.requests if turns.is_closed else self._total,
            due=None if turns.is_closed else begun,
            sent=self.sent,
            done=self.done,
            failures=dict(tally.failures),
            users=max(0, begun - (len(self._due_s) - turns.users)) if turns.is_closed else None,
            hits=tally.hits,
            misses=tally.misses,
            tokens=tally.tokens,
            latencies=self.latencies.copy(),
            first_tokens=tally.first_tokens.copy(),
            lag=self.health.lag.copy(),
            cpu_s=(time.process_time(),),
        )

    def _achieved(self) -> tuple[float, float] | None:
        """Arrivals per wall second that were sent and that were asked for; None for users and for a single arrival."""
        if self.scenario.model == CLOSED or self.sent < 2:
            return None
        first_s, gaps = self._due_s[0], self.sent - 1
        asked_s = self._due_s[gaps] - first_s
        return (gaps / max(self._turns.fired_s - first_s, asked_s), gaps / asked_s) if asked_s > 0 else None

    def info(self) -> ScenarioInfo:
        """What was driven, for run.json."""
        scenario, speed = self.scenario, self.speed
        achieved = self._achieved()
        return ScenarioInfo(
            name=scenario.name,
            model=scenario.model,
            users=scenario.users,
            ramp_s=scenario.ramp_s,
            think_s=scenario.think_s,
            rate_per_s=scenario.rate_per_s
            or (achieved and achieved[1] / speed * self.share.of),  # a replay's, of all processes
            arrivals=scenario.arrivals,
            cv=scenario.cv,
            requests=self.done,
            seed=scenario.seed,
            timeout_s=scenario.timeout_s,
            started_s=(self._start_s - self._zero_s) * speed,
            ended_s=(self._end_s - self._zero_s) * speed,
            lag_p50_s=self.health.lag.quantile(0.5),
            lag_p99_s=self.health.lag.quantile(0.99),
            lag_max_s=self.health.lag.max_s if self.health.lag.count else None,
            achieved_rate_per_s=None if achieved is None else achieved[0] / speed,
            generator_cpu_ratio=self.health.cpu_ratio,
            trouble=self.health.trouble(self.latencies.quantile(0.5), achieved),
            failed_checks=dict(self._turns.source.failed if self._ledger is not None else {}),
            stopped=self.stopped,
        )


def add_info(run: RunFolder, info: ScenarioInfo) -> None:
    """Put it into run.json; read again first, because the process that records the service writes it too."""
    others = [s for s in open_run(run.path, salvage=True).info.scenarios if s.name != info.name]
    run.update(scenarios=[*others, info])


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Leave what exists out of garbage collection meanwhile: looking at a hundred thousand bodies takes 10 ms."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
