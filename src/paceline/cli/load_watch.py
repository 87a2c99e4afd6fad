"""The target's resources during `paceline load`: the options, and the sampler beside the load."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.load.progress import Resources
    from paceline.record.sampler import Source
    from paceline.store.folder import RunFolder

_SERVICE = "app"  # the one whose memory the figures and the leak verdict are about


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of watching."""
    watch = parser.add_argument_group("the target's resources (URL; they give the memory verdict)")
    watch.add_argument("--watch-pid", type=int, metavar="PID", help="sample this process and its descendants")
    watch.add_argument("--watch-port", type=int, metavar="PORT", help="... the process that listens on this port")
    watch.add_argument("--watch-metrics", metavar="URL", help="... process_* of a Prometheus endpoint, once a second")
    watch.add_argument("--watch-cgroup", type=Path, metavar="DIR", help="... a container by its control group (v2)")


@contextlib.contextmanager
def watching(args: argparse.Namespace, folder: "RunFolder") -> "Iterator[Resources | None]":
    """Sample what the options name into the run, until the block ends, and give the newest reading.

    Nothing named, nothing done.

    Raises:
        ConfigError: two things to watch, somebody else's run, or a target that is not there.
    """
    asked = [args.watch_pid, args.watch_port, args.watch_metrics, args.watch_cgroup]
    if all(value is None for value in asked):
        yield None
        return
    if sum(value is not None for value in asked) > 1:
        msg = "--watch-pid, --watch-port, --watch-metrics and --watch-cgroup exclude each other: give one"
        raise ConfigError(msg)
    if args.into is not None:
        msg = "--watch-* and --run exclude each other: whoever records that run samples its service"
        raise ConfigError(msg)
    from paceline.load.watch import MetricsEndpoint
    from paceline.record.sampler import Sampler

    source = _source(args)
    spool = folder.spool("resources", "watch")
    sampler = Sampler(spool, folder.now_s)
    sampler.add(_SERVICE, source)
    sampler.start()
    try:
        yield lambda: sampler.latest.get(_SERVICE)
    finally:
        sampler.close()
        spool.close()
        if isinstance(source, MetricsEndpoint):
            source.close()
            if source.problem is not None:
                said = f"{args.watch_metrics} could not be read {source.failed} times, last: {source.problem}"
                print(f"paceline load: {said}", file=sys.stderr)
        if spool.written == 0:
            spool.path.unlink(missing_ok=True)


def _source(args: argparse.Namespace) -> "Source":
    """What to sample. Raises ConfigError."""
    import psutil

    from paceline.load.watch import Cgroup, MetricsEndpoint, listening_pid
    from paceline.record.sampler import Tree

    if args.watch_metrics is not None:
        return MetricsEndpoint(args.watch_metrics)
    if args.watch_cgroup is not None:
        return Cgroup(args.watch_cgroup)
    pid = listening_pid(args.watch_port) if args.watch_pid is None else args.watch_pid
    try:
        return Tree(pid, thorough=True)
    except (psutil.NoSuchProcess, ValueError) as error:
        msg = f"--watch-pid: no process {pid}"
        raise ConfigError(msg) from error
