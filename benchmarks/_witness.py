"""A server that keeps its own record, to hold a load generator against; in a process and on a core of its own.

    with witness("fixed", 0.05) as url: ...      each request answered 0.05 s after it came
    with witness("stalls", 0.005) as url: ...    the same, but in the last second of every ten nothing is answered
    with witness("streams") as url: ...          50 tokens, the first after 0.2 s, then one each 0.02 s

A request came when the kernel says (SO_TIMESTAMPNS): the time it waited for this process counts as the server's, as it
does for whoever asked. An answer left when it was handed to the kernel. So what the record leaves out is the way there
and back, and nothing of the server. `ask(url)` fetches the record and clears it.

One epoll, blocking on nothing: an event loop between would be most of what a request costs here.
"""

import contextlib
import ctypes
import heapq
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator

import msgspec
import psutil

from benchmarks._rig import cores, pin, prefer

LOADING, SERVING = cores()  # before this process keeps to one of them: then it sees no other, nor do its children
STALL_EVERY_S, STALL_S = 10.0, 1.0
TTFT_S, GAP_S, TOKENS = 0.2, 0.02, 50
_SO_TIMESTAMPNS = 35
_TIME = struct.Struct("@qq")
_ANSWER = b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\n{}"  # ab speaks HTTP/1.0
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Record(msgspec.Struct):
    """Seconds from a whole request to its answer, to its first token, and between tokens."""

    residence_s: list[float] = []
    first_token_s: list[float] = []
    gaps_s: list[float] = []


@contextlib.contextmanager
def witness(kind: str, delay_s: float = 0.0) -> Iterator[str]:
    """The URL of such a server, as long as the context lasts."""
    command = [sys.executable, "-m", "benchmarks._witness", kind, str(delay_s), *map(str, SERVING)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def ask(url: str) -> Record:
    """What the server has seen since it was last asked."""
    with urllib.request.urlopen(f"{url}/record") as reply:  # noqa: S310
        return msgspec.json.decode(reply.read(), type=Record)


class Timer:
    """A descriptor that can be read when it is time: epoll's own waits count whole milliseconds."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self.descriptor: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
        self._set_s = 0.0

    def set(self, due_s: float) -> None:
        """Be ready at this time of time.monotonic()."""
        if due_s != self._set_s:
            self._set_s = due_s
            whole_s = int(due_s)
            value = struct.pack("@qqqq", 0, 0, whole_s, int((due_s - whole_s) * 1e9) + 1)
            self._libc.timerfd_settime(self.descriptor, 1, value, None)

    def clear(self) -> None:
        """It has been noticed."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 8)


class Guest:
    """A connection, and what came of the request under way."""

    __slots__ = ("closed", "received", "socket")

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.received = b""
        self.closed = False

    def read(self) -> float | None:
        """When the request that is now whole came, on time.monotonic(); None: it is not whole."""
        try:
            data, notes, _, _ = self.socket.recvmsg(65536, 64)
        except OSError:
            data, notes = b"", []
        self.closed = not data
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if self.closed or not end:
            return None
        _, found, length = head.lower().partition(b"content-length:")
        if found and len(body) < int(length.partition(b"\r\n")[0]):
            return None
        for level, kind, value in notes:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                whole_s, ns = _TIME.unpack(value)
                return float(time.monotonic() - (time.time() - whole_s - ns / 1e9))
        return time.monotonic()

    def say(self, data: bytes) -> None:
        """Answers are small: whoever does not take them is gone."""
        with contextlib.suppress(OSError):
            self.socket.send(data)


class Server:
    """Reads requests and does what is due. One for each kind of answer."""

    def __init__(self, kind: str, delay_s: float) -> None:
        self.delay_s, self.stalls = delay_s, kind == "stalls"
        self.respond = self.stream if kind == "streams" else self.answer
        self.record = Record()
        self.first_s: float | None = None
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def run(self) -> None:
        """Print the port and serve until killed."""
        listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
        listening.setblocking(False)
        epoll = select.epoll()
        epoll.register(listening.fileno(), select.EPOLLIN)
        guests: dict[int, Guest] = {}
        print(listening.getsockname()[1], flush=True)
        due, timer = self._due, Timer()
        epoll.register(timer.descriptor, select.EPOLLIN)
        while True:
            if due:
                timer.set(due[0][0])
            events = epoll.poll()
            while due and due[0][0] <= time.monotonic():
                heapq.heappop(due)[2]()
            for descriptor, _ in events:
                if descriptor == timer.descriptor:
                    timer.clear()
                    continue
                guest = guests.get(descriptor)
                if guest is None:
                    self._welcome(listening, epoll, guests)
                    continue
                came_s = guest.read()
                if guest.closed:
                    del guests[descriptor]
                    guest.socket.close()
                elif came_s is not None:
                    self._take(guest, came_s)

    def _welcome(self, listening: socket.socket, epoll: select.epoll, guests: dict[int, Guest]) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                connected, _ = listening.accept()
                connected.setblocking(False)
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with contextlib.suppress(OSError):  # not Linux: then the time of reading has to do
                    connected.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
                guests[connected.fileno()] = Guest(connected)
                epoll.register(connected.fileno(), select.EPOLLIN)

    def _take(self, guest: Guest, came_s: float) -> None:
        request, guest.received = guest.received, b""
        if request.startswith(b"GET /record "):
            said = msgspec.json.encode(self.record)
            self.record = Record()
            guest.socket.setblocking(True)  # it may be megabytes
            guest.socket.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(said), said))
            guest.socket.setblocking(False)
            return
        if self.first_s is None:
            self.first_s = came_s
        self.respond(guest, came_s)

    def _at(self, due_s: float, action: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._due, (due_s, self._number, action))

    def answer(self, guest: Guest, came_s: float) -> None:
        """Work that would end within a stall is finished after it, as in a paused process."""

        def say() -> None:
            self.record.residence_s.append(time.monotonic() - came_s)
            guest.say(_ANSWER)

        self._at(self._stall_end(self._stall_end(came_s) + self.delay_s), say)

    def _stall_end(self, now_s: float) -> float:
        """When the stall that `now_s` falls into ends; `now_s` outside one."""
        if not self.stalls:
            return now_s
        phase_s = (now_s - (self.first_s or 0.0)) % STALL_EVERY_S
        return now_s + STALL_EVERY_S - phase_s if phase_s >= STALL_EVERY_S - STALL_S else now_s

    def stream(self, guest: Guest, came_s: float) -> None:
        """Every token at its own time from the start, so that a late one does not delay the next."""
        place, last_s = 0, 0.0

        def say() -> None:
            nonlocal place, last_s
            now_s = time.monotonic()
            if place:
                self.record.gaps_s.append(now_s - last_s)
            else:
                self.record.first_token_s.append(now_s - came_s)
            last_s = now_s
            place += 1
            guest.say(TOKEN)
            if place < TOKENS:
                self._at(came_s + TTFT_S + place * GAP_S, say)
            else:
                guest.say(CLOSING)

        guest.say(_STREAM + OPENING)
        self._at(came_s + TTFT_S, say)


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    same = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini"}
    data = b"data: " + json.dumps({**same, "choices": [choice]}).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


OPENING = _event({"role": "assistant", "content": ""})
TOKEN = _event({"content": "word "})
CLOSING = _event({}, "stop") + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"

if __name__ == "__main__":
    pin(set(map(int, sys.argv[3:])))
    prefer(psutil.Process())
    Server(sys.argv[1], float(sys.argv[2])).run()
