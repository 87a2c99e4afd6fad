"""The trace a finding is about, as waterfall rows: one row a logical call, failed attempts and waits shown apart."""

from collections.abc import Sequence

from markupsafe import Markup

from paceline.model.finding import Finding
from paceline.model.span import EMBEDDING, HTTP_SERVER, LLM, Span
from paceline.report.charts import Segment, WaterfallRow, waterfall
from paceline.report.units import seconds
from paceline.trace.calls import Call
from paceline.trace.tree import Trace

_MAX_ROWS = 24
_CSS = {LLM: "llm", EMBEDDING: "embedding", "db": "db", "cache": "cache"}


def example(finding: Finding, traces: Sequence[Trace]) -> Trace | None:
    """The trace to show for a finding: the middle one by length among those that hold its evidence."""
    wanted = set(finding.evidence.trace_ids)
    spans = set(finding.evidence.span_ids)
    held = [t for t in traces if t.root and (t.trace_id in wanted or any(s.span_id in spans for s in t.spans))]
    held.sort(key=lambda t: t.root.duration_ns if t.root else 0)
    return held[len(held) // 2] if held else None


def draw(trace: Trace, finding: Finding | None = None) -> Markup:
    """The waterfall of one request, with the rows a finding is about marked."""
    root = trace.root
    if root is None:
        return Markup("")
    start_ns = root.start_ns
    about = _about(finding)
    rows = [
        WaterfallRow(
            root.name, [Segment(0.0, root.duration_s, "root", "the whole request")], text=seconds(root.duration_s)
        )
    ]
    calls = sorted(trace.calls, key=lambda c: c.start_ns)
    rows += [_call_row(c, start_ns, marked=about(c.span_id, c.step)) for c in calls]
    known = {c.span_id for c in calls}
    failed = [s for s in trace.spans if s.status == "error" and s.kind != HTTP_SERVER and s.span_id not in known]
    rows += [
        _failed_row(s, start_ns, marked=about(s.span_id, s.step)) for s in failed if s.kind not in ("http.client", LLM)
    ]
    if len(rows) > _MAX_ROWS:
        hidden = len(rows) - _MAX_ROWS
        rows = [*rows[:_MAX_ROWS], WaterfallRow(f"and {hidden} more", [])]
    return waterfall(rows, response_s=root.duration_s)


def _about(finding: Finding | None):  # type: ignore[no-untyped-def]
    spans = set(finding.evidence.span_ids) if finding else set()
    steps = set((finding.where.step or "").replace(",", " ").split()) if finding else set()
    return lambda span_id, step: span_id in spans or (step in steps if step else False)


def _call_row(call: Call, start_ns: int, *, marked: bool) -> WaterfallRow:
    css = _CSS.get(call.kind, "other")
    segments = []
    attempts = sorted(call.attempts)
    for index, (begin, end, status) in enumerate(attempts):
        last = index == len(attempts) - 1
        ok = last and call.ok
        what = f"{seconds((end - begin) / 1e9)}" + ("" if ok else f", failed: {status}")
        segments.append(Segment((begin - start_ns) / 1e9, (end - begin) / 1e9, css if ok else "failed", what))
        if not last:
            gap = attempts[index + 1][0] - end
            segments.append(
                Segment((end - start_ns) / 1e9, gap / 1e9, "wait", f"waited {seconds(gap / 1e9)} to try again")
            )
    if not attempts:
        segments.append(Segment((call.start_ns - start_ns) / 1e9, (call.end_ns - call.start_ns) / 1e9, css))
    name = call.step or call.kind
    label = f"{name} · {call.model}" if call.model else name
    note = seconds((call.end_ns - call.start_ns) / 1e9) + (f", {len(attempts)} attempts" if len(attempts) > 1 else "")
    return WaterfallRow(label, segments, marked, note)


def _failed_row(span: Span, start_ns: int, *, marked: bool) -> WaterfallRow:
    title = f"{span.error}: {span.attributes.get('exception.message', '')}"
    segment = Segment((span.start_ns - start_ns) / 1e9, max(span.duration_s, 1e-4), "failed", title)
    return WaterfallRow(f"{span.step or span.name}", [segment], marked, f"{span.error}, hidden")
