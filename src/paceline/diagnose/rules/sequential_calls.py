"""Calls that wait for each other although none needs the other's result.

Rule, per endpoint: of the steps that happen one after the other, those that could run at the same time because none
needs what the other gives, directly or through others (`flow`). From the dependencies follows the earliest time each
step could start; steps that would then overlap form a group, and a group is one finding. At least two of its steps
take 50 ms or more, and running them side by side saves at least 100 ms of an affected request or 5 % of the mean
response time. A step that makes several calls in a row which do not use each other is a group by itself.

The saving in one request is the time its group's calls spend on the critical path minus the longest chain of calls
that need each other; where the application already runs them in parallel that is nothing.

Thresholds: 50 ms and the idea of "sum minus what must stay" from Sentry's consecutive-calls detectors, which report
HTTP and SQL but leave LLM calls out; 100 ms is the least its database detector reports; 5 % is ours.

Assumptions: text that flows is seen, and a step nobody was seen to use feeds the answer. Wrong where a result only
steers (a label that decides whether to search at all): such outputs are short, so groups in which an earlier step's
unused output is short get a lower confidence, as do groups in which a step failed and so had no output to follow.
Provider limits are not considered: `project` says what is left of the saving under load.
"""

import math
from collections import defaultdict

from paceline.diagnose.flow import Flow, Step, flow_of, outermost
from paceline.diagnose.view import Seen, View, endpoint, evidence, median_of, surer, where
from paceline.model.change import Parallelise
from paceline.model.finding import Finding, Saving, Where
from paceline.model.span import EMBEDDING, LLM

RULE = "sequential_calls"
LEAST_STEP_S = 0.05
LEAST_SAVED_S = 0.1  # of an affected request
LEAST_SAVING = 0.05  # or of the mean response time
LEAST_SHARE = 0.05  # of requests
_STEERING_TOKENS = 20


def sequential_calls(view: View) -> list[Finding]:
    """One finding per group of steps that could run side by side."""
    if not view.knows_flow:
        return []
    by_endpoint: defaultdict[str, list[list[Seen]]] = defaultdict(list)
    for calls in view.calls:
        if calls:
            by_endpoint[endpoint(calls[0].trace) or ""].append(calls)
    found = []
    for _, requests in sorted(by_endpoint.items()):
        flow = flow_of(requests)
        outer = [outermost(calls) for calls in requests]
        groups = [*_groups(flow), *([name] for name, step in flow.steps.items() if _repeats(step))]
        found += [f for group in groups if (f := _finding(view, flow, group, outer))]
    return found


def _groups(flow: Flow) -> list[list[str]]:
    """Steps that would overlap if each began as soon as what it needs is there, as connected groups in order."""
    start: dict[str, float] = {}
    end: dict[str, float] = {}
    for name, step in flow.steps.items():
        start[name] = max((end[n] for n in step.needs if n in end), default=0.0)
        end[name] = start[name] + step.seconds
    groups: list[list[str]] = []
    for name in sorted(flow.steps, key=lambda n: (start[n], n)):
        # A hair's overlap is arithmetic, not parallelism.
        joined = [g for g in groups if any(start[name] + 1e-6 < end[o] and start[o] + 1e-6 < end[name] for o in g)]
        merged = [n for g in joined for n in g] + [name]
        groups = [g for g in groups if g not in joined] + [merged]
    order = list(flow.steps)
    return [sorted(g, key=order.index) for g in groups if len(g) > 1]


def _repeats(step: Step) -> bool:
    """True when most requests make several different calls in this step that do not use each other."""
    if len(step.calls) < 1.5 * step.requests:
        return False
    ids = {s.call.span_id for s in step.calls}
    chained = sum(bool(ids & set(s.call.uses)) for s in step.calls)
    hashes = {(s.trace.trace_id, s.call.prompt_hash or s.call.span_id) for s in step.calls}
    return chained <= LEAST_SHARE * len(step.calls) and len(hashes) >= 1.5 * step.requests


def _finding(view: View, flow: Flow, group: list[str], requests: list[list[Seen]]) -> Finding | None:
    savings: list[float] = []
    members: list[Seen] = []
    before = {name: flow.needs_all(name) & set(group) for name in group}
    for calls in requests:
        inside = [s for s in calls if s.call.step in before]
        saved_s = _saving_s(before, inside)
        if saved_s >= LEAST_STEP_S / 2:
            savings.append(saved_s)
            members += inside
    affected = len(savings)
    long = [n for n in group if flow.steps[n].seconds >= LEAST_STEP_S]
    saving_s = math.fsum(savings) / view.requests
    worth_it = affected and (math.fsum(savings) / affected >= LEAST_SAVED_S or saving_s >= LEAST_SAVING * view.mean_s)
    if affected < LEAST_SHARE * view.requests or not worth_it or not _is_wide(flow, long):
        return None
    chains = _chains(flow, group)
    lines = [" > ".join(chain) for chain in chains]
    title = f"{' and '.join(lines)} run one after the other although neither needs the other"
    if len(group) == 1:
        title = f"the calls of {group[0]} run one after the other although none needs another's result"
    facts: dict[str, float | int | str] = {"chains": " | ".join(lines)}
    facts |= {f"{name}_s": flow.steps[name].seconds for name in group}
    confidence, why = _confidence(flow, group)
    facts |= {"caution": why} if why else {}
    place = where(members) if len(group) == 1 else _where(flow, group, members)
    return Finding(
        rule=RULE,
        title=title,
        where=place,
        evidence=evidence(members, affected, len(view.traces), facts),
        critical_path_s=math.fsum(s.path_s for s in members) / affected,
        saving=Saving(latency_s=saving_s),
        confidence=surer(confidence, affected),
        remedy=f"Start {' | '.join(chain[0] for chain in chains)} together (asyncio.gather, or a thread each) and "
        "wait for all before the step that needs them."
        if len(group) > 1
        else f"Collect the calls of {group[0]} and await them together (asyncio.gather with a limit), or batch them.",
        change=Parallelise(steps=lines if len(group) > 1 else group),
    )


def _where(flow: Flow, group: list[str], members: list[Seen]) -> Where:
    first = where([s for s in members if s.call.step == group[0]] or members)
    endpoints = {endpoint(s.trace) for s in members}
    return Where(endpoint=endpoints.pop() if len(endpoints) == 1 else None, step=first.step, code=first.code)


def _saving_s(before: dict[str, set[str]], inside: list[Seen]) -> float:
    """Seconds one request would save: path time of the group's calls minus its longest chain.

    `before` names the group's steps in order, each with those of the group it needs.
    """
    seconds = dict.fromkeys(before, 0.0)
    spent_s = 0.0
    for seen in inside:
        step, duration_s = seen.call.step, (seen.call.end_ns - seen.call.start_ns) / 1e9
        seconds[step] = seconds[step] + duration_s if len(before) > 1 else max(seconds[step], duration_s)
        spent_s += seen.path_s
    length: dict[str, float] = {}
    for name, needs in before.items():
        length[name] = seconds[name] + max((length[n] for n in needs if n in length), default=0.0)
    return max(0.0, spent_s - max(length.values()))


def _is_wide(flow: Flow, long: list[str]) -> bool:
    """True when two long steps do not need each other, or one long step is repeated."""
    pairs = [(a, b) for i, a in enumerate(long) for b in long[i + 1 :]]
    return any(a not in flow.needs_all(b) and b not in flow.needs_all(a) for a, b in pairs) or (
        len(long) == 1 and _repeats(flow.steps[long[0]])
    )


def _chains(flow: Flow, group: list[str]) -> list[list[str]]:
    """The group as chains of steps that need each other, longest first in time where a step has several users."""
    chains: list[list[str]] = []
    for name in group:
        needs = flow.needs_all(name)
        chain = next((c for c in chains if c[-1] in needs), None)
        if chain is None:
            chains.append([name])
        else:
            chain.append(name)
    return chains


def _confidence(flow: Flow, group: list[str]) -> tuple[float, str | None]:
    pairs = [frozenset((a, b)) for i, a in enumerate(group) for b in group[i + 1 :]]
    if any(p in flow.reversed_pairs and not _related(flow, *sorted(p)) for p in pairs):
        return 0.95, None  # an order that is ever reversed is no dependency (Mystery Machine, OSDI '14)
    steps = [flow.steps[n] for n in group]
    failing = [s.name for s in steps if s.failed * 2 > len(s.calls)]
    if failing:
        return 0.6, f"{failing[0]} failed, so who uses its output could not be seen; taken to be the answer"
    for step in steps[:-1]:  # the last one steers nothing within the group
        tokens = median_of(s.call.output_tokens for s in step.calls)
        always = all(other.requests >= step.requests for other in steps)
        if step.kind == LLM and (tokens is None or tokens <= _STEERING_TOKENS):
            return (0.75 if always else 0.6), f"{step.name} gives a short output, which may decide what follows"
        if not step.seen_used and step.kind != EMBEDDING:
            return (0.75 if always else 0.6), f"nothing was seen to use the output of {step.name}"
    return 0.9, None


def _related(flow: Flow, a: str, b: str) -> bool:
    return a in flow.needs_all(b) or b in flow.needs_all(a)
