"""Failures that the user never saw: a step failed, the request was answered all the same."""

from dataclasses import dataclass

from paceline.model.span import EXCEPTION_TYPE, HTTP_STATUS, Span
from paceline.trace.calls import Call
from paceline.trace.tree import Trace


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call or span below a successful request that no later try made good."""

    span: Span
    step: str | None
    code: str | None
    kind: str
    error: str  # exception type or HTTP status
    followed_by: str | None  # step of the next call, the fallback if there was one
    deferred: bool


def swallowed_failures(trace: Trace) -> list[Failure]:
    """Failures below a successful request; empty when it failed itself.

    A failed call is left out when a later call of the same kind and step worked: that was a retry. Of a failure and
    the failures it caused further out, the innermost is given.
    """
    if not trace.ok or all(s.status == "ok" for s in trace.spans):
        return []
    failed = {s.span_id for s in trace.spans if s.status != "ok" and s is not trace.root}
    causes = {s.parent_id for s in trace.spans if s.span_id in failed}
    covered: set[str] = set()
    found: list[Failure] = []
    for call in trace.calls:
        covered.update(call.span_ids)
        outside = causes - {s.parent_id for s in call.spans}
        if not call.ok and call.span_id not in outside and not _made_good(call, trace.calls):
            found.append(_of_call(call, trace.calls))
    for span in trace.spans:
        if span.span_id in failed and span.span_id not in covered and span.span_id not in causes:
            later = [s for s in trace.spans if s.kind == span.kind and s.code == span.code and s.name == span.name]
            if not any(s.status == "ok" and s.start_ns >= span.end_ns for s in later):
                found.append(_of_span(span, trace))
    return found


def _made_good(failed: Call, calls: list[Call]) -> bool:
    return any(c.ok and c.kind == failed.kind and c.step == failed.step and c.start_ns >= failed.end_ns for c in calls)


def _of_call(call: Call, calls: list[Call]) -> Failure:
    span = next(s for s in call.spans if s.span_id == call.span_id)
    following = next((c.step for c in calls if c.start_ns >= call.end_ns and c.step != call.step), None)
    return Failure(span, call.step, call.code, call.kind, _error(call.spans), following, call.deferred)


def _of_span(span: Span, trace: Trace) -> Failure:
    following = next((c.step for c in trace.calls if c.start_ns >= span.end_ns), None)
    deferred = trace.root is not None and span.start_ns >= trace.root.end_ns
    return Failure(span, span.step, span.code, span.kind, _error([span]), following, deferred)


def _error(spans: list[Span]) -> str:
    for name in (EXCEPTION_TYPE, HTTP_STATUS):
        for span in reversed(spans):
            if span.status != "ok" and name in span.attributes:
                return str(span.attributes[name])
    return next((s.error for s in reversed(spans) if s.error), "error")
