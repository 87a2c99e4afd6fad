"""Transport: for httpx.Client and httpx2.Client. The work is done in one loop of the process, in its own thread."""

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from paceline.accelerate.policy import Policy
from paceline.accelerate.record import Listener
from paceline.accelerate.transport import background
from paceline.accelerate.transport.binding import FAILURES, Binding, binding_of
from paceline.accelerate.transport.hand_over import HandOver
from paceline.accelerate.transport.outgoing import Outgoing
from paceline.accelerate.transport.own import OwnTransports
from paceline.accelerate.transport.servers import Answered, Servers
from paceline.accelerate.transport.settings import TransportSettings

if TYPE_CHECKING:
    import httpx
    import httpx2

    class _Base(httpx.BaseTransport, httpx2.BaseTransport):  # type: ignore[misc]
        """A transport to the type checker of either module."""
else:
    _Base = object


class Transport(_Base):
    """Answers a sync client's requests by the policy; for any number of threads.

    Give it to the client as `transport=`; closing the client closes it, and a later request opens it again. A call
    blocks its own thread only, a running event loop's too: use `AsyncTransport` there. Arguments as there; the listener
    is called in the transport's thread.
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
        self._own = OwnTransports(self._settings, sync=True)
        self._lock = threading.Lock()
        self._held: tuple[background.LoopThread, Servers] | None = None

    def handle_request(self, request: Any) -> Any:
        """Answer one request; the response's body is read as it comes. Raises the exceptions of the client's module."""
        binding = binding_of(request)
        thread, servers = self._open()
        asked = servers.reader.read(request, binding)
        if asked is None or servers.is_plain(asked.head.origin):
            return self._own.for_request(binding, request).handle_request(request)
        try:
            answered = thread.run(self._answer(thread, servers, asked, binding))
        except (*FAILURES, ValueError) as error:
            raise binding.error(error) from error
        return binding.sync_response(*answered)

    def close(self) -> None:
        """Close what is held; answers being read end with an error."""
        with self._lock:
            held, self._held = self._held, None
        if held is not None and background.is_current(held[0]):
            thread, servers = held
            thread.run(servers.aclose())
            background.release(thread)
        self._own.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()

    def state(self) -> dict[str, dict[str, int]]:
        """What is held now, by the server's URL."""
        thread, servers = self._open()

        async def state() -> dict[str, dict[str, int]]:
            return servers.state()

        return thread.run(state())

    def _open(self) -> tuple[background.LoopThread, Servers]:
        held = self._held
        if held is not None and background.is_current(held[0]):
            return held
        with self._lock:
            held = self._held
            if held is None or not background.is_current(held[0]):
                if held is not None:  # this is a child of the process that made it
                    background.leave_behind(held)
                servers = Servers(self._policy, self._settings, self._listener)
                held = self._held = (background.lease(), servers)
        return held

    @staticmethod
    async def _answer(
        thread: background.LoopThread, servers: Servers, asked: Outgoing, binding: Binding
    ) -> tuple[int, Any, bytes | HandOver]:
        """Make the call in the loop. A small body comes whole, a larger one or a stream by way of a queue."""
        answered: Answered = await (await servers.send(asked, binding)).settled()
        if isinstance(answered.body, bytes):
            return answered.status, answered.headers, answered.body
        return answered.status, answered.headers, HandOver(answered.body, thread)
