"""Answers whose head a server gave before are recognised without parsing it.

Servers that write nothing of the call into the head (vLLM, Ollama, nginx, most of one's own) say the same head again
but for the digits of content-length, and the date once a second. Reading a whole answer with a known head costs about
what parsing it does; it spares what follows from the head, which is worked out once. Anything that differs is parsed.
"""

import re
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,10})\r\n", re.IGNORECASE)
_GIVE_UP, _TRY_AGAIN = 64, 64  # answers in a row that were not known; then one in so many is looked at
_HEAD_BYTES = 8 * 1024


class AnswerHeaders(list[tuple[bytes, bytes]]):
    """Headers of an answer (lower-case names), shared by answers with the same head: not to be modified.

    `notes`: what somebody worked out from them, content-length aside, for the next answer with the same head.
    """

    __slots__ = ("notes",)

    def __init__(self, headers: Any = ()) -> None:
        super().__init__(headers)
        self.notes: dict[Any, Any] = {}


class KnownAnswers:
    """The last head of one server, in the form that recognises it."""

    __slots__ = ("_after", "_after_bytes", "_before", "_headers", "_length", "_start", "_status", "_unknown")

    def __init__(self) -> None:
        self._before = b""  # up to the digits; empty: none is known
        self._after = b""  # from the line break behind them
        self._start = self._after_bytes = self._status = 0
        self._length = b""
        self._headers = AnswerHeaders()
        self._unknown = 0  # in a row

    def read(self, data: bytes) -> tuple[int, AnswerHeaders, bytes] | None:
        """Status, headers and body when `data` is the known head and a whole body, and nothing else."""
        start = self._start
        if not start or not data.startswith(self._before):
            return None
        end = data.find(b"\r", start, start + 11)
        if not data.startswith(self._after, end):  # also when there is no end
            return None
        length = data[start:end]
        body = data[end + self._after_bytes :]
        if not length.isdigit() or len(body) != int(length):
            return None
        self._unknown = 0
        if length != self._length:
            headers = AnswerHeaders(
                (name, length if name == b"content-length" else value) for name, value in self._headers
            )
            headers.notes = self._headers.notes
            self._length, self._headers = length, headers
        return self._status, self._headers, body

    def remember(self, data: bytes, status: int, headers: AnswerHeaders, body: list[bytes]) -> None:
        """`data` was one whole answer on a connection that stays open: know its head the next time."""
        self._unknown += 1
        if self._unknown > _GIVE_UP and self._unknown % _TRY_AGAIN:
            return
        head = data[: len(data) - sum(map(len, body))]
        found = _LENGTH.search(head)
        if found is None or len(head) > _HEAD_BYTES or not head.endswith(b"\r\n\r\n"):
            return
        if any(name == b"transfer-encoding" for name, _ in headers):
            return
        start, end = found.span(1)
        self._before, self._length, self._after = head[:start], head[start:end], head[end:]
        self._start, self._after_bytes = start, len(head) - end
        self._status, self._headers = status, headers
