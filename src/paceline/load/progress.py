"""Progress: what a person sees while a load runs: a live screen, plain lines now and then, or nothing.

The screen is drawn by a process of its own, `paceline.load.display`. Drawing takes 5 to 10 ms, in which a generator
would send nothing, and a terminal that is held (Ctrl-S, a slow link) blocks whoever writes to it. Here a Standing is
computed and put into a pipe, 0.3 ms four times a second; what the pipe does not take is left out.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Protocol, TextIO

import msgspec

from paceline.load.course import Course, Standing
from paceline.load.snapshot import Snapshot
from paceline.model.request import ResourceSample

LIVE, PLAIN, NONE = "live", "plain", "none"
_CLOSING_S = 5.0  # for the display to put the terminal back
_RESTORE = "\x1b[?1049l\x1b[?25h\x1b[0m"  # main screen, cursor, no colour
Resources = Callable[[], ResourceSample | None]


class Progress(Protocol):
    """Whom `drive(progress=...)` tells, and what else there is to say meanwhile."""

    def __call__(self, snapshot: Snapshot) -> None:
        """Where a scenario stands."""

    def note(self, text: str) -> None:
        """A line worth keeping."""


class Note(msgspec.Struct, frozen=True, tag=True):
    """For the display: a line worth keeping."""

    text: str


class Stands(msgspec.Struct, frozen=True, tag=True):
    """For the display: draw this."""

    standing: Standing


Message = Note | Stands


@contextlib.contextmanager
def show_progress(
    mode: str = PLAIN, stream: TextIO | None = None, *, resources: Resources | None = None
) -> Iterator[Progress]:
    """Show how it goes until the block ends, however it ends; then the terminal is as it was.

    Args:
        mode: LIVE, PLAIN or NONE.
        stream: Where to (default: stderr); for LIVE a terminal.
        resources: The newest reading of the watched target.
    """
    stream = sys.stderr if stream is None else stream
    if mode == NONE:
        yield _Silent(stream)
        return
    plain = PlainProgress(stream, resources)
    if mode == PLAIN:
        yield plain
        return
    live = _LiveProgress(stream, plain, resources)
    try:
        yield live
    finally:
        live.close()


class _Silent:
    """Says only what was worth a note."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Print it."""
        print(text, file=self._stream, flush=True)


class PlainProgress(_Silent):
    """A line after 5 s, then ever more seldom: one a minute after ten minutes."""

    def __init__(self, stream: TextIO, resources: Resources | None = None) -> None:
        super().__init__(stream)
        self._course, self._resources = Course(), resources
        self._scenario, self._next_s = "", 0.0

    def __call__(self, snapshot: Snapshot) -> None:
        """Print a line if it is time for one."""
        standing = self._course.take(snapshot, self._resources() if self._resources else None)
        elapsed_s = snapshot.elapsed_s / snapshot.speed
        if snapshot.scenario != self._scenario:
            self._scenario, self._next_s = snapshot.scenario, _pause_s(0.0)
        if elapsed_s >= self._next_s:
            self._next_s = elapsed_s + _pause_s(elapsed_s)
            self.note(status_line(standing))


def _pause_s(elapsed_s: float) -> float:
    return min(60.0, max(5.0, elapsed_s / 10))


class _LiveProgress:
    """Keeps a display process. When that is gone, lines take its place."""

    def __init__(self, stream: TextIO, plain: PlainProgress, resources: Resources | None) -> None:
        self._stream, self._plain, self._resources = stream, plain, resources
        self._course = Course()
        self._gone = False
        stream.flush()
        self._display = subprocess.Popen(
            [sys.executable, "-m", "paceline.load.display"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stream,
        )
        assert self._display.stdin is not None  # noqa: S101 - it was started with a pipe
        self._fd = self._display.stdin.fileno()
        os.set_blocking(self._fd, False)

    def __call__(self, snapshot: Snapshot) -> None:
        """Have it drawn."""
        if self._gone:
            self._plain(snapshot)
            return
        self._send(Stands(self._course.take(snapshot, self._resources() if self._resources else None)))

    def note(self, text: str) -> None:
        """Show it on the screen; it is printed again when that is gone."""
        if self._gone:
            self._plain.note(text)
        else:
            self._send(Note(text))

    def _send(self, message: Message) -> None:
        data = msgspec.json.encode(message) + b"\n"
        try:
            # Up to PIPE_BUF (4,096) bytes go whole or not at all.
            os.write(self._fd, data if len(data) <= 4096 else _shortened(message))
        except BlockingIOError:
            pass  # the terminal is held: newer ones will come
        except OSError:
            self._gone = True

    def close(self) -> None:
        """End the display; what it wrote to the terminal is gone when this returns."""
        assert self._display.stdin is not None  # noqa: S101 - it was started with a pipe
        with contextlib.suppress(OSError):
            self._display.stdin.close()
        try:
            is_clean = self._display.wait(_CLOSING_S) == 0
        except subprocess.TimeoutExpired:
            self._display.kill()
            self._display.wait()
            is_clean = False
        if not is_clean:
            with contextlib.suppress(OSError):
                self._stream.write(_RESTORE)
                self._stream.flush()


def _shortened(message: Message) -> bytes:
    """With fewer and shorter texts: they come from the user and from answers, and may be long."""
    if isinstance(message, Note):
        return msgspec.json.encode(Note(message.text[:500])) + b"\n"
    stands = message.standing
    shown = [(kind[:80], count) for kind, count in stands.failures[:5]]
    rest = sum(count for _, count in stands.failures[5:])
    short = msgspec.structs.replace(
        stands,
        scenario=stands.scenario[:100],
        step=stands.step[:100],
        failures=[*shown, ("other", rest)] if rest else shown,
    )
    return msgspec.json.encode(Stands(short)) + b"\n"


def status_line(standing: Standing) -> str:
    """`chat: 120 of 500, 41.2/s, p50 1.20 s, p95 3.41 s, p99 4.00 s, 0 errors, 9 s left`."""
    of = f" of {standing.requests:,}" if standing.requests else ""
    parts = [f"{standing.scenario}: {standing.done:,}{of}", f"{standing.rate_per_s:.1f}/s"]
    if standing.whole is not None:
        found = standing.whole
        quantiles = (("p50", found.p50_s), ("p95", found.p95_s), ("p99", found.p99_s))
        parts.append(", ".join(f"{name} {seconds(value)}" for name, value in quantiles))
    parts.append("1 error" if standing.errors == 1 else f"{standing.errors:,} errors")
    if standing.is_late and standing.lag_p99_s is not None:
        parts.append(f"generator {seconds(standing.lag_p99_s)} late")
    if standing.left_s is not None:
        parts.append(f"{standing.left_s:.0f} s left")
    return ("" if not standing.step else f"[{standing.step}] ") + ", ".join(parts)


def seconds(value: float) -> str:
    """`0.42 ms`, `42.0 ms`, `3.41 s`, `120 s`."""
    if value < 0.0095:
        return f"{value * 1e3:.2f} ms"
    if value < 0.0995:
        return f"{value * 1e3:.1f} ms"
    if value < 0.9995:
        return f"{value * 1e3:.0f} ms"
    return f"{value:.2f} s" if value < 99.95 else f"{value:,.0f} s"
