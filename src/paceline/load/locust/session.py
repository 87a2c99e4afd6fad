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
from typing import Any

import gevent
import locust.main
import msgspec
from locust.contrib.fasthttp import FastHttpUser
from locust.user.users import HttpUser

from paceline.errors import PacelineError
from paceline.load.locust.failure import described, refusal, refused
from paceline.load.locust.messages import Ended, SessionOrder, SessionProgress
from paceline.load.locust.recording import Recording
from paceline.load.locust.seams import Seams
from paceline.load.orders import Failed
from paceline.store.folder import disk_errors, open_run

_BEAT_S = 0.05
_BEATS_PER_SNAPSHOT = 5
_LEAST_FOR_RATIO = 100  # requests before the share of errors counts
_MAIN = "locust.main"
_LOGGERS = (_MAIN, "locust.runners", "locust.user.task", "locust.user.users")
_MOST_SHOWN = 20  # different exceptions counted apart, whose tracebacks are printed
_HTTP_USERS = (HttpUser, FastHttpUser)


class Session:
    """Listens to Locust, from its start to its end."""

    def __init__(self, order: SessionOrder, messages: int) -> None:
        self.order, self._messages = order, messages
        self.recording = Recording(open_run(order.run, salvage=True), order.scenario)
        self._seams = Seams(self.recording)
        self.stopped: str | None = None
        self.failed: Failed | None = None
        self.most_users = 0
        self.exceptions: dict[str, int] = {}  # in tasks and on_start, by what was said
        self.said: list[str] = []  # errors of Locust's own before it began
        self.environment: Any = None
        self._parent = os.getppid()

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
        """Users are about to be spawned; again, when a locustfile starts its own runner anew."""
        if self._seams.is_over:
            self._seams.is_over = False
            return
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
        self._seams.is_over = True

    def on_request(self, **event: Any) -> None:
        """A request has ended."""
        seen = self._seams.seen_now()
        if seen is None:
            self.recording.ends(-1, None, event)
        else:
            self.recording.ends(seen.number, seen.pace, event, seen.last)
        limit, done, errors = self.order.stop_error_ratio, self.recording.done, self.recording.errors
        if limit is not None and self.stopped is None and done >= _LEAST_FOR_RATIO and errors > limit * done:
            self._quit(f"{errors} of {done} requests failed, above the bound of {limit:g}")

    def on_user_error(self, exception: BaseException, tb: Any = None, **_: Any) -> None:
        """A task, or on_start, raised something."""
        said = described(exception, tb, self.order.locustfile)
        if said not in self.exceptions and len(self.exceptions) >= _MOST_SHOWN:
            said = "others"
        self.exceptions[said] = self.exceptions.get(said, 0) + 1

    def hook(self) -> None:
        """Listen, and watch what there is no event for."""
        events = locust.events
        events.init.add_listener(self.on_init)
        events.test_start.add_listener(self.on_test_start)
        events.test_stopping.add_listener(self.on_test_stopping)
        events.request.add_listener(self.on_request)
        events.user_error.add_listener(self.on_user_error)
        self._seams.install()

    # --- beside --------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Every 0.05 s: how late is this loop? Write records; every fifth time say where it stands."""
        due_s = time.monotonic()
        for beat in range(1 << 62):
            now_s = time.monotonic()
            if beat:
                self._seams.late(now_s - due_s)
            try:
                with disk_errors(self.recording.run.path):
                    self.recording.flush()
            except PacelineError as error:
                self._fail(error)
            runner = self.environment.runner
            self.most_users = max(self.most_users, runner.user_count)
            if beat % _BEATS_PER_SNAPSHOT == 0:
                snapshot = self.recording.snapshot(self.order.duration_s, runner.user_count)
                self.say(SessionProgress(msgspec.Raw(snapshot.encode()), self.most_users))
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


def main() -> None:
    """Run Locust as its own command would, recorded."""
    import numpy as np  # noqa: F401 - 0.1 s that must not fall into the run

    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=SessionOrder)
    session = Session(order, int(sys.argv[1]))
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
