"""Turns: requests that are due go out, and requests that end let the next one go."""

import asyncio
import time
from collections.abc import Callable, Sequence

from paceline.load.address import Address
from paceline.load.answer import Answer, Heads
from paceline.load.attempt import Attempt
from paceline.load.deck import Card, Deck
from paceline.load.guard import guarded
from paceline.load.health import Health
from paceline.load.ledger import Ledger
from paceline.load.line import CONNECTION, FINE, TIMEOUT, Line
from paceline.load.pool import Pool, connection_limit
from paceline.load.readiness import Readiness
from paceline.load.scenario import CLOSED, Scenario
from paceline.load.source import Share, Source
from paceline.store.rows import ERRORS

_ON_TIME_S = 0.001
_GONE = 50  # connection errors in a row: the target is gone
_monotonic = time.monotonic


class Turns:
    """The requests of one process from due to recorded. Everything is a callback of one event loop.

    This is the way for all cases; short_way.py is the same for the commonest, without the calls. No task, future, timer
    or object a request on either. Times are on time.monotonic().
    """

    ledger: Ledger
    deck: Deck
    source: Source

    def __init__(
        self,
        scenario: Scenario,
        address: Address,
        share: Share,
        speed: float,
        *,
        over: Callable[[], None],
        stop: Callable[[str], None],
        fail: Callable[[Exception], None],
    ) -> None:
        """`over` is called when nothing is left to do, `stop` when nothing more is to be sent, `fail` for a bug."""
        self.health = Health()
        self.heads = Heads(scenario.cache_headers)
        self.readiness = Readiness(fail)
        limit = connection_limit(scenario.connections, scenario.users)
        self.pool = Pool(address, max(1, limit // share.of), self.readiness, self.heads, self)
        self.think_s = scenario.think_s / speed
        self.is_closed = scenario.model == CLOSED
        self.stopping = self.closing = False
        self.fired_s = 0.0  # when the last arrival was sent
        self.users = 0  # still at work
        self.sent = self.done = self.errors = 0
        self.failing = 0  # connection errors in a row
        self._share = share
        self._error_limit = scenario.stop_error_ratio
        self._over, self._stop = over, stop
        self._stops_s: Sequence[float] = ()  # when each user stops
        self._first_stop_s = 0.0
        self._arrivals = 0  # of this process
        self._dry = False  # users yet to come would find nothing to send
        self._failed_check: str | None = None  # of the last answer judged
        self._warming: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._turn_again = guarded(self.turn, fail)

    def begin(self, stops_s: Sequence[float], due: int) -> None:
        """The scenario starts: `due` users until these times, or arrivals."""
        self._stops_s = stops_s
        self._first_stop_s = min(stops_s, default=0.0)
        self.users, self._arrivals = (due, 0) if self.is_closed else (0, due)
        self.health.start()

    def is_quick(self, now_s: float) -> bool:
        """True while an answer that is known, and fine, leaves nothing to think about (see short_way.py)."""
        if self.failing or self.closing or self.pool.waiting or self._warming is not None:
            return False
        return not self.is_closed or not (self.stopping or self.think_s or now_s >= self._first_stop_s)

    async def warm_up(self, card: Card, timeout_s: float) -> float | None:
        """Send one request that is not recorded; the seconds it took. None: there is no connection."""
        if not self.pool.idle:
            await self.pool.warm(1)
        line = self.pool.idle_line()
        if line is None:
            return None
        began_s = _monotonic()
        self._warming = self._loop.create_future()
        line.begin(*card, began_s, -1, reused=False)
        await asyncio.wait([self._warming], timeout=timeout_s)
        if line.busy:
            line.give_up(TIMEOUT)
        self._warming = None
        self.pool.release(line)
        return _monotonic() - began_s

    # --- requests that are due -----------------------------------------------------------------------------------

    def arrive(self, _place: int, due_s: float) -> None:
        """An arrival is due."""
        started_s = self.fired_s = _monotonic()
        self.health.late(started_s - due_s)
        card = self.deck.take(-1)
        if card is None:
            self._stop("the source of requests ran dry")
            return
        self.sent += 1
        pool = self.pool
        line = pool.idle_line()
        if line is not None:
            line.begin(*card, due_s, -1, started_s)
        else:
            pool.wait(Attempt(*card, due_s, -1, 0.0))
        if not pool.idle and started_s - due_s < _ON_TIME_S:  # the target needs them, not a hiccup of ours
            pool.spare()

    def join(self, place: int, due_s: float) -> None:
        """A user starts."""
        self.turn(self._share.part + place * self._share.of, due_s)

    def turn(self, user: int, free_s: float, line: Line | None = None) -> None:
        """The user is free since `free_s`, and so may be a line: the next request is theirs, if there is one."""
        card = None
        if free_s < self._stops_s[user] and not self.stopping:
            card = self.deck.take(user)
            self._dry = card is None
        if card is None:
            if line is not None:
                self.pool.release(line)
            self.users -= 1
            self.end_if_over()
            return
        self.sent += 1
        if line is not None and (line.closed or self.pool.waiting):
            self.pool.release(line)
            line = None
        if line is None:
            free_s = min(free_s, _monotonic())  # the loop's timers may be 1 ms early
            line = None if self.pool.waiting else self.pool.idle_line()
        if line is not None:
            line.begin(*card, free_s, user)
        else:
            self.pool.wait(Attempt(*card, free_s, user, 0.0))

    # --- Owner of lines and pool: how requests end ---------------------------------------------------------------

    def ended(self, line: Line) -> None:
        """Record it, then let the user go on or the line wait."""
        if self.closing or self._warming is not None:
            self._end_warming()
            return
        if line.encoded.wants_answer:
            self._judge(line, line.answer)
        self.ledger.add(line, self._failed_check)
        self.done += 1
        if line.error or self.failing:
            self._watch_errors(line.error)
        user = line.user
        if user >= 0 and not line.error and not self.think_s:
            self.turn(user, line.ended_s, line)
            return
        self.pool.release(line)
        if user >= 0:
            self._turn_later(user, line.ended_s)
        elif self.sent == self.done:
            self.end_if_over()

    def unsent(self, line: Line, attempt: Attempt) -> None:
        """A kept-alive connection that the server closed under us is replaced, as any client does."""
        if self.closing or self._warming is not None:
            self._end_warming()
            return
        self.pool.release(line)
        self.pool.send_again(attempt)

    def refused(self, attempt: Attempt) -> None:
        """No connection could be opened."""
        self.end_unsent(attempt, CONNECTION)

    def end_unsent(self, attempt: Attempt, error: int) -> None:
        """It ended before it was sent."""
        if self.closing:
            return
        now_s = _monotonic()
        self.ledger.add_unsent(attempt, now_s, error)
        if attempt.encoded.wants_answer:
            self.source.answered(attempt.encoded.body, attempt.user, 0, (), b"")
        self.done += 1
        self._watch_errors(error)
        if attempt.user >= 0:
            self._turn_later(attempt.user, now_s)
        elif self.sent == self.done:
            self.end_if_over()

    def end_if_over(self) -> None:
        """Say so if nothing is left to do."""
        if self.is_closed:
            over = self.users <= 0 or ((self.stopping or self._dry) and self.sent == self.done)
        else:
            over = self.sent == self.done and (self.stopping or self.sent == self._arrivals)
        if over:
            self._over()

    def _turn_later(self, user: int, ended_s: float) -> None:
        """Through the loop, so that a target which refuses at once cannot recurse."""
        free_s = ended_s + self.think_s
        self._loop.call_later(max(0.0, free_s - _monotonic()), self._turn_again, user, free_s)

    def _end_warming(self) -> None:
        if self._warming is not None and not self._warming.done():
            self._warming.set_result(None)

    def _judge(self, line: Line, answer: Answer | None) -> None:
        """Show the source the answer it wants, and take its verdict; a broken answer is none."""
        body, broken = line.encoded.body, answer is None or line.error in (TIMEOUT, CONNECTION)
        if answer is None or broken:
            self.source.answered(body, line.user, 0, (), b"")
            return
        data = b"".join(answer.body or ())
        verdict = self.source.answered(body, line.user, line.status, answer.headers, data)
        line.error = ERRORS.index(verdict.error)
        self._failed_check = verdict.check

    def _watch_errors(self, error: int) -> None:
        self.failing = self.failing + 1 if error == CONNECTION else 0
        self.errors += error != FINE
        limit = self._error_limit
        if self.failing >= _GONE:
            self._stop(f"{_GONE} connection errors in a row: the target is gone")
        elif limit is not None and self.done >= 100 and self.errors > limit * self.done:
            self._stop(f"{self.errors} of {self.done} requests failed, above the bound of {limit * 100:.3g}%")
