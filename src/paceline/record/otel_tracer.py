"""The OpenTelemetry Tracer that writes our spans. Imported only after the service has imported the API itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace

from paceline.model.span import HTTP_METHOD, HTTP_ROUTE, HTTP_SERVER, STEP
from paceline.record.otel_names import MAX_TEXT, context_of, kind_of, live_span_in, mapped
from paceline.record.recorder import LiveSpan, Recorder
from paceline.record.warn import quietly

# OpenTelemetry's own decorator also lets the result decorate functions, async ones included.
_context_manager: Any = getattr(trace, "_agnosticcontextmanager", contextmanager)


class PacelineSpan(trace.Span):
    """An OpenTelemetry span that is one of ours."""

    def __init__(self, recorder: Recorder, live: LiveSpan, kind: str, attributes: Any) -> None:
        self.paceline_span = live
        self._recorder = recorder
        self._kind = kind
        self._attributes = dict(attributes or {})

    def end(self, end_time: int | None = None) -> None:
        """Record it; a second call changes nothing. `end_time` is not used: our clock is the run's."""
        if self.is_recording():
            self._describe()
            self._recorder.finish(self.paceline_span)

    @quietly
    def _describe(self) -> None:
        live = self.paceline_span
        live.kind = kind_of(self._kind, self._attributes)
        fields, kept = mapped(self._attributes)
        live.fields.update(fields)
        live.attributes.update(kept)
        if HTTP_ROUTE in kept and live.kind == HTTP_SERVER:
            live.name = f"{kept.get(HTTP_METHOD, '')} {kept[HTTP_ROUTE]}".strip()

    def get_span_context(self) -> trace.SpanContext:
        """Its ids, for propagation."""
        context: trace.SpanContext = context_of(self.paceline_span)
        return context

    def set_attribute(self, key: str, value: Any) -> None:
        """Keep one attribute."""
        self._attributes[key] = value

    def set_attributes(self, attributes: Any) -> None:
        """Keep several attributes."""
        self._attributes.update(attributes)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        """Events are not kept."""

    def update_name(self, name: str) -> None:
        """Rename it."""
        self.paceline_span.name = name

    def is_recording(self) -> bool:
        """True until it ends."""
        return self.paceline_span.duration_ns < 0

    def set_status(self, status: Any, description: str | None = None) -> None:
        """An error status marks it failed."""
        if getattr(status, "status_code", status) is trace.StatusCode.ERROR:
            text = getattr(status, "description", None) or description or "error"
            self._recorder.fail(self.paceline_span, str(text)[:MAX_TEXT])

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        """Mark it failed with the exception."""
        self._recorder.fail(self.paceline_span, exception)


class _StandIn(trace.NonRecordingSpan):
    """One of our current spans as the API's users see it. Its ids are made when asked for, which is rare."""

    def __init__(self, live: LiveSpan) -> None:
        self.paceline_span = live

    def get_span_context(self) -> trace.SpanContext:
        """Its ids, for propagation."""
        context: trace.SpanContext = context_of(self.paceline_span)
        return context


def shown(live: LiveSpan, context: Any) -> Any:
    """An OpenTelemetry context in which `live` is the current span."""
    return trace.set_span_in_context(_StandIn(live), context)


class PacelineTracer(trace.Tracer):
    """Starts our spans for callers of the OpenTelemetry API."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def start_span(
        self,
        name: str,
        context: Any = None,
        kind: trace.SpanKind = trace.SpanKind.INTERNAL,
        attributes: Any = None,
        *_: Any,
        **__: Any,
    ) -> PacelineSpan:
        """A span below the one in `context`, by default the current one."""
        parent = live_span_in(context) if context is not None else None
        live = self._recorder.start(STEP, name, parent=parent, callers=kind is not trace.SpanKind.SERVER)
        return PacelineSpan(self._recorder, live, kind.name, attributes)

    @_context_manager  # type: ignore[untyped-decorator]
    def start_as_current_span(self, name: str, *args: Any, end_on_exit: bool = True, **kwargs: Any) -> Iterator[Any]:
        """The same, as a context manager or decorator."""
        span = self.start_span(name, *args, **kwargs)
        with trace.use_span(span, end_on_exit=end_on_exit) as active:
            yield active
