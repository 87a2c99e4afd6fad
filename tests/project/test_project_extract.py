"""What is read out of a recording."""

import random

import pytest
from tests.project.builders import Recorded, Step, ns

from paceline.model.request import ResourceSample
from paceline.model.span import LIMIT_REQUESTS_PER_MIN, Span
from paceline.project.extract import extract
from paceline.project.limits import assumed_quota, quotas_of, retries_of
from paceline.project.pace import ModelPace, duration_s, paces_of, slope_of
from paceline.project.refusal import Refusal
from paceline.trace.calls import Attempt, Call


def call(step: str, attempts: list[Attempt], *, ok: bool = True, **fields: object) -> Call:
    """A logical call made of these attempts."""
    plain: dict[str, object] = {
        "step": step,
        "code": f"app.py:1 {step}",
        "kind": "llm",
        "model": "m",
        "span_id": step,
        "parent_id": None,
        "start_ns": attempts[0].start_ns,
        "end_ns": attempts[-1].end_ns,
        "service_s": (attempts[-1].end_ns - attempts[-1].start_ns) / 1e9,
        "wait_s": 0.0,
        "attempts": attempts,
        "ok": ok,
        "error": None if ok else "429",
        "deferred": False,
        "input_tokens": 100,
        "output_tokens": 20,
        "cached_tokens": None,
        "cost_usd": 0.0,
        "prompt_hash": None,
        "fingerprint": None,
        "uses": [],
        "ttft_s": None,
        "cache": None,
        "spans": [],
    }
    return Call(**{**plain, **fields})  # type: ignore[arg-type] # a record of test values


def test_steps_seen_together_do_not_wait_for_each_other() -> None:
    """Two calls that overlap, and one after both."""
    steps = (Step(name="a"), Step(name="b", together=True), Step(name="c"))
    app = extract(Recorded(steps=steps).data(), "main")
    works = app.templates[0].works
    assert [w.after for w in works if w.step in ("a", "b")] == [(), ()]
    assert {works[j].step for j in next(w.after for w in works if w.step == "c")} == {"a", "b"}


def test_a_cache_by_key_is_found_with_its_share() -> None:
    """Repeats of an answered question hit: the application keeps whole answers."""
    app = extract(Recorded(requests=300, questions=40, cached=True).data(), "main")
    assert app.kept is not None
    assert app.kept.hit_share == 1.0
    assert not app.kept.warm
    assert len(app.hits_s) > 30


def test_without_hits_there_is_no_cache() -> None:
    """The same questions again, all answered anew."""
    assert extract(Recorded(requests=100, questions=10).data(), "main").kept is None


@pytest.mark.parametrize(
    ("recorded", "reason"),
    [
        (Recorded(requests=29), "at least 30"),
        (Recorded(requests=60, questions=1, users=1, cached=True), None),
    ],
    ids=["too few requests", "one answer made"],
)
def test_what_cannot_be_read_is_refused(recorded: Recorded, reason: str | None) -> None:
    """One sentence says why; a single uncached answer is enough to begin with."""
    if reason is None:
        assert len(extract(recorded.data(), "main").templates) == 1
        return
    with pytest.raises(Refusal, match=reason):
        extract(recorded.data(), "main")


def test_a_recording_without_traces_is_refused() -> None:
    """Requests whose spans are lost cannot be played again."""
    data = Recorded().data()
    data.spans.clear()
    with pytest.raises(Refusal, match="have no trace"):
        extract(data, "main")


def test_memory_and_processor_time_come_from_the_samples() -> None:
    """10 MB and 2 ms a request were spent; that is what is found."""
    app = extract(Recorded(cpu_s=0.002, requests=200).data(), "main")
    assert app.mb_per_request == pytest.approx(10, rel=0.3)
    spent_s = sum(w.cpu_s for w in app.templates[0].works) + app.templates[0].tail_cpu_s + app.hit_cpu_s
    assert spent_s == pytest.approx(0.002, rel=0.2)


def test_time_per_token_is_fitted_when_the_first_token_was_not_seen() -> None:
    """0.4 s and 0.02 s a token, recovered from calls of different lengths."""
    rng = random.Random(1)
    calls = []
    for _ in range(100):
        tokens = rng.randint(5, 300)
        seconds = 0.4 * rng.uniform(0.8, 1.2) + 0.02 * (tokens - 1)
        calls.append(call("a", [Attempt(0, round(seconds * 1e9), 200)], output_tokens=tokens))
    pools, unknown = paces_of(calls)
    assert not unknown
    gaps = [gap_s for _, gap_s in pools["a", "m"]]
    assert sum(gaps) / len(gaps) == pytest.approx(0.02, rel=0.02)


def test_time_per_token_is_unknown_when_all_calls_are_alike() -> None:
    """One length says nothing about a token; the model is named."""
    calls = [call("a", [Attempt(0, 10**9 + i, 200)]) for i in range(30)]
    assert paces_of(calls)[1] == {"m"}


def test_a_given_pace_goes_through_its_quantiles() -> None:
    """Half of the draws lie below the median, 95 % below the P95."""
    pace = ModelPace(ttft_p50_s=0.4, ttft_p95_s=1.0, token_gap_s=0.01)
    times = sorted(duration_s(p, 1) for p in pace.draws(random.Random(2)))
    assert times[len(times) // 2] == pytest.approx(0.4, rel=0.1)
    assert times[int(len(times) * 0.95)] == pytest.approx(1.0, rel=0.15)


def test_an_impossible_pace_is_a_value_error() -> None:
    """The P95 cannot be below the median."""
    with pytest.raises(ValueError, match="ttft_p50_s <= ttft_p95_s"):
        ModelPace(ttft_p50_s=1.0, ttft_p95_s=0.5, token_gap_s=0.01)


def test_slope_needs_spread() -> None:
    """Without it the error is infinite, so nobody relies on the slope."""
    assert slope_of([3, 3, 3, 3], [1, 2, 3, 4])[1] == float("inf")
    slope, error = slope_of([0, 1, 2, 3], [1, 3, 5, 7])
    assert slope == pytest.approx(2.0)
    assert error == pytest.approx(0.0)


def provider_span(at_s: float, *, ok: bool) -> Span:
    """An attempt as the gateway records it, under a limit of 600 requests/min."""
    return Span(
        trace_id="1" * 32,
        span_id=f"{round(at_s * 1e6):016x}",
        name="chat",
        kind="llm",
        service="gateway",
        model="m",
        start_ns=ns(at_s),
        duration_ns=1,
        status="ok" if ok else "error",
        error=None if ok else "429",
        input_tokens=100,
        output_tokens=10,
        attributes={LIMIT_REQUESTS_PER_MIN: 600},
    )


def test_an_emptied_bucket_shows_its_size() -> None:
    """25 calls at once, then refusals and one call every 100 ms: 600/min with a bucket of 25."""
    spans = [provider_span(i * 1e-4, ok=True) for i in range(25)]
    for i in range(1, 80):
        spans += [provider_span(i * 0.1 - 0.05, ok=False), provider_span(i * 0.1 + 0.01, ok=True)]
    quota = quotas_of(spans, [])["m"]
    assert quota.requests_per_min == 600
    assert quota.burst_requests == pytest.approx(25, abs=1.5)


def test_a_bucket_never_emptied_is_taken_as_a_tenth_of_a_minute() -> None:
    """No refusal: the recording shows only that the bucket is no smaller than what passed."""
    quota = quotas_of([provider_span(i * 1.0, ok=True) for i in range(40)], [])["m"]
    assert quota.burst_requests == 60
    assert assumed_quota(None, None) is None


def test_pauses_are_kept_by_attempt_and_giving_up_is_seen() -> None:
    """1 s, 2 s, then it gives up after three attempts and the request fails."""
    attempts = [Attempt(0, 10**8, 429), Attempt(11 * 10**8, 12 * 10**8, 429), Attempt(32 * 10**8, 33 * 10**8, 429)]
    calls = [call(f"s{i}", attempts, ok=False) for i in range(8)]
    found = retries_of(calls, {c.span_id: True for c in calls}, [])
    assert [pause[0] for pause in found.pauses_s] == [1.0, 2.0]
    assert (found.attempts, found.fatal, found.growth) == (3, True, 2.0)


def test_samples_of_other_processes_are_not_the_applications() -> None:
    """Only the application's processor time counts; without any it is said."""
    data = Recorded().data()
    data.resources.append(ResourceSample(at_s=1.0, service="gateway", processes=1, threads=1, cpu_s=9.0, rss_bytes=1))
    app = extract(data, "main")
    assert app.cores == 0
    assert any("resource samples" in sentence for sentence in app.assumptions)
