"""One HTTP/2 connection to a server, over the state machine of `h2`: many answers at once, each with its own window."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from paceline.errors import UpstreamBroken, UpstreamTimeout
from paceline.wire.http import Take

STREAM_BYTES = 256 * 1024  # of one answer that may wait for its consumer; then the server has to wait
_CONNECTION_BYTES = 16 * 1024 * 1024  # in flight on the whole connection
_CLOSED_STREAM = h2.errors.ErrorCodes.CANCEL


class Http2Reply:
    """An answer, as ClientReply. `status` is 0 until its head has come."""

    def __init__(self, connection: "Http2Connection", silence_s: float) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.done = False  # nothing more comes
        self.error: UpstreamBroken | None = None
        self.untouched = False  # the server says that it did nothing: the request may be sent again
        self.stream = 0
        self.unsent = memoryview(b"")  # of the request's body
        self._connection = connection
        self._silence_s = silence_s
        self._pieces: deque[tuple[bytes, int]] = deque()  # with what each takes of the window
        self._waiter: asyncio.Future[None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """First value of a header (lower-case name)."""
        return next((value for key, value in self.headers if key == name), None)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The next piece of the body. UpstreamBroken or UpstreamTimeout when it ends early."""
        while not self._pieces:
            if self.done:
                raise self.error or StopAsyncIteration
            try:
                async with asyncio.timeout(self._silence_s):
                    await self.news()
            except TimeoutError as error:
                self.close()
                name = self._connection.name
                msg = f"{name} fell silent in its answer for {self._silence_s:g} s"
                raise UpstreamTimeout(msg, target=name, phase="silence", limit_s=self._silence_s) from error
            except BaseException:
                self.close()
                raise
        data, size = self._pieces.popleft()
        self._connection.consumed(self, size)
        return data

    async def forward(self, take: Take) -> None:
        """Give every piece to `take` as it arrives; returns at the end."""
        async for data in self:
            held = take(data)
            if held is not None:
                await held

    async def read(self) -> bytes:
        """The rest of the body. UpstreamBroken when it is larger than the client's limit, or as in iteration."""
        pieces, size, limit_bytes = [], 0, self._connection.body_bytes
        try:
            async for data in self:
                pieces.append(data)
                size += len(data)
                if size > limit_bytes:
                    name = self._connection.name
                    raise UpstreamBroken(f"{name} sent more than {limit_bytes} bytes", target=name)
        finally:
            self.close()
        return b"".join(pieces)

    def close(self) -> None:
        """Give up what has not arrived: the server is told, others on the connection go on."""
        if not self.done:
            self._connection.give_up(self)
            self.end(UpstreamBroken("the answer was given up", target=self._connection.name))

    async def news(self) -> None:
        """Wait until something has come."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # --- the connection's side -----------------------------------------------------------------------------------

    def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The head has come."""
        self.status, self.headers = status, headers
        self._wake()

    def feed(self, data: bytes, size: int) -> None:
        """A piece of the body has come, which takes `size` bytes of the window."""
        self._pieces.append((data, size))
        self._wake()

    def end(self, error: UpstreamBroken | None) -> None:
        """Nothing more comes."""
        self.done, self.error = True, error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Http2Connection(asyncio.Protocol):
    """An open connection. `start` a request where `has_room`; `on_change` is called when room or `busy` may differ."""

    def __init__(self, name: str, body_bytes: int, on_change: Callable[[], None]) -> None:
        """`name`: the server's URL, for messages. `body_bytes`: of an answer that is read whole."""
        self.name, self.body_bytes = name, body_bytes
        self.closed = False
        # Done when the server's bounds are known, or the connection is closed.
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.idle_since_s = asyncio.get_running_loop().time()
        self._leaving = False  # the server takes no more requests here
        self._on_change = on_change
        self._replies: dict[int, Http2Reply] = {}
        self._transport: asyncio.Transport
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))

    @property
    def busy(self) -> int:
        """Answers under way."""
        return len(self._replies)

    @property
    def has_room(self) -> bool:
        """True when one more request can be sent now."""
        most = self._http.remote_settings.max_concurrent_streams
        return not (self.closed or self._leaving) and len(self._replies) < most

    def start(self, headers: Sequence[tuple[bytes, bytes]], body: bytes, silence_s: float) -> Http2Reply:
        """Send a request; `headers` begin with those of HTTP/2 itself."""
        reply = Http2Reply(self, silence_s)
        reply.stream = self._http.get_next_available_stream_id()
        self._http.send_headers(reply.stream, headers, end_stream=not body)
        reply.unsent = memoryview(body)
        self._replies[reply.stream] = reply
        self._send(reply)
        self._flush()
        return reply

    def give_up(self, reply: Http2Reply) -> None:
        """Tell the server that nobody wants the rest."""
        if self._replies.pop(reply.stream, None) is not None and not self.closed:
            try:
                self._http.reset_stream(reply.stream, _CLOSED_STREAM)
            except h2.exceptions.ProtocolError:  # it ended in this very moment
                return
            finally:
                self._left()
            self._flush()

    def consumed(self, reply: Http2Reply, size: int) -> None:
        """Let the server send that much more of this answer."""
        if size and not reply.done and not self.closed:
            self._http.increment_flow_control_window(size, reply.stream)
            self._flush()

    def abort(self) -> None:
        """Close it; answers under way end with UpstreamBroken."""
        self._lost("the connection was closed")
        self._transport.abort()

    # --- asyncio.Protocol ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Say hello."""
        self._transport = transport
        http = self._http
        http.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: STREAM_BYTES,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 64 * 1024,
            },
        )
        http.initiate_connection()
        http.increment_flow_control_window(_CONNECTION_BYTES)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Tell each answer what came for it."""
        try:
            events = self._http.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self._flush()
            self._lost(f"it broke the rules of HTTP/2: {error or type(error).__name__}")
            self._transport.close()
            return
        for event in events:
            self._heard(event)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is under way."""
        self._lost(f"the connection was lost ({exc})" if exc is not None else "it closed the connection")

    def _heard(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived(stream_id=stream, data=data, flow_controlled_length=size):
                self._take(stream or 0, data or b"", size or 0)
            case h2.events.ResponseReceived(stream_id=stream, headers=headers):
                if (reply := self._replies.get(stream or 0)) is not None:
                    reply.begin(*_head(headers or ()))
            case h2.events.StreamEnded(stream_id=stream):
                self._end(stream or 0, None)
            case h2.events.StreamReset(stream_id=stream, error_code=code):
                refused = code == h2.errors.ErrorCodes.REFUSED_STREAM
                self._end(stream or 0, f"it cut the answer ({_code(code)})", untouched=refused)
            case h2.events.ConnectionTerminated(last_stream_id=last, error_code=code):
                self._leave(last or 0, _code(code))
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                if isinstance(event, h2.events.RemoteSettingsChanged):
                    self._is_ready()
                for reply in list(self._replies.values()):
                    self._send(reply)
                self._on_change()

    def _take(self, stream: int, data: bytes, size: int) -> None:
        if size:  # of the connection at once, so that one slow consumer does not stop the others
            self._http.increment_flow_control_window(size)
        reply = self._replies.get(stream)
        if reply is not None and data:
            reply.feed(data, size)

    def _leave(self, last: int, code: str) -> None:
        """The server takes no more requests here, and has not seen those after `last`."""
        self._leaving = True
        for stream in [stream for stream in self._replies if stream > last]:
            self._end(stream, f"it is going away ({code})", untouched=True)
        self._left()

    def _send(self, reply: Http2Reply) -> None:
        """As much of a request's body as the server takes now."""
        while reply.unsent:
            room = min(self._http.local_flow_control_window(reply.stream), self._http.max_outbound_frame_size)
            if room <= 0:
                return
            piece, reply.unsent = reply.unsent[:room], reply.unsent[room:]
            self._http.send_data(reply.stream, bytes(piece), end_stream=not reply.unsent)

    def _end(self, stream: int, problem: str | None, *, untouched: bool = False) -> None:
        reply = self._replies.pop(stream, None)
        if reply is None:
            return
        reply.untouched = untouched
        if problem is None and reply.unsent:  # it answered without reading on
            self._http.reset_stream(stream, _CLOSED_STREAM)
        reply.end(None if problem is None else UpstreamBroken(f"{self.name}: {problem}", target=self.name))
        self._left()

    def _left(self) -> None:
        self.idle_since_s = asyncio.get_running_loop().time()
        if self._leaving and not self._replies and not self.closed:
            self._transport.close()
        self._on_change()

    def _lost(self, problem: str) -> None:
        if not self.closed:
            self.closed = True
            self._is_ready()
            for stream in list(self._replies):
                self._end(stream, problem)
            self._on_change()

    def _is_ready(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def _flush(self) -> None:
        data = self._http.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)


def _head(headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Status and headers proper. The state machine has checked that there is one status, a number."""
    status = next(int(value) for name, value in headers if name == b":status")
    return status, [(bytes(name), bytes(value)) for name, value in headers if not name.startswith(b":")]


def _code(code: h2.errors.ErrorCodes | int | None) -> str:
    return code.name if isinstance(code, h2.errors.ErrorCodes) else f"error {code}"
