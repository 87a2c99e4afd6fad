"""Proof: objectives before and after, and how far the projections were from what was measured."""

import statistics
from collections.abc import Callable, Sequence

from paceline.model.estimate import Estimate
from paceline.model.figures import Figures, Objective, ProjectedFigures
from paceline.model.tuning import ObjectiveResult, PhaseError, PhaseResult, ProjectionError, TuneResult

_LATE_RATIO = 0.2  # of the median latency: from there on the figures are the generator's rather than the target's
_LATE_S = 0.005  # wall time


def judge(objectives: Sequence[Objective], phases: Sequence[PhaseResult], scenario: str) -> list[ObjectiveResult]:
    """Each objective against the first and the last measured phase.

    Args:
        objectives: What is asked.
        phases: In order; those without figures of an objective's scenario leave it unknown.
        scenario: The main scenario, for objectives that name none.
    """
    measured = [p for p in phases if p.figures]
    results = []
    for objective in objectives:
        name = objective.scenario or scenario
        before, after = (p.figures.get(name) for p in (measured[0], measured[-1])) if measured else (None, None)
        results.append(
            ObjectiveResult(
                objective=objective,
                scenario=name,
                before=getattr(before, objective.metric, None),
                after=getattr(after, objective.metric, None),
                met_before=objective.met(before) if before else None,
                met=objective.met(after) if after else None,
            )
        )
    return results


_COMPARED: dict[str, tuple[Callable[[ProjectedFigures], Estimate], Callable[[Figures], float | None]]] = {
    "p50": (lambda p: p.p50_s, lambda m: m.p50_s),
    "p95": (lambda p: p.p95_s, lambda m: m.p95_s),
    "requests_per_s": (lambda p: p.requests_per_s, lambda m: m.requests_per_s),
}


def projection_error(phases: Sequence[PhaseResult], scenario: str) -> ProjectionError:
    """How far the projections were from what was measured, over the phases that have both."""
    errors = [
        _phase_error(phase.name, phase.projection.figures, measured)
        for phase in phases
        if phase.projection and phase.projection.figures and (measured := phase.figures.get(scenario))
    ]

    def median(metric: str) -> float | None:
        values = [abs(value) for e in errors if (value := getattr(e, metric)) is not None]
        return statistics.median(values) if values else None

    def coverage(metric: str) -> float | None:
        held = [e.held[metric] for e in errors if metric in e.held]
        return sum(held) / len(held) if held else None

    return ProjectionError(
        p50=median("p50"),
        p95=median("p95"),
        requests_per_s=median("requests_per_s"),
        coverage={metric: share for metric in _COMPARED if (share := coverage(metric)) is not None},
        phases=errors,
    )


def _phase_error(name: str, projected: ProjectedFigures, measured: Figures) -> PhaseError:
    errors: dict[str, float] = {}
    held: dict[str, bool] = {}
    for metric, (said, seen) in _COMPARED.items():
        actual = seen(measured)
        if actual:  # unknown, or a zero that no ratio can be taken of
            errors[metric] = said(projected).value / actual - 1
            held[metric] = said(projected).holds(actual)
    return PhaseError(name=name, held=held, **errors)


def untrusted(result: TuneResult) -> str | None:
    """Why the main scenario's figures cannot be used at all, in one sentence; None when they can.

    They cannot when the generator itself was late for half of the requests by a fifth of the median latency, and by
    more than any machine is: answers from a cache take a millisecond or two, and half of one is nobody's trouble.
    """
    for phase in result.measured:
        figures = phase.figures.get(result.scenario)
        info = next((s for s in phase.scenarios if s.name == result.scenario), None)
        if info is None or figures is None or not figures.p50_s or info.lag_p50_s is None:
            continue
        late_s = info.lag_p50_s * result.speed
        if info.lag_p50_s > _LATE_S and late_s > _LATE_RATIO * figures.p50_s:
            return (
                f"in phase {phase.name!r} the load generator was {late_s:.2g} s late at the median, and the latency "
                f"only {figures.p50_s:.2g} s: lower the load or --speed, or free a core"
            )
    return None
