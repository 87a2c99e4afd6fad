"""Every error a user can meet, split by two questions: whose fault is it, and what next?

PacelineError
  ConfigError          an option, file or variable is wrong                      exit 2
    ServiceError       the user's application did not start, or is not reachable exit 2
  InputError           a run, trace or file we cannot read                       exit 3
  MeasurementError     the figures cannot be trusted or kept                     exit 4
  UpstreamError        the model server failed: which target, which attempt      exit 1
    UpstreamTimeout    phase (connect, first_byte, total) and limit_s
    UpstreamRejected   status, retry_after_s
    UpstreamBroken     the stream ended before its final event
  Overloaded           our own limiter refused; retry_after_s                    exit 1

Caller mistakes in Python are ValueError or TypeError; weather is a PacelineError.
"""

from pathlib import Path


class PacelineError(Exception):
    """Base of all. `str(error)` is one sentence: what happened, to what, the value seen, what to do."""

    exit_code = 1


class ConfigError(PacelineError):
    """An option, file or variable is wrong; the message names it and a valid value."""

    exit_code = 2


class ServiceError(ConfigError):
    """The application under test did not start or cannot be reached."""


class InputError(PacelineError):
    """A run, trace or file that cannot be read: path, line where known, what was expected."""

    exit_code = 3

    def __init__(self, message: str, *, path: Path | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.line = line


class MeasurementError(PacelineError):
    """The measurement cannot be trusted or kept: generator too slow, disk full."""

    exit_code = 4


class UpstreamError(PacelineError):
    """A model server failed; `target` is its base URL."""

    def __init__(self, message: str, *, target: str) -> None:
        super().__init__(message)
        self.target = target


class UpstreamTimeout(UpstreamError):
    """A phase (connect, first_byte, total) took longer than `limit_s`."""

    def __init__(self, message: str, *, target: str, phase: str, limit_s: float) -> None:
        super().__init__(message, target=target)
        self.phase = phase
        self.limit_s = limit_s


class UpstreamRejected(UpstreamError):
    """The model server answered with an error status."""

    def __init__(self, message: str, *, target: str, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message, target=target)
        self.status = status
        self.retry_after_s = retry_after_s


class UpstreamBroken(UpstreamError):
    """The answer ended before it was complete."""


class Overloaded(PacelineError):
    """Our own limiter refused the call."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
