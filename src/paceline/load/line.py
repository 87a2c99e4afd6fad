"""Line: one connection to the target and the request it carries."""

import math
import socket
import ssl
import time
from typing import Protocol

from paceline.load.answer import Answer, Heads
from paceline.load.attempt import Attempt, Encoded
from paceline.load.readiness import READABLE, WRITABLE, Readiness
from paceline.store.rows import ERRORS

FINE, TIMEOUT, CONNECTION, STATUS, CHECK = range(len(ERRORS))
READ_BYTES = 64 * 1024
_MOST_READS = 16  # before the others have their turn
_monotonic = time.monotonic


class Owner(Protocol):
    """Who is told how requests end."""

    def ended(self, line: "Line") -> None:
        """The line's request is over: answered, broken or given up. The line can be used again unless it `closed`."""

    def unsent(self, line: "Line", attempt: Attempt) -> None:
        """The server had closed this kept connection before a byte of the answer: send it on another one."""


class Line:
    """A connected non-blocking socket, plain or TLS, and one request at a time. Failures are data: nothing here raises.

    What a request was and how it ended stays readable until the next one begins. Times are on time.monotonic().
    """

    __slots__ = (
        "_answer",
        "_descriptor",
        "_heads",
        "_is_tls",
        "_known",
        "_owner",
        "_readiness",
        "_rest",
        "_socket",
        "busy",
        "cache",
        "closed",
        "encoded",
        "ended_s",
        "error",
        "first_byte_s",
        "index",
        "intended_s",
        "mark",
        "quick",
        "recv",
        "response_bytes",
        "reused",
        "send",
        "started_s",
        "status",
        "user",
    )

    def __init__(self, connected: socket.socket, readiness: Readiness, heads: Heads, owner: Owner) -> None:
        self._socket = connected
        self.recv, self.send = connected.recv, connected.send
        self._readiness, self._owner = readiness, owner
        self._heads, self._known = heads, heads.known
        self._descriptor = connected.fileno()
        self._answer: Answer | None = None  # on the long way
        self._rest: memoryview | None = None  # of a request that did not fit the socket's buffer
        self.closed = self.busy = False
        self.quick = False  # nothing of an answer that may go the short way has come yet (see short_way.py)
        self.reused = False  # the server may have closed this connection before the request
        self.index, self.user = 0, -1
        self.mark = b""
        self.intended_s = self.started_s = self.ended_s = 0.0
        self.first_byte_s = math.nan
        self.status = self.error = self.cache = self.response_bytes = 0
        self.encoded: Encoded
        self._is_tls = isinstance(connected, ssl.SSLSocket)
        readiness.watch(self._descriptor, self)

    @property
    def answer(self) -> Answer | None:
        """The answer to the last request where it took the long way."""
        return self._answer

    def begin(
        self,
        index: int,
        encoded: Encoded,
        mark: bytes,
        intended_s: float,
        user: int,
        started_s: float = 0.0,
        *,
        reused: bool = True,
    ) -> None:
        """Send a request (see Attempt). `reused`: the server may have closed this connection meanwhile."""
        self.index, self.encoded, self.mark, self.intended_s, self.user = index, encoded, mark, intended_s, user
        self.reused = reused
        self._answer = None
        self.error = self.status = 0
        self.busy = True
        self.quick = encoded.is_short and not self._is_tls
        data = b"".join((encoded.before, mark, encoded.after))
        self.started_s = started_s or _monotonic()
        try:
            sent = self.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        except OSError:
            self.broken()
            return
        if sent < len(data):
            self.keep_rest(data, sent)

    def keep_rest(self, data: bytes, sent: int) -> None:
        """Send what did not fit the socket's buffer when there is room again."""
        self.quick = False
        self._rest = memoryview(data)[sent:]
        self._readiness.watch_writing(self._descriptor, on=True)

    def give_up(self, error: int) -> None:
        """End the request as a failure of this kind, and the connection with it."""
        if self.busy:
            self._fail(error)

    def close(self) -> None:
        """Close the connection; a request under way is forgotten. Safe to repeat."""
        if not self.closed:
            self.closed = True
            self.busy = self.quick = False
            self._rest = None
            self._readiness.forget(self._descriptor)
            self._socket.close()

    # --- called when the socket is ready -------------------------------------------------------------------------

    def ready(self, event: int, now_s: float) -> None:
        """The socket can be read or written (see Watched)."""
        if event & WRITABLE:
            self._write()
        if event == WRITABLE:
            return
        to_the_end = self._is_tls or event & ~(READABLE | WRITABLE)  # TLS comes by the record; or the end has come
        for _ in range(_MOST_READS):
            if self.closed:
                return
            size = self._read(now_s)
            if size is None or not (to_the_end or size == READ_BYTES):
                return
        self._readiness.tell_again(self._descriptor)

    def _read(self, now_s: float) -> int | None:
        """How many bytes came; None: nothing is left to read."""
        try:
            data = self.recv(READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError:
            self.broken()
            return None
        self.received(data, now_s)
        return len(data)

    def received(self, data: bytes, now_s: float) -> None:
        """These bytes came, or none: the end."""
        if self._answer is None and self.busy:
            end = data.find(b"\r\n\r\n")
            head = self._known.get(data[:end])
            if head is not None and len(data) == head.whole_bytes and self.encoded.is_short and self._rest is None:
                self.ended_s = now_s
                self.response_bytes = head.body_bytes
                self.first_byte_s = now_s if head.body_bytes else math.nan
                self.status = head.status
                self.cache = head.cache
                if head.status >= 400:
                    self.error = STATUS
                self.busy = self.quick = False
                self._owner.ended(self)
                return
        self._take_long_way(data, now_s)

    def _write(self) -> None:
        try:
            while self._rest is not None:
                sent = self.send(self._rest)
                self._rest = self._rest[sent:] if sent < len(self._rest) else None
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return
        except OSError:
            self.broken()
            return
        self._readiness.watch_writing(self._descriptor, on=False)

    # --- the long way --------------------------------------------------------------------------------------------

    def _take_long_way(self, data: bytes, now_s: float) -> None:
        if not self.busy:  # closed while idle; or bytes nobody asked for, which would become the next answer
            self.close()
            return
        answer = self._answer
        if not data:
            if answer is not None and answer.end():
                self._complete(answer, now_s)
            else:
                self.broken()
            return
        is_first = answer is None
        if answer is None:
            encoded = self.encoded
            self.quick = False
            answer = self._answer = Answer(self._heads.cache_names, no_body=encoded.no_body, keep=encoded.wants_answer)
        try:
            answer.feed(data, now_s)
        except ValueError:
            self._fail(CONNECTION)
            return
        if answer.complete:
            if is_first and self.encoded.is_short:
                self._heads.learn(data, answer)
            self._complete(answer, now_s)

    def _complete(self, answer: Answer, now_s: float) -> None:
        self._take(answer)
        self.ended_s = now_s
        if answer.status >= 400:
            self.error = STATUS
        self.busy = False
        if not answer.reusable or self._rest is not None:  # answered before all of the request was sent
            self.close()
        self._owner.ended(self)

    def broken(self) -> None:
        """The connection was lost."""
        if self.busy and self.reused and self._answer is None:
            attempt = Attempt(self.index, self.encoded, self.mark, self.intended_s, self.user, self.started_s)
            self.close()
            self._owner.unsent(self, attempt)
        elif self.busy:
            self._fail(CONNECTION)
        else:
            self.close()

    def _fail(self, error: int) -> None:
        self.close()
        self.ended_s = _monotonic()
        self.error = error
        if self._answer is not None:
            self._take(self._answer)
        else:
            self.first_byte_s = math.nan
            self.response_bytes = self.cache = 0
        self._owner.ended(self)

    def _take(self, answer: Answer) -> None:
        self.status, self.cache = answer.status, answer.cache
        self.first_byte_s, self.response_bytes = answer.first_byte_s, answer.body_bytes
