"""The report as Markdown, for a pull request, an issue or a chat."""

from paceline.model.change import describe
from paceline.report import units
from paceline.report.content import Content
from paceline.report.load_part import LoadPart

_ROADMAP = ("p95_s", "mean_s", "requests_per_s", "success_ratio", "hit_ratio", "cost_per_1000_usd", "memory_mb")
_MET = {True: "met", False: "**missed**", None: "not known"}


def render(content: Content) -> str:
    """The figures, objectives, roadmap and findings as GitHub-flavoured Markdown."""
    lines = [f"# {content.title}: {content.headline}", "", content.subtitle, ""]
    lines += [f"> {note}" for note in content.warnings]
    lines += _section("Figures", ["", "before", "after"], [[t.label, t.before, t.after or ""] for t in content.tiles])
    if content.tuning:
        lines += _tuning(content)
    if content.load:
        lines += _load(content.load)
    lines += ["## Findings", ""]
    for number, shown in enumerate(content.findings, 1):
        f = shown.finding
        money = f", {units.dollars(f.saving.cost_per_1000_usd)} per 1,000" if f.saving.cost_per_1000_usd else ""
        where = f" (`{f.where.code or f.where.step}`)" if f.where.code or f.where.step else ""
        lines.append(
            f"{number}. **{f.title}**{where}: worth {units.seconds(f.saving.latency_s)} a request{money}; "
            f"seen {f.evidence.count} of {f.evidence.of}. {f.remedy}"
        )
    lines += ["", "## How this was measured", ""]
    lines += [f"- {name}: {value}" for name, value in content.facts]
    return "\n".join(lines) + "\n"


def _load(load: LoadPart) -> list[str]:
    gates = [
        [g.objective.name, g.objective.level, g.scenario, units.figure(g.objective.metric, g.value), g.outcome]
        for g in load.gates
    ]
    errors = [
        [e.kind, e.endpoint, f"{e.count:,}", units.clock(e.first_s), units.clock(e.last_s), e.first_trace_id]
        for e in load.errors
    ]
    metrics = ("requests_per_s", "success_ratio", "p50_s", "p95_s", "p99_s", "max_s")
    rows = [
        [row.label, f"{row.figures.requests:,}", *(units.figure(m, getattr(row.figures, m)) for m in metrics)]
        for row in load.endpoints
    ]
    lines = _section("Objectives", ["objective", "level", "scenario", "measured", ""], gates)
    lines += _section("By endpoint", ["", "requests", "a second", "answered", "P50", "P95", "P99", "max"], rows)
    return lines + _section("Errors", ["error", "endpoint", "how many", "first", "last", "first trace"], errors)


def _tuning(content: Content) -> list[str]:
    result = content.tuning
    if result is None:
        return []
    objectives = [
        [
            o.objective.name,
            o.objective.level,
            f"{o.objective.op} {units.figure(o.objective.metric, o.objective.target)}",
            units.figure(o.objective.metric, o.before),
            units.figure(o.objective.metric, o.after),
            _MET[o.met],
        ]
        for o in result.objectives
    ]
    lines = _section("Objectives", ["objective", "level", "target", "before", "after", ""], objectives)
    phases = []
    for p in result.phases:
        f = p.figures.get(result.scenario)
        projected = p.projection.figures.p95_s if p.projection and p.projection.figures else None
        cells = [units.figure(metric, getattr(f, metric)) if f else "" for metric in _ROADMAP]
        phases.append([p.name, units.estimate("p95_s", projected) if projected else "", *cells])
    head = [
        "phase",
        "projected P95",
        "measured P95",
        "mean",
        "throughput",
        "answered",
        "hits",
        "cost per 1,000",
        "memory",
    ]
    lines += _section("Roadmap", head, phases)
    steps = [[p.title, describe(p.change), "gateway" if p.gateway else "code"] for p in result.proposals]
    return lines + (_section("What to do first", ["step", "change", "how"], steps) if steps else [])


def _section(title: str, head: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    table = [
        f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *([_cell(c) for c in r] for r in rows))
    ]
    return [f"## {title}", "", *table, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
