"""The options of `paceline load`: what they are, which exclude each other, and the scenarios they make."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.load.knee import KneeSearch
    from paceline.load.parts import Stage, Trace
    from paceline.load.scenario import Scenario

RUNS = Path(".paceline/runs")

# Each way of saying how much, and what may be said beside it.
_KINDS = {
    "--users": {"--requests", "--duration", "--ramp", "--think"},
    "--rate": {"--requests", "--duration", "--poisson", "--cv"},
    "--stage": {"--requests", "--poisson", "--cv", "--think"},
    "--replay": {"--requests", "--duration", "--time-scale", "--max-gap", "--window"},
    "--preset": {"--think"},
    "--find-knee": {"--poisson", "--cv", "--trial", "--most-rate"},
    "--file": set[str](),
}
_SENDING = ("--method", "--bodies", "--pick", "--expect", "--expect-status")
_WHY = {
    frozenset({"--users", "--rate"}): "users wait for answers, a rate does not",
    frozenset({"--poisson", "--cv"}): "Poisson arrivals have a cv of 1",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them, but for those of gates."""
    parser.add_argument(
        "target", nargs="?", metavar="URL|DIR", help="where to send requests, or a folder with a paceline.toml"
    )
    _add_amounts(parser)
    _add_requests(parser)
    _add_others(parser)


def _add_amounts(parser: argparse.ArgumentParser) -> None:
    much = parser.add_argument_group("how much (one of them; times and rates at the provider's pace)")
    much.add_argument("--users", type=int, metavar="N", help="closed load: this many users, one request each at a time")
    much.add_argument("--rate", type=float, metavar="R", help="open load: requests per second, whoever has answered")
    much.add_argument(
        "--stage",
        action="append",
        metavar="S",
        help="a stretch of a shape, KIND:LEVEL:SECONDS, such as ramp:100:60 (users), hold:20/s:300 or burst:50/s:10",
    )
    much.add_argument("--preset", metavar="NAME", help="a load test ready by name; --presets lists them")
    much.add_argument("--replay", type=Path, metavar="TRACE", help="recorded traffic: a CSV or JSONL trace, or a run")
    much.add_argument("--find-knee", type=float, metavar="R", help="the highest rate that keeps the objectives, from R")
    much.add_argument("--file", type=Path, metavar="FILE", help="scenarios written down in TOML or JSON")
    more = parser.add_argument_group("more about how much")
    more.add_argument("--requests", type=int, metavar="N", help="stop after this many requests")
    more.add_argument("--duration", type=float, metavar="S", help="stop after this many seconds")
    more.add_argument("--ramp", type=float, metavar="S", help="start the users over this time")
    more.add_argument("--think", type=float, metavar="S", help="pause of a user after an answer")
    more.add_argument("--poisson", action="store_true", help="random arrivals (default: evenly spaced)")
    more.add_argument("--cv", type=float, metavar="X", help="bursty arrivals: deviation over mean of the gaps")
    more.add_argument("--time-scale", type=float, metavar="N", help="replay: times faster than recorded")
    more.add_argument("--max-gap", type=float, metavar="S", help="replay: longer silences are cut to this")
    more.add_argument("--window", metavar="S:S", help="replay: START:LENGTH of the part to send, in recorded seconds")
    more.add_argument(
        "--trial", type=float, metavar="S", help="knee: how long one rate is judged (default: 10), after a fifth of it"
    )
    more.add_argument("--most-rate", type=float, metavar="R", help="knee: the highest rate to try")


def _add_requests(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to send and to expect")
    what.add_argument("--method", help="default: POST with bodies, GET without")
    what.add_argument("--bodies", type=Path, metavar="FILE", help="JSON lines, one request body each")
    what.add_argument("--pick", help="sequence (default), uniform or zipf")
    what.add_argument("--header", action="append", default=[], metavar="K:V", help="may be repeated")
    what.add_argument("--expect", action="append", metavar="TEXT", help="every answer must hold this; may be repeated")
    what.add_argument("--expect-status", action="append", type=int, metavar="N", help="default: any below 400")
    what.add_argument("--timeout", type=float, default=120.0, metavar="S", help="for one whole answer (default: 120)")
    what.add_argument("--abort-errors", type=float, metavar="X", help="stop above this share of errors, such as 0.05")
    what.add_argument("--seed", type=int, default=0, help="of the order of bodies and of random arrivals (default: 0)")
    what.add_argument("--insecure", action="store_true", help="do not check the certificate of an https target")
    what.add_argument("--processes", type=int, metavar="N", help="that share the work of sending (default: 1)")


def _add_others(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenario", metavar="NAME", help="DIR or --file: only this one of its scenarios")
    parser.add_argument("--run", type=Path, dest="into", metavar="RUN", help="add to this run (one being recorded)")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR", help=f"where new runs go (default: {RUNS})")
    parser.add_argument("--name", default="load", help="of the run and the scenario (default: load)")
    parser.add_argument("--speed", type=float, metavar="N", help="times faster than real (default: the run's, or 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--presets", action="store_true", help="list the load tests ready by name, and stop")
    parser.add_argument(
        "--openapi", type=Path, metavar="FILE", help="write a first scenario for this API (with --out), and stop"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where --openapi writes")


def check(args: argparse.Namespace) -> None:
    """Refuse what contradicts itself. Raises ConfigError with one sentence."""
    if args.speed is not None and not args.speed > 0:
        msg = f"--speed must be above 0; got {args.speed:g}"
        raise ConfigError(msg)
    if (args.openapi is None) != (args.out is None):
        msg = "--openapi FILE and --out DIR go together"
        raise ConfigError(msg)
    given = [name for name in (*_KINDS, *_others(), *_SENDING) if _is_given(args, name)]
    kinds = [name for name in given if name in _KINDS]
    if len(kinds) > 1:
        raise _exclude(kinds[0], kinds[1])
    if args.poisson and args.cv is not None:
        raise _exclude("--poisson", "--cv")
    for kind in kinds:
        for name in given:
            if name in _others() and name not in _KINDS[kind]:
                raise _exclude(kind, name)
            if name in _SENDING and kind == "--file":
                msg = f"--file and {name} exclude each other: the file says what to send"
                raise ConfigError(msg)


def check_application(args: argparse.Namespace) -> None:
    """Refuse what a paceline.toml says already. Raises ConfigError."""
    for name in (*_KINDS, *_others(), *_SENDING, "--header"):
        if _is_given(args, name):
            msg = f"{name} goes with a URL; load DIR drives the scenarios of its paceline.toml"
            raise ConfigError(msg)


def scenarios_of(args: argparse.Namespace) -> "tuple[str, list[Scenario]]":
    """The base URL and the scenarios to drive there, in order. Raises ConfigError or InputError."""
    from paceline.load.named import preset
    from paceline.load.scenario_file import read_scenarios

    parts = urlsplit(args.target)
    base = f"{parts.scheme}://{parts.netloc}"
    if args.file is not None:
        scenarios = [s for s in read_scenarios(args.file) if args.scenario in (None, s.name)]
        if not scenarios:
            msg = f"no scenario named {args.scenario!r} in {args.file}"
            raise ConfigError(msg)
        return base + parts.path.rstrip("/"), [_overridden(s, args) for s in scenarios]
    try:
        first = _single(args, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return base, preset(args.preset, first) if args.preset else [first]


def knee_search(args: argparse.Namespace) -> "KneeSearch":
    """How to look for the knee. Raises ConfigError."""
    from paceline.load.knee import KneeSearch

    warmup_s = None if args.trial is None else args.trial / 5
    given = {"trial_s": args.trial, "warmup_s": warmup_s, "most_per_s": args.most_rate}
    try:
        return KneeSearch(start_per_s=args.find_knee, **{k: v for k, v in given.items() if v is not None})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _single(args: argparse.Namespace, path: str) -> "Scenario":
    """The options as one scenario. Raises ConfigError or ValueError."""
    from paceline.load.parts import Checks
    from paceline.load.scenario import CLOSED, CONSTANT, GAMMA, OPEN, POISSON, REPLAY, Scenario

    amount: dict[str, Any] = {"requests": args.requests, "duration_s": args.duration}
    arrivals = GAMMA if args.cv is not None else POISSON if args.poisson else CONSTANT
    if args.users is not None:
        amount |= {"model": CLOSED, "users": args.users}
    elif args.rate is not None:
        amount |= {"model": OPEN, "rate_per_s": args.rate}
    elif args.stage:
        shape = [_stage(text) for text in args.stage]
        amount |= {"model": CLOSED if shape[0].to_users is not None else OPEN, "shape": shape}
    elif args.replay is not None:
        arrivals = REPLAY
        amount |= {"model": OPEN, "trace": _trace(args)}
    elif args.find_knee is not None:
        amount |= {"model": OPEN, "rate_per_s": args.find_knee, "duration_s": 1.0}
    elif args.preset is not None:
        amount |= {"users": 1, "requests": 1}  # the preset says how much
    else:
        msg = "say how much: --users N --requests N, or --rate R --duration S, or --preset NAME"
        raise ConfigError(msg)
    posts = args.bodies or args.replay
    return Scenario(
        name=args.name,
        **amount,
        ramp_s=args.ramp or 0.0,
        think_s=args.think or 0.0,
        arrivals=arrivals,
        cv=1.0 if args.cv is None else args.cv,
        method=(args.method or ("POST" if posts else "GET")).upper(),
        path=path,
        bodies=str(args.bodies) if args.bodies else None,
        headers=dict(_header(text) for text in args.header),
        checks=Checks(status=args.expect_status or [], contains=args.expect or []),
        pick=args.pick or "sequence",
        seed=args.seed,
        timeout_s=args.timeout,
        stop_error_ratio=args.abort_errors,
        processes=args.processes or 1,
    )


def _overridden(scenario: "Scenario", args: argparse.Namespace) -> "Scenario":
    """A scenario of a file, with what the command line says about how to drive it."""
    import msgspec

    changes: dict[str, Any] = {}
    if args.header:
        changes["headers"] = {**scenario.headers, **dict(_header(text) for text in args.header)}
    if args.abort_errors is not None:
        changes["stop_error_ratio"] = args.abort_errors
    if args.processes is not None:
        changes["processes"] = args.processes
    try:
        return msgspec.structs.replace(scenario, **changes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _stage(text: str) -> "Stage":
    """`ramp:100:60` or `hold:20/s:300`. Raises ConfigError or ValueError."""
    from paceline.load.parts import Stage

    kind, _, rest = text.partition(":")
    level, _, seconds = rest.partition(":")
    try:
        amount: dict[str, Any] = (
            {"to_rate_per_s": float(level.removesuffix("/s"))} if level.endswith("/s") else {"to_users": int(level)}
        )
        duration_s = float(seconds)
    except ValueError as error:
        msg = f"--stage must look like ramp:100:60 (users) or hold:20/s:300 (requests per second); got {text!r}"
        raise ConfigError(msg) from error
    return Stage(kind=kind, duration_s=duration_s, **amount)


def _trace(args: argparse.Namespace) -> "Trace":
    from paceline.load.parts import Trace

    start, length = 0.0, None
    if args.window is not None:
        first, _, last = args.window.partition(":")
        try:
            start, length = float(first), float(last)
        except ValueError as error:
            msg = f"--window must look like 600:120, START:LENGTH in seconds; got {args.window!r}"
            raise ConfigError(msg) from error
    scale = 1.0 if args.time_scale is None else args.time_scale
    return Trace(path=str(args.replay), time_scale=scale, max_gap_s=args.max_gap, start_s=start, length_s=length)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        msg = f"--header must look like 'Name: value'; got {text!r}"
        raise ConfigError(msg)
    return name.strip(), value.strip()


def _others() -> list[str]:
    return sorted(set().union(*_KINDS.values()))


def _is_given(args: argparse.Namespace, name: str) -> bool:
    value = getattr(args, name.removeprefix("--").replace("-", "_"))
    return value is not None and value is not False and value != []


def _exclude(one: str, other: str) -> ConfigError:
    why = _WHY.get(frozenset({one, other}))
    return ConfigError(f"{one} and {other} exclude each other" + (f": {why}" if why else ""))
