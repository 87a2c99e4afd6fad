"""Drive load at a URL, or at the application a paceline.toml describes, and print the figures.

examples:
  paceline load http://127.0.0.1:8000/chat --bodies questions.jsonl --users 100 --requests 500
  paceline load http://127.0.0.1:8000/chat --bodies questions.jsonl --rate 10 --duration 60 --poisson
  paceline load workloads/support --scenario concurrent --speed 5
"""

import argparse
import shutil
import ssl
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from paceline.cli import load_cache, load_gates
from paceline.errors import ConfigError, MeasurementError

if TYPE_CHECKING:
    from paceline.load.driver import Snapshot
    from paceline.load.scenario import Scenario
    from paceline.model.run import ScenarioInfo
    from paceline.store.folder import RunFolder
    from paceline.trace.data import RunData

Work = Callable[[], Coroutine[Any, Any, None]]
RUNS = Path(".paceline/runs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("target", metavar="URL|DIR", help="where to send requests, or a folder with a paceline.toml")
    load = parser.add_argument_group("what to send (URL; times and rates at the provider's pace)")
    load.add_argument("--users", type=int, metavar="N", help="closed load: this many users, one request each at a time")
    load.add_argument("--requests", type=int, metavar="N", help="stop after this many requests")
    load.add_argument("--rate", type=float, metavar="R", help="open load: requests per second, whoever has answered")
    load.add_argument("--duration", type=float, metavar="S", help="stop after this many seconds")
    load.add_argument("--poisson", action="store_true", help="random arrivals (default: evenly spaced)")
    load.add_argument("--cv", type=float, metavar="X", help="bursty arrivals: deviation over mean of the gaps")
    load.add_argument("--ramp", type=float, default=0.0, metavar="S", help="start the users over this time")
    load.add_argument("--think", type=float, default=0.0, metavar="S", help="pause of a user after an answer")
    load.add_argument("--method", help="default: POST with bodies, GET without")
    load.add_argument("--bodies", type=Path, metavar="FILE", help="JSON lines, one request body each")
    load.add_argument("--pick", default="sequence", help="sequence (default), uniform or zipf")
    load.add_argument("--header", action="append", default=[], metavar="K:V", help="may be repeated")
    load.add_argument("--timeout", type=float, default=120.0, metavar="S", help="for one whole answer (default: 120)")
    load.add_argument("--seed", type=int, default=0, help="of the order of bodies and of random arrivals (default: 0)")
    load.add_argument("--insecure", action="store_true", help="do not check the certificate of an https target")
    load_gates.add_arguments(parser)
    load_cache.add_arguments(parser)
    parser.add_argument("--scenario", metavar="NAME", help="DIR: only this one of its scenarios")
    parser.add_argument("--run", type=Path, dest="into", metavar="RUN", help="add to this run (one being recorded)")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR", help=f"where new runs go (default: {RUNS})")
    parser.add_argument("--name", default="load", help="of the run and the scenario (default: load)")
    parser.add_argument("--speed", type=float, metavar="N", help="times faster than real (default: the run's, or 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Drive, then print; 1: nothing succeeded or an objective is missed, 4: the generator spoiled the figures."""
    import uvloop

    if args.speed is not None and not args.speed > 0:
        msg = f"--speed must be above 0; got {args.speed:g}"
        raise ConfigError(msg)
    if args.cache_test:
        return load_cache.run(args)
    is_url = "://" in args.target
    if not is_url and not Path(args.target).exists():
        msg = f"{args.target} is neither a URL such as http://127.0.0.1:8000/chat nor a folder with a paceline.toml"
        raise ConfigError(msg)
    folder, work = _at_url(args) if is_url else _at_application(args)
    try:
        uvloop.run(work())
    except KeyboardInterrupt:
        _show(folder, args)
        raise
    shown = _show(folder, args)
    missed = load_gates.judge(args, shown)
    return _judge(shown) or missed


def _at_url(args: argparse.Namespace) -> "tuple[RunFolder, Work]":
    """The run to write and the driving of one scenario at a URL."""
    from paceline.load.driver import drive
    from paceline.load.pool import Address
    from paceline.load.progress import show_progress
    from paceline.model.run import COMPLETE, PARTIAL
    from paceline.store.folder import create_run, open_run

    scenario = _scenario(args)
    parts = urlsplit(args.target)
    base = f"{parts.scheme}://{parts.netloc}"
    Address.parse(base)  # a malformed URL must not leave an empty run behind
    tls = _unchecked() if args.insecure else None
    own = args.into is None
    folder = create_run(args.runs, args.name, speed=args.speed or 1.0, command=sys.argv) if own else open_run(args.into)

    async def work() -> None:
        try:
            with show_progress() as progress:
                info = await drive(scenario, base, folder, speed=args.speed, progress=progress, tls=tls)
        except BaseException as error:  # Ctrl-C too: what was driven is kept
            if own and folder.info.scenarios:
                folder.finish(PARTIAL, str(error) or "interrupted")
            elif own:
                shutil.rmtree(folder.path)  # nothing was sent
            raise
        if own:
            folder.finish(PARTIAL if info.stopped else COMPLETE, info.stopped)

    return folder, work


def _scenario(args: argparse.Namespace) -> "Scenario":
    """The options as a scenario. Raises ConfigError."""
    from paceline.load.scenario import CLOSED, CONSTANT, GAMMA, OPEN, POISSON, Scenario

    if args.users is not None and args.rate is not None:
        msg = "--users and --rate exclude each other: users wait for answers, a rate does not"
        raise ConfigError(msg)
    if args.poisson and args.cv is not None:
        msg = "--poisson and --cv exclude each other: Poisson arrivals have a cv of 1"
        raise ConfigError(msg)
    if args.users is None and args.rate is None:
        msg = "say how much: --users N --requests N, or --rate R --duration S"
        raise ConfigError(msg)
    parts = urlsplit(args.target)
    try:
        return Scenario(
            name=args.name,
            model=CLOSED if args.rate is None else OPEN,
            users=args.users,
            requests=args.requests,
            duration_s=args.duration,
            ramp_s=args.ramp,
            think_s=args.think,
            rate_per_s=args.rate,
            arrivals=GAMMA if args.cv is not None else POISSON if args.poisson else CONSTANT,
            cv=1.0 if args.cv is None else args.cv,
            method=(args.method or ("POST" if args.bodies else "GET")).upper(),
            path=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            bodies=str(args.bodies) if args.bodies else None,
            headers=dict(_header(text) for text in args.header),
            pick=args.pick,
            seed=args.seed,
            timeout_s=args.timeout,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        msg = f"--header must look like 'Name: value'; got {text!r}"
        raise ConfigError(msg)
    return name.strip(), value.strip()


def _unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _at_application(args: argparse.Namespace) -> "tuple[RunFolder, Work]":
    """The run to write, and starting the application recorded (as tune does for its baseline) and driving it."""
    from paceline.load.progress import show_progress
    from paceline.store.folder import create_run
    from paceline.tune.measure import Bench, measure, prepare
    from paceline.tune.target import load_target

    if args.into is not None:
        msg = "--run goes with a URL; load DIR starts the application itself and makes its own run"
        raise ConfigError(msg)
    target = load_target(Path(args.target))
    scenarios = [s for s in target.scenarios if args.scenario in (None, s.name)]
    if not scenarios:
        known = ", ".join(s.name for s in target.scenarios)
        msg = f"no scenario named {args.scenario!r} in {target.path}; it has: {known}"
        raise ConfigError(msg)
    speed = args.speed or 1.0
    folder = create_run(args.runs, target.name, speed=speed, command=sys.argv)

    async def work() -> None:
        with show_progress() as progress:
            watch = _Watch(progress)
            bench = Bench(target=target, folder=folder.path, speed=speed, seed=args.seed, golden=[], watch=watch)
            await prepare(bench)
            await measure(bench, target.after(0), folder, scenarios)

    return folder, work


class _Watch:
    """What tune's measuring tells whoever watches, on stderr."""

    def __init__(self, load: "Callable[[Snapshot], None]") -> None:
        self.load = load

    def step(self, text: str) -> None:
        """Something that takes a while begins."""
        print(text, file=sys.stderr)

    note = step


def _show(folder: "RunFolder", args: argparse.Namespace) -> "list[tuple[ScenarioInfo, RunData]]":
    """Print the figures of every scenario that was driven."""
    from paceline.cli.load_table import as_record, print_scenario
    from paceline.trace.data import RunData

    data = RunData(folder.info, folder.requests(), folder.spans(), folder.resources())
    driven = [i for i in folder.info.scenarios if args.into is None or i.name == args.name]
    shown = [(info, data.scenario(info.name)) for info in driven if info.name in data.scenario_names]
    if args.json:
        record = {"run": str(folder.path), "scenarios": [as_record(*scenario) for scenario in shown]}
        print(msgspec.json.encode(record).decode())
        return shown
    for scenario in shown:
        print_scenario(*scenario)
    if shown:
        print(f"recorded in {folder.path}; next: paceline diagnose {folder.path}")
    return shown


def _judge(shown: "list[tuple[ScenarioInfo, RunData]]") -> int:
    """The exit code, with the reason on stderr."""
    for info, data in shown:
        failed = not any(r.ok for r in data.requests)
        if failed or info.stopped:
            what = "every request failed" if failed else f"stopped early: {info.stopped}"
            print(f"paceline load: scenario {info.name!r}: {what}", file=sys.stderr)
            return 1
    for info, _ in shown:
        if info.trouble:
            msg = f"{info.trouble}: the figures show it and not only the target. Lower the load or free a core for it"
            raise MeasurementError(msg)
    return 0
