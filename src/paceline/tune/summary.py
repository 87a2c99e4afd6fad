"""A TuneResult in short: the JSON object of `paceline tune --json`, and the rows of its tables."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from paceline.model.estimate import Estimate
from paceline.model.figures import Figures, ProjectedFigures
from paceline.model.finding import Finding
from paceline.model.projection import Projection
from paceline.model.run import PARTIAL
from paceline.model.tuning import ObjectiveResult, PhaseResult, Proposal, TuneResult
from paceline.report.units import UNKNOWN, dollars, figure, megabytes, seconds

Rows = list[list[str]]

# Share of the service's processor above which projections came out too fast, and one at which they did not: the support
# desk at --speed 5 and 3 on one machine, 75 to 98 % and 49 to 73 % busy (docs/performance.md).
_CROWDED, _AT_EASE = 0.75, 0.6

SHOWN = (
    "p50_s",
    "p95_s",
    "mean_s",
    "requests_per_s",
    "success_ratio",
    "hit_ratio",
    "cost_per_1000_usd",
    "memory_mb",
)


def as_object(result: TuneResult, folder: Path) -> dict[str, object]:
    """What `--json` prints: findings, phases, objectives, projection_error, report, and how to read them."""
    report = str(folder / result.report) if result.report else None
    return {
        "name": result.name,
        "state": result.state,
        "reason": result.reason,
        "speed": result.speed,
        "seed": result.seed,
        "scenario": result.scenario,
        "findings": msgspec.to_builtins(result.findings),
        "phases": [_phase(p, result.scenario) for p in result.phases],
        "objectives": [_objective(o) for o in result.objectives],
        "projection_error": msgspec.to_builtins(result.projection_error),
        "left": msgspec.to_builtins(result.left),
        "proposals": msgspec.to_builtins(result.proposals),
        "notes": notes(result),
        "folder": str(folder),
        "report": report,
    }


def _phase(phase: PhaseResult, scenario: str) -> dict[str, object]:
    projection = phase.projection
    figures = phase.figures.get(scenario)
    return {
        "name": phase.name,
        "title": phase.title,
        "projected": _projected(projection.figures) if projection and projection.figures else None,
        "refusal": projection.refusal if projection else None,
        "measured": _measured(figures) if figures else None,
        "scenarios": msgspec.to_builtins(phase.figures),
        "notes": phase.notes,
    }


def _projected(figures: ProjectedFigures) -> dict[str, object]:
    return {name: msgspec.to_builtins(getattr(figures, name)) for name in SHOWN}


def _measured(figures: Figures) -> dict[str, object]:
    return {name: getattr(figures, name) for name in (*SHOWN, "quality_ratio")}


def _objective(result: ObjectiveResult) -> dict[str, object]:
    objective = result.objective
    return {
        "name": objective.name,
        "level": objective.level,
        "metric": objective.metric,
        "op": objective.op,
        "target": objective.target,
        "scenario": result.scenario,
        "before": result.before,
        "after": result.after,
        "met_before": result.met_before,
        "met": result.met,
    }


def notes(result: TuneResult) -> list[str]:
    """What a reader must know to read the figures right."""
    said = list(result.notes)
    if result.state == PARTIAL:
        said.append(f"this tuning is partial: {result.reason}")
    if result.speed != 1:
        said.append(
            f"speed {result.speed:g}: times are at the provider's pace; the service's own CPU time counts "
            f"{result.speed:g} times, so its part is over-stated"
        )
    said += _crowded(result)
    for probe in result.probes:
        cost = f"cost {dollars(probe.cost_usd)}" if probe.cost_usd is not None else "at a cost that is not known"
        said.append(f"the pace of {probe.model} was asked for with {probe.calls} calls, {cost}")
    refused = [p for p in result.phases if p.projection and p.projection.refusal]
    said += [f"{p.name} was not projected: {p.projection.refusal}" for p in refused if p.projection]
    return said + [f"{p.name}: {note}" for p in result.phases for note in p.notes]


def _crowded(result: TuneResult) -> list[str]:
    """Where the service's own processor was so busy that its threads wait for it as no projection shows."""
    measured = {p.name: p.figures[result.scenario] for p in result.phases if result.scenario in p.figures}
    busy = {name: figures.processor_busy_ratio for name, figures in measured.items()}
    crowded = {name: ratio for name, ratio in busy.items() if ratio is not None and ratio >= _CROWDED}
    if not crowded:
        return []
    worst = max(crowded, key=crowded.__getitem__)
    more = f" and {_CROWDED:.0%} or more in {len(crowded)} phases" if len(crowded) > 1 else ""
    said = (
        f"the service's processor was {crowded[worst]:.0%} busy in {worst}{more}: threads then wait for it in ways "
        "that a projection does not show, and it comes out too fast"
    )
    slower = max(1, int(result.speed * _AT_EASE / crowded[worst]))
    return [f"{said}; --speed {slower} leaves it room" if slower < result.speed else said]


# Headings are a name with the unit under it.
PHASE_HEADINGS = [
    ("phase", ""),
    ("P95 projected", "s (90 % interval)"),
    ("P95", "s"),
    ("P50", "s"),
    ("mean", "s"),
    ("requests", "per s"),
    ("success", "%"),
    ("hits", "%"),
    ("cost", "$ per 1,000"),
    ("memory", "MB"),
    ("quality", "%"),
]


def phase_rows(result: TuneResult) -> Rows:
    """One row a phase, under PHASE_HEADINGS; figures of the main scenario."""
    return [_phase_row(p, p.figures.get(result.scenario)) for p in result.phases]


def _phase_row(phase: PhaseResult, figures: Figures | None) -> list[str]:
    row = [phase.name, _p95(phase.projection)]
    if figures is None:
        return [*row, *[UNKNOWN] * (len(PHASE_HEADINGS) - len(row))]
    return [
        *row,
        digits(figures.p95_s),
        digits(figures.p50_s),
        digits(figures.mean_s),
        digits(figures.requests_per_s),
        share(figures.success_ratio),
        share(figures.hit_ratio),
        UNKNOWN if figures.cost_per_1000_usd is None else f"{figures.cost_per_1000_usd:.2f}",
        UNKNOWN if figures.memory_mb is None else f"{figures.memory_mb:,.0f}",
        share(figures.quality_ratio),
    ]


def _p95(projection: Projection | None) -> str:
    if projection is None:
        return UNKNOWN
    return interval(projection.figures.p95_s) if projection.figures else "refused"


OBJECTIVE_HEADINGS = [("objective", ""), ("level", ""), ("target", ""), ("before", ""), ("after", ""), ("met", "")]


def objective_rows(result: TuneResult) -> Rows:
    """One row an objective, under OBJECTIVE_HEADINGS."""
    rows = []
    for o in result.objectives:
        metric = o.objective.metric
        met = {True: "yes", False: "no", None: "not known"}[o.met]
        target = f"{o.objective.op} {figure(metric, o.objective.target)}"
        rows.append(
            [o.objective.name, o.objective.level, target, figure(metric, o.before), figure(metric, o.after), met]
        )
    return rows


def finding_lines(findings: list[Finding]) -> list[str]:
    """Each finding: what, where, what fixing it alone would save over all requests."""
    return [f"{n}. {f.title} — {place(f)}; {saving(f)}" for n, f in enumerate(findings, start=1)]


def place(finding: Finding) -> str:
    """Where to look: the code line, else the step, else the endpoint or model."""
    where = finding.where
    return where.code or where.step or where.endpoint or where.model or "the whole service"


def saving(finding: Finding) -> str:
    """`saves 2.1 s a request, $3.10 per 1,000, 400 MB`."""
    saves = finding.saving
    parts = [f"{seconds(saves.latency_s)} a request"] if saves.latency_s > 0 else []
    parts += [f"{dollars(saves.cost_per_1000_usd)} per 1,000"] if saves.cost_per_1000_usd > 0 else []
    parts += [megabytes(saves.memory_mb)] if saves.memory_mb > 0 else []
    return f"saves {', '.join(parts)}" if parts else "saves no time by itself"


PROPOSAL_HEADINGS = [
    ("what to do first", ""),
    ("P95 alone", "s (90 % interval)"),
    ("P95 with all above", "s (90 % interval)"),
    ("cost", "$ per 1,000"),
    ("how", ""),
]


def proposal_rows(result: TuneResult) -> Rows:
    """What to do first, under PROPOSAL_HEADINGS."""
    return [_proposal_row(n, p) for n, p in enumerate(result.proposals, start=1)]


def _proposal_row(number: int, proposal: Proposal) -> list[str]:
    together = proposal.together.figures
    cost = together.cost_per_1000_usd if together else None
    return [
        f"{number}. {proposal.title}",
        _p95(proposal.alone),
        _p95(proposal.together),
        UNKNOWN if cost is None else f"{cost.value:.2f}",
        "gateway, no code" if proposal.gateway else "code",
    ]


def error_line(result: TuneResult) -> str | None:
    """How far the projections were off, in one sentence; None when nothing was projected and measured."""
    error = result.projection_error
    if not error.phases:
        return None
    parts = {"P50": error.p50, "P95": error.p95, "requests/s": error.requests_per_s}
    medians = ", ".join(f"{name} {value:.0%}" for name, value in parts.items() if value is not None)
    held = [held for phase in error.phases for held in phase.held.values()]
    count = len(error.phases)
    return (
        f"projected against measured, median of {count} phase{'s' * (count > 1)}: off by {medians}; "
        f"{sum(held)} of {len(held)} intervals held the figure"
    )


def table(headings: Sequence[tuple[str, str]], rows: Rows) -> str:
    """Columns side by side: the first to the left, the others to the right unless they hold words."""
    names, units = zip(*headings, strict=True)
    head = [list(names), list(units)] if any(units) else [list(names)]
    widths = [max(len(line[i]) for line in [*head, *rows]) for i in range(len(headings))]
    words = [any(c.isalpha() for row in rows for c in row[i]) for i in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        cells = [
            c.ljust(w) if i == 0 or words[i] else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([*map(line, head), "-" * (sum(widths) + 2 * len(widths) - 2), *map(line, rows)])


def interval(value: Estimate) -> str:
    """`2.41 (2.10-2.80)`."""
    return f"{digits(value.value)} ({digits(value.low)}-{digits(value.high)})"


def digits(value: float | None) -> str:
    """Three significant digits, never more than two decimals below one hundred or any above."""
    if value is None:
        return UNKNOWN
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    if abs(value) >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.0995 or value == 0 else f"{value:.3f}"


def share(ratio: float | None) -> str:
    """A ratio in percent without the sign; a tenth is shown where it matters: just below 100."""
    if ratio is None:
        return UNKNOWN
    percent = ratio * 100
    return f"{percent:.1f}" if 90 < percent < 100 else f"{percent:.0f}"
