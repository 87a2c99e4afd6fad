"""Sources: which body a user, or an arrival, sends next."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from paceline.load import replay
from paceline.load.checks import FINE, Headers, Verdict
from paceline.load.conversation import source_for
from paceline.load.scenario import REPLAY, Body, Scenario, draws, sequence


@dataclass(frozen=True, slots=True)
class Share:
    """One process's share of a scenario: every `of`-th request and user, from `part` on."""

    part: int = 0
    of: int = 1


class Source(Protocol):
    """What to send next. `user` is -1 for arrivals, which belong to nobody."""

    def next(self, user: int) -> Body | None:
        """The next body for this user; None: there is no more."""

    @property
    def failed(self) -> Mapping[str, int]:
        """How often each check failed."""

    def answered(self, body: Body, user: int, status: int, headers: Headers, data: bytes) -> Verdict:
        """What a body that `wants_answer` was answered (at most 1 MB; status 0: not at all), and how it is judged."""


class Drawn:
    """The scenario's fixed sequence, whoever asks."""

    def __init__(self, bodies: Iterator[Body]) -> None:
        self._bodies = bodies
        self.failed: dict[str, int] = {}

    def next(self, user: int) -> Body | None:
        """The next of the sequence."""
        del user
        return next(self._bodies, None)

    def some(self, count: int) -> list[Body]:
        """The next `count`, or what is left of them."""
        return list(itertools.islice(self._bodies, count))

    def answered(self, body: Body, user: int, status: int, headers: Headers, data: bytes) -> Verdict:
        """Nothing follows from it."""
        del body, user, status, headers, data
        return FINE


def source_of(scenario: Scenario, count: int | None, share: Share) -> Source:
    """This process's share of the scenario's bodies; `count` of the whole scenario, None without end.

    Raises:
        ConfigError, InputError: something is wrong with a body file.
    """
    source = source_for(scenario, count, share.part, share.of)
    if source is not None:
        return source
    bodies: Iterator[Body]
    if scenario.arrivals == REPLAY:
        bodies = replay.bodies(scenario)
    else:
        bodies = draws(scenario) if count is None else iter(sequence(scenario, count))
    if share.of > 1:
        bodies = itertools.islice(bodies, share.part, None, share.of)
    first = next(bodies, None)  # reads the files: their errors belong before the start
    return Drawn(bodies if first is None else itertools.chain([first], bodies))
