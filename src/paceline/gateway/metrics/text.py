"""Counts as Prometheus reads them, and as a table of costs."""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import msgspec

from paceline.gateway.metrics.counts import BOUNDS, Names, Series, Snapshot, Spread

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_WHO = ("tenant", "key", "model", "step")
_SPENT = ("tenant", "key", "model", "served_model", "step")

# Counters and gauges that are no sums over series: what they are, by family.
_HELP = {
    "paceline_refusals_total": "Requests the gateway refused at its door, by status, reason and key.",
    "paceline_reloads_total": "Times a new configuration was read, by result.",
    "paceline_worker_restarts_total": "Processes that died and were replaced.",
    "paceline_access_log_dropped_total": "Lines of the access log that were dropped because they could not be written.",
    "paceline_open_requests": "Requests being answered now, calls and pages.",
    "paceline_in_flight_calls": "Calls at a provider now.",
    "paceline_waiting_calls": "Calls that wait for a limit now.",
    "paceline_shared_calls": "Calls under way that others may join.",
    "paceline_upstream_connections": "Connections to providers.",
    "paceline_limit_waiting_calls": "Calls that wait, by model.",
    "paceline_limit_learned_per_second": "Calls a second the limiter thinks a provider takes.",
    "paceline_cache_events_total": "What happened in a level of the cache.",
    "paceline_cache_bytes": "Bytes kept in memory, over all processes.",
    "paceline_cache_entries": "Answers kept in memory, over all processes.",
    "paceline_cache_shared_bytes": "Bytes kept in a level that processes share.",
    "paceline_cache_shared_entries": "Answers kept in a level that processes share.",
    "paceline_cache_up": "Processes for which a level of the cache works.",
    "paceline_workers": "Processes that serve.",
    "paceline_key_spent_usd": "What a key has spent in the current day or month (UTC).",
}


def prometheus_text(snapshot: Snapshot) -> bytes:
    """The text format 0.0.4. Families and labels in a fixed order."""
    lines: list[str] = []
    calls = [series for series in snapshot.series if series.names.operation]
    for total in _SUMS:
        _sum(lines, total, calls)
    _sum(lines, _PASSED, (series for series in snapshot.series if not series.names.operation))
    for distribution in _DISTRIBUTIONS:
        _head(lines, distribution.name, "histogram", distribution.text)
        for field, extra in distribution.fields:
            _buckets(lines, distribution.name, calls, field, distribution.by, extra)
    for kind, families in (("counter", snapshot.counters), ("gauge", snapshot.gauges)):
        for family in sorted(families):
            _head(lines, family, kind, _HELP.get(family, family.replace("_", " ")))
            for labels, value in sorted(families[family].items()):
                lines.append(f"{family}{{{labels}}} {_number(value)}" if labels else f"{family} {_number(value)}")
    return ("\n".join(lines) + "\n").encode()


def label(name: str, value: str) -> str:
    """One label as it is written."""
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{name}="{escaped}"'


class CostRow(msgspec.Struct, kw_only=True):
    """What one key spent on one model for one step."""

    tenant: str
    key: str
    model: str  # as it was asked for
    served_model: str  # as it was asked of the provider
    step: str
    calls: int = 0
    hits: int = 0  # answered from the cache, or by another's call
    unpriced_calls: int = 0  # whose cost nobody knows; `cost_usd` is without them
    cost_usd: float = 0.0
    saved_usd: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


def cost_rows(snapshot: Snapshot) -> list[CostRow]:
    """The costs, dearest first."""
    rows: dict[tuple[str, ...], CostRow] = {}
    for series in snapshot.series:
        names = series.names
        if not names.operation:
            continue
        who = (names.tenant, names.key, names.model, names.served_model, names.step)
        row = rows.get(who)
        if row is None:
            row = rows[who] = CostRow(tenant=who[0], key=who[1], model=who[2], served_model=who[3], step=who[4])
        row.calls += series.calls
        row.hits += series.calls if names.outcome in ("hit", "join") else 0
        row.unpriced_calls += series.unpriced
        row.cost_usd += series.cost_usd
        row.saved_usd += series.saved_usd
        row.input_tokens += int(series.input_tokens.total)
        row.output_tokens += int(series.output_tokens.total)
        row.cached_tokens += series.cached_tokens
        row.reasoning_tokens += series.reasoning_tokens
    return sorted(rows.values(), key=lambda row: (-row.cost_usd, -row.calls, row.key, row.model, row.step))


class _Sum(msgspec.Struct, frozen=True):
    """A counter that is a sum over series."""

    name: str
    text: str
    by: tuple[str, ...]
    value: Callable[[Series], float]


class _Distribution(msgspec.Struct, frozen=True):
    """A histogram made of one field of the series."""

    name: str
    text: str
    by: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]  # (field of Series, label that tells it from the next)


_SUMS = (
    _Sum("paceline_calls_total", "Model calls that are over.", (*_WHO, "outcome", "level", "error"), lambda s: s.calls),
    _Sum("paceline_cost_usd_total", "Cost of the calls whose price is known.", _SPENT, lambda s: s.cost_usd),
    _Sum("paceline_unpriced_calls_total", "Calls whose cost nobody knows.", _WHO, lambda s: s.unpriced),
    _Sum("paceline_saved_usd_total", "What hits and joined calls would have cost.", _WHO, lambda s: s.saved_usd),
    _Sum("paceline_input_tokens_total", "Tokens sent.", _WHO, lambda s: s.input_tokens.total),
    _Sum("paceline_cached_tokens_total", "Of them, read from the provider's cache.", _WHO, lambda s: s.cached_tokens),
    _Sum("paceline_output_tokens_total", "Tokens received.", _WHO, lambda s: s.output_tokens.total),
    _Sum("paceline_reasoning_tokens_total", "Of them, reasoning.", _WHO, lambda s: s.reasoning_tokens),
    _Sum("paceline_estimated_calls_total", "Calls whose tokens were estimated.", ("model",), lambda s: s.estimated),
    _Sum("paceline_retries_total", "Further attempts at the provider.", ("model",), lambda s: s.retries),
    _Sum("paceline_hedged_calls_total", "Calls asked a second time for being late.", ("model",), lambda s: s.hedged),
    _Sum("paceline_fallback_calls_total", "Calls answered by a fallback.", ("model",), lambda s: s.fallbacks),
    _Sum(
        "paceline_wasted_usd_total", "Thought to be billed for given up attempts.", ("model",), lambda s: s.wasted_usd
    ),
)
_PASSED = _Sum(
    "paceline_other_requests_total", "Requests passed on, no model calls.", ("key", "error"), lambda s: s.calls
)

# Names, labels and bounds of OpenTelemetry's GenAI conventions where it has them.
_GEN_AI = {
    "operation": "gen_ai_operation_name",
    "provider": "gen_ai_provider_name",
    "model": "gen_ai_request_model",
    "error": "error_type",
}
_MODEL = ("operation", "provider", "model")
_DISTRIBUTIONS = (
    _Distribution(
        "gen_ai_client_operation_duration_seconds",
        "A whole call as its caller saw it; hits and joined calls by their outcome.",
        (*_MODEL, "outcome", "error"),
        (("seconds", ""),),
    ),
    _Distribution(
        "gen_ai_client_operation_time_to_first_chunk_seconds",
        "From sending a streamed call to the first piece of its answer.",
        _MODEL,
        (("first_seconds", ""),),
    ),
    _Distribution(
        "gen_ai_client_token_usage",
        "Tokens of a call.",
        _MODEL,
        (("input_tokens", 'gen_ai_token_type="input"'), ("output_tokens", 'gen_ai_token_type="output"')),
    ),
    _Distribution(
        "paceline_queue_seconds",
        "How long calls waited for a limit, of those that did.",
        ("model",),
        (("queue_seconds", ""),),
    ),
)


def _sum(lines: list[str], family: _Sum, series: Iterable[Series]) -> None:
    _head(lines, family.name, "counter", family.text)
    sums: dict[str, float] = {}
    for one in series:
        labels = _labels(one.names, family.by, {}, "")
        sums[labels] = sums.get(labels, 0) + family.value(one)
    lines.extend(f"{family.name}{{{labels}}} {_number(total)}" for labels, total in sorted(sums.items()))


def _buckets(lines: list[str], name: str, calls: Sequence[Series], field: str, by: Sequence[str], extra: str) -> None:
    spreads: dict[str, Spread] = {}
    for series in calls:
        one: Spread = getattr(series, field)
        labels = _labels(series.names, by, _GEN_AI if name.startswith("gen_ai_") else {}, extra)
        spreads.setdefault(labels, Spread([0] * len(one.counts))).merge(one)
    for labels, spread in sorted(spreads.items()):
        *inner, count = accumulate(spread.counts)
        if not count:
            continue
        for bound, below in zip(BOUNDS[field], inner, strict=True):
            lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {below}')
        lines.append(f'{name}_bucket{{{labels},le="+Inf"}} {count}')
        lines.append(f"{name}_sum{{{labels}}} {_number(spread.total)}")
        lines.append(f"{name}_count{{{labels}}} {count}")


def _labels(names: Names, by: Sequence[str], renamed: dict[str, str], extra: str) -> str:
    parts = [label(renamed.get(name, name), getattr(names, name)) for name in by]
    return ",".join([*parts, extra] if extra else parts)


def _head(lines: list[str], name: str, kind: str, text: str) -> None:
    lines.append(f"# HELP {name} {text}")
    lines.append(f"# TYPE {name} {kind}")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
