"""CPU of one call made with the openai SDK, and with bare httpx, on our transport and on the client's own.

    python -m benchmarks.transport --json [--quick]

Timed: `time.process_time` (all threads) of this process over N chat calls, divided by N; the upstream is a server of
our own in another process that answers at once. Plain calls and streams of 21 events, 1 and 32 at a time (bare httpx
256 as well); ours with every policy off ("off"), and answering from memory ("hit"). "default" is the client's own
transport. "floor" is the client on a transport that gives the answer without doing anything: below it no transport can
go, so `transport_us` is what is left of each figure above it. Rounds of all targets alternate; figures are medians, a
ratio is that of the default to ours.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import psutil
import uvloop

from paceline.accelerate.cache import CachePolicy
from paceline.accelerate.policy import Policy
from paceline.accelerate.transport import AsyncTransport, Transport
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve
from paceline.wire.sse import encode

TEXT = "The order was sent on Monday and should arrive within three days. " * 6
REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 200, "completion_tokens": 99, "total_tokens": 299},
    }
).encode()
EVENT = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}],
}
EVENTS = [encode(json.dumps(EVENT).encode())] * 20 + [encode(b"[DONE]")]
JSON = (b"content-type", b"application/json")
EVENT_STREAM = (b"content-type", b"text/event-stream")
MESSAGES: Any = [{"role": "system", "content": "Answer."}, {"role": "user", "content": TEXT * 2}]
CALL = {"model": "gpt-4o-mini", "messages": MESSAGES}
HITS = Policy(cache=CachePolicy(enabled=True), single_flight=True)

Send = Callable[[bool], Awaitable[None]]
SyncSend = Callable[[bool], None]


async def upstream() -> None:
    """The provider: the same answer to everybody, at once."""

    async def events() -> AsyncIterator[bytes]:
        for event in EVENTS:
            yield event
            await asyncio.sleep(0)

    def handle(request: HttpRequest) -> Reply:
        if b'"stream":true' in request.body.replace(b" ", b""):
            return Reply(200, [EVENT_STREAM], events())
        return Reply(200, [JSON], REPLY)

    server = await serve(handle, "127.0.0.1", 0)
    print(json.dumps({"port": server.port}), flush=True)
    await asyncio.Event().wait()


class Floor(httpx2.AsyncBaseTransport):
    """Answers at once and does nothing."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The answer the upstream would give."""
        if b'"stream":true' in request.content:
            return httpx2.Response(200, headers=[EVENT_STREAM], content=b"".join(EVENTS))
        return httpx2.Response(200, headers=[JSON], content=REPLY)


@contextlib.asynccontextmanager
async def sdk(url: str, transport: httpx2.AsyncBaseTransport | None) -> AsyncIterator[Send]:
    """Calls by the async SDK."""
    http = openai.DefaultAsyncHttpxClient(transport=transport) if transport is not None else None
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-x", http_client=http, max_retries=0) as client:

        async def send(stream: bool) -> None:
            if not stream:
                answer = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
                assert answer.choices[0].message.content == TEXT
                return
            events = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True)
            assert len([event async for event in events]) == 20

        yield send


@contextlib.asynccontextmanager
async def bare(url: str, transport: httpx2.AsyncBaseTransport | None) -> AsyncIterator[Send]:
    """Calls by httpx alone."""
    bodies = {stream: json.dumps({**CALL, "stream": stream}).encode() for stream in (False, True)}
    headers = {"authorization": "Bearer sk-x", "content-type": "application/json"}
    limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=1000)
    async with httpx2.AsyncClient(transport=transport, timeout=60.0, limits=limits) as client:
        where = f"{url}/v1/chat/completions"

        async def send(stream: bool) -> None:
            if not stream:
                answer = await client.post(where, content=bodies[False], headers=headers)
                assert len(answer.content) == len(REPLY)
                return
            async with client.stream("POST", where, content=bodies[True], headers=headers) as events:
                assert sum([len(piece) async for piece in events.aiter_bytes()])

        yield send


async def round_us(send: Send, count: int, at_once: int, *, stream: bool) -> float:
    """CPU a call over `count` of them."""
    left = iter(range(count))

    async def user() -> None:
        for _ in left:
            await send(stream)

    gc.collect()
    before_s = time.process_time()
    await asyncio.gather(*(user() for _ in range(at_once)))
    return (time.process_time() - before_s) / count * 1e6


def sync_round_us(send: SyncSend, count: int, at_once: int, *, stream: bool) -> float:
    """The same for the sync SDK, each user a thread."""
    left = iter(range(count))

    def user() -> None:
        for _ in left:
            send(stream)

    gc.collect()
    before_s = time.process_time()
    with ThreadPoolExecutor(at_once) as threads:
        for done in [threads.submit(user) for _ in range(at_once)]:
            done.result()
    return (time.process_time() - before_s) / count * 1e6


@contextlib.contextmanager
def sync_sdk(url: str, transport: Transport | None) -> Iterator[SyncSend]:
    """Calls by the sync SDK."""
    http = openai.DefaultHttpxClient(transport=transport) if transport is not None else None
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-x", http_client=http, max_retries=0) as client:

        def send(stream: bool) -> None:
            if not stream:
                answer = client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
                assert answer.choices[0].message.content == TEXT
                return
            assert len(list(client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True))) == 20

        yield send


async def measure_async(url: str, count: int, rounds: int) -> dict[str, list[float]]:
    """All async targets in alternating rounds."""
    figures: dict[str, list[float]] = {}
    async with contextlib.AsyncExitStack() as stack:
        open_in = stack.enter_async_context
        targets = {
            "sdk.default": await open_in(sdk(url, None)),
            "sdk.off": await open_in(sdk(url, AsyncTransport())),
            "sdk.hit": await open_in(sdk(url, AsyncTransport(HITS))),
            "sdk.floor": await open_in(sdk(url, Floor())),
            "httpx.default": await open_in(bare(url, None)),
            "httpx.off": await open_in(bare(url, AsyncTransport())),
            "httpx.hit": await open_in(bare(url, AsyncTransport(HITS))),
            "httpx.floor": await open_in(bare(url, Floor())),
        }
        for turn in range(-1, rounds):  # the first round warms up
            for name, send in targets.items():
                for stream in (False, True):
                    for at_once in (1, 32, 256) if name.startswith("httpx") else (1, 32):
                        calls = max(at_once, count // 4) if stream else max(at_once, count)
                        figure = await round_us(send, calls if turn >= 0 else at_once, at_once, stream=stream)
                        if turn >= 0:
                            figures.setdefault(_name(name, at_once, stream=stream), []).append(round(figure, 1))
    return figures


def measure_sync(url: str, count: int, rounds: int) -> dict[str, list[float]]:
    """All sync targets in alternating rounds."""
    figures: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        targets = {
            "sync_sdk.default": stack.enter_context(sync_sdk(url, None)),
            "sync_sdk.off": stack.enter_context(sync_sdk(url, Transport())),
            "sync_sdk.hit": stack.enter_context(sync_sdk(url, Transport(HITS))),
        }
        for turn in range(-1, rounds):
            for name, send in targets.items():
                for stream in (False, True):
                    for at_once in (1, 8):
                        calls = max(64, count // 4) if stream else count
                        figure = sync_round_us(send, calls if turn >= 0 else 64, at_once, stream=stream)
                        if turn >= 0:
                            figures.setdefault(_name(name, at_once, stream=stream), []).append(round(figure, 1))
    return figures


def _name(target: str, at_once: int, *, stream: bool) -> str:
    return f"{target}.{'stream' if stream else 'plain'}.{at_once}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer calls and rounds")
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.upstream:
        uvloop.run(upstream())
    result = measure(*((200, 2) if args.quick else (1500, 5)))
    if args.json:
        print(json.dumps(result))
        return
    for name, figure in result["cpu_us_per_call"].items():
        ratio, above = result["ratio_of_default"].get(name, 1.0), result["transport_us"].get(name, "")
        print(f"{name:<28} {figure:8.1f} us CPU a call {ratio:6.2f}x {above:>8} us above the floor")


def measure(count: int, rounds: int) -> dict[str, Any]:
    """Everything, `count` plain calls a round."""
    command = [sys.executable, "-m", "benchmarks.transport", "--upstream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
            figures = uvloop.run(measure_async(url, count, rounds))
            figures |= measure_sync(url, count, rounds)
        finally:
            process.terminate()
    medians = {name: statistics.median(values) for name, values in figures.items()}
    ratios, above_floor = {}, {}
    for name, figure in medians.items():
        client, target, *what = name.split(".")
        floor = medians.get(".".join([client, "floor", *what]))
        if floor is not None and target != "floor":
            above_floor[name] = round(figure - floor, 1)
        if target != "default":
            ratios[name] = round(medians[".".join([client, "default", *what])] / figure, 2)
    return {
        "benchmark": "transport",
        "cpu_us_per_call": medians,
        "ratio_of_default": ratios,
        "transport_us": above_floor,
        "rounds": figures,
        "calls_per_round": count,
        "openai": openai.__version__,
        "httpx2": httpx2.__version__,
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": psutil.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
