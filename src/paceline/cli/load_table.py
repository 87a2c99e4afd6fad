"""The figures of one driven scenario, as a table for people and a record for programs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paceline.model.figures import Figures
from paceline.model.run import ScenarioInfo
from paceline.report.measured import Measured, parts_of
from paceline.report.units import dollars, megabytes, percent, rate, seconds

if TYPE_CHECKING:
    from rich.table import Table


def as_record(info: ScenarioInfo, measured: Measured) -> dict[str, object]:
    """All that `print_scenario` shows, for --json."""
    parts = parts_of(measured, info.name)
    return {"name": info.name, "figures": measured.scenarios[info.name], "parts": parts, "generator": info}


def print_scenario(info: ScenarioInfo, measured: Measured) -> None:
    """Print a table of latencies, the facts below it, and how the generator itself did."""
    from rich.console import Console

    figures = measured.scenarios[info.name]
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140  # a file or a pipe has no edge to wrap at
    parts = {"all": figures} | parts_of(measured, info.name)
    tables = [_table(info, parts, layout) for layout in _LAYOUTS]
    unbounded = console.options.update(max_width=10_000)
    fitting = [table for table in tables if console.measure(table, options=unbounded).maximum <= console.width]
    console.print((fitting or tables[-1:])[0])
    for fact in (*_facts(info, figures), _generator(info), *_clock(info)):
        console.print(f"  {fact}", soft_wrap=True, markup=False)
    console.print()


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a table has room for."""

    has_intervals: bool = True
    has_ends: bool = True  # mean and max


_LAYOUTS = (_Layout(), _Layout(has_intervals=False), _Layout(has_intervals=False, has_ends=False))  # widest first


def _table(info: ScenarioInfo, parts: dict[str, Figures], layout: _Layout) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    load = f"{info.users} users" if info.users else f"{info.rate_per_s:g} requests/s asked, {info.arrivals}"
    table = Table(title=f"{info.name}: {load}, {parts['all'].duration_s:.1f} s", title_justify="left")
    between = " (95 % interval)" if layout.has_intervals else ""
    names = ["n", "mean", *(f"{q}{between}" for q in ("p50", "p95", "p99")), "max", "ok"]
    for name in ("", *(n for n in names if layout.has_ends or n not in ("mean", "max"))):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for name, of in parts.items():
        quantiles = ((of.p50_s, of.p50_interval_s), (of.p95_s, of.p95_interval_s), (of.p99_s, of.p99_interval_s))
        shown = [_between(*found) if layout.has_intervals else seconds(found[0]) for found in quantiles]
        mean, most = ([seconds(of.mean_s)], [seconds(of.max_s)]) if layout.has_ends else ([], [])
        table.add_row(escape(name), f"{of.requests:,}", *mean, *shown, *most, percent(of.success_ratio))
    return table


def _between(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return seconds(None)
    low, high = (seconds(x) for x in interval) if interval else ("too few for one", "")
    return f"{seconds(value)} ({low} to {high})" if interval else f"{seconds(value)} ({low})"


def _facts(info: ScenarioInfo, figures: Figures) -> list[str]:
    """One line a subject; what was not recorded is not there."""
    facts = [f"{rate(figures.requests_per_s)} answered"]
    if figures.errors:
        facts.append("errors: " + ", ".join(f"{count:,} x {kind}" for kind, count in figures.errors.items()))
    if info.failed_checks:
        facts.append("failed checks: " + ", ".join(f"{count:,} x {name}" for name, count in info.failed_checks.items()))
    if figures.hit_ratio is not None:
        facts.append(f"cache hits {percent(figures.hit_ratio)}")
    if figures.token_gap_p50_s is not None and figures.first_byte_p50_s is not None:
        first = f"first byte p50 {seconds(figures.first_byte_p50_s)}, p95 {seconds(figures.first_byte_p95_s)}"
        gaps = f"gap between events p50 {seconds(figures.token_gap_p50_s)}, p99 {seconds(figures.token_gap_p99_s)}"
        facts.append(f"{first}; {gaps}")
    if figures.cost_per_1000_usd is not None:
        facts.append(f"{dollars(figures.cost_per_1000_usd)} per 1,000 requests")
    if figures.memory_mb is not None:
        growth = figures.memory_growth_mb_per_1000
        grows = "" if growth is None else f", {growth:+.1f} MB per 1,000 requests"
        facts.append(f"memory peak {megabytes(figures.memory_mb)}, {figures.memory_verdict}{grows}")
    return facts


def _generator(info: ScenarioInfo) -> str:
    if info.generator_cpu_ratio is None:
        return f"generator: {info.driver or 'lost'}, how late it was is not known" + (
            f"; {info.stopped}" if info.stopped else ""
        )
    lag_ms = (info.lag_p99_s or 0.0) * 1e3
    said = f"generator: p99 {lag_ms:.1f} ms late, {info.generator_cpu_ratio or 0.0:.0%} of a core"
    said += f", {info.driver}" if info.driver else f", seed {info.seed}"
    return said + (f"; {info.stopped}" if info.stopped else "")


def _clock(info: ScenarioInfo) -> list[str]:
    """What another driver's figures mean, and what they would be with what it never sent."""
    unsent = info.unsent
    if unsent is None:
        return info.notes
    if not unsent.tasks:
        return [*info.notes, "corrected: nothing to correct, no task came due while a user waited"]
    would = f"p50 {seconds(unsent.p50_s)}, p95 {seconds(unsent.p95_s)}, p99 {seconds(unsent.p99_s)}"
    return [*info.notes, f"corrected: with an estimate for each of {unsent.tasks:,} tasks never sent, {would}"]
