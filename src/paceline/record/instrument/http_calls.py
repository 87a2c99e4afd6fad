"""What all HTTP clients share: the span of a call, its headers and its end."""

from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from paceline.model.span import EMBEDDING, HTTP_CLIENT, HTTP_METHOD, HTTP_STATUS, LLM, RETRY_AFTER_S, URL
from paceline.record.recorder import LiveSpan, Recorder, current

STEP_HEADER = "x-paceline-step"


def begin_call(recorder: Recorder, method: str, url: str, *, cpu: bool) -> LiveSpan:
    """Start an http.client span, named by method and host; the URL is kept without query and credentials."""
    above = current.get()
    name, shown = _shown(method, url)
    inside_call = above is not None and above.kind in (LLM, EMBEDDING)
    span = recorder.start(HTTP_CLIENT, name, callers=not inside_call, cpu=cpu)
    span.attributes[HTTP_METHOD] = method
    span.attributes[URL] = shown
    return span


@lru_cache(maxsize=1024)
def _shown(method: str, url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{method} {host}", f"{parts.scheme}://{host}{parts.path}"


def headers_for(recorder: Recorder, span: LiveSpan, url: str) -> dict[str, str]:
    """Headers to add: the trace for everybody, the step for our own gateway only."""
    headers = {"traceparent": span.traceparent}
    if recorder.gateway and url.startswith(recorder.gateway):
        above = current.get()
        step = recorder.step_of(span) or (recorder.step_of(above) if above is not None else None)
        if step:
            headers[STEP_HEADER] = step
    return headers


def note_reply(recorder: Recorder, span: LiveSpan, status: int, headers: Any) -> None:
    """Status and Retry-After of a reply; 4xx and 5xx mark the span failed."""
    span.attributes[HTTP_STATUS] = status
    if status >= 400:
        recorder.fail(span, str(status))
        retry_after = headers.get("retry-after")
        if retry_after:
            try:
                span.attributes[RETRY_AFTER_S] = float(retry_after)
            except ValueError:
                return  # a date; nobody we know sends one
