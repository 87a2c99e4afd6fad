"""Recording: what Locust tells of its requests, written to a Paceline run."""

import contextlib
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from paceline.load.health import Health
from paceline.load.locust.failure import failure_of
from paceline.load.locust.pacing import Pace, would_have_taken
from paceline.load.snapshot import Snapshot
from paceline.load.tally import failure
from paceline.model.request import Request
from paceline.model.run import ScenarioInfo, Unsent
from paceline.stats.histogram import Histogram
from paceline.store.folder import RunFolder
from paceline.store.rows import ERRORS, ROW, Naming, RowsHeader, trace_low

TRACE_HEADER = "traceparent"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_MOST_TEXTS = 50  # different failed checks counted apart


class Recording:
    """One scenario driven by Locust, as it is recorded. Whoever creates it closes it."""

    def __init__(self, run: RunFolder, scenario: str) -> None:
        self.run, self.scenario = run, scenario
        self.health, self.latencies = Health(), Histogram()
        self.failures: Counter[str] = Counter()  # for snapshots
        self.corrected = Histogram()  # with an estimate for each task that pacing asked for and Locust skipped
        self.sent = self.done = self.errors = self.skipped = 0
        self.is_paced = False
        self.failed_checks: Counter[str] = Counter()
        self.waited_s = 0.0  # all pauses between tasks
        self._under_way: dict[str, tuple[int, int, float]] = {}  # by trace header: number, user, lateness
        self._skips: dict[str, tuple[int, float]] = {}  # ... tasks skipped before it, and their pacing
        self._names: dict[tuple[str, str], int] = {}
        draw = random.SystemRandom().getrandbits
        self._high, self._base = f"{draw(64) or 1:016x}", draw(64)
        self._zero_s = (run.info.start_ns - run.clock.offset_ns) / 1e9
        self._start_s = self._end_s = time.monotonic()
        writer = f"load-{os.getpid()}-{time.time_ns():x}"
        header = RowsHeader(
            scenario=scenario, zero_s=self._zero_s, trace_high=self._high, trace_base=f"{self._base:016x}"
        )
        self._rows = run.row_spool(writer, header)
        self._full = run.spool("requests", f"{writer}-full")

    def start(self) -> None:
        """Users are about to be spawned."""
        self._start_s = time.monotonic()
        self.health.start()

    # --- requests ------------------------------------------------------------------------------------------------

    def sends(self, user: int, pace: Pace | None) -> str:
        """A user begins a request; returns the trace header that it carries. `user`: its number, -1 for none."""
        number = self.sent
        self.sent += 1
        low = f"{trace_low(self._base, number):016x}"
        header = f"00-{self._high}{low}-{low}-01"
        late_s, skipped = pace.sends() if pace is not None else (0.0, 0)
        self._under_way[header] = number, user, late_s
        if pace is not None and pace.pacing_s:
            self.is_paced = True
            if skipped:
                self._skips[header] = skipped, pace.pacing_s
        return header

    def ends(self, user: int, pace: Pace | None, event: Mapping[str, Any], last: str | None = None) -> None:
        """Locust has fired `request` with these arguments.

        `user` and `pace` count only for what did not go through `sends`. `last`: the trace header that the user sent
        last, for errors that do not say theirs.
        """
        ended_s = time.monotonic()
        response_s = max(0.0, float(event.get("response_time") or 0.0) / 1e3)
        started_s = ended_s - response_s
        said_s = event.get("start_time")
        if said_s is not None:  # by the wall clock; a `with` block may have gone on after the answer
            by_clock_s = ended_s - (time.time() - float(said_s))
            if by_clock_s < started_s:
                started_s, ended_s = by_clock_s, by_clock_s + response_s
        response = event.get("response")
        header = _trace_header(response)
        if header is None and "url" in event and event.get("exception"):
            header = last
        if header is None or header not in self._under_way:  # a client of the locustfile's own
            given, header = header, self.sends(user, pace)
        else:
            given = None
        number, user, late_s = self._under_way.pop(header)
        latency_s = late_s + ended_s - started_s
        self.latencies.record(latency_s)
        status = _status(response)
        kind, check = failure_of(event.get("exception"), status)
        self.done += 1
        skipped, pacing_s = self._skips.pop(header, (0, 0.0))
        self.skipped += skipped
        if kind in (None, "timeout"):  # as in all figures
            self.corrected.record(latency_s)
            for would_s in would_have_taken(latency_s, skipped, pacing_s):
                self.corrected.record(max(would_s, 1e-9))
        self._write(event, number, user, started_s - late_s, started_s, ended_s, status, kind, check, given)

    def _write(
        self,
        event: Mapping[str, Any],
        number: int,
        user: int,
        intended_s: float,
        started_s: float,
        ended_s: float,
        status: int,
        kind: str | None,
        check: str | None,
        given: str | None,
    ) -> None:
        """One row; in full where a check failed or the request carried a trace header of its own."""
        named = str(event.get("request_type") or ""), str(event.get("name") or "")
        size = int(event.get("response_length") or 0)
        if kind is not None:
            self.errors += 1
            said = (
                check if check is None or check in self.failed_checks or len(self.failures) < _MOST_TEXTS else "others"
            )
            self.failures[failure(kind, status, said)] += 1
        if kind != "check" and given is None:
            naming = self._names.get(named)
            if naming is None:
                naming = self._names[named] = self._rows.name(Naming(endpoint=" ".join(named).strip()))
            error = ERRORS.index(kind)
            self._rows.append(
                ROW.pack(intended_s, started_s, math.nan, ended_s, size, number, naming, user, status, error, 0)
            )
            return
        if check is not None:
            is_known = check in self.failed_checks or len(self.failed_checks) < _MOST_TEXTS
            self.failed_checks[check if is_known else "others"] += 1
        match = _TRACEPARENT.fullmatch(given) if given else None
        self._full.append(
            Request(
                index=number,
                scenario=self.scenario,
                endpoint=" ".join(named).strip(),
                trace_id=match[1] if match else f"{self._high}{trace_low(self._base, number):016x}",
                intended_s=intended_s - self._zero_s,
                started_s=started_s - self._zero_s,
                ended_s=ended_s - self._zero_s,
                status=status or None,
                error=kind,
                response_bytes=size,
                user=user if user >= 0 else None,
                failed_check=check,
            )
        )

    # --- beside --------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what has ended. Raises OSError: the disk refused."""
        self._rows.flush()
        self._full.flush()

    def close(self) -> None:
        """Write the rest; what is under way is left out. Closing twice is fine."""
        self._end_s = time.monotonic()
        with contextlib.ExitStack() as both:
            both.callback(self._full.close)
            both.callback(self._rows.close)
        if not self._full.written:
            self._full.path.unlink(missing_ok=True)

    @property
    def cut_off(self) -> int:
        """Requests that are under way."""
        return len(self._under_way)

    def snapshot(self, duration_s: float | None, users: int) -> Snapshot:
        """Where it stands; `users` are at work."""
        return Snapshot(
            scenario=self.scenario,
            elapsed_s=time.monotonic() - self._start_s,
            duration_s=duration_s,
            sent=self.sent,
            done=self.done,
            failures=dict(self.failures),
            users=users,
            latencies=self.latencies.copy(),
            lag=self.health.lag.copy(),
            cpu_s=(time.process_time(),),
        )

    def info(self, **others: Any) -> ScenarioInfo:
        """What was driven, for run.json; `others`: fields that only the driver knows."""
        lag = self.health.lag
        return ScenarioInfo(
            name=self.scenario,
            model="closed",
            think_s=self.waited_s / self.done if self.done else 0.0,
            requests=self.done,
            started_s=self._start_s - self._zero_s,
            ended_s=self._end_s - self._zero_s,
            lag_p50_s=lag.quantile(0.5),
            lag_p99_s=lag.quantile(0.99),
            lag_max_s=lag.max_s if lag.count else None,
            generator_cpu_ratio=self.health.cpu_ratio,
            trouble=self.health.trouble(self.latencies.quantile(0.5)),
            failed_checks=dict(self.failed_checks),
            unsent=self._unsent(),
            **others,
        )

    def _unsent(self) -> Unsent | None:
        p50_s, p95_s, p99_s = (self.corrected.quantile(q) for q in (0.5, 0.95, 0.99))
        if not self.is_paced or p50_s is None or p95_s is None or p99_s is None:
            return None
        return Unsent(tasks=self.skipped, p50_s=p50_s, p95_s=p95_s, p99_s=p99_s)


def _status(response: object) -> int:
    status = getattr(response, "status_code", None)
    return status if isinstance(status, int) and 0 < status < 1000 else 0


def _trace_header(response: object) -> str | None:
    headers = getattr(getattr(response, "request", None), "headers", None)
    with contextlib.suppress(AttributeError, TypeError, KeyError):
        found = headers.get(TRACE_HEADER) if headers is not None else None
        return found.decode() if isinstance(found, bytes) else found
    return None
