"""The recorder: parents, failures, files, forks and full disks."""

import contextvars
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from paceline.clock import RunClock
from paceline.model.span import CALLERS, EXCEPTION_MESSAGE, HTTP_SERVER, LLM, THREAD, Span
from paceline.record import recorder as module
from paceline.record.recorder import Recorder, current


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    made = Recorder(tmp_path, RunClock(0), "app", str(Path(__file__).parent))
    yield made
    made.close()


def written(folder: Path) -> list[Span]:
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_bytes().splitlines()]
    return [msgspec.json.decode(line, type=Span) for line in lines]


def test_a_span_below_the_current_one_joins_its_trace(recorder: Recorder, tmp_path: Path) -> None:
    parent = recorder.start_request("POST /chat", HTTP_SERVER, "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01")

    def call() -> None:
        current.set(parent)
        recorder.finish(recorder.start(LLM, "chat m", callers=True, cpu=True))

    contextvars.copy_context().run(call)
    recorder.finish(parent)
    recorder.flush()
    child, root = written(tmp_path)
    assert (root.trace_id, root.parent_id) == ("ab" * 16, "cd" * 8)
    assert (child.trace_id, child.parent_id) == (root.trace_id, root.span_id)
    assert child.step == "call"
    assert str(child.attributes[CALLERS]).count("test_record_recorder.py") >= 2
    assert child.cpu_ns is not None
    assert child.cpu_ns >= 0
    assert THREAD in child.attributes
    assert root.start_ns <= child.start_ns <= child.end_ns <= root.end_ns


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "g" * 32 + "-" + "1" * 16 + "-01",
        "00-ab-cd-01",
    ],
)
def test_a_malformed_traceparent_starts_a_new_trace(recorder: Recorder, header: str) -> None:
    span = recorder.start_request("GET /", HTTP_SERVER, header)
    assert span.parent_id is None
    assert span.trace.id > 0


def test_a_failure_keeps_type_and_the_start_of_the_message(recorder: Recorder, tmp_path: Path) -> None:
    recorder.finish(recorder.start(LLM, "chat m"), ValueError("x" * 1000))
    recorder.flush()
    (span,) = written(tmp_path)
    assert (span.status, span.error) == ("error", "ValueError")
    assert span.attributes[EXCEPTION_MESSAGE] == "x" * 200


def test_an_exception_that_cannot_be_printed_is_recorded_all_the_same(recorder: Recorder, tmp_path: Path) -> None:
    class Sour(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    recorder.finish(recorder.start(LLM, "chat m"), Sour())
    recorder.flush()
    assert written(tmp_path)[0].error == "Sour"


def test_finishing_twice_writes_once(recorder: Recorder, tmp_path: Path) -> None:
    span = recorder.start(LLM, "chat m")
    recorder.finish(span)
    recorder.finish(span, ValueError())
    recorder.flush()
    assert [s.status for s in written(tmp_path)] == ["ok"]


def test_a_forked_child_writes_its_own_file_and_only_its_own_spans(recorder: Recorder, tmp_path: Path) -> None:
    recorder._running = True  # no thread: forking with one is what the service must never have to fear
    recorder.finish(recorder.start(LLM, "parent"))
    pid = os.fork()
    if pid == 0:
        recorder.after_fork()
        recorder._running = True
        recorder.finish(recorder.start(LLM, "child"))
        recorder.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    recorder.flush()
    by_file = {
        f.name: [s.name for s in [msgspec.json.decode(line, type=Span) for line in f.read_bytes().splitlines()]]
        for f in tmp_path.glob("*.jsonl")
    }
    assert by_file == {f"spans-app-{os.getpid()}.jsonl": ["parent"], f"spans-app-{pid}.jsonl": ["child"]}
    assert len({s.span_id for s in written(tmp_path)}) == 2


def test_a_disk_that_refuses_is_reported_once_and_tried_again(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder._running = True

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        for _ in range(3):
            recorder.finish(recorder.start(LLM, "chat m"))
            recorder.flush()
    assert capsys.readouterr().err.count("cannot write spans") == 1
    recorder.flush()
    assert len(written(tmp_path)) == 3


def test_what_cannot_be_kept_is_dropped_and_counted(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder._running = True
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    for _ in range(5):
        recorder.finish(recorder.start(LLM, "chat m"))
    recorder.flush()
    assert len(written(tmp_path)) == 2
    assert (tmp_path / f"lost-{os.getpid()}").read_text() == "3"


def test_a_span_long_after_its_request_starts_a_trace_of_its_own(recorder: Recorder) -> None:
    request = recorder.start_request("GET /", HTTP_SERVER, None)
    recorder.finish(request)
    request.trace.ended_ns = request.start_ns - 61_000_000_000
    assert recorder.start(LLM, "late", parent=request).parent_id is None
