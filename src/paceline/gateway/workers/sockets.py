"""Listening sockets for several processes on one port.

Linux spreads connections over sockets with SO_REUSEPORT by a hash, so each worker gets its own. Elsewhere the option
means something else or does not balance, and all workers accept from one socket. The parent keeps every socket open:
what waits in the queue of a worker that died is answered by the one that takes its place.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

from paceline.errors import ConfigError

BACKLOG = 4096
SPREADS = sys.platform == "linux" and hasattr(socket, "SO_REUSEPORT")


class Listeners:
    """A bound and listening socket for each of `count` workers; without `spread` the same one for all.

    Raises ConfigError when the address cannot be had. Whoever makes it closes it.
    """

    def __init__(self, host: str, port: int, count: int, *, spread: bool = SPREADS) -> None:
        self.spread = spread
        self._family, self._address = _resolve(host, port)
        self._sockets: list[socket.socket | None] = []
        with contextlib.ExitStack() as undo, _refusals(host, port):
            undo.callback(self.close)
            if spread and port:  # with SO_REUSEPORT, a second gateway here would take half the calls unnoticed
                _bound(self._family, self._address, reuse_port=False).close()
            for number in range(count):
                if number == 0 or spread:
                    sock = _bound(self._family, self._address, reuse_port=spread)
                    self._address = sock.getsockname()
                    sock.listen(BACKLOG)
                self._sockets.append(sock)
            undo.pop_all()

    @property
    def port(self) -> int:
        """The port really bound."""
        return int(self._address[1])

    def of(self, number: int) -> socket.socket:
        """The socket of a worker; opened again after `shut`."""
        sock = self._sockets[number]
        if sock is None:
            sock = self._sockets[number] = _bound(self._family, self._address, reuse_port=True)
            sock.listen(BACKLOG)
        return sock

    def shut(self, number: int) -> None:
        """Let no more callers queue up for a worker that is not coming back soon; a shared socket stays."""
        sock = self._sockets[number]
        if self.spread and sock is not None:
            self._sockets[number] = None
            sock.close()

    def close(self) -> None:
        """Close all of them."""
        for sock in self._sockets:
            if sock is not None:
                sock.close()
        self._sockets = [None] * len(self._sockets)


def _bound(family: int, address: tuple[Any, ...], *, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _resolve(host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    with _refusals(host, port):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)  # localhost: 127.0.0.1
    return family, address


@contextlib.contextmanager
def _refusals(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        msg = f"cannot listen on {host}:{port}: {reason}; choose another host or port (0 picks a free port)"
        raise ConfigError(msg) from error
