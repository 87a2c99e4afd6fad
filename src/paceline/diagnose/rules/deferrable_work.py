"""Work on the response path that could follow the answer.

Rule: at the end of a request, a call whose output is used neither by a call that stays on the path nor in the
response, and after which nothing starts but such calls; at least 50 ms on the critical path, in at least 5 % of
requests. Where in more than 2 % of its requests a needed call follows it, the step decides something and is left.

Thresholds: 50 ms as in Sentry's slow-span rules, below which moving work is not worth its complexity; shares ours.

Assumptions: what the answer needs of the call would be seen as its text in the response. Wrong when only a
conclusion of it is sent ("checked": true), or when it may stop the answer from being sent: outputs of up to 20 tokens
can steer what no text shows, and lower the confidence. Silent where the recorder did not see data flow. The saving is
the call's time on the critical path; the work and its cost remain.
"""

import math
from collections import defaultdict

from paceline.diagnose.view import Seen, View, evidence, median_of, surer, where
from paceline.model.change import Defer
from paceline.model.finding import Finding, Saving

RULE = "deferrable_work"
LEAST_S = 0.05
LEAST_SHARE = 0.05
MOST_FOLLOWED = 0.02
_STEERING_TOKENS = 20


def deferrable_work(view: View) -> list[Finding]:
    """One finding per step at the end of the path."""
    if not view.knows_flow:
        return []
    tails: defaultdict[str, list[Seen]] = defaultdict(list)
    elsewhere: defaultdict[str, int] = defaultdict(int)
    for calls in view.calls:
        tail = _tail(calls)
        for seen in calls:
            if seen.call.span_id in tail:
                tails[seen.call.step].append(seen)
            elif not seen.call.deferred:
                elsewhere[seen.call.step] += 1
    found = []
    for step, last in sorted(tails.items()):
        affected = len({s.trace.trace_id for s in last})
        path_s = math.fsum(s.path_s for s in last) / affected
        if path_s < LEAST_S or affected < LEAST_SHARE * len(view.traces):
            continue
        if elsewhere[step] <= MOST_FOLLOWED * (len(last) + elsewhere[step]):
            found.append(_finding(view, step, last, affected))
    return found


def _tail(calls: list[Seen]) -> set[str]:
    """Ids of the calls at the end whose output the answer does without."""
    if not calls or calls[0].trace.root is None or not calls[0].trace.ok:
        return set()
    needed = calls[0].trace.shown
    on_path = [s for s in calls if not s.call.deferred]
    tail: set[str] = set()
    for seen in sorted(on_path, key=lambda s: (s.call.start_ns, s.call.span_id), reverse=True):
        users = {s.call.span_id for s in on_path if seen.call.span_id in s.call.uses}
        if not seen.call.ok or seen.call.span_id in needed or users - tail:
            break
        tail.add(seen.call.span_id)
    # A request that used nothing of any call says nothing about what it needed.
    return tail if len(tail) < len(on_path) else set()


def _finding(view: View, step: str, seen: list[Seen], affected: int) -> Finding:
    path_s = math.fsum(s.path_s for s in seen)
    output = median_of(s.call.output_tokens for s in seen)
    steering = output is None or output <= _STEERING_TOKENS
    facts: dict[str, float | int | str] = {"on_path_ratio": path_s / affected / (view.mean_s or 1.0)}
    facts |= {"output_tokens_p50": output} if output is not None else {}
    if steering:
        facts["caution"] = "its output is short: whether it may change or stop the answer cannot be seen"
    return Finding(
        rule=RULE,
        title=f"the answer waits {path_s / affected:.2f} s for {step}, whose output it does not use",
        where=where(seen),
        evidence=evidence(seen, affected, len(view.traces), facts),
        critical_path_s=path_s / affected,
        saving=Saving(latency_s=path_s / view.requests),
        confidence=surer(0.7 if steering else 0.85, affected),
        remedy=f"Send the answer first and run {step} afterwards (a background task or a queue); where it may stop an "
        "answer, decide what to do when it says no too late.",
        change=Defer(step=step),
    )
