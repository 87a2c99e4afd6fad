"""Logical calls: retries, HTTP attempts and gateway spans merged."""

import pytest
from tests.diagnose.builders import FULL, GATEWAY_ONLY, HTTP_ONLY, RunMaker, TraceMaker, ns

from paceline.model.span import HTTP_SERVER, LLM, PROMPT_HASH, STREAM, Span
from paceline.trace.calls import Attempt, Call
from paceline.trace.tree import Trace, build_traces, call_seconds

STYLES = pytest.mark.parametrize("style", [FULL, HTTP_ONLY, GATEWAY_ONLY])


def trace_of(maker: TraceMaker) -> Trace:
    return (
        build_traces(maker.spans, [])[0] if not maker.run.requests else build_traces(maker.spans, maker.run.requests)[0]
    )


def maker(style: str = FULL) -> TraceMaker:
    return RunMaker(style=style).trace(0, 1.0)


@STYLES
def test_sdk_retries_are_one_call_and_cost_is_that_of_all_attempts(style: str) -> None:
    """Two failed attempts and their pauses are wait, the last attempt is service."""
    made = maker(style)
    made.llm("answer", 2.0, failures=[(429, 0.1, 1.0), (500, 0.2, 2.0)])
    made.answer()
    (call,) = trace_of(made).calls
    assert [a.status for a in call.attempts] == [429, 500, 200]
    assert call.wait_s == pytest.approx(3.3)
    assert call.service_s == pytest.approx(2.0)
    assert call.duration_s == pytest.approx(5.3)
    assert call.ok
    assert call.cost_usd == pytest.approx(300 * 2.5e-6 + 150 * 1e-5)


def test_a_home_made_retry_loop_is_one_call() -> None:
    """Sibling calls of one place with the same prompt, all but the last failed, are attempts."""
    made = maker()
    made.llm("answer", 0.1, prompt="p", error=429)
    made.now_s += 1.0
    made.llm("answer", 0.1, prompt="p", error=503)
    made.now_s += 2.0
    last = made.llm("answer", 1.5, prompt="p")
    made.answer(last)
    trace = trace_of(made)
    (call,) = trace.calls
    assert len(call.attempts) == 3
    assert call.wait_s == pytest.approx(3.202)
    assert call.service_s == pytest.approx(1.5)
    assert call.span_id == last
    assert call_seconds(trace)[last] == pytest.approx(call.duration_s)


@pytest.mark.parametrize(
    "second", [{"prompt": "other"}, {"prompt": "p", "at_s": 1.05}], ids=["other prompt", "overlap"]
)
def test_what_is_no_retry_stays_apart(second: dict[str, object]) -> None:
    """Another prompt, or a call that began before the first one failed, is a call of its own."""
    made = maker()
    made.llm("answer", 0.5, prompt="p", error=429)
    made.llm("answer", 1.0, **second)  # type: ignore[arg-type]
    made.answer()
    assert len(trace_of(made).calls) == 2


def test_a_rejected_prompt_tried_again_is_not_a_retry() -> None:
    """400 is not an error that trying again helps."""
    made = maker()
    made.llm("answer", 0.1, prompt="p", error=400)
    made.llm("answer", 0.1, prompt="p")
    made.answer()
    assert [c.ok for c in trace_of(made).calls] == [False, True]


def test_queue_time_in_the_gateway_is_wait() -> None:
    """Service is what the provider took."""
    made = maker()
    made.llm("answer", 2.0, queue_s=0.5)
    made.answer()
    (call,) = trace_of(made).calls
    assert [call.wait_s, call.service_s] == pytest.approx([0.5, 1.5])


def test_uses_name_calls_whichever_span_they_were_seen_on() -> None:
    """An id of a failed attempt or of an HTTP span means the call it belongs to."""
    made = maker()
    first = made.llm("classify_intent", 0.5)
    http_id = next(s.span_id for s in made.spans if s.kind == "http.client")
    made.llm("answer", 1.0, uses=[http_id])
    made.answer()
    assert trace_of(made).calls[1].uses == [first]


def test_unknown_price_makes_the_cost_unknown_but_a_cache_hit_is_free() -> None:
    """Unknown is never zero."""
    made = maker()
    made.llm("a", 0.5, model="in-house-7b")
    made.llm("b", 0.01, model="in-house-7b", cache="hit")
    made.answer()
    assert [c.cost_usd for c in trace_of(made).calls] == [None, 0.0]


def test_a_stream_ends_with_its_last_token() -> None:
    """The SDK's span may end at the first chunk; the gateway saw the last one."""
    spans = [
        Span(trace_id="t", span_id="root", name="r", kind=HTTP_SERVER, start_ns=ns(0), duration_ns=10**10),
        Span(trace_id="t", span_id="sdk", parent_id="root", name="c", kind=LLM, start_ns=ns(1), duration_ns=10**9),
        Span(
            trace_id="t", span_id="gw", parent_id="sdk", name="c", kind=LLM, service="gateway", start_ns=ns(1),
            duration_ns=4 * 10**9, attributes={STREAM: True, PROMPT_HASH: "h"},
        ),
    ]  # fmt: skip
    (call,) = build_traces(spans, [])[0].calls
    assert call.end_ns == ns(5)
    assert call.service_s == pytest.approx(4.0)


def test_stores_are_calls_too_and_an_embedding_inside_a_query_is_its_own() -> None:
    """A client-side embedding function runs inside the store's span."""
    made = maker()
    query = made.db("retrieve", 0.5)
    made.embed("retrieve", 0.2, at_s=1.01)
    made.spans[-3] = Span(**{f: getattr(made.spans[-3], f) for f in Span.__struct_fields__} | {"parent_id": query})
    made.answer()
    calls = trace_of(made).calls
    assert [(c.kind, c.parent_id) for c in calls] == [("db", made.root_id), ("embedding", query)]
    assert calls[0].cost_usd == 0.0


def test_work_after_the_answer_is_marked_deferred() -> None:
    """It stays in the trace with its cost."""
    made = maker()
    made.llm("answer", 1.0)
    made.llm("validate", 1.0, at_s=3.0)
    made.answer()
    calls = trace_of(made).calls
    assert [(c.step, c.deferred) for c in calls] == [("answer", False), ("validate", True)]
    assert calls[1].cost_usd


@STYLES
def test_every_style_of_recording_gives_the_same_figures(style: str) -> None:
    """Model, tokens and cost do not depend on how much of the application was instrumented."""
    made = maker(style)
    made.llm("answer", 1.0, model="gpt-4o-mini", system=1000, output=10)
    made.answer()
    (call,) = trace_of(made).calls
    assert (call.model, call.input_tokens, call.output_tokens) == ("gpt-4o-mini", 1100, 10)
    assert call.cost_usd == pytest.approx(1100 * 1.5e-7 + 10 * 6e-7)
    assert call.attempts == [Attempt(call.start_ns, call.end_ns, 200)]


def test_calls_without_code_are_named_after_their_prompt() -> None:
    """The same template gets the same step in every run."""
    steps = []
    for index in range(2):
        made = RunMaker(style=GATEWAY_ONLY).trace(index, 1.0)
        made.llm("answer", 1.0)
        made.answer()
        call: Call = trace_of(made).calls[0]
        steps.append(call.step)
    assert steps[0] == steps[1]
    assert steps[0].startswith("gpt-4o:")
