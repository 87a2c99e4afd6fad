"""AsyncTransport: for httpx.AsyncClient and httpx2.AsyncClient, and so for every SDK that takes one."""

import asyncio
import os
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from paceline.accelerate.policy import Policy
from paceline.accelerate.record import Listener
from paceline.accelerate.transport.binding import FAILURES, binding_of
from paceline.accelerate.transport.servers import Servers
from paceline.accelerate.transport.settings import TransportSettings

if TYPE_CHECKING:
    import httpx
    import httpx2

    class _Base(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):  # type: ignore[misc]
        """A transport to the type checker of either module."""
else:
    _Base = object

_left_behind: list[Servers] = []  # of the process this one was forked from: its connections are not ours to touch


class AsyncTransport(_Base):
    """Answers an async client's requests by the policy; without one, a plain transport of less overhead.

    Give it to the client as `transport=`; closing the client closes it, and a later request opens it again. It may
    serve several clients, and loops: each loop has its own connections and cache. Asyncio only (uvloop included).

    Args:
        policy: What to do beyond passing calls on; None: nothing.
        settings: How servers are reached, in place of the client's options of the same names.
        listener: Hears of every finished call, once, in the loop.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        settings: TransportSettings | None = None,
        listener: Listener | None = None,
    ) -> None:
        self._policy = policy or Policy()
        self._settings = settings or TransportSettings()
        self._listener = listener
        self._held: dict[asyncio.AbstractEventLoop, tuple[int, Servers]] = {}
        self._last: tuple[asyncio.AbstractEventLoop | None, Servers | None] = (None, None)

    async def handle_async_request(self, request: Any) -> Any:
        """Answer one request; the response's body is read as it comes. Raises the exceptions of the client's module.

        Cancelling releases the connection, unless others have joined the call.
        """
        binding = binding_of(request)
        servers = self._servers()
        asked = servers.reader.read(request, binding)
        if asked is None or servers.is_plain(asked.head.origin):
            return await servers.own.for_request(binding, request).handle_async_request(request)
        try:
            answered = await servers.send(asked, binding)
        except (*FAILURES, ValueError) as error:
            raise binding.error(error) from error
        return binding.response(*answered)

    async def aclose(self) -> None:
        """Close what the running loop holds; answers being read end with an error."""
        held = self._held.pop(asyncio.get_running_loop(), None)
        self._last = (None, None)
        if held is not None:
            await held[1].aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    def state(self) -> dict[str, dict[str, int]]:
        """What the running loop holds now, by the server's URL."""
        return self._servers().state()

    def _servers(self) -> Servers:
        loop, last = asyncio.get_running_loop(), self._last
        if last[1] is not None and last[0] is loop:
            return last[1]
        held = self._held.get(loop)
        if held is None:
            pid = os.getpid()
            for other, (owner, servers) in list(self._held.items()):
                if owner != pid:
                    _left_behind.append(servers)
                if owner != pid or other.is_closed():
                    del self._held[other]
            held = self._held[loop] = (pid, Servers(self._policy, self._settings, self._listener))
        self._last = (loop, held[1])
        return held[1]
