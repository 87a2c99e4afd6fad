"""httpx and httpx2 (which openai uses from version 3): one http.client span for each request sent."""

from types import ModuleType
from typing import Any

from paceline.record.instrument.http_calls import begin_call, headers_for, note_reply
from paceline.record.instrument.wrapping import argument, wrap
from paceline.record.recorder import LiveSpan, Recorder


def instrument(recorder: Recorder, module: ModuleType) -> None:
    """Patch Client.send and AsyncClient.send."""

    def begin(cpu: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LiveSpan:
        request = argument(args, kwargs, 0, "request")
        url = str(request.url)
        span = begin_call(recorder, request.method, url, cpu=cpu)
        for name, value in headers_for(recorder, span, url).items():
            request.headers[name] = value  # a third of the cost of Headers.update
        return span

    def end_sync(span: LiveSpan, response: Any) -> bool:
        note_reply(recorder, span, response.status_code, response.headers)
        return not response.is_closed and _end_with_stream(recorder, span, response.stream, "close")

    def end_async(span: LiveSpan, response: Any) -> bool:
        note_reply(recorder, span, response.status_code, response.headers)
        return not response.is_closed and _end_with_stream(recorder, span, response.stream, "aclose")

    wrap(recorder, module.Client, "send", lambda _, args, kwargs: begin(True, args, kwargs), end_sync)
    wrap(recorder, module.AsyncClient, "send", lambda _, args, kwargs: begin(False, args, kwargs), end_async)


def _end_with_stream(recorder: Recorder, span: LiveSpan, stream: Any, method: str) -> bool:
    """Let the span end when the body's stream is closed, which the client does at its end or when told to."""
    close = getattr(stream, method)
    if method == "aclose":

        async def recorded_aclose() -> None:
            try:
                await close()
            finally:
                recorder.finish(span)

        stream.aclose = recorded_aclose
        return True

    def recorded_close() -> None:
        try:
            close()
        finally:
            recorder.finish(span)

    span.cpu_ns = None  # a stream may be read on another thread
    stream.close = recorded_close
    return True
