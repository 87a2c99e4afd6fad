"""Conversations, and bodies with variables or checks: what a user sends when it depends on values and answers."""

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from paceline.errors import ConfigError
from paceline.load import replay
from paceline.load.checks import Checker, Headers, Verdict
from paceline.load.parts import Checks
from paceline.load.scenario import Body, Endpoint, Question, Scenario, body_keys, draws, picks, questions
from paceline.load.templates import HeaderTemplate, JsonTemplate, PathTemplate
from paceline.load.variables import Variables

_OWN = frozenset({"user", "turn"})  # known without being declared


class _Sheet(NamedTuple):
    """A body with its templates compiled."""

    body: Body
    path: PathTemplate
    headers: list[tuple[str, HeaderTemplate]]
    data: JsonTemplate
    names: frozenset[str]

    @classmethod
    def of(cls, body: Body) -> "_Sheet":
        path, data = PathTemplate(body.path), JsonTemplate(body.data)
        headers = [(name, HeaderTemplate(value)) for name, value in body.headers]
        names = path.names.union(data.names, *(value.names for _, value in headers))
        return cls(body, path, headers, data, names)

    def filled(self, values: Mapping[str, Any], key_fields: list[str]) -> Body:
        """The body to send; the very same object when it has no holes."""
        if not self.names:
            return self.body
        data = self.data.render(values)
        path = self.path.render(values).decode()
        # The path is in the key, as asking for another session is another question; the endpoint's name stays.
        key, text_key = body_keys(f"{self.body.method} {path}", data, key_fields)
        return Body(
            endpoint=self.body.endpoint,
            method=self.body.method,
            path=path,
            headers=tuple((name, value.render(values).decode()) for name, value in self.headers),
            data=data,
            key=key,
            text_key=text_key,
            place=self.body.place,
            wants_answer=self.body.wants_answer,
            once=True,
        )


class _Sheets:
    """The sheets of a scenario's bodies, compiled and checked before the start."""

    def __init__(self, key_fields: list[str]) -> None:
        self._key_fields = key_fields
        self._sheets: dict[int, _Sheet] = {}  # by identity; they hold their bodies

    def add(self, asked: list[Question], known: frozenset[str], where: str) -> None:
        """Compile these. Raises ConfigError where a name is unknown."""
        for body in itertools.chain.from_iterable(question.variants for question in asked):
            sheet = _Sheet.of(body)
            if unknown := sheet.names - known - _OWN:
                has = ", ".join(sorted(known | _OWN))
                hole = f"{{{{{min(unknown)}}}}}"
                msg = f"{where} uses {hole}, which is neither a variable nor captured before; known: {has}"
                raise ConfigError(msg)
            self._sheets[id(body)] = sheet

    def fill(self, body: Body, values: Mapping[str, Any]) -> Body:
        """One of the bodies added, with the values in it."""
        return self._sheets[id(body)].filled(values, self._key_fields)


class Filled:
    """The scenario's mix, with variables in the bodies and checks on the answers. For users and for arrivals.

    `count` requests of the whole scenario, None without end. Of several processes each takes its share: every `of`-th
    request from `part` on. Errors of the constructor are those of `sequence` and `Variables`.
    """

    def __init__(self, scenario: Scenario, count: int | None, part: int = 0, of: int = 1) -> None:
        self._sheets: _Sheets | None = None
        drawn = draws(scenario) if scenario.trace is None else replay.bodies(scenario)
        if scenario.variables and scenario.trace is None:
            known = frozenset(scenario.variables)
            self._sheets = _Sheets(scenario.key_fields)
            pools = [questions(endpoint, scenario, i) for i, endpoint in enumerate(scenario.endpoints)]
            for endpoint, asked in zip(scenario.endpoints, pools, strict=True):
                self._sheets.add(asked, known, f"a body of {endpoint.method} {endpoint.path}")
            drawn = draws(scenario, pools)
        self._bodies: Iterator[Body] = itertools.islice(drawn, part, count, of)
        self._variables = Variables(scenario.variables, scenario.seed, part, of)
        self._checkers = [
            Checker(scenario.checks if endpoint.checks is None else endpoint.checks) for endpoint in scenario.endpoints
        ]
        first = next(self._bodies, None)  # reads the files: their errors belong before the start
        if first is not None:
            self._bodies = itertools.chain([first], self._bodies)
        self.failed: Counter[str] = Counter()

    def next(self, user: int) -> Body | None:
        """The next of the sequence, filled in."""
        body = next(self._bodies, None)
        if body is None or self._sheets is None:
            return body
        return self._sheets.fill(body, {**self._variables.draw(), "user": user, "turn": 0})

    def answered(self, body: Body, user: int, status: int, headers: Headers, data: bytes) -> Verdict:
        """Whether it passed its checks; `status` 0: there was no answer."""
        del user
        if not status:
            return Verdict()
        verdict, _ = self._checkers[body.place].judge(status, headers, data)
        return _counted(self.failed, verdict)


class _Talk:
    """Where one user's conversation stands."""

    __slots__ = ("pending", "turn", "values")

    def __init__(self, values: dict[str, Any]) -> None:
        self.values, self.turn, self.pending = values, 0, False


class Conversations:
    """Each user goes through the scenario's turns, again and again, with new values of the variables every time.

    A turn that fails (no answer, a failed check, nothing to capture) ends the conversation: the next turns would ask
    for something that is not there. `requests` of the scenario counts turns. Errors as in `Filled`.
    """

    def __init__(self, scenario: Scenario, part: int = 0, of: int = 1) -> None:
        self._variables = Variables(scenario.variables, scenario.seed, part, of)
        self._sheets = _Sheets(scenario.key_fields)
        self._bodies: list[Iterator[Body]] = []
        self._checkers: list[Checker] = []
        known = frozenset(scenario.variables)
        for place, turn in enumerate(scenario.turns):
            endpoint = Endpoint(
                method=turn.method,
                path=turn.path,
                bodies=turn.bodies,
                headers=turn.headers,
                checks=turn.checks,
            )
            inline = None if turn.body is None else msgspec.json.encode(turn.body)
            asked = [_as_turn(q, turn.name) for q in questions(endpoint, scenario, place, inline)]
            self._sheets.add(asked, known, f"turn {place + 1} ({turn.name or f'{turn.method} {turn.path}'})")
            drawn = picks(asked, scenario, random.Random(f"{scenario.seed}:{place}"))
            self._bodies.append(itertools.islice(drawn, part, None, of))
            checks = scenario.checks if turn.checks is None else turn.checks
            self._checkers.append(Checker(checks, turn.captures))
            known |= frozenset(turn.captures)
        self._talks: dict[int, _Talk] = {}
        self._left = None if scenario.requests is None else len(range(part, scenario.requests, of))
        self.failed: Counter[str] = Counter()

    def next(self, user: int) -> Body | None:
        """The user's next turn; None when the scenario's `requests` are spent."""
        if self._left is not None:
            if not self._left:
                return None
            self._left -= 1
        talk = self._talks.get(user)
        if talk is None or talk.pending:
            talk = self._talks[user] = _Talk(self._variables.draw())
        talk.pending = True
        body = next(self._bodies[talk.turn])
        return self._sheets.fill(body, {**talk.values, "user": user, "turn": talk.turn + 1})

    def answered(self, body: Body, user: int, status: int, headers: Headers, data: bytes) -> Verdict:
        """Take what the answer says, and go on or begin anew; `status` 0: there was no answer."""
        talk = self._talks[user]
        if not status:
            del self._talks[user]
            return Verdict()
        verdict, captured = self._checkers[body.place].judge(status, headers, data)
        talk.pending = False
        talk.turn += 1
        talk.values.update(captured)
        if verdict.error is not None or talk.turn == len(self._bodies):
            del self._talks[user]
        return _counted(self.failed, verdict)


def source_for(scenario: Scenario, count: int | None, part: int = 0, of: int = 1) -> Filled | Conversations | None:
    """What the scenario's requests come from when they have turns, variables or checks; None when they have none."""
    if scenario.turns:
        return Conversations(scenario, part, of)
    checked = any((e.checks or scenario.checks) != Checks() for e in scenario.endpoints)
    return Filled(scenario, count, part, of) if checked or scenario.variables or scenario.trace else None


def _as_turn(question: Question, name: str | None) -> Question:
    """Every turn wants its answer, since the next one depends on it."""
    changes: dict[str, Any] = {"wants_answer": True, **({} if name is None else {"endpoint": name})}
    return Question([dataclasses.replace(body, **changes) for body in question.variants], question.weight)


def _counted(failed: Counter[str], verdict: Verdict) -> Verdict:
    if verdict.check is not None:
        failed[verdict.check] += 1
    return verdict
