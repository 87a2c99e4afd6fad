"""The server side of HTTP/1.1: httptools' parser on an asyncio transport, with nothing between it and the handler.

`intake` reads requests, `session` answers them in order, `framing` writes the bytes; here is what listens.
"""

import asyncio
import os
import socket
from typing import Any

from paceline.errors import ConfigError
from paceline.wire.http import Handler
from paceline.wire.intake import ServerLimits
from paceline.wire.session import Service, Session

__all__ = ["Server", "ServerLimits", "serve"]

_SWEEP_S = 1.0


class Server(Service):
    """A listening server; made by `serve`. `port` is the one really bound."""

    def __init__(self, handler: Handler, limits: ServerLimits) -> None:
        super().__init__(handler, limits)
        self.host = ""
        self.port = 0
        self._listener: asyncio.Server | None = None
        self._sweeper = self.loop.call_later(_SWEEP_S, self._sweep)

    async def listen(self, host: str, port: int, *, reuse_port: bool, sock: socket.socket | None) -> None:
        """Bind and accept; see `serve`. Raises ConfigError when the address cannot be had."""
        where: dict[str, Any] = (
            {"sock": sock} if sock else {"host": host, "port": port, "reuse_port": reuse_port or None}
        )
        try:
            self._listener = await self.loop.create_server(lambda: Session(self), backlog=4096, **where)
        except OSError as error:
            self._sweeper.cancel()
            reason = os.strerror(error.errno) if error.errno else str(error)
            msg = f"cannot listen on {host}:{port}: {reason}; choose another host or port (0 picks a free port)"
            raise ConfigError(msg) from error
        self.host = host
        self.port = int(self._listener.sockets[0].getsockname()[1])

    @property
    def busy(self) -> int:
        """Requests being answered now."""
        return sum(1 for session in self.sessions if session.active is not None)

    async def close(self, grace_s: float = 5.0) -> None:
        """Stop accepting, let requests in flight finish for `grace_s`, then cut them off."""
        self.closing = True
        if self._listener is not None:
            self._listener.close()
        for session in list(self.sessions):
            session.close_if_idle()
        deadline_s = self.loop.time() + grace_s
        while self.sessions and self.loop.time() < deadline_s:  # noqa: ASYNC110 - only at the very end
            await asyncio.sleep(0.005)
        tasks = [session.task for session in self.sessions if session.task is not None]
        for session in list(self.sessions):
            session.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self._sweeper.cancel()

    def _sweep(self) -> None:
        now_s = self.loop.time()
        for session in list(self.sessions):
            session.check_time(now_s)
        self._sweeper = self.loop.call_later(_SWEEP_S, self._sweep)


async def serve(
    handler: Handler,
    host: str,
    port: int,
    *,
    limits: ServerLimits | None = None,
    reuse_port: bool = False,
    sock: socket.socket | None = None,
) -> Server:
    """Start a server on `host`:`port` (0: any free port). The caller awaits `close`. ConfigError: cannot listen.

    `reuse_port`: other processes may listen on the same port, the kernel spreads connections over them. `sock`: a bound
    socket to accept from, instead of binding one.
    """
    server = Server(handler, limits or ServerLimits())
    await server.listen(host, port, reuse_port=reuse_port, sock=sock)
    return server
