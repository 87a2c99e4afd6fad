"""urllib3, and so requests: one http.client span for each attempt."""

from types import ModuleType
from typing import Any

from paceline.record.instrument.http_calls import begin_call, headers_for, note_reply
from paceline.record.instrument.wrapping import argument, wrap
from paceline.record.recorder import LiveSpan, Recorder


def instrument(recorder: Recorder, module: ModuleType) -> None:
    """Patch HTTPConnectionPool._make_request: below retries, above the connection."""

    def begin(pool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LiveSpan:
        method, target = argument(args, kwargs, 1, "method"), argument(args, kwargs, 2, "url")
        port = f":{pool.port}" if pool.port else ""
        url = target if "://" in target else f"{pool.scheme}://{pool.host}{port}{target}"
        span = begin_call(recorder, method, url, cpu=True)
        headers = kwargs.get("headers")
        if headers is not None or len(args) <= 4:
            merged = type(headers)(headers) if headers is not None else {}
            merged.update(headers_for(recorder, span, url))
            kwargs["headers"] = merged
        return span

    def end(span: LiveSpan, response: Any) -> bool:
        if not hasattr(response, "status"):
            return False
        note_reply(recorder, span, response.status, response.headers)
        return _end_with_body(recorder, span, response)

    wrap(recorder, module.HTTPConnectionPool, "_make_request", begin, end)


def _end_with_body(recorder: Recorder, span: LiveSpan, response: Any) -> bool:
    """Let the span end when the body has been read (the connection goes back) or the response is closed."""
    if getattr(response, "_body", None) is not None or not hasattr(response, "release_conn"):
        return False
    span.cpu_ns = None
    for name in ("release_conn", "close"):
        original = getattr(response, name)

        def recorded(original: Any = original) -> Any:
            try:
                return original()
            finally:
                recorder.finish(span)

        setattr(response, name, recorded)
    return True
