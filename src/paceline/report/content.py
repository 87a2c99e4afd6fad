"""What a report says, gathered from a tuning or a run; how it looks is the template's business."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from paceline.diagnose import diagnose
from paceline.errors import InputError
from paceline.model.change import describe
from paceline.model.figures import Figures, Objective
from paceline.model.finding import Finding
from paceline.model.request import ResourceSample
from paceline.model.run import COMPLETE, RUNNING, RunInfo
from paceline.model.tuning import PhaseResult, TuneResult
from paceline.report import charts, units, waterfalls
from paceline.report.distribution import within_plot
from paceline.report.load_part import LoadPart, load_in_words, load_part
from paceline.report.measured import measure_run
from paceline.report.plots import CLOCK, MEGABYTES, Axis, Layer, Plot
from paceline.store.folder import RunFolder, open_run
from paceline.store.tuning import load_result
from paceline.trace.data import RunData
from paceline.trace.figures import APP
from paceline.trace.streaming import parse_bound
from paceline.trace.tree import Trace, build_traces

NOTHING = Markup("")  # a picture there is no data for


@dataclass(frozen=True, slots=True)
class Tile:
    """One headline figure."""

    label: str
    before: str
    after: str | None
    better: bool | None  # None: no change worth a colour


@dataclass(frozen=True, slots=True)
class ShownFinding:
    """A finding with its picture."""

    finding: Finding
    waterfall: Markup
    fix: str  # the Change in words
    gone: bool | None  # True: the last run no longer shows it; None: there is no later run


@dataclass(slots=True)
class Content:
    """Everything the page shows."""

    title: str
    headline: str
    subtitle: str
    warnings: list[str] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    tuning: TuneResult | None = None
    roadmap: Markup = NOTHING
    distribution: Markup = NOTHING
    load: LoadPart | None = None
    has_spans: bool = True
    findings: list[ShownFinding] = field(default_factory=list)
    cost: Markup = NOTHING
    memory: Markup = NOTHING
    figures: list[tuple[str, Figures]] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)


_TILES = (
    ("P95", "p95_s", False),
    ("mean", "mean_s", False),
    ("throughput", "requests_per_s", True),
    ("answered", "success_ratio", True),
    ("cache hits", "hit_ratio", True),
    ("cost per 1,000", "cost_per_1000_usd", False),
    ("memory, peak", "memory_mb", False),
    ("answer quality", "quality_ratio", True),
)
_LOAD_TILES = (
    ("P50", "p50_s", False),
    ("P95", "p95_s", False),
    ("P99", "p99_s", False),
    ("answered a second", "requests_per_s", True),
    ("answered", "success_ratio", True),
    ("first token, P95", "first_token_p95_s", False),
    ("tokens a second", "tokens_per_s", True),
    ("goodput", "goodput_ratio", True),
    ("cache hits", "hit_ratio", True),
    ("cost per 1,000", "cost_per_1000_usd", False),
    ("memory, peak", "memory_mb", False),
    ("processor, busy", "processor_busy_ratio", False),
)


def content_of(path: Path, *, salvage: bool = False) -> Content:
    """What to show for a tune folder or a run folder. Raises InputError for anything else, and for an empty run."""
    if path.is_file() or (path / "tune.json").is_file():
        return tuning_content(path if path.is_dir() else path.parent)
    return run_content(open_run(path, salvage=salvage))


def tuning_content(folder: Path) -> Content:
    """The before and after of a tuning, its roadmap and its findings."""
    result = load_result(folder)
    measured = result.measured
    if not measured:
        msg = f"{folder} has no measured phase yet ({result.reason or result.state}): run `paceline tune` again"
        raise InputError(msg, path=folder)
    first, last = measured[0], measured[-1]
    name = result.scenario
    before, after = first.figures[name], last.figures[name] if last is not first else None
    first_data = load_data(open_run(folder / str(first.run), salvage=True)).scenario(name)
    last_data = load_data(open_run(folder / str(last.run), salvage=True)).scenario(name) if after else None
    content = Content(
        title=result.name,
        headline=_headline(before, after),
        subtitle=_load_in_words(first),
        tiles=_tiles(before, after),
        tuning=result,
        figures=[(p.title or p.name, f) for p in measured for s, f in p.figures.items() if s == name],
    )
    if result.state != COMPLETE:
        content.warnings.append(f"This tuning is partial: {result.reason or 'it was interrupted'}.")
    if result.speed != 1.0:
        content.warnings.append(speed_note(result.speed))
    content.warnings += [f"{p.title or p.name}: {note}" for p in measured for note in p.notes]
    targets = _targets(result, "p95_s")
    content.roadmap = charts.roadmap([_phase_mark(p, name) for p in result.phases], targets)
    within = within_plot(
        [
            ("before", "before", [r.latency_s for r in first_data.requests]),
            ("after", "after", [r.latency_s for r in last_data.requests] if last_data else []),
        ],
        targets,
    )
    content.distribution = within.draw() if within else NOTHING
    traces = build_traces(first_data.spans, first_data.requests)
    left = {(f.rule, f.where.step) for f in result.left}
    content.findings = [
        _shown(f, traces, gone=None if after is None else (f.rule, f.where.step) not in left) for f in result.findings
    ]
    last_traces = build_traces(last_data.spans, last_data.requests) if last_data else None
    content.cost = _cost(traces, len(first_data.requests), last_traces, len(last_data.requests) if last_data else 0)
    content.memory = _memory(first_data.resources, last_data.resources if last_data else [])
    content.facts = _tuning_facts(result)
    content.assumptions = sorted({a for p in result.phases if p.projection for a in p.projection.assumptions})
    return content


def run_content(run: RunFolder) -> Content:
    """One run: its figures, the course of its load, findings, cost and memory."""
    measured = measure_run(run, [parse_bound(text) for text in run.info.goodput])
    table, data, figures, by_scenario = measured.table, measured.data, measured.whole, measured.scenarios
    if not len(table) and not data.spans:
        msg = f"{run.path} is empty: no request and no span was recorded. Send requests while it is recorded"
        raise InputError(msg, path=run.path)
    traces = build_traces(data.spans, data.requests)
    content = Content(
        title=run.info.name,
        headline=f"P95 {units.seconds(figures.p95_s)}, mean {units.seconds(figures.mean_s)}",
        subtitle=f"{figures.requests:,} requests in {units.seconds(figures.duration_s)}",
        tiles=_tiles(figures, None, _LOAD_TILES if len(table) else _TILES),
        figures=list(by_scenario.items()),
        has_spans=bool(data.spans),
        findings=[_shown(f, traces, gone=None) for f in diagnose(data)],
        facts=_run_facts(run.info),
    )
    if len(table):
        if words := load_in_words(run.info):
            content.subtitle = f"{words}, in {units.seconds(figures.duration_s)}"
        content.load = load_part(run, table, data.requests, by_scenario, data.resources)
    else:
        content.memory = _memory(data.resources, [])
    content.cost = _cost(traces, len(data.requests) or len(traces), None, 0)
    content.warnings += _warnings(run)
    return content


def _warnings(run: RunFolder) -> list[str]:
    found = []
    if run.info.state == RUNNING:
        found.append("This run has no end: it was killed, or is still being written. What is there is right.")
    elif run.info.state != COMPLETE:
        found.append(f"This run is {run.info.state}: {run.info.reason or 'no reason was given'}.")
    found += [f"{s.name} stopped early: {s.stopped}." for s in run.info.scenarios if s.stopped]
    found += [f"{s.name}: {s.trouble}. Its figures show that, too." for s in run.info.scenarios if s.trouble]
    if run.info.speed != 1.0:
        found.append(speed_note(run.info.speed))
    return found + [f"Left out because it is damaged: {p.name}." for p in run.damaged]


def load_data(run: RunFolder) -> RunData:
    """All of a run in memory."""
    return RunData(info=run.info, requests=run.requests(), spans=run.spans(), resources=run.resources())


def speed_note(speed: float) -> str:
    """What a reader must know about a run made faster than real."""
    return (
        f"The simulated provider ran {speed:g} times faster than real. All times are at the provider's real pace: "
        f"what the clock said, times {speed:g}. The service's own work is therefore over-stated {speed:g} times; "
        "real runs do better."
    )


def _headline(before: Figures, after: Figures | None) -> str:
    if after is None:
        return f"P95 {units.seconds(before.p95_s)}"
    return f"P95 {units.seconds(before.p95_s)} → {units.seconds(after.p95_s)}"


def _load_in_words(phase: PhaseResult) -> str:
    parts = []
    for s in phase.scenarios:
        if s.model == "closed":
            parts.append(f"{s.name}: {s.users:,} users, {s.requests:,} requests")
        else:
            parts.append(f"{s.name}: {s.rate_per_s:g} requests/s, {s.requests:,} in all")
    return " · ".join(parts)


def _tiles(before: Figures, after: Figures | None, wanted: Sequence[tuple[str, str, bool]] = _TILES) -> list[Tile]:
    tiles = []
    for label, metric, more_is_better in wanted:
        old, new = getattr(before, metric), getattr(after, metric) if after else None
        if old is None and new is None:
            continue
        better = None
        if old is not None and new is not None and abs(new - old) > 0.02 * abs(old):
            better = (new > old) == more_is_better
        tiles.append(Tile(label, units.figure(metric, old), units.figure(metric, new) if after else None, better))
    return tiles


def _targets(result: TuneResult, metric: str) -> list[tuple[str, float]]:
    wanted: list[Objective] = [o.objective for o in result.objectives if o.scenario == result.scenario]
    return [
        (f"{o.level} {o.op} {units.figure(metric, o.target)}", float(o.target))
        for o in wanted
        if o.metric == metric and o.op[0] == "<"
    ]


def _phase_mark(phase: PhaseResult, scenario: str) -> charts.PhaseMark:
    projected = phase.projection.figures.p95_s if phase.projection and phase.projection.figures else None
    figures = phase.figures.get(scenario)
    return charts.PhaseMark(
        phase.name,
        (projected.low, projected.value, projected.high) if projected else None,
        figures.p95_s if figures else None,
    )


def _shown(finding: Finding, traces: list[Trace], *, gone: bool | None) -> ShownFinding:
    trace = waterfalls.example(finding, traces)
    picture = waterfalls.draw(trace, finding) if trace else NOTHING
    return ShownFinding(finding, picture, describe(finding.change) if finding.change else "", gone)


def _cost_by_step(traces: list[Trace], requests: int) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for trace in traces:
        for call in trace.calls:
            if call.cost_usd:
                totals[f"{call.step or call.kind} · {call.model}"] += call.cost_usd
    return {name: total / requests * 1000 for name, total in totals.items()} if requests else {}


def _cost(before: list[Trace], requests: int, after: list[Trace] | None, after_requests: int) -> Markup:
    old = _cost_by_step(before, requests)
    new = _cost_by_step(after, after_requests) if after is not None else None
    names = sorted(set(old) | set(new or {}), key=lambda n: -max(old.get(n, 0), (new or {}).get(n, 0)))[:14]
    if not names:
        return NOTHING
    rows = []
    for name in names:
        a, b = old.get(name, 0.0), new.get(name, 0.0) if new is not None else None
        text = units.dollars(a) if b is None else f"{units.dollars(a)} → {units.dollars(b)}"
        rows.append(charts.Bar(name, a, b, text))
    return charts.bars(rows, label="cost per 1,000 requests by step and model")


def _memory(before: list[ResourceSample], after: list[ResourceSample]) -> Markup:
    layers = []
    for samples, label in ((before, "before"), (after, "after")):
        app = [s for s in samples if s.service == APP]
        app = app[:: max(1, len(app) // 400)]
        if app:
            xs = [s.at_s - app[0].at_s for s in app]
            layers.append(Layer(label=label, css=label, xs=xs, ys=[s.rss_bytes / 1e6 for s in app]))
    if not layers:
        return NOTHING
    x = Axis(low=0.0, high=max(max(layer.xs) for layer in layers) or 1.0, unit=CLOCK)
    y = Axis.over([y for layer in layers for y in layer.ys if y is not None], MEGABYTES)
    return Plot(title="Memory over the time of the run", group="memory", x=x, y=y, layers=layers).draw()


def _run_facts(info: RunInfo) -> list[tuple[str, str]]:
    facts = [
        ("run", info.id),
        ("Paceline", info.paceline),
        ("command", " ".join(info.command)),
        ("speed", f"{info.speed:g}"),
    ]
    facts += [(name, str(value)) for name, value in info.host.items()]
    for s in info.scenarios:
        lag = units.seconds(s.lag_p99_s) if s.lag_p99_s is not None else "not known"
        facts.append((f"load {s.name}", f"{s.model}, {s.requests:,} requests, seed {s.seed}; generator lag P99 {lag}"))
    return [(k, v) for k, v in facts if v]


def _tuning_facts(result: TuneResult) -> list[tuple[str, str]]:
    facts = [
        ("target", result.target),
        ("started", result.started_at),
        ("projections written", result.projected_at or "not written"),
        ("provider", result.provider + (f" at {result.speed:g} times real pace" if result.speed != 1 else "")),
        ("seed", str(result.seed)),
        ("Paceline", result.paceline),
        *((name, str(value)) for name, value in result.host.items()),
    ]
    for s in result.measured[-1].scenarios:
        if s.lag_p99_s is not None:
            cpu = f", {s.generator_cpu_ratio * 100:.0f} % of a core" if s.generator_cpu_ratio is not None else ""
            facts.append((f"generator, {s.name}", f"lag P99 {units.seconds(s.lag_p99_s)}{cpu}"))
    return facts
