"""Binding: one httpx module with its responses, streams and errors.

`httpx` and its successor `httpx2` share an interface but no classes. Which one a client uses shows in the request it
hands over, so nothing is imported here: without either module there is no client either.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator
from typing import Any, ClassVar, Protocol

from paceline.errors import ConfigError, Overloaded, UpstreamBroken, UpstreamError, UpstreamTimeout

FAILURES = (UpstreamError, Overloaded)


class Source(Protocol):
    """A body as it comes."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def __anext__(self) -> Awaitable[bytes]:
        """The next piece, or StopAsyncIteration."""

    def aclose(self) -> Coroutine[Any, Any, None]:
        """Give up the rest; any number of times."""


class SyncSource(Protocol):
    """A body for a thread that may wait."""

    def __iter__(self) -> Iterator[bytes]: ...

    def __next__(self) -> bytes:
        """The next piece, or StopIteration."""

    def close(self) -> None:
        """Give up the rest; any number of times."""


class Binding:
    """What the transports make of one module. `binding_of` finds it."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.whole_type: type = module.ByteStream  # of a request whose body is all there
        self._response = module.Response
        about = {"binding": self}
        self._once: Any = type("Once", (_Once, module.AsyncByteStream, module.SyncByteStream), about)
        self._streamed: Any = type("Streamed", (_Streamed, module.AsyncByteStream), about)
        self._streamed_sync: Any = type("StreamedSync", (_StreamedSync, module.SyncByteStream), about)

    def response(self, status: int, headers: Any, body: bytes | Source) -> Any:
        """A response whose body is read as it comes, as from httpx's own transport."""
        stream = self._once(body) if isinstance(body, bytes) else self._streamed(body)
        return self._response(status, headers=headers, stream=stream)

    def sync_response(self, status: int, headers: Any, body: bytes | SyncSource) -> Any:
        """The same for a sync client."""
        stream = self._once(body) if isinstance(body, bytes) else self._streamed_sync(body)
        return self._response(status, headers=headers, stream=stream)

    def error(self, error: Exception) -> Exception:
        """The module's exception for one of ours, so that each SDK retries and raises as it always does."""
        made: Exception = getattr(self.module, error_class(error))(str(error))
        return made


def error_class(error: Exception) -> str:
    """How httpx names a failure."""
    match error:
        case UpstreamTimeout(phase="connect"):
            return "ConnectTimeout"
        case UpstreamTimeout():
            return "ReadTimeout"
        case UpstreamBroken() if isinstance(error.__cause__, OSError):  # the wire's, of a connection not made
            return "ConnectError"
        case UpstreamError():
            return "RemoteProtocolError"
        case Overloaded():
            return "PoolTimeout"
        case ValueError():
            return "LocalProtocolError"
    return "TransportError"


_bindings: dict[type, Binding] = {}


def binding_of(request: object) -> Binding:
    """The binding of the module that made this request. ConfigError when it is no httpx request."""
    found = _bindings.get(type(request))
    return found if found is not None else _bind(type(request))


def _bind(kind: type) -> Binding:
    for base in kind.__mro__:
        module = sys.modules.get(base.__module__.partition(".")[0])
        if module is not None and hasattr(module, "AsyncByteStream"):
            known = (binding for binding in _bindings.values() if binding.module is module)
            _bindings[kind] = binding = next(known, None) or Binding(module)
            return binding
    msg = (
        f"the transport is for clients of httpx and httpx2 and got a {kind.__module__}.{kind.__qualname__}; "
        "pip install 'paceline[transport]'"
    )
    raise ConfigError(msg)


class _Once:
    """A body that is all here. Not the module's ByteStream, which makes a response that was never streamed."""

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data

    def __iter__(self) -> Iterator[bytes]:
        data, self._data = self._data, None
        return iter((data,) if data else ())

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data, self._data = self._data, None
        if not data:
            raise StopAsyncIteration
        return data


class _Streamed:
    """A body as it comes. Dropped without being closed it is closed by the loop, as a generator would be."""

    binding: ClassVar[Binding]

    def __init__(self, source: Source) -> None:
        self._source: Source | None = source
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._source is None:
            raise StopAsyncIteration
        try:
            return await self._source.__anext__()
        except FAILURES as error:
            raise self.binding.error(error) from error

    async def aclose(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            await source.aclose()

    def __del__(self) -> None:
        if self._source is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_drop, self._source)


class _StreamedSync:
    """The same for a sync client."""

    binding: ClassVar[Binding]

    def __init__(self, source: SyncSource) -> None:
        self._source: SyncSource | None = source

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._source is None:
            raise StopIteration
        try:
            return self._source.__next__()
        except FAILURES as error:
            raise self.binding.error(error) from error

    def close(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def __del__(self) -> None:
        self.close()


_closing: set[asyncio.Task[None]] = set()


def close_soon(closing: Coroutine[Any, Any, None]) -> None:
    """Close something nobody waits for; called in its loop."""
    task = asyncio.get_running_loop().create_task(closing)
    _closing.add(task)  # held until it is done: the loop alone would not keep it
    task.add_done_callback(_closing.discard)


def _drop(source: Source) -> None:
    close_soon(source.aclose())
