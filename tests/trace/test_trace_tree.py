"""Span trees and the critical path."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.model.request import Request
from paceline.model.span import DB, HTTP_SERVER, STEP, Span
from paceline.trace.tree import build_traces, call_seconds, critical_path, critical_segments

MS = 1_000_000
TRACE = "t" * 32


def span(span_id: str, start_ms: int, end_ms: int, parent: str | None = "root", kind: str = STEP) -> Span:
    return Span(
        trace_id=TRACE, span_id=span_id, parent_id=parent, name=span_id, kind=kind, service="app",
        start_ns=start_ms * MS, duration_ns=(end_ms - start_ms) * MS,
    )  # fmt: skip


def root(start_ms: int, end_ms: int) -> Span:
    return span("root", start_ms, end_ms, parent="driver", kind=HTTP_SERVER)


def path_of(*spans: Span) -> list[tuple[str, float]]:
    return critical_path(build_traces(spans, [])[0])


def test_sequential_children_and_the_parents_own_time_make_up_the_path() -> None:
    """Every millisecond of the response belongs to exactly one span."""
    path = path_of(root(0, 1000), span("a", 100, 400), span("b", 500, 900))
    assert path == [("root", 0.3), ("a", 0.3), ("b", 0.4)]


def test_of_parallel_children_only_the_last_to_finish_is_on_the_path() -> None:
    """The shorter of two parallel calls costs nothing."""
    path = path_of(root(0, 1000), span("short", 0, 400), span("long", 0, 1000))
    assert path == [("long", 1.0)]


def test_the_path_goes_down_to_the_innermost_span() -> None:
    """A wrapper is on the path only where nothing inside it runs."""
    path = path_of(root(0, 100), span("outer", 0, 100), span("inner", 20, 90, parent="outer"))
    assert path == [("outer", 0.03), ("inner", 0.07)]


def test_work_that_outlives_the_answer_is_off_the_path() -> None:
    """Nobody waited for what ended after the answer was sent, whenever it began."""
    path = path_of(root(0, 1000), span("answer", 0, 980), span("log", 500, 1500), span("after", 1100, 1200))
    assert path == [("answer", 0.98), ("root", 0.02)]


def test_a_child_a_hair_longer_than_its_parent_is_truncated_to_it() -> None:
    """Clocks of two processes may disagree by a millisecond."""
    assert path_of(root(0, 1000), span("answer", 10, 1003)) == [("root", 0.01), ("answer", 0.99)]


def test_a_small_overlap_between_two_sequential_calls_is_no_parallelism() -> None:
    """Half a millisecond of overlap is jitter, and both calls stay on the path."""
    first = span("a", 0, 400)
    second = Span(
        trace_id=TRACE, span_id="b", parent_id="root", name="b", kind=STEP, start_ns=400 * MS - 500_000,
        duration_ns=600 * MS,
    )  # fmt: skip
    assert dict(path_of(root(0, 1000), first, second))["a"] == pytest.approx(0.3995)


def test_spans_whose_parent_was_not_recorded_hang_below_the_root() -> None:
    """A broken link between processes does not lose the work."""
    trace = build_traces([root(0, 100), span("lost", 10, 90, parent="gone")], [])[0]
    assert [s.span_id for s in trace.children["root"]] == ["lost"]
    assert critical_path(trace) == [("root", 0.02), ("lost", 0.08)]


def test_without_a_root_the_top_spans_make_the_window() -> None:
    """A gateway alone still gives traces."""
    trace = build_traces([span("a", 0, 40, None, DB), span("b", 60, 100, None, DB)], [])[0]
    assert trace.root is None
    assert trace.duration_s == pytest.approx(0.1)
    assert critical_path(trace) == [("a", 0.04), ("b", 0.04)]
    assert [c.span_id for c in trace.calls] == ["a", "b"]


def test_every_request_has_a_trace_and_other_traces_follow() -> None:
    """Requests come in their order, also those of which nothing was recorded."""
    requests = [
        Request(
            index=i, scenario="s", endpoint="GET /", trace_id=t, intended_s=i, started_s=i, ended_s=i + 1, status=200
        )
        for i, t in enumerate(("unseen", TRACE))
    ]
    probe = Span(trace_id="probe", span_id="p", name="GET /ready", kind=HTTP_SERVER, start_ns=0, duration_ns=1)
    traces = build_traces([probe, root(0, 10)], requests)
    assert [t.trace_id for t in traces] == ["unseen", TRACE, "probe"]
    assert traces[0].spans == []
    assert critical_segments(traces[0]) == []
    assert traces[2].request is None


def test_a_span_without_length_takes_no_time() -> None:
    """Alone or with a child that outlasts it."""
    path = path_of(root(0, 100), span("a", 10, 10), span("b", 10, 30, "a"), span("c", 50, 50))
    assert path == [("root", 0.1)]


def test_broken_ids_make_no_endless_tree() -> None:
    """A span that is its own parent, an id written twice, and two spans that are each other's parents."""
    loops = [span("self", 10, 20, "self"), span("root", 30, 40, "root"), span("x", 50, 60, "y"), span("y", 50, 60, "x")]
    path = path_of(root(0, 100), *loops)
    assert sum(seconds for _, seconds in path) == pytest.approx(0.1)


def test_deep_nesting_is_no_problem() -> None:
    """An agent that calls itself."""
    spans = [root(0, 5000), *(span(f"s{i}", i + 1, 5000, f"s{i - 1}" if i else "root") for i in range(3000))]
    assert len(path_of(*spans)) == 3001


def test_call_seconds_splits_the_path_among_calls() -> None:
    """Parallel calls get what the request waited for them."""
    trace = build_traces([root(0, 100), span("a", 0, 40, kind=DB), span("b", 40, 90, kind=DB)], [])[0]
    assert call_seconds(trace) == pytest.approx({"a": 0.04, "b": 0.05})


@st.composite
def trees(draw: st.DrawFn) -> list[Span]:
    """A root of 1 s and up to 15 spans anywhere around it, nested at random."""
    spans = [root(0, 1000)]
    for index in range(draw(st.integers(0, 15))):
        start = draw(st.integers(-100, 1100))
        length = draw(st.integers(0, 800))
        parent = draw(st.sampled_from([s.span_id for s in spans]))
        spans.append(span(f"s{index}", start, start + length, parent))
    return spans


@given(trees(), st.randoms())
def test_the_path_covers_the_response_exactly_once(spans: list[Span], rng: random.Random) -> None:
    """Segments follow each other without gap or overlap, whatever the tree and the order of the spans."""
    shuffled = spans.copy()
    rng.shuffle(shuffled)
    segments = critical_segments(build_traces(shuffled, [])[0])
    assert segments == critical_segments(build_traces(spans, [])[0])
    cursor = 0
    for _, start_ns, end_ns in segments:
        assert start_ns == cursor
        assert end_ns > start_ns
        cursor = end_ns
    assert cursor == 1000 * MS
