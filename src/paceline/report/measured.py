"""Measured: the figures of a run's scenarios, at any number of requests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paceline.model.figures import Figures
from paceline.model.request import Request
from paceline.report.table import HIT, Table
from paceline.store.folder import RunFolder
from paceline.trace.data import RunData
from paceline.trace.figures import figures_of
from paceline.trace.streaming import Bound

_MOST_RECORDS = 100_000  # requests held as records: 25 s of CPU and 1.7 GB for a million
_ERRORS = """
    SELECT scenario, error || CASE WHEN error = 'status' AND status > 0 THEN ' ' || status ELSE '' END AS name, count(*)
    FROM requests WHERE error IS NOT NULL GROUP BY scenario, name ORDER BY name"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A run. `data` has no requests when there are too many for records; the figures are the same."""

    table: Table
    data: RunData
    whole: Figures
    scenarios: dict[str, Figures]  # in the order they began


def measure_run(run: RunFolder, bounds: Sequence[Bound] = ()) -> Measured:
    """The figures of a run and of each of its scenarios, goodput by `bounds` included."""
    spans, resources, table = run.spans(), run.resources(), Table.of(run)
    is_large = len(table) > _MOST_RECORDS and not spans and bool(np.isnan(table.first_token_s).all())
    data = RunData(info=run.info, requests=[] if is_large else run.requests(), spans=spans, resources=resources)
    if is_large:
        errors: dict[str, dict[str, int]] = {"": {}}
        for scenario, name, count in run.query(_ERRORS):
            errors.setdefault(scenario, {})[name] = count
            errors[""][name] = errors[""].get(name, 0) + count
        found = {n: table.scenario(n).figures(resources, errors.get(n), bounds) for n in table.scenarios}
        return Measured(table=table, data=data, whole=table.figures(resources, errors[""], bounds), scenarios=found)
    whole, names = figures_of(data.requests, spans, resources, bounds=bounds), data.scenario_names
    if len(names) == 1 and not spans:
        return Measured(table=table, data=data, whole=whole, scenarios={names[0]: whole})
    parts = {name: data.scenario(name) for name in names}
    found = {n: figures_of(d.requests, d.spans, d.resources, bounds=bounds) for n, d in parts.items()}
    return Measured(table=table, data=data, whole=whole, scenarios=found)


def parts_of(measured: Measured, scenario: str) -> dict[str, Figures]:
    """A scenario's requests apart: by endpoint where there are several, cached and uncached where answers say so."""
    if not measured.data.requests:
        return _table_parts(measured.table.scenario(scenario))
    requests = [r for r in measured.data.requests if r.scenario == scenario]
    endpoints = sorted({r.endpoint for r in requests})
    parts: dict[str, list[Request]] = {}
    if len(endpoints) > 1:
        parts = {e: [r for r in requests if r.endpoint == e] for e in endpoints}
    if any(r.cache for r in requests):
        parts["cached"] = [r for r in requests if r.cache in ("hit", "join")]
        parts["uncached"] = [r for r in requests if r.cache not in ("hit", "join")]
    return {name: figures_of(part, [], []) for name, part in parts.items() if part}


def _table_parts(table: Table) -> dict[str, Figures]:
    used = {table.names[i].endpoint for i in np.unique(table.name).tolist()}
    parts = {name: table.endpoint(name) for name in sorted(used)} if len(used) > 1 else {}
    if (table.cache > 0).any():
        parts |= {"cached": table.part(table.cache == HIT), "uncached": table.part(table.cache != HIT)}
    return {name: part.figures() for name, part in parts.items() if len(part)}
