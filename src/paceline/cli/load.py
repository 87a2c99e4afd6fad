"""Drive load at a URL, or at the application a paceline.toml describes, and print the figures.

examples:
  paceline load http://127.0.0.1:8000/chat --bodies questions.jsonl --users 100 --requests 500
  paceline load http://127.0.0.1:8000/chat --bodies questions.jsonl --rate 10 --duration 60 --poisson
  paceline load http://127.0.0.1:8000/chat --bodies questions.jsonl --preset burst --objective 'p95_s<2'
  paceline load http://127.0.0.1:8000/chat --bodies questions.jsonl --find-knee 5 --objective 'p95_s<2'
  paceline load http://127.0.0.1:8000 --locust locustfile.py --users 100 --spawn-rate 10 --duration 60
  paceline load workloads/support --scenario concurrent --speed 5
"""

import argparse
import contextlib
import shutil
import ssl
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from paceline.cli import load_cache, load_gates, load_locust, load_options, load_view, load_watch
from paceline.errors import ConfigError, MeasurementError

if TYPE_CHECKING:
    from paceline.load.driver import Drive, Snapshot
    from paceline.load.knee import Knee
    from paceline.load.progress import Progress
    from paceline.load.scenario import Scenario
    from paceline.model.figures import Figures, Objective
    from paceline.model.run import ScenarioInfo
    from paceline.store.folder import RunFolder

Work = Callable[[], Coroutine[Any, Any, None]]
_Shown = tuple["list[ScenarioInfo]", "dict[str, Figures]"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    load_options.add_arguments(parser)
    load_gates.add_arguments(parser)
    load_watch.add_arguments(parser)
    load_view.add_arguments(parser)
    load_cache.add_arguments(parser)
    load_locust.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Drive, then print; 1 when an objective failed or nothing succeeded, 4 when the generator spoiled the figures."""
    load_options.check(args)
    load_locust.check(args)
    if args.presets:
        return _list_presets(args)
    if args.openapi is not None:
        return _draft(args)
    if args.locust is not None:
        return _drive_and_judge(_by_locust(args), args)
    if args.target is None:
        msg = "say where to: a URL such as http://127.0.0.1:8000/chat, or a folder with a paceline.toml"
        raise ConfigError(msg)
    if args.cache_test:
        return load_cache.run(args)
    is_url = "://" in args.target
    if not is_url and not Path(args.target).exists():
        msg = f"{args.target} is neither a URL such as http://127.0.0.1:8000/chat nor a folder with a paceline.toml"
        raise ConfigError(msg)
    return _drive_and_judge(_at_url(args) if is_url else _at_application(args), args)


def _drive_and_judge(driving: "_Driving", args: argparse.Namespace) -> int:
    import uvloop

    try:
        uvloop.run(driving.work())
    except KeyboardInterrupt:
        _show(driving, args)
        raise
    return _judge(_show(driving, args), driving, args)


class _Driving:
    """What is driven: the run to write, how, and what is asked of it."""

    def __init__(self, folder: "RunFolder", names: "list[str] | None" = None) -> None:
        self.folder, self.names = folder, names
        self.objectives: list[Objective] = []
        self.knee: Knee | None = None
        self.complaint: str | None = None  # of a locustfile
        self.work: Work


def _list_presets(args: argparse.Namespace) -> int:
    from paceline.load.named import PRESETS

    if args.json:
        print(msgspec.json.encode({name: entry.title for name, entry in PRESETS.items()}).decode())
        return 0
    for name, entry in PRESETS.items():
        print(f"{name:12}{entry.title}")
    return 0


def _draft(args: argparse.Namespace) -> int:
    from paceline.load.openapi import write_draft

    path, notes = write_draft(args.openapi, args.out)
    for note in notes:
        print(note, file=sys.stderr)
    print(f"wrote {path}; next: paceline load http://127.0.0.1:8000 --file {path}")
    return 0


def _at_url(args: argparse.Namespace) -> _Driving:
    """Driving scenarios one after the other, or looking for the knee, at a URL."""
    from paceline.load.address import Address
    from paceline.load.snapshot import in_step
    from paceline.store.folder import create_run, open_run

    base, scenarios = load_options.scenarios_of(args)
    Address.parse(base)  # a malformed URL must not leave an empty run behind
    tls = _unchecked() if args.insecure else None
    search = None
    if args.find_knee is not None:
        search = load_options.knee_search(args)
        if args.into is not None:
            msg = "--run and --find-knee exclude each other: every trial is a scenario of a run of its own"
            raise ConfigError(msg)
    own = args.into is None
    folder = create_run(args.runs, args.name, speed=args.speed or 1.0, command=sys.argv) if own else open_run(args.into)
    driving = _Driving(folder, None if own else [scenario.name for scenario in scenarios])

    async def work() -> None:
        stopped = None
        with _kept(folder, own) as ended:
            async with load_locust.driving(args) as drive:
                with load_watch.watching(args, folder) as resources, load_view.shown(args, resources) as progress:
                    if search is not None:
                        driving.knee = await _find_knee(args, scenarios[0], base, folder, progress, tls, drive)
                    else:
                        for number, scenario in enumerate(scenarios, 1):
                            step = f"scenario {number} of {len(scenarios)}" if len(scenarios) > 1 else ""
                            tell = in_step(step, progress)
                            info = await drive(scenario, base, folder, speed=args.speed, progress=tell, tls=tls)
                            stopped = stopped or info.stopped
            ended(stopped)

    _keep_objectives(folder, args)
    driving.work = work
    return driving


def _by_locust(args: argparse.Namespace) -> _Driving:
    """Running a locustfile."""
    from paceline.store.folder import create_run, open_run

    load, own = load_locust.load_of(args), args.into is None
    folder = create_run(args.runs, args.name, command=sys.argv) if own else open_run(args.into)
    load_locust.check_run(folder.info.speed)
    driving = _Driving(folder, None if own else [load.name])

    async def work() -> None:
        with _kept(folder, own) as ended:
            with load_watch.watching(args, folder) as resources, load_view.shown(args, resources) as progress:
                stopped, driving.complaint = await load_locust.drive(load, folder, progress)
            ended(stopped)

    _keep_objectives(folder, args)
    driving.work = work
    return driving


def _keep_objectives(folder: "RunFolder", args: argparse.Namespace) -> None:
    """Write them into the run, so that its report can put them again."""
    bounds = [f"{bound.measure}<{bound.limit_s:g}" for bound in args.goodput]
    objectives, goodput = [*folder.info.objectives, *args.objective], [*folder.info.goodput, *bounds]
    folder.update(objectives=objectives, goodput=goodput)


@contextlib.contextmanager
def _kept(folder: "RunFolder", own: bool) -> Iterator[Callable[[str | None], None]]:
    """Finish a run of our own, whatever happens: what was driven is kept, and an empty run is not."""
    from paceline.model.run import COMPLETE, PARTIAL

    def ended(stopped: str | None) -> None:
        if own:
            folder.finish(PARTIAL if stopped else COMPLETE, stopped)

    try:
        yield ended
    except BaseException as error:  # Ctrl-C too
        if own and folder.info.scenarios:
            folder.finish(PARTIAL, str(error) or "interrupted")
        elif own:
            shutil.rmtree(folder.path)  # nothing was sent
        raise


async def _find_knee(
    args: argparse.Namespace,
    scenario: "Scenario",
    base: str,
    folder: "RunFolder",
    progress: "Callable[[Snapshot], None]",
    tls: ssl.SSLContext | None,
    drive: "Drive",
) -> "Knee":
    from paceline.load.knee import driven_trials, find_knee

    search = load_options.knee_search(args)
    measure = driven_trials(
        scenario, base, folder, search, args.objective, speed=args.speed, progress=progress, tls=tls, drive=drive
    )
    return await find_knee(search, measure)


def _unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _at_application(args: argparse.Namespace) -> _Driving:
    """Starting the application recorded (as tune does for its baseline) and driving it."""
    from paceline.store.folder import create_run
    from paceline.tune.measure import Bench, measure, prepare
    from paceline.tune.target import load_target

    if args.into is not None:
        msg = "--run goes with a URL; load DIR starts the application itself and makes its own run"
        raise ConfigError(msg)
    load_options.check_application(args)
    target = load_target(Path(args.target))
    scenarios = [s for s in target.scenarios if args.scenario in (None, s.name)]
    if not scenarios:
        known = ", ".join(s.name for s in target.scenarios)
        msg = f"no scenario named {args.scenario!r} in {target.path}; it has: {known}"
        raise ConfigError(msg)
    speed = args.speed or 1.0
    driving = _Driving(create_run(args.runs, target.name, speed=speed, command=sys.argv))

    async def work() -> None:
        folder = driving.folder
        with load_view.shown(args) as progress:
            watch = _Watch(progress)
            bench = Bench(target=target, folder=folder.path, speed=speed, seed=args.seed, golden=[], watch=watch)
            await prepare(bench)
            await measure(bench, target.after(0), folder, scenarios)

    driving.work = work
    return driving


class _Watch:
    """What tune's measuring tells whoever watches, on stderr."""

    def __init__(self, progress: "Progress") -> None:
        self.load = progress
        self.step = self.note = progress.note


def _show(driving: _Driving, args: argparse.Namespace) -> "_Shown":
    """Print the figures of every scenario that was driven, or the knee."""
    from paceline.cli.load_table import as_record, print_scenario
    from paceline.report.measured import measure_run

    folder = driving.folder
    if not folder.path.exists():
        return [], {}
    measured = measure_run(folder, load_gates.bounds_asked(args))
    driven = [i for i in folder.info.scenarios if driving.names is None or i.name in driving.names]
    infos = [info for info in driven if info.name in measured.scenarios]
    shown = infos, {info.name: measured.scenarios[info.name] for info in infos}
    if args.json:
        record: dict[str, object] = {"run": str(folder.path)}
        record["scenarios"] = [as_record(info, measured) for info in infos]
        if driving.knee is not None:
            record["knee"] = driving.knee
        print(msgspec.json.encode(record).decode())
        return shown
    if driving.knee is not None:
        print_knee(driving.knee)
    for info in infos if driving.knee is None else ():
        print_scenario(info, measured)
    if infos:
        verb = "diagnose" if measured.data.spans else "report"  # without spans there is nothing to diagnose
        print(f"recorded in {folder.path}; next: paceline {verb} {folder.path}")
    return shown


def print_knee(knee: "Knee") -> None:
    """Every trial on a line, then the knee."""
    for trial in knee.trials:
        p95 = "none answered" if trial.p95_s is None else f"p95 {trial.p95_s * 1e3:,.1f} ms"
        said = " ".join(filter(None, [trial.missed, trial.trouble and f"({trial.trouble})"])) or "kept"
        print(f"{trial.rate_per_s:10.4g}/s  {p95}, n={trial.requests:,}: {said}")
    if knee.rate_per_s is None:
        print(f"no knee: {knee.why}")
    elif knee.above_per_s is None:
        print(f"knee: at least {knee.rate_per_s:.4g}/s; {knee.why}")
    else:
        print(f"knee: between {knee.rate_per_s:.4g}/s (kept) and {knee.above_per_s:.4g}/s; {knee.why}")


def _judge(shown: "_Shown", driving: _Driving, args: argparse.Namespace) -> int:
    """The exit code, with the reason on stderr."""
    if driving.knee is not None:
        return _judge_knee(driving.knee)
    infos, figures = shown
    code = load_gates.judge(args, infos, figures)
    for info in infos:
        failed = not figures[info.name].success_ratio
        if failed or info.stopped:
            what = "every request failed" if failed else f"stopped early: {info.stopped}"
            print(f"paceline load: scenario {info.name!r}: {what}", file=sys.stderr)
            return 1
    for info in infos:
        if info.trouble:
            msg = f"{info.trouble}: the figures show it and not only the target. Lower the load or free a core for it"
            raise MeasurementError(msg)
    if driving.complaint is not None:
        print(f"paceline load: {driving.complaint}", file=sys.stderr)
        return 1
    return code


def _judge_knee(knee: "Knee") -> int:
    """0: found, or none up to the highest rate asked for; 1: not even the lowest; 4: the generator was the limit."""
    if knee.limited_by == "generator":
        raise MeasurementError(knee.why)
    return 1 if knee.rate_per_s is None else 0
