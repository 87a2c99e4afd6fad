"""Objectives of `paceline load`: the options, the table, the exit code, JUnit and the GitHub summary."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.load.gates import Gate
    from paceline.model.figures import Figures, Objective
    from paceline.model.run import ScenarioInfo
    from paceline.trace.streaming import Bound

_SUMMARY = "GITHUB_STEP_SUMMARY"
_COLUMNS = ("scenario", "level", "objective", "measured (95 % interval)", "outcome")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of gates."""
    gates = parser.add_argument_group("objectives (exit code 1 when one that must be met is not)")
    gates.add_argument(
        "--objective",
        action="append",
        default=[],
        type=_objective,
        metavar="TEXT",
        help="'p95_s<2', 'should success_ratio>=99%%', 'SCENARIO: memory_verdict!=leak'; may be repeated",
    )
    gates.add_argument(
        "--goodput",
        action="append",
        default=[],
        type=_bound,
        metavar="TEXT",
        help="'first_token_s<0.5': what a request must meet to count as good (default: the objectives on latency)",
    )
    gates.add_argument("--junit", type=Path, metavar="FILE", help="write the objectives as JUnit XML")
    gates.add_argument(
        "--github-summary", action=_InCi, nargs=0, default=False, help=f"append the table to ${_SUMMARY}"
    )


def judge(
    args: argparse.Namespace,
    shown: "Sequence[ScenarioInfo]",
    figures: "dict[str, Figures]",
    objectives: "Sequence[Objective]" = (),
) -> int:
    """Put the objectives to what was driven, print and write what came out, and return 0 or 1.

    Args:
        args: Of the command line.
        shown: The scenarios that were driven.
        figures: Theirs, with goodput by `bounds_asked`.
        objectives: More of them, such as those of a paceline.toml.

    Raises:
        ConfigError: the JUnit file or the summary cannot be written.
    """
    asked = [*objectives, *args.objective]
    if not (asked or args.goodput or args.junit or args.github_summary):
        return 0
    from paceline.load.gates import judge as judge_all
    from paceline.load.junit import junit_xml
    from paceline.report.units import figure

    bounds = bounds_asked(args, objectives)
    gates = judge_all(asked, figures)
    file = sys.stderr if args.json else sys.stdout
    if asked:
        _print(gates, file)
    for name, of in figures.items():
        if of.goodput_ratio is not None:
            within = ", ".join(f"{bound.measure} <= {bound.limit_s:g}" for bound in bounds)
            said = f"{figure('goodput_ratio', of.goodput_ratio)} of requests, {figure('_per_s', of.goodput_per_s)}"
            print(f"  {name}: goodput {said}, answered with {within}", file=file)
    if args.junit:
        data = junit_xml(args.name, gates, {name: f.duration_s for name, f in figures.items()})
        _write(args.junit, data, "wb")
    if args.github_summary:
        _write(Path(os.environ[_SUMMARY]), _markdown(args.name, shown, gates).encode(), "ab")
    failed = [gate for gate in gates if gate.failed]
    for gate in failed:
        print(f"paceline load: scenario {gate.scenario!r}: objective {gate.sentence}", file=sys.stderr)
    return 1 if failed else 0


def bounds_asked(args: argparse.Namespace, objectives: "Sequence[Objective]" = ()) -> "Sequence[Bound]":
    """What a request must meet to be good: as said, else what the objectives on latency imply."""
    from paceline.trace.streaming import bounds_of

    return args.goodput or bounds_of([*objectives, *args.objective])


class _InCi(argparse.Action):
    """A flag that is refused at once where there is no summary to write to."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        if not os.environ.get(_SUMMARY):
            parser.error(f"--github-summary needs ${_SUMMARY}, which GitHub sets in every step of a workflow")
        setattr(namespace, self.dest, True)


def _objective(text: str) -> "Objective":
    from paceline.load.gates import parse_objective

    try:
        return parse_objective(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _bound(text: str) -> "Bound":
    from paceline.trace.streaming import parse_bound

    try:
        return parse_bound(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _row(gate: "Gate") -> tuple[str, ...]:
    from paceline.report.units import figure

    objective = gate.objective
    measured = figure(objective.metric, gate.value)
    if gate.interval:
        low, high = (figure(objective.metric, bound) for bound in gate.interval)
        measured += f" ({low} to {high})"
    outcome = gate.outcome + (", but the target lies within the interval" if gate.is_close else "")
    return gate.scenario, objective.level, objective.name, measured, outcome


def _print(gates: "Sequence[Gate]", file: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="objectives", title_justify="left")
    for name in _COLUMNS:
        table.add_column(name, no_wrap=True)
    for gate in gates:
        colour = "green" if gate.outcome == "met" else "red" if gate.failed else "yellow"
        table.add_row(*_row(gate), style=colour)
    console = Console(highlight=False, markup=False, file=file)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no edge to wrap at
    console.print(table)


def _markdown(name: str, shown: "Sequence[ScenarioInfo]", gates: "Sequence[Gate]") -> str:
    """The gates as a table, and why a run ended early or cannot be trusted."""
    lines = [f"### paceline load: {_cell(name)}", ""]
    for info in shown:
        for problem in (info.stopped, info.trouble):
            if problem:
                lines += [f"**{_cell(info.name)}: {_cell(problem)}**", ""]
    if gates:
        lines += [
            "| | scenario | level | objective | measured (95 % interval) | outcome |",
            "|---|---|---|---|---|---|",
        ]
    for gate in gates:
        mark = "✅" if gate.outcome == "met" else "❌" if gate.failed else "⚠️"
        lines.append(f"| {mark} | " + " | ".join(_cell(text) for text in _row(gate)) + " |")
    return "\n".join(lines) + "\n\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _write(path: Path, data: bytes, mode: str) -> None:
    try:
        with path.open(mode) as file:
            file.write(data)
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror}"
        raise ConfigError(msg) from error
