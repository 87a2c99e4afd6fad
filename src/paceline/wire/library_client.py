"""A client built on httpx, for what the raw one does not reach: proxies. Bytes pass as they are."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.util import find_spec
from typing import Any

from paceline.errors import ConfigError, PacelineError, UpstreamBroken, UpstreamTimeout
from paceline.wire.client import ClientLimits, Timeouts, split_url
from paceline.wire.framing import encode_headers
from paceline.wire.http import Take

_INSTALL = "pip install 'paceline[transport]'"


class LibraryReply:
    """An answer whose head has arrived, as ClientReply."""

    def __init__(self, client: "LibraryClient", response: Any) -> None:
        self.status = response.status_code
        self.headers = [(name.lower(), value) for name, value in response.headers.raw]
        self.done = False
        self._client = client
        self._response = response
        self._pieces = response.aiter_raw()

    def header(self, name: bytes) -> bytes | None:
        """First value of a header (lower-case name)."""
        return next((value for key, value in self.headers if key == name), None)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The next piece of the body, as sent. UpstreamBroken or UpstreamTimeout when it ends early."""
        if self.done:
            raise StopAsyncIteration
        try:
            data: bytes = await self._client.in_time("silence", self._pieces.__anext__)
        except BaseException:  # the end among them
            self.close()
            raise
        return data

    async def forward(self, take: Take) -> None:
        """Give every piece to `take` as it arrives; returns at the end."""
        async for data in self:
            held = take(data)
            if held is not None:
                await held

    async def read(self) -> bytes:
        """The rest of the body. UpstreamBroken when it is larger than the client's limit, or as in iteration."""
        pieces, size, limit_bytes = [], 0, self._client.limits.body_bytes
        try:
            async for data in self:
                pieces.append(data)
                size += len(data)
                if size > limit_bytes:
                    msg = f"{self._client.base_url} sent more than {limit_bytes} bytes"
                    raise UpstreamBroken(msg, target=self._client.base_url)
        finally:
            self.close()
        return b"".join(pieces)

    def close(self) -> None:
        """Give up what has not arrived. Nothing happens when the answer is complete."""
        if not self.done:
            self.done = True
            self._client.give_back(self._response)


class LibraryClient:
    """Requests to one server through a transport of httpx, or of its successor httpx2. Whoever makes it closes it.

    Args:
        base_url: As HttpClient's.
        library: The module whose transport it is.
        transport: `library_transport` makes one; any number of clients may share it.
        owns: Closing the client closes the transport.
        limits: `body_bytes` bounds an answer that is read whole; the rest is the transport's.
        timeouts: As HttpClient's.
    """

    def __init__(
        self,
        base_url: str,
        library: Any,
        transport: Any,
        *,
        owns: bool = True,
        limits: ClientLimits | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.limits = limits or ClientLimits()
        self.timeouts = timeouts or Timeouts()
        split_url(base_url)
        self._library, self._transport, self._owns = library, transport, owns
        self._failures = (library.HTTPError, library.InvalidURL, library.StreamError)
        self._busy = 0
        self._closing: set[asyncio.Task[None]] = set()  # responses being given up; awaited by `close`

    @property
    def busy(self) -> int:
        """Exchanges under way."""
        return self._busy

    @property
    def idle(self) -> int:
        """The library does not say how many connections it keeps: always 0."""
        return 0

    async def request(
        self, method: str, target: str, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
    ) -> LibraryReply:
        """Send a request and wait for the head of its answer. Errors, cancellation and `target` as in HttpClient."""
        encode_headers(headers)  # the same check: no line breaks
        url = self._library.URL(self.base_url + target)
        request = self._library.Request(method, url, headers=list(headers), content=body or None)
        request.extensions["timeout"] = {"connect": self.timeouts.connect_s, "pool": None, "read": None, "write": None}
        self._busy += 1
        try:
            response = await self.in_time("first_byte", lambda: self._transport.handle_async_request(request))
        except BaseException:
            self._busy -= 1
            raise
        return LibraryReply(self, response)

    def give_back(self, response: Any) -> None:
        """Close a response in the background; called by the reply."""
        self._busy -= 1
        task = asyncio.get_running_loop().create_task(_close(response))  # awaited by `close`
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def begin(self, method: str, target: str, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b"") -> None:
        """Nothing: a request of the library needs a task."""

    async def close(self) -> None:
        """Finish giving up answers, and close every connection that is its own to close."""
        if self._closing:
            await asyncio.wait(self._closing)
        if self._owns:
            await self._transport.aclose()

    async def in_time(self, phase: str, start: Callable[[], Any]) -> Any:
        """Await what `start` gives within the phase's limit; the library's errors become ours."""
        limit_s = self.timeouts.first_byte_s if phase == "first_byte" else self.timeouts.silence_s
        try:
            async with asyncio.timeout(limit_s):
                return await start()
        except TimeoutError as error:
            what = "did not begin to answer" if phase == "first_byte" else "fell silent in its answer"
            msg = f"{self.base_url} {what} for {limit_s:g} s"
            raise UpstreamTimeout(msg, target=self.base_url, phase=phase, limit_s=limit_s) from error
        except self._failures as error:
            # That no connection was made is told as the wire does: by an OSError behind it.
            not_made = isinstance(error, self._library.ConnectError | self._library.ProxyError)
            raise self.translate(error) from (OSError(str(error)) if not_made else error)

    def translate(self, error: Exception) -> PacelineError:
        """An error of the library as one of ours."""
        library, limit_s = self._library, self.timeouts.connect_s
        if isinstance(error, library.InvalidURL | library.UnsupportedProtocol):
            return ConfigError(f"{self.base_url} is not a URL that can be asked: {error}")
        if isinstance(error, library.ConnectTimeout):
            msg = f"{self.base_url} could not be reached in {limit_s:g} s"
            return UpstreamTimeout(msg, target=self.base_url, phase="connect", limit_s=limit_s)
        if isinstance(error, library.ConnectError | library.ProxyError):
            return UpstreamBroken(f"{self.base_url} cannot be reached: {error}", target=self.base_url)
        return UpstreamBroken(f"{self.base_url}: {error or type(error).__name__}", target=self.base_url)


def through_httpx(
    base_url: str,
    *,
    proxy: str | None = None,
    limits: ClientLimits | None = None,
    timeouts: Timeouts | None = None,
    tls: ssl.SSLContext | None = None,
) -> LibraryClient:
    """A client with a transport of httpx to itself. `proxy`: http, https or socks5 URL.

    ConfigError: a URL is wrong, or a library is missing (`pip install 'paceline[transport]'`).
    """
    try:
        import httpx
    except ImportError as error:
        msg = f"a proxy needs httpx: {_INSTALL}"
        raise ConfigError(msg) from error
    limits = limits or ClientLimits()
    verify = tls or ssl.create_default_context()
    transport = library_transport(httpx, httpx.AsyncHTTPTransport, proxy=proxy, limits=limits, verify=verify)
    return LibraryClient(base_url, httpx, transport, limits=limits, timeouts=timeouts)


def library_transport(
    library: Any,
    kind: Callable[..., Any],
    *,
    proxy: str | None,
    limits: ClientLimits,
    verify: ssl.SSLContext | bool,
    http2: bool = False,
    trust_env: bool = False,
) -> Any:
    """A transport of the library of this `kind` (sync or async). ConfigError: a part is missing, or `proxy` no URL."""
    bounds = library.Limits(
        max_connections=limits.connections,
        max_keepalive_connections=limits.connections,
        keepalive_expiry=limits.idle_s,
    )
    if http2 and find_spec("h2") is None:  # the library would find out with the first call
        msg = f"HTTP/2 needs the h2 package: {_INSTALL}"
        raise ConfigError(msg)
    try:
        return kind(verify=verify, http2=http2, limits=bounds, proxy=proxy, trust_env=trust_env)
    except ImportError as error:
        msg = f"a SOCKS proxy needs the socksio package: {_INSTALL}"
        raise ConfigError(msg) from error
    except (ValueError, library.InvalidURL) as error:
        msg = f"not a proxy's URL: {proxy!r} ({error}); give one like http://proxy.example:3128"
        raise ConfigError(msg) from error


async def _close(response: Any) -> None:
    with contextlib.suppress(Exception):  # it is given up: how it ends concerns nobody
        await response.aclose()
