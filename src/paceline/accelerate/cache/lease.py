"""Lease: the right to compute a key while the other processes wait for the answer."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from .fleet import FleetLevel
from .host import HostLevel

TOKEN_BYTES = 16


class Lease:
    """Held until `release`, which comes after the answer was put. A holder that dies loses it.

    On the host it is a lock of the kernel, gone with the process. In the fleet it expires unless it is renewed, which
    happens here every third of `lease_s`.
    """

    __slots__ = (
        "_fleet",
        "_host",
        "_over",
        "_renewal",
        "_token",
        "done",
        "epoch",
        "host_number",
        "key",
        "number",
        "write",
    )

    def __init__(self, key: bytes, done: Callable[["Lease"], None]) -> None:
        self.key = key
        self.done = done
        self.number = 0  # invalidations this process knew of when it began
        self.host_number = 0  # the same, of the host's log
        self.epoch: int | None = None  # the same, of the fleet's
        self._host: HostLevel | None = None
        self._fleet: FleetLevel | None = None
        self._token = b""
        self._renewal: asyncio.Task[None] | None = None
        self._over = False
        self.write: Awaitable[None] | None = None  # of its answer to the fleet

    @property
    def is_shared(self) -> bool:
        """True when other processes respect it."""
        return self._host is not None or self._fleet is not None

    def on_host(self, host: HostLevel) -> bool:
        """Take the host's. False: another process has it."""
        taken = host.lease(self.key)
        if taken:
            self._host = host
        return taken is not False

    async def in_fleet(self, fleet: FleetLevel) -> bool:
        """Take the fleet's. False: another process has it."""
        token = os.urandom(TOKEN_BYTES)
        answer = await fleet.lease(self.key, token)
        if answer is None:
            return True  # Redis is away: better computed twice than not at all
        taken, epoch = answer
        if taken:
            self._fleet, self._token, self.epoch = fleet, token, epoch
            self._renewal = asyncio.get_running_loop().create_task(self._renew(fleet))
        return taken

    def release(self) -> None:
        """Let others in, once what was put under it is stored. Once; then nothing."""
        if self._over:
            return
        self._over = True
        if self._host is not None:
            self._host.release(self.key)
        if self._fleet is not None and self._renewal is not None:
            self._renewal.cancel()
            loop = asyncio.get_running_loop()
            self._fleet.keep(loop.create_task(self._give_back(self._fleet)))
        self.done(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    async def _renew(self, fleet: FleetLevel) -> None:
        while True:
            await asyncio.sleep(fleet.policy.lease_s / 3)
            await fleet.renew(self.key, self._token)

    async def _give_back(self, fleet: FleetLevel) -> None:
        if isinstance(self.write, asyncio.Task):
            await asyncio.wait([self.write])
        await fleet.release(self.key, self._token)
