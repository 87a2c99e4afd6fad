"""Server-sent events: reading and writing the `data` of events (WHATWG HTML, 9.2)."""

EVENT_BYTES = 16 * 1024 * 1024  # bound of one event
_BOM = b"\xef\xbb\xbf"


class SseParser:
    """Takes a stream in pieces cut anywhere, gives the data of the events that are complete."""

    def __init__(self) -> None:
        self._rest = b""  # an unfinished line
        self._data: list[bytes] = []  # lines of the unfinished event
        self._bytes = 0
        self._after_cr = False
        self._started = False

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by `data`, several `data:` lines of one event joined by a line feed.

        An event cut off by the end of the stream is never given, as the specification asks. ValueError: an event
        larger than EVENT_BYTES.
        """
        if self._after_cr:  # the line feed of a CRLF that was cut in two
            data = data.removeprefix(b"\n")
            self._after_cr = not data and self._after_cr
        if not data:
            return []
        self._after_cr = data.endswith(b"\r")
        lines = (self._rest + data).splitlines(keepends=True)
        self._rest = b"" if lines[-1].endswith((b"\n", b"\r")) else lines.pop()
        events: list[bytes] = []
        for line in lines:
            self._take(line.rstrip(b"\r\n"), events)
        if self._bytes + len(self._rest) > EVENT_BYTES:
            msg = f"an event is larger than {EVENT_BYTES} bytes"
            raise ValueError(msg)
        return events

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if not self._started:
            line = line.removeprefix(_BOM)
            self._started = True
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data = []
                self._bytes = 0
        elif line.startswith(b"data:"):
            value = line[5:]
            self._data.append(value[1:] if value.startswith(b" ") else value)
            self._bytes += len(value)
        elif line == b"data":
            self._data.append(b"")


def encode(data: bytes) -> bytes:
    """One event with this data."""
    return b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"
