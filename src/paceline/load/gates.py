"""Gates: objectives put to the figures of the scenarios that were driven."""

import re
from collections.abc import Sequence

import msgspec

from paceline.model.figures import MUST, WORDS, Figures, Objective

MET, MISSED, NOT_KNOWN = "met", "missed", "not known"

_ASKED = re.compile(
    r"""\s*(?:(?P<level>must|should|stretch)\s+)?
        (?:(?P<scenario>[\w.-]+)\s*:\s*)?
        (?P<metric>\w+)\s*(?P<op><=|>=|==|!=|<|>)\s*
        (?P<target>\S+?)\s*(?P<percent>%)?\s*""",
    re.VERBOSE,
)


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """One objective and what was measured, in the unit the metric's name ends in."""

    objective: Objective
    scenario: str
    outcome: str  # "met", "missed" or "not known", which is no better than missed
    value: float | str | None = None
    interval: tuple[float, float] | None = None  # 95 % confidence, of metrics that have one
    requests: int = 0

    @property
    def failed(self) -> bool:
        """True when this alone makes the gate close: a must that is not met, a must nobody could measure."""
        return self.objective.level == MUST and self.outcome != MET

    @property
    def is_close(self) -> bool:
        """True when the target lies within the interval, so another run may say otherwise."""
        target = self.objective.target
        return (
            self.interval is not None and not isinstance(target, str) and self.interval[0] < target < self.interval[1]
        )

    @property
    def sentence(self) -> str:
        """`p95_s < 2: missed with 2.412 (2.201 to 2.634, n=600)`; the unit is in the name."""
        if self.value is None:
            why = f"n={self.requests:,}" if self.requests else "no such scenario, or no request"
            return f"{self.objective.name}: not known ({why})"
        shown = self.value if isinstance(self.value, str) else f"{self.value:.4g}"
        interval = f"{self.interval[0]:.4g} to {self.interval[1]:.4g}, " if self.interval else ""
        return f"{self.objective.name}: {self.outcome} with {shown} ({interval}n={self.requests:,})"


def parse_objective(text: str) -> Objective:
    """`p95_s<2`, `should cost_per_1000_usd <= 3`, `concurrent: success_ratio>=99%`, `memory_verdict != leak`.

    Raises:
        ValueError: not of this form, an unknown metric, or a number where a word belongs.
    """
    found = _ASKED.fullmatch(text)
    if found is None:
        msg = f"an objective looks like 'p95_s<2' or 'should success_ratio>=99%'; got {text!r}"
        raise ValueError(msg)
    metric, op, scenario = found["metric"], found["op"], found["scenario"]
    target: float | str = found["target"]
    if metric not in WORDS:
        try:
            target = float(target) / (100 if found["percent"] else 1)
        except ValueError as error:
            msg = f"objective {text!r}: expected a number after {op}; got {target!r}"
            raise ValueError(msg) from error
    name = f"{metric} {op} {found['target']}{found['percent'] or ''}"
    level = found["level"] or MUST
    return Objective(name=name, metric=metric, op=op, target=target, level=level, scenario=scenario)


def judge(objectives: Sequence[Objective], figures: dict[str, Figures]) -> list[Gate]:
    """Every objective put to the scenario it names, or to each one; `figures` by name of scenario.

    An objective that names a scenario nobody drove is not known, and so is one whose figure was not recorded.
    """
    gates = []
    for objective in objectives:
        names = list(figures) if objective.scenario is None else [objective.scenario]
        gates += [_gate(objective, name, figures.get(name)) for name in names]
    return gates


def _gate(objective: Objective, scenario: str, figures: Figures | None) -> Gate:
    if figures is None:
        return Gate(objective=objective, scenario=scenario, outcome=NOT_KNOWN)
    met = objective.met(figures)
    return Gate(
        objective=objective,
        scenario=scenario,
        outcome=NOT_KNOWN if met is None else MET if met else MISSED,
        value=getattr(figures, objective.metric),
        interval=getattr(figures, f"{objective.metric.removesuffix('_s')}_interval_s", None),
        requests=figures.requests,
    )
