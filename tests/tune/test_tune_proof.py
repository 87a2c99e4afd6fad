"""Objectives are judged on the first and the last measured phase; projection errors are what they are."""

import pytest

from paceline.model.estimate import Estimate
from paceline.model.figures import Figures, Objective, ProjectedFigures
from paceline.model.projection import Projection
from paceline.model.run import ScenarioInfo
from paceline.model.tuning import PhaseResult, TuneResult
from paceline.tune.proof import judge, projection_error, untrusted


def measured(p95_s: float) -> dict[str, Figures]:
    """Figures of the main scenario."""
    return {"main": Figures(requests=10, duration_s=5.0, p50_s=p95_s / 2, p95_s=p95_s, requests_per_s=2.0)}


def projected(p95_s: float, spread: float = 0.1) -> Projection:
    """A projection around this P95, P50 half of it, 2 requests/s."""

    def around(value: float) -> Estimate:
        return Estimate(value=value, low=value * (1 - spread), high=value * (1 + spread))

    figures = ProjectedFigures(
        p50_s=around(p95_s / 2),
        p95_s=around(p95_s),
        mean_s=around(p95_s / 2),
        requests_per_s=around(2.0),
        success_ratio=around(1.0),
    )
    return Projection(changes=[], figures=figures)


def test_objectives_compare_first_and_last() -> None:
    """Before comes from the first measured phase, after from the last; phases not measured do not count."""
    phases = [
        PhaseResult(name="before", figures=measured(20.0)),
        PhaseResult(name="one", figures=measured(4.0)),
        PhaseResult(name="two"),
    ]
    p95 = Objective(name="P95", metric="p95_s", op="<", target=8.0)
    [result] = judge([p95], phases, "main")
    assert (result.before, result.after, result.met_before, result.met) == (20.0, 4.0, False, True)


def test_an_unknown_figure_is_not_met() -> None:
    """A scenario or figure that was not measured is unknown, which is neither true nor false."""
    phases = [PhaseResult(name="before", figures=measured(20.0))]
    hits = Objective(name="hits", metric="hit_ratio", op=">", target=0.85)
    sustained = Objective(name="sustained", metric="p95_s", op="<", target=8.0, scenario="sustained")
    assert [(r.after, r.met) for r in judge([hits, sustained], phases, "main")] == [(None, None), (None, None)]
    assert judge([hits], [], "main")[0].met is None


def test_projection_error_is_the_median_of_absolute_errors() -> None:
    """Errors of -9 %, +20 % and +50 % have the median 20 %; the interval of 10 % held one of three."""
    phases = [
        PhaseResult(name="before", figures=measured(99.0)),
        PhaseResult(name="a", figures=measured(10.0), projection=projected(9.1)),
        PhaseResult(name="b", figures=measured(10.0), projection=projected(12.0)),
        PhaseResult(name="c", figures=measured(10.0), projection=projected(15.0)),
        PhaseResult(name="refused", figures=measured(10.0), projection=Projection(changes=[], refusal="no")),
        PhaseResult(name="unmeasured", projection=projected(1.0)),
    ]
    error = projection_error(phases, "main")
    assert [p.name for p in error.phases] == ["a", "b", "c"]
    assert error.p95 == pytest.approx(0.2)
    assert error.requests_per_s == pytest.approx(0.0)
    assert error.phases[0].p95 == pytest.approx(-0.09)
    assert error.coverage == {"p50": pytest.approx(1 / 3), "p95": pytest.approx(1 / 3), "requests_per_s": 1.0}


def test_nothing_projected_has_no_error() -> None:
    """Without a phase that has both there is no median to tell."""
    assert projection_error([PhaseResult(name="before", figures=measured(1.0))], "main").p95 is None


@pytest.mark.parametrize(
    ("lag_p50_s", "p50_s", "trusted"),
    [(0.0004, 0.0017, True), (0.004, 0.002, True), (0.02, 0.05, False), (0.02, 5.0, True)],
    ids=[
        "half a millisecond beside a cache hit",
        "under any machine's own",
        "as slow as the target",
        "nothing beside it",
    ],
)
def test_a_late_generator_is_told_from_a_quick_cache(lag_p50_s: float, p50_s: float, trusted: bool) -> None:
    """Only lateness that shows in the figures makes them worthless."""
    phase = PhaseResult(
        name="before",
        run="baseline",
        figures={"main": Figures(requests=10, duration_s=5.0, p50_s=p50_s)},
        scenarios=[ScenarioInfo(name="main", model="closed", lag_p50_s=lag_p50_s)],
    )
    result = TuneResult(name="n", target="t", paceline="0", started_at="", scenario="main", phases=[phase])
    assert (untrusted(result) is None) == trusted
