"""The live screen as lines of text: as many parts as the terminal has room for, the most wanted first."""

from collections.abc import Sequence

from rich.cells import set_cell_size
from rich.text import Text

from paceline.load.course import WINDOW_S, Point, Quantiles, Standing
from paceline.load.progress import seconds

_LABEL = 11  # columns
_LEAST_CHART, _MOST_CHART = 1, 7  # rows
_BLOCKS = " ▁▂▃▄▅▆▇█"
_NARROW = 64  # below, words are left out
_HELP = "Ctrl-C stops and keeps what was recorded"


def screen(
    standing: Standing,
    points: Sequence[Point],
    notes: Sequence[str] = (),
    *,
    width: int,
    height: int,
    colour: bool = True,
) -> list[Text]:
    """At most `height` lines of at most `width` columns.

    Args:
        standing: Of now.
        points: A second each, oldest first; as many as fit are drawn.
        notes: Lines worth keeping, oldest first.
        width, height: Of the terminal, in cells.
        colour: Without, charts tell their two values apart by shade.
    """
    width = max(width, 20)
    top = [_title(standing, width), _bar(standing, width)]
    facts = [_requests(standing, width), *_latency(standing, width), *_stream(standing)]
    facts += [_errors(standing, width), _generator(standing, width), *_target(standing)]
    lines = [*top, *facts]
    if height < len(lines):
        return [_fit(line, width) for line in [*top, *facts][:height]]
    spare = height - len(lines)
    if spare >= 3:  # air between the parts
        lines = [*top, Text(), *facts, Text()]
        spare -= 2
    said = [Text(f" {note}", style="dim") for note in notes[-3:]] + [Text(f" {_HELP}", style="dim")]
    rows = max(0, min(_MOST_CHART, (spare - len(said) - 3) // 2))
    if rows >= _LEAST_CHART and points:
        lines += _charts(points, width, rows, "█" if colour else "░", standing.speed)
    if len(lines) + 1 + len(said) <= height:
        lines += [Text(), *said]
    return [_fit(line, width) for line in lines[:height]]


def _fit(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line


def _title(standing: Standing, width: int) -> Text:
    line = Text(" ").append(_clean(standing.scenario), style="bold")
    if standing.step:
        step = _clean(standing.step)
        gap = width - line.cell_len - len(step) - 1
        line.append(" " * max(2, gap)).append(step, style="cyan")
    return line


def _bar(standing: Standing, width: int) -> Text:
    """How far, as a bar, and how long it still takes."""
    said = f" {standing.share:4.0%}  {_clock(standing.elapsed_s)}"
    if standing.duration_s is not None and not (standing.requests and standing.left_s is None):
        said += f" of {_clock(standing.duration_s)}" if width >= _NARROW else ""
    if standing.left_s is not None:
        said += f", {_clock(standing.left_s)} left"
    cells = max(4, min(60, width - len(said) - 2))
    filled = round(standing.share * cells)
    return Text(" ").append("━" * filled, style="green").append("─" * (cells - filled), style="dim").append(said)


def _requests(standing: Standing, width: int) -> Text:
    line = _label("requests")
    of = f" of {standing.requests:,}" if standing.requests and width >= _NARROW else ""
    line.append(f"{standing.done:,}", style="bold").append(f"{of} answered  ")
    line.append(f"{_rate(standing.rate_per_s)}/s", style="bold cyan")
    if standing.asked_per_s is not None:
        line.append(f" of {_rate(standing.asked_per_s)}/s asked")
    line.append(f"  {standing.in_flight:,} in flight")
    if standing.users is not None:
        line.append(f"  {standing.users:,} users")
    return line


def _latency(standing: Standing, width: int) -> list[Text]:
    """A table of two rows: now and all of it."""
    cell = 9 if width >= 50 else 8
    head = _label("latency").append("".join(name.rjust(cell) for name in ("p50", "p95", "p99", "max")), style="dim")
    return [
        head,
        _row(_recent(standing) if width >= 50 else "recent", standing.recent, cell, "bold"),
        _row("whole run" if width >= 50 else "all", standing.whole, cell, ""),
    ]


def _recent(standing: Standing) -> str:
    return f"last {WINDOW_S * standing.speed:.0f} s"


def _row(name: str, found: Quantiles | None, cell: int, style: str) -> Text:
    line = Text(f"  {name}".ljust(_LABEL + 1), style="dim")
    values = (found.p50_s, found.p95_s, found.p99_s, found.max_s) if found else (None,) * 4
    for value in values:
        line.append(("–" if value is None else seconds(value)).rjust(cell), style=style or "not dim")
    return line


def _stream(standing: Standing) -> list[Text]:
    """First tokens, tokens and cache hits; nothing where there are none."""
    lines = []
    if standing.first_token is not None:
        found = standing.first_token
        line = _label("1st token").append(f"p50 {seconds(found.p50_s)}  p95 {seconds(found.p95_s)}", style="bold")
        line.append(f"  p99 {seconds(found.p99_s)}")
        if standing.tokens_per_s is not None:
            line.append(f"  {standing.tokens_per_s:,.0f} tokens/s")
        lines.append(line)
    if standing.hit_ratio is not None:
        lines.append(_label("cache").append(f"{standing.hit_ratio:.1%} hits"))
    return lines


def _errors(standing: Standing, width: int) -> Text:
    line = _label("errors")
    if not standing.failures:
        return line.append("none", style="green")
    share = standing.errors / standing.done if standing.done else 0.0
    line.append(f"{standing.errors:,} ({share:.2%})", style="bold red")
    if width >= _NARROW:
        line.append(f"  {_recent(standing)} {standing.recent_error_ratio:.2%}")
    for kind, count in standing.failures[:4]:
        line.append(f"  {count:,} × {_clean(kind)}", style="red")
    return line


def _generator(standing: Standing, width: int) -> Text:
    line = _label("generator")
    bad = "bold red" if standing.is_late or standing.is_busy else ""
    if standing.lag_p99_s is None:
        return line.append("–")
    line.append(f"p99 {seconds(max(standing.lag_p99_s, 0.0))} late", style=bad or "bold")
    if standing.cpu_ratio is not None:
        whose = f", the busiest of {standing.processes}" if standing.processes > 1 and width >= _NARROW else ""
        line.append(f"  {standing.cpu_ratio:.0%} of a core{whose}", style=bad)
    if bad:
        line.append("  it shows in the figures", style="bold red")
    return line


def _target(standing: Standing) -> list[Text]:
    found = standing.target
    if found is None:
        return []
    line = _label("target").append(f"{found.memory_mb:,.0f} MB", style="bold")
    line.append(f" ({found.memory_grown_mb:+,.0f} MB)")
    if found.cpu_ratio is not None:
        line.append(f"  {found.cpu_ratio:.0%} of a core")
    return [line.append(f"  {found.threads:,} threads")]


def _label(name: str) -> Text:
    return Text(f" {name}".ljust(_LABEL + 1), style="dim")


# --- charts ----------------------------------------------------------------------------------------------------------


def _charts(points: Sequence[Point], width: int, rows: int, full: str, speed: float) -> list[Text]:
    """Answers a second, and latencies below, a column a second."""
    shown = list(points)[-(width - _LABEL - 2) :]
    rates = [p.rate_per_s for p in shown]
    failed = [p.failed_per_s for p in shown]
    p95s, p50s = [p.p95_s for p in shown], [p.p50_s for p in shown]
    span = f"last {len(shown) * speed:,.0f} s"
    return [
        *_chart("answers/s", rates, failed, rows, ("cyan", "red"), _rate(max(rates)), full),
        *_chart("p95, p50", p95s, p50s, rows, ("yellow", "green"), _peak(p95s), full),
        Text(" " * (_LABEL + 1)).append(span.rjust(len(shown)) if len(shown) > len(span) else "", style="dim"),
    ]


def _peak(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return seconds(max(known)) if known else ""


def _chart(
    name: str,
    outer: Sequence[float | None],
    inner: Sequence[float | None],
    rows: int,
    styles: tuple[str, str],
    peak: str,
    full: str,
) -> list[Text]:
    """Columns for `outer`, in eighths of a cell; what lies below `inner` has the second style and a full block."""
    most = max((value for value in outer if value is not None), default=0.0) or 1.0
    lines = []
    for row in range(rows - 1, -1, -1):
        left = name if row == 0 else peak if row == rows - 1 else ""
        line = Text(f" {left}".ljust(_LABEL + 1)[: _LABEL + 1], style="dim")
        for high, low in zip(outer, inner, strict=True):
            filled = _eighths(high, most, rows) - 8 * row
            below = _eighths(low, most, rows) - 8 * row
            # A cell is one character: the lower part has it when that reaches half of it.
            if below >= 4 or (row == 0 and below > 0 and rows > 1):
                line.append(_BLOCKS[max(0, min(8, below))], style=styles[1])
            else:
                line.append(full if filled >= 8 else _BLOCKS[max(0, filled)], style=styles[0])
        lines.append(line)
    return lines


def _eighths(value: float | None, most: float, rows: int) -> int:
    if not value:
        return 0
    return max(1, round(value / most * rows * 8))


# --- words -----------------------------------------------------------------------------------------------------------


def _clock(value_s: float) -> str:
    """`0:32`, `1:02:03`."""
    whole = round(value_s)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _rate(value: float) -> str:
    return f"{value:,.1f}" if value < 99.95 else f"{value:,.0f}"


def _clean(text: str) -> str:
    """Without what a terminal would take for a command: names come from files, checks from users."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= 60 else set_cell_size(shown, 59) + "…"
