"""What progress says, on a terminal and off it."""

import io

import msgspec
import pytest

from paceline.load.driver import Snapshot
from paceline.load.progress import seconds_left, share_done, show_progress, status_line


def snapshot(**changes: object) -> Snapshot:
    return Snapshot(
        **{  # type: ignore[arg-type]
            "scenario": "chat",
            "elapsed_s": 3.0,
            "duration_s": None,
            "requests": 500,
            "sent": 130,
            "done": 120,
            "errors": 0,
            "rate_per_s": 40.0,
            "p50_s": 0.042,
            "p95_s": 3.41,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "chat: 120 of 500, 40.0/s, p50 42.0 ms, p95 3.41 s, 0 errors, 10 s left"),
        ({"errors": 1}, "chat: 120 of 500, 40.0/s, p50 42.0 ms, p95 3.41 s, 1 error, 10 s left"),
        ({"done": 0, "rate_per_s": 0.0, "p50_s": None, "p95_s": None}, "chat: 0 of 500, 0.0/s, 0 errors"),
        (
            {"requests": None, "duration_s": 60.0},
            "chat: 120, 40.0/s, p50 42.0 ms, p95 3.41 s, 0 errors, 57 s left",
        ),
    ],
    ids=["by requests", "one error", "just begun", "by time"],
)
def test_the_line_says_where_it_stands(changes: dict[str, object], says: str) -> None:
    assert status_line(snapshot(**changes)) == says


def test_the_end_is_whichever_comes_first() -> None:
    assert seconds_left(snapshot(duration_s=8.0)) == 5.0
    assert seconds_left(snapshot(duration_s=30.0)) == 9.5


def test_the_share_stays_within_0_and_1() -> None:
    assert share_done(snapshot()) == 0.24
    assert share_done(snapshot(requests=None, duration_s=2.0)) == 1.0
    assert share_done(snapshot(requests=None, duration_s=None)) == 0.0


def test_off_a_terminal_lines_are_few() -> None:
    stream = io.StringIO()
    with show_progress(stream) as show:
        for _ in range(100):
            show(snapshot())
    assert stream.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_line_is_live() -> None:
    stream = Terminal()
    with show_progress(stream) as show:
        show(snapshot())
    assert "120 of 500" in stream.getvalue()
    assert msgspec.json.encode(snapshot())
