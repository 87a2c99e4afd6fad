"""The simulated provider as a process of its own, so that its work is not on the generator's core account."""

import asyncio
import contextlib
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from paceline.errors import ServiceError

_READY_S = 20.0
_STOP_S = 5.0


class _Announcement(msgspec.Struct):
    url: str


class SimulatedProvider:
    """`paceline sim` for the length of a `with` block; a fresh one has full rate limits and the same seed.

    What it prints goes to `log`. Raises ServiceError on entering when it does not start.
    """

    def __init__(self, *, config: Path | None, speed: float, seed: int, log: Path) -> None:
        self._command = [
            sys.executable,
            "-m",
            "paceline",
            "sim",
            "--json",
            "--speed",
            f"{speed:g}",
            "--seed",
            str(seed),
        ]
        if config is not None:
            self._command += ["--config", str(config)]
        self._log = log
        self.url = ""

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=asyncio.subprocess.PIPE, stderr=log, stdin=asyncio.subprocess.DEVNULL
            )
        try:
            self.url = await self._announced()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _announced(self) -> str:
        assert self._process.stdout is not None  # noqa: S101 - asked for a pipe above
        line = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READY_S):
                line = await self._process.stdout.readline()
        try:
            return msgspec.json.decode(line, type=_Announcement).url
        except msgspec.DecodeError:
            said = self._log.read_text(errors="replace").strip().splitlines()
            reason = said[-1].removeprefix("paceline sim: ") if said else f"it said nothing within {_READY_S:g} s"
            msg = f"the simulated provider did not start: {reason}"
            raise ServiceError(msg) from None

    async def _stop(self) -> None:
        if self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
