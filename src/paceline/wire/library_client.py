"""A client built on httpx, for what the raw one does not reach: proxies and HTTP/2. Bytes pass as they are."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from paceline.errors import ConfigError, PacelineError, UpstreamBroken, UpstreamTimeout
from paceline.wire.client import ClientLimits, Timeouts, split_url
from paceline.wire.framing import encode_headers
from paceline.wire.http import Take

if TYPE_CHECKING:
    import httpx


class LibraryReply:
    """An answer whose head has arrived, as ClientReply."""

    def __init__(self, client: "LibraryClient", response: "httpx.Response") -> None:
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
    """Requests to one server through httpx. Whoever makes it closes it."""

    def __init__(
        self,
        base_url: str,
        *,
        proxy: str | None = None,
        http2: bool = False,
        limits: ClientLimits | None = None,
        timeouts: Timeouts | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """As HttpClient; `proxy`: http, https or socks5 URL. ConfigError: a URL is wrong, or httpx is missing."""
        self.base_url = base_url.rstrip("/")
        self.limits = limits or ClientLimits()
        self.timeouts = timeouts or Timeouts()
        split_url(base_url)
        self._httpx, self._transport = self._make(proxy, http2, tls)
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
        url = self._httpx.URL(self.base_url + target)
        request = self._httpx.Request(method, url, headers=list(headers), content=body or None)
        request.extensions["timeout"] = {"connect": self.timeouts.connect_s, "pool": None, "read": None, "write": None}
        self._busy += 1
        try:
            response = await self.in_time("first_byte", lambda: self._transport.handle_async_request(request))
        except BaseException:
            self._busy -= 1
            raise
        return LibraryReply(self, response)

    def give_back(self, response: "httpx.Response") -> None:
        """Close a response in the background; called by the reply."""
        self._busy -= 1
        task = asyncio.get_running_loop().create_task(_close(response))  # awaited by `close`
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def begin(self, method: str, target: str, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b"") -> None:
        """Nothing: a request of the library needs a task."""

    async def close(self) -> None:
        """Close every connection."""
        if self._closing:
            await asyncio.wait(self._closing)
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
        except (self._httpx.HTTPError, self._httpx.InvalidURL, self._httpx.StreamError) as error:
            raise self.translate(error) from error

    def translate(self, error: Exception) -> PacelineError:
        """An error of the library as one of ours."""
        httpx, limit_s = self._httpx, self.timeouts.connect_s
        if isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol)):
            return ConfigError(f"{self.base_url} is not a URL that can be asked: {error}")
        if isinstance(error, httpx.ConnectTimeout):
            msg = f"{self.base_url} could not be reached in {limit_s:g} s"
            return UpstreamTimeout(msg, target=self.base_url, phase="connect", limit_s=limit_s)
        if isinstance(error, httpx.ConnectError | httpx.ProxyError):
            return UpstreamBroken(f"{self.base_url} cannot be reached: {error}", target=self.base_url)
        return UpstreamBroken(f"{self.base_url}: {error or type(error).__name__}", target=self.base_url)

    def _make(
        self, proxy: str | None, http2: bool, tls: ssl.SSLContext | None
    ) -> "tuple[Any, httpx.AsyncHTTPTransport]":
        try:
            import httpx
        except ImportError as error:
            msg = "a proxy or HTTP/2 needs httpx: pip install 'paceline[transport]'"
            raise ConfigError(msg) from error
        limits = httpx.Limits(
            max_connections=self.limits.connections,
            max_keepalive_connections=self.limits.connections,
            keepalive_expiry=self.limits.idle_s,
        )
        verify = tls or ssl.create_default_context()
        try:
            transport = httpx.AsyncHTTPTransport(
                verify=verify, http2=http2, limits=limits, proxy=proxy, trust_env=False
            )
        except ImportError as error:  # httpx names the extra of its own that is missing
            raise ConfigError(str(error)) from error
        except (ValueError, httpx.InvalidURL) as error:
            msg = f"not a proxy's URL: {proxy!r} ({error}); give one like http://proxy.example:3128"
            raise ConfigError(msg) from error
        return httpx, transport


async def _close(response: "httpx.Response") -> None:
    with contextlib.suppress(Exception):  # it is given up: how it ends concerns nobody
        await response.aclose()
