"""The simulated provider as a process of its own, so that its work is not done on the load generator's time."""

import asyncio
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from paceline.errors import ServiceError
from paceline.record.launcher import Service, launch

_READY_S = 60.0  # it takes a second; a busy machine is not a reason to give up
_STOP_S = 5.0
_POLL_S = 0.02


class _Announcement(msgspec.Struct):
    url: str


class SimulatedProvider:
    """`paceline sim` for the length of an `async with` block; a fresh one has full rate limits and the same seed.

    What it prints is appended to `log`. Raises ServiceError on entering when it does not start.
    """

    def __init__(self, *, config: Path | None, speed: float, seed: int, log: Path) -> None:
        self._command = [sys.executable, "-m", "paceline", "sim", "--json", "--port", "0"]
        self._command += ["--speed", f"{speed:g}", "--seed", str(seed)]
        if config is not None:
            self._command += ["--config", str(config)]
        self._log = log
        self.url = ""

    async def __aenter__(self) -> Self:
        already = self._log.stat().st_size if self._log.exists() else 0
        self._service = launch(self._command, cwd=Path.cwd(), env=os.environ, log=self._log)
        try:
            self.url = await self._announced(self._service, already)
        except BaseException:
            await self._service.stop(_STOP_S)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(self._service.stop(_STOP_S))

    async def _announced(self, service: Service, already: int) -> str:
        """The URL in the first line it prints after the `already` bytes of earlier ones."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _READY_S
        said: list[bytes] = []
        while loop.time() < deadline_s:
            ended = service.exit_code is not None  # asked before reading, so that its last words are read
            said = self._log.read_bytes()[already:].splitlines(keepends=True)
            for line in said:
                if line.startswith(b"{") and line.endswith(b"\n"):
                    return msgspec.json.decode(line, type=_Announcement).url
            if ended:
                break
            await asyncio.sleep(_POLL_S)
        last = said[-1].decode(errors="replace").strip() if said else f"it said nothing within {_READY_S:g} s"
        msg = f"the simulated provider did not start: {last.removeprefix('paceline sim: ')}"
        raise ServiceError(msg)
