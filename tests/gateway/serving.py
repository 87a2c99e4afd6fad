"""A gateway as a process of its own, for tests that kill it, tell it things, or start several below one parent."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import psutil
from tests.patience import PATIENCE_S

from paceline.wire.client import HttpClient

COMMAND = [sys.executable, "-m", "paceline", "serve"]
CALL = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}'
CHAT = "/v1/chat/completions"


@dataclass
class Serving:
    """The process, a client of it, and what it said."""

    process: asyncio.subprocess.Process
    client: HttpClient
    url: str

    async def get(self, path: str, *headers: tuple[bytes, bytes]) -> tuple[int, bytes]:
        reply = await self.client.request("GET", path, list(headers))
        return reply.status, await reply.read()

    async def ask(self, *headers: tuple[bytes, bytes], body: bytes = CALL) -> tuple[int, bytes]:
        reply = await self.client.request("POST", CHAT, list(headers), body)
        return reply.status, await reply.read()

    def workers(self) -> list[psutil.Process]:
        """The processes below it."""
        return psutil.Process(self.process.pid).children()

    async def line(self) -> str:
        """The next line it says on standard error."""
        assert self.process.stderr is not None
        return (await asyncio.wait_for(self.process.stderr.readline(), PATIENCE_S)).decode()

    async def stop(self, number: int) -> tuple[int | None, str]:
        """Send a signal, wait for the end: exit code, and what it still said."""
        self.process.send_signal(number)
        _, errors = await asyncio.wait_for(self.process.communicate(), PATIENCE_S)
        return self.process.returncode, errors.decode()


@contextlib.asynccontextmanager
async def serving(*options: str, env: dict[str, str] | None = None, port: int = 0) -> AsyncIterator[Serving]:
    """A gateway process that listens; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("--port", str(port), "--json", *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    )
    assert process.stdout is not None
    try:
        said = await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
        if not said:
            _, errors = await process.communicate()
            raise AssertionError(errors.decode())
        url = json.loads(said)["url"]
        client = HttpClient(url)
        try:
            yield Serving(process, client, url)
        finally:
            await client.close()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def eventually(condition: Callable[[], Any]) -> None:
    """Until it holds; other processes tell nobody."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
