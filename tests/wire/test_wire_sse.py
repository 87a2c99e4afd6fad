"""Server-sent events: reading and writing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.wire import sse
from paceline.wire.sse import SseParser, encode

CASES = [
    pytest.param(b"data: a\n\ndata: b\n\n", [b"a", b"b"], id="two-events"),
    pytest.param(b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"], id="crlf"),
    pytest.param(b"data: a\r\rdata: b\r\r", [b"a", b"b"], id="cr"),
    pytest.param(b"data: a\ndata: b\n\n", [b"a\nb"], id="two-lines"),
    pytest.param(b": ping\n\nevent: x\nid: 1\nretry: 5\ndata: a\n\n", [b"a"], id="comments-and-fields"),
    pytest.param(b"data:a\n\ndata:  b\n\n", [b"a", b" b"], id="one-space-is-eaten"),
    pytest.param(b"data\n\n", [b""], id="no-colon"),
    pytest.param(b"\xef\xbb\xbfdata: a\n\n", [b"a"], id="byte-order-mark"),
    pytest.param(b"data: a\n\ndata: cut", [b"a"], id="unfinished"),
    pytest.param(b"\n\n\n", [], id="blank-lines"),
]


@pytest.mark.parametrize(("stream", "payloads"), CASES)
def test_reads_events_cut_anywhere(stream: bytes, payloads: list[bytes]) -> None:
    """The same events come out for the stream at once, byte by byte, and cut in two at every place."""
    assert SseParser().feed(stream) == payloads
    one_by_one = SseParser()
    assert [p for i in range(len(stream)) for p in one_by_one.feed(stream[i : i + 1])] == payloads
    for cut in range(len(stream)):
        parser = SseParser()
        assert parser.feed(stream[:cut]) + parser.feed(stream[cut:]) == payloads


@given(st.lists(st.binary().filter(lambda b: b"\r" not in b)), st.lists(st.integers(1, 40), min_size=1))
def test_what_is_written_is_read_back(payloads: list[bytes], cuts: list[int]) -> None:
    """Encoding then parsing, in pieces of any size, gives the payloads back."""
    stream, parser, read = b"".join(map(encode, payloads)), SseParser(), []
    position = turn = 0
    while position < len(stream):
        size = cuts[turn % len(cuts)]
        read += parser.feed(stream[position : position + size])
        position, turn = position + size, turn + 1
    assert read == payloads


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event has a bound, in one line or many."""
    monkeypatch.setattr(sse, "EVENT_BYTES", 100)
    for piece in (b"x" * 60, b"data: " + b"x" * 60 + b"\n"):
        parser = SseParser()
        parser.feed(piece)
        with pytest.raises(ValueError, match="larger than 100 bytes"):
            parser.feed(piece)
