"""The very same call is made twice within one request.

Rule: two calls with the same prompt hash and model in one request, the first of which worked, in at least 5 % of
requests. Attempts of one logical call (retries) are no duplicates; answers from a cache cost nothing and don't count.

Thresholds: 5 % of requests, ours. Facts also tell the share of calls whose exact prompt occurs in several requests
of the run, with its cost: what a cache would spare.

Assumptions: the first answer would have served again. Wrong when the application samples on purpose (several
answers at a temperature, a vote): the prompts are equal then, too. The saving on the critical path is what the
repeats take there now; in a chain of calls nothing else moves into the gap.
"""

import math
from collections import Counter, defaultdict

from paceline.diagnose.view import Seen, View, asked, evidence, surer, where
from paceline.model.change import Remove
from paceline.model.finding import Finding, Saving

RULE = "duplicate_calls"
LEAST_SHARE = 0.05


def duplicate_calls(view: View) -> list[Finding]:
    """One finding per step that repeats itself."""
    repeats: defaultdict[str, list[Seen]] = defaultdict(list)
    for calls in view.calls:
        known: set[tuple[str, str | None]] = set()
        for seen in calls:
            call = seen.call
            if not call.to_provider or call.prompt_hash is None or not asked(seen):
                continue
            key = (call.prompt_hash, call.model)
            if key in known:
                repeats[call.step].append(seen)
            elif call.ok:
                known.add(key)
    found = []
    for step, again in sorted(repeats.items()):
        affected = len({s.trace.trace_id for s in again})
        if affected >= LEAST_SHARE * len(view.traces):
            found.append(_finding(view, step, again, affected))
    return found


def _finding(view: View, step: str, again: list[Seen], affected: int) -> Finding:
    costs = [s.call.cost_usd for s in again]
    path_s = math.fsum(s.path_s for s in again)
    facts: dict[str, float | int | str] = {"repeated_calls": len(again)} | _across_requests(view, step)
    if None in costs:
        facts["cost_unknown"] = costs.count(None)
    return Finding(
        rule=RULE,
        title=f"{step} asks the same thing again within {affected / view.requests:.0%} of requests",
        where=where(again),
        evidence=evidence(again, affected, len(view.traces), facts),
        critical_path_s=path_s / affected,
        saving=Saving(
            latency_s=path_s / view.requests,
            cost_per_1000_usd=view.per_1000(math.fsum(c for c in costs if c is not None)),
        ),
        confidence=surer(0.9, affected),
        remedy=f"Call {step} once per request and pass its result on; a cache or single-flight in front of the "
        "provider does the same without touching the code, and answers repeats of other requests as well.",
        change=Remove(step=step, repeats_only=True),
    )


def _across_requests(view: View, step: str) -> dict[str, float | int | str]:
    """How much of the step repeats prompts of other requests, first occurrences in the run left out."""
    made = [s for calls in view.calls for s in calls if s.call.step == step and s.call.prompt_hash and asked(s)]
    first_in = {(s.trace.trace_id, s.call.prompt_hash): s for s in reversed(made)}  # once per request
    total = Counter(key[1] for key in first_in)
    repeated = sum(total.values()) - len(total)
    cost = sum(s.call.cost_usd or 0.0 for s in first_in.values())
    share = repeated / len(first_in) if first_in else 0.0
    return {"same_prompt_in_other_requests_ratio": share, "its_cost_per_1000_usd": view.per_1000(cost * share)}
