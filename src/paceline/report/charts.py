"""Charts that stand still, as inline SVG: plain numbers in, markup out; colours come from the page's CSS."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 860


@dataclass(frozen=True, slots=True)
class LogAxis:
    """Maps values onto pixels by their logarithm; values below `low` sit at the edge."""

    low: float
    high: float
    left: float
    right: float

    @classmethod
    def over(cls, values: Sequence[float], left: float, right: float) -> "LogAxis":
        """An axis that holds all positive values with a little room."""
        positive = [v for v in values if v > 0] or [1.0]
        return cls(min(positive) / 1.15, max(positive) * 1.25, left, right)

    def at(self, value: float) -> float:
        """Pixel of a value."""
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.left + min(share, 1.0) * (self.right - self.left)

    def ticks(self) -> list[float]:
        """Round values (1, 2, 5 times a power of ten), thinned to what fits."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
        shown = [v for v in every if self.low <= v <= self.high]
        if len(shown) > 10:
            shown = [v for v in shown if math.isclose(math.log10(v) % 1, 0, abs_tol=1e-9)]
        return shown


def _svg(height: float, label: str, *parts: str) -> Markup:
    body = "".join(parts)
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
    return Markup(head + body + "</svg>")  # noqa: S704 - every text inside was escaped by _text


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def _rect(x: float, y: float, width: float, height: float, css: str, title: str = "") -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1.0):.1f}" height="{height:.1f}" rx="2" class="{css}">'
        f"{inner}</rect>"
    )


def short_s(value: float) -> str:
    """A tick label: `20 ms`, `5 s`."""
    return f"{value:g} s" if value >= 1 else f"{value * 1000:g} ms"


@dataclass(frozen=True, slots=True)
class PhaseMark:
    """One row of the roadmap chart: projected interval and measured value; None where there is none."""

    label: str
    projected: tuple[float, float, float] | None  # low, value, high
    measured: float | None


def roadmap(rows: Sequence[PhaseMark], targets: Sequence[tuple[str, float]] = ()) -> Markup:
    """P95 by phase: what was projected (bar and tick) against what was measured (dot)."""
    row_px, top, label_px = 34, 20.0 + 13 * len(targets), 190
    height = top + row_px * len(rows) + 30
    values = [v for r in rows for v in (*(r.projected or ()), r.measured) if v]
    axis = LogAxis.over([*values, *(t for _, t in targets)], label_px, WIDTH - 90)
    bottom = top + row_px * len(rows)
    parts = []
    for tick in axis.ticks():
        parts.append(_line(axis.at(tick), top, axis.at(tick), bottom, "grid"))
        parts.append(_text(axis.at(tick), bottom + 18, short_s(tick), "tick", "middle"))
    for step, (label, target) in enumerate(sorted(targets, key=lambda t: -t[1])):  # a staircase, so none overlap
        y = top - 8 - 13 * step
        parts.append(_line(axis.at(target), y + 3, axis.at(target), bottom, "target"))
        parts.append(_text(axis.at(target) + 4, y, label, "target-label"))
    for index, row in enumerate(rows):
        y = top + row_px * (index + 0.5)
        parts.append(_text(label_px - 12, y + 4, row.label, "row-label", "end"))
        if row.projected:
            low, value, high = row.projected
            title = f"projected {short_s(round(value, 3))} ({short_s(round(low, 3))} to {short_s(round(high, 3))})"
            parts.append(_rect(axis.at(low), y - 7, axis.at(high) - axis.at(low), 14, "interval", title))
            parts.append(_line(axis.at(value), y - 9, axis.at(value), y + 9, "projected"))
        if row.measured:
            x = axis.at(row.measured)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" class="measured"/>')
            parts.append(
                _text(
                    max(x, axis.at((row.projected or (0, 0, 0))[2])) + 12,
                    y + 4,
                    short_s(round(row.measured, 2)),
                    "value",
                )
            )
    return _svg(height, "P95 of each phase, projected and measured", *parts)


def _round_ticks(top: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10(top)) if top > 0 else 1.0
    for factor in (0.2, 0.5, 1, 2):
        if top / (step * factor) <= 6:
            step *= factor
            break
    return [round(i * step, 10) for i in range(int(top / step) + 1)]


@dataclass(frozen=True, slots=True)
class Bar:
    """A pair of amounts under one name."""

    label: str
    before: float
    after: float | None
    text: str


def bars(rows: Sequence[Bar], *, label: str) -> Markup:
    """Horizontal bars, before above after, longest first as given."""
    label_px, row_px = 250, 34 if any(r.after is not None for r in rows) else 24
    top_value = max((max(r.before, r.after or 0) for r in rows), default=1.0) or 1.0
    scale = (WIDTH - label_px - 190) / top_value
    parts = []
    for index, row in enumerate(rows):
        y = 4 + index * row_px
        parts.append(_text(label_px - 12, y + row_px / 2 + 2, row.label, "row-label", "end"))
        parts.append(_rect(label_px, y + 3, row.before * scale, 11, "bar before", f"before: {row.text}"))
        if row.after is not None:
            parts.append(_rect(label_px, y + 16, row.after * scale, 11, "bar after"))
        parts.append(
            _text(label_px + max(row.before, row.after or 0) * scale + 10, y + row_px / 2 + 3, row.text, "value")
        )
    return _svg(8 + row_px * len(rows), label, *parts)


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of a waterfall row: start and length in seconds from the request's start, and its CSS class."""

    start_s: float
    length_s: float
    css: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class WaterfallRow:
    """One call of a request."""

    label: str
    segments: Sequence[Segment]
    marked: bool = False  # the finding is about this one
    text: str = ""


def waterfall(rows: Sequence[WaterfallRow], *, response_s: float) -> Markup:
    """One request over time. `response_s`: when the answer was sent; later work is off the path."""
    label_px, row_px, top = 275, 21, 22.0
    end_s = max([response_s, *(s.start_s + s.length_s for r in rows for s in r.segments)]) or 1e-3
    scale = (WIDTH - label_px - 120) / end_s
    bottom = top + row_px * len(rows)
    parts = []
    for value in _round_ticks(end_s):
        x = label_px + value * scale
        parts.append(_line(x, top - 4, x, bottom, "grid"))
        parts.append(_text(x, top - 8, f"{value:g} s", "tick", "middle"))
    for index, row in enumerate(rows):
        y = top + index * row_px
        if row.marked:
            parts.append(_rect(2, y, WIDTH - 4, row_px - 1, "marked"))
        parts.append(_text(label_px - 10, y + 14.5, row.label, "row-label", "end"))
        parts += [
            _rect(label_px + s.start_s * scale, y + 4, s.length_s * scale, 12, f"seg {s.css}", s.title)
            for s in row.segments
        ]
        last = max((s.start_s + s.length_s for s in row.segments), default=0.0)
        parts.append(_text(label_px + last * scale + 6, y + 14.5, row.text, "value small"))
    x = label_px + response_s * scale
    parts.append(_line(x, top - 4, x, bottom, "target"))
    return _svg(bottom + 6, "one request over time", *parts)
