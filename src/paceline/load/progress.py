"""Show how a load scenario goes: a live line with a bar on a terminal, a plain line every few seconds elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from paceline.load.driver import Snapshot

if TYPE_CHECKING:
    from rich.console import RenderableType

_LINE_EVERY_S = 5.0


@contextlib.contextmanager
def show_progress(stream: TextIO | None = None) -> Iterator[Callable[[Snapshot], None]]:
    """Give a callback for `drive(progress=...)` that writes to `stream` (default: stderr)."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield _plain(stream)
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=stream), auto_refresh=False, transient=True) as live:
        yield lambda snapshot: live.update(_panel(snapshot), refresh=True)


def _plain(stream: TextIO) -> Callable[[Snapshot], None]:
    last_s = time.monotonic()

    def show(snapshot: Snapshot) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= _LINE_EVERY_S:
            last_s = time.monotonic()
            print(status_line(snapshot), file=stream, flush=True)

    return show


def _panel(snapshot: Snapshot) -> "RenderableType":
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=1.0, completed=share_done(snapshot), width=24)
    grid.add_row(bar, status_line(snapshot))
    return grid


def status_line(snapshot: Snapshot) -> str:
    """`chat: 120 of 500, 41.2/s, p50 1.20 s, p95 3.41 s, 0 errors, 9 s left`."""
    parts = [f"{snapshot.scenario}: {snapshot.done:,}" + (f" of {snapshot.requests:,}" if snapshot.requests else "")]
    parts.append(f"{snapshot.rate_per_s:.1f}/s")
    if snapshot.p50_s is not None and snapshot.p95_s is not None:
        parts.append(f"p50 {_seconds(snapshot.p50_s)}, p95 {_seconds(snapshot.p95_s)}")
    parts.append("1 error" if snapshot.errors == 1 else f"{snapshot.errors:,} errors")
    left_s = seconds_left(snapshot)
    if left_s is not None:
        parts.append(f"{left_s:.0f} s left")
    return ", ".join(parts)


def share_done(snapshot: Snapshot) -> float:
    """How far it is, 0 to 1: by requests where their number is known, else by time."""
    if snapshot.requests:
        return min(1.0, snapshot.done / snapshot.requests)
    return min(1.0, snapshot.elapsed_s / snapshot.duration_s) if snapshot.duration_s else 0.0


def seconds_left(snapshot: Snapshot) -> float | None:
    """Seconds at the provider's pace until the end, at the present rate; None while that cannot be said."""
    by_time = None if snapshot.duration_s is None else max(0.0, snapshot.duration_s - snapshot.elapsed_s)
    if snapshot.requests is None or not snapshot.rate_per_s:
        return by_time
    by_rate = (snapshot.requests - snapshot.done) / snapshot.rate_per_s
    return by_rate if by_time is None else min(by_time, by_rate)


def _seconds(value: float) -> str:
    return f"{value * 1e3:.1f} ms" if value < 0.0995 else f"{value:.2f} s"
