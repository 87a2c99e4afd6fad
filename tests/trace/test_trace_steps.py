"""Step names behind shared wrappers."""

import msgspec

from paceline.model.span import LLM, PROMPT_HASH, Span
from paceline.trace.steps import resolve_steps

COUNT = 0


def call(trace: str, *frames: str, template: str | None = None) -> Span:
    global COUNT
    COUNT += 1
    return Span(
        trace_id=trace, span_id=f"s{COUNT}", name="chat", kind=LLM, service="app", start_ns=COUNT, duration_ns=1,
        code=frames[0], fingerprint=template, attributes={"paceline.callers": list(frames)},
    )  # fmt: skip


def steps(*spans: Span) -> list[str | None]:
    return [s.step for s in resolve_steps(spans)]


MODEL = "llm.py:5 call_model"
RETRY = "retry.py:9 with_retries"


def test_a_function_shared_by_steps_of_one_request_is_a_wrapper() -> None:
    """The callers of call_model name the steps."""
    assert steps(
        call("t", MODEL, "app.py:10 classify", template="a"), call("t", MODEL, "app.py:20 answer", template="b")
    ) == ["classify", "answer"]


def test_wrappers_may_be_stacked_and_lambdas_are_passed_over() -> None:
    """with_retries(lambda: call_model(...)) is looked through."""
    frames = (MODEL, "app.py:11 <lambda>", RETRY)
    assert steps(
        call("t", *frames, "app.py:11 classify", template="a"),
        call("t", MODEL, "app.py:21 <lambda>", RETRY, "app.py:21 answer", template="b"),
    ) == ["classify", "answer"]


def test_wrappers_are_known_for_the_whole_run() -> None:
    """A request in which only one step ran still gets that step's name."""
    spans = [
        call("t1", MODEL, "app.py:10 classify", template="a"),
        call("t1", MODEL, "app.py:20 answer", template="b"),
        call("t2", MODEL, "app.py:10 classify", template="a"),
    ]
    assert steps(*spans) == ["classify", "answer", "classify"]


def test_a_router_that_makes_one_call_a_request_is_seen_over_the_run() -> None:
    """Two endpoints with prompts of their own share call_model, never in one request."""
    spans = [call(f"t{i}", MODEL, "app.py:10 summarise", template="a") for i in range(4)]
    spans += [call(f"u{i}", MODEL, "app.py:20 translate", template="b") for i in range(4)]
    assert steps(*spans) == ["summarise"] * 4 + ["translate"] * 4


def test_a_step_used_by_two_endpoints_keeps_its_name() -> None:
    """chat and chat_stream call the same answer()."""
    spans = [call(f"t{i}", "app.py:20 answer", "app.py:50 chat", template="a") for i in range(4)]
    spans += [call(f"u{i}", "app.py:20 answer", "app.py:60 chat_stream", template="a") for i in range(4)]
    assert steps(*spans) == ["answer"] * 8


def test_the_very_same_call_from_two_functions_is_one_step_done_twice() -> None:
    """The prompt's hash, known to the gateway, tells a repeated step from a wrapper."""
    spans = []
    for index, (caller, prompt) in enumerate((("prepare", "same"), ("choose_tone", "same"), ("answer", "other"))):
        inner = "app.py:15 classify" if prompt == "same" else "app.py:25 write"
        sdk = call("t", inner, RETRY, f"app.py:{30 + index} {caller}")
        below = _below(sdk, f"p{index}", "shared system prompt")
        spans += [sdk, msgspec.structs.replace(below, attributes={PROMPT_HASH: prompt})]
    assert [s.step for s in resolve_steps(spans) if s.code] == ["classify", "classify", "write"]


def test_prompts_that_never_repeat_do_not_make_a_wrapper() -> None:
    """A template that holds the time of day says nothing."""
    spans = [call(f"t{i}", "app.py:20 answer", f"app.py:{50 + i % 2} chat{i % 2}", template=f"x{i}") for i in range(8)]
    assert steps(*spans) == ["answer"] * 8


def test_different_calls_within_one_function_get_a_step_per_line() -> None:
    """A handler that does everything itself."""
    spans = [
        call("t", "app.py:88 handle", template="a"),
        call("t", "app.py:95 handle", template="b"),
        call("t", MODEL, "app.py:99 handle", template="c"),
    ]
    assert steps(*spans) == ["handle:88", "handle:95", "call_model"]


def test_a_wrapper_called_from_two_lines_of_one_function_gives_a_step_per_line() -> None:
    """The function's lines tell the calls apart."""
    spans = [call("t", MODEL, "app.py:88 handle", template="a"), call("t", MODEL, "app.py:95 handle", template="b")]
    assert steps(*spans) == ["handle:88", "handle:95"]


def test_the_gateways_template_counts_for_the_applications_span() -> None:
    """Only the gateway knows the prompt; the SDK's span is two levels above."""
    spans = []
    for index, line in enumerate((88, 95)):
        sdk = call("t", MODEL, f"app.py:{line} handle")
        spans += [sdk, _below(sdk, f"h{index}", None), _below(sdk, f"g{index}", f"template{index}", parent=f"h{index}")]
    named = [s.step for s in resolve_steps(spans) if s.kind == LLM and s.code]
    assert named == ["handle:88", "handle:95"]


def _below(sdk: Span, span_id: str, template: str | None, parent: str | None = None) -> Span:
    return Span(
        trace_id=sdk.trace_id, span_id=span_id, parent_id=parent or sdk.span_id, name="x", start_ns=sdk.start_ns,
        kind=LLM if template else "http.client", service="gateway" if template else "app", duration_ns=1,
        fingerprint=template,
    )  # fmt: skip


def test_order_and_spans_without_code_are_kept() -> None:
    """Nothing but `code` changes."""
    plain = Span(trace_id="t", span_id="x", name="x", kind="step", start_ns=0, duration_ns=1)
    spans = [plain, call("t", "app.py:1 f")]
    assert resolve_steps(spans) == spans
