"""Turns recording on in this process. Called by `_site/sitecustomize.py` before any line of the service runs."""

import atexit
import os
import signal
from pathlib import Path
from typing import Any

from paceline.clock import RunClock
from paceline.record import instrument
from paceline.record.hooks import ImportHook
from paceline.record.recorder import Recorder

RUN, OFFSET, SERVICE, APP_ROOT, GATEWAY = (
    "PACELINE_RUN",
    "PACELINE_CLOCK_OFFSET_NS",
    "PACELINE_SERVICE",
    "PACELINE_APP_ROOT",
    "PACELINE_GATEWAY",
)


def start() -> Recorder | None:
    """Start recording as the environment says; None when it says nothing. Raises whatever goes wrong."""
    run = os.environ.get(RUN)
    if not run:
        return None
    offset = os.environ.get(OFFSET)
    recorder = Recorder(
        Path(run),
        RunClock(int(offset) if offset else None),
        service=os.environ.get(SERVICE) or "app",
        app_root=os.environ.get(APP_ROOT) or str(Path.cwd()),
        gateway=os.environ.get(GATEWAY) or None,
    )
    instrument.threads.instrument(recorder)
    ImportHook(instrument.patches(recorder)).install()
    os.register_at_fork(after_in_child=recorder.after_fork)
    _flush_before_every_end(recorder)
    return recorder


def _flush_before_every_end(recorder: Recorder) -> None:
    """Exits that skip `atexit`: multiprocessing's children (`os._exit`), uvicorn's re-raised SIGTERM."""
    atexit.register(recorder.close)
    hard_exit, raise_signal = os._exit, signal.raise_signal

    def _exit(status: int) -> Any:
        recorder.flush()
        hard_exit(status)

    def raise_after_flush(signum: int) -> None:
        recorder.flush()
        raise_signal(signum)

    os._exit = _exit
    signal.raise_signal = raise_after_flush
