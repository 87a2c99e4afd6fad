"""Seams: where Locust has no event for what a recording needs to know. Runs inside Locust's process."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
from locust.clients import HttpSession
from locust.contrib.fasthttp import LocustUserAgent
from locust.user.task import TaskSet
from locust.user.users import User

from paceline.load.locust.pacing import Pace
from paceline.load.locust.recording import TRACE_HEADER, Recording

S = TypeVar("S")
_MOST_SPAWNERS = 8  # greenlets between a request and its user's own


class Seen:
    """What is known of one user."""

    __slots__ = ("last", "number", "pace")

    def __init__(self, number: int) -> None:
        self.number = number
        self.pace = Pace()  # of whatever it waited in last
        self.last: str | None = None  # trace header


class Seams:
    """Watches users wait and send."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._users = 0
        self._pacings: dict[int, float | None] = {}  # by the identity of a wait_time
        self.is_over = False  # users are being ended: what is late from now on says nothing of the requests

    def install(self) -> None:
        """Watch the pauses between tasks, and send a trace header with every request."""
        sleep, prepare, urlopen = TaskSet._sleep, HttpSession.prepare_request, LocustUserAgent.urlopen  # noqa: SLF001

        # The one place where every pause between tasks goes through; there is no event for it (Locust 2.47).
        def watched(tasks: Any, pause_s: float) -> None:
            pacing_s, holder = self._pacing_of(tasks)
            seen, pace = self.seen(tasks.user), _of(holder, "_paceline_pace", Pace)
            now_s = time.monotonic()
            due_s = pace.pauses(now_s, pause_s, pacing_s)
            seen.pace = pace
            sleep(tasks, pause_s)
            woke_s = time.monotonic()
            self._recording.waited_s += pause_s
            self.late(woke_s - (now_s + pause_s))
            pace.wakes(woke_s, due_s)

        def prepared(session: Any, request: Any) -> Any:
            ready = prepare(session, request)
            if TRACE_HEADER not in ready.headers:
                ready.headers[TRACE_HEADER] = self._sends()
            return ready

        def opened(agent: Any, url: Any, method: Any = "GET", headers: Any = None, *args: Any, **kwargs: Any) -> Any:
            headers = {} if headers is None else headers  # the same object: of an error it is all that is reported
            if TRACE_HEADER not in headers:
                headers[TRACE_HEADER] = self._sends()
            return urlopen(agent, url, method, headers, *args, **kwargs)

        TaskSet._sleep = watched  # noqa: SLF001
        HttpSession.prepare_request, LocustUserAgent.urlopen = prepared, opened

    def late(self, late_s: float) -> None:
        """This process was so much later than it wanted to be."""
        if not self.is_over:
            self._recording.health.late(late_s)

    def seen(self, user: Any) -> Seen:
        """What is known of a user; users are numbered as they are first seen."""

        def new() -> Seen:
            self._users += 1
            return Seen(self._users - 1)

        return _of(user, "_paceline_seen", new)

    def seen_now(self) -> Seen | None:
        """Of the user whose greenlet this is, or was started by; None: nobody's, or it has just been told to end."""
        greenlet: Any = gevent.getcurrent()
        for _ in range(_MOST_SPAWNERS):
            args = getattr(greenlet, "args", None)
            if args and isinstance(args[0], User):
                return self.seen(args[0])
            spawner = getattr(greenlet, "spawning_greenlet", None)
            greenlet = spawner() if spawner is not None else None
            if greenlet is None:
                break
        return None

    def _sends(self) -> str:
        seen = self.seen_now()
        if seen is None:
            return self._recording.sends(-1, None)
        seen.last = self._recording.sends(seen.number, seen.pace)
        return seen.last

    def _pacing_of(self, tasks: Any) -> tuple[float | None, Any]:
        """The pacing that decides these tasks' pauses, and whose it is."""
        own = type(tasks).wait_time is not TaskSet.wait_time
        holder = tasks if own else tasks.user
        wait_time = type(holder).wait_time
        if id(wait_time) not in self._pacings:
            self._pacings[id(wait_time)] = _pacing_s(wait_time)
        return self._pacings[id(wait_time)], holder


def _of(holder: Any, name: str, make: Callable[[], S]) -> S:
    """An attribute of ours on an object of Locust's, made when it is first asked for."""
    found: S | None = holder.__dict__.get(name)
    if found is None:
        found = make()
        setattr(holder, name, found)
    return found


def _pacing_s(wait_time: Any) -> float | None:
    """The seconds given to constant_pacing, or the inverse of those to constant_throughput; None for other pauses."""
    code, cells = getattr(wait_time, "__code__", None), getattr(wait_time, "__closure__", None)
    is_paced = getattr(wait_time, "__qualname__", "").startswith("constant_pacing.")
    if not is_paced or wait_time.__module__ != "locust.user.wait_time" or code is None or cells is None:
        return None
    value = dict(zip(code.co_freevars, cells, strict=True))["wait_time"].cell_contents
    return float(value) if value > 0 else None
