"""Projector: what changes would do to the scenario that the baseline run measured, before they are made.

Method and evidence: docs/decisions/0004-projection.md.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from statistics import median

from msgspec.structs import replace

from paceline.model.change import Change
from paceline.model.estimate import Estimate
from paceline.model.figures import ProjectedFigures
from paceline.model.projection import Projection
from paceline.project.app import App
from paceline.project.extract import extract
from paceline.project.fit import with_real_limit
from paceline.project.pace import ModelPace
from paceline.project.plan import Plan, plan_of
from paceline.project.refusal import Refusal
from paceline.project.simulate import Outcome, scripts_of, simulate
from paceline.stats.quantiles import quantiles
from paceline.trace.data import RunData

REPETITIONS = 30
MOST_BUSY = 0.85  # open arrivals above this share of the capacity: the queue depends on chance, not on the model
CALIBRATED_BELOW = 0.8  # of every base resource: above, the measured figure's own chance would be multiplied in
_CALIBRATION = (0.8, 1.25)  # beyond, the model misses something that a factor does not mend
_FEW = 7  # repetitions while fitting

Sums = dict[str, float]  # figure -> value


def project(
    base: RunData,
    scenario: str,
    changes: Sequence[Change],
    *,
    models: Mapping[str, ModelPace] | None = None,
    seed: int = 0,
    repetitions: int = REPETITIONS,
) -> Projection:
    """What all `changes` together would do to `scenario` of the baseline, or why that cannot be said.

    Args:
        base: The baseline run, times at the provider's pace.
        scenario: Name of one of its scenarios.
        changes: Applied in order.
        models: Pace of models that the baseline does not call.
        seed: The same seed gives the same projection.
        repetitions: Simulated runs, at least 5; the intervals come from their spread.

    Raises:
        ValueError: the run has no such scenario, or `repetitions` is below 5.
    """
    return Projector(base, scenario, models=models, seed=seed, repetitions=repetitions).project(changes)


class Projector:
    """Projects any number of changes from one baseline, which is read and simulated once. Arguments as `project`."""

    def __init__(
        self,
        base: RunData,
        scenario: str,
        *,
        models: Mapping[str, ModelPace] | None = None,
        seed: int = 0,
        repetitions: int = REPETITIONS,
    ) -> None:
        if repetitions < 5:
            msg = f"repetitions must be at least 5; got {repetitions}"
            raise ValueError(msg)
        self.models = dict(models or {})
        self.seed = seed
        self.repetitions = repetitions
        self._refusal: str | None = None
        try:
            self.app = with_real_limit(extract(base, scenario), self._few)
        except Refusal as refusal:
            self._refusal = str(refusal)

    def project(self, changes: Sequence[Change]) -> Projection:
        """What these changes together would do to the baseline."""
        refused = Projection(changes=list(changes), seed=self.seed)
        if self._refusal is not None:
            return replace(refused, refusal=self._refusal)
        try:
            plan = plan_of(self.app, changes, self.models)
        except Refusal as refusal:
            return replace(refused, refusal=str(refusal))
        outcomes = self._outcomes(plan)
        busy, bottleneck, capacity = self._load_on(outcomes)
        found = replace(
            refused,
            capacity_per_s=capacity,
            bottleneck=bottleneck,
            utilisation=busy,
            assumptions=plan.assumptions,
            base_error=self.base_error,
            repetitions=self.repetitions,
        )
        if self.app.load.users is None and bottleneck and busy[bottleneck] > MOST_BUSY:
            msg = (
                f"{bottleneck} would be {busy[bottleneck]:.0%} busy: near saturation the latency of open arrivals "
                f"cannot be projected; it can take {capacity:.2f} requests/s"
            )
            return replace(found, refusal=msg)
        figures = self._figures(plan, outcomes)
        if figures is None:
            return replace(found, refusal="no simulated request was answered: every one failed or timed out")
        return replace(found, figures=figures)

    @cached_property
    def base(self) -> list[Outcome]:
        """Simulated runs of the baseline as it is."""
        return self._outcomes(plan_of(self.app, [], {}))

    @cached_property
    def base_error(self) -> dict[str, float]:
        """Simulated over measured baseline, minus 1."""
        sums = [_sums(o) for o in self.base]
        measured = self.app.measured
        pairs = {
            "p50": ("p50_s", measured.p50_s),
            "p95": ("p95_s", measured.p95_s),
            "mean": ("mean_s", measured.mean_s),
            "requests_per_s": ("requests_per_s", measured.requests_per_s),
        }
        return {
            name: median(s[figure] for s in sums if figure in s) / value - 1
            for name, (figure, value) in pairs.items()
            if value and any(figure in s for s in sums)
        }

    def _outcomes(self, plan: Plan, repetitions: int | None = None) -> list[Outcome]:
        scripts = scripts_of(plan)
        return [simulate(plan, f"{self.seed}:{i}", scripts) for i in range(repetitions or self.repetitions)]

    def _few(self, app: App) -> list[Outcome]:
        return self._outcomes(plan_of(app, [], {}), _FEW)

    def _load_on(self, outcomes: list[Outcome]) -> tuple[dict[str, float], str | None, float | None]:
        """Use of each resource, the busiest, and the rate it allows.

        Open arrivals: offered load over capacity, which may be above 1. Closed: the share used.
        """
        demand_s = {name: median(o.demand_s[name] for o in outcomes) for name in outcomes[0].demand_s}
        busy = {name: median(o.busy[name] for o in outcomes) for name in outcomes[0].busy}
        asked = self.app.load.asked
        if self.app.load.users is None and asked[-1].at_s > 0:
            rate_per_s = (len(asked) - 1) / asked[-1].at_s
            busy = {name: rate_per_s * seconds for name, seconds in demand_s.items()}
        bottleneck = max(demand_s, key=lambda name: demand_s[name], default=None)
        if bottleneck is None or demand_s[bottleneck] <= 0:
            return busy, None, None
        return busy, bottleneck, 1 / demand_s[bottleneck]

    def _figures(self, plan: Plan, outcomes: list[Outcome]) -> ProjectedFigures | None:
        sums = [_sums(o) for o in outcomes]
        error = self.base_error
        calibration = self._calibration()
        one = 1 / len(self.app.load.asked)  # a ratio cannot be told more finely than one request

        def timed(name: str, base: str) -> Estimate:
            factor = calibration.get(base, 1.0)
            return _estimate([s[name] * factor for s in sums if name in s], error.get(base, 0.0))

        def plain(name: str, most: float | None = None, step: float = 0.0) -> Estimate | None:
            values = [s[name] for s in sums if name in s]
            return _estimate(values, most=most, step=step) if len(values) == len(sums) else None

        success = plain("success_ratio", 1.0, one)
        if success is None or sum("p50_s" in s for s in sums) < 5:
            return None
        return ProjectedFigures(
            p50_s=timed("p50_s", "p50"),
            p95_s=timed("p95_s", "p95"),
            mean_s=timed("mean_s", "mean"),
            requests_per_s=timed("requests_per_s", "requests_per_s"),
            success_ratio=success,
            hit_ratio=plain("hit_ratio", 1.0, one) if plan.answers or self.app.measured.hit_ratio is not None else None,
            cost_per_1000_usd=plain("cost_per_1000_usd"),
            memory_mb=self._memory(outcomes),
        )

    def _calibration(self) -> dict[str, float]:
        """Measured over simulated baseline, where no base resource is near saturation."""
        busy, bottleneck, _ = self._load_on(self.base)
        if bottleneck and max(busy.values()) >= CALIBRATED_BELOW:
            return {}
        low, high = _CALIBRATION
        return {name: 1 / (1 + e) for name, e in self.base_error.items() if low <= 1 + e <= high}

    def _memory(self, outcomes: list[Outcome]) -> Estimate | None:
        """Measured peak, plus or minus what requests in flight hold in the simulated peaks."""
        slope, measured = self.app.mb_per_request, self.app.measured.memory_mb
        if slope is None or measured is None:
            return None
        held_mb = slope * median(o.peak for o in self.base)
        idle_mb = max(0.0, measured - held_mb)
        slope = min(slope, (measured - idle_mb) / max(1.0, median(o.peak for o in self.base)))
        return _estimate([idle_mb + slope * o.peak * o.memory_ratio for o in outcomes], 0.05)


def _sums(outcome: Outcome) -> Sums:
    """The figures of one simulated run, as `trace.figures` defines them."""
    found: Sums = {"success_ratio": outcome.ok / outcome.requests}
    if outcome.latencies_s:
        found["p50_s"], found["p95_s"] = quantiles(outcome.latencies_s, [0.5, 0.95])
        found["mean_s"] = sum(outcome.latencies_s) / len(outcome.latencies_s)
        found["requests_per_s"] = outcome.ok / max(outcome.duration_s, 1e-9)
    if outcome.ok:
        found["hit_ratio"] = outcome.hits / outcome.ok
    if outcome.cost_usd is not None:
        found["cost_per_1000_usd"] = outcome.cost_usd / outcome.requests * 1000
    return found


def _estimate(
    values: list[float], base_error: float = 0.0, *, most: float | None = None, step: float = 0.0
) -> Estimate:
    """Median and 90 % interval for one more run, widened by how far the simulated baseline was off and by `step`.

    The bounds are order statistics of rank 0.05 and 0.95 of n + 1: distribution-free, because a mixture of cached
    and uncached answers has no simple shape.
    """
    ordered = sorted(values)
    widen = 1 + abs(base_error)

    def at(share: float) -> float:
        rank = share * (len(ordered) + 1) - 1
        below = min(max(int(rank), 0), len(ordered) - 1)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (ordered[above] - ordered[below]) * min(1.0, max(0.0, rank - below))

    high = at(0.95) * widen + step
    low = max(0.0, at(0.05) / widen - step)
    return Estimate(value=median(ordered), low=low, high=high if most is None else min(most, high))
