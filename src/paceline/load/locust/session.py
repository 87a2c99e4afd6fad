"""A session of Locust, recorded: Locust's own main program with listeners of ours.

Run as a program, in a process of its own: importing locust patches sockets, threads and time for gevent. A SessionOrder
comes on its standard input; Messages leave on the descriptor that its first argument names. The locustfile's own output
goes where standard output leads.
"""

import inspect
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
import locust.main
import msgspec
from locust.clients import HttpSession
from locust.contrib.fasthttp import FastHttpUser, LocustUserAgent
from locust.user.task import TaskSet
from locust.user.users import HttpUser, User

from paceline.errors import PacelineError
from paceline.load.locust.failure import described, refusal, refused
from paceline.load.locust.messages import Ended, SessionOrder, SessionProgress
from paceline.load.locust.pacing import Pace
from paceline.load.locust.recording import TRACE_HEADER, Recording
from paceline.load.orders import Failed
from paceline.store.folder import disk_errors, open_run

S = TypeVar("S")
_BEAT_S = 0.05
_BEATS_PER_SNAPSHOT = 5
_LEAST_FOR_RATIO = 100  # requests before the share of errors counts
_MAIN = "locust.main"
_LOGGERS = (_MAIN, "locust.runners", "locust.user.task", "locust.user.users")
_MOST_SHOWN = 20  # different exceptions whose tracebacks are printed
_HTTP_USERS = (HttpUser, FastHttpUser)


class _Seen:
    """What is known of one user."""

    __slots__ = ("last", "number", "pace")

    def __init__(self, number: int) -> None:
        self.number = number
        self.pace = Pace()  # of whatever it waited in last
        self.last: str | None = None  # trace header


class Session:
    """Listens to Locust, from its start to its end."""

    def __init__(self, order: SessionOrder, messages: int) -> None:
        self.order, self._messages = order, messages
        self.recording = Recording(open_run(order.run, salvage=True), order.scenario)
        self.stopped: str | None = None
        self.failed: Failed | None = None
        self.most_users = self._users = 0
        self.exceptions: dict[str, int] = {}  # in tasks and on_start, by what was said
        self.said: list[str] = []  # errors of Locust's own before it began
        self.environment: Any = None
        self._is_stopping = False
        self._parent = os.getppid()
        self._pacings: dict[Any, float | None] = {}

    # --- Locust's events -----------------------------------------------------------------------------------------

    def on_init(self, environment: Any, **_: Any) -> None:
        """Locust is set up, nobody is spawned yet."""
        self.environment = environment
        logging.getLogger("locust.stats_logger").setLevel(logging.WARNING)  # its table; ours follows
        gevent.get_hub().exception_stream = None  # every one is logged, too
        gevent.get_hub().loop.update_now()  # stale since locustfile and Locust were imported: timers would end early
        inspect.stack()  # Locust asks that when it stops; the first time takes 0.1 s, in which nothing is received
        options, duration_s = environment.parsed_options, self.order.duration_s
        if environment.shape_class is not None:
            if duration_s:
                gevent.spawn_later(duration_s, environment.runner.quit)
        elif duration_s:
            options.run_time = duration_s  # Locust's own option takes whole seconds only
        elif not options.run_time:
            self._refuse("say how long: --duration S, or give the locustfile a LoadTestShape")

    def on_test_start(self, environment: Any, **_: Any) -> None:
        """Users are about to be spawned."""
        for user_class in environment.user_classes:
            is_plain = user_class.__init__ in [base.__init__ for base in _HTTP_USERS]
            if is_plain and not (environment.host or user_class.host):
                name = user_class.__name__
                self._refuse(f"{name} has no host: give a URL to load, or set `host` in the class")
                return
        self.recording.start()
        gevent.spawn(self._beat)

    def on_test_stopping(self, **_: Any) -> None:
        """Users are about to be ended: what is late from now on says nothing of the requests."""
        self.recording.health.stop()
        self._is_stopping = True

    def on_request(self, **event: Any) -> None:
        """A request has ended."""
        seen = _seen_now()
        if seen is None:  # or its greenlet has just been told to end
            self.recording.ends(-1, None, event)
        else:
            self.recording.ends(seen.number, seen.pace, event, seen.last)
        limit, done, errors = self.order.stop_error_ratio, self.recording.done, self.recording.errors
        if limit is not None and self.stopped is None and done >= _LEAST_FOR_RATIO and errors > limit * done:
            self._quit(f"{errors} of {done} requests failed, above the bound of {limit:g}")

    def on_user_error(self, exception: BaseException, tb: Any = None, **_: Any) -> None:
        """A task, or on_start, raised something."""
        said = described(exception, tb, self.order.locustfile)
        self.exceptions[said] = self.exceptions.get(said, 0) + 1

    # --- seams in Locust -----------------------------------------------------------------------------------------

    def hook(self) -> None:
        """Listen, watch the pauses between tasks, and send a trace header with every request."""
        events = locust.events
        events.init.add_listener(self.on_init)
        events.test_start.add_listener(self.on_test_start)
        events.test_stopping.add_listener(self.on_test_stopping)
        events.request.add_listener(self.on_request)
        events.user_error.add_listener(self.on_user_error)
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
            self.recording.waited_s += pause_s
            self._late(woke_s - (now_s + pause_s))
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

    def _late(self, late_s: float) -> None:
        if not self._is_stopping:
            self.recording.health.late(late_s)

    def _sends(self) -> str:
        seen = _seen_now()
        if seen is None:
            return self.recording.sends(-1, None)
        seen.last = self.recording.sends(seen.number, seen.pace)
        return seen.last

    def seen(self, user: Any) -> _Seen:
        """What is known of a user; users are numbered as they are first seen."""

        def new() -> _Seen:
            self._users += 1
            return _Seen(self._users - 1)

        return _of(user, "_paceline_seen", new)

    def _pacing_of(self, tasks: Any) -> tuple[float | None, Any]:
        """The pacing that decides these tasks' pauses, and whose it is."""
        own = type(tasks).wait_time is not TaskSet.wait_time
        holder = tasks if own else tasks.user
        wait_time = type(holder).wait_time
        if wait_time not in self._pacings:
            self._pacings[wait_time] = _pacing_s(wait_time)
        return self._pacings[wait_time], holder

    # --- beside --------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Every 0.05 s: how late is this loop? Write records; every fifth time say where it stands."""
        due_s = time.monotonic()
        for beat in range(1 << 62):
            now_s = time.monotonic()
            if beat:
                self._late(now_s - due_s)
            try:
                with disk_errors(self.recording.run.path):
                    self.recording.flush()
            except PacelineError as error:
                self._fail(error)
            runner = self.environment.runner
            self.most_users = max(self.most_users, runner.user_count)
            if beat % _BEATS_PER_SNAPSHOT == 0:
                self.say(SessionProgress(self.recording.snapshot(self.order.duration_s), self.most_users))
                self._end_if_pointless(runner)
            due_s = max(due_s + _BEAT_S, now_s)
            gevent.sleep(due_s - time.monotonic())

    def _end_if_pointless(self, runner: Any) -> None:
        if os.getppid() != self._parent:
            self._quit("whoever started it is gone")
        elif self.exceptions and runner.user_count == 0 and runner.state == "running":
            self._quit("no user is left: each ended with an exception")

    def _quit(self, reason: str) -> None:
        self.stopped = self.stopped or reason
        gevent.spawn(self.environment.runner.quit)  # not from here: it waits for greenlets, and this may be one

    def _refuse(self, problem: str) -> None:
        self.failed = Failed("ConfigError", f"{self.order.locustfile}: {problem}")
        raise SystemExit(1)

    def _fail(self, error: PacelineError) -> None:
        self.failed = Failed(type(error).__name__, str(error))
        self._quit(str(error))

    def say(self, message: msgspec.Struct) -> None:
        """Write a message; whoever reads them may be gone."""
        data = msgspec.json.encode(message) + b"\n"
        try:
            while data:
                data = data[os.write(self._messages, data) :]
        except OSError:
            self.stopped = self.stopped or "whoever started it is gone"

    def end(self) -> None:
        """Write the last records and say what came of it."""
        recording, environment = self.recording, self.environment
        cut_off = recording.cut_off
        try:
            with disk_errors(recording.run.path):
                recording.close()
        except PacelineError as error:
            self.failed = self.failed or Failed(type(error).__name__, str(error))
        if self.failed is not None and not recording.done:
            self.say(self.failed)
            return
        info = recording.info(
            users=self.most_users or None,
            stopped=self.stopped or (self.failed and self.failed.message),
            driver=f"Locust {locust.__version__}",
        )
        self.say(
            Ended(
                info=info,
                cut_off=cut_off,
                exit_code=getattr(environment, "process_exit_code", None),
                exceptions=self.exceptions,
            )
        )


class _Listener(logging.Filter):
    """Hears what Locust logs before it begins, and exceptions that it goes on from; lets each through once."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._shown: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to print it."""
        if record.levelno < logging.ERROR:
            return True
        said, error = record.getMessage().strip(), record.exc_info[1] if record.exc_info else None
        if record.name == _MAIN:
            self._session.said.append(said)
            return False
        if error is not None and record.levelno >= logging.CRITICAL:  # such as that of a User that cannot be made
            self._session.on_user_error(error, error.__traceback__)
        what = said.splitlines()[-1] if said else ""
        is_new = what not in self._shown and len(self._shown) < _MOST_SHOWN
        self._shown.add(what)
        return is_new


def _seen_now() -> _Seen | None:
    """Of the user whose greenlet this is, or was started by."""
    greenlet: Any = gevent.getcurrent()
    for _ in range(8):
        args = getattr(greenlet, "args", None)
        if args and isinstance(args[0], User):
            assert _session is not None  # noqa: S101 - set before Locust starts
            return _session.seen(args[0])
        spawner = getattr(greenlet, "spawning_greenlet", None)
        greenlet = spawner() if spawner is not None else None
        if greenlet is None:
            return None
    return None


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


_session: Session | None = None


def main() -> None:
    """Run Locust as its own command would, recorded."""
    import numpy as np  # noqa: F401 - 0.1 s that must not fall into the run

    global _session
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=SessionOrder)
    _session = session = Session(order, int(sys.argv[1]))
    session.hook()
    listener = _Listener(session)
    for name in _LOGGERS:  # a filter, because Locust replaces handlers when it begins
        logging.getLogger(name).addFilter(listener)
    sys.argv = ["locust", *order.arguments]
    try:
        locust.main.main()
    except SystemExit as end:
        if session.environment is None and end.code:
            session.failed = Failed("ConfigError", refusal(session.said, order.locustfile))
    except KeyboardInterrupt:
        session.stopped = "interrupted"
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        session.failed = Failed("ConfigError", f"{where}: SyntaxError: {error.msg}")
    except Exception as error:  # noqa: BLE001 - whatever the locustfile raises when it is read
        session.failed = session.failed or Failed("ConfigError", refused(error, order.locustfile))
    finally:
        session.end()


if __name__ == "__main__":
    main()
