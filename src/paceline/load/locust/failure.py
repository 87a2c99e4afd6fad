"""Which of Paceline's errors an exception of Locust's clients is."""

import http.client

_STATUS = {"HTTPError", "BadStatusCode", "LocustBadStatusCode"}  # of requests, geventhttpclient, Locust
_CLIENTS = {"requests", "urllib3", "geventhttpclient"}
_MOST_TEXT = 200


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
