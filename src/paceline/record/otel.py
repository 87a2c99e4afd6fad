"""OpenTelemetry bridge: spans made through its API, by hand or by stock instrumentors, join our recording.

Without an SDK our tracer answers instead of the API's no-op. When the service sets up an SDK of its own, that keeps
working and we listen as one more span processor. Either way the two notions of "current span" are kept in step, so
parents are right in both directions.
"""

from types import ModuleType
from typing import Any

from paceline.record.otel_names import MAX_TEXT, kind_of, live_span_in, mapped
from paceline.record.recorder import LiveSpan, LiveTrace, Recorder, current
from paceline.record.warn import quietly


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
