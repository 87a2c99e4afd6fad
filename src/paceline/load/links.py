"""Links: how a crew talks to a worker process, here or on another machine."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Protocol

_LINE_BYTES = 1 << 22


class Link(Protocol):
    """A worker, wherever it runs. Lines are those of `paceline.load.workers`."""

    @property
    def name(self) -> str:
        """For messages: which one it is."""

    def tell(self, line: str) -> None:
        """Write a line to its input; it may be gone. "start S" takes S on this machine's monotonic clock."""

    def lines(self) -> AsyncIterator[bytes]:
        """What it says, until it has ended."""

    async def how(self) -> str:
        """How it ended: "was killed by signal 9"."""

    async def dismiss(self) -> None:
        """End it if it still runs."""


class ProcessLink:
    """A worker process of this machine. Whoever starts it dismisses it."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self.name = name

    @classmethod
    async def start(cls, part: int, of: int) -> "ProcessLink":
        """Start the worker that takes a part of so many."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "paceline.load.workers",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
            start_new_session=True,  # Ctrl-C reaches us, and we tell them
        )
        return cls(process, f"generator process {part + 1} of {of}")

    def tell(self, line: str) -> None:
        """Write a line to its input; it may be gone."""
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        with contextlib.suppress(ConnectionError, RuntimeError):
            self._process.stdin.write(line.encode() + b"\n")

    async def lines(self) -> AsyncIterator[bytes]:
        """What it says, until it has ended."""
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        async for line in self._process.stdout:
            yield line

    async def how(self) -> str:
        """How it ended."""
        return ended_with(await self._process.wait())

    async def dismiss(self) -> None:
        """Kill it if it still runs."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()


def ended_with(code: int) -> str:
    """An exit code in words."""
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
