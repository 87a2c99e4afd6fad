"""Program: a process that has Locust in it, and the messages to and from it."""

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import AsyncIterator

import msgspec

from paceline.errors import ConfigError
from paceline.load.links import ended_with

_LINE_BYTES = 1 << 24


def require_locust(what: str) -> None:
    """Raise ConfigError when Locust is not installed."""
    if importlib.util.find_spec("locust") is None:
        msg = f"{what} needs Locust, which is not installed: pip install 'paceline[locust]'"
        raise ConfigError(msg)


class Program:
    """One of this package's programs. Orders go to its standard input, messages come on a pipe of their own, so that
    what Locust and locustfiles print disturbs neither them nor our results. Whoever starts it dismisses it.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, messages: asyncio.StreamReader, pipe: asyncio.ReadTransport
    ) -> None:
        self._process, self._messages, self._pipe = process, messages, pipe

    @classmethod
    async def start(cls, module: str) -> "Program":
        """Start a module of this package."""
        reading, writing = os.pipe()
        reader = asyncio.StreamReader(limit=_LINE_BYTES)
        loop = asyncio.get_running_loop()
        pipe, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", 0)
        )
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                f"{__package__}.{module}",
                str(writing),
                stdin=asyncio.subprocess.PIPE,
                stdout=2,  # what a locustfile prints; ours is for results
                pass_fds=[writing],
                start_new_session=True,  # Ctrl-C reaches us, and we tell it
            )
        except BaseException:
            pipe.close()
            raise
        finally:
            os.close(writing)
        return cls(process, reader, pipe)

    def tell(self, order: msgspec.Struct) -> None:
        """Write an order to its input; it may be gone."""
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        with contextlib.suppress(ConnectionError, RuntimeError):
            self._process.stdin.write(msgspec.json.encode(order) + b"\n")

    def end_input(self) -> None:
        """Let it know that nothing more comes."""
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        self._process.stdin.close()

    async def hear(self) -> AsyncIterator[bytes]:
        """Its messages in JSON, until it has ended; what it had only half said is left out."""
        async for line in self._messages:
            if line.endswith(b"\n"):
                yield line
        await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; it may be gone."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    @property
    def how(self) -> str:
        """How it ended: "was killed by signal 9"."""
        code = self._process.returncode
        return "still runs" if code is None else ended_with(code)

    async def dismiss(self) -> None:
        """Kill it if it still runs."""
        self.signal(signal.SIGKILL)
        await self._process.wait()
        self._pipe.close()
        await asyncio.sleep(0)  # the loop closes it in its next round
