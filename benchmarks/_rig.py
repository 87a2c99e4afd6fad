"""What the gateway's benchmarks share: processes on a core of their own, the CPU they spend, nginx, and the load.

The load and the upstream run on the first core, what is measured on the last one, so that on two cores neither takes
the other's time. CPU is what the kernel counted for all threads of a process tree, in nanoseconds where it says.
"""

import asyncio
import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import uvloop

from paceline.wire.client import Connection, connect, encode_request

CONNECTIONS = 32
CHAT = "/v1/chat/completions"
TEXT = "The order was sent on Monday and should arrive within three days. " * 6
REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 200, "completion_tokens": 99, "total_tokens": 299},
    }
).encode()
HEADERS = [
    (b"accept", b"application/json"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"user-agent", b"OpenAI/Python 2.54.0"),
    (b"content-type", b"application/json"),
    (b"authorization", b"Bearer sk-x"),
]

Target = tuple[psutil.Process, int]  # what is measured, and its port


def call(number: int | None, *, stream: bool = False) -> bytes:
    """A chat call of about 1 KB; with a number it is a call nobody made before."""
    question = f"{TEXT * 2} {number or ''}"
    messages = [{"role": "system", "content": "Answer."}, {"role": "user", "content": question}]
    body = json.dumps({"model": "gpt-4o-mini", "stream": stream, "messages": messages}).encode()
    return encode_request("POST", CHAT, "127.0.0.1", HEADERS, body)


# Looked at before this process keeps to one of them: from then on it sees no other.
_USABLE = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def cores() -> tuple[set[int], set[int]]:
    """For the load, for what is measured; the same where there is only one core, none where there is no affinity."""
    return set(_USABLE[:1]), set(_USABLE[-1:])


def pin(core: set[int], pid: int = 0) -> None:
    """Keep a process on these cores, with what it will start."""
    if core:
        os.sched_setaffinity(pid, core)


def prefer(*processes: psutil.Process) -> bool:
    """Schedule these before all other work on the machine, so that times are theirs. False: only root may."""
    try:
        for one in processes:
            for each in [one, *one.children(recursive=True)]:
                os.sched_setscheduler(each.pid, os.SCHED_RR, os.sched_param(1))
    except (PermissionError, AttributeError):
        return False
    return True


def starved_s(process: psutil.Process) -> float:
    """Seconds the process was ready and had no core so far; 0 where the kernel does not say."""
    try:
        tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[1]) for task in tasks) / 1e9
    except (OSError, IndexError):
        return 0.0


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process and its children so far."""
    total_s = 0.0
    for one in [process, *process.children(recursive=True)]:
        try:
            tasks = Path(f"/proc/{one.pid}/task").glob("*/schedstat")
            total_s += sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
        except (OSError, IndexError):
            total_s += sum(one.cpu_times()[:2])
    return total_s or sum(process.cpu_times()[:2])


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


async def drive(port: int, requests: Iterable[bytes], *, connections: int = CONNECTIONS) -> None:
    """Send everything over the connections; any failure ends the benchmark."""
    waiting = iter(requests)
    users = [User(await connect("127.0.0.1", port), waiting) for _ in range(connections)]
    for user in users:
        user.next()
    for user in users:
        await user.done.wait()
        user.connection.abort()
    assert not sum(user.failed for user in users), "requests failed"


def cpu_us_per_request(target: Target, requests: Sequence[bytes], *, connections: int = CONNECTIONS) -> float:
    """One round: CPU of the target over these requests, in microseconds for each."""
    process, port = target
    before_s = cpu_s(process)
    uvloop.run(drive(port, requests, connections=connections))
    return (cpu_s(process) - before_s) / len(requests) * 1e6


@contextlib.contextmanager
def process(command: Sequence[str], core: set[int], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process on `core`, ended with the block."""
    load, _ = cores()
    pin(core)
    try:
        started = subprocess.Popen(command, text=True, **options)
    finally:
        pin(load)
    try:
        yield started
    finally:
        for child in psutil.Process(started.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        started.terminate()
        try:
            started.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.communicate()


@contextlib.contextmanager
def announced(command: Sequence[str], core: set[int]) -> Iterator[Target]:
    """A process that announces its port as a JSON line."""
    with process(command, core, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        yield psutil.Process(started.pid), int(json.loads(started.stdout.readline())["port"])


@contextlib.contextmanager
def listening(
    command: Sequence[str], core: set[int], port: int, *, within_s: float = 60.0, **options: Any
) -> Iterator[Target]:
    """A process that listens on `port` after a while and says nothing about it."""
    with process(command, core, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options) as started:
        uvloop.run(_listening(started, port, within_s))
        yield psutil.Process(started.pid), port


async def _listening(started: subprocess.Popen[str], port: int, within_s: float) -> None:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s and started.poll() is None:
        try:
            (await connect("127.0.0.1", port)).abort()
        except OSError:
            await asyncio.sleep(0.02)
        else:
            return
    msg = f"{started.args!r} does not listen on port {port}"
    raise TimeoutError(msg)


def free_port() -> int:
    """A port nobody listens on now."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


def nginx_path() -> str | None:
    """Where nginx is, if it is installed."""
    return shutil.which("nginx", path="/usr/sbin:/usr/local/bin:/usr/bin:/opt/homebrew/bin")


@contextlib.contextmanager
def nginx(folder: Path, core: set[int], *, upstream: int | None = None) -> Iterator[Target]:
    """nginx with one worker: answers REPLY from its configuration, or passes everything on to port `upstream`."""
    binary, port = nginx_path(), free_port()
    assert binary is not None
    folder.mkdir()
    answer = REPLY.decode().replace("'", "")
    location = f"default_type application/json; return 200 '{answer}';"
    if upstream is not None:
        location = "proxy_pass http://upstream; proxy_http_version 1.1; proxy_set_header connection '';"
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/log crit;\n"
        "events { worker_connections 8192; }\n"
        f"http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;\n"
        f" fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
        " keepalive_requests 100000000; keepalive_timeout 600;\n"
        f" upstream upstream {{ server 127.0.0.1:{upstream or 1}; keepalive 128; keepalive_requests 100000000; }}\n"
        f" server {{ listen 127.0.0.1:{port};\n  location / {{ {location} }} }} }}"
    )
    command = [binary, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", str(folder / "log")]
    with listening(command, core, port) as target:
        yield target


@contextlib.contextmanager
def python_upstream(core: set[int]) -> Iterator[Target]:
    """A server of our own that answers REPLY, for machines without nginx and for streams."""
    with announced([sys.executable, "-m", "benchmarks._upstream"], core) as target:
        yield target


def alternate(targets: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every target in turn, `rounds` times after a round of warming up (turn -1)."""
    figures: dict[str, list[float]] = {name: [] for name in targets}
    for turn in range(-1, rounds):
        for name, measure in targets.items():
            figure = measure(turn)
            if turn >= 0:
                figures[name].append(round(figure, 2))
    return figures


def machine() -> dict[str, Any]:
    """Where and on what this ran."""
    return {
        "cpu": f"{platform.machine()}, {psutil.cpu_count()} cores",
        "python": platform.python_version(),
        "load_average": round(psutil.getloadavg()[0], 2),
    }
