"""Diagnosis against planted causes: it names each, alone and together, and is silent on a healthy run."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.diagnose.builders import GATEWAY_ONLY, HTTP_ONLY, RULES, TraceMaker, desk_run, make_run
from tests.examples import examples

from paceline.diagnose import RULES as TABLE
from paceline.diagnose import diagnose
from paceline.model.change import Defer, Limit, Parallelise, Remove, Route, Trim
from paceline.model.finding import Finding
from paceline.model.span import USED_IN_RESPONSE, USES, Span
from paceline.trace.data import RunData


def rules_of(run: RunData) -> list[str]:
    return sorted({f.rule for f in diagnose(run)})


def only(run: RunData, rule: str) -> Finding:
    (finding,) = [f for f in diagnose(run) if f.rule == rule]
    return finding


def test_the_table_holds_the_eight_rules_by_their_contract_names() -> None:
    """Target files name them."""
    assert tuple(TABLE) == RULES


def test_a_healthy_run_gives_no_finding() -> None:
    """Retrieval beside intent and tone, small model for labels, short prompts, validation after the answer."""
    assert diagnose(desk_run()) == []


@pytest.mark.parametrize("rule", RULES)
def test_each_cause_planted_alone_is_named_and_nothing_else(rule: str) -> None:
    """The planted fault, and only that."""
    assert rules_of(desk_run(rule)) == [rule]


def test_all_causes_together_are_all_named() -> None:
    """One cause doesn't hide another."""
    assert rules_of(desk_run(*RULES)) == sorted(RULES)


def test_findings_are_ranked_by_what_they_save_hidden_failures_first() -> None:
    """Shares of time, money and memory added up."""
    run = desk_run(*RULES)
    found = diagnose(run)
    assert found[0].rule == "swallowed_failure"
    mean_s = sum(r.latency_s for r in run.requests) / len(run.requests)
    cost = sum(s.cost_usd or 0 for s in run.spans) / len(run.requests) * 1000
    peak_mb = max(r.rss_bytes for r in run.resources) / 1e6
    worth = [
        f.saving.latency_s / mean_s + f.saving.cost_per_1000_usd / cost + f.saving.memory_mb / peak_mb
        for f in found[1:]
    ]
    assert worth == sorted(worth, reverse=True)


def test_a_hidden_failure_names_exception_share_line_and_what_followed() -> None:
    """Enough to go and fix it."""
    finding = only(desk_run("swallowed_failure"), "swallowed_failure")
    assert finding.where.code == "desk/retrieval.py:10 search"
    assert finding.where.endpoint == "POST /chat"
    assert finding.evidence.facts["exception"] == "chromadb.errors.NotFoundError"
    assert finding.evidence.facts["request_ratio"] == 1.0
    assert finding.evidence.facts["followed_by"] == "tone_guidelines"
    assert (finding.evidence.count, finding.evidence.of) == (60, 60)
    assert len(finding.evidence.span_ids) == 10
    assert finding.change is None


def test_sequential_calls_saves_the_sum_minus_the_longest_chain() -> None:
    """Retrieval (0.66 s) fits beside the intent (0.7 s)."""
    finding = only(desk_run("sequential_calls"), "sequential_calls")
    assert finding.change == Parallelise(steps=["classify_intent", "embed_query > search"])
    assert finding.saving.latency_s == pytest.approx(0.66)
    assert finding.evidence.facts["chains"] == "classify_intent | embed_query > search"
    assert finding.confidence < 0.9  # a label may decide what follows


def test_a_failed_step_makes_the_dependency_unsure() -> None:
    """It had no output that could have been followed."""
    unsure = only(desk_run("sequential_calls", "swallowed_failure"), "sequential_calls")
    assert unsure.confidence < only(desk_run("sequential_calls"), "sequential_calls").confidence
    assert "failed" in str(unsure.evidence.facts["caution"])


def test_a_repeated_call_costs_its_time_and_money() -> None:
    """0.7 s and one gpt-4o-mini label of 400 tokens."""
    finding = only(desk_run("duplicate_calls"), "duplicate_calls")
    assert finding.change == Remove(step="classify_intent", repeats_only=True)
    assert finding.saving.latency_s == pytest.approx(0.7)
    assert finding.saving.cost_per_1000_usd == pytest.approx((400 * 1.5e-7 + 4 * 6e-7) * 1000)


def test_a_label_from_a_strong_model_is_routed_to_its_small_sibling() -> None:
    """gpt-4o-mini costs a sixteenth and something."""
    steps = {f.change for f in diagnose(desk_run("strong_model_trivial_step"))}
    assert {c.step for c in steps if isinstance(c, Route)} == {"classify_intent", "validate"}
    assert {c.model for c in steps if isinstance(c, Route)} == {"gpt-4o-mini"}
    finding = diagnose(desk_run("strong_model_trivial_step"))[0]
    strong, small = 400 * 2.5e-6 + 4 * 1e-5, 400 * 1.5e-7 + 4 * 6e-7
    assert finding.saving.cost_per_1000_usd == pytest.approx((strong - small) * 1000)
    assert finding.saving.latency_s == 0.0


def test_an_oversized_prompt_says_what_fills_it_and_what_trimming_spares() -> None:
    """3,000 tokens of instructions for an answer of 180."""
    (finding,) = [f for f in diagnose(desk_run("oversized_prompt")) if f.where.step == "write_answer"]
    assert isinstance(finding.change, Trim)
    assert finding.change.input_ratio.value == pytest.approx(1 - 2500 / 4500, abs=1e-3)
    assert finding.evidence.facts["system_tokens"] == 3000
    assert finding.saving.cost_per_1000_usd == pytest.approx(2500 * 2.5e-6 * 1000)


def test_work_the_answer_does_not_need_is_deferred() -> None:
    """Validation of 0.8 s at the end."""
    finding = only(desk_run("deferrable_work"), "deferrable_work")
    assert finding.change == Defer(step="validate")
    assert finding.saving.latency_s == pytest.approx(0.8)


def test_a_provider_limit_says_the_limit_and_what_backing_off_costs() -> None:
    """Half of the requests lose 4.05 s."""
    finding = only(desk_run("provider_limit"), "provider_limit")
    assert finding.change == Limit(resource="provider:gpt-4o", queued=True)
    assert finding.critical_path_s == pytest.approx(4.05)
    assert finding.evidence.facts["limit_requests_per_min"] == 600
    assert finding.evidence.facts["refused_attempts"] == 30


def test_a_thread_per_request_costs_memory() -> None:
    """6 MB for each of the requests in flight."""
    finding = only(desk_run("thread_memory_spike"), "thread_memory_spike")
    assert isinstance(finding.change, Limit)
    assert finding.change.resource == "threads"
    facts = finding.evidence.facts
    assert facts["mb_per_request_in_flight"] == pytest.approx(6.0)
    assert finding.saving.memory_mb == pytest.approx(6.0 * (int(facts["in_flight_peak"]) - 40))


@pytest.mark.parametrize("style", [HTTP_ONLY, GATEWAY_ONLY])
def test_what_needs_no_sdk_instrumentation_is_found_without_it(style: str) -> None:
    """HTTP spans or the gateway alone still show limits, repeats, models and prompts."""
    found = rules_of(desk_run("duplicate_calls", "oversized_prompt", "provider_limit", style=style))
    assert {"duplicate_calls", "oversized_prompt", "provider_limit"} <= set(found)


def test_without_data_flow_nothing_is_said_about_order() -> None:
    """A recording that saw no outputs can't tell what depends on what."""
    run = desk_run("sequential_calls", "deferrable_work")
    spans = [
        msgspec.structs.replace(
            s, attributes={k: v for k, v in s.attributes.items() if k not in (USES, USED_IN_RESPONSE)}
        )
        for s in run.spans
    ]
    assert rules_of(RunData(run.info, run.requests, spans, run.resources)) == []


def test_a_recording_without_load_driver_is_diagnosed_from_its_server_spans() -> None:
    """`paceline record` alone: no Request, no shares lost."""
    run = desk_run("duplicate_calls", "deferrable_work")
    recorded = RunData(run.info, [], run.spans, run.resources)
    assert rules_of(recorded) == ["deferrable_work", "duplicate_calls"]
    assert only(recorded, "deferrable_work").where.endpoint == "POST /chat"


def test_nothing_recorded_gives_nothing() -> None:
    """Requests without spans, spans without requests, and neither."""
    run = desk_run(*RULES)
    assert diagnose(RunData(run.info, [], [], [])) == []
    assert diagnose(RunData(run.info, run.requests, [], [])) == []
    assert rules_of(RunData(run.info, run.requests, [], run.resources)) == ["thread_memory_spike"]


def test_half_a_trace_does_not_break_a_rule() -> None:
    """A killed application leaves spans without parents and requests without spans."""
    run = desk_run(*RULES)
    kept = [s for i, s in enumerate(run.spans) if i % 3]
    for finding in diagnose(RunData(run.info, run.requests, kept, run.resources)):
        assert 0 <= finding.confidence <= 1
        assert finding.saving.latency_s >= 0


def test_an_unknown_price_saves_no_money_and_says_so() -> None:
    """Zero with a fact, never a guess."""
    run = desk_run("duplicate_calls", "oversized_prompt")
    spans = [msgspec.structs.replace(s, cost_usd=None, model="in-house-7b" if s.model else None) for s in run.spans]
    found = diagnose(RunData(run.info, run.requests, spans, run.resources))
    assert {f.rule for f in found} == {"duplicate_calls", "oversized_prompt"}
    for finding in found:
        assert finding.saving.cost_per_1000_usd == 0
        assert int(finding.evidence.facts["cost_unknown"]) > 0


def test_every_finding_is_complete() -> None:
    """Title, remedy, evidence with counts, and JSON that reads back."""
    for finding in diagnose(desk_run(*RULES)):
        assert finding.title
        assert finding.remedy
        assert 0 < finding.evidence.count <= max(finding.evidence.of, finding.evidence.count)
        assert 0 < finding.confidence <= 1
        assert msgspec.json.decode(msgspec.json.encode(finding), type=Finding) == finding


def _renamed(run: RunData, rename: dict[str, str], shift_ns: int) -> RunData:
    def span(s: Span) -> Span:
        attributes = s.attributes.copy()
        for name in (USES, USED_IN_RESPONSE):
            ids = attributes.get(name)
            if isinstance(ids, list):
                attributes[name] = [rename.get(i, i) for i in ids]
        return msgspec.structs.replace(
            s, trace_id=s.trace_id[::-1], span_id=rename[s.span_id], start_ns=s.start_ns + shift_ns,
            parent_id=rename.get(s.parent_id or "", s.parent_id), attributes=attributes,
        )  # fmt: skip

    requests = [msgspec.structs.replace(r, trace_id=r.trace_id[::-1]) for r in run.requests]
    return RunData(run.info, requests, [span(s) for s in run.spans], run.resources)


def _essence(run: RunData) -> list[tuple[object, ...]]:
    """Everything but ids, which only serve as examples."""
    rounded = [
        (f.rule, f.title, f.where, f.evidence.count, f.evidence.facts, f.confidence, f.remedy, f.change,
         round(f.saving.latency_s, 6), round(f.saving.cost_per_1000_usd, 6), round(f.saving.memory_mb, 6))
        for f in diagnose(run)
    ]  # fmt: skip
    return sorted(rounded, key=repr)


EVERYTHING = desk_run(*RULES, requests=30)
ESSENCE = _essence(EVERYTHING)


@examples(10)
@given(st.randoms(use_true_random=False), st.integers(-(10**15), 10**15))
def test_neither_ids_nor_the_time_of_day_nor_order_matter(rng: random.Random, shift_ns: int) -> None:
    """Renaming ids, shifting all spans and shuffling them leave the findings as they are."""
    ids = [s.span_id for s in EVERYTHING.spans]
    names = [f"{rng.getrandbits(48):012x}{n:04x}" for n, _ in enumerate(ids)]
    run = _renamed(EVERYTHING, dict(zip(ids, names, strict=True)), shift_ns)
    spans, requests = run.spans.copy(), run.requests.copy()
    rng.shuffle(spans)
    rng.shuffle(requests)
    assert _essence(RunData(run.info, requests, spans, run.resources)) == ESSENCE


def test_independent_calls_that_all_stand_in_the_response_are_found() -> None:
    """Title, actions and summary of a text, asked one after the other: none needs another, the response needs all."""

    def notes(trace: TraceMaker) -> None:
        title = trace.llm("write_title", 0.5, output=12)
        actions = trace.llm("list_actions", 2.0)
        summary = trace.llm("summarise", 2.5)
        trace.answer(title, actions, summary)

    finding = only(make_run(notes).data(), "sequential_calls")
    assert finding.change == Parallelise(steps=["write_title", "list_actions", "summarise"])
    assert finding.saving.latency_s == pytest.approx(2.5, abs=0.1)
