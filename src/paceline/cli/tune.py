"""Tune an application: measure it, find what is wrong, project each phase of its roadmap, apply it, measure again.

example: paceline tune workloads/support --speed 3

Exit code 0 when the last phase meets every must objective, 1 when it does not; 2 wrong usage or configuration;
4 the measurement cannot be trusted or kept; 130 interrupted, with what was measured kept.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from paceline.errors import ConfigError, MeasurementError, PacelineError

if TYPE_CHECKING:
    from paceline.model.tuning import TuneResult
    from paceline.tune.loop import Tuning

_ANSWERS = {
    "command": "COMMAND",
    "ready": "PATH",
    "endpoint": "'METHOD PATH'",
    "bodies": "JSON|FILE",
    "provider": "simulate|URL",
    "users": "N",
    "requests": "N",
    "p95": "SECONDS",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("dir", nargs="?", type=Path, default=Path(), help="folder with a paceline.toml (default: here)")
    parser.add_argument("--speed", type=float, default=1.0, metavar="N", help="simulated provider N times faster")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated provider and the projections")
    parser.add_argument("--phases", metavar="A,B", help="only these phases of the file, in its order")
    parser.add_argument("--only-baseline", action="store_true", help="measure the baseline, project, and stop")
    parser.add_argument("--out", type=Path, default=Path(".paceline/tunes"), metavar="DIR", help="where results go")
    parser.add_argument("--no-report", action="store_true", help="write no HTML report")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    init = parser.add_argument_group("a first paceline.toml")
    init.add_argument("--init", action="store_true", help="write one by asking; options answer beforehand")
    init.add_argument("--force", action="store_true", help="replace the one that is there")
    for name, metavar in _ANSWERS.items():
        init.add_argument(f"--{name}", metavar=metavar)


def run(args: argparse.Namespace) -> int:
    """Go round the loop and print what it came to."""
    if args.init:
        return _init(args)
    if given := [f"--{name}" for name in _ANSWERS if getattr(args, name) is not None]:
        msg = f"{given[0]} answers a question of --init; without --init the file says it"
        raise ConfigError(msg)
    # Imported here: numpy and DuckDB come with them.
    import uvloop

    from paceline.tune.loop import Options, Tuning
    from paceline.tune.proof import untrusted
    from paceline.tune.target import load_target
    from paceline.tune.watch import watch_on

    target = load_target(args.dir)
    if args.phases is not None:
        target = target.only(name.strip() for name in args.phases.split(",") if name.strip())
    with watch_on(sys.stderr) as watch:
        options = Options(speed=args.speed, seed=args.seed, only_baseline=args.only_baseline, root=args.out)
        tuning = Tuning(target, options, watch)
        watch.note(f"tuning {target.name}; results go to {tuning.folder}")
        try:
            uvloop.run(tuning.run())
        except (PacelineError, KeyboardInterrupt):
            watch.close()
            if tuning.result.measured:
                _present(tuning, args)
            raise
    code = _present(tuning, args)
    if reason := untrusted(tuning.result):
        raise MeasurementError(reason)
    return code


def _present(tuning: "Tuning", args: argparse.Namespace) -> int:
    """Print the result, write the report, and say whether every must is met."""
    from paceline.tune.summary import as_object, objective_rows

    if args.json:
        result = tuning.result if args.no_report else _with_report(tuning)
        print(msgspec.json.encode(as_object(result, tuning.folder)).decode())
    else:
        _print(tuning.result)  # before the report: what was measured is shown whatever becomes of the picture
        result = tuning.result if args.no_report else _with_report(tuning)
        if result.report:
            print(f"report: {tuning.folder / result.report}")
        print(f"next:   {_next(result, tuning.folder, args.dir)}")
    missed = {o.objective.name for o in result.missed()}
    for name, level, target, _, after, _ in objective_rows(result):
        if name in missed:
            print(f"missed: {name} ({level}): {target} was asked, {after} measured", file=sys.stderr)
    return 1 if missed else 0


def _with_report(tuning: "Tuning") -> "TuneResult":
    from paceline.report.html import write_report
    from paceline.store.tuning import save_result

    try:
        path = write_report(tuning.folder)
        result = msgspec.structs.replace(tuning.result, report=path.name)
        save_result(result, tuning.folder)
    except (PacelineError, OSError) as error:
        # The measurement stands without its picture; `paceline report` can draw it again.
        print(f"no report was written: {error}", file=sys.stderr)
        return tuning.result
    return result


def _print(result: "TuneResult") -> None:
    from paceline.tune import summary

    parts = [summary.table(summary.PHASE_HEADINGS, summary.phase_rows(result))]
    if error := summary.error_line(result):
        parts[0] += f"\n{error}"
    if result.objectives:
        parts.append(summary.table(summary.OBJECTIVE_HEADINGS, summary.objective_rows(result)))
    found = summary.finding_lines(result.findings) or ["nothing that costs time or money"]
    parts.append("\n".join(["found before:", *found]))
    if result.proposals:
        parts.append(summary.table(summary.PROPOSAL_HEADINGS, summary.proposal_rows(result)))
    if result.left:
        parts.append("\n".join(["what is left:", *summary.finding_lines(result.left)]))
    if notes := summary.notes(result):
        parts.append("\n".join(["notes:", *(f"- {note}" for note in notes)]))
    print("\n\n".join(parts), end="\n\n", flush=True)


def _next(result: "TuneResult", folder: Path, target: Path) -> str:
    """The command to try now."""
    if result.proposals:
        roadmap = folder / "roadmap.toml"
        return f"append phases from {roadmap} to {target / 'paceline.toml'} and run `paceline tune {target}` again"
    if len(result.measured) < len(result.phases):
        return f"paceline tune {target}"
    if result.provider == "simulated" and result.speed != 1:
        return f"paceline tune {target} --speed 1   (at the provider's real pace)"
    return "paceline tune --init FOLDER   (the same for an application of your own)"


def _init(args: argparse.Namespace) -> int:
    from paceline.tune.init import write_target

    def ask(prompt: str) -> str | None:
        print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not sys.stdin.isatty():
            print(line.rstrip(), file=sys.stderr)
        return line or None

    given = {name: str(value) for name in _ANSWERS if (value := getattr(args, name)) is not None}
    path = write_target(args.dir, given, ask, force=args.force)
    print(msgspec.json.encode({"written": str(path)}).decode() if args.json else path)
    print(f"written; next: paceline tune {args.dir}", file=sys.stderr)
    return 0
