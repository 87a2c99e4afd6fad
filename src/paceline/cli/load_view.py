"""What `paceline load` shows meanwhile: the option, and the choice between a live screen, plain lines and nothing."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from paceline.load.progress import Progress, Resources


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the option."""
    parser.add_argument("--quiet", action="store_true", help="show no progress; the figures at the end are printed")


@contextmanager
def shown(args: argparse.Namespace, resources: "Resources | None" = None) -> "Iterator[Progress]":
    """Show how it goes on stderr until the block ends, in the way that suits it."""
    from paceline.load.progress import show_progress

    with show_progress(fitting_mode(sys.stderr, is_quiet=args.quiet), resources=resources) as progress:
        yield progress


def fitting_mode(stream: TextIO, *, is_quiet: bool) -> str:
    """A live screen on a terminal that can have one, plain lines elsewhere and in CI, nothing when quiet."""
    from paceline.load.progress import LIVE, NONE, PLAIN

    if is_quiet:
        return NONE
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    can_draw = stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return LIVE if can_draw and not in_ci else PLAIN
