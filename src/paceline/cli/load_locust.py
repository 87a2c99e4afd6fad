"""`paceline load --locust`: the options, and what they ask of Locust."""

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.load.locust.locustfile import LocustLoad
    from paceline.load.snapshot import Snapshot
    from paceline.store.folder import RunFolder

# What says how much or what to send; a locustfile does that itself. --users and --duration go with it.
_NOT_WITH = (
    *("--rate", "--stage", "--preset", "--replay", "--find-knee", "--file", "--cache-test"),
    *("--requests", "--ramp", "--think", "--poisson", "--cv", "--speed", "--processes", "--scenario"),
    *("--method", "--bodies", "--pick", "--header", "--expect", "--expect-status", "--insecure"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of Locust."""
    of = parser.add_argument_group("Locust (needs paceline[locust])")
    of.add_argument(
        "--locust", type=Path, metavar="FILE", help="run this locustfile unchanged; with --users, --duration, URL as host"
    )
    of.add_argument("--spawn-rate", type=float, metavar="R", help="users that Locust starts a second (default: 1)")
    of.add_argument(
        "--locust-args", metavar="TEXT", help="more of Locust's own options, such as --locust-args='--tags read'"
    )


def load_of(args: argparse.Namespace) -> "LocustLoad":
    """The options as what to run. Raises ConfigError."""
    from paceline.load.locust.locustfile import LocustLoad, require_locust

    require_locust("--locust")
    for name in _NOT_WITH:
        value = getattr(args, name.removeprefix("--").replace("-", "_"))
        if value is not None and value is not False and value != []:
            msg = f"--locust and {name} exclude each other: the locustfile says what to send"
            raise ConfigError(msg)
    for name, given in (("--users", args.users), ("--duration", args.duration), ("--spawn-rate", args.spawn_rate)):
        if given is not None and not given > 0:
            msg = f"{name} must be above 0; got {given:g}"
            raise ConfigError(msg)
    if not args.locust.is_file():
        msg = f"no such locustfile: {args.locust}"
        raise ConfigError(msg)
    return LocustLoad(
        locustfile=args.locust,
        host=_host(args.target),
        users=args.users,
        spawn_rate_per_s=args.spawn_rate,
        duration_s=args.duration,
        arguments=_more(args.locust_args),
        name=args.name,
        stop_error_ratio=args.abort_errors,
    )


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
