"""Answers: the heads already known, and the long way for everything that is not."""

import math
import re
from collections.abc import Sequence

import httptools
import msgspec

from paceline.load.token_events import carries_tokens, stated_tokens
from paceline.store.rows import CACHES
from paceline.wire.sse import SseParser

KEPT_BYTES = 1024 * 1024  # of an answer that somebody wants to look at
_HEAD_BYTES = 256 * 1024
_KNOWN_HEADS = 512
_COST = b"x-paceline-cost-usd"  # of one call, as the gateway states it
_CACHE_WORD = re.compile(rb"\b(hit|miss|join)\b", re.IGNORECASE)


class Head(msgspec.Struct, frozen=True, gc=False):
    """What a head says about an answer that fits the short way: framed by its length, kept alive, no stream."""

    prefix: bytes  # the head and the empty line after it
    whole_bytes: int  # of head and body
    body_bytes: int
    status: int
    cache: int  # place in rows.CACHES


class Heads:
    """Heads met before, by their exact bytes: the same bytes say the same, so they are parsed once.

    A server repeats itself but for its Date, once a second. Looking a head up costs 0.2 us, parsing it 3.
    """

    def __init__(self, cache_names: Sequence[str]) -> None:
        self.known: dict[bytes, Head] = {}
        self.cache_names = [name.lower().encode() for name in cache_names]

    def learn(self, data: bytes, answer: "Answer") -> None:
        """Remember the head of an answer that came in one piece, if the short way would have read it the same."""
        end = data.find(b"\r\n\r\n")
        fits = answer.has_length and answer.reusable and not answer.wants_full_record and answer.interim == 0
        if fits and len(data) == end + 4 + answer.body_bytes:
            if len(self.known) >= _KNOWN_HEADS:
                self.known.clear()
            self.known[data[:end]] = Head(data[: end + 4], len(data), answer.body_bytes, answer.status, answer.cache)


class Answer:
    """One answer parsed by httptools: sizes and times, the gaps of a stream, its bytes where they are wanted.

    Callbacks without a docstring are httptools' own.
    """

    __slots__ = (
        "_cache_names",
        "_caches",
        "_events",
        "_in_head",
        "_last_event_s",
        "_no_body",
        "_now_s",
        "_parser",
        "_received_bytes",
        "body",
        "body_bytes",
        "cache",
        "complete",
        "cost_usd",
        "first_byte_s",
        "first_token_s",
        "gaps_s",
        "has_length",
        "headers",
        "interim",
        "is_framed",
        "output_tokens",
        "reusable",
        "status",
        "streams",
    )

    def __init__(self, cache_names: Sequence[bytes], *, no_body: bool, keep: bool) -> None:
        self.status = self.body_bytes = self.cache = self.interim = 0
        self.first_byte_s = math.nan
        self.first_token_s: float | None = None
        self.output_tokens: int | None = None
        self.cost_usd: float | None = None
        self.gaps_s: list[float] = []
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] | None = [] if keep else None
        self.complete = self.reusable = self.streams = self.has_length = self.is_framed = False
        self._cache_names = cache_names
        self._caches: dict[bytes, bytes] = {}
        self._events: SseParser | None = None
        self._last_event_s: float | None = None
        self._no_body = no_body
        self._in_head = True
        self._received_bytes = 0
        self._now_s = 0.0
        self._parser = httptools.HttpResponseParser(self)

    @property
    def wants_full_record(self) -> bool:
        """True when it says more than a row holds: it streamed, or stated what it cost."""
        return self.streams or bool(self.cost_usd)

    def feed(self, data: bytes, now_s: float) -> None:
        """The next bytes, received at `now_s`. ValueError: what came is not an answer to one request."""
        self._now_s = now_s
        self._received_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.reusable = False
            if not self.complete:  # surplus bytes spoil the connection, not the answer
                raise ValueError(str(error.__context__ or error)) from error
        if self._in_head and self._received_bytes > _HEAD_BYTES:
            msg = f"the head is larger than {_HEAD_BYTES} bytes"
            raise ValueError(msg)

    def end(self) -> bool:
        """The connection was closed: True when that ends the answer as it should (a body without a length)."""
        self.complete = self.complete or not (self._in_head or self.is_framed)
        self.reusable = False
        return self.complete

    def on_message_begin(self) -> None:  # noqa: D102
        if self.complete:
            msg = "more was sent than one answer"
            raise ValueError(msg)
        self._caches.clear()
        self.headers.clear()
        self.is_framed = self.has_length = self.streams = False

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        if not self._in_head:  # a trailer
            return
        name = name.lower()
        if self.body is not None:
            self.headers.append((name, value))
        if name == b"content-type":
            self.streams = value.startswith(b"text/event-stream")
        elif name == b"content-length":
            self.is_framed = self.has_length = True
        elif name == b"transfer-encoding":
            self.is_framed = True
        elif name in self._cache_names:
            self._caches[name] = value
        elif name == _COST:
            self.cost_usd = _number(value)

    def on_headers_complete(self) -> None:  # noqa: D102
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue, 103 Early Hints: the real head follows
            self.interim += 1
            return
        self._in_head = False
        self.status = status
        if self.streams:
            self._events = SseParser()
        self.cache = self._find_cache()
        if self._no_body:  # the parser cannot be told, and would wait for one
            self.reusable = self._parser.should_keep_alive()
            self.has_length = False
            self.complete = True

    def on_body(self, data: bytes) -> None:  # noqa: D102
        if self._no_body:
            return
        now_s = self._now_s
        if not self.body_bytes:
            self.first_byte_s = now_s
        self.body_bytes += len(data)
        if self.body is not None and self.body_bytes <= KEPT_BYTES:
            self.body.append(data)
        if self._events is None:
            return
        for event in self._events.feed(data):
            if event == b"[DONE]":
                continue
            if carries_tokens(event):
                if self._last_event_s is None:
                    self.first_token_s = now_s
                else:
                    self.gaps_s.append(now_s - self._last_event_s)
                self._last_event_s = now_s
            elif (stated := stated_tokens(event)) is not None:
                self.output_tokens = stated

    def on_message_complete(self) -> None:  # noqa: D102
        if not self._in_head:
            self.complete = True
            self.reusable = self._parser.should_keep_alive()  # unknown once the parser has gone on

    def _find_cache(self) -> int:
        for name in self._cache_names:
            if name in self._caches:
                word = _CACHE_WORD.search(self._caches[name])
                return CACHES.index(word[1].decode().lower()) if word else 0
        return 0


def _number(value: bytes) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
