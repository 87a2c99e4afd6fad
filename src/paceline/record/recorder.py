"""The recorder inside a service: spans with a contextvar parent, written by one thread every 0.2 s.

Budget: 6 us a span in a running server (`python -m benchmarks.recorder`). What is needed for every span is a slot;
everything else goes into `fields` and is only looked at by the writing thread.
"""

import os
import random
import threading
import time
from collections import deque
from contextvars import ContextVar
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from paceline.clock import RunClock
from paceline.model.span import CALLERS, EXCEPTION_MESSAGE, EXCEPTION_TYPE, THREAD, Span
from paceline.record.flow import Flow
from paceline.record.frames import AppFrames
from paceline.record.warn import warn_once
from paceline.store.spool import Spool
from paceline.trace.callers import WrapperRule

FLUSH_EVERY_S = 0.2
MAX_WAITING = 100_000  # spans not yet written; beyond it new ones are dropped and counted
MAX_MESSAGE = 200  # characters of an exception message that are kept
_STALE_NS = 60_000_000_000  # a span this long after its request ended belongs to a background thread, not to it


class LiveTrace:
    """What the spans of one request share while it runs. Freed with its last span."""

    __slots__ = ("asked", "edges", "ended_ns", "flow", "hex_id", "id")

    def __init__(self, trace_id: int) -> None:
        self.id = trace_id
        self.hex_id = f"{trace_id:032x}"
        self.flow = Flow()
        self.edges: dict[str, str] = {}  # see trace.callers.WrapperRule
        self.asked: set[int] = set()  # hashes of the texts asked so far
        self.ended_ns = 0


class LiveSpan:
    """A span being timed. Ids are integers until it is written; other fields of `Span` are set through `fields`."""

    __slots__ = (
        "attributes",
        "callers",
        "cpu_ns",
        "duration_ns",
        "fields",
        "kind",
        "name",
        "otel",
        "parent_id",
        "span_id",
        "start_ns",
        "thread",
        "trace",
    )

    def __init__(self, trace: LiveTrace, span_id: int, parent_id: int | None, kind: str, name: str) -> None:
        self.trace = trace
        self.span_id = span_id
        self.parent_id = parent_id
        self.kind = kind
        self.name = name
        self.callers: tuple[str, ...] = ()
        self.attributes: dict[str, Any] = {}
        self.fields: dict[str, Any] = {}
        self.cpu_ns: int | None = None
        self.duration_ns = -1  # still open
        self.otel: tuple[Any, Any] | None = None  # what `otel` shows of it, once somebody has asked
        self.thread = threading.get_native_id()
        self.start_ns = 0

    @property
    def traceparent(self) -> str:
        """The W3C header that makes a callee a child of this span."""
        return f"00-{self.trace.hex_id}-{self.span_id:016x}-01"

    @property
    def hex_id(self) -> str:
        """The span id as it is stored."""
        return f"{self.span_id:016x}"


current: ContextVar[LiveSpan | None] = ContextVar("paceline_span", default=None)


class Recorder:
    """Starts, finishes and writes spans of one process. Forked children go on in a file of their own.

    Args:
        run_dir: The run folder.
        clock: The run's clock.
        service: What the spans call this process.
        app_root: Folder whose files count as the application's own code.
        gateway: Base URL of the gateway, whose requests also carry the step.
    """

    def __init__(
        self, run_dir: Path, clock: RunClock, service: str = "app", app_root: str = ".", gateway: str | None = None
    ) -> None:
        self.run_dir = run_dir
        self.service = service
        self.frames = AppFrames(app_root)
        self.gateway = gateway
        self.rule = WrapperRule()
        self.dropped = 0
        self._ids = random.Random()  # own generator: a service that seeds `random` must not repeat ids
        self._offset_ns = clock.offset_ns
        self._reset()

    def _reset(self) -> None:
        self._ids.seed(os.urandom(16))
        self._numbers = count(self._ids.getrandbits(63) + 1)  # unique across processes by its random start
        self._waiting: deque[LiveSpan] = deque()
        self._spool: Spool | None = None
        self._flushing = threading.Lock()
        self._stop = threading.Event()
        self._running = False

    def start(
        self,
        kind: str,
        name: str,
        *,
        parent: LiveSpan | None = None,
        callers: bool = False,
        cpu: bool = False,
        asks: str | None = None,
    ) -> LiveSpan:
        """Begin a span below `parent`, by default the current one. It is not made current.

        Args:
            kind: A kind of `paceline.model.span`.
            name: Shown to people; low cardinality.
            parent: The span it belongs to.
            callers: Note the application's frames.
            cpu: Count the thread's CPU time; only for work that ends on this thread and yields to no other meanwhile.
            asks: What the call asks, where that is a text. The very same call made again, from wherever, is one step
                done twice and so tells nothing about wrappers.
        """
        above = parent or current.get()
        now_ns = time.monotonic_ns() + self._offset_ns
        if above is not None and above.trace.ended_ns and now_ns - above.trace.ended_ns > _STALE_NS:
            above = None
        if above is None:
            span = LiveSpan(LiveTrace(self._ids.getrandbits(128)), next(self._numbers), None, kind, name)
        else:
            span = LiveSpan(above.trace, next(self._numbers), above.span_id, kind, name)
        if callers:
            span.callers = self.frames.chain()
            asked, question = span.trace.asked, hash(asks)
            if asks is None or question not in asked:
                self.rule.learn(span.callers, span.trace.edges)
                asked.add(question)
        if cpu:
            span.cpu_ns = -time.thread_time_ns()
        span.start_ns = now_ns
        return span

    def start_request(self, name: str, kind: str, traceparent: str | None) -> LiveSpan:
        """Begin the first span of a request in this process, continuing the caller's trace when it names one."""
        trace_id, parent_id = _parse(traceparent)
        trace = LiveTrace(trace_id or self._ids.getrandbits(128))
        span = LiveSpan(trace, next(self._numbers), parent_id, kind, name)
        span.start_ns = time.monotonic_ns() + self._offset_ns
        return span

    def step_of(self, span: LiveSpan) -> str | None:
        """The function a call is made for, as far as is known now."""
        frame = self.rule.step_frame(span.callers)
        return frame.rpartition(" ")[2] if frame else None

    def elapsed_s(self, span: LiveSpan) -> float:
        """Seconds since the span began."""
        return (time.monotonic_ns() + self._offset_ns - span.start_ns) / 1e9

    def finish(self, span: LiveSpan, error: BaseException | str | None = None) -> None:
        """End a span and queue it for writing. A second call changes nothing."""
        if span.duration_ns >= 0:
            return
        span.duration_ns = max(0, time.monotonic_ns() + self._offset_ns - span.start_ns)
        if span.cpu_ns is not None:
            span.cpu_ns += time.thread_time_ns()
        if error is not None:
            self.fail(span, error)
        self.queue(span)

    def fail(self, span: LiveSpan, error: BaseException | str) -> None:
        """Mark a span failed, by an exception or a short reason such as an HTTP status."""
        span.fields["status"] = "error"
        if isinstance(error, str):
            span.fields.setdefault("error", error)
            return
        span.fields["error"] = type(error).__name__
        span.attributes[EXCEPTION_TYPE] = f"{type(error).__module__}.{type(error).__qualname__}"
        span.attributes[EXCEPTION_MESSAGE] = _message(error)

    def queue(self, span: LiveSpan) -> None:
        """Hand an ended span to the writing thread, which is started by the first one."""
        if len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
            return
        self._waiting.append(span)
        if not self._running:
            self._begin_writing()

    def _begin_writing(self) -> None:
        with self._flushing:
            if self._running:
                return
            self._running = True
        thread = threading.Thread(target=self._write_on, name="paceline-recorder", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # interpreter shutting down, or no more threads
            self._running = False
            warn_once("spans are written late", error)

    def _write_on(self) -> None:
        stop = self._stop
        while not stop.wait(FLUSH_EVERY_S):
            self.flush()

    def flush(self) -> None:
        """Write what has ended. Never raises; a full disk is reported once and tried again."""
        with self._flushing:
            try:
                if self._spool is None and self._waiting:
                    self._spool = Spool(self.run_dir, "spans", f"{self.service}-{os.getpid()}")
                while self._waiting and self._spool is not None:
                    self._spool.append(self.to_span(self._waiting.popleft()))
                if self._spool is not None:
                    self._spool.flush()
            except Exception as error:  # noqa: BLE001 whatever it is, the service goes on
                warn_once(f"cannot write spans to {self.run_dir}; trying again, the oldest are kept", error)
            self._report_loss()

    def _report_loss(self) -> None:
        lost = self.dropped + (self._spool.dropped if self._spool else 0)
        if lost:
            warn_once("spans are being lost: they cannot be written as fast as they end, or not at all")
            try:
                (self.run_dir / f"lost-{os.getpid()}").write_text(str(lost))
            except OSError:
                return  # the disk that made us lose them

    def close(self) -> None:
        """Write the rest and stop the thread."""
        self._stop.set()
        self.flush()

    def after_fork(self) -> None:
        """In a forked child: what waits belongs to the parent; file, thread, locks and ids are made anew."""
        self._reset()

    def to_span(self, span: LiveSpan) -> Span:
        """The record as stored."""
        attributes = span.attributes
        attributes[THREAD] = span.thread
        code = None
        if span.callers:
            code = self.rule.step_frame(span.callers)
            attributes[CALLERS] = span.callers
        return Span(
            trace_id=span.trace.hex_id,
            span_id=span.hex_id,
            parent_id=f"{span.parent_id:016x}" if span.parent_id else None,
            name=span.name,
            kind=span.kind,
            service=self.service,
            start_ns=span.start_ns,
            duration_ns=span.duration_ns,
            cpu_ns=span.cpu_ns,
            code=code,
            attributes=attributes,
            **span.fields,
        )


def _parse(traceparent: str | None) -> tuple[int | None, int | None]:
    """Trace and span id of a W3C traceparent header; (None, None) when absent or malformed."""
    parts = traceparent.strip().split("-") if traceparent else []
    if len(parts) < 4 or len(parts[1]) != 32 or len(parts[2]) != 16:
        return None, None
    try:
        trace_id, parent_id = int(parts[1], 16), int(parts[2], 16)
    except ValueError:
        return None, None
    return (trace_id, parent_id) if trace_id and parent_id else (None, None)


def _message(error: BaseException) -> str:
    try:
        return str(error)[:MAX_MESSAGE]
    except Exception as broken:  # noqa: BLE001 the service's own __str__ may do anything
        return f"<{type(broken).__name__} while printing it>"


def decoded(line: bytes) -> Span:
    """One stored line as a span; for tests and tools."""
    return msgspec.json.decode(line, type=Span)
