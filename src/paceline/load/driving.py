"""Driving: one scenario under way in this process, or this process's share of it."""

import asyncio
import bisect
import contextlib
import gc
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec

import msgspec

from paceline.errors import ConfigError
from paceline.load.address import Address
from paceline.load.answer import Answer, Heads
from paceline.load.attempt import Attempt, Encoder
from paceline.load.health import Health
from paceline.load.line import CHECK, CONNECTION, FINE, TIMEOUT, Line
from paceline.load.pool import Pool, connection_limit
from paceline.load.readiness import Readiness
from paceline.load.scenario import CLOSED, Scenario
from paceline.load.schedule import Pacer, arrivals
from paceline.load.shapes import Stay, stays
from paceline.load.snapshot import Snapshot
from paceline.load.source import Drawn, Share, Source, source_of
from paceline.model.request import Request
from paceline.model.run import ScenarioInfo
from paceline.stats.histogram import Histogram
from paceline.store.folder import RunFolder, open_run
from paceline.store.rows import CACHES, ERRORS, ROW, RowsHeader, decode_rows

INTERRUPTED = "interrupted"
_BEAT_S = 0.05
_BEATS_PER_SNAPSHOT = 5
_GRACE_S = 2.0  # after Ctrl-C, for what is in flight
_GONE = 50  # connection errors in a row: the target is gone
_WARMED_S = 1.0  # connections of users who start within this time are opened before the start
_EXPECTED_S = 0.05  # latency before there is a better guess
_SPARE = 1.4  # lines per request expected in flight: at 10,000/s this kept the lateness at P99 at 3.5 ms
_SWEEP_S = 0.002  # least time between two looks for time-outs
_pack = ROW.pack
_monotonic = time.monotonic
P = ParamSpec("P")


class Driving:
    """One scenario under way: everything happens in callbacks of one event loop; `run` returns when it is over.

    The hot path is `ended` -> `_turn` -> Line.begin, or `_arrive` -> Line.begin: no task, future, timer or object a
    request, one row of 56 bytes in a list.
    """

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
        self._known = self._encoder.encoded
        self._readiness = Readiness(self._fail)
        heads = Heads(scenario.cache_headers)
        limit = connection_limit(scenario.connections, scenario.users)
        self._pool = Pool(address, max(1, limit // self.share.of), self._readiness, heads, self)
        self._zero_s = (run.info.start_ns - run.clock.offset_ns) / 1e9  # start of the run on time.monotonic()
        self._start_s = self._end_s = time.monotonic()
        self._stays: Sequence[Stay] = ()
        self._timeout_s = scenario.timeout_s / speed
        self._think_s = scenario.think_s / speed
        self._pacer: Pacer | None = None
        self._fired_s = 0.0  # when the last arrival was sent
        self._due_s: Sequence[float] = ()  # on time.monotonic()
        self._source: Source = Drawn(iter(()))
        self._total = 0
        self._index, self._step = self.share.part, self.share.of
        self._beat_timer: asyncio.TimerHandle | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._users = 0  # still at work
        self._expected_s = _EXPECTED_S
        self._failed_check: str | None = None  # of the last answer judged
        self._failing = 0  # connection errors in a row
        self._stopping = self._closing = self._dry = False
        self._recent: deque[tuple[float, int]] = deque(maxlen=9)  # snapshots of two seconds
        self._on_turn = self._guarded(self._turn)
        self._unread: list[bytes] = []  # rows written, not in `latencies` yet
        self.latencies = Histogram()
        self.health = Health()
        self.stopped: str | None = None
        self.sent = self.done = self.errors = 0

    # --- before and after ----------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Read the bodies, connect, warm up. Raises ServiceError, ConfigError or InputError."""
        import numpy as np  # noqa: F401 - 0.1 s that must not fall into the run

        scenario, share = self.scenario, self.share
        if scenario.model == CLOSED:
            users = stays(scenario)
            self._stays = users
            self._offsets_s: Sequence[float] = [stay.start_s for stay in users[share.part :: share.of]]
            self._source = source_of(scenario, scenario.requests, share)
            warm = max(1, sum(offset_s <= _WARMED_S for offset_s in self._offsets_s))
        else:
            due = arrivals(scenario)
            if not due:
                msg = f"scenario {scenario.name!r} sends no request: its duration_s is too short for its rate_per_s"
                raise ConfigError(msg)
            self._offsets_s = due[share.part :: share.of]
            self._total = len(due)  # of all processes
            self._source = source_of(scenario, len(due), share)
            warm = self._lines_for(_busiest(self._offsets_s) * self.speed)
        writer = f"load-{os.getpid()}-{time.time_ns():x}"
        header = RowsHeader(
            scenario=scenario.name,
            zero_s=self._zero_s,
            trace_high=self._encoder.trace_high,
            trace_base=f"{self._encoder.trace_base:016x}",
        )
        if scenario.model != CLOSED:
            self._pool.allow(warm)
        await self._pool.warm(warm)
        if share.part == 0:
            await self._warm_up()
        self._rows = self._run.row_spool(writer, header)
        self._full = self._run.spool("requests", f"{writer}-full")  # streams, and whatever else does not fit a row
        self._append = self._rows.append
        self._encoder.record_in(self._rows)
        self._encode = self._encoder.encode
        self._next = self._source.next

    async def _warm_up(self) -> None:
        """Send `warmup` requests, one after the other, not recorded; they say how long an answer takes."""
        count = self.scenario.warmup
        source = source_of(msgspec.structs.replace(self.scenario, requests=count), count, Share()) if count else None
        while source is not None and (body := source.next(-1)) is not None:
            line = self._pool.idle_line()
            if line is None:
                await self._pool.warm(1)
                line = self._pool.idle_line()
            if line is None:
                return
            began_s = time.monotonic()
            self._warming = self._loop.create_future()
            line.begin(0, self._encoder.encode(body), began_s, -1, reused=False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeout_s):
                    await self._warming
            if line.busy:
                line.give_up(TIMEOUT)
            self._pool.release(line)
            self._expected_s = max(self._expected_s, time.monotonic() - began_s)
        self._warming = None

    _warming: "asyncio.Future[None] | None" = None

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
        # The first request, too, can be on time.
        self._start_s = time.monotonic() + 0.01 if start_s is None else start_s
        self._stops_s = [self._start_s + stay.stop_s / self.speed for stay in self._stays]
        self._due_s = [self._start_s + offset_s / self.speed for offset_s in self._offsets_s]
        self.health.start()
        is_closed = self.scenario.model == CLOSED
        self._users = len(self._due_s) if is_closed else 0
        self._pacer = Pacer(self._due_s, self._guarded(self._join if is_closed else self._arrive))
        self._beat(time.monotonic(), 0)
        self._sweep()
        self._end_if_over()  # a share may be empty

    def stop(self, reason: str) -> None:
        """Send nothing more; what is in flight goes on."""
        self.stopped = self.stopped or reason
        self._stopping = True
        if self._pacer is not None:
            self._pacer.stop()
        self._end_if_over()

    def stop_soon(self, reason: str) -> None:
        """Send nothing more, and end when what is in flight has had 2 s."""
        self.stop(reason)
        self._loop.call_later(_GRACE_S, self._end)

    def _end(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)

    async def close(self) -> None:
        """End timers, connections and what is still in flight; write the last records."""
        if self._pacer is not None:
            self._pacer.stop()
        for timer in (self._beat_timer, self._sweep_timer):
            if timer is not None:
                timer.cancel()
        self._stopping = self._closing = True
        if self.sent > self.done:  # ended by us, so they say nothing about the target
            self.stopped = f"{self.stopped}; {self.sent - self.done} requests in flight left out"
        await self._pool.close()
        self._readiness.close()
        self._end_s = time.monotonic()
        self.health.stop()
        if hasattr(self, "_rows"):
            try:
                self._flush()
                self._read()
            finally:
                self._rows.close()
                self._full.close()
                if not self._full.written:
                    self._full.path.unlink(missing_ok=True)
        if self._progress is not None and self.sent:
            self._progress(self.snapshot())

    # --- sending -------------------------------------------------------------------------------------------------

    def _arrive(self, _index: int, due_s: float) -> None:
        self._fired_s = _monotonic()
        self.health.late(self._fired_s - due_s)
        body = self._next(-1)
        if body is None:
            self.stop("the source of requests ran dry")
            return
        encoded = self._known.get(id(body)) or self._encode(body)
        index = self._index
        self._index = index + self._step
        self.sent += 1
        line = self._pool.idle_line()
        if line is not None:
            line.begin(index, encoded, due_s, -1)
        else:
            self._pool.wait(Attempt(index, encoded, due_s, -1, 0.0))

    def _join(self, place: int, due_s: float) -> None:
        """A user starts."""
        self._turn(self.share.part + place * self.share.of, due_s)

    def _turn(self, user: int, free_s: float, line: Line | None = None) -> None:
        """The user is free since `free_s`, and so may be a line: the next request is theirs, if there is one."""
        body = None
        if free_s < self._stops_s[user] and not self._stopping:
            body = self._next(user)
            self._dry = body is None  # users yet to come would find nothing to send
        if body is None:
            if line is not None:
                self._pool.release(line)
            self._users -= 1
            self._end_if_over()
            return
        encoded = self._known.get(id(body)) or self._encode(body)
        index = self._index
        self._index = index + self._step
        self.sent += 1
        if line is not None and (line.closed or self._pool.waiting):
            self._pool.release(line)
            line = None
        if line is None:
            free_s = min(free_s, _monotonic())  # the loop's timers may be 1 ms early
            line = None if self._pool.waiting else self._pool.idle_line()
        if line is not None:
            line.begin(index, encoded, free_s, user)
        else:
            self._pool.wait(Attempt(index, encoded, free_s, user, 0.0))

    # --- Owner of lines and pool: how requests end ---------------------------------------------------------------

    def ended(self, line: Line) -> None:
        """Record it, then let the user go on or the line wait."""
        if self._closing or self._warming is not None:
            self._end_warming()
            return
        answer = line.answer
        if line.encoded.wants_answer:
            self._judge(line, answer)
        if answer is None or not (answer.wants_full_record or line.error == CHECK):
            self._append(
                _pack(
                    line.intended_s,
                    line.started_s,
                    line.first_byte_s,
                    line.ended_s,
                    line.response_bytes,
                    line.index,
                    line.encoded.naming,
                    line.user,
                    line.status,
                    line.error,
                    line.cache,
                )
            )
        else:
            self._record_fully(line, answer)
        self.done += 1
        if line.error or self._failing:
            self._watch_errors(line.error)
        user = line.user
        if user >= 0 and not line.error and not self._think_s:
            self._turn(user, line.ended_s, line)
            return
        self._pool.release(line)
        if user >= 0:
            self._turn_later(user, line.ended_s)
        elif self.sent == self.done:
            self._end_if_over()

    def unsent(self, line: Line, attempt: Attempt) -> None:
        """A kept-alive connection that the server closed under us is replaced, as any client does."""
        if self._closing or self._warming is not None:
            self._end_warming()
            return
        self._pool.release(line)
        self._pool.send_again(attempt)

    def refused(self, attempt: Attempt) -> None:
        """No connection could be opened."""
        self._fail_unsent(attempt, CONNECTION)

    def _fail_unsent(self, attempt: Attempt, error: int) -> None:
        """It ended before it was sent."""
        if self._closing:
            return
        now_s = _monotonic()
        started_s = attempt.started_s or now_s
        naming = attempt.encoded.naming
        self._append(
            _pack(attempt.intended_s, started_s, math.nan, now_s, 0, attempt.number, naming, attempt.user, 0, error, 0)
        )
        if attempt.encoded.wants_answer:
            self._source.answered(attempt.encoded.body, attempt.user, 0, (), b"")
        self.done += 1
        self._watch_errors(error)
        if attempt.user >= 0:
            self._turn_later(attempt.user, now_s)
        elif self.sent == self.done:
            self._end_if_over()

    def _turn_later(self, user: int, ended_s: float) -> None:
        """Through the loop, so that a target which refuses at once cannot recurse."""
        free_s = ended_s + self._think_s
        self._loop.call_later(max(0.0, free_s - _monotonic()), self._on_turn, user, free_s)

    def _end_warming(self) -> None:
        if self._warming is not None and not self._warming.done():
            self._warming.set_result(None)

    def _record_fully(self, line: Line, answer: Answer) -> None:
        body, zero_s = line.encoded.body, self._zero_s
        request = Request(
            index=line.index,
            scenario=self.scenario.name,
            endpoint=body.endpoint,
            trace_id=self._encoder.trace_id(line.index),
            intended_s=line.intended_s - zero_s,
            started_s=line.started_s - zero_s,
            first_byte_s=None if math.isnan(line.first_byte_s) else line.first_byte_s - zero_s,
            ended_s=line.ended_s - zero_s,
            status=line.status or None,
            error=ERRORS[line.error],
            request_bytes=len(body.data),
            response_bytes=line.response_bytes,
            cache=CACHES[line.cache],
            key=body.key,
            text_key=body.text_key,
            user=None if line.user < 0 else line.user,
            failed_check=self._failed_check if line.error == CHECK else None,
            gaps_s=answer.gaps_s,
            first_token_s=None if answer.first_token_s is None else answer.first_token_s - zero_s,
            output_tokens=answer.output_tokens,
            cost_usd=answer.cost_usd,
        )
        self._full.append(request)
        self.latencies.record(line.ended_s - line.intended_s)

    def _judge(self, line: Line, answer: Answer | None) -> None:
        """Show the source the answer it wants, and take its verdict; a broken answer is none."""
        body, broken = line.encoded.body, answer is None or line.error in (TIMEOUT, CONNECTION)
        if answer is None or broken:
            self._source.answered(body, line.user, 0, (), b"")
            return
        data = b"".join(answer.body or ())
        verdict = self._source.answered(body, line.user, line.status, answer.headers, data)
        line.error = ERRORS.index(verdict.error)
        self._failed_check = verdict.check

    def _watch_errors(self, error: int) -> None:
        self._failing = self._failing + 1 if error == CONNECTION else 0
        self.errors += error != FINE
        limit = self.scenario.stop_error_ratio
        if self._failing >= _GONE:
            self.stop(f"{_GONE} connection errors in a row: the target is gone")
        elif limit is not None and self.done >= 100 and self.errors > limit * self.done:
            self.stop(f"{self.errors} of {self.done} requests failed, above the bound of {limit:.0%}")

    def _end_if_over(self) -> None:
        if self.scenario.model == CLOSED:
            over = self._users <= 0 or ((self._stopping or self._dry) and self.sent == self.done)
        else:
            over = self.sent == self.done and (self._stopping or self.sent == len(self._due_s))
        if over:
            self._end()

    # --- beside --------------------------------------------------------------------------------------------------

    def _beat(self, due_s: float, beats: int) -> None:
        """Every 0.05 s: how late is this loop? Write records; every fifth time show progress."""
        now_s = time.monotonic()
        if self.scenario.model == CLOSED and beats:
            self.health.late(now_s - due_s)
        self._flush()  # small pieces: a flush is time in which nothing is sent
        if self.scenario.model != CLOSED:
            self._fit_pool(now_s)
        if beats % _BEATS_PER_SNAPSHOT == 0:
            self._read()
            if self._progress is not None:
                self._progress(self.snapshot())
        next_s = max(due_s + _BEAT_S, now_s)
        self._beat_timer = self._loop.call_later(next_s - now_s, self._guarded(self._beat), next_s, beats + 1)

    def _flush(self) -> None:
        """Write what has ended."""
        data = self._rows.flush()
        if data:
            self._unread.append(data)
        self._full.flush()

    def _read(self) -> None:
        """Take the latencies of what was written into account: seldom, since numpy costs as much for 50 as for 500."""
        if self._unread:
            rows = decode_rows(b"".join(self._unread))
            self._unread.clear()
            self.latencies.record_all(rows["ended_s"] - rows["intended_s"])
            self._expected_s += 0.5 * (float((rows["ended_s"] - rows["started_s"]).mean()) - self._expected_s)

    def _fit_pool(self, now_s: float) -> None:
        """As many lines as the coming second needs at the latency there is now.

        A hiccup of ours leaves the latency as it is and must not open a connection for everything that is late; a
        stall of the target makes requests under way older, and then there are more of them.
        """
        if not self._pool.waiting:
            return
        first = bisect.bisect_left(self._due_s, now_s)
        rate_per_s = max(bisect.bisect_left(self._due_s, now_s + 1) - first, 1)
        oldest_s = max((now_s - line.started_s for line in self._pool.lines if line.busy), default=0.0)
        self._pool.allow(max(self._pool.allowed, self._lines_for(rate_per_s, max(self._expected_s, oldest_s))))

    def _lines_for(self, rate_per_s: float, latency_s: float | None = None) -> int:
        return math.ceil(rate_per_s * (self._expected_s if latency_s is None else latency_s) * _SPARE) + 1

    def _sweep(self) -> None:
        """End what has run out of time: one timer for all, set to when the next one may."""
        now_s, limit_s = _monotonic(), self._timeout_s
        next_s = now_s + limit_s
        for line in list(self._pool.lines):
            if line.busy:
                expires_s = line.intended_s + limit_s
                if expires_s <= now_s:
                    line.give_up(TIMEOUT)
                else:
                    next_s = min(next_s, expires_s)
        waiting = self._pool.waiting
        while waiting and waiting[0].intended_s + limit_s <= now_s:
            self._fail_unsent(waiting.popleft(), TIMEOUT)
        if waiting:
            next_s = min(next_s, waiting[0].intended_s + limit_s)
        delay_s = max(next_s - now_s, _SWEEP_S)
        self._sweep_timer = self._loop.call_later(delay_s, self._guarded(self._sweep))

    def _fail(self, error: Exception) -> None:
        """A bug or a full disk ends the scenario: the loop would only log it, and we wait for ever."""
        self._stopping = True
        if not self._finished.done():
            self._finished.set_exception(error)

    def _guarded(self, callback: Callable[P, None]) -> Callable[P, None]:
        """The callback, with any exception ending the scenario."""

        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                callback(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - handed to whoever awaits the scenario
                self._fail(error)

        return call

    def snapshot(self) -> Snapshot:
        """Where it stands."""
        now_s = min(time.monotonic(), self._end_s) if self._end_s > self._start_s else time.monotonic()
        self._recent.append((now_s, self.done))
        (before_s, before), scenario = self._recent[0], self.scenario
        rate_per_s = (self.done - before) / (now_s - before_s) / self.speed if now_s > before_s else 0.0
        p50_s, p95_s = self.latencies.quantile(0.5), self.latencies.quantile(0.95)
        return Snapshot(
            scenario=scenario.name,
            elapsed_s=max(0.0, now_s - self._start_s) * self.speed,
            duration_s=scenario.duration_s,
            requests=scenario.requests if scenario.model == CLOSED else self._total,
            sent=self.sent,
            done=self.done,
            errors=self.errors,
            rate_per_s=rate_per_s,
            p50_s=None if p50_s is None else p50_s * self.speed,
            p95_s=None if p95_s is None else p95_s * self.speed,
        )

    def _achieved(self) -> tuple[float, float] | None:
        """Arrivals per wall second that were sent and that were asked for; None for users and for a single arrival."""
        if self.scenario.model == CLOSED or self.sent < 2:
            return None
        first_s, gaps = self._due_s[0], self.sent - 1
        asked_s = self._due_s[gaps] - first_s
        return (gaps / max(self._fired_s - first_s, asked_s), gaps / asked_s) if asked_s > 0 else None

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
            failed_checks=dict(getattr(self._source, "failed", {})),
            stopped=self.stopped,
        )


def add_info(run: RunFolder, info: ScenarioInfo) -> None:
    """Put it into run.json; read again first, because the process that records the service writes it too."""
    others = [s for s in open_run(run.path, salvage=True).info.scenarios if s.name != info.name]
    run.update(scenarios=[*others, info])


def _busiest(due_s: Sequence[float]) -> int:
    """Most arrivals within one second."""
    most = first = 0
    for place, at_s in enumerate(due_s):
        while due_s[first] < at_s - 1:
            first += 1
        most = max(most, place - first + 1)
    return most


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Leave what exists out of garbage collection meanwhile: looking at a hundred thousand bodies takes 10 ms."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
