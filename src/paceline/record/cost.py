"""What recording costs, measured on this machine: the basis of every overhead figure we state."""

import tempfile
import time
from pathlib import Path

from paceline.clock import RunClock
from paceline.model.span import HTTP_SERVER, LLM
from paceline.record.recorder import Recorder, current


def span_cost_s(spans: int = 2000, rounds: int = 3) -> float:
    """CPU seconds of one span from start to disk, best of `rounds`: start, parent, frames, finish, encode, write.

    The work of the patched libraries' wrappers comes on top: `python -m benchmarks.recorder` measures all of it in a
    running server.
    """
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), RunClock(), "cost", folder)
        recorder._running = True  # noqa: SLF001 no second thread: its work is done and counted here
        best_s = min(_round(recorder, spans) for _ in range(rounds))
        recorder.close()
    return best_s / spans


def _round(recorder: Recorder, spans: int) -> float:
    """A request of `spans` calls, each below it."""
    request = recorder.start_request("POST /", HTTP_SERVER, None)
    outer = current.set(request)
    start_ns = time.thread_time_ns()
    for _ in range(spans):
        span = recorder.start(LLM, "chat model", callers=True)
        span.fields["model"] = "model"
        token = current.set(span)
        current.reset(token)
        recorder.finish(span)
    recorder.flush()
    taken_ns = time.thread_time_ns() - start_ns
    current.reset(outer)
    return taken_ns / 1e9
