"""A strong model is paid for a label or a verdict.

Rule: 95 % of a step's outputs have at most 20 tokens, and its model costs at least 5 times the small model of its
family for the same tokens. A step whose output is what the user reads (the longest output used in the response) is
left alone, however short.

Thresholds: 20 tokens hold a label, a score or a yes; five times the price is worth a check of quality. Both are ours.
Which model is the small one: `siblings`. Prices: genai-prices.

Assumptions: the small model gives the same label. A small table can't know; check on a golden set. Wrong where a
short answer needs deep thought (reasoning tokens are counted as output, so such steps usually exceed 20). Latency is
0 unless the small model was seen making short answers in this run; then it is the difference of mean service times.
"""

from paceline.diagnose.siblings import cheaper_sibling
from paceline.diagnose.view import Seen, View, asked, commonest, evidence, mean, surer, where
from paceline.model.change import Route
from paceline.model.finding import Finding, Saving
from paceline.model.price import Price, price_of
from paceline.stats.quantiles import quantile

RULE = "strong_model_trivial_step"
MOST_OUTPUT_TOKENS = 20
LEAST_PRICE_RATIO = 5.0
LEAST_SHARE = 0.05  # of requests


def strong_model_trivial_step(view: View) -> list[Finding]:
    """One finding per step and strong model."""
    found = []
    for step, calls in view.steps().items():
        model = commonest(s.call.model for s in calls if asked(s))
        made = [s for s in calls if s.call.model == model and asked(s) and s.call.ok]
        outputs = [s.call.output_tokens for s in made if s.call.output_tokens is not None]
        requests = len({s.trace.trace_id for s in made})
        if not outputs or model is None or requests < LEAST_SHARE * len(view.traces):
            continue
        if quantile(outputs, 0.95) > MOST_OUTPUT_TOKENS or _is_the_answer(step, calls):
            continue
        small = cheaper_sibling(model)
        dear, cheap = price_of(model), price_of(small) if small else None
        if small and dear and cheap and _ratio(made, dear, cheap) >= LEAST_PRICE_RATIO:
            found.append(_finding(view, made, small, dear, cheap))
    return found


def _finding(view: View, made: list[Seen], small: str, dear: Price, cheap: Price) -> Finding:
    step, model = made[0].call.step, made[0].call.model
    ratio = _ratio(made, dear, cheap)
    spared = sum(s.call.cost_usd * (1 - 1 / ratio) for s in made if s.call.cost_usd is not None)
    outputs = [s.call.output_tokens or 0 for s in made]
    facts: dict[str, float | int | str] = {
        "output_tokens_p95": quantile(outputs, 0.95),
        "distinct_output_lengths": len(set(outputs)),
        "times_dearer": ratio,
        "calls_per_request": len(made) / view.requests,
    }
    if any(s.call.cost_usd is None for s in made):
        facts["cost_unknown"] = sum(s.call.cost_usd is None for s in made)
    faster_s = _faster_s(view, made, small)
    facts["latency"] = f"{small} was not seen in this run" if faster_s is None else f"{small} measured in this run"
    affected = len({s.trace.trace_id for s in made})
    return Finding(
        rule=RULE,
        title=f"{step} pays {model} for {round(quantile(outputs, 0.5))} tokens; {small} costs {ratio:.0f} times less",
        where=where(made),
        evidence=evidence(made, affected, len(view.traces), facts),
        critical_path_s=sum(s.path_s for s in made) / affected,
        saving=Saving(
            latency_s=view.per_request(min(s.path_s, faster_s or 0.0) for s in made),
            cost_per_1000_usd=view.per_1000(spared),
        ),
        confidence=surer(0.7, affected),
        remedy=f"Send {step} to {small} (in code, or as a gateway route) and check on a golden set that its answers "
        "stay the same.",
        change=Route(step=step, model=small),
    )


def _ratio(made: list[Seen], dear: Price, cheap: Price) -> float:
    """How many times dearer the step's tokens are."""
    tokens_in = mean(s.call.input_tokens or 0 for s in made)
    tokens_out = mean(s.call.output_tokens or 0 for s in made)
    return (dear.input_usd * tokens_in + dear.output_usd * tokens_out) / (
        cheap.input_usd * tokens_in + cheap.output_usd * tokens_out or float("inf")
    )


def _is_the_answer(step: str, calls: list[Seen]) -> bool:
    """True when the step's output goes to the user and no longer output does, in most requests."""
    shown = 0
    for seen in calls:
        if seen.call.span_id in seen.trace.shown:
            own = [c for c in seen.trace.calls if c.span_id in seen.trace.shown]
            shown += max(own, key=lambda c: c.output_tokens or 0).step == step
    return shown * 2 > len(calls)


def _faster_s(view: View, made: list[Seen], small: str) -> float | None:
    """Seconds a call gets faster, from the small model's short answers in this run; None when there are none."""
    short = [
        s.call.service_s
        for s in view.all_calls()
        if s.call.model == small and asked(s) and s.call.ok and (s.call.output_tokens or 0) <= MOST_OUTPUT_TOKENS
    ]
    return max(0.0, mean(s.call.service_s for s in made) - mean(short)) if short else None
