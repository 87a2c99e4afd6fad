"""LoopThread: one event loop in a thread of its own, shared by the sync transports of the process.

It starts with the first `lease`, ends with the last `release` and at the interpreter's exit, and is left behind by a
fork: the child starts its own.
"""

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any, TypeVar

from paceline.errors import UpstreamBroken

T = TypeVar("T")

_CLOSED = "the transport was closed before the answer was complete"
_STOP_S = 2.0  # a thread that does not end is left to the interpreter; it is a daemon


class LoopThread:
    """The loop and its thread."""

    def __init__(self) -> None:
        self.leases = 0
        self.loop = _new_loop()
        self._lock = threading.Lock()
        self._stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()  # owned here until they are done
        self._thread = threading.Thread(target=self._main, name="paceline-transport", daemon=True)
        self._thread.start()

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run in the loop and wait. RuntimeError in the loop's own thread, where waiting would stop the loop.

        UpstreamBroken when the loop is stopped meanwhile. Interrupted (by KeyboardInterrupt, say) it cancels what it
        waits for.
        """
        if threading.get_ident() == self._thread.ident:
            main.close()
            msg = "a sync call from the transport's own loop would wait for itself; use the async transport there"
            raise RuntimeError(msg)
        done: SimpleQueue[asyncio.Task[T]] = SimpleQueue()
        begun: list[asyncio.Task[T]] = []

        def start() -> None:
            task = self.loop.create_task(main)
            begun.append(task)
            self.own(task)
            task.add_done_callback(done.put)

        with self._lock:  # what is posted before the stop is cancelled by it, nothing is posted after
            if self._stopping:
                main.close()
                raise UpstreamBroken(_CLOSED, target="")
            self.loop.call_soon_threadsafe(start)
        try:
            task = done.get()
        except BaseException:
            self.post(lambda: [task.cancel() for task in begun])
            raise
        if task.cancelled():
            raise UpstreamBroken(_CLOSED, target="")
        return task.result()

    def own(self, task: asyncio.Task[Any]) -> None:
        """Hold a task made in the loop until it is done, and cancel it when the loop stops."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def post(self, what: Callable[[], object]) -> None:
        """Call in the loop, soon. Nothing happens once it is closed."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(what)

    def stop(self) -> None:
        """Cancel what runs, end the loop and the thread."""
        with self._lock:
            self._stopping = True
        self.post(self._cancel_all)
        if threading.get_ident() != self._thread.ident:
            self._thread.join(_STOP_S)

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def _cancel_all(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.own(self.loop.create_task(self._end([*self._tasks])))

    async def _end(self, cancelled: list[asyncio.Task[Any]]) -> None:
        if cancelled:
            await asyncio.wait(cancelled, timeout=_STOP_S / 2)
        await asyncio.sleep(0)  # transports close in the loop's next turn
        self.loop.stop()


_lock = threading.Lock()
_current: LoopThread | None = None
_left_behind: list[object] = []  # of the parent process: its sockets and its poller are not the child's to touch


def lease() -> LoopThread:
    """The process's loop, started if need be; `release` it once."""
    global _current
    with _lock:
        if _current is None:
            _current = LoopThread()
        _current.leases += 1
        return _current


def release(thread: LoopThread) -> None:
    """Give a lease back; the last one stops the loop."""
    global _current
    with _lock:
        thread.leases -= 1
        if thread is not _current or thread.leases:
            return
        _current = None
    thread.stop()


def is_current(thread: LoopThread) -> bool:
    """False in a forked child, where the parent's loop does not run."""
    return thread is _current


def leave_behind(what: object) -> None:
    """Keep what belongs to the parent process from being collected, which would close it there as well."""
    _left_behind.append(what)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # optional for those who run on a system without it
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _stop_at_exit() -> None:
    if _current is not None:
        _current.stop()


def _in_child() -> None:
    global _current, _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    if _current is not None:
        _left_behind.append(_current)
        _current = None


atexit.register(_stop_at_exit)
os.register_at_fork(after_in_child=_in_child)
