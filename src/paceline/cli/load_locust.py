"""Locust in `paceline load`: a locustfile to run, or Locust workers that drive a scenario; the options of both."""

import argparse
import contextlib
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.load.driver import Drive
    from paceline.load.locust.locustfile import LocustLoad
    from paceline.load.snapshot import Snapshot
    from paceline.store.folder import RunFolder

# What says how much or what to send; a locustfile does that itself. --users and --duration go with it.
_MASTER = "127.0.0.1:5557"  # Locust's own port
_NOT_WITH = (
    *("--rate", "--stage", "--replay", "--find-knee", "--file", "--cache-test"),
    *("--requests", "--ramp", "--think", "--poisson", "--cv", "--speed", "--processes", "--scenario"),
    *("--locust-workers", "--method", "--bodies", "--pick", "--header", "--expect", "--expect-status", "--insecure"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of Locust."""
    of = parser.add_argument_group("Locust (needs paceline[locust])")
    of.add_argument(
        "--locust",
        type=Path,
        metavar="FILE",
        help="run this locustfile unchanged; with --users, --duration, URL as host",
    )
    of.add_argument("--spawn-rate", type=float, metavar="R", help="users that Locust starts a second (default: 1)")
    of.add_argument(
        "--locust-args", metavar="TEXT", help="more of Locust's own options, such as --locust-args='--tags read'"
    )
    of.add_argument(
        "--locust-workers",
        type=int,
        metavar="N",
        help="have N Locust workers, on any machines, share the work of sending",
    )
    of.add_argument(
        "--locust-master", metavar="HOST:PORT", help=f"where workers connect to (default: {_MASTER}); no one is checked"
    )


def check(args: argparse.Namespace) -> None:
    """Refuse what belongs to Locust without it. Raises ConfigError with one sentence."""
    for name in ("--spawn-rate", "--locust-args"):
        if args.locust is None and _is_given(args, name):
            msg = f"{name} goes with --locust FILE"
            raise ConfigError(msg)
    if args.locust_workers is None:
        if args.locust_master is not None:
            msg = "--locust-master goes with --locust-workers N"
            raise ConfigError(msg)
        return
    if args.locust_workers < 1:
        msg = f"--locust-workers must be at least 1; got {args.locust_workers}"
        raise ConfigError(msg)
    for name in ("--processes", "--cache-test"):
        if _is_given(args, name):
            msg = f"--locust-workers and {name} exclude each other"
            raise ConfigError(msg)
    if args.target is not None and "://" not in args.target:
        msg = "--locust-workers goes with a URL; load DIR starts the application here and drives it from here"
        raise ConfigError(msg)
    _master(args.locust_master)


@contextlib.asynccontextmanager
async def driving(args: argparse.Namespace) -> "AsyncIterator[Drive]":
    """What drives a scenario: this process, or Locust workers once all have come."""
    from paceline.load.driver import drive as drive_here

    if args.locust_workers is None:
        yield drive_here
        return
    from paceline.load.locust.fleet import gather

    host, port = _master(args.locust_master)
    async with gather(host, port, args.locust_workers, say=lambda text: print(text, file=sys.stderr)) as fleet:
        yield fleet.drive


def load_of(args: argparse.Namespace) -> "LocustLoad":
    """The options as what to run. Raises ConfigError."""
    from paceline.load.locust.locustfile import LocustLoad
    from paceline.load.locust.program import require_locust

    require_locust("--locust")
    for name in _NOT_WITH:
        if _is_given(args, name):
            msg = f"--locust and {name} exclude each other: the locustfile says what to send"
            raise ConfigError(msg)
    for name, given in (("--users", args.users), ("--duration", args.duration), ("--spawn-rate", args.spawn_rate)):
        if given is not None and not given > 0:
            msg = f"{name} must be above 0; got {given:g}"
            raise ConfigError(msg)
    if not args.locust.is_file():
        msg = f"no such locustfile: {args.locust}"
        raise ConfigError(msg)
    users, spawn_rate_per_s, duration_s = _amount(args)
    return LocustLoad(
        locustfile=args.locust,
        host=_host(args.target),
        users=users,
        spawn_rate_per_s=spawn_rate_per_s,
        duration_s=duration_s,
        arguments=_more(args.locust_args),
        name=args.name,
        stop_error_ratio=args.abort_errors,
    )


def check_run(speed: float) -> None:
    """Refuse a run whose provider is hurried. Raises ConfigError."""
    if speed != 1:
        msg = f"this run has speed {speed:g}, and a locustfile's waits cannot be hurried: record it with --speed 1"
        raise ConfigError(msg)


def _amount(args: argparse.Namespace) -> tuple[int | None, float | None, float | None]:
    """Users, how many start a second, and for how long: as given, or as a preset has them. Raises ConfigError."""
    if args.preset is None:
        return args.users, args.spawn_rate, args.duration
    from paceline.load.named import preset
    from paceline.load.scenario import Scenario

    if args.spawn_rate is not None:
        msg = "--preset and --spawn-rate exclude each other"
        raise ConfigError(msg)
    first = preset(args.preset, Scenario(name=args.name, users=1, requests=1))[0]
    if not first.users or not first.duration_s or not first.ramp_s:
        msg = f"--locust takes presets of users and a time, such as normal, burst and soak; got {args.preset!r}"
        raise ConfigError(msg)
    return first.users, first.users / first.ramp_s, first.duration_s


async def drive(
    load: "LocustLoad", folder: "RunFolder", progress: "Callable[[Snapshot], None]"
) -> tuple[str | None, str | None]:
    """Run it; return why it stopped early and what it complains of."""
    from paceline.load.locust.locustfile import drive_locustfile

    outcome = await drive_locustfile(load, folder, progress=progress)
    return outcome.info.stopped, outcome.complaint


def _host(target: str | None) -> str | None:
    if target is None:
        return None
    parts = urlsplit(target)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        msg = f"the host for a locustfile must be a URL such as http://127.0.0.1:8000; got {target!r}"
        raise ConfigError(msg)
    return target.rstrip("/")


def _more(text: str | None) -> list[str]:
    try:
        return shlex.split(text or "")
    except ValueError as error:
        msg = f"--locust-args: {error}; got {text!r}"
        raise ConfigError(msg) from error


def _master(text: str | None) -> tuple[str, int]:
    host, colon, port = (text or _MASTER).rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        msg = f"--locust-master must look like 0.0.0.0:5557; got {text!r}"
        raise ConfigError(msg)
    return host.strip("[]"), int(port)


def _is_given(args: argparse.Namespace, name: str) -> bool:
    value = getattr(args, name.removeprefix("--").replace("-", "_"))
    return value is not None and value is not False and value != []
