"""Showing how a tuning goes: one live line on a terminal, short plain lines anywhere else. All on stderr."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from paceline.load.course import Course, Standing
from paceline.load.driver import Snapshot
from paceline.load.progress import status_line


class PlainWatch:
    """A line a step, and one when a scenario's load is over."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._began_s = time.monotonic()
        self._course = Course()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Show no more; closing twice is fine."""

    def step(self, text: str) -> None:
        """Print it with the time since the beginning."""
        self.note(f"[{time.monotonic() - self._began_s:4.0f} s] {text}")

    def note(self, text: str) -> None:
        """Print it."""
        print(text, file=self._out, flush=True)

    def load(self, snapshot: Snapshot) -> None:
        """Show the figures so far."""
        self._show_load(self._course.take(snapshot))

    def _show_load(self, standing: Standing) -> None:
        """Print only the last ones: logs are read afterwards."""
        if standing.requests is not None and standing.done >= standing.requests:
            self.note(f"         {status_line(standing)}")


class LiveWatch(PlainWatch):
    """Steps as lines, the running one with a spinner and the load's figures."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        from rich.console import Console

        self._console = Console(file=out, highlight=False)
        self._status = self._console.status("")
        self._step = ""

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def close(self) -> None:
        """End the live line; the step it showed stays as a line."""
        self._status.stop()
        if self._step:
            self.note(self._step)
            self._step = ""

    def step(self, text: str) -> None:
        """Show it beside the spinner, and keep the one before as a line."""
        elapsed_s = time.monotonic() - self._began_s
        if self._step:
            self.note(self._step)
        self._step = f"[{elapsed_s:4.0f} s] {text}"
        self._show(self._step)

    def note(self, text: str) -> None:
        """Print it above the spinner."""
        self._console.print(text, markup=False)

    def _show_load(self, standing: Standing) -> None:
        self._show(f"{self._step}  {status_line(standing)}")

    def _show(self, text: str) -> None:
        from rich.text import Text

        self._status.update(Text(text))


def watch_on(out: TextIO = sys.stderr) -> PlainWatch:
    """The watch that suits the stream."""
    return LiveWatch(out) if out.isatty() else PlainWatch(out)
