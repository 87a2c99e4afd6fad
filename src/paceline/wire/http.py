"""What HTTP handlers take and give: the request, the reply, the signature of a handler."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec

Headers = Sequence[tuple[bytes, bytes]]


class HttpRequest(msgspec.Struct):
    """One complete request. Header names are lower case; repeated ones stay apart and in order."""

    method: str
    target: str  # as sent: path and query
    headers: list[tuple[bytes, bytes]]
    body: bytes
    keep_alive: bool = True
    chunks: bool = True  # the client knows chunked bodies (HTTP/1.0 does not)
    closed: bool = False  # the client went away before the reply was complete

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
    incomplete answer.
    """

    status: int
    headers: Headers = ()
    body: bytes | list[bytes] | AsyncIterator[bytes] = b""


Handler = Callable[[HttpRequest], Reply | Awaitable[Reply]]
