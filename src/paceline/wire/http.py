"""What HTTP handlers take and give: the request, the reply, the signature of a handler."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec

from paceline.wire.framing import encode_whole
from paceline.wire.pending import Pending

Headers = Sequence[tuple[bytes, bytes]]
Take = Callable[[bytes], Awaitable[None] | None]  # takes a piece; says what to await before it wants the next


class HttpRequest(msgspec.Struct):
    """One complete request. Header names are lower case; repeated ones stay apart and in order."""

    method: str
    target: str  # as sent: path and query
    headers: Headers  # shared by requests with the same head: not to be modified
    body: bytes
    keep_alive: bool = True
    chunks: bool = True  # the client knows chunked bodies (HTTP/1.0 does not)
    closed: bool = False  # the client went away before the reply was complete
    peer: str = ""  # address of the client where it is known
    # What a handler worked out from method, target and headers, for the next request with the same: the server gives
    # requests of one connection whose heads are equal (content-length aside) the same dictionary.
    notes: dict[Any, Any] = msgspec.field(default_factory=dict)

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """First value of the header (lower-case name), or None."""
        wanted = name.encode("latin-1")
        for key, value in self.headers:
            if key == wanted:
                return value.decode("latin-1")
        return None


class Reply(msgspec.Struct, frozen=True):
    """What to answer. A list body is sent at once, each piece a chunk.

    An iterator body is sent as it comes (chunked, unless `headers` has a content-length) and closed with `aclose` at
    the end, on failure and when the client leaves; if it raises, the connection is cut so that the client sees an
    incomplete answer. One that also has `forward(take)`, as ClientReply, is asked to hand its pieces on by that: they
    are sent in the moment they arrive, without a turn of the task.
    """

    status: int
    headers: Headers = ()
    body: bytes | list[bytes] | AsyncIterator[bytes] = b""
    wire: bytes | None = None  # head and body as they go to an HTTP/1.1 client that stays connected; see `encoded`

    def encoded(self) -> "Reply":
        """The same reply with its bytes ready, worth it when it is sent more than once: sending is then one write.

        The body must be bytes or a list. Who makes `wire` in another way answers for it: it must say exactly what the
        other fields say, which are used for clients of HTTP/1.0, for HEAD and for the last answer of a connection.
        """
        assert isinstance(self.body, (bytes, list))  # noqa: S101 - an iterator can be sent only once
        wire = encode_whole(self.status, self.headers, self.body)
        return Reply(self.status, self.headers, self.body, wire)


# A Pending is not awaited when it goes well: its reply is sent in the moment it comes, without a task.
Outcome = Reply | Pending[Reply] | Awaitable[Reply]
Handler = Callable[[HttpRequest], Outcome]
