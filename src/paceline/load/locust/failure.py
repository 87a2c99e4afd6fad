"""What went wrong in Locust, in Paceline's words: requests that failed, exceptions in locustfiles, files it refuses."""

import http.client
import os
import traceback
from types import TracebackType

_STATUS = {"HTTPError", "BadStatusCode", "LocustBadStatusCode"}  # of requests, geventhttpclient, Locust
_CLIENTS = {"requests", "urllib3", "geventhttpclient"}
_MOST_TEXT = 200
_NO_USER = "has no User class: define one, such as `class Visitor(HttpUser)`"


def failure_of(exception: object, status: int | None) -> tuple[str | None, str | None]:
    """The kind of a Request's error, and for "check" what failed; (None, None) where there was no exception.

    Whatever a locustfile itself says (`response.failure(...)`, an exception of a client of its own) is a check. Clients
    are told by the names of their classes, so that none has to be installed.
    """
    if exception is None or exception is False:
        return None, None
    kind = type(exception)
    names = {base.__name__ for base in kind.__mro__}
    if isinstance(exception, TimeoutError) or any("Timeout" in name for name in names):
        return "timeout", None
    if status and status >= 400 and names & _STATUS:
        return "status", None
    is_client = any(base.__module__.partition(".")[0] in _CLIENTS for base in kind.__mro__)
    if isinstance(exception, OSError | http.client.HTTPException) or is_client:
        return ("timeout" if "timed out" in str(exception).lower() else "connection"), None
    said = str(exception)
    if isinstance(exception, Exception) and kind.__name__ != "CatchResponseError":
        said = f"{kind.__name__}: {said}"
    return "check", said[:_MOST_TEXT] or kind.__name__


def described(error: BaseException, tb: TracebackType | None, locustfile: str) -> str:
    """`KeyError: 'id' (shop.py, line 12)`: where in the user's own code, if it was there."""
    said = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    frames = traceback.extract_tb(tb)
    folder = os.path.dirname(os.path.abspath(locustfile))  # noqa: PTH100, PTH120 - a frame's names are strings
    own = [f for f in frames if f.filename.startswith(folder) and "site-packages" not in f.filename]
    return f"{said} ({os.path.basename(own[-1].filename)}, line {own[-1].lineno})" if own else said  # noqa: PTH119


def refusal(said: list[str], locustfile: str) -> str:
    """Why Locust ended before it began, from the errors it logged."""
    if not said:
        return f"Locust refused to run {locustfile}; what it said is above"
    return f"{locustfile} {_NO_USER}" if "No User class" in said[-1] else f"{locustfile}: {said[-1]}"


def refused(error: Exception, locustfile: str) -> str:
    """Why a locustfile cannot be loaded, from what loading it raised."""
    if isinstance(error, ModuleNotFoundError) and error.name == "pytest":  # where Locust looks for User classes next
        return f"{locustfile} {_NO_USER}"
    return f"{locustfile} cannot be loaded: {described(error, error.__traceback__, locustfile)}"
