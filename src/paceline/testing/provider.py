"""The simulated provider as tests use it: running for the length of a `with` or `async with` block."""

import asyncio
import threading
from types import TracebackType
from typing import Self

from paceline.errors import ConfigError
from paceline.testing.config import ProviderConfig
from paceline.testing.exchange import ApiError
from paceline.testing.service import ProviderCall, Service
from paceline.testing.writing import AnswerRule
from paceline.wire.server import Server, serve

_CODES = {401: "invalid_api_key"}


class SimulatedProvider:
    """The APIs of OpenAI, Anthropic and Gemini over a real socket, with a pace, limits and faults.

    Answers follow from the prompt.

    `async with` serves on the running event loop; `with` serves from a thread of its own, for tests that are not
    async. Leaving the block closes all connections. Each block starts with full limits and nothing seen.

    Args:
        config: Models, limits, faults, keys; default: the presets without limits or faults.
        speed: How many times faster than real it answers and refills its limits.
        seed: The same seed gives the same traffic the same pace, lengths and faults, in whatever order it arrives.
        host: Address to listen on. port: 0 picks a free one.
        keep_calls: How many of the last calls `calls` holds.
        rule: Gets the (role, text) turns of a chat; its text is the answer, None means by the usual rules.

    Raises:
        ValueError: `speed` is not above 0. ConfigError (on entering): the address cannot be had.
    """

    def __init__(
        self,
        config: ProviderConfig | None = None,
        *,
        speed: float = 1.0,
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        keep_calls: int = 10_000,
        rule: AnswerRule | None = None,
    ) -> None:
        if not 0 < speed < float("inf"):
            msg = f"speed must be above 0; got {speed:g}"
            raise ValueError(msg)
        self.config = config or ProviderConfig()
        self.speed = speed
        self.seed = seed
        self._host, self._port = host, port
        self._keep_calls = keep_calls
        self._rule = rule
        self._service = self._new_service()
        self._server: Server | None = None
        self._thread: _Thread | None = None

    @property
    def url(self) -> str:
        """Its address; stays readable after the block."""
        if self._server is None:
            msg = "the provider is not running: use it in a `with` block"
            raise RuntimeError(msg)
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._server.port}"

    @property
    def base_url(self) -> str:
        """What OpenAI's SDK wants: the address with `/v1`. Anthropic's and Google's want `url`."""
        return f"{self.url}/v1"

    @property
    def port(self) -> int:
        """The port really bound."""
        return int(self.url.rpartition(":")[2])

    @property
    def calls(self) -> list[ProviderCall]:
        """The last calls, oldest first, those that were refused included. A copy."""
        return list(self._service.calls)

    @property
    def answered(self) -> int:
        """Model calls that got an answer, or were to get one before a fault."""
        return self._service.answered

    @property
    def refused(self) -> int:
        """Requests that got an error."""
        return self._service.refused

    def fail_next(
        self, status: int, *, times: int = 1, message: str = "told to fail", retry_after_s: float | None = None
    ) -> None:
        """Answer the next `times` model calls with this error status, before anything else is looked at.

        `retry_after_s` (wall time) is told where the provider asked tells it: in `retry-after-ms` and `retry-after`
        (OpenAI), in `retry-after` (Anthropic), in the body (Gemini). Any thread may call it.
        """
        for _ in range(times):
            told = ApiError(status, message, code=_CODES.get(status), retry_after_s=retry_after_s, fault="told")
            self._service.told.append(told)

    async def __aenter__(self) -> Self:
        told = self._service.told
        self._service = self._new_service()
        self._service.told.extend(told)
        self._server = await serve(self._service.handle, self._host, self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            await self._server.close(grace_s=0.0)

    def __enter__(self) -> Self:
        self._thread = _Thread(self)
        self._thread.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.end()

    def _new_service(self) -> Service:
        return Service(self.config, speed=self.speed, seed=self.seed, keep_calls=self._keep_calls, rule=self._rule)


class _Thread:
    """Runs a provider on an event loop of its own."""

    def __init__(self, provider: SimulatedProvider) -> None:
        self._provider = provider
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="simulated-provider", daemon=True)

    def begin(self) -> None:
        """Start, and wait until it serves. Raises what kept it from serving."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def end(self) -> None:
        """Stop, and wait until it has."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        import uvloop  # loads its library, which a program that only imports paceline.testing need not wait for

        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except (ConfigError, OSError) as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with self._provider:
            self._ready.set()
            await self._stop.wait()
