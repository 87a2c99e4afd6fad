"""What progress says, on a terminal and off it."""

import contextlib
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from typing import TextIO

import msgspec
import pytest

from paceline.load.course import Point, Quantiles, Standing, Target
from paceline.load.progress import LIVE, NONE, PLAIN, Note, show_progress, status_line
from paceline.load.snapshot import Snapshot
from paceline.load.view import screen
from paceline.stats.histogram import Histogram

QUANTILES = Quantiles(n=120, p50_s=0.042, p95_s=3.41, p99_s=4.0, max_s=5.0)
POINTS = [Point(rate_per_s=40.0 + i % 7, failed_per_s=float(i % 3), p50_s=0.04, p95_s=0.1 * i) for i in range(90)]


def standing(**changes: object) -> Standing:
    return Standing(
        **{  # type: ignore[arg-type]
            "scenario": "chat",
            "elapsed_s": 3.0,
            "share": 0.24,
            "left_s": 9.5,
            "requests": 500,
            "sent": 130,
            "done": 120,
            "rate_per_s": 40.0,
            "whole": QUANTILES,
            "recent": QUANTILES,
            "lag_p99_s": 0.001,
            **changes,
        }
    )


FULL = standing(
    step="scenario 2 of 3",
    users=10,
    asked_per_s=41.0,
    duration_s=12.0,
    failures=[("status 503", 7), ('check contains "ok"', 1)],
    first_token=QUANTILES,
    tokens_per_s=800.0,
    hit_ratio=0.4,
    cpu_ratio=0.3,
    target=Target(memory_mb=212.0, memory_grown_mb=3.0, cpu_ratio=0.43, threads=7),
)


def snapshot(elapsed_s: float, **changes: object) -> Snapshot:
    return Snapshot(
        **{  # type: ignore[arg-type]
            "scenario": "chat",
            "elapsed_s": elapsed_s,
            "requests": 500,
            "sent": 130,
            "done": 120,
            "latencies": Histogram.of([0.1] * 120),
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "chat: 120 of 500, 40.0/s, p50 42.0 ms, p95 3.41 s, p99 4.00 s, 0 errors, 10 s left"),
        ({"failures": [("timeout", 1)], "whole": None}, "chat: 120 of 500, 40.0/s, 1 error, 10 s left"),
        ({"requests": None, "whole": None, "left_s": None}, "chat: 120, 40.0/s, 0 errors"),
        (
            {"whole": None, "step": "scenario 1 of 2", "lag_p99_s": 0.3},
            "[scenario 1 of 2] chat: 120 of 500, 40.0/s, 0 errors, generator 300 ms late, 10 s left",
        ),
    ],
    ids=["by requests", "one error", "just begun", "late"],
)
def test_the_line_says_where_it_stands(changes: dict[str, object], says: str) -> None:
    assert status_line(standing(**changes)) == says


def test_plain_lines_are_few_and_ever_fewer() -> None:
    stream = io.StringIO()
    with show_progress(PLAIN, stream) as show:
        for second in range(900):
            show(snapshot(float(second)))
    assert 20 <= len(stream.getvalue().splitlines()) <= 40  # in a quarter of an hour
    assert "120 of 500" in stream.getvalue()


def test_a_short_run_has_no_plain_lines_and_quiet_none_at_all() -> None:
    for mode, most_s in ((PLAIN, 4.9), (NONE, 3600.0)):
        stream = io.StringIO()
        with show_progress(mode, stream) as show:
            show(snapshot(0.0))
            show(snapshot(most_s))
        assert stream.getvalue() == ""


@pytest.mark.parametrize("height", [1, 5, 12, 24, 60])
@pytest.mark.parametrize("width", [20, 40, 63, 80, 200])
def test_the_screen_fits_every_terminal(width: int, height: int) -> None:
    lines = screen(FULL, POINTS, ["a note " * 30], width=width, height=height)
    assert len(lines) <= height
    assert all(line.cell_len <= max(width, 20) for line in lines)


def test_the_screen_holds_everything_a_person_asks_for() -> None:
    text = "\n".join(line.plain for line in screen(FULL, POINTS, ["warming up"], width=100, height=40))
    for said in (
        "chat",
        "scenario 2 of 3",
        "24%",
        "0:10 left",
        "120 of 500 answered",
        "40.0/s of 41.0/s asked",
        "10 in flight  10 users",
        "last 10 s   42.0 ms   3.41 s   4.00 s   5.00 s",
        "whole run   42.0 ms",
        "1st token  p50 42.0 ms",
        "800 tokens/s",
        "40.0% hits",
        "8 (6.67%)",
        "7 × status 503",
        "p99 1.00 ms late  30% of a core",
        "212 MB (+3 MB)  43% of a core  7 threads",
        "answers/s",
        "p95, p50",
        "warming up",
        "Ctrl-C",
    ):
        assert said in text, said


def test_a_generator_in_trouble_is_said_in_red() -> None:
    lines = screen(standing(lag_p99_s=0.5), POINTS, width=80, height=24)
    line = next(line for line in lines if "generator" in line.plain)
    assert "it shows in the figures" in line.plain
    assert any("red" in str(span.style) for span in line.spans)


def test_names_cannot_command_the_terminal() -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J"
    lines = screen(standing(scenario=hostile, step=hostile, failures=[(hostile, 1)]), [], width=80, height=24)
    assert "\x1b" not in "".join(line.plain for line in lines)


class Terminal:
    """A terminal of 80 by 24; somebody looks at it once `look` was called."""

    def __init__(self) -> None:
        self.outer, self.inner = pty.openpty()
        fcntl.ioctl(self.inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.seen = b""
        self._changed = threading.Condition()

    def look(self) -> None:
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self.outer, 1 << 16):
                with self._changed:
                    self.seen += data
                    self._changed.notify_all()

    def wait_for(self, wanted: bytes) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: wanted in self.seen, 30), self.seen[-2000:]

    def stream(self) -> TextIO:
        return os.fdopen(os.dup(self.inner), "w")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    os.close(made.inner)


@pytest.mark.slow
def test_on_a_terminal_the_screen_is_live_and_leaves_no_trace(terminal: Terminal) -> None:
    terminal.look()
    with terminal.stream() as stream, show_progress(LIVE, stream) as show:
        show.note("warming up")
        show(snapshot(1.0))
        terminal.wait_for(b"answered")
    terminal.wait_for(b"\x1b[?1049l")
    before, _, after = terminal.seen.partition(b"\x1b[?1049l")
    assert b"\x1b[?1049h" in before  # a screen of its own, which is gone
    assert b"\x1b[?25h" in before  # the cursor is back
    assert b"warming up" in after  # the note is kept


@pytest.mark.slow
def test_the_terminal_is_put_back_when_the_load_is_killed(terminal: Terminal) -> None:
    program = """
import time
from tests.load.test_load_progress import snapshot
from paceline.load.progress import LIVE, show_progress
with show_progress(LIVE) as show:
    while True:
        show(snapshot(1.0))
        time.sleep(0.1)
"""
    terminal.look()
    with subprocess.Popen([sys.executable, "-c", program], stderr=terminal.inner) as process:
        try:
            terminal.wait_for(b"answered")
        finally:
            process.kill()
    terminal.wait_for(b"\x1b[?1049l")


@pytest.mark.slow
def test_a_terminal_that_is_held_never_holds_the_generator(terminal: Terminal) -> None:
    """Nobody reads the other end: the display blocks, and telling it does not."""
    with terminal.stream() as stream, show_progress(LIVE, stream) as show:
        for number in range(400):  # more than a pipe and a terminal hold
            show(snapshot(number / 4, scenario="x" * 3000))
        show.note("y" * 100_000)
        terminal.look()  # let go


@pytest.mark.slow
def test_without_its_display_progress_goes_on_in_plain_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    terminal.look()
    with terminal.stream() as stream, show_progress(LIVE, stream) as show:
        for second in range(1, 40):
            show(snapshot(float(second)))
            if b"chat: 120 of 500" in terminal.seen:
                break
            time.sleep(0.05)
    terminal.wait_for(b"chat: 120 of 500")


def test_messages_fit_the_pipe_in_one_piece() -> None:
    from paceline.load.progress import Stands, _shortened

    long = standing(scenario="ß" * 5000, step="ß" * 5000, failures=[("ß" * 5000, i) for i in range(2000)])
    data = _shortened(Stands(long))
    assert len(data) <= 4096
    assert msgspec.json.decode(data, type=Stands).standing.errors == long.errors
    assert len(_shortened(Note("ß" * 5000))) <= 4096
