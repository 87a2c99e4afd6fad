"""Runs that look like a cause and are none."""

from collections.abc import Callable

import msgspec
import pytest
from tests.diagnose.builders import RunMaker, TraceMaker, make_run

from paceline.diagnose import diagnose
from paceline.diagnose.siblings import cheaper_sibling
from paceline.model.change import Parallelise
from paceline.model.span import USES, Span
from paceline.trace.data import RunData


def found_in(write: Callable[[TraceMaker], None]) -> list[str]:
    return sorted({f.rule for f in diagnose(make_run(write).data())})


def dependent_calls(trace: TraceMaker) -> None:
    first = trace.llm("outline", 1.0)
    trace.answer(trace.llm("write", 1.0, uses=[first]))


def dependent_through_a_third(trace: TraceMaker) -> None:
    first = trace.llm("outline", 1.0)
    middle = trace.db("look_up", 0.01)
    trace.spans[-1] = _using(trace, first)
    trace.answer(trace.llm("write", 1.0, uses=[middle]))


def retried_store(trace: TraceMaker) -> None:
    trace.db("look_up", 0.1, error="TimeoutError")
    found = trace.db("look_up", 0.1)
    trace.answer(trace.llm("write", 1.0, uses=[found]))


def retried_once_in_a_long_while(trace: TraceMaker) -> None:
    failures = [(429, 0.1, 1.0)] if trace.index in (3, 7) else []
    trace.answer(trace.llm("write", 1.0, failures=failures))


def short_answer_that_is_the_product(trace: TraceMaker) -> None:
    facts = trace.llm("gather", 1.0, output=300)
    trace.answer(trace.llm("decide", 1.0, uses=[facts], output=3))


def short_answer_of_a_small_model(trace: TraceMaker) -> None:
    label = trace.llm("classify", 0.5, output=3, model="gpt-4o-mini")
    trace.answer(trace.llm("write", 1.0, uses=[label]))


def prompt_the_provider_has_cached(trace: TraceMaker) -> None:
    trace.answer(trace.llm("write", 1.0, system=3000, cached_tokens=2900))


def long_prompt_for_a_long_answer(trace: TraceMaker) -> None:
    trace.answer(trace.llm("write", 5.0, system=1500, user=500, output=900))


def last_call_whose_output_is_shown(trace: TraceMaker) -> None:
    draft = trace.llm("write", 1.0)
    trace.answer(draft, trace.llm("rate", 0.5, uses=[draft], output=60))


def validation_that_may_ask_again(trace: TraceMaker) -> None:
    draft = trace.llm("write", 1.0)
    trace.llm("validate", 0.5, uses=[draft], output=60, prompt=("first", trace.index))
    if trace.index % 5 == 0:
        draft = trace.llm("write", 1.0, prompt=("again", trace.index), uses=[draft])
    trace.answer(draft)


def already_parallel(trace: TraceMaker) -> None:
    start_s = trace.now_s
    left = trace.llm("left", 1.0, at_s=start_s)
    right = trace.llm("right", 1.0)
    trace.answer(trace.llm("merge", 1.0, uses=[left, right]))


def lookup_before_the_work(trace: TraceMaker) -> None:
    trace.span("cache", trace.now_s, trace.now_s + 0.1, name="GET", code="desk/cache.py:5 look_up")
    trace.now_s += 0.101
    found = trace.llm("outline", 1.0)
    trace.answer(trace.llm("write", 1.0, uses=[found]))


def tiny_calls(trace: TraceMaker) -> None:
    left, right = trace.db("profile", 0.01), trace.db("orders", 0.01)
    trace.answer(trace.llm("write", 1.0, uses=[left, right]))


def same_prompt_in_other_requests(trace: TraceMaker) -> None:
    trace.answer(trace.llm("write", 1.0, prompt="always the same"))


def repeat_served_from_the_cache(trace: TraceMaker) -> None:
    first = trace.llm("classify", 0.5, prompt="p")
    trace.llm("classify", 0.002, prompt="p", cache="hit")
    trace.answer(trace.llm("write", 1.0, uses=[first]))


def _using(trace: TraceMaker, used: str) -> Span:
    last = trace.spans[-1]
    return msgspec.structs.replace(last, attributes=last.attributes | {USES: [used]})


NEAR_MISSES = [
    dependent_calls,
    dependent_through_a_third,
    retried_store,
    retried_once_in_a_long_while,
    short_answer_that_is_the_product,
    short_answer_of_a_small_model,
    prompt_the_provider_has_cached,
    long_prompt_for_a_long_answer,
    last_call_whose_output_is_shown,
    validation_that_may_ask_again,
    already_parallel,
    lookup_before_the_work,
    tiny_calls,
    same_prompt_in_other_requests,
    repeat_served_from_the_cache,
]


@pytest.mark.parametrize("write", NEAR_MISSES, ids=lambda w: w.__name__)
def test_a_near_miss_is_no_finding(write: Callable[[TraceMaker], None]) -> None:
    """It looks like a cause, and is none."""
    assert found_in(write) == []


def one_hidden_failure(trace: TraceMaker) -> None:
    trace.db("look_up", 0.1, error="TimeoutError" if trace.index < 1 else None)
    trace.answer(trace.llm("write", 1.0, uses=[s.span_id for s in trace.spans]))


def test_a_single_failure_among_forty_is_weather() -> None:
    """Three of them, or 5 %, are a cause."""
    assert found_in(one_hidden_failure) == []


def test_a_failure_the_user_sees_is_not_hidden() -> None:
    """A 503 is honest."""
    run = RunMaker()
    for index in range(10):
        trace = run.trace(index, index + 1.0)
        trace.db("look_up", 0.1, error="TimeoutError")
        trace.answer(status=503)
    assert diagnose(run.data()) == []


def with_resources(threads: Callable[[int, float], int], rss_mb: Callable[[int, float], float]) -> RunData:
    run = RunMaker()
    for index in range(60):
        trace = run.trace(index, 5.0 + index / 20)
        trace.answer(trace.llm("write", 6.0))
    for tick in range(120):
        at_s = tick / 4
        flying = sum(r.started_s <= at_s < r.ended_s for r in run.requests)
        run.sample(at_s, threads=threads(flying, at_s), rss_mb=rss_mb(flying, at_s))
    return run.data()


def test_flat_threads_and_a_leak_are_no_spike() -> None:
    """Memory that follows the load without threads, threads without memory, and memory that only grows."""
    assert diagnose(with_resources(lambda f, t: 16, lambda f, t: 250 + 6 * f)) == []
    assert diagnose(with_resources(lambda f, t: 10 + f, lambda f, t: 250 + 0.2 * f)) == []
    assert diagnose(with_resources(lambda f, t: 10 + int(4 * t), lambda f, t: 250 + 20 * t)) == []
    (spike,) = diagnose(with_resources(lambda f, t: 10 + f, lambda f, t: 250 + 6 * f))
    assert spike.rule == "thread_memory_spike"


def loop_over_chunks(trace: TraceMaker) -> None:
    parts = [trace.llm("summarise", 1.0, prompt=(trace.index, n)) for n in range(4)]
    trace.answer(trace.llm("merge", 1.0, uses=parts))


def test_a_loop_of_independent_calls_is_found_although_it_is_one_step() -> None:
    """Four summaries one after the other could be made at once."""
    (finding,) = diagnose(make_run(loop_over_chunks).data())
    assert finding.change == Parallelise(steps=["summarise"])
    assert finding.saving.latency_s == pytest.approx(3.0)


def chained_summaries(trace: TraceMaker) -> None:
    last = trace.llm("refine", 1.0, prompt=(trace.index, 0))
    for n in range(1, 4):
        last = trace.llm("refine", 1.0, prompt=(trace.index, n), uses=[last])
    trace.answer(last)


def test_a_loop_whose_calls_build_on_each_other_is_not() -> None:
    """Refining needs the text so far."""
    assert found_in(chained_summaries) == []


def long_chains(trace: TraceMaker) -> None:
    intent = trace.llm("classify_intent", 0.5, output=60)
    vector = trace.embed("embed_query", 0.8)
    found = trace.db("search", 0.3)
    tone = trace.llm("tone_guidelines", 0.7, uses=[intent])
    trace.answer(trace.llm("write", 2.0, uses=[tone, found]))
    assert vector


def test_a_chain_beside_a_chain_saves_the_shorter_one() -> None:
    """Retrieval (1.1 s) beside intent -> tone (1.2 s)."""
    (finding,) = diagnose(make_run(long_chains).data())
    assert finding.change == Parallelise(steps=["classify_intent > tone_guidelines", "embed_query > search"])
    assert finding.saving.latency_s == pytest.approx(1.1)
    assert finding.evidence.facts["chains"] == "classify_intent > tone_guidelines | embed_query > search"


def unlimited(trace: TraceMaker) -> None:
    trace.answer(trace.llm("write", 1.0, failures=[(429, 0.1, 2.0)]))


def test_an_unknown_limit_assumes_half_and_is_less_sure() -> None:
    """Providers that don't say their limit."""
    (finding,) = diagnose(make_run(unlimited).data())
    assert finding.saving.latency_s == pytest.approx(2.1 / 2)
    assert finding.confidence == 0.5


def over_the_limit(trace: TraceMaker) -> None:
    trace.answer(trace.llm("write", 1.0, failures=[(429, 0.1, 59.9)], limit_per_min=20))


def test_what_the_limit_takes_anyway_is_not_promised() -> None:
    """40 calls in 20 s at 20 a minute: half of them have to wait 50 to 60 s, however politely."""
    (finding,) = diagnose(make_run(over_the_limit).data())
    # Calls start every 0.5 s; the k-th of the second half waits until 60 s after the k-th of the first: 50 s.
    assert finding.evidence.facts["wait_s_in_a_queue_per_call"] == pytest.approx(25.0)
    assert finding.saving.latency_s == pytest.approx(60.0 - 25.0)


@pytest.mark.parametrize(
    ("model", "small"),
    [
        ("gpt-4o-2024-11-20", "gpt-4o-mini"),
        ("openai/gpt-4.1", "gpt-4.1-nano"),
        ("claude-sonnet-4-5", "claude-haiku-4-5"),
        ("gpt-4o-mini", None),
        ("in-house-7b", None),
    ],
)
def test_siblings_are_of_the_same_family(model: str, small: str | None) -> None:
    """Dated and prefixed names count; small and unknown models have none."""
    assert cheaper_sibling(model) == small
