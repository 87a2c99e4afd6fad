"""How latencies are spread: a histogram, the quantiles up to the rarest, and the share answered within a time."""

from collections.abc import Sequence

import numpy as np

from paceline.report.over_time import fitting
from paceline.report.plots import BARS, COUNT, QUANTILE, RATIO, SECONDS, Axis, Layer, Mark, Plot
from paceline.report.table import HIT, MISS, Floats, Table, at_quantile

_BINS = 72
_MOST_POINTS = 160  # of a curve
_MOST_CURVES = 4
_CSS = ("answered", "p95", "p99", "asked")


def distribution_plots(table: Table) -> list[Plot]:
    """The histogram and the quantiles of all latencies; cached and uncached, or scenarios, apart."""
    timed = table.part(table.timed)
    if not len(timed):
        return []
    parts = _parts(timed)
    return [_histogram(parts), _quantiles(parts)]


def _parts(timed: Table) -> list[tuple[str, Floats]]:
    scenarios = timed.scenarios
    if (timed.cache == HIT).any() and (timed.cache == MISS).any():
        return [
            ("cached", timed.latency_s[timed.cache == HIT]),
            ("uncached", timed.latency_s[timed.cache != HIT]),
        ]
    if 1 < len(scenarios) <= _MOST_CURVES:
        return [(name, part.latency_s) for name in scenarios if len(part := timed.scenario(name))]
    return [("all", timed.latency_s)]


def _histogram(parts: Sequence[tuple[str, Floats]]) -> Plot:
    """Bars of equal width on a logarithmic axis."""
    everything = np.concatenate([values for _, values in parts])
    x = Axis.over([float(everything.min()), float(everything.max())], SECONDS, log=True)
    edges = np.geomspace(x.low, x.high, _BINS + 1)
    layers = []
    for (name, values), css in zip(parts, _CSS, strict=False):
        counts: list[float] = np.histogram(np.maximum(values, x.low), edges)[0].tolist()
        layers.append(Layer(label=name, css=css, xs=edges.tolist(), ys=counts, kind=BARS))
    y = Axis.over([c for layer in layers for c in layer.ys if c is not None], COUNT)
    return Plot(title="Requests by latency", group="latency", x=x, y=y, layers=layers)


def _quantiles(parts: Sequence[tuple[str, Floats]]) -> Plot:
    """Latency at each quantile, the axis stretched towards the rarest: 90, 99, 99.9 %."""
    most = max(len(values) for _, values in parts)
    x = Axis(low=1.0, high=float(max(most, 10)), unit=QUANTILE, log=True)
    layers = []
    for (name, values), css in zip(parts, _CSS, strict=False):
        ordered = np.sort(values)
        xs = np.geomspace(1.0, max(len(ordered), 2), _MOST_POINTS).tolist()
        layers.append(Layer(label=name, css=css, xs=xs, ys=[at_quantile(ordered, 1 - 1 / at) for at in xs]))
    y = fitting([v for layer in layers for v in layer.ys if v is not None], SECONDS)
    note = "That share of requests was answered within this time."
    return Plot(title="Latency by quantile", group="quantile", x=x, y=y, layers=layers, note=note)


def within_plot(
    parts: Sequence[tuple[str, str, Sequence[float]]], targets: Sequence[tuple[str, float]] = ()
) -> Plot | None:
    """Share of requests answered within a time, on a logarithmic time axis; None without a request.

    Args:
        parts: Label, CSS class, and latencies in seconds, in any order.
        targets: Label and seconds of objectives, drawn as vertical lines.
    """
    known = [(label, css, np.sort(np.asarray(values, dtype=np.float64))) for label, css, values in parts if len(values)]
    if not known:
        return None
    ends = [float(v) for _, _, values in known for v in (values[0], values[-1])]
    x = Axis.over([*ends, *(target for _, target in targets)], SECONDS, log=True)
    layers = []
    for label, css, values in known:
        ranks = np.unique(np.linspace(1, len(values), min(len(values), _MOST_POINTS)).astype(int))
        layers.append(Layer(label=label, css=css, xs=values[ranks - 1].tolist(), ys=(ranks / len(values)).tolist()))
    marks = [Mark(label=label, at=target, is_vertical=True) for label, target in targets]
    y = Axis(low=0.0, high=1.0, unit=RATIO)
    return Plot(title="Answered within", group="within", x=x, y=y, layers=layers, marks=marks, height_px=260)
