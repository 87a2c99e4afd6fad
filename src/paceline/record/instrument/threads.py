"""Context across threads: work handed to a thread or an executor joins the trace of whoever handed it over."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from threading import Thread
from typing import Any, cast

from paceline.record.frames import handed_to_thread
from paceline.record.recorder import Recorder, current


def instrument(recorder: Recorder) -> None:
    """Patch Thread.start and ThreadPoolExecutor.submit (which `run_in_executor` uses)."""
    start, submit = Thread.start, cast("Any", ThreadPoolExecutor.submit)
    if hasattr(start, "__paceline__"):
        return

    @functools.wraps(start)
    def start_in_context(self: Thread) -> None:
        if current.get() is not None:
            # `run` on the instance: subclasses that override it and plain targets alike.
            self.run = _carried(recorder, self.run)  # type: ignore[method-assign]
        start(self)

    @functools.wraps(submit)
    def submit_in_context(self: ThreadPoolExecutor, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return submit(self, fn if current.get() is None else _carried(recorder, fn), *args, **kwargs)

    start_in_context.__paceline__ = start  # type: ignore[attr-defined]
    Thread.start = start_in_context  # type: ignore[method-assign]
    ThreadPoolExecutor.submit = submit_in_context  # type: ignore[method-assign, assignment]


def _carried(recorder: Recorder, work: Callable[..., Any]) -> Callable[..., Any]:
    """The work, to be run on another thread in a copy of this context."""
    context, callers = copy_context(), recorder.frames.chain()

    def run(*args: Any, **kwargs: Any) -> Any:
        handed_to_thread.callers = callers
        try:
            return context.run(work, *args, **kwargs)
        finally:
            handed_to_thread.callers = ()

    return run
