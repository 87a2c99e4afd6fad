"""Display: draws the live screen on standard error, from Messages on standard input, until that ends.

A program of its own, run as `python -m paceline.load.display`: see load/progress.py for why. Ctrl-C is not for it: the
load ends, closes the pipe, and with it the screen goes. So it does when the load is killed.
"""

import contextlib
import os
import selectors
import signal
import sys
from collections import deque

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from paceline.load.course import Point, Standing
from paceline.load.progress import Message, Note
from paceline.load.view import screen

_REDRAW_S = 0.25
_MOST_POINTS = 600
_decoder = msgspec.json.Decoder(Message)


class Display:
    """What was heard so far, and the screen."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, screen=True, auto_refresh=False)
        self._points: deque[Point] = deque(maxlen=_MOST_POINTS)
        self._standing: Standing | None = None
        self._size: tuple[int, int] = (0, 0)
        self.notes: list[str] = []

    def hear(self, line: bytes) -> None:
        """Take a message in. A line that is none is left out."""
        try:
            message = _decoder.decode(line)
        except msgspec.DecodeError:
            return
        if isinstance(message, Note):
            self.notes.append(message.text)
            return
        self._standing = message.standing
        if message.standing.point is not None:
            self._points.append(message.standing.point)

    def draw(self) -> None:
        """Show what is new."""
        if self._standing is None:
            return
        if not self._live.is_started:
            self._live.start()
        width, height = self._console.size
        if (width, height) != self._size:  # what a smaller or larger screen was filled with
            self._console.clear()
            self._size = (width, height)
        colour = self._console.color_system is not None and not self._console.no_color
        lines = screen(self._standing, self._points, self.notes, width=width, height=height, colour=colour)
        self._live.update(Group(*lines), refresh=True)

    def close(self) -> None:
        """Put the terminal back and print the notes, which the screen took with it."""
        self._live.stop()
        for note in self.notes:
            self._console.print(Text(note), soft_wrap=True)


def main() -> None:
    """Draw until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _go_last()
    display = Display(Console(file=sys.stderr, highlight=False))
    waiting = selectors.DefaultSelector()
    waiting.register(0, selectors.EVENT_READ)
    rest = b""
    try:
        while True:
            if waiting.select(_REDRAW_S):
                data = os.read(0, 1 << 16)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    display.hear(line)
            display.draw()
    finally:
        display.close()


def _go_last() -> None:
    """Let the generator and its target have the processor first, and never take it from them on waking."""
    with contextlib.suppress(AttributeError, OSError):  # where there is such a thing
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    os.nice(10)


if __name__ == "__main__":
    main()
