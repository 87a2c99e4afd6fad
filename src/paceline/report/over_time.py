"""The course of a load as plots over time: latency, rates, first tokens, the generator, the target's resources."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline.model.figures import Objective
from paceline.model.request import ResourceSample
from paceline.report.plots import (
    BAND,
    CLOCK,
    COUNT,
    DOTS,
    MEGABYTES,
    RATE,
    RATIO,
    SECONDS,
    Axis,
    Layer,
    Mark,
    Plot,
    Values,
)
from paceline.report.table import Floats, Table

GROUP = "time"
_MOST_BUCKETS = 360
_MOST_DOTS = 1500
_WANTED = 50  # requests a bucket: fewer have no P95 worth the name
_WIDTHS_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 15, 20, 30, 60, 120, 300, 600, 1800, 3600)
_QUANTILES = (("P50", "p50", 0.5), ("P95", "p95", 0.95), ("P99", "p99", 0.99), ("max", "most", 1.0))
_MOST_RATIO = 20.0  # of the largest to the least value: above, a linear axis shows only the largest


@dataclass(frozen=True, slots=True)
class Buckets:
    """Stretches of equal length from the start of the load."""

    zero_s: float
    width_s: float
    count: int
    last_ratio: float  # of the last one that lies within the load

    @classmethod
    def over(cls, table: Table) -> "Buckets":
        """As many as there are requests for, and no more than can be seen."""
        zero_s = float(table.intended_s.min())
        span_s = max(float(table.ended_s.max()) - zero_s, 1e-3)
        wanted = min(_MOST_BUCKETS, max(20, len(table) // _WANTED))
        least_s = span_s / wanted
        width_s = next((w for w in _WIDTHS_S if w >= least_s), 3600 * math.ceil(least_s / 3600))
        count = math.ceil(span_s / width_s)
        return cls(zero_s, float(width_s), count, span_s / width_s - count + 1)

    def place(self, at_s: Floats) -> NDArray[np.int64]:
        """The bucket of each time; those outside go to the ends."""
        return np.clip(((at_s - self.zero_s) / self.width_s).astype(np.int64), 0, self.count - 1)

    @property
    def middles_s(self) -> list[float]:
        """Seconds since the start of the load."""
        return [round((i + 0.5) * self.width_s, 6) for i in range(self.count)]

    @property
    def axis(self) -> Axis:
        """The time of the load."""
        return Axis(low=0.0, high=self.count * self.width_s, unit=CLOCK)

    def rate(self, at_s: Floats, weights: Floats | None = None) -> Values:
        """Events a second in each, or the sum of their weights; None in a last one that has hardly begun."""
        counts: list[float] = np.bincount(self.place(at_s), weights=weights, minlength=self.count).tolist()
        rates: list[float | None] = [count / self.width_s for count in counts]
        if self.count > 1:
            rates[-1] = counts[-1] / (self.width_s * self.last_ratio) if self.last_ratio >= 0.5 else None
        return rates

    def quantiles(self, at_s: Floats, values: Floats, qs: Sequence[float]) -> list[Values]:
        """Quantiles by nearest rank of the values in each; None where there are none."""
        places = self.place(at_s)
        order = np.lexsort((values, places))
        ordered = values[order]
        edges = np.searchsorted(places[order], np.arange(self.count + 1))
        counts = np.diff(edges)
        found: list[Values] = []
        for q in qs:
            ranks = edges[:-1] + np.maximum(1, np.ceil(q * counts - 1e-9)).astype(np.int64) - 1
            picked = ordered[np.minimum(ranks, max(0, len(ordered) - 1))].tolist() if len(ordered) else []
            found.append([picked[i] if counts[i] else None for i in range(self.count)])
        return found


def plots_over_time(
    table: Table, resources: Sequence[ResourceSample], objectives: Sequence[Objective] = ()
) -> list[Plot]:
    """All plots there is something to show in; `table` has at least one request."""
    buckets = Buckets.over(table)
    marks = _scenarios(table, buckets)
    plots = [_latency(table, buckets, marks, objectives), _rates(table, buckets, marks), _in_flight(table, buckets)]
    plots += _first_tokens(table, buckets)
    plots += _lateness(table, buckets)
    return plots + resource_plots(resources, buckets.zero_s, buckets.axis)


def _scenarios(table: Table, buckets: Buckets) -> list[Mark]:
    """Where each scenario begins, when there are a few."""
    names = table.scenarios
    if not 1 < len(names) <= 8:
        return []
    starts = [float(table.scenario(name).intended_s.min()) - buckets.zero_s for name in names]
    return [Mark(label=name, at=at_s, is_vertical=True) for name, at_s in zip(names, starts, strict=True)]


def _latency(table: Table, buckets: Buckets, marks: Sequence[Mark], objectives: Sequence[Objective]) -> Plot:
    timed = table.part(table.timed)
    at_s, latency_s = timed.intended_s, timed.latency_s
    found = buckets.quantiles(at_s, latency_s, [q for _, _, q in _QUANTILES])
    layers = _bands(buckets, found, _QUANTILES)
    if len(timed) <= _MOST_DOTS:
        xs, ys = (at_s - buckets.zero_s).round(4).tolist(), latency_s.tolist()
        layers = [Layer(label="", css="dot", xs=xs, ys=ys, kind=DOTS, is_read=False), *layers]
    targets = [
        Mark(label=f"{o.level}: {o.name}", at=float(o.target), is_vertical=False)
        for o in objectives
        if o.metric in ("p50_s", "p95_s", "p99_s", "max_s") and not isinstance(o.target, str) and o.op[0] == "<"
    ]
    values = [*_known(layers), *(mark.at for mark in targets)]
    return Plot(
        title="Latency",
        group=GROUP,
        x=buckets.axis,
        y=fitting(values, SECONDS),
        layers=layers,
        marks=[*marks, *targets],
        note=f"From when each request was wanted; quantiles of stretches of {buckets.width_s:g} s.",
        height_px=250,
    )


def _bands(buckets: Buckets, found: list[Values], names: Sequence[tuple[str, str, float]]) -> list[Layer]:
    """P50 to P95 and P95 to P99 as areas, the quantiles as lines on them."""
    xs = buckets.middles_s
    bands = [
        Layer(label="", css=f"{names[i + 1][1]} fill", xs=xs, ys=found[i + 1], lows=found[i], kind=BAND, is_read=False)
        for i in range(min(2, len(names) - 1))
    ]
    return [*bands, *(Layer(label=n, css=css, xs=xs, ys=ys) for (n, css, _), ys in zip(names, found, strict=True))]


def _rates(table: Table, buckets: Buckets, marks: Sequence[Mark]) -> Plot:
    xs = buckets.middles_s
    layers = [
        Layer(label="asked", css="asked", xs=xs, ys=buckets.rate(table.intended_s)),
        Layer(label="answered", css="answered", xs=xs, ys=buckets.rate(table.ended_s[table.ok])),
        Layer(label="failed", css="failed", xs=xs, ys=buckets.rate(table.ended_s[~table.ok])),
    ]
    y = Axis.over(_known(layers), RATE)
    return Plot(title="Requests and errors a second", group=GROUP, x=buckets.axis, y=y, layers=layers, marks=marks)


def _in_flight(table: Table, buckets: Buckets) -> Plot:
    """Wanted and not ended: what waits for a connection or for a late generator counts."""
    ends = buckets.zero_s + buckets.width_s * np.arange(1, buckets.count + 1)
    begun = np.searchsorted(np.sort(table.intended_s), ends, side="right")
    ended = np.searchsorted(np.sort(table.ended_s), ends, side="right")
    ys: list[float] = (begun - ended).tolist()
    layer = Layer(label="in flight", css="asked", xs=buckets.middles_s, ys=ys)
    y = Axis.over(ys, COUNT)
    return Plot(title="Requests in flight", group=GROUP, x=buckets.axis, y=y, layers=[layer], height_px=130)


def _first_tokens(table: Table, buckets: Buckets) -> list[Plot]:
    streamed = table.part(~np.isnan(table.first_token_s) & table.ok)
    if not len(streamed):
        return []
    names = _QUANTILES[:3]
    found = buckets.quantiles(
        streamed.intended_s, streamed.first_token_s - streamed.intended_s, [q for _, _, q in names]
    )
    layers = _bands(buckets, found, names)
    first = Plot(
        title="Time to first token", group=GROUP, x=buckets.axis, y=fitting(_known(layers), SECONDS), layers=layers
    )
    ys = buckets.rate(streamed.ended_s, streamed.tokens)
    tokens = Layer(label="tokens", css="answered", xs=buckets.middles_s, ys=ys)
    y = Axis.over(_known([tokens]), RATE)
    note = "Counted when an answer ends."
    rate = Plot(title="Tokens a second", group=GROUP, x=buckets.axis, y=y, layers=[tokens], note=note, height_px=130)
    return [first, rate]


def _lateness(table: Table, buckets: Buckets) -> list[Plot]:
    """How long after they were wanted requests were really sent."""
    late_s = np.maximum(table.started_s - table.intended_s, 0.0)
    if not (late_s > 1e-5).any():
        return []
    found = buckets.quantiles(table.intended_s, late_s, [0.5, 0.99])
    layers = [
        Layer(label=label, css=css, xs=buckets.middles_s, ys=ys)
        for label, css, ys in (("P50", "p50", found[0]), ("P99", "p99", found[1]))
    ]
    note = "The generator's own delay, or the wait for a connection. It is part of the latency above."
    return [
        Plot(
            title="Sent late by",
            group=GROUP,
            x=buckets.axis,
            y=Axis.over(_known(layers), SECONDS),
            layers=layers,
            note=note,
            height_px=130,
        )
    ]


# --- resources -------------------------------------------------------------------------------------------------------

Reading = Callable[[ResourceSample], float | None]
_CSS = ("answered", "p95", "p99", "asked")


def resource_plots(samples: Sequence[ResourceSample], zero_s: float, x: Axis) -> list[Plot]:
    """Memory, CPU, threads and descriptors, disk and network of whatever was sampled while `x` lasts."""
    kept = [s for s in samples if 0 <= s.at_s - zero_s <= x.high]
    services = list(dict.fromkeys(s.service for s in kept))
    of = {service: _thinned([s for s in kept if s.service == service]) for service in services}
    several = len(services) > 1
    gauges: list[tuple[str, str, list[tuple[str, Reading]]]] = [
        ("Memory", MEGABYTES, [("memory", lambda s: s.rss_bytes / 1e6)]),
        (
            "Threads and descriptors",
            COUNT,
            [
                ("threads", lambda s: s.threads or None),
                ("descriptors", lambda s: s.descriptors),
                ("sockets", lambda s: s.sockets),
            ],
        ),
    ]
    counters: list[tuple[str, str, list[tuple[str, Reading]]]] = [
        ("CPU, of a core", RATIO, [("CPU", lambda s: s.cpu_s)]),
        (
            "Disk, a second",
            MEGABYTES,
            [("read", lambda s: _mb(s.disk_read_bytes)), ("written", lambda s: _mb(s.disk_write_bytes))],
        ),
        (
            "Network, a second",
            MEGABYTES,
            [("received", lambda s: _mb(s.received_bytes)), ("sent", lambda s: _mb(s.sent_bytes))],
        ),
    ]
    found = []
    for title, unit, readings in gauges:
        found.append((title, unit, _resource_layers(of, readings, zero_s, several, _gauge)))
    for title, unit, readings in counters:
        found.append((title, unit, _resource_layers(of, readings, zero_s, several, _growth)))
    return [
        Plot(title=title, group=GROUP, x=x, y=Axis.over(_known(layers), unit), layers=layers, height_px=150)
        for title, unit, layers in found
        if any(value for value in _known(layers))
    ]


def _resource_layers(
    of: dict[str, list[ResourceSample]],
    readings: Sequence[tuple[str, Reading]],
    zero_s: float,
    several: bool,
    series: Callable[[Sequence[ResourceSample], Reading], Values],
) -> list[Layer]:
    layers: list[Layer] = []
    for service, samples in of.items():
        xs = [round(s.at_s - zero_s, 3) for s in samples]
        for name, reading in readings:
            ys = series(samples, reading)
            if any(y is not None for y in ys):
                label = f"{name} of {service}" if several else name
                layers.append(Layer(label=label, css=_CSS[len(layers) % len(_CSS)], xs=xs, ys=ys))
    return layers


def _gauge(samples: Sequence[ResourceSample], reading: Reading) -> Values:
    return [reading(s) for s in samples]


def _growth(samples: Sequence[ResourceSample], reading: Reading) -> Values:
    """By how much a counter grows a second, since the sample before."""
    rates: list[float | None] = [None]
    for a, b in itertools.pairwise(samples):
        before, now = reading(a), reading(b)
        passed_s = b.at_s - a.at_s
        rates.append(max(0.0, now - before) / passed_s if None not in (before, now) and passed_s > 0 else None)  # type: ignore[operator]
    return rates[: len(samples)]


def _thinned(samples: list[ResourceSample]) -> list[ResourceSample]:
    """At most `_MOST_BUCKETS`: of each stretch the one with most memory, which is what must not be missed."""
    every = math.ceil(len(samples) / _MOST_BUCKETS)
    if every <= 1:
        return samples
    return [max(samples[i : i + every], key=lambda s: s.rss_bytes) for i in range(0, len(samples), every)]


def _mb(value: int | None) -> float | None:
    return None if value is None else value / 1e6


def fitting(values: Sequence[float], unit: str) -> Axis:
    """A linear axis from 0, or a logarithmic one where a linear one would show the largest values only."""
    positive = [v for v in values if v > 0]
    return Axis.over(values, unit, log=bool(positive) and max(positive) > _MOST_RATIO * min(positive))


def _known(layers: Sequence[Layer]) -> list[float]:
    return [y for layer in layers for y in layer.ys if y is not None]
