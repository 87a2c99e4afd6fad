"""Flow: which steps of an endpoint need which, seen over all its requests.

A step needs another when the recorder saw the one's output in the other's input. On top of that, what no text shows:
- the first store call after an embedding needs it (a vector has no other use);
- all calls of a step count as one (that it repeats itself is another rule's finding);
- a look into a cache decides whether the rest is done at all, so all that follows needs it;
- a step whose output stands in the response itself is used by that, and by no later step unless one was seen to;
- a step whose output nobody was seen to use (it failed, or it only steers) is taken to be needed by the step that
  writes the answer, if that comes later, and to need everything before it otherwise.

Timing says nothing here: of two steps that always follow each other, only the data tells whether they have to.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from paceline.diagnose.view import Seen, mean
from paceline.model.span import CACHE, EMBEDDING
from paceline.trace.calls import STORE_KINDS

LEAST_SHARE = 0.05  # of the requests in which both occur; fewer sightings of a use are chance likeness of words
_OVERLAP_NS = 1_000_000  # less is jitter
_PRESENT = 0.2  # of the endpoint's requests; rarer steps are left out


@dataclass(slots=True)
class Step:
    """One step of an endpoint, over all requests in which it took place."""

    name: str
    kind: str
    calls: list[Seen] = field(default_factory=list)
    requests: int = 0
    duration_ns: int = 0  # of all its calls together
    needs: set[str] = field(default_factory=set)
    seen_used: bool = False  # its output was seen somewhere later
    failed: int = 0  # calls that gave no output

    @property
    def seconds(self) -> float:
        """Mean time per request in which it took place, all its calls together."""
        return self.duration_ns / 1e9 / max(1, self.requests)


@dataclass(slots=True)
class Flow:
    """The steps of an endpoint in their usual order, each with what it needs."""

    steps: dict[str, Step]
    reversed_pairs: set[frozenset[str]]  # seen in both orders, or overlapping: certainly independent

    def needs_all(self, name: str) -> set[str]:
        """What a step needs, directly or through others."""
        found: set[str] = set()
        todo = [name]
        while todo:
            for needed in self.steps[todo.pop()].needs - found:
                found.add(needed)
                todo.append(needed)
        return found


class _Sightings:
    """What is collected request by request."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}
        self.uses: defaultdict[tuple[str, str], int] = defaultdict(int)  # (user, used): requests
        self.orders: defaultdict[tuple[str, str], int] = defaultdict(int)  # (earlier, later): requests
        self.written: defaultdict[str, int] = defaultdict(int)  # output tokens that the response shows
        self.positions: defaultdict[str, list[float]] = defaultdict(list)

    def see(self, calls: list[Seen]) -> None:
        """Take in the calls of one request, in order of start."""
        step_of = {s.call.span_id: s.call.step for s in calls}
        shown = calls[0].trace.shown if calls else frozenset()
        pairs: set[tuple[str, str]] = set()
        ends: dict[str, int] = {}  # steps so far, with the end of their last call
        orders: set[tuple[str, str]] = set()
        embedded: str | None = None
        for index, seen in enumerate(calls):
            call, name = seen.call, seen.call.step
            step = self.steps.setdefault(name, Step(name, call.kind))
            step.calls.append(seen)
            step.duration_ns += call.end_ns - call.start_ns
            step.failed += not call.ok
            if name not in ends:
                step.requests += 1
                self.positions[name].append(index)
                orders |= {(earlier, name) for earlier in ends}
                orders |= {(name, earlier) for earlier, end_ns in ends.items() if end_ns > call.start_ns + _OVERLAP_NS}
            pairs |= {(name, step_of[u]) for u in call.uses if u in step_of}
            if call.kind in STORE_KINDS and embedded is not None:
                pairs.add((name, embedded))
                embedded = None
            if call.kind == EMBEDDING and call.ok:
                embedded = name
            if call.span_id in shown:
                self.written[name] += call.output_tokens or 0
            ends[name] = max(call.end_ns, ends.get(name, 0))
        for user, used in pairs:
            self.uses[user, used] += user != used
        for pair in orders:
            self.orders[pair] += 1


def flow_of(requests: list[list[Seen]]) -> Flow:
    """The flow of one endpoint from the calls of its requests, calls inside others and after the answer left out."""
    seen = _Sightings()
    for calls in requests:
        seen.see(outermost(calls))
    steps = {n: s for n, s in seen.steps.items() if s.requests >= _PRESENT * len(requests)}
    order = sorted(steps, key=lambda n: (mean(seen.positions[n]), n))
    for (user, used), count in sorted(seen.uses.items()):
        if user in steps and used in steps and count >= LEAST_SHARE * min(steps[user].requests, steps[used].requests):
            steps[user].needs.add(used)
            steps[used].seen_used = True
    writers = [n for n in order if n in seen.written]
    answer = max(writers, key=lambda n: seen.written[n], default=order[-1] if order else "")
    _assume(steps, order, answer, set(writers))
    both = {frozenset(pair) for pair in seen.orders if (pair[1], pair[0]) in seen.orders}
    return Flow({name: steps[name] for name in order}, both)


def outermost(calls: list[Seen]) -> list[Seen]:
    """Calls on the response path that are not part of another call."""
    return [s for s in calls if not s.call.deferred and s.call.parent_id not in s.trace.owner]


def _assume(steps: dict[str, Step], order: list[str], answer: str, writers: set[str]) -> None:
    """Add what no text shows; see the module's docstring."""
    place = {name: index for index, name in enumerate(order)}
    for name in order:
        if steps[name].kind == CACHE:
            steps[name].needs.update(order[: place[name]])
            for later in order[place[name] + 1 :]:
                steps[later].needs.add(name)
    for name in order:
        step = steps[name]
        needed_later = any(name in other.needs for other in steps.values())
        if needed_later or name in writers or name == answer:
            continue
        if answer in place and place[name] < place[answer]:
            if name not in steps[answer].needs:
                steps[answer].needs.add(name)
        else:
            step.needs.update(order[: place[name]])
