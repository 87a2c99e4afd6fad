"""Routing in tests: providers that play scripts on real sockets, in virtual time, and a dispatcher before them."""

import asyncio
import contextlib
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from tests.wire.builders import STREAM_END, STREAM_HEAD, ScriptedServer, Step, answer, chunk, ok

from paceline.accelerate.asked import AskedReader
from paceline.accelerate.caller import Caller
from paceline.accelerate.directives import read_directives
from paceline.accelerate.policy import Policy
from paceline.accelerate.record import CallRecord
from paceline.accelerate.routing.answer import Answer
from paceline.accelerate.routing.gates import Limits
from paceline.accelerate.routing.make import make_dispatcher
from paceline.accelerate.routing.policy import Deployment, RoutingPolicy
from paceline.accelerate.routing.providers import Clients, Providers
from paceline.accelerate.routing.send import Dispatcher
from paceline.accelerate.routing.taken import RouteTaken
from paceline.clock import RunClock
from paceline.wire.client import HttpClient, Timeouts
from paceline.wire.http import HttpRequest
from paceline.wire.sse import encode

T = TypeVar("T")
CHAT = "/v1/chat/completions"
MODEL = "gpt-4o-mini"
JSON = b"content-type: application/json"
_IN_FLIGHT_S = 0.0005  # real: what one socket sent, another of this process has by then
_SCRIPT_S = 3600.0

Moment = Step | float  # a number waits that many (virtual) seconds
Play = Callable[[int, bytes], list[Moment]]  # the n-th request (from 0) and its bytes -> what is played


class _PatientSelector(selectors.DefaultSelector):
    """Time passes only when no socket has anything to say."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        ready = super().select(_IN_FLIGHT_S if timeout is not None else 1.0)
        if not ready and timeout is not None:
            self.now_s += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._patient = _PatientSelector()
        super().__init__(self._patient)

    def time(self) -> float:
        return self._patient.now_s


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run with sockets that are real and seconds that are not."""

    async def bounded() -> T:
        async with asyncio.timeout(_SCRIPT_S):
            return await main

    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(bounded())


def completion(text: str = "Hello there") -> bytes:
    """A chat completion of 1,000 and 500 tokens."""
    return msgspec.json.encode(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": MODEL,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500},
        }
    )


def delta(text: str, role: str | None = None) -> bytes:
    """One event of a streamed completion."""
    said = {"content": text} if role is None else {"role": role, "content": text}
    choices = [{"index": 0, "delta": said, "finish_reason": None}]
    return encode(msgspec.json.encode({"object": "chat.completion.chunk", "choices": choices}))


ROLE = delta("", role="assistant")
EVENTS = [ROLE, delta("Hel"), delta("lo"), encode(b"[DONE]")]
DEAD_URL = "http://127.0.0.1:9"  # the discard port: nobody listens
PLAIN: list[Moment] = [ok(completion(), JSON)]
STREAM: list[Moment] = [STREAM_HEAD, *(chunk(event) for event in EVENTS), STREAM_END]


def says(text: str, after_s: float = 0.0) -> list[Moment]:
    """A plain answer."""
    return [after_s, ok(completion(text), JSON)]


def refuses(status: int, *headers: bytes, code: str | None = None, message: str = "no") -> list[Moment]:
    """An error as OpenAI words it."""
    return [answer(status, msgspec.json.encode({"error": {"message": message, "code": code}}), JSON, *headers)]


class TimedServer(ScriptedServer):
    """Asks `play` what to play to each request."""

    play: Play
    name = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b""
                self.requests.append(head + body)
                for moment in self.play(len(self.requests) - 1, head + body):
                    if isinstance(moment, float):
                        await self._wait(moment, reader)
                    else:
                        await self._play(moment, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _wait(self, seconds: float, reader: asyncio.StreamReader) -> None:
        """Wait, unless the caller hangs up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await reader.read()
                raise ConnectionError("gone")


@contextlib.asynccontextmanager
async def provider(play: Play | list[Moment]) -> AsyncIterator[TimedServer]:
    """A running server; a list is played to every request."""
    server = TimedServer()
    server.play = (lambda number, request: play) if isinstance(play, list) else play
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(server.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def in_turn(*scripts: list[Moment]) -> Play:
    """The n-th script to the n-th request, the last one ever after."""
    return lambda number, request: scripts[min(number, len(scripts) - 1)]


def deployment(name: str, server: ScriptedServer, **fields: Any) -> Deployment:
    """A deployment of MODEL at that server."""
    return Deployment(name=name, url=server.url, **{"model": MODEL, **fields})


@dataclass
class Outcome:
    """What a caller got, and when."""

    answer: Answer
    body: bytes
    took_s: float
    record: CallRecord
    taken: RouteTaken

    @property
    def status(self) -> int:
        return self.answer.status

    @property
    def text(self) -> str:
        """Of a completion."""
        content = msgspec.json.decode(self.body)["choices"][0]["message"]["content"]
        return str(content)


@dataclass
class Bench:
    """A dispatcher and everything it may hold."""

    dispatcher: Dispatcher
    clients: Clients
    limits: Limits | None
    finished: list[CallRecord] = field(default_factory=list)
    records: list[CallRecord] = field(default_factory=list)
    reader: AskedReader = field(default_factory=lambda: AskedReader(Policy(), detail=True))

    def record(self, path: str, body: bytes, headers: list[tuple[bytes, bytes]], caller: Caller | None) -> CallRecord:
        """A record as the engine makes it."""
        said = read_directives("POST", path, headers, caller.tenant if caller is not None else None)
        clock = RunClock()
        record = CallRecord(self.finished.append, clock, "POST", said.path, said.kind, None, clock.ticks_ns())
        record.caller = caller
        record.asked = self.reader.read(said, path, body) if said.dialect is not None else None
        self.records.append(record)
        return record

    async def begin(
        self,
        text: str = "hi",
        *,
        model: str = MODEL,
        path: str = CHAT,
        headers: Mapping[str, str] | None = None,
        caller: Caller | None = None,
        group: str | None = None,
        **fields: Any,
    ) -> tuple[Answer, CallRecord, RouteTaken]:
        """Send a call, wait for its answer to begin."""
        sent = [(b"content-type", b"application/json"), (b"authorization", b"Bearer sk-1")]
        sent += [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        body = msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": text}], **fields})
        record = self.record(path, body, sent, caller)
        if record.asked is not None:
            record.asked = msgspec.structs.replace(record.asked, group=group)
        request = HttpRequest("POST", path, sent, body)
        try:
            answer = await self.dispatcher.send(request, record)
        except BaseException as error:
            record.finish(type(error).__name__)
            raise
        assert record.taken is not None
        return answer, record, record.taken

    async def ask(self, text: str = "hi", **options: Any) -> Outcome:
        """Send a call and take its whole answer."""
        start_s = asyncio.get_running_loop().time()
        answer, record, taken = await self.begin(text, **options)
        body = b"".join([piece async for piece in answer]) if answer.stream else await answer.whole()
        return Outcome(answer, body, asyncio.get_running_loop().time() - start_s, record, taken)

    def settled(self) -> bool:
        """True when nothing is held: no connection, no place in a lane, no permit, no unfinished record."""
        in_flight = getattr(self.limits, "in_flight", 0) + getattr(self.limits, "waiting", 0)
        return (
            self.clients.busy == 0
            and in_flight == 0
            and self.dispatcher.in_flight == 0
            and len(self.finished) == len(self.records)
        )


@contextlib.asynccontextmanager
async def bench(
    policy: RoutingPolicy | None = None,
    *,
    upstream: ScriptedServer | None = None,
    limits: Callable[[], Limits] | None = None,
    gated: bool = False,
    timeouts: Timeouts | None = None,
    environ: Mapping[str, str] | None = None,
    rand: Callable[[], float] | None = None,
) -> AsyncIterator[Bench]:
    """A dispatcher; at the end nothing is held, and no task is left."""
    clients = Clients(lambda url: HttpClient(url, timeouts=timeouts))
    held = limits() if limits is not None else None
    url = upstream.url if upstream is not None else "http://127.0.0.1:9"
    before = asyncio.all_tasks()
    b = Bench(
        make_dispatcher(
            policy or RoutingPolicy(),
            clients,
            Providers.at(url),
            limits=held,
            gated=gated,
            environ=environ or {},
            **({} if rand is None else {"rand": rand}),
        ),
        clients,
        held,
    )
    try:
        yield b
        for _ in range(3):
            await asyncio.sleep(0)
        assert b.settled()
        left = [task for task in asyncio.all_tasks() - before if "serve" not in repr(task.get_coro())]
        assert not left, left
    finally:
        await clients.close()
