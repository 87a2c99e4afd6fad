"""The knee: the highest rate at which a target keeps its objectives, found by driving it at several rates."""

import math
import ssl
from collections.abc import Awaitable, Callable, Sequence
from statistics import fmean

import msgspec

from paceline.errors import ConfigError
from paceline.load.driver import Drive, drive
from paceline.load.gates import judge
from paceline.load.parts import require
from paceline.load.scenario import OPEN, REPLAY, Scenario
from paceline.load.snapshot import Snapshot, in_step
from paceline.model.figures import MUST, Objective
from paceline.model.request import Request
from paceline.store.folder import RunFolder
from paceline.trace.figures import figures_of

_STEP = 2.0  # factor between rates before the first miss
_NEAR = 2.0  # within this many times the precision of the edge, the majority of several trials decides
_GROWTH = 0.05  # of latency, seconds a second

OBJECTIVE, GENERATOR, HIGHEST, LOWEST, TRIALS = "objective", "generator", "highest rate", "lowest rate", "trials"


class KneeSearch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to look for the knee. Times and rates at the provider's pace."""

    start_per_s: float = 1.0  # the first rate tried; the lowest unless it misses
    most_per_s: float = 100_000.0
    warmup_s: float = 2.0  # driven at the start of each trial, and not judged
    trial_s: float = 10.0  # judged
    least_requests: int = 100  # judged; low rates take longer for it
    precision: float = 0.1  # the interval's upper bound is at most this much above the lower
    repeats: int = 3  # trials of one rate near the edge; odd, so that there is a majority
    most_trials: int = 40

    def __post_init__(self) -> None:
        for name in ("start_per_s", "most_per_s", "trial_s", "precision", "least_requests", "most_trials"):
            require(getattr(self, name) > 0, f"{name} must be above 0", getattr(self, name))
        require(self.warmup_s >= 0, "warmup_s must not be negative", self.warmup_s)
        require(self.repeats >= 1 and self.repeats % 2 == 1, "repeats must be odd", self.repeats)
        require(self.most_per_s >= self.start_per_s, "most_per_s must be at least start_per_s", self.most_per_s)

    def judged_s(self, rate_per_s: float) -> float:
        """How long a trial at this rate is judged."""
        return max(self.trial_s, self.least_requests / rate_per_s)


class Trial(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one rate came to once."""

    rate_per_s: float
    missed: str | None = None  # the objective that was not kept, with what was measured
    trouble: str | None = None  # why the generator spoiled it
    requests: int = 0
    p95_s: float | None = None

    @property
    def held(self) -> bool:
        """The objectives were kept. A generator in trouble makes latencies worse, so what was kept is kept."""
        return self.missed is None


class Knee(msgspec.Struct, frozen=True, kw_only=True):
    """The highest rate that kept the objectives and the lowest that did not; the knee lies between."""

    rate_per_s: float | None  # None: even the lowest rate missed
    above_per_s: float | None  # None: none missed
    limited_by: str  # "objective", "generator", "highest rate", "lowest rate" or "trials"
    why: str  # in one sentence
    trials: list[Trial]


Measure = Callable[[float, int], Awaitable[Trial]]


async def find_knee(search: KneeSearch, measure: Measure) -> Knee:
    """Double the rate until an objective is missed, then halve the interval (of the logarithm) to the precision wanted.

    Near the edge a rate is tried up to `repeats` times and the majority decides, since there chance does. When the
    generator is in trouble at a rate that misses, twice, nothing can be said about that rate, and the search ends.

    Args:
        search: Where to begin and how long to go on.
        measure: Drives one trial: rate, and its number from 0 (for seeds and names).
    """
    hunt = _Hunt(search, measure)
    try:
        rate_per_s = search.start_per_s
        while await hunt.holds(rate_per_s):
            if rate_per_s >= search.most_per_s:
                return hunt.knee(HIGHEST, f"kept at {rate_per_s:g}/s, the highest rate to try")
            rate_per_s = min(rate_per_s * _STEP, search.most_per_s)
        while not hunt.is_precise:
            await hunt.holds(hunt.middle())
    except _SpoiledError as spoiled:
        return hunt.knee(GENERATOR, str(spoiled))
    except _EnoughError:
        return hunt.knee(TRIALS, f"not known more precisely after {search.most_trials} trials")
    if hunt.held_per_s is None:
        return hunt.knee(LOWEST, f"even at {hunt.missed_per_s:g}/s: {hunt.last_miss}")
    return hunt.knee(OBJECTIVE, f"at {hunt.missed_per_s:g}/s: {hunt.last_miss}")


class _SpoiledError(Exception):
    """The generator is the limit."""


class _EnoughError(Exception):
    """All trials are spent."""


class _Hunt:
    """What is known of the edge so far."""

    def __init__(self, search: KneeSearch, measure: Measure) -> None:
        self._search, self._measure = search, measure
        self.held_per_s: float | None = None
        self.missed_per_s: float | None = None
        self.last_miss: str | None = None
        self.trials: list[Trial] = []

    @property
    def is_precise(self) -> bool:
        if self.missed_per_s is None or self.held_per_s is None:
            # Below the rate to begin with there is still a search, down to a hundredth of it.
            return self.missed_per_s is None or self.missed_per_s < self._search.start_per_s / 100
        return self.missed_per_s <= self.held_per_s * (1 + self._search.precision)

    def middle(self) -> float:
        """The next rate to try."""
        assert self.missed_per_s is not None  # noqa: S101 - the search begins with a miss
        if self.held_per_s is None:
            return self.missed_per_s / _STEP
        return math.sqrt(self.held_per_s * self.missed_per_s)

    async def holds(self, rate_per_s: float) -> bool:
        """Try a rate until it is decided, and move the edge."""
        needed = 1
        if self.held_per_s is not None and self.missed_per_s is not None:
            span = self.missed_per_s / self.held_per_s
            needed = self._search.repeats // 2 + 1 if span <= (1 + self._search.precision) ** _NEAR else 1
        held = missed = spoiled = 0
        while held < needed and missed < needed:
            if len(self.trials) >= self._search.most_trials:
                raise _EnoughError
            trial = await self._measure(rate_per_s, len(self.trials))
            self.trials.append(trial)
            if trial.held:
                held += 1
            elif trial.trouble is not None:
                spoiled += 1
                if spoiled == 2:
                    msg = f"at {rate_per_s:g}/s {trial.trouble}, so a higher rate says nothing of the target"
                    raise _SpoiledError(msg)
            else:
                missed += 1
                self.last_miss = trial.missed
        if held >= needed:
            self.held_per_s = rate_per_s
        else:
            self.missed_per_s = rate_per_s
        return held >= needed

    def knee(self, limited_by: str, why: str) -> Knee:
        return Knee(
            rate_per_s=self.held_per_s,
            above_per_s=self.missed_per_s,
            limited_by=limited_by,
            why=why,
            trials=self.trials,
        )


def trial_scenario(scenario: Scenario, search: KneeSearch, rate_per_s: float, number: int) -> Scenario:
    """One trial of an open scenario: this rate, long enough, with arrivals and bodies of its own seed."""
    return msgspec.structs.replace(
        scenario,
        name=f"{scenario.name} {rate_per_s:.4g}/s #{number + 1}",
        rate_per_s=rate_per_s,
        duration_s=search.warmup_s + search.judged_s(rate_per_s),
        requests=None,
        shape=[],
        seed=scenario.seed + number,
    )


def queue_growth(requests: Sequence[Request]) -> str | None:
    """A sentence when latency rose so evenly that more arrived than was answered; None when it did not.

    At r times its capacity a queue's latency grows by r - 1 seconds a second. Said above 5 %, when the last third of
    the requests also waited half as long again as the first: short trials would call that rate kept. None below 30.
    """
    answered = sorted((r.intended_s, r.latency_s) for r in requests if r.ok)
    third = len(answered) // 3
    if third < 10:
        return None
    (first_s, before_s), (last_s, after_s) = (
        (fmean(at_s for at_s, _ in part), fmean(latency_s for _, latency_s in part))
        for part in (answered[:third], answered[-third:])
    )
    growth = (after_s - before_s) / (last_s - first_s) if last_s > first_s else 0.0
    if growth <= _GROWTH or after_s <= 1.5 * before_s:
        return None
    return f"latency rose from {before_s:.3g} to {after_s:.3g} s within the trial: more arrives than is answered"


def driven_trials(
    scenario: Scenario,
    base_url: str,
    run: RunFolder,
    search: KneeSearch,
    objectives: Sequence[Objective],
    *,
    speed: float | None = None,
    progress: Callable[[Snapshot], None] | None = None,
    tls: ssl.SSLContext | None = None,
    drive: Drive = drive,
) -> Measure:
    """What `find_knee` needs, by driving an open scenario at a target; every trial is a scenario of the run.

    Raises:
        ConfigError: there is no must among the objectives, or the scenario is none that takes a rate.
    """
    musts = [objective for objective in objectives if objective.level == MUST]
    if not musts:
        msg = "to find the knee, say what must be kept, for example p95_s<2"
        raise ConfigError(msg)
    if scenario.model != OPEN or scenario.arrivals == REPLAY or scenario.shape:
        msg = f"the knee is a rate: {scenario.name!r} must be an open scenario without shape or trace"
        raise ConfigError(msg)

    before: list[Trial] = []

    async def measure(rate_per_s: float, number: int) -> Trial:
        one = trial_scenario(scenario, search, rate_per_s, number)
        tell = None if progress is None else in_step(_step(before, rate_per_s), progress)
        info = await drive(one, base_url, run, speed=speed, progress=tell, tls=tls)
        requests = [r for r in run.requests(one.name) if r.intended_s >= info.started_s + search.warmup_s]
        figures = figures_of(requests, [], [])
        asked = [msgspec.structs.replace(objective, scenario=one.name) for objective in musts]
        missed = next((gate.sentence for gate in judge(asked, {one.name: figures}) if gate.failed), None)
        missed = missed or queue_growth(requests)
        if info.stopped is not None:
            missed = f"it stopped early: {info.stopped}"
        trial = Trial(
            rate_per_s=rate_per_s,
            missed=missed,
            trouble=info.trouble,
            requests=len(requests),
            p95_s=figures.p95_s,
        )
        before.append(trial)
        return trial

    return measure


def _step(before: Sequence[Trial], rate_per_s: float) -> str:
    """`knee, trial 4: 40/s; 20/s kept, 80/s missed`."""
    kept = max((trial.rate_per_s for trial in before if trial.held), default=None)
    missed = min((trial.rate_per_s for trial in before if not trial.held), default=None)
    known = [f"{kept:.4g}/s kept"] if kept is not None else []
    known += [f"{missed:.4g}/s missed"] if missed is not None else []
    return f"knee, trial {len(before) + 1}: {rate_per_s:.4g}/s" + ("; " + ", ".join(known) if known else "")
