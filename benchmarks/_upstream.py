"""The provider of the gateway's benchmarks: the same answer to everybody at once, or a stream at a steady pace."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator

import uvloop

from benchmarks._rig import REPLY
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve
from paceline.wire.sse import encode

JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream")]
EVENT = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "delta": {"content": "word "}}],
}
_EVENT = encode(json.dumps(EVENT).encode())
_DONE = encode(b"[DONE]")


async def events(count: int, gap_s: float, received_s: float) -> AsyncIterator[bytes]:
    """`count` events `gap_s` apart, then the end. The first says how long this server held the request, and when."""
    await asyncio.sleep(gap_s)
    now_s = time.monotonic()
    yield b": held %.9f at %.9f\n\n" % (now_s - received_s, now_s) + _EVENT
    for _ in range(count - 1):
        await asyncio.sleep(gap_s)
        yield _EVENT
    yield _DONE


def handler(count: int, gap_s: float) -> object:
    """A handler that streams `count` events when asked to."""
    plain = Reply(200, JSON, REPLY).encoded()

    def handle(request: HttpRequest) -> Reply:
        if b'"stream": true' in request.body:
            return Reply(200, SSE, events(count, gap_s, time.monotonic()))
        return plain

    return handle


async def main(count: int, gap_s: float) -> None:
    server = await serve(handler(count, gap_s), "127.0.0.1", 0)  # type: ignore[arg-type]
    print(json.dumps({"port": server.port}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, float(sys.argv[2]) if len(sys.argv) > 2 else 0.0))
