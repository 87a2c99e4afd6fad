"""Limits: the provider's token buckets and the application's retries, as far as a recording shows them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from paceline.model.span import LIMIT_REQUESTS_PER_MIN, LIMIT_TOKENS_PER_MIN, Span
from paceline.project.app import Quota, Retries
from paceline.trace.calls import GATEWAY, PROVIDER_KINDS, SAVED, Call

REFUSED = 429
BURST_SHARE = 0.1  # of a minute's allowance, where the recording does not show the bucket's size
_FULL = 1.1  # accepted over allowed: above, the tokens we count are not those the provider counts
_MIN_PAUSES = 5
# Without a refusal in the recording: what the OpenAI and Anthropic SDKs do by default.
SDK_RETRIES = Retries(refused_s=[0.05], pauses_s=[[0.4, 0.5], [0.8, 1.0]], growth=2.0, attempts=3, fatal=True)


class _Ask(NamedTuple):
    """One attempt as it reached the provider."""

    at_s: float
    tokens: int
    accepted: bool


def quotas_of(spans: Iterable[Span], assumptions: list[str]) -> dict[str, Quota]:
    """Rate limits per model: rates from the provider's headers, bucket sizes from what it accepted in a row."""
    asks: dict[str, list[_Ask]] = defaultdict(list)
    rates: dict[str, dict[str, float]] = defaultdict(dict)
    spans = [s for s in spans if s.kind in PROVIDER_KINDS and s.model and s.cache not in SAVED]
    gateway = [s for s in spans if s.service == GATEWAY]
    for span in sorted(gateway or spans, key=lambda s: s.start_ns):
        model = span.model or ""
        accepted = span.status == "ok"
        if accepted or span.error == str(REFUSED):
            tokens = (span.input_tokens or 0) + (span.output_tokens or 0)
            asks[model].append(_Ask((span.start_ns + span.wait_ns) / 1e9, tokens, accepted))
        for name in (LIMIT_REQUESTS_PER_MIN, LIMIT_TOKENS_PER_MIN):
            value = span.attributes.get(name)
            if isinstance(value, int | float) and value > 0:
                rates[model][name] = float(value)
    found: dict[str, Quota] = {}
    for model, tries in asks.items():
        tries.sort()
        quota = _quota(model, tries, rates[model], assumptions)
        if quota is not None:
            found[model] = quota
    return found


def assumed_quota(requests_per_min: float | None, tokens_per_min: float | None) -> Quota | None:
    """Limits of a model the recording does not show, with the default bucket size; None when there are none."""
    if not requests_per_min and not tokens_per_min:
        return None
    return Quota(
        requests_per_min=requests_per_min,
        tokens_per_min=tokens_per_min,
        burst_requests=max(1.0, BURST_SHARE * (requests_per_min or 0.0)),
        burst_tokens=BURST_SHARE * (tokens_per_min or 0.0),
    )


def _quota(model: str, tries: list[_Ask], rates: dict[str, float], assumptions: list[str]) -> Quota | None:
    refused = [t for t in tries if not t.accepted]
    accepted = [t for t in tries if t.accepted]
    if not rates:
        if len(refused) < _MIN_PAUSES:
            return None
        rate = _busiest_minute(accepted)
        assumptions.append(
            f"{model} refused calls without saying its limits; taken as {rate:,.0f} requests/min, the most it accepted"
        )
        rates = {LIMIT_REQUESTS_PER_MIN: rate}
    requests_per_min = rates.get(LIMIT_REQUESTS_PER_MIN)
    tokens_per_min = rates.get(LIMIT_TOKENS_PER_MIN)
    by_requests = _pressure(tries, [1.0] * len(tries), requests_per_min)
    by_tokens = _pressure(tries, [float(t.tokens) for t in tries], tokens_per_min)
    if tokens_per_min and by_tokens > _FULL and by_tokens > by_requests:
        # The provider accepted more of "our" tokens than it allows: it counts fewer of them than we do.
        assumptions.append(f"{model} counts about {1 / by_tokens:.0%} of the tokens we see against its limit")
        tokens_per_min *= by_tokens
    limited = bool(refused)
    requests_first = by_requests >= by_tokens
    return Quota(
        requests_per_min=requests_per_min,
        tokens_per_min=tokens_per_min,
        burst_requests=_burst(accepted, None, requests_per_min, shown=limited and requests_first),
        burst_tokens=_burst(accepted, "tokens", tokens_per_min, shown=limited and not requests_first),
    )


def _pressure(tries: list[_Ask], amounts: list[float], per_min: float | None) -> float:
    """Accepted over allowed between the first refusal and the last; 0 when that is too short to tell."""
    refused_s = [t.at_s for t in tries if not t.accepted]
    if not per_min or len(refused_s) < _MIN_PAUSES or refused_s[-1] - refused_s[0] < 5:
        return 0.0
    start_s, end_s = refused_s[0], refused_s[-1]
    used = sum(a for a, t in zip(amounts, tries, strict=True) if t.accepted and start_s <= t.at_s <= end_s)
    return used / (per_min / 60 * (end_s - start_s))


def _burst(accepted: list[_Ask], what: str | None, per_min: float | None, *, shown: bool) -> float:
    """Bucket size: the deepest a bucket that refills at the limit's rate would have been drawn down.

    Exact when it was emptied (`shown`); else it is at least that, and taken as a share of a minute's allowance.
    """
    if not per_min:
        return 0.0
    drawn = deepest = 0.0
    last_s = accepted[0].at_s if accepted else 0.0
    for ask in accepted:
        drawn = max(0.0, drawn - (ask.at_s - last_s) * per_min / 60) + (ask.tokens if what else 1.0)
        last_s = ask.at_s
        deepest = max(deepest, drawn)
    return max(deepest, 1.0) if shown else max(deepest, 1.0, BURST_SHARE * per_min)


def _busiest_minute(accepted: list[_Ask]) -> float:
    """Most requests accepted in any minute, or what a minute would have held when all were within less."""
    if len(accepted) < 2:
        return 60.0
    span_s = accepted[-1].at_s - accepted[0].at_s
    if span_s < 60:
        return len(accepted) / max(span_s, 1.0) * 60
    first = most = 0
    for last, ask in enumerate(accepted):
        while accepted[first].at_s < ask.at_s - 60:
            first += 1
        most = max(most, last - first + 1)
    return float(most)


def retries_of(calls: Sequence[Call], failed_requests: dict[str, bool], assumptions: list[str]) -> Retries:
    """How the application reacts to 429, resampled later attempt by attempt.

    Args:
        calls: All logical calls of the baseline.
        failed_requests: For the span id of each call that gave up, whether its request failed.
        assumptions: Sentences are added for what had to be guessed.
    """
    refused_s: list[float] = []
    pauses: dict[int, list[float]] = defaultdict(list)
    for call in calls:
        for number, (attempt, following) in enumerate(pairwise(call.attempts)):
            if attempt.status == REFUSED:
                refused_s.append((attempt.end_ns - attempt.start_ns) / 1e9)
                pauses[number].append((following.start_ns - attempt.end_ns) / 1e9)
    gave_up = [c for c in calls if gave_up_on_limit(c)]
    if not refused_s and not gave_up:
        return SDK_RETRIES
    refused_s += [(c.attempts[-1].end_ns - c.attempts[-1].start_ns) / 1e9 for c in gave_up]
    seen = [pauses[n] for n in range(len(pauses)) if len(pauses[n]) >= _MIN_PAUSES] or [
        [p for pause in pauses.values() for p in pause] or [0.0]
    ]
    ratios = [median(b) / median(a) for a, b in pairwise(seen) if median(a) > 0]
    attempts = max((len(c.attempts) for c in gave_up), default=None)
    if attempts is None:
        most = max(len(c.attempts) for c in calls)
        assumptions.append(f"no call gave up on the provider's limit ({most} attempts at most); none is taken to")
    fatal = [failed_requests.get(c.span_id, True) for c in gave_up]
    return Retries(
        refused_s=refused_s,
        pauses_s=seen,
        growth=min(4.0, max(1.0, median(ratios))) if ratios else 2.0,
        attempts=attempts,
        fatal=2 * sum(fatal) >= len(fatal),
    )


def gave_up_on_limit(call: Call) -> bool:
    """True when the last attempt was refused too."""
    return call.to_provider and not call.ok and call.attempts[-1].status == REFUSED
