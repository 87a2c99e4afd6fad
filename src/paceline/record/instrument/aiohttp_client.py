"""aiohttp's client: one http.client span for each request, to the end of its body."""

from types import ModuleType
from typing import Any

from paceline.record.instrument.http_calls import begin_call, headers_for, note_reply
from paceline.record.instrument.wrapping import argument, wrap
from paceline.record.recorder import LiveSpan, Recorder


def instrument(recorder: Recorder, module: ModuleType) -> None:
    """Patch ClientSession._request."""

    def begin(session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LiveSpan:
        method = argument(args, kwargs, 0, "method")
        url = str(session._build_url(argument(args, kwargs, 1, "str_or_url")))  # noqa: SLF001 base_url is private
        span = begin_call(recorder, method, url, cpu=False)
        headers = dict(kwargs.get("headers") or {})
        headers.update(headers_for(recorder, span, url))
        kwargs["headers"] = headers
        return span

    def end(span: LiveSpan, response: Any) -> bool:
        note_reply(recorder, span, response.status, response.headers)
        response.content.on_eof(lambda: recorder.finish(span))  # called at once when it is all there
        for name in ("close", "release"):
            _also_finish(recorder, span, response, name)
        return True

    wrap(recorder, module.ClientSession, "_request", begin, end)


def _also_finish(recorder: Recorder, span: LiveSpan, response: Any, name: str) -> None:
    """A body that is never read to its end finishes when the response is let go."""
    original = getattr(response, name)

    def recorded() -> Any:
        recorder.finish(span)
        return original()

    setattr(response, name, recorded)
