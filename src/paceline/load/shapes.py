"""Load shapes: when requests are due and users are there, for a level that steps, ramps and bursts.

The level over time is a polyline with jumps. Arrivals are those of an even (or random) stream of one a second, moved to
where the area under the level reaches their time, so every stretch gets what the level says it should, whatever the
kind of arrivals (time rescaling; Daley and Vere-Jones, An Introduction to the Theory of Point Processes, 7.4).
"""

import math
import random
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from paceline.load.parts import BURST, RAMP, Stage
from paceline.load.scenario import CONSTANT, POISSON, Scenario


class Leg(NamedTuple):
    """A straight piece of the level, from `start_s` on."""

    start_s: float
    duration_s: float
    before: float  # level at its start
    after: float  # level at its end

    @property
    def end_s(self) -> float:
        """When it is over."""
        return self.start_s + self.duration_s

    @property
    def area(self) -> float:
        """Level times time: requests, or user-seconds."""
        return (self.before + self.after) / 2 * self.duration_s

    def level_at(self, at_s: float) -> float:
        """The level at a time within the leg."""
        return self.before + (self.after - self.before) * (at_s - self.start_s) / self.duration_s

    def when(self, area: float) -> float:
        """When the area since the start of the leg has grown to this."""
        slope = (self.after - self.before) / self.duration_s
        # The root of slope/2 t^2 + before t = area in the form that does not cancel, and that slope 0 does not break.
        root = math.sqrt(max(0.0, self.before**2 + 2 * slope * area))
        divisor = self.before + root
        return self.start_s + (min(self.duration_s, 2 * area / divisor) if divisor > 0 else 0.0)


def legs(stages: Sequence[Stage]) -> list[Leg]:
    """The level as straight pieces, one a stage; it may jump between them."""
    found, at_s, level = [], 0.0, 0.0
    for stage in stages:
        before = level if stage.kind == RAMP else stage.level
        found.append(Leg(at_s, stage.duration_s, before, stage.level))
        at_s += stage.duration_s
        level = level if stage.kind == BURST else stage.level
    return found


def level_at(stages: Sequence[Stage], at_s: float) -> float:
    """Users or requests per second asked for at a time; 0 before and after. At a jump: what comes after it."""
    return next((leg.level_at(at_s) for leg in legs(stages) if leg.start_s <= at_s < leg.end_s), 0.0)


def expected_total(stages: Sequence[Stage]) -> float:
    """The area under the level: requests of an open shape, user-seconds of a closed one."""
    return math.fsum(leg.area for leg in legs(stages))


def due_times(scenario: Scenario) -> Sequence[float]:
    """Due times of an open scenario with a shape, in seconds from its start at the provider's pace.

    Ends with the shape or after `requests`. Constant arrivals: the k-th (from 0) is where the area reaches k, so any
    stretch holds its area, give or take one.
    """
    due = array("d")
    limit = scenario.requests or sys.maxsize
    ticks = unit_arrivals(scenario)
    tick, area = next(ticks), 0.0
    for leg in legs(scenario.shape):
        while tick < area + leg.area and len(due) < limit:
            due.append(leg.when(tick - area))
            tick = next(ticks)
        area += leg.area
    return due


def unit_arrivals(scenario: Scenario) -> Iterator[float]:
    """Arrivals at one a second on average, without end: even, or random by the scenario's kind, cv and seed."""
    if scenario.arrivals == CONSTANT:
        at = 0.0
        while True:
            yield at
            at += 1.0
    rng = random.Random(f"{scenario.seed}:arrivals")
    shape = 1.0 if scenario.arrivals == POISSON else 1 / scenario.cv**2
    at = 0.0
    while True:
        at += rng.gammavariate(shape, 1 / shape)
        yield at


class Stay(NamedTuple):
    """One user's time in a closed scenario: no request begins at `stop_s` or later."""

    start_s: float
    stop_s: float


def stays(scenario: Scenario) -> list[Stay]:
    """When each user of a closed scenario starts and stops, ordered by start, at the provider's pace.

    A place in the list is a user: who comes back after a burst is somebody new. Without a shape: all until `duration_s`
    (infinity without one), the first starting at once and one in each further of `users` equal parts of `ramp_s`, at a
    random moment of it that the seed decides. Started at even distances, users of a target whose answers take equally
    long would stay in step: those a whole number of answers apart would send at the same moment for as long as the run
    lasts.
    """
    users = scenario.users or 0
    if not scenario.shape:
        phase = random.Random(f"{scenario.seed}:phase").random
        end_s = math.inf if scenario.duration_s is None else scenario.duration_s
        return [Stay((i + phase() if i else 0.0) * scenario.ramp_s / users, end_s) for i in range(users)]
    return _shaped_stays(legs(scenario.shape))


def _shaped_stays(pieces: Sequence[Leg]) -> list[Stay]:
    """Each time that the level rises above a whole number somebody starts, and stops when it falls to it again.

    So at any time ceil(level) users are there. The one who leaves is the one who came last.
    """
    ended: list[Stay] = []
    there: list[float] = []  # when each one who is there came; the place is the whole number
    for leg in pieces:
        there, left = there[: math.ceil(leg.before)], there[math.ceil(leg.before) :]
        ended += [Stay(came_s, leg.start_s) for came_s in left]
        there += [leg.start_s] * (math.ceil(leg.before) - len(there))
        step = leg.after - leg.before
        for place in range(math.ceil(leg.before), math.ceil(leg.after)):
            there.append(leg.start_s + leg.duration_s * (place - leg.before) / step)
        for place in range(math.ceil(leg.before) - 1, math.ceil(leg.after) - 1, -1):
            gone_s = leg.start_s + leg.duration_s * (place - leg.before) / step
            ended.append(Stay(there.pop(), gone_s))
    ended += [Stay(came_s, pieces[-1].end_s) for came_s in there]
    return sorted(ended)


def spawned(users: int, per_s: float, duration_s: float) -> list[Stage]:
    """Locust's way of saying it: so many users, so many started a second, for so long in all."""
    ramp_s = users / per_s
    if duration_s <= ramp_s:
        return [Stage(kind=RAMP, to_users=max(1, int(per_s * duration_s)), duration_s=duration_s)]
    return [
        Stage(kind=RAMP, to_users=users, duration_s=ramp_s),
        Stage(to_users=users, duration_s=duration_s - ramp_s),
    ]
