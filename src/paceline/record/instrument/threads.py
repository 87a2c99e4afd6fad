"""Context across threads: work handed to a thread or an executor joins the trace of whoever handed it over."""

import functools
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from threading import Thread
from typing import Any, cast

from paceline.record.frames import handed_over
from paceline.record.recorder import Recorder, current


def instrument(recorder: Recorder) -> None:
    """Patch Thread.start and ThreadPoolExecutor.submit (which `run_in_executor` uses)."""
    start, submit = Thread.start, cast("Any", ThreadPoolExecutor.submit)
    if hasattr(start, "__paceline__"):
        return

    @functools.wraps(start)
    def start_in_context(self: Thread) -> None:
        if current.get() is not None:
            token = handed_over.set(recorder.frames.chain())
            try:
                # `run` on the instance: subclasses that override it and plain targets alike.
                self.run = functools.partial(copy_context().run, self.run)  # type: ignore[method-assign]
            finally:
                handed_over.reset(token)
        start(self)

    @functools.wraps(submit)
    def submit_in_context(self: ThreadPoolExecutor, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        if current.get() is None:
            return submit(self, fn, *args, **kwargs)
        token = handed_over.set(recorder.frames.chain())
        try:
            context = copy_context()
        finally:
            handed_over.reset(token)
        return submit(self, context.run, fn, *args, **kwargs)

    start_in_context.__paceline__ = start  # type: ignore[attr-defined]
    Thread.start = start_in_context  # type: ignore[method-assign]
    ThreadPoolExecutor.submit = submit_in_context  # type: ignore[method-assign, assignment]
