"""Rates that are learned: W3.4's rule, limits found from refusals, and periods told by headers."""

import asyncio
import math
from typing import Any

import pytest
from tests.accelerate.refusing import Allowance, Provider, Seen, SlidingWindow, TokenBucket, offer
from tests.virtual_loop import run_virtual

from paceline.accelerate.limits import AdaptivePolicy, Limits, LimitsPolicy, ModelLimits
from paceline.accelerate.limits.dry import DrySpell
from paceline.accelerate.limits.learned import Learned
from paceline.accelerate.limits.told import Told

W34 = AdaptivePolicy(enabled=True, start_paced=True)


def interval(learned: Learned, start_s: float, *, answers: int, errors: int, waited: bool = True) -> None:
    """One interval's worth of calls, the last of them answered when it is over."""
    for _ in range(answers):
        learned.admitted(start_s + 0.1, waited)
    for index in range(answers - 1):
        learned.taken(start_s + 0.1, start_s + 0.5, error=index < errors)
    learned.taken(start_s + 0.1, start_s + 1.001, error=answers <= errors)


def test_the_rule_starts_at_ten_a_second_with_a_burst_of_twenty() -> None:
    """W3.4's figures are the defaults."""
    learned = Learned(W34, 0.0)
    assert learned.bucket is not None
    assert (learned.per_s, learned.bucket.burst) == (10.0, 20.0)
    assert Learned(AdaptivePolicy(enabled=True), 0.0).per_s == math.inf


@pytest.mark.parametrize(
    ("errors", "per_s"),
    [(0, 11.0), (1, 10.0), (10, 10.0), (11, 8.0), (50, 8.0)],
    ids=["none", "1%", "10%", "11%", "half"],
)
def test_errors_above_a_tenth_slow_down_and_below_a_hundredth_speed_up(errors: int, per_s: float) -> None:
    """More than 10 %: a fifth less; less than 1 %: a tenth more; between: the same. (1 % is not below 1 %.)"""
    learned = Learned(W34, 0.0)
    interval(learned, 0.0, answers=90 if errors == 1 else 100, errors=errors)
    assert learned.per_s == pytest.approx(per_s)


def test_the_rate_stays_within_its_bounds_and_does_not_grow_unused() -> None:
    """`min_per_s`, `max_per_s`; and a rate that nobody waits for proves nothing."""
    learned = Learned(AdaptivePolicy(enabled=True, start_paced=True, min_per_s=5.0, max_per_s=12.0), 0.0)
    for step in range(10):
        interval(learned, step * 2.0, answers=20, errors=20)
    assert learned.per_s == 5.0
    for step in range(10, 40):
        interval(learned, step * 2.0, answers=20, errors=0)
    assert learned.per_s == 12.0
    idle = Learned(W34, 0.0)
    for step in range(10):
        interval(idle, step * 2.0, answers=20, errors=0, waited=False)
    assert idle.per_s == 10.0


def test_too_few_answers_do_not_slow_down() -> None:
    """Two failures of three are no tenth of anything."""
    learned = Learned(W34, 0.0)
    interval(learned, 0.0, answers=3, errors=2)
    assert learned.per_s == 10.0


def test_an_outage_bounds_an_unbounded_rate_and_lets_it_grow_again() -> None:
    """From unlimited it falls below what went through, and recovers by tenths."""
    learned = Learned(AdaptivePolicy(enabled=True), 0.0)
    interval(learned, 0.0, answers=100, errors=0)
    interval(learned, 2.0, answers=100, errors=50)
    low = learned.per_s
    assert low < 100
    interval(learned, 4.0, answers=100, errors=0)
    assert learned.per_s == pytest.approx(low * 1.1)


BUCKET, WINDOW, SECOND = "bucket 10/s, 60 at once", "600 in any minute", "10 in any second"


def allowance(kind: str) -> Allowance:
    match kind:
        case "bucket 10/s, 60 at once":
            return TokenBucket(10.0, 60.0)
        case "600 in any minute":
            return SlidingWindow(600, 60.0)
    return SlidingWindow(10, 1.0)


def used(provider: Provider, from_s: float, until_s: float) -> float:
    return sum(from_s <= at_s < until_s for at_s, _ in provider.accepted) / (until_s - from_s)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BUCKET, WINDOW, SECOND])
@pytest.mark.parametrize("knowledge", ["known", "stated", "in seconds", "unsaid"])
def test_a_limit_is_used_and_hardly_exceeded(kind: str, knowledge: str) -> None:
    """10/s offered 20/s: >= 94 % used after warm-up, < 1 % of 429s reach callers, nobody starts after its deadline."""
    provider = Provider(
        requests=allowance(kind),
        jitter_s=0.005,
        states=knowledge == "stated",
        per_min=(600, 0),
        hint={"in seconds": "s", "unsaid": ""}.get(knowledge, "ms"),
    )
    adaptive = AdaptivePolicy(enabled=True)
    policy = LimitsPolicy(requests_per_min=600 if knowledge == "known" else None, adaptive=adaptive)
    seen = Seen()

    async def main() -> None:
        limits = Limits(policy, now_s=asyncio.get_running_loop().time)
        await offer(limits, provider, seen, per_s=20, for_s=190, patience_s=8)
        assert (limits.in_flight, limits.waiting) == (0, 0)
        await limits.close()

    run_virtual(main())
    assert used(provider, 120, 190) >= 9.4
    assert sum(at_s > 120 for at_s in seen.refused) <= 0.01 * 70 * 10
    assert seen.late_s <= 1e-3
    shares = sorted(seen.by_tenant.values())
    assert shares[-1] <= 1.15 * shares[0]


@pytest.mark.slow
def test_a_limit_that_changes_is_followed() -> None:
    """From 10/s to 30/s and to 5/s: learned upwards within minutes, downwards at once."""
    bucket = TokenBucket(10.0, 20.0)
    provider = Provider(requests=bucket, jitter_s=0.005, hint="ms")

    async def main() -> None:
        limits = Limits(LimitsPolicy(adaptive=AdaptivePolicy(enabled=True)), now_s=asyncio.get_running_loop().time)
        load = asyncio.create_task(offer(limits, provider, Seen(), per_s=35, for_s=250, patience_s=3))
        await asyncio.sleep(50)
        bucket.left(50.0)
        bucket.per_s = 30.0
        await asyncio.sleep(150)
        bucket.left(200.0)
        bucket.per_s = 5.0
        await load

    run_virtual(main())
    assert used(provider, 20, 50) >= 9.0
    assert used(provider, 160, 200) >= 27.0
    assert 4.5 <= used(provider, 220, 250) <= 5.6


def test_the_period_of_a_limit_is_told_by_its_reset() -> None:
    """OpenAI sends requests per day under the same name as per minute: 8.64 s for one of 10,000 is a day."""
    daily = Told(60.0)
    for remaining in (9999.0, 9998.0):
        rate = daily.rate(10_000.0, remaining, (10_000 - remaining) * 8.64, 0.0)
    assert rate.per_s == pytest.approx(10_000 / 86_400)
    minutely = Told(60.0)
    for remaining in (4999.0, 4998.0):
        rate = minutely.rate(5000.0, remaining, (5000 - remaining) * 0.012, 0.0)
    assert rate.per_s == pytest.approx(5000 / 60)
    assert rate.burst == 5000.0
    window = Told(60.0)  # resets at a fixed time, whatever was used
    for remaining, reset_s in ((599.0, 59.0), (590.0, 50.0), (400.0, 20.0)):
        rate = window.rate(600.0, remaining, reset_s, 0.0)
    assert rate.per_s == pytest.approx(10.0)


def test_a_call_that_is_not_refused_in_time_was_taken() -> None:
    """Models answer after seconds, refusals come at once: a row of refusals ends without an answer."""
    dry = DrySpell()
    assert dry.refused(0.0, 0.1)
    dry.lately = 1  # one call sent after it ...
    assert dry.refused(0.5, 0.6)  # ... and refused
    assert (dry.times, dry.since_s) == (2, 0.1)
    dry.lately = 2  # two sent ...
    assert dry.refused(1.5, 1.6)  # ... one of them refused: the other may still be
    assert not dry.refused(1.55, 1.65)
    assert dry.times == 3
    dry.lately = 2
    assert dry.refused(3.5, 3.6)
    dry.lately = 1
    assert dry.refused(5.5, 5.6)  # of the two sent at 3.5 only one was refused: the other was taken
    assert (dry.times, dry.since_s) == (1, 5.6)


def test_a_policy_that_makes_no_sense_is_refused_with_the_field() -> None:
    """Zero is not "off"; None is."""
    wrongs: tuple[dict[str, Any], ...] = (
        {"concurrency": 0},
        {"requests_per_min": 0},
        {"tokens_per_min": -1},
        {"burst": 0},
        {"max_queue": 0},
        {"processes": 0},
        {"shared": "http://x"},
    )
    for wrong in wrongs:
        (field,) = wrong
        with pytest.raises(ValueError, match=f"limits.{field}"):
            LimitsPolicy(**wrong)
    with pytest.raises(ValueError, match=r"limits\.adaptive\.decrease"):
        AdaptivePolicy(decrease=1.0)
    with pytest.raises(ValueError, match=r"limits.models.\*.concurrency"):
        ModelLimits(concurrency=0)


def test_limits_of_a_model_are_over_the_general_ones_and_follow_the_speed() -> None:
    """None switches a general limit off for one model; a faster provider has rates to match."""
    policy = LimitsPolicy(
        concurrency=4,
        requests_per_min=600,
        models={"big": ModelLimits(requests_per_min=60), "free": ModelLimits(concurrency=None, requests_per_min=None)},
    )
    assert policy.for_model("big").concurrency == 4
    assert policy.for_model("big").requests == ((1.0, 1.0),)
    assert policy.for_model("free").is_unlimited
    assert policy.for_model("any").requests == ((10.0, 10.0),)
    fast = policy.at_speed(10.0)
    assert fast.for_model("big").requests == ((10.0, 10.0),)
    assert (fast.concurrency, fast.max_wait_s, fast.adaptive.minute_s) == (4, 6.0, 6.0)
    assert LimitsPolicy().is_off
    assert not policy.is_off
    assert policy.for_model("any").divided(4).requests == ((2.5, 2.5),)
    both = LimitsPolicy(requests_per_min=600, requests_per_s=20, burst=5).for_model("m")
    assert both.requests == ((20.0, 5.0), (10.0, 600.0))
