"""OpenTelemetry bridge: spans made through its API, by hand or by stock instrumentors, join our recording.

Without an SDK our tracer answers instead of the API's no-op. When the service sets up an SDK of its own, that keeps
working and we listen as one more span processor. Either way the two notions of "current span" are kept in step, so
parents are right in both directions.
"""

import json
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from paceline.model.span import (
    CACHE,
    DB,
    DB_COLLECTION,
    DB_OPERATION,
    DB_SYSTEM,
    EMBEDDING,
    HTTP_CLIENT,
    HTTP_METHOD,
    HTTP_SERVER,
    HTTP_STATUS,
    LLM,
    PROVIDER,
    QUEUE,
    STEP,
    TOOL,
    TTFT_S,
    URL,
)
from paceline.record.recorder import LiveSpan, LiveTrace, Recorder, current
from paceline.record.warn import quietly

# Older and foreign attribute names -> the ones we store.
RENAMED = {
    "gen_ai.system": PROVIDER,
    "llm.provider": PROVIDER,
    "db.system": DB_SYSTEM,
    "db.operation": DB_OPERATION,
    "db.collection": DB_COLLECTION,
    "db.sql.table": DB_COLLECTION,
    "http.method": HTTP_METHOD,
    "http.status_code": HTTP_STATUS,
    "http.url": URL,
    "http.target": "url.path",
    "gen_ai.server.time_to_first_token": TTFT_S,
}
# Attributes that are fields of Span; the first one present counts.
FIELDS = {
    "model": ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name", "llm.request.model"),
    "input_tokens": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt"),
    "output_tokens": ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion"),
    "cached_tokens": ("gen_ai.usage.cache_read.input_tokens", "llm.token_count.prompt_details.cache_read"),
    "fingerprint": ("db.query.summary",),
}
# Prompts, answers, statements and headers are content: recorded only when asked, which nobody has.
_CONTENT = ("messages", "prompt", "completion", "content", "input.value", "output.value", "query.text", "db.statement")
MAX_TEXT = 200


def kind_of(otel_kind: str, attributes: Mapping[str, Any]) -> str:
    """Our kind for an OpenTelemetry span kind ("SERVER", "CLIENT", ...) with its attributes."""
    names = attributes.keys()
    operation = str(attributes.get("gen_ai.operation.name") or attributes.get("openinference.span.kind") or "").lower()
    if "embed" in operation:
        return EMBEDDING
    if operation == "execute_tool" or operation == "tool" or "mcp.method.name" in names:
        return TOOL
    if operation in ("chat", "text_completion", "generate_content", "llm") or "llm.request.type" in names:
        return LLM
    if operation:
        return STEP
    if "db.system" in names or "db.system.name" in names:
        system = attributes.get("db.system.name") or attributes.get("db.system")
        return CACHE if system in ("redis", "memcached", "valkey") else DB
    if "messaging.system" in names:
        return QUEUE
    if any(name.startswith("http.") for name in names):
        return HTTP_SERVER if otel_kind == "SERVER" else HTTP_CLIENT if otel_kind == "CLIENT" else STEP
    return HTTP_SERVER if otel_kind == "SERVER" else STEP


def mapped(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields of Span, attributes) for OpenTelemetry attributes of any age; content is left out."""
    fields = {}
    for field, names in FIELDS.items():
        value = next((attributes[name] for name in names if attributes.get(name) is not None), None)
        if value is not None:
            fields[field] = int(value) if field.endswith("_tokens") else str(value)
    known = {name for names in FIELDS.values() for name in names}
    kept = {
        RENAMED.get(name, name): _plain(value)
        for name, value in attributes.items()
        if name not in known and not any(part in name for part in _CONTENT)
    }
    if URL in kept:
        kept[URL] = str(kept[URL]).partition("?")[0]
    return fields, kept


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [str(item)[:MAX_TEXT] for item in value][:50]
    return (value if isinstance(value, str) else json.dumps(value, default=str))[:MAX_TEXT]


def instrument_context(recorder: Recorder, module: ModuleType) -> None:
    """Keep OpenTelemetry's current context and our current span in step."""
    module._RUNTIME_CONTEXT = _BridgedContext(module._RUNTIME_CONTEXT)  # type: ignore[attr-defined] # noqa: SLF001


class _BridgedContext:
    """OpenTelemetry's runtime context; attaching a span there makes it current here, and the other way round."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._show: Any = self._load_and_show

    def _load_and_show(self, span: LiveSpan, context: Any) -> Any:
        from paceline.record.otel_tracer import shown  # its base classes exist by now, else nobody would ask

        self._show = shown
        return shown(span, context)

    def attach(self, context: Any) -> Any:
        """Make a context current; returns the token for `detach`."""
        span = live_span_in(context)
        ours = current.set(span) if span is not None else None
        return _Token(self._inner.attach(context), ours)

    def get_current(self) -> Any:
        """The current context, with our current span in it when that is the newer one."""
        context = self._inner.get_current()
        span = current.get()
        if span is None or (span.otel is None and span is live_span_in(context)):
            return context
        made = span.otel
        if made is None or made[0] is not context:
            # Kept with the span: FastAPI alone asks four times a request.
            made = span.otel = (context, self._show(span, context))
        return made[1]

    def detach(self, token: Any) -> None:
        """Undo an `attach`."""
        if not isinstance(token, _Token):
            self._inner.detach(token)
            return
        if token.ours is not None:
            current.reset(token.ours)
        self._inner.detach(token.inner)


class _Token:
    __slots__ = ("inner", "ours")

    def __init__(self, inner: Any, ours: Any) -> None:
        self.inner = inner
        self.ours = ours


def live_span_in(context: Any) -> LiveSpan | None:
    """Our span for the span in an OpenTelemetry context: its own, or a stand-in for one of the service's SDK."""
    from opentelemetry import trace

    span = trace.get_current_span(context)
    live = getattr(span, "paceline_span", None)
    if live is not None:
        return live  # type: ignore[no-any-return]
    ids = span.get_span_context()
    if not ids.is_valid:
        return None
    above = current.get()
    if above is not None and above.span_id == ids.span_id:
        return above
    known = above.trace if above is not None and above.trace.id == ids.trace_id else LiveTrace(ids.trace_id)
    return LiveSpan(known, ids.span_id, None, STEP, "")


def context_of(span: LiveSpan) -> Any:
    """The OpenTelemetry SpanContext of one of our spans."""
    from opentelemetry import trace

    return trace.SpanContext(span.trace.id, span.span_id, False, trace.TraceFlags(1))


def instrument_trace(recorder: Recorder, module: ModuleType) -> None:
    """Answer for the API's no-op tracer, and listen to an SDK when the service installs one."""
    from paceline.record.otel_tracer import PacelineTracer  # its base classes exist only now

    ours = PacelineTracer(recorder)
    proxy = module.ProxyTracer
    proxied = proxy._tracer.fget  # noqa: SLF001
    no_op = module.NoOpTracer

    def tracer(self: Any) -> Any:
        real = proxied(self)
        return ours if type(real) is no_op else real

    proxy._tracer = property(tracer)  # noqa: SLF001
    set_provider = module.set_tracer_provider

    def set_tracer_provider(tracer_provider: Any) -> None:
        set_provider(tracer_provider)
        if hasattr(tracer_provider, "add_span_processor") and not hasattr(tracer_provider, "_paceline"):
            quietly(tracer_provider.add_span_processor)(_Listener(recorder))
            tracer_provider._paceline = True  # noqa: SLF001

    module.set_tracer_provider = set_tracer_provider  # type: ignore[attr-defined]


class _Listener:
    """A span processor for the service's own SDK."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.on_end = quietly(self._on_end)

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Nothing: a span is recorded when it ends."""

    def _on_ending(self, span: Any) -> None:
        """Nothing."""

    def _on_end(self, span: Any) -> None:
        from opentelemetry import trace

        ids = span.get_span_context()
        attributes = dict(span.attributes or {})
        live = LiveSpan(
            LiveTrace(ids.trace_id),
            ids.span_id,
            span.parent.span_id if span.parent else None,
            kind_of(span.kind.name, attributes),
            span.name,
        )
        live.fields, live.attributes = mapped(attributes)
        live.start_ns = span.start_time
        live.duration_ns = max(0, span.end_time - span.start_time)
        if span.status.status_code is trace.StatusCode.ERROR:
            self._recorder.fail(live, (span.status.description or "error")[:MAX_TEXT])
        self._recorder.queue(live)

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Write what has ended."""
        self._recorder.flush()
        return True
