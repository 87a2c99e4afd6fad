"""Projections as a whole: laws, refusals, and changes whose effect is known."""

from collections import OrderedDict
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples
from tests.project.builders import MODEL, Recorded, Step

from paceline.model.change import Batch, Cache, Change, Defer, Limit, Parallelise, Remove, Route, SpeedUp, Trim
from paceline.model.estimate import Range
from paceline.model.figures import ProjectedFigures
from paceline.project.pace import ModelPace
from paceline.project.plan import plan_of
from paceline.project.projector import Projector, project
from paceline.project.simulate import simulate
from paceline.trace.data import RunData

DATA = Recorded().data()
REPETITIONS = 8


def figures(data: RunData, *changes: Change, **options: Any) -> ProjectedFigures:
    """The projected figures; fails with the refusal."""
    projection = project(data, "main", list(changes), repetitions=REPETITIONS, **options)
    assert projection.figures is not None, projection.refusal
    return projection.figures


def test_no_change_gives_the_baseline_back() -> None:
    """Mean, P50, P95 and rate of the simulated baseline are the measured ones within a few per cent."""
    projection = project(DATA, "main", [], repetitions=20)
    assert projection.figures is not None
    assert max(map(abs, projection.base_error.values())) < 0.05
    measured = [r.latency_s for r in DATA.requests]
    assert projection.figures.mean_s.holds(sum(measured) / len(measured))


def test_the_same_seed_gives_the_same_projection() -> None:
    """And another one another."""
    changes = [SpeedUp(step="answer", factor=Range(1.5, 2.5))]
    first, again, other = (project(DATA, "main", changes, seed=s, repetitions=5) for s in (1, 1, 2))
    assert first == again
    assert first.figures != other.figures


def test_steps_in_parallel_take_as_long_as_the_longer() -> None:
    """0.5 s beside 2 s: about 2 s instead of 2.5 s."""
    steps = (Step(name="short", seconds=0.5, output_tokens=3), Step(name="long", seconds=2.0))
    data = Recorded(steps=steps, sigma=0.05).data()
    assert figures(data, Parallelise(steps=["short", "long"])).p50_s.value == pytest.approx(2.0, rel=0.05)


def test_a_deferred_step_leaves_the_answer_but_costs_as_before() -> None:
    """Off the response path, on the bill."""
    before = figures(DATA)
    after = figures(DATA, Defer(step="classify"))
    assert after.mean_s.value == pytest.approx(before.mean_s.value - 1.05, rel=0.05)
    assert before.cost_per_1000_usd is not None
    assert after.cost_per_1000_usd == before.cost_per_1000_usd


def test_a_removed_step_saves_its_time_and_its_money() -> None:
    """Half of the calls, half of the cost."""
    after = figures(DATA, Remove(step="classify"))
    assert after.cost_per_1000_usd is not None
    assert after.cost_per_1000_usd.value == pytest.approx(1.0)


def test_fewer_tokens_take_less_time_and_money() -> None:
    """Half of 50 tokens at 10 ms each are 0.25 s less; a cheaper call in proportion."""
    before, after = figures(DATA), figures(DATA, Trim(step="answer", output_ratio=Range(0.5, 0.5)))
    assert before.mean_s.value - after.mean_s.value == pytest.approx(0.25, rel=0.2)
    assert before.cost_per_1000_usd is not None
    assert after.cost_per_1000_usd is not None
    assert after.cost_per_1000_usd.value < before.cost_per_1000_usd.value


def test_a_routed_step_has_the_other_models_pace_and_price() -> None:
    """0.1 s instead of 1 s, at a fraction of the cost."""
    pace = ModelPace(ttft_p50_s=0.1, ttft_p95_s=0.1001, token_gap_s=0.0)
    after = figures(DATA, Route(step="classify", model="gpt-4o-mini"), models={"gpt-4o-mini": pace})
    assert after.mean_s.value == pytest.approx(figures(DATA).mean_s.value - 0.95, rel=0.06)


def test_shared_flights_make_each_question_once() -> None:
    """Eight users ask the same at once: one works, the others wait for it."""
    data = Recorded(questions=1, requests=64).data()
    found = figures(data, Cache(shared_in_flight=True))
    assert found.hit_ratio is not None
    assert found.hit_ratio.value == pytest.approx(63 / 64)


def test_a_declared_hit_ratio_is_taken_at_its_word() -> None:
    """60 % hits of 2 ms halve the mean and more."""
    found = figures(Recorded(requests=400).data(), Cache(hit_ratio=Range(0.6, 0.6)))
    assert found.hit_ratio is not None
    assert found.hit_ratio.value == pytest.approx(0.6, abs=0.05)


def test_a_cached_step_is_asked_once_for_each_question() -> None:
    """Two questions, two calls of the step; the others take 2 ms."""
    data = Recorded(questions=2, requests=60, users=1).data()
    found = figures(data, Cache(step="classify", key="text"))
    assert found.cost_per_1000_usd is not None
    assert found.cost_per_1000_usd.value == pytest.approx(1000 * 0.001 * (60 + 2) / 60, rel=0.01)


def test_a_limit_queues_a_closed_loop_to_its_rate() -> None:
    """One call at a time of 1.05 + 2.1 s: a request takes all eight users' turns."""
    found = figures(DATA, Limit(resource="provider", size=1))
    assert found.requests_per_s.value == pytest.approx(1 / 3.15, rel=0.06)
    assert figures(DATA, Limit(resource="threads", size=1)).requests_per_s.value == pytest.approx(1 / 3.15, rel=0.06)


def test_a_batch_shares_one_call() -> None:
    """A loop of four calls by four is one with all their tokens: three times to first token less."""
    steps = tuple(Step(name="part", output_tokens=3) for _ in range(4))
    data = Recorded(steps=steps, sigma=0.05).data()
    assert figures(data, Batch(step="part", size=4)).mean_s.value < 0.35 * figures(data).mean_s.value


def test_memory_follows_requests_in_flight() -> None:
    """100 MB and 10 MB each of eight: at a tenth each, 108 MB."""
    data = Recorded(cpu_s=0.001, requests=200).data()
    found = figures(data, Limit(resource="threads", memory_ratio=Range(0.1, 0.1)))
    assert found.memory_mb is not None
    assert found.memory_mb.value == pytest.approx(108, rel=0.03)


PACE = {"other": ModelPace(ttft_p50_s=0.1, ttft_p95_s=0.2, token_gap_s=0.01)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (Defer(step="validate"), "no step named 'validate' in the baseline; it has: answer, classify"),
        (Route(step="answer", model="unheard"), "the pace of unheard is not known"),
        (Limit(resource="database"), "no resource named 'database' in the baseline; it has: provider, threads"),
        (Cache(key="meaning"), "a cache key is exact or text"),
        (SpeedUp(step="answer", factor=Range(0, 2)), "factor above 0"),
        (Batch(step="answer", size=0), "size of at least 1"),
        (Parallelise(steps=["answer > nothing", "classify"]), "no step named 'nothing'"),
    ],
    ids=["step", "model", "resource", "key", "factor", "size", "chain"],
)
def test_what_cannot_be_known_is_refused(change: Change, sentence: str) -> None:
    """One sentence, and no figures."""
    projection = project(DATA, "main", [change], models=PACE, repetitions=5)
    assert projection.figures is None
    assert sentence in (projection.refusal or "")


def test_open_arrivals_near_saturation_are_refused_with_the_capacity() -> None:
    """One worker for 3.15 s of work at 0.3 a second would be 95 % busy."""
    data = Recorded(users=None, rate_per_s=0.3, requests=60).data()
    projection = project(data, "main", [Limit(resource="threads", size=1)], repetitions=5)
    assert projection.figures is None
    assert projection.capacity_per_s == pytest.approx(1 / 3.15, rel=0.1)
    assert projection.bottleneck == "threads"
    assert "near saturation" in (projection.refusal or "")


def test_too_few_repetitions_are_a_value_error() -> None:
    """An interval needs some runs."""
    with pytest.raises(ValueError, match="repetitions"):
        project(DATA, "main", [], repetitions=4)


def test_a_projection_is_stored_and_read_back() -> None:
    """JSON round trip of a whole projection."""
    projection = project(DATA, "main", [Parallelise(steps=["classify", "answer"])], repetitions=5)
    assert msgspec.json.decode(msgspec.json.encode(projection), type=type(projection)) == projection


@pytest.mark.slow
@examples(8)
@given(st.floats(1.05, 10), st.sampled_from(["classify", "answer"]))
def test_a_faster_step_never_raises_the_mean(factor: float, step: str) -> None:
    """Nothing else changes, so nobody waits longer."""
    projector = Projector(DATA, "main", repetitions=5)
    before = projector.project([]).figures
    after = projector.project([SpeedUp(step=step, factor=Range(factor, factor))]).figures
    assert before is not None
    assert after is not None
    assert after.mean_s.value <= before.mean_s.value * 1.005


@pytest.mark.slow
@examples(6)
@given(st.integers(1, 6), st.integers(1, 3))
def test_more_users_never_lower_the_throughput(users: int, factor: int) -> None:
    """A closed loop on a bounded resource: more users fill it, they do not slow it (within noise)."""
    rates = []
    for count in (users, users * (1 + factor)):
        data = Recorded(users=count, requests=60).data()
        rates.append(figures(data, Limit(resource="provider", size=4)).requests_per_s.value)
    assert rates[1] >= rates[0] * 0.95


@pytest.mark.slow
@examples(25)
@given(st.integers(1, 60), st.integers(0, 5), st.integers(1, 40))
def test_hits_of_a_replay_are_those_of_the_key_sequence(questions: int, seed: int, entries: int) -> None:
    """With one user nothing overlaps: the simulated cache equals one fed with the keys directly."""
    data = Recorded(questions=questions, seed=seed, users=1, requests=60).data()
    projector = Projector(data, "main", repetitions=5)
    outcome = simulate(plan_of(projector.app, [Cache(entries=entries)], {}), "0:0")
    kept: OrderedDict[str, None] = OrderedDict()
    hits = 0
    for request in data.requests:
        hits += request.key in kept
        kept[request.key] = None
        kept.move_to_end(request.key)
        if len(kept) > entries:
            kept.popitem(last=False)
    assert outcome.hits == hits


def test_models_are_known_by_their_name() -> None:
    """A limit may name one model."""
    assert figures(DATA, Limit(resource=f"provider:{MODEL}", size=1)).requests_per_s.value < 0.4
