"""Saying, once, that something of ours failed inside the recorded service; and carrying on."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_said: set[str] = set()


def warn_once(what: str, error: BaseException | None = None) -> None:
    """One line on stderr, the first time `what` happens in this process."""
    if what in _said:
        return
    _said.add(what)
    reason = f": {type(error).__name__}: {error}" if error is not None else ""
    try:
        sys.stderr.write(f"paceline: {what}{reason}\n")
    except (OSError, ValueError, AttributeError):
        return  # no stderr: nobody to tell


def quietly(function: Callable[P, R]) -> Callable[P, R | None]:
    """The function, returning None instead of raising: our own bugs and surprises must not reach the service."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 any failure of ours is only worth one warning
            warn_once(f"recording incomplete ({function.__module__}.{function.__qualname__})", error)
            return None

    return guarded
