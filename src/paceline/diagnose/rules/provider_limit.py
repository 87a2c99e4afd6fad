"""The provider's rate limit is reached: calls are refused, and what waits is the application.

Rule, per model: at least 3 calls and 1 % of the model's calls had an attempt answered with 429.

Thresholds: below 1 % a retry hides it at no cost worth a finding; ours. The limit is read from the provider's
x-ratelimit-limit headers where the gateway saw them.

The saving is what waiting in order would spare against failing and backing off: time lost on the critical path minus
the wait of a first-come-first-served queue at the provider's own limit, with the calls arriving as they did. With an
unknown limit half of the loss is assumed, at a lower confidence. Assumptions: the limit counts requests or tokens per
sliding minute. Wrong when the provider refuses for other reasons (concurrency, daily quota); a closed load would also
arrive differently once it no longer fails: `project` simulates that.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

from paceline.diagnose.view import Seen, View, evidence, mean, surer, where
from paceline.model.change import Limit
from paceline.model.finding import Finding, Saving
from paceline.model.span import LIMIT_REQUESTS_PER_MIN, LIMIT_TOKENS_PER_MIN

RULE = "provider_limit"
LEAST_CALLS = 3
LEAST_SHARE = 0.01
_MINUTE_NS = 60_000_000_000
_TOO_MANY = 429
_UNKNOWN_LIMIT_RATIO = 0.5

Facts = dict[str, float | int | str]


def provider_limit(view: View) -> list[Finding]:
    """One finding per model that refused calls."""
    by_model: defaultdict[str, list[Seen]] = defaultdict(list)
    for seen in view.all_calls(kind=None):
        if seen.call.to_provider and seen.call.model:
            by_model[seen.call.model].append(seen)
    found = []
    for model, calls in sorted(by_model.items()):
        tried = [s for s in calls if len(s.call.attempts) > 1 or not s.call.ok]
        refused = [s for s in tried if any(a.status == _TOO_MANY for a in s.call.attempts)]
        if len(refused) >= LEAST_CALLS and len(refused) >= LEAST_SHARE * len(calls):
            found.append(_finding(view, model, calls, refused))
    return found


def _finding(view: View, model: str, calls: list[Seen], refused: list[Seen]) -> Finding:
    calls.sort(key=lambda s: (s.call.start_ns, s.call.span_id))
    lost_s = math.fsum(s.path_s * min(1.0, s.call.wait_s / (s.call.duration_s or 1.0)) for s in refused)
    requests_limit, tokens_limit = _limit(refused, LIMIT_REQUESTS_PER_MIN), _limit(refused, LIMIT_TOKENS_PER_MIN)
    starts = [s.call.start_ns for s in calls]
    tokens = [(s.call.input_tokens or 0) + (s.call.output_tokens or 0) for s in calls]
    facts: Facts = {
        "refused_call_ratio": len(refused) / len(calls),
        "refused_attempts": sum(a.status == _TOO_MANY for s in refused for a in s.call.attempts),
        "given_up_calls": sum(not s.call.ok for s in refused),
        "wait_s_per_refused_call": mean(s.call.wait_s for s in refused),
        "peak_calls_per_min": max(_in_window(starts, [1] * len(starts))),
        "peak_tokens_per_min": max(_in_window(starts, tokens)),
    }
    if requests_limit:
        facts["limit_requests_per_min"] = requests_limit
    if tokens_limit:
        facts["limit_tokens_per_min"] = tokens_limit
    queue_s = 0.0
    if requests_limit or tokens_limit:
        queue_s = _queue_s(starts, tokens, requests_limit or math.inf, tokens_limit or math.inf)
        facts["wait_s_in_a_queue_per_call"] = queue_s / len(calls)
        saving_s = max(0.0, lost_s - queue_s)
    else:
        saving_s = lost_s * _UNKNOWN_LIMIT_RATIO
        facts["assumed_saving_ratio"] = _UNKNOWN_LIMIT_RATIO
    affected = len({s.trace.trace_id for s in refused})
    place = where(refused)
    one_step = len({s.call.step for s in refused}) == 1
    known = f" (limit {requests_limit:,.0f} a minute)" if requests_limit else ""
    return Finding(
        rule=RULE,
        title=f"{model} refuses {len(refused) / len(calls):.0%} of its calls with 429{known}; "
        f"each costs {mean(s.call.wait_s for s in refused):.1f} s of backing off",
        where=place if one_step else type(place)(endpoint=place.endpoint, model=model),
        evidence=evidence(refused, affected, len(view.traces), facts),
        critical_path_s=lost_s / affected,
        saving=Saving(latency_s=saving_s / view.requests),
        confidence=surer(0.85 if requests_limit or tokens_limit else 0.5, len(refused)),
        remedy=f"Let calls to {model} wait in order at the gateway and go out at the provider's rate (retry_429, "
        "concurrency) instead of failing; then send it less: cache, fewer calls, fewer tokens, other models.",
        change=Limit(resource=f"provider:{model}", queued=True),
    )


def _limit(calls: Sequence[Seen], name: str) -> float | None:
    """The smallest limit the provider named."""
    named = [v for s in calls if isinstance(v := s.call.attribute(name), int | float) and v > 0]
    return min(named, default=None)


def _in_window(starts: list[int], amounts: list[int]) -> list[int]:
    """For each call, the amount of all calls in the minute that ends with its start."""
    sums: list[int] = []
    first, total = 0, 0
    for start_ns, amount in zip(starts, amounts, strict=True):
        total += amount
        while starts[first] <= start_ns - _MINUTE_NS:
            total -= amounts[first]
            first += 1
        sums.append(total)
    return sums


def _queue_s(starts: list[int], tokens: list[int], requests_per_min: float, tokens_per_min: float) -> float:
    """Seconds all calls together wait in one queue that lets through what a sliding minute allows."""
    admitted: list[int] = []
    first, used, waited_ns = 0, 0, 0
    for index, (start_ns, amount) in enumerate(zip(starts, tokens, strict=True)):
        at_ns = max(start_ns, admitted[-1] if admitted else start_ns)
        while first < index:
            full = index - first >= requests_per_min or used + amount > tokens_per_min
            if admitted[first] > at_ns - _MINUTE_NS and not full:
                break
            at_ns = max(at_ns, admitted[first] + _MINUTE_NS) if full else at_ns
            used -= tokens[first]
            first += 1
        admitted.append(at_ns)
        used += amount
        waited_ns += at_ns - start_ns
    return waited_ns / 1e9
