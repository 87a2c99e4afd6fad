"""The access log: one JSON line a call, without a word of prompts or answers.

The call's path only puts a record into a bounded queue; a thread encodes and writes. A log that cannot be written
fast enough, or at all, loses lines and says so once; calls never wait for it.
"""

import os
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from paceline.accelerate.caller import Caller
from paceline.accelerate.record import CallRecord
from paceline.accelerate.routing.taken import RouteTaken
from paceline.errors import ConfigError
from paceline.gateway.keys.door import KeyCaller
from paceline.wire.call import CallInfo, Usage

MAX_LINES = 20_000  # waiting to be written
WRITE_S = 0.25
_CLOSE_S = 2.0
_BATCH = 16  # lines encoded at a stretch, about 0.1 ms
_PAUSE_S = 0.0002
_PIPE_BYTES = 4096  # several processes may write to one pipe, and up to this size lines do not mix (PIPE_BUF)
_STDOUT = "-"


class AccessLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call. Absent: unknown, or not so."""

    time: str  # UTC, when it began
    key: str = ""
    tenant: str = ""
    method: str = ""
    path: str = ""
    model: str = ""
    step: str = ""
    status: int = 0
    outcome: str = ""  # hit, join, miss, bypass; refused: at the door
    level: str = ""  # of the cache that had it
    served_model: str = ""  # where a route or a fallback chose another one
    deployment: str = ""
    hedged: bool = False
    stream: bool = False
    error: str = ""
    attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    tokens_estimated: bool = False
    cost_usd: float | None = None
    saved_usd: float | None = None
    first_ms: float | None = None  # from sending to the first piece, streams only
    ms: float = 0.0


class AccessLog:
    """Appends lines to `target` (a path, "-": standard output). `take` is a listener of the engine.

    Whoever makes it calls `start` and `close`. ConfigError: the file cannot be opened.
    """

    def __init__(self, target: str, *, dropped: Callable[[], None] | None = None) -> None:
        self._target = target
        self._waiting: deque[_Facts | AccessLine] = deque()
        self._dropped = dropped or (lambda: None)
        self._warned = False
        self._wake = threading.Event()
        self._closing = False
        self._torn = False
        self._fd = self._open()
        self._max_bytes = _PIPE_BYTES if stat.S_ISFIFO(os.fstat(self._fd).st_mode) else sys.maxsize
        # A daemon: one blocked on a pipe nobody reads must not keep the gateway from ending.
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)

    def start(self) -> None:
        """Begin writing."""
        self._thread.start()

    def take(self, record: CallRecord) -> None:
        """Keep what the line will say. Under 1 us; dropped and counted when too many wait."""
        if len(self._waiting) < MAX_LINES:
            self._waiting.append(_facts(record))
        else:
            self._dropped()

    def refused(self, line: AccessLine) -> None:
        """Keep a line about a request that became no call."""
        if len(self._waiting) < MAX_LINES:
            self._waiting.append(line)
        else:
            self._dropped()

    def reopen(self) -> None:
        """Go on in a new file of that name, after the old one was moved away."""
        if self._target != _STDOUT:
            try:
                new = self._open()
            except ConfigError as error:
                self._warn(str(error))
                return
            old, self._fd = self._fd, new
            os.close(old)

    def close(self) -> None:
        """Write what is left, for at most _CLOSE_S seconds."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def _open(self) -> int:
        if self._target == _STDOUT:
            return os.dup(1)
        try:
            return os.open(self._target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        except OSError as error:
            msg = f"cannot write the access log {self._target}: {error.strerror}"
            raise ConfigError(msg) from error

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(WRITE_S)
            self._write_waiting()
        self._write_waiting()
        os.close(self._fd)

    def _write_waiting(self) -> None:
        while self._waiting:
            data = self._next()
            try:
                mend = b"\n" if self._torn else b""  # ends the half line that a full disk left
                written = os.write(self._fd, mend + data) - len(mend)
                self._torn = written > 0 and data[written - 1 : written] != b"\n"
                lost = data.count(b"\n") - data.count(b"\n", 0, max(0, written))
            except OSError as error:
                lost = data.count(b"\n")
                self._warn(f"the access log cannot be written ({error.strerror or error}); serving goes on")
            for _ in range(lost):
                self._dropped()

    def _next(self) -> bytes:
        """Lines for one write."""
        lines: list[bytes] = []
        size = 0
        while self._waiting and len(lines) < _BATCH:
            item = self._waiting[0]
            line = _encode(item if isinstance(item, AccessLine) else _line(item)) + b"\n"
            if lines and size + len(line) > self._max_bytes:
                break
            size += len(line)
            lines.append(line)
            self._waiting.popleft()
        # Encoding holds the interpreter, and a thread that wants it waits 5 ms for one that does not let go by itself.
        time.sleep(_PAUSE_S)
        return b"".join(lines)

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            print(f"paceline: {message}", file=sys.stderr)


_encode = msgspec.json.Encoder().encode


class _Facts(NamedTuple):
    """What a line says about a call, without the call: that holds its prompt and answer."""

    started_unix_ns: int
    start_ns: int
    sent_ns: int
    first_ns: int
    end_ns: int
    caller: Caller | None
    method: str
    path: str
    info: CallInfo | None
    step: str | None
    status: int
    outcome: str
    level: str | None
    taken: RouteTaken | None
    error: str | None
    attempts: int
    usage: Usage | None
    usage_estimated: bool
    cost_usd: float | None
    saved_usd: float | None


def _facts(record: CallRecord) -> _Facts:
    return _Facts(
        record.started_unix_ns,
        record.start_ns,
        record.sent_ns,
        record.first_ns if record.streamed else 0,
        record.end_ns,
        record.caller,
        record.method,
        record.path,
        record.asked.info if record.asked is not None else None,
        record.step,
        record.status,
        record.outcome,
        record.level,
        record.taken,
        record.error,
        record.attempts,
        record.usage,
        record.usage_estimated,
        record.cost_usd,
        record.saved_usd,
    )


def _line(facts: _Facts) -> AccessLine:
    caller, info, usage, taken = facts.caller, facts.info, facts.usage, facts.taken
    model = (info.model or "") if info is not None else ""
    served = (taken.model or "") if taken is not None else ""
    return AccessLine(
        time=utc(facts.started_unix_ns),
        key=caller.name if caller is not None else "",
        tenant=caller.key.owner if isinstance(caller, KeyCaller) else "",
        method=facts.method,
        path=facts.path,
        model=model,
        served_model=served if served != model else "",
        deployment=(taken.deployment or "") if taken is not None else "",
        hedged=taken.hedged if taken is not None else False,
        step=facts.step or "",
        status=facts.status,
        outcome=facts.outcome,
        level=facts.level or "",
        stream=info.stream if info is not None else False,
        error=facts.error or "",
        attempts=facts.attempts,
        input_tokens=usage.input_tokens if usage is not None else 0,
        output_tokens=usage.output_tokens if usage is not None else 0,
        cached_tokens=usage.cached_tokens if usage is not None else 0,
        tokens_estimated=facts.usage_estimated,
        cost_usd=facts.cost_usd,
        saved_usd=facts.saved_usd,
        first_ms=round((facts.first_ns - facts.sent_ns) / 1e6, 3) if facts.first_ns else None,
        ms=round((facts.end_ns - facts.start_ns) / 1e6, 3),
    )


def utc(unix_ns: int) -> str:
    """A moment as ISO 8601, to the millisecond."""
    seconds, rest_ns = divmod(unix_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest_ns // 1_000_000:03d}Z"
