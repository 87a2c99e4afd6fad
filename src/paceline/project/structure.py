"""Structure: which call of a request waited for which, from times alone."""

from collections import defaultdict
from collections.abc import Sequence

from paceline.trace.calls import Call
from paceline.trace.tree import Trace

_OVERLAP = 0.02  # of the shorter call: less is clock noise
_SEEN = 0.05  # of the requests: steps that overlap this often are not waiting for each other

StepPair = tuple[str, str]


def leaf_calls(trace: Trace) -> list[Call]:
    """The calls that do not merely contain other calls, in order of start."""
    owner = {span_id: call.span_id for call in trace.calls for span_id in call.span_ids}
    parents = {s.span_id: s.parent_id for s in trace.spans}
    containers: set[str] = set()
    for call in trace.calls:
        above = call.parent_id
        while above is not None:
            if above in owner and owner[above] != call.span_id:
                containers.add(owner[above])
            above = parents.get(above)
    return [c for c in trace.calls if c.span_id not in containers]


def independent_steps(requests: Sequence[Sequence[Call]]) -> set[StepPair]:
    """Pairs of different steps seen running at the same time: an order they also have elsewhere is chance.

    Source: Mystery Machine (OSDI'14): an order that is ever violated is no dependency.
    """
    together: dict[StepPair, int] = defaultdict(int)
    apart: dict[StepPair, int] = defaultdict(int)
    for calls in requests:
        longest_ns = max((c.end_ns - c.start_ns for c in calls), default=0)
        for i, later in enumerate(calls):
            for j in range(i - 1, -1, -1):
                earlier = calls[j]
                if i - j > 20 and earlier.start_ns + longest_ns < later.start_ns:
                    break
                if earlier.step != later.step:
                    pair = (earlier.step, later.step)
                    (apart if _precedes(earlier, later) else together)[pair] += 1
    pairs = {p for p, n in together.items() if n > _SEEN * (n + apart[p])}
    return pairs | {(b, a) for a, b in pairs}


def waits(calls: Sequence[Call], independent: set[StepPair]) -> list[tuple[int, ...]]:
    """For each call of one request the positions of those that ended last before it, and that it may wait for."""
    longest_ns = max((c.end_ns - c.start_ns for c in calls), default=0)

    def follows(later: Call, earlier: Call) -> bool:
        return _precedes(earlier, later) and (earlier.step, later.step) not in independent

    found: list[tuple[int, ...]] = []
    for i, call in enumerate(calls):
        before: list[int] = []
        for j in range(i - 1, -1, -1):
            gone = before and calls[j].start_ns + longest_ns < calls[before[0]].start_ns
            if gone and (not independent or i - j > 20):
                break  # this and all earlier ones ended before the latest one began
            if follows(call, calls[j]):
                before.append(j)
        direct = [j for j in before if not any(follows(calls[k], calls[j]) for k in before)]
        found.append(tuple(sorted(direct)))
    return found


def _precedes(earlier: Call, later: Call) -> bool:
    """True when `earlier` had ended as `later` began."""
    overlap_ns = earlier.end_ns - later.start_ns
    if overlap_ns <= 0:
        return True
    return overlap_ns <= _OVERLAP * min(earlier.end_ns - earlier.start_ns, later.end_ns - later.start_ns)
