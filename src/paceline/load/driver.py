"""Drive a scenario at a target and record every request."""

import asyncio
import contextlib
import itertools
import os
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ParamSpec

from paceline.errors import ConfigError
from paceline.load.attempt import CONNECTION, Attempt, Encoder
from paceline.load.health import Health
from paceline.load.pool import Address, Pool, connection_limit
from paceline.load.scenario import CLOSED, Body, Scenario, draws, sequence
from paceline.load.schedule import Pacer, arrivals
from paceline.model.run import ScenarioInfo
from paceline.stats.histogram import Histogram
from paceline.store.folder import RunFolder, disk_errors, open_run
from paceline.store.spool import Spool

INTERRUPTED = "interrupted"
_BEAT_S = 0.05
_BEATS_PER_SNAPSHOT = 5
_GRACE_S = 2.0  # after Ctrl-C, for what is in flight
_GONE = 50  # connection errors in a row: the target is gone
P = ParamSpec("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Where a scenario stands, times and rates at the provider's pace."""

    scenario: str
    elapsed_s: float
    duration_s: float | None  # None: bounded by requests
    requests: int | None  # None: bounded by time
    sent: int
    done: int
    errors: int
    rate_per_s: float
    p50_s: float | None
    p95_s: float | None


async def drive(
    scenario: Scenario,
    base_url: str,
    run: RunFolder,
    *,
    speed: float | None = None,
    progress: Callable[[Snapshot], None] | None = None,
    tls: ssl.SSLContext | None = None,
) -> ScenarioInfo:
    """Drive one scenario; write its requests to the run, add its ScenarioInfo to run.json and return it.

    Requests that fail are records with an `error`, never exceptions. The scenario ends early, with `stopped` set, when
    the target is gone or the error ratio passes `stop_error_ratio`.

    Args:
        scenario: What to send; times are divided by `speed`.
        base_url: Scheme, host, port and, where there is one, a path prefix.
        run: Where records go.
        speed: Times faster than real; None takes the run's.
        progress: Called four times a second and at the end.
        tls: For https, instead of the system's default context.

    Raises:
        ServiceError: the target cannot be reached at all. ConfigError, InputError: something in the scenario or its
            body files is wrong. MeasurementError: the disk is full.
        CancelledError: sending stopped, what was in flight got 2 s, everything is recorded and `stopped` is set.
    """
    speed = run.info.speed if speed is None else speed
    address = Address.parse(base_url, tls)
    with (
        disk_errors(run.path),
        contextlib.closing(run.spool("requests", f"load-{os.getpid()}-{time.time_ns():x}")) as spool,
    ):
        driving = _Driving(scenario, address, run, spool, speed, progress)
        try:
            await driving.prepare()
            await driving.run()
        finally:
            await driving.close()
            info = driving.info()
            if driving.sent:
                _add_info(run, info)
    return info


def _add_info(run: RunFolder, info: ScenarioInfo) -> None:
    """Put it into run.json; read again first, because the process that records the service writes it too."""
    others = [s for s in open_run(run.path, salvage=True).info.scenarios if s.name != info.name]
    run.update(scenarios=[*others, info])


class _Driving:
    """One scenario under way: everything happens in callbacks of one event loop; `_finished` says it is over."""

    def __init__(
        self,
        scenario: Scenario,
        address: Address,
        run: RunFolder,
        spool: Spool,
        speed: float,
        progress: Callable[[Snapshot], None] | None,
    ) -> None:
        self.scenario, self.speed = scenario, speed
        self._run, self._spool, self._progress = run, spool, progress
        self._loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[None] = self._loop.create_future()
        self._encoder = Encoder(address)
        self._pool = Pool(address, connection_limit(scenario.connections, scenario.users))
        self._cache_names = [name.lower().encode() for name in scenario.cache_headers]
        self._zero_s = (run.info.start_ns - run.clock.offset_ns) / 1e9  # start of the run on time.monotonic()
        self._start_s = self._end_s = time.monotonic()
        self._in_flight: set[Attempt] = set()
        self._pacer: Pacer | None = None
        self._beat_timer: asyncio.TimerHandle | None = None
        self._users = 0  # still at work
        self._latencies = Histogram()
        self._health = Health()
        self._refused = 0  # connection errors in a row
        self._stopping = self._closing = False
        self._recent: deque[tuple[float, int]] = deque(maxlen=9)  # snapshots of two seconds
        self._on_ended, self._on_turn = self._guarded(self._ended), self._guarded(self._turn)
        self.stopped: str | None = None
        self.sent = self.done = self.errors = 0

    async def prepare(self) -> None:
        """Read the bodies, connect, warm up."""
        scenario = self.scenario
        if scenario.model == CLOSED:
            self._due = [i * scenario.ramp_s / (scenario.users or 1) for i in range(scenario.users or 0)]
            self._bodies: Iterator[Body] = iter(sequence(scenario)) if scenario.requests else draws(scenario)
            warm = len(self._due) if not scenario.ramp_s else 1
        else:
            self._due = list(arrivals(scenario))
            self._bodies = iter(sequence(scenario, len(self._due)))
            # Enough for answers within 0.1 s; slower services get more connections as they need them.
            warm = int((scenario.rate_per_s or 0) * self.speed * 0.1) + 1
        first = next(self._bodies, None)  # reads the files: their errors belong before the start
        if first is None:
            msg = f"scenario {scenario.name!r} sends no request: its duration_s is too short for its rate_per_s"
            raise ConfigError(msg)
        self._bodies = itertools.chain([first], self._bodies)
        await self._pool.warm(warm)
        for body in sequence(scenario, scenario.warmup):
            await self._warm_up(body)

    async def _warm_up(self, body: Body) -> None:
        done = asyncio.Event()
        attempt = Attempt(0, body, 0.0, None, cache_names=[], done=lambda _: done.set())
        attempt.send(self._pool, self._encoder, self.scenario.timeout_s / self.speed)
        await done.wait()

    async def run(self) -> None:
        """Send until the scenario is over."""
        self._start_s = time.monotonic() + 0.01  # so that the first request, too, can be on time
        self._health.start()
        self._users = len(self._due) if self.scenario.model == CLOSED else 0
        fire = self._turn if self.scenario.model == CLOSED else self._arrive
        self._pacer = Pacer([self._start_s + due / self.speed for due in self._due], self._guarded(fire))
        self._beat(time.monotonic(), 0)
        try:
            await self._finished
        except asyncio.CancelledError:
            self._finished = self._loop.create_future()
            self.stop(INTERRUPTED)
            await asyncio.wait([self._finished], timeout=_GRACE_S)
            raise

    def stop(self, reason: str) -> None:
        """Send nothing more; what is in flight goes on."""
        self.stopped = self.stopped or reason
        self._stopping = True
        if self._pacer is not None:
            self._pacer.stop()
        self._end_if_over()

    async def close(self) -> None:
        """End timers, connections and what is still in flight; write the last records."""
        if self._pacer is not None:
            self._pacer.stop()
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        self._stopping = self._closing = True
        if self._in_flight:  # ended by us, so they say nothing about the target
            self.stopped = f"{self.stopped}; {len(self._in_flight)} requests in flight left out"
        for attempt in list(self._in_flight):
            attempt.give_up(CONNECTION)
        await self._pool.close()
        self._end_s = time.monotonic()
        self._health.stop()
        if self._progress is not None and self.sent:
            self._progress(self._snapshot())

    # --- sending -------------------------------------------------------------------------------------------------

    def _arrive(self, _index: int, due_s: float) -> None:
        self._health.late(time.monotonic() - due_s)
        self._send(next(self._bodies), due_s, None)

    def _turn(self, user: int, free_s: float) -> None:
        """The user is free: the next request of the sequence is theirs, if there is one."""
        body = None
        duration_s = self.scenario.duration_s
        if not self._stopping and (duration_s is None or (free_s - self._start_s) * self.speed < duration_s):
            body = next(self._bodies, None)
        if body is None:
            self._users -= 1
            self._end_if_over()
        else:
            self._send(body, min(free_s, time.monotonic()), user)  # the loop's timers may be 1 ms early

    def _send(self, body: Body, due_s: float, user: int | None) -> None:
        attempt = Attempt(self.sent, body, due_s, user, cache_names=self._cache_names, done=self._on_ended)
        self.sent += 1
        self._in_flight.add(attempt)
        attempt.send(self._pool, self._encoder, self.scenario.timeout_s / self.speed)

    def _ended(self, attempt: Attempt) -> None:
        self._in_flight.discard(attempt)
        if self._closing:
            return
        self.done += 1
        self.errors += attempt.error is not None
        self._latencies.record(attempt.ended_s - attempt.intended_s)
        self._spool.append(attempt.record(self.scenario, self._zero_s))
        self._watch_errors(attempt)
        if attempt.user is None:
            self._end_if_over()
            return
        free_s = attempt.ended_s + self.scenario.think_s / self.speed
        if attempt.error is None and not self.scenario.think_s:
            self._turn(attempt.user, free_s)
        else:  # through the loop, so that a target which refuses at once cannot recurse
            delay_s = max(0.0, free_s - time.monotonic())
            self._loop.call_later(delay_s, self._on_turn, attempt.user, free_s)

    def _watch_errors(self, attempt: Attempt) -> None:
        self._refused = self._refused + 1 if attempt.error == CONNECTION else 0
        limit = self.scenario.stop_error_ratio
        if self._refused >= _GONE:
            self.stop(f"{_GONE} connection errors in a row: the target is gone")
        elif limit is not None and self.done >= 100 and self.errors > limit * self.done:
            self.stop(f"{self.errors} of {self.done} requests failed, above the bound of {limit:.0%}")

    def _end_if_over(self) -> None:
        if self.scenario.model == CLOSED:
            over = self._users <= 0 or (self._stopping and not self._in_flight)
        else:
            over = not self._in_flight and (self._stopping or self.sent == len(self._due))
        if over and not self._finished.done():
            self._finished.set_result(None)

    # --- beside --------------------------------------------------------------------------------------------------

    def _beat(self, due_s: float, beats: int) -> None:
        """Every 0.05 s: how late is this loop? Write records; every fifth time show progress."""
        now_s = time.monotonic()
        if self.scenario.model == CLOSED and beats:
            self._health.late(now_s - due_s)
        self._spool.flush()  # small pieces: a flush is time in which nothing is sent
        if self._progress is not None and beats % _BEATS_PER_SNAPSHOT == 0:
            self._progress(self._snapshot())
        next_s = max(due_s + _BEAT_S, now_s)
        self._beat_timer = self._loop.call_later(next_s - now_s, self._guarded(self._beat), next_s, beats + 1)

    def _guarded(self, callback: Callable[P, None]) -> Callable[P, None]:
        """The callback, with any exception ending the scenario: the loop would only log it, and we wait for ever."""

        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                callback(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - handed to whoever awaits the scenario
                self._stopping = True
                if not self._finished.done():
                    self._finished.set_exception(error)

        return call

    def _snapshot(self) -> Snapshot:
        now_s = min(time.monotonic(), self._end_s) if self._end_s > self._start_s else time.monotonic()
        self._recent.append((now_s, self.done))
        (before_s, before), scenario = self._recent[0], self.scenario
        rate_per_s = (self.done - before) / (now_s - before_s) / self.speed if now_s > before_s else 0.0
        p50_s, p95_s = self._latencies.quantile(0.5), self._latencies.quantile(0.95)
        return Snapshot(
            scenario=scenario.name,
            elapsed_s=max(0.0, now_s - self._start_s) * self.speed,
            duration_s=scenario.duration_s,
            requests=scenario.requests if scenario.model == CLOSED else len(self._due),
            sent=self.sent,
            done=self.done,
            errors=self.errors,
            rate_per_s=rate_per_s,
            p50_s=None if p50_s is None else p50_s * self.speed,
            p95_s=None if p95_s is None else p95_s * self.speed,
        )

    def info(self) -> ScenarioInfo:
        """What was driven, for run.json."""
        scenario, speed = self.scenario, self.speed
        return ScenarioInfo(
            name=scenario.name,
            model=scenario.model,
            users=scenario.users,
            ramp_s=scenario.ramp_s,
            think_s=scenario.think_s,
            rate_per_s=scenario.rate_per_s,
            arrivals=scenario.arrivals,
            cv=scenario.cv,
            requests=self.done,
            seed=scenario.seed,
            timeout_s=scenario.timeout_s,
            started_s=(self._start_s - self._zero_s) * speed,
            ended_s=(self._end_s - self._zero_s) * speed,
            lag_p50_s=self._health.lag_s(0.5),
            lag_p99_s=self._health.lag_s(0.99),
            generator_cpu_ratio=self._health.cpu_ratio,
            trouble=self._health.trouble(self._latencies.quantile(0.5)),
            stopped=self.stopped,
        )
