"""What a report says of a driven load: plots, endpoints, errors, streams, the generator, objectives."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from paceline.load.gates import Gate, judge
from paceline.load.tally import failure
from paceline.model.figures import Figures
from paceline.model.request import Request, ResourceSample
from paceline.model.run import RunInfo, ScenarioInfo
from paceline.report import units
from paceline.report.distribution import distribution_plots
from paceline.report.over_time import plots_over_time
from paceline.report.table import HIT, MISS, Table
from paceline.stats.leak import leak_verdict
from paceline.store.folder import RunFolder
from paceline.trace.figures import APP
from paceline.trace.streaming import StreamingFigures, parse_bound, streaming_parts

_MOST_ROWS = 50
_ERRORS = """
    SELECT scenario, endpoint, error, status, failed_check, count(*), min(ended_s), max(ended_s),
        arg_min(index, ended_s), arg_min(trace_id, ended_s)
    FROM requests WHERE error IS NOT NULL GROUP BY ALL ORDER BY count(*) DESC, min(ended_s)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRow:
    """One endpoint, or the cached part of all."""

    label: str
    figures: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRow:
    """One kind of error at one endpoint. Seconds since the load began."""

    kind: str
    endpoint: str
    scenario: str
    count: int
    ratio: float  # of all requests
    first_s: float
    last_s: float
    first_index: int
    first_trace_id: str


@dataclass(slots=True, kw_only=True)
class LoadPart:
    """All of it; empty lists are left out of the page."""

    over_time: list[Markup]
    distribution: list[Markup]
    scenarios: list[ScenarioInfo]
    figures: dict[str, Figures]  # by scenario
    endpoints: list[EndpointRow]
    errors: list[ErrorRow]
    more_errors: int  # kinds that are left out
    streams: dict[str, StreamingFigures]
    gates: list[Gate] = field(default_factory=list)
    goodput: list[tuple[str, float, float | None, str]] = field(default_factory=list)
    memory: str = ""  # the verdict's sentence


def load_part(
    run: RunFolder, table: Table, requests: Sequence[Request], figures: dict[str, Figures],
    resources: Sequence[ResourceSample],
) -> LoadPart:  # fmt: skip
    """What there is to say.

    Args:
        run: For its errors.
        table: Its requests, at least one.
        requests: The same as records; empty for a run too large for that, whose streams then have no gaps.
        figures: By scenario, goodput included.
        resources: Its samples.
    """
    objectives = run.info.objectives
    zero_s = float(table.intended_s.min())
    errors = _errors(run, zero_s, len(table))
    return LoadPart(
        over_time=[plot.draw() for plot in plots_over_time(table, resources, objectives)],
        distribution=[plot.draw() for plot in distribution_plots(table)],
        scenarios=run.info.scenarios,
        figures=figures,
        endpoints=_endpoints(table),
        errors=errors[:_MOST_ROWS],
        more_errors=max(0, len(errors) - _MOST_ROWS),
        streams=streaming_parts(requests),
        gates=judge(objectives, figures),
        goodput=_goodput(figures, run.info.goodput),
        memory=_memory(resources, zero_s, float(table.ended_s.max())),
    )


def _endpoints(table: Table) -> list[EndpointRow]:
    """Endpoints where there are several, then what the cache answered and what it did not."""
    names = table.endpoints
    rows = [EndpointRow(label=name, figures=table.endpoint(name).figures()) for name in names[:_MOST_ROWS]]
    rows = sorted(rows, key=lambda row: -row.figures.requests) if len(names) > 1 else []
    if (table.cache == HIT).any():
        rows.append(EndpointRow(label="answered from the cache", figures=table.part(table.cache == HIT).figures()))
        rows.append(EndpointRow(label="not from the cache", figures=table.part(table.cache == MISS).figures()))
    return [EndpointRow(label="all", figures=table.figures()), *rows]


def _errors(run: RunFolder, zero_s: float, requests: int) -> list[ErrorRow]:
    return [
        ErrorRow(
            kind=failure(error, status, check),
            endpoint=endpoint,
            scenario=scenario,
            count=count,
            ratio=count / requests,
            first_s=first_s - zero_s,
            last_s=last_s - zero_s,
            first_index=index,
            first_trace_id=trace_id,
        )
        for scenario, endpoint, error, status, check, count, first_s, last_s, index, trace_id in run.query(_ERRORS)
    ]


def _goodput(figures: dict[str, Figures], bounds: Sequence[str]) -> list[tuple[str, float, float | None, str]]:
    words = ", ".join(f"{b.measure} <= {b.limit_s:g}" for b in map(parse_bound, bounds))
    return [
        (name, f.goodput_ratio, f.goodput_per_s, words) for name, f in figures.items() if f.goodput_ratio is not None
    ]


def _memory(resources: Sequence[ResourceSample], start_s: float, end_s: float) -> str:
    during = [r for r in resources if r.service == APP and start_s <= r.at_s <= end_s]
    if not during:
        return ""
    found = leak_verdict([r.at_s for r in during], [r.rss_bytes for r in during])
    if found.confidence is None:
        return f"{found.verdict}: {found.reason}."
    sure = f"Confidence that it grows faster than 0.2 MB/min: {units.percent(found.confidence)}."
    return f"{found.verdict}: {found.reason}. {sure}"


def load_in_words(info: RunInfo) -> str:
    """What was asked of the target, scenario after scenario."""
    return " · ".join(_scenario_in_words(s) for s in info.scenarios[:4]) + (
        f" · and {len(info.scenarios) - 4} more" if len(info.scenarios) > 4 else ""
    )


def _scenario_in_words(info: ScenarioInfo) -> str:
    if info.users:
        return f"{info.name}: {info.users:,} users, {info.requests:,} requests"
    rate = f"{info.rate_per_s:,.4g} requests/s asked" if info.rate_per_s else "a recorded trace"
    return f"{info.name}: {rate}, {info.arrivals}, {info.requests:,} requests"
