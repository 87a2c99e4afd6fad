"""The requests of a run as columns: what a report of a million requests is made from, in seconds and 100 MB."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from paceline.model.figures import Figures
from paceline.model.request import ResourceSample
from paceline.stats.quantiles import quantile_ranks
from paceline.store.folder import RunFolder
from paceline.trace.figures import resource_figures
from paceline.trace.streaming import Bound

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
HIT, MISS = 1, 2
_FLOATS = ("intended_s", "started_s", "ended_s", "first_token_s", "first_byte_s", "tokens", "cost_usd")
_NAMES = """
    SELECT scenario, endpoint, row_number() OVER (ORDER BY min(intended_s), scenario, endpoint) - 1 AS name
    FROM requests GROUP BY scenario, endpoint"""
_ROWS = f"""
    WITH names AS ({_NAMES})
    SELECT n.name, r.intended_s, r.started_s, r.ended_s, r.error IS NULL AS ok,
        coalesce(r.error, '') IN ('', 'timeout') AS timed,
        CASE WHEN r.cache IN ('hit', 'join') THEN 1 WHEN r.cache IS NULL THEN 0 ELSE 2 END::TINYINT AS cache,
        coalesce(r.first_token_s, CASE WHEN len(r.gaps_s) > 0 THEN r.first_byte_s END, 'nan'::DOUBLE) AS first_token_s,
        coalesce(r.first_byte_s, 'nan'::DOUBLE) AS first_byte_s,
        coalesce(r.cost_usd, 'nan'::DOUBLE) AS cost_usd,
        coalesce(r.output_tokens, CASE WHEN len(r.gaps_s) > 0 THEN len(r.gaps_s) + 1 ELSE 0 END) AS tokens
    FROM requests r JOIN names n ON r.scenario = n.scenario AND r.endpoint = n.endpoint"""  # noqa: S608 - nothing from outside


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """What the number in `Table.name` stands for."""

    scenario: str
    endpoint: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns of equal length, a row a request, in no order. Seconds at the provider's pace since the run's start."""

    names: Sequence[Name]
    name: NDArray[np.int64]
    intended_s: Floats
    started_s: Floats
    ended_s: Floats
    first_token_s: Floats  # NaN: it did not stream
    first_byte_s: Floats  # NaN: none came
    tokens: Floats
    cost_usd: Floats  # NaN: not stated
    ok: Flags
    timed: Flags  # answered or timed out: what latencies are taken of
    cache: NDArray[np.int8]  # HIT, MISS or 0

    @classmethod
    def of(cls, run: RunFolder) -> "Table":
        """All requests of a run."""
        names = [Name(scenario=row[0], endpoint=row[1]) for row in run.query(f"{_NAMES} ORDER BY name")]
        found = run.columns(_ROWS)
        floats = {name: np.asarray(found[name], dtype=np.float64) for name in _FLOATS}
        return cls(
            names=names,
            name=np.asarray(found["name"], dtype=np.int64),
            ok=np.asarray(found["ok"], dtype=bool),
            timed=np.asarray(found["timed"], dtype=bool),
            cache=np.asarray(found["cache"], dtype=np.int8),
            **floats,
        )

    def __len__(self) -> int:
        return len(self.name)

    @cached_property
    def latency_s(self) -> Floats:
        """From the intended start."""
        return self.ended_s - self.intended_s

    @property
    def scenarios(self) -> list[str]:
        """In the order they began."""
        return list(dict.fromkeys(name.scenario for name in self.names))

    @property
    def endpoints(self) -> list[str]:
        """In the order they were first asked."""
        return list(dict.fromkeys(name.endpoint for name in self.names))

    def part(self, rows: Flags) -> "Table":
        """Only these rows."""
        columns = {name: getattr(self, name)[rows] for name in (*_FLOATS, "name", "ok", "timed", "cache")}
        return Table(names=self.names, **columns)

    def scenario(self, name: str) -> "Table":
        """Only the requests of one scenario."""
        return self.part(np.isin(self.name, [i for i, n in enumerate(self.names) if n.scenario == name]))

    def endpoint(self, name: str) -> "Table":
        """Only the requests to one endpoint."""
        return self.part(np.isin(self.name, [i for i, n in enumerate(self.names) if n.endpoint == name]))

    def figures(
        self,
        resources: Sequence[ResourceSample] = (),
        errors: dict[str, int] | None = None,
        bounds: Sequence[Bound] = (),
    ) -> Figures:
        """What `trace.figures.figures_of` says of the same requests when they have no spans and did not stream."""
        if not len(self):
            return Figures(requests=0, duration_s=0.0)
        start_s, end_s = float(self.intended_s.min()), float(self.ended_s.max())
        duration_s, ok = end_s - start_s, int(self.ok.sum())
        rate_per_s = ok / duration_s if duration_s > 0 else None
        says = self.cache > 0
        figures = Figures(
            requests=len(self),
            duration_s=duration_s,
            requests_per_s=rate_per_s,
            success_ratio=ok / len(self),
            hit_ratio=float((self.cache[says] == HIT).mean()) if says.any() else None,
            errors=errors or {},
        )
        found: dict[str, object] = dict(resource_figures(resources, start_s, end_s, rate_per_s))
        found |= self._cost() | self._goodput(bounds, duration_s)
        timed = np.sort(self.latency_s[self.timed])
        if len(timed):
            for q in (0.5, 0.95, 0.99):
                found[f"p{q * 100:.0f}_s"] = at_quantile(timed, q)
                found[f"p{q * 100:.0f}_interval_s"] = _interval(timed, q)
            found |= {"mean_s": math.fsum(timed.tolist()) / len(timed), "max_s": float(timed[-1])}
        for name, rows in (("cached", self.cache == HIT), ("uncached", self.cache == MISS)):
            part = np.sort(self.latency_s[rows & self.timed])
            if len(part):
                found |= {f"{name}_p50_s": at_quantile(part, 0.5), f"{name}_p95_s": at_quantile(part, 0.95)}
        first = np.sort((self.first_byte_s - self.intended_s)[self.timed])
        first = first[~np.isnan(first)]
        if len(first):
            found |= {"first_byte_p50_s": at_quantile(first, 0.5), "first_byte_p95_s": at_quantile(first, 0.95)}
        return msgspec.structs.replace(figures, **found)

    def _cost(self) -> dict[str, object]:
        """As stated by answers, if all that were billed state it."""
        costs = np.where(self.cache == HIT, 0.0, self.cost_usd)[self.ok]
        if np.isnan(self.cost_usd).all() or np.isnan(costs).any():
            return {}
        return {"cost_per_1000_usd": math.fsum(costs.tolist()) / len(self) * 1000}

    def _goodput(self, bounds: Sequence[Bound], duration_s: float) -> dict[str, object]:
        """Bounds on what only streams have are met by all others."""
        if not bounds:
            return {}
        limit_s = min((bound.limit_s for bound in bounds if bound.measure == "latency_s"), default=math.inf)
        good = int((self.ok & (self.latency_s <= limit_s)).sum())
        return {"goodput_ratio": good / len(self), "goodput_per_s": good / duration_s if duration_s > 0 else None}


def at_quantile(ordered: Floats, q: float) -> float:
    """The q-th quantile of values in order, by nearest rank, as `stats.quantiles.quantile`."""
    return float(ordered[max(1, math.ceil(q * len(ordered) - 1e-9)) - 1])


def _interval(ordered: Floats, q: float) -> tuple[float, float] | None:
    low, high = quantile_ranks(len(ordered), q)
    return (float(ordered[low - 1]), float(ordered[high - 1])) if low >= 1 and high <= len(ordered) else None
