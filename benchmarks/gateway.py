"""CPU the gateway spends on one call: cached hit, miss, pass-through and stream, beside nginx answering from memory.

    python -m benchmarks.gateway --json [--quick]

Timed: user + system CPU of the gateway process (`paceline serve`, spans and cost on) over N chat calls on 32 kept-alive
connections from this process, divided by N; the upstream is a server of our own in another process. nginx, where
installed, answers the same bytes with `return 200`. Rounds of all targets alternate; the figure is the median.
"""

import argparse
import asyncio
import contextlib
import json
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import uvloop

from paceline.store.folder import create_run
from paceline.wire.client import Connection, connect, encode_request
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve
from paceline.wire.sse import encode

CONNECTIONS = 32
CHAT = "/v1/chat/completions"
TEXT = "The order was sent on Monday and should arrive within three days. " * 6
REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 200, "completion_tokens": 99, "total_tokens": 299},
    }
).encode()
EVENT = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "choices": [{"index": 0, "delta": {"content": "word "}}],
}
EVENTS = [encode(json.dumps(EVENT).encode())] * 20 + [encode(b"[DONE]")]
JSON = (b"content-type", b"application/json")


def call(number: int | None, *, stream: bool = False) -> bytes:
    """A chat call of about 1 KB; with a number it is a call nobody made before."""
    question = f"{TEXT * 2} {number or ''}"
    messages = [{"role": "system", "content": "Answer."}, {"role": "user", "content": question}]
    body = json.dumps({"model": "gpt-4o-mini", "stream": stream, "messages": messages}).encode()
    return encode_request("POST", CHAT, "127.0.0.1", [JSON, (b"authorization", b"Bearer sk-x")], body)


async def upstream() -> None:
    """The provider: the same answer to everybody, at once."""

    async def events() -> AsyncIterator[bytes]:
        for event in EVENTS:
            yield event
            await asyncio.sleep(0)

    def handle(request: HttpRequest) -> Reply:
        if b'"stream": true' in request.body:
            return Reply(200, [(b"content-type", b"text/event-stream")], events())
        return Reply(200, [JSON], REPLY)

    server = await serve(handle, "127.0.0.1", 0)
    print(json.dumps({"port": server.port}), flush=True)
    await asyncio.Event().wait()


class User:
    """One connection that sends its requests one after the other."""

    def __init__(self, connection: Connection, requests: Iterator[bytes]) -> None:
        self.connection = connection
        self.done = asyncio.Event()
        self.failed = 0
        self._requests = requests

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Count refusals."""
        self.failed += status != 200

    def on_body(self, data: bytes) -> None:
        """Not looked at."""

    def on_done(self, error: Exception | None, reusable: bool) -> None:
        """Count failures and go on."""
        self.failed += error is not None
        self.next()

    def next(self) -> None:
        """Send the next request, if there is one."""
        request = next(self._requests, None)
        if request is None or self.connection.closed:
            self.done.set()
        else:
            self.connection.start(request, self)


async def drive(port: int, requests: Iterator[bytes]) -> None:
    """Send everything over CONNECTIONS connections; any failure ends the benchmark."""
    users = [User(await connect("127.0.0.1", port), requests) for _ in range(CONNECTIONS)]
    for user in users:
        user.next()
    for user in users:
        await user.done.wait()
        user.connection.abort()
    assert not sum(user.failed for user in users), "requests failed"


def cpu_us_per_request(process: psutil.Process, port: int, count: int, number: int | None, *, stream: bool) -> float:
    """One round: CPU of the process and its children over `count` requests; `number`: each one is new."""
    requests = [call(None if number is None else number + i, stream=stream) for i in range(count)]
    watched = [process, *process.children(recursive=True)]
    before_s = sum(sum(p.cpu_times()[:2]) for p in watched)
    uvloop.run(drive(port, iter(requests)))
    return (sum(sum(p.cpu_times()[:2]) for p in watched) - before_s) / count * 1e6


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[tuple[psutil.Process, int]]:
    """A process that announces its port as a JSON line."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield psutil.Process(process.pid), json.loads(process.stdout.readline())["port"]
    finally:
        process.terminate()
        process.communicate()


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[tuple[psutil.Process, int] | None]:
    """nginx with one worker that answers REPLY from its configuration; None where it is not installed."""
    binary = shutil.which("nginx", path="/usr/sbin:/usr/local/bin:/usr/bin:/opt/homebrew/bin")
    if binary is None:
        yield None
        return
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    answer = REPLY.decode().replace("'", "")
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/log crit;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; client_body_temp_path {folder}; keepalive_requests 10000000;\n"
        f" server {{ listen 127.0.0.1:{port};\n"
        f"  location / {{ default_type application/json; return 200 '{answer}'; }} }} }}"
    )
    process = subprocess.Popen([binary, "-c", str(folder / "nginx.conf"), "-p", str(folder)], stderr=subprocess.DEVNULL)
    try:
        uvloop.run(_listening(port))
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        process.wait()


async def _listening(port: int) -> None:
    for _ in range(200):
        try:
            (await connect("127.0.0.1", port)).abort()
        except OSError:
            await asyncio.sleep(0.02)
        else:
            return
    raise TimeoutError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer requests and rounds")
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.upstream:
        uvloop.run(upstream())
    result = measure(*((4000, 3) if args.quick else (10_000, 7)))
    if args.json:
        print(json.dumps(result))
    else:
        for target, rounds in result["rounds"].items():
            print(f"{target:<24} {statistics.median(rounds):7.1f} us CPU a request")


def measure(count: int, rounds: int) -> dict[str, Any]:
    """All targets in alternating rounds of `count` requests."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        policy = folder / "sharing.toml"
        policy.write_text("single_flight = true\n[cache]\nenabled = true\n")
        _, port = stack.enter_context(started([sys.executable, "-m", "benchmarks.gateway", "--upstream"]))
        serving = [sys.executable, "-m", "paceline", "serve", "--json", "--port", "0"]
        serving += ["--upstream", f"http://127.0.0.1:{port}"]
        runs = [str(create_run(folder, name).path) for name in ("passing", "sharing")]
        passing = stack.enter_context(started([*serving, "--run", runs[0]]))
        sharing = stack.enter_context(started([*serving, "--run", runs[1], "--policy", str(policy)]))
        static = stack.enter_context(nginx(folder))
        targets = {
            "hit": (sharing, False, False),
            "pass": (passing, False, False),
            "miss": (sharing, True, False),
            "stream_pass_21_events": (passing, False, True),
            **({"nginx_static": (static, False, False)} if static else {}),
        }
        figures: dict[str, list[float]] = {target: [] for target in targets}
        for turn in range(-1, rounds):  # the first round warms up
            for target, ((process, target_port), new, stream) in targets.items():
                number = (turn + 2) * count if new else None
                figure = cpu_us_per_request(process, target_port, count if turn >= 0 else 500, number, stream=stream)
                if turn >= 0:
                    figures[target].append(round(figure, 1))
        rss_mb = round(sharing[0].memory_info().rss / 1e6, 1)
    return {
        "benchmark": "gateway",
        "cpu_us_per_request": {target: statistics.median(values) for target, values in figures.items()},
        "rounds": figures,
        "requests_per_round": count,
        "connections": CONNECTIONS,
        "gateway_rss_mb": rss_mb,
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": psutil.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
