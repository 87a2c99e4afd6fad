"""Plots that can be zoomed: SVG curves in a frame of HTML, whole without a script; plot.js moves the window they show.

Curves are drawn once, in a square of 1000 by 1000 that is stretched to the frame, so zooming is another `viewBox` and
text keeps its size on any screen. The values lie beside the curves for whoever points at them. plot.js has the same
axes and ticks as this file, for what is drawn after a zoom.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

SECONDS, CLOCK, RATE, MEGABYTES, COUNT, QUANTILE, RATIO = "s", "t", "/s", "MB", "", "q", "%"
_SIDE = 1000.0
_MOST_TICKS = 7
_CLOCK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
_QUANTILES = (1.0, 2.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)  # 1 / (1 - q)

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What one direction of a plot shows: from `low` to `high`, both finite, low below high; above 0 when `log`."""

    low: float
    high: float
    unit: str = COUNT
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], unit: str, *, log: bool = False) -> "Axis":
        """An axis that holds all of these with a little room: from 0, or from the least above 0 when `log`."""
        known = [v for v in values if math.isfinite(v)]
        if log:
            positive = [v for v in known if v > 0] or [1.0]
            return cls(low=min(positive) / 1.15, high=max(positive) * 1.25, unit=unit, log=True)
        return cls(low=min(0.0, *known, 0.0), high=max(known, default=1.0) * 1.08 or 1.0, unit=unit)

    def share(self, value: float) -> float:
        """Where a value lies, 0 to 1."""
        if self.log:
            return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values, few enough to be read."""
        if self.unit == QUANTILE:
            return [v for v in _QUANTILES if self.low <= v <= self.high]
        if self.log and self.high / self.low >= 8:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            every = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
            shown = [v for v in every if self.low <= v <= self.high]
            if len(shown) > _MOST_TICKS:
                shown = [v for v in shown if abs(math.log10(v) - round(math.log10(v))) < 1e-9]
            return shown[:: math.ceil(len(shown) / _MOST_TICKS)]
        step = self._step()
        first = math.ceil(self.low / step - 1e-9)
        return [round(i * step, 10) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _step(self) -> float:
        least = (self.high - self.low) / _MOST_TICKS
        if self.unit == CLOCK and least > 1:
            return next((float(s) for s in _CLOCK_STEPS_S if s >= least), 86400.0 * math.ceil(least / 86400))
        power = 10.0 ** math.floor(math.log10(least))
        return next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9))

    def text(self, value: float) -> str:
        """A tick's label."""
        if self.unit == CLOCK:
            return _clock(value, self.high)
        if self.unit == SECONDS:
            return f"{value:g} s" if value >= 1 or value == 0 else f"{value * 1000:g} ms"
        if self.unit == QUANTILE:
            return f"{100 - 100 / value:.6g} %"
        if self.unit == RATIO:
            return f"{value * 100:g} %"
        return f"{value:,g}" + (f" {self.unit}" if self.unit == MEGABYTES else self.unit)


def _clock(value_s: float, most_s: float) -> str:
    if most_s < 120:
        return f"{value_s:g} s"
    whole = round(value_s)
    hours, minutes, seconds = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{seconds:02}" if most_s >= 3600 else f"{whole // 60}:{seconds:02}"


LINE, BAND, BARS, DOTS = "line", "band", "bars", "dots"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One curve. `css` is the class that colours it; None in `ys` leaves a gap.

    A band lies between `lows` and `ys`; bars reach from one of `xs` to the next, so there is one more of those.
    """

    label: str
    css: str
    xs: Sequence[float]
    ys: Values
    lows: Values = ()
    kind: str = LINE
    is_read: bool = True  # its values are shown to whoever points at it, and counted when the plot is fitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A labelled line across the plot, at an x (a scenario begins) or at a y (a target)."""

    label: str
    at: float
    is_vertical: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A plot. Those of one `group` share their x axis and are zoomed together."""

    title: str
    group: str
    x: Axis
    y: Axis
    layers: Sequence[Layer]
    marks: Sequence[Mark] = field(default=())
    note: str = ""
    height_px: int = 210

    def draw(self) -> Markup:
        """The figure as markup; all text in it is escaped."""
        shared = next((layer.xs for layer in self.layers if layer.is_read), ())
        facts = {
            "group": self.group,
            "x": _numbers(shared),
            "xunit": self.x.unit,
            "xlow": f"{self.x.low:.9g}",
            "xhigh": f"{self.x.high:.9g}",
            "xlog": int(self.x.log),
            "yunit": self.y.unit,
            "ylow": f"{self.y.low:.9g}",
            "yhigh": f"{self.y.high:.9g}",
            "ylog": int(self.y.log),
        }
        data = "".join(f' data-{name}="{escape(value)}"' for name, value in facts.items())
        keys = "".join(
            f'<span><i class="key {layer.css}"></i>{escape(layer.label)}</span>' for layer in self.layers if layer.label
        )
        note = f'<p class="soft small">{escape(self.note)}</p>' if self.note else ""
        return Markup(  # noqa: S704 - every text inside was escaped
            f'<figure class="plot" tabindex="0" role="group" aria-label="{escape(self.title)}"{data}>'
            f'<figcaption><b>{escape(self.title)}</b><span class="legend">{keys}</span></figcaption>'
            f'<div class="frame" style="height:{self.height_px}px"><div class="ys">{self._labels(self.y, "bottom")}'
            f'</div><div class="area"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
            f'aria-label="{escape(self.title)}"><g class="grid">{self._grid()}</g>'
            f"{''.join(self._layer(layer, shared) for layer in self.layers)}</svg>{self._marks()}</div>"
            f'<div class="xs">{self._labels(self.x, "left")}</div></div>{note}</figure>'
        )

    def _labels(self, axis: Axis, side: str) -> str:
        return "".join(
            f'<span style="{side}:{axis.share(tick) * 100:.2f}%">{escape(axis.text(tick))}</span>'
            for tick in axis.ticks()
        )

    def _grid(self) -> str:
        across = "".join(f"M0,{_y(self.y, tick)}H1000" for tick in self.y.ticks())
        down = "".join(f"M{_x(self.x, tick)},0V1000" for tick in self.x.ticks())
        return f'<path d="{across}{down}"/>'

    def _marks(self) -> str:
        parts = []
        for mark in self.marks:
            axis, side, css = (self.x, "left", "v") if mark.is_vertical else (self.y, "bottom", "h")
            share = axis.share(mark.at)
            if 0 <= share <= 1:
                parts.append(
                    f'<div class="mark {css}" data-at="{mark.at:.9g}" style="{side}:{share * 100:.2f}%">'
                    f"<span>{escape(mark.label)}</span></div>"
                )
        return "".join(parts)

    def _layer(self, layer: Layer, shared: Sequence[float]) -> str:
        draw = {LINE: self._line, BAND: self._band, BARS: self._bars, DOTS: self._dots}[layer.kind]
        data = ""
        if layer.is_read:
            own = "" if layer.xs is shared else f' data-x="{_numbers(layer.xs)}"'
            data = f' data-label="{escape(layer.label)}" data-y="{_numbers(layer.ys)}"{own}'
        return f'<path class="{layer.kind} {layer.css}" d="{draw(layer)}"{data}/>'

    def _line(self, layer: Layer) -> str:
        return self._points(layer.xs, layer.ys)

    def _points(self, xs: Sequence[float], ys: Values, start: str = "M") -> str:
        path, pen = [], start
        for x, y in zip(xs, ys, strict=True):
            if y is None:
                pen = "M"
                continue
            path.append(f"{pen}{_x(self.x, x)},{_y(self.y, y)}")
            pen = "L"
        if len(path) == 1:
            path.append("h0.1")  # so that one point is seen
        return "".join(path)

    def _band(self, layer: Layer) -> str:
        parts, run = [], []
        for x, low, high in [*zip(layer.xs, layer.lows, layer.ys, strict=True), (0.0, None, None)]:
            if low is not None and high is not None:
                run.append((x, low, high))
            elif run:
                there = "L".join(f"{_x(self.x, at)},{_y(self.y, top)}" for at, _, top in run)
                back = "L".join(f"{_x(self.x, at)},{_y(self.y, bottom)}" for at, bottom, _ in reversed(run))
                parts.append(f"M{there}L{back}Z")
                run = []
        return "".join(parts)

    def _bars(self, layer: Layer) -> str:
        floor = _y(self.y, self.y.low)
        return "".join(
            f"M{_x(self.x, left)},{floor}V{_y(self.y, y)}H{_x(self.x, right)}V{floor}Z"
            for left, right, y in zip(layer.xs[:-1], layer.xs[1:], layer.ys, strict=True)
            if y
        )

    def _dots(self, layer: Layer) -> str:
        return "".join(
            f"M{_x(self.x, x)},{_y(self.y, y)}h0" for x, y in zip(layer.xs, layer.ys, strict=True) if y is not None
        )


def _x(axis: Axis, value: float) -> str:
    return f"{axis.share(value) * _SIDE:.1f}".removesuffix(".0")


def _y(axis: Axis, value: float) -> str:
    return f"{(1 - min(max(axis.share(value), 0.0), 1.0)) * _SIDE:.1f}".removesuffix(".0")


def _numbers(values: Values) -> str:
    return ",".join("" if v is None else f"{v:.4g}" if abs(v) < 1000 else f"{v:.0f}" for v in values)
