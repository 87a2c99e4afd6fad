"""Draws: everything random or assumed in one simulated run, fixed by its seed."""

import math
import random
from dataclasses import dataclass

from paceline.model.change import Batch, Cache, SpeedUp, Trim
from paceline.model.estimate import Range
from paceline.model.price import price_of
from paceline.project.app import Pace, PoolKey, Work
from paceline.project.pace import duration_s
from paceline.project.plan import Plan

_UNSURE = 0.02  # standard deviation of the log: two runs of one system in benchmarks/projection.py differ by this much


@dataclass(slots=True)
class Effect:
    """What the changes that act on a work come to in this run."""

    input_ratio: float = 1.0
    output_ratio: float = 1.0
    time_ratio: float = 1.0
    cache: int | None = None  # position of the change
    batch: int | None = None


@dataclass(slots=True)
class Service:
    """One drawn call: how long the provider takes and what it counts."""

    pace: Pace
    seconds: float
    output_tokens: int
    tokens: int
    cost_usd: float | None


class Draws:
    """Random choices of one repetition.

    Templates and paces are drawn from a resample of the recorded ones (bootstrap), and the provider's pace and limits
    are a little off, so that the spread over repetitions holds the chance of one run, what so much recording leaves
    uncertain, and how far a provider drifts from one run to the next.
    """

    def __init__(self, plan: Plan, seed: str) -> None:
        self.rng = rng = random.Random(seed)
        self.plan = plan
        self.values = {id(r): _sample(r, rng) for r in _ranges(plan)}
        everything = range(len(plan.templates))
        self._any = rng.choices(everything, k=len(everything))
        self._same: dict[str, list[int]] = {}
        for i, template in enumerate(plan.templates):
            self._same.setdefault(template.text_key, []).append(i)
        self._pace_ratio = math.exp(rng.gauss(0.0, _UNSURE))
        self.quota_ratio = math.exp(rng.gauss(0.0, _UNSURE))
        self._paces: dict[PoolKey, list[Pace]] = {k: rng.choices(v, k=len(v)) for k, v in plan.paces.items() if v}
        self.cpu_ratio = math.prod(self.of(r) for r in plan.cpu_ratios)
        self._effects: dict[tuple[int, ...], Effect] = {}

    def template(self, text_key: str) -> int:
        """Position of a template: one that asked the same, as far as those are alike, else any."""
        random_ = self.rng.random
        same = self._same.get(text_key)
        among = same if same and random_() < self.plan.app.alike else self._any
        return among[int(random_() * len(among))]

    def of(self, bounds: Range) -> float:
        """This run's value of a declared range."""
        return self.values[id(bounds)]

    def effect(self, work: Work) -> Effect:
        """What the changes come to for this work."""
        effect = self._effects.get(work.scaled_by)
        if effect is None:
            effect = self._effects[work.scaled_by] = self._effect_of(work.scaled_by)
        return effect

    def service(self, work: Work) -> Service:
        """One call to the provider, changes applied."""
        effect = self.effect(work)
        input_tokens, output_tokens = work.input_tokens, work.output_tokens
        if effect.input_ratio != 1.0:
            input_tokens = round(input_tokens * effect.input_ratio)
        if effect.output_ratio != 1.0 and output_tokens:
            output_tokens = max(1, round(output_tokens * effect.output_ratio))
        pace = self._pace(work, input_tokens)
        return Service(
            pace=pace,
            seconds=duration_s(pace, output_tokens) * effect.time_ratio * self._pace_ratio,
            output_tokens=output_tokens,
            tokens=input_tokens + output_tokens,
            cost_usd=_cost(work, input_tokens, output_tokens),
        )

    def pause_s(self, attempt: int) -> float:
        """From the refusal of attempt number `attempt` (from 1) to the next: the refusal itself, then the pause."""
        retries = self.plan.app.retries
        random_ = self.rng.random
        refused_s = retries.refused_s[int(random_() * len(retries.refused_s))]
        beyond = attempt - len(retries.pauses_s)
        pauses_s = retries.pauses_s[min(attempt, len(retries.pauses_s)) - 1]
        pause_s = pauses_s[int(random_() * len(pauses_s))]
        return refused_s + (pause_s * retries.growth**beyond if beyond > 0 else pause_s)

    def hit_s(self) -> float:
        """Time of a recorded answer from the cache, processor time aside."""
        hits_s = self.plan.app.hits_s
        if not hits_s:
            return 0.0
        return hits_s[int(self.rng.random() * len(hits_s))]

    def _pace(self, work: Work, input_tokens: int) -> Pace:
        paces = self._paces.get(work.pool) if work.pool else None
        if paces is None:
            return work.service_s or 0.0, 0.0
        pace = paces[int(self.rng.random() * len(paces))]
        prefill_s = self.plan.app.prefill_s.get(work.model or "", 0.0) * (work.input_tokens - input_tokens)
        return (max(0.1 * pace[0], pace[0] - prefill_s), pace[1]) if prefill_s else pace

    def _effect_of(self, positions: tuple[int, ...]) -> Effect:
        effect = Effect()
        for position in positions:
            match self.plan.changes[position]:
                case Trim(input_ratio=inp, output_ratio=out):
                    effect.input_ratio *= self.of(inp)
                    effect.output_ratio *= self.of(out)
                case SpeedUp(factor=factor):
                    effect.time_ratio /= self.of(factor)
                case Cache():
                    effect.cache = position
                case Batch():
                    effect.batch = position
                case _:
                    pass
        return effect


def _sample(bounds: Range, rng: random.Random) -> float:
    return rng.uniform(bounds.low, bounds.high)


def _ranges(plan: Plan) -> list[Range]:
    found = plan.memory_ratios + plan.cpu_ratios
    if plan.answers and plan.answers.hit_ratio:
        found.append(plan.answers.hit_ratio)
    for change in plan.changes:
        match change:
            case Trim(input_ratio=inp, output_ratio=out):
                found += [inp, out]
            case SpeedUp(factor=factor):
                found.append(factor)
            case Cache(hit_ratio=Range() as ratio):
                found.append(ratio)
            case _:
                pass
    return found


def _cost(work: Work, input_tokens: int, output_tokens: int) -> float | None:
    """Dollars: as recorded, in proportion to what the tokens cost now and then."""
    if work.priced_as is None or work.model is None:
        return work.cost_usd
    model, *then = work.priced_as
    if model == work.model and then == [input_tokens, output_tokens, work.cached_tokens]:
        return work.cost_usd
    new = price_of(work.model)
    if new is None:
        return None
    cached = round(work.cached_tokens * input_tokens / work.input_tokens) if work.input_tokens else 0
    cost = new.cost_usd(input_tokens, output_tokens, cached)
    old = price_of(model)
    before = old.cost_usd(*then) if old else 0.0
    return cost * work.cost_usd / before if work.cost_usd and before > 0 else cost
