"""Starlette and FastAPI: one http.server span a request, from its arrival to its last body part.

Background tasks run after that; their spans outlast the request's and so show as work off the response path.
"""

from types import ModuleType
from typing import Any

from paceline.model.span import HTTP_METHOD, HTTP_ROUTE, HTTP_SERVER, HTTP_STATUS, URL_PATH, USED_IN_RESPONSE
from paceline.record.flow import json_strings
from paceline.record.recorder import LiveSpan, Recorder, current
from paceline.record.warn import quietly

_MARK = "paceline.span"  # in the scope: mounted applications do not make a second span
_MAX_BODY = 262_144  # bytes of request and response that are looked at for data flow


def instrument(recorder: Recorder, module: ModuleType) -> None:
    """Patch Starlette.__call__, which FastAPI's calls."""
    original = module.Starlette.__call__
    begin = quietly(_begin)

    async def call(self: Any, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or _MARK in scope:
            await original(self, scope, receive, send)
            return
        span = begin(recorder, scope)
        if span is None:
            await original(self, scope, receive, send)
            return
        request = _Request(recorder, span, scope)
        token = current.set(span)
        try:
            await original(self, scope, request.receiving(receive), request.sending(send))
        except BaseException as error:
            request.end(error)
            raise
        else:
            request.end(None if request.complete else "ClientDisconnected")
        finally:
            current.reset(token)

    module.Starlette.__call__ = call


def _begin(recorder: Recorder, scope: Any) -> LiveSpan:
    traceparent = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"traceparent"), None)
    span = recorder.start_request(scope["method"], HTTP_SERVER, traceparent)
    span.attributes[HTTP_METHOD] = scope["method"]
    span.attributes[URL_PATH] = scope["path"]
    span.trace.flow.request_query = scope.get("query_string", b"")
    scope[_MARK] = span
    return span


class _Request:
    """One request under way: watches its messages."""

    __slots__ = ("_body", "_headers", "_recorder", "_request_bytes", "_scope", "_span", "_status", "complete")

    def __init__(self, recorder: Recorder, span: LiveSpan, scope: Any) -> None:
        self._recorder = recorder
        self._span = span
        self._scope = scope
        self._status = 0
        self._headers: Any = ()
        self._body: list[bytes] = []
        self._request_bytes = 0
        self.complete = False

    def receiving(self, receive: Any) -> Any:
        """`receive`, keeping the request's body until the first model call has looked at it."""
        flow = self._span.trace.flow

        async def recorded() -> Any:
            message = await receive()
            body = message.get("body")
            if body and self._request_bytes < _MAX_BODY:
                self._request_bytes += len(body)
                flow.request_body += body
            return message

        return recorded

    def sending(self, send: Any) -> Any:
        """`send`, ending the span with the last body part."""

        async def recorded(message: Any) -> None:
            kind = message["type"]
            await send(message)
            if kind == "http.response.start":
                self._status = message["status"]
                self._headers = message.get("headers", ())
            elif kind == "http.response.body" and not self.complete:
                if self._span.trace.flow.outputs:
                    self._body.append(message.get("body", b""))
                if not message.get("more_body", False):
                    self.complete = True
                    # The exception behind a 5xx arrives after its answer; wait for it.
                    if self._status < 500:
                        self.end(None)

        return recorded

    def end(self, error: BaseException | str | None) -> None:
        """Finish the span; a second call changes nothing."""
        if self._span.duration_ns >= 0:
            return
        self._describe()
        if error is None and self._status >= 500:
            error = str(self._status)
        self._recorder.finish(self._span, error)
        self._span.trace.ended_ns = self._span.start_ns + self._span.duration_ns

    @quietly
    def _describe(self) -> None:
        span = self._span
        route = _route(self._scope)
        if route:
            span.attributes[HTTP_ROUTE] = route
        # An unmatched path is as varied as its visitors: it does not become a name.
        span.name = f"{self._scope['method']} {route or '(no route)'}"
        if self._status:
            span.attributes[HTTP_STATUS] = self._status
        if self._body:
            used = span.trace.flow.uses(_text_of(self._headers, b"".join(self._body)[:_MAX_BODY]))
            if used:
                span.attributes[USED_IN_RESPONSE] = used


def _route(scope: Any) -> str | None:
    path = getattr(scope.get("route"), "path", None)
    if path is None:
        return None
    root: str = scope.get("app_root_path", "")
    mounted: str = scope.get("root_path", "")
    return mounted.removeprefix(root) + str(path)


def _text_of(headers: Any, body: bytes) -> str:
    """The text of an answer: JSON strings one a line, streamed events joined as the reader would see them."""
    content_type = next((v for k, v in headers if k.lower() == b"content-type"), b"")
    if b"event-stream" in content_type:
        events = [line[5:].strip() for line in body.splitlines() if line.startswith(b"data:")]
        return "".join("".join(json_strings(event)) for event in events)
    if b"json" in content_type:
        return "\n".join(json_strings(body))
    return body.decode("utf-8", "replace")
