"""Traces: the spans of one request as a tree, and the critical path through it."""

import contextlib
import gc
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from paceline.model.request import Request
from paceline.model.span import HTTP_SERVER, USED_IN_RESPONSE, Span
from paceline.trace.calls import GATEWAY, Call, Children, build_calls, named_uses, owners
from paceline.trace.steps import resolve_steps

_SLACK_NS = 5_000_000
_SLACK_RATIO = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """The spans of one request. `root` is its http.server span; None when the application was not instrumented."""

    trace_id: str
    root: Span | None
    spans: list[Span]  # in order of start
    children: Children  # by parent id, in order of start; spans whose parent was not recorded hang below the root
    tops: list[Span]  # spans without a recorded parent: the root, or all there is without one
    calls: list[Call]  # in order of start
    owner: dict[str, str]  # the call (its span_id) that a span was merged into, by the span's id
    shown: frozenset[str]  # calls whose output is in the response, as far as the recorder saw
    request: Request | None  # None: not sent by the load driver

    @property
    def window_ns(self) -> tuple[int, int]:
        """Start and end of the response: the root's, else from the first to the last top span."""
        if self.root is not None:
            return self.root.start_ns, self.root.end_ns
        if not self.tops:
            return 0, 0
        return min(s.start_ns for s in self.tops), max(s.end_ns for s in self.tops)

    @property
    def duration_s(self) -> float:
        """Seconds from the start of the response window to its end; 0 without spans."""
        start_ns, end_ns = self.window_ns
        return (end_ns - start_ns) / 1e9

    @property
    def ok(self) -> bool:
        """The user got an answer: the request passed, or without a load driver the root did."""
        if self.request is not None:
            return self.request.ok
        return self.root is None or self.root.status == "ok"


class Segment(NamedTuple):
    """A stretch of the critical path spent in one span itself, not in its children."""

    span_id: str
    start_ns: int
    end_ns: int


def build_traces(spans: Iterable[Span], requests: Iterable[Request]) -> list[Trace]:
    """One trace per request in the order given, then those nobody requested (probes, start-up) by time.

    A request without spans has an empty trace, so that shares of requests stay right. Steps are resolved over the
    whole run (`resolve_steps`). About 3 us a span.
    """
    by_trace: defaultdict[str, list[Span]] = defaultdict(list)
    with paused_collector():
        for span in resolve_steps(spans):
            by_trace[span.trace_id].append(span)
        traces = [_trace(r.trace_id, by_trace.pop(r.trace_id, []), r) for r in requests]
        rest = [_trace(trace_id, members, None) for trace_id, members in by_trace.items()]
    rest.sort(key=lambda t: (t.window_ns[0], t.trace_id))
    return traces + rest


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """No cycle collection meanwhile: it halves the time when millions of records stay alive and none forms a cycle."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _trace(trace_id: str, spans: list[Span], request: Request | None) -> Trace:
    spans.sort(key=lambda s: (s.start_ns, s.span_id))
    known = {s.span_id: s for s in reversed(spans)}
    if len(known) < len(spans):  # an id written twice would make a loop of the tree: the first one counts
        spans = [s for s in spans if known[s.span_id] is s]
    children: Children = {}
    tops: list[Span] = []
    for span in spans:
        parent_id = span.parent_id
        if parent_id is None or parent_id not in known or parent_id == span.span_id:
            tops.append(span)
        elif parent_id in children:
            children[parent_id].append(span)
        else:
            children[parent_id] = [span]
    root = next((s for s in tops if s.kind == HTTP_SERVER and s.service != GATEWAY), None)
    if root is not None and len(tops) > 1:
        below = children.get(root.span_id, []) + [s for s in tops if s is not root]
        children[root.span_id] = sorted(below, key=lambda s: (s.start_ns, s.span_id))
        tops = [root]
    window_end_ns = root.end_ns + _slack_ns(root) if root is not None else None
    calls = build_calls(tops, children, window_end_ns=window_end_ns)
    owner = owners(calls)
    used = root.attributes.get(USED_IN_RESPONSE) if root is not None else None
    shown = frozenset(owner[i] for i in used if i in owner) if isinstance(used, list) else frozenset()
    return Trace(trace_id, root, spans, children, tops, named_uses(calls, owner), owner, shown, request)


def critical_path(trace: Trace) -> list[tuple[str, float]]:
    """Span ids on the critical path with the seconds spent in each itself, in order of first appearance.

    With a root the seconds add up to the root's duration. See `critical_segments` for the method.
    """
    seconds: dict[str, int] = {}
    for span_id, start_ns, end_ns in critical_segments(trace):
        seconds[span_id] = seconds.get(span_id, 0) + end_ns - start_ns
    return [(span_id, ns / 1e9) for span_id, ns in seconds.items()]


def critical_segments(trace: Trace) -> list[Segment]:
    """The critical path as stretches of time, first to last.

    Walks back from the end of the response: the child that finished last is what the parent waited for, before that
    the child that finished last before this one started, and so on; what no child explains is the parent's own.
    Children are truncated to their parent. What ended after the answer was sent (5 ms or 1 % later, whichever is
    more) was not waited for and is left out. Source: Jaeger and CRISP's method, without their FOLLOWS_FROM.
    Wrong when a parent waited for something that was not recorded: that shows as the parent's own time.
    """
    segments: list[Segment] = []
    if trace.root is not None:
        slack_ns = _slack_ns(trace.root)
        _walk_back(trace.root, trace.root.end_ns, trace.children, trace.root.end_ns + slack_ns, segments)
    elif trace.tops:
        start_ns, end_ns = trace.window_ns
        cursor = end_ns
        for span in _last_first(trace.tops, start_ns, end_ns, end_ns):
            _walk_back(span, min(span.end_ns, cursor), trace.children, end_ns, segments)
            cursor = span.start_ns
    segments.reverse()
    return segments


def call_seconds(trace: Trace, segments: list[Segment] | None = None) -> dict[str, float]:
    """Seconds of the critical path inside each call (by `Call.span_id`), calls off the path left out.

    The pauses of a home-made retry loop are its parent's own time in the tree, but the call's here. `segments` saves
    computing them again.
    """
    owner = trace.owner
    pauses = [
        (call.parent_id, before.end_ns, after.start_ns, call.span_id)
        for call in trace.calls
        if len(call.attempts) > 1
        for before, after in pairwise(call.attempts)
    ]
    total_ns: dict[str, int] = {}
    for span_id, start_ns, end_ns in critical_segments(trace) if segments is None else segments:
        call_id = owner.get(span_id)
        if call_id is not None:
            total_ns[call_id] = total_ns.get(call_id, 0) + end_ns - start_ns
            continue
        for parent_id, pause_ns, resume_ns, waiting_id in pauses:
            inside = min(end_ns, resume_ns) - max(start_ns, pause_ns)
            if inside > 0 and (parent_id == span_id or parent_id not in owner):
                total_ns[waiting_id] = total_ns.get(waiting_id, 0) + inside
    return {call_id: ns / 1e9 for call_id, ns in total_ns.items()}


def _walk_back(top: Span, end_ns: int, children: Children, answered_ns: int, out: list[Segment]) -> None:
    """Append the segments of `top` up to `end_ns`, last first. A stack of its own: recordings may nest deeply."""
    todo: list[Segment | tuple[Span, int]] = [(top, end_ns)]
    while todo:
        item = todo.pop()
        if isinstance(item, Segment):
            out.append(item)
            continue
        span, cursor = item
        below = children.get(span.span_id)
        if below and span.start_ns < cursor:
            parts: list[Segment | tuple[Span, int]] = []
            for child in _last_first(below, span.start_ns, cursor, answered_ns):
                child_end = min(child.end_ns, cursor)
                if child_end < cursor:
                    parts.append(Segment(span.span_id, child_end, cursor))
                if child.start_ns >= span.start_ns:
                    if child.span_id in children:
                        parts.append((child, child_end))
                    elif child.start_ns < child_end:
                        parts.append(Segment(child.span_id, child.start_ns, child_end))
                    cursor = child.start_ns
                else:  # a clock that disagrees: the parent's start is the earliest it can have begun
                    parts.append(Segment(child.span_id, span.start_ns, child_end))
                    cursor = span.start_ns
            if span.start_ns < cursor:
                parts.append(Segment(span.span_id, span.start_ns, cursor))
            todo += reversed(parts)
        elif span.start_ns < cursor:
            out.append(Segment(span.span_id, span.start_ns, cursor))


def _last_first(spans: list[Span], start_ns: int, end_ns: int, answered_ns: int) -> Iterator[Span]:
    """The spans the parent waited for, last first: each ended before the one after it began."""
    cursor = end_ns
    if len(spans) > 1:
        spans = sorted(spans, key=_end_ns)  # of equal ends the later start comes last: they come in order of start
    overlap_ns = max(1_000_000, (end_ns - start_ns) // 1000)
    for span in reversed(spans):
        span_end_ns = span.start_ns + span.duration_ns
        if span_end_ns > answered_ns or span.start_ns >= cursor or span_end_ns <= start_ns:
            continue
        if cursor == end_ns or span_end_ns <= cursor + overlap_ns:
            yield span
            cursor = span.start_ns


def _end_ns(span: Span) -> int:
    return span.start_ns + span.duration_ns


def _slack_ns(root: Span) -> int:
    return max(_SLACK_NS, int(root.duration_ns * _SLACK_RATIO))
