"""Rewrite: changes to the order and content of a recorded request's works. Pure; positions are kept consistent."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from paceline.project.app import Template, Work

_USED_SHARE = 0.1  # of the requests that have both steps: the output of one is taken to be needed by the other

Uses = set[tuple[str, str]]  # a step, and another whose output it needs


def with_works(template: Template, works: Sequence[Work]) -> Template:
    """The template with other works."""
    return template if works is template.works else replace(template, works=tuple(works))


def used_steps(templates: Sequence[Template]) -> Uses:
    """Pairs of steps of which the first needs the output of the second, seen over all requests."""
    both: dict[tuple[str, str], int] = defaultdict(int)
    used: dict[tuple[str, str], int] = defaultdict(int)
    for template in templates:
        pairs = {(w.step, template.works[j].step) for w in template.works for j in w.uses if j < len(template.works)}
        for pair in pairs:
            used[pair] += 1
        steps = [w.step for w in template.works]
        for pair in {(b, a) for i, b in enumerate(steps) for a in steps[:i]}:
            both[pair] += 1
    return {pair for pair, n in used.items() if n >= _USED_SHARE * both[pair] and pair[0] != pair[1]}


def scaled(works: Sequence[Work], name: str, position: int) -> list[Work]:
    """Let the change at `position` act on the works called `name`."""
    return [replace(w, scaled_by=(*w.scaled_by, position)) if name in w.names else w for w in works]


def routed(works: Sequence[Work], name: str, model: str) -> list[Work]:
    """Send the model calls of `name` to another model."""

    def sent(work: Work) -> Work:
        return replace(work, model=model, pool=(work.step, model)) if name in work.names and work.model else work

    return [sent(w) for w in works]


def without(works: Sequence[Work], name: str, *, keep_first: bool = False) -> list[Work]:
    """Leave out the works called `name`; what waited for them waits for what they waited for."""
    gone = [i for i, w in enumerate(works) if name in w.names]
    return _spliced(works, set(gone[1:] if keep_first else gone))


def deferred(works: Sequence[Work], name: str) -> list[Work]:
    """Start the works called `name` when the answer is sent, in their own order; nobody waits for them any more."""
    late = {i for i, w in enumerate(works) if name in w.names}
    if not late:
        return list(works)
    before = ancestors(works)
    direct = _bridged(works, late)
    kept = []
    for i, work in enumerate(works):
        if i not in late:
            kept.append(replace(work, after=direct[i]))
        else:
            own = {j for j in before[i] if j in late}
            kept.append(replace(work, after=_direct(own, before), awaited=False, after_answer=True))
    return kept


def parallel(works: Sequence[Work], branches: Sequence[Sequence[str]], used: Uses) -> list[Work]:
    """Start the branches together.

    Each branch is a list of names whose works keep their recorded order among themselves; with a single branch of
    one name, each work is a branch of its own. A work still waits for what its input needs (`used`). What came
    after any of them waits as before.
    """
    branch_of: dict[int, int] = {}
    for i, work in enumerate(works):
        for number, names in enumerate(branches):
            if i not in branch_of and any(n in work.names for n in names):
                branch_of[i] = i if len(branches) == 1 and len(names) == 1 else number
    if len(set(branch_of.values())) < 2:
        return list(works)
    before = ancestors(works)
    common = set.intersection(*(before[i] for i in branch_of)) - branch_of.keys()
    changed = list(before)
    for i, branch in branch_of.items():
        same = {j for j in before[i] if branch_of.get(j) == branch}
        needed = {j for j in before[i] if j in works[i].uses or (works[i].step, works[j].step) in used}
        changed[i] = common | same | needed
    for i in range(len(works)):  # needs of needs; works are in order of start
        changed[i] = changed[i].union(*(changed[j] for j in changed[i]))
    return [replace(w, after=_direct(changed[i], changed)) for i, w in enumerate(works)]


def batched(works: Sequence[Work], name: str, size: int) -> list[Work]:
    """Merge the works called `name` of one request, `size` at a time, into one call with all their tokens."""
    members = [i for i, w in enumerate(works) if name in w.names and w.model]
    groups = [members[k : k + size] for k in range(0, len(members), size)]
    merged = list(works)
    for first, *rest in groups:
        for j in rest:
            merged[first] = _merged(merged[first], works[j])
    return _spliced(merged, {j for group in groups for j in group[1:]}, {j: g[0] for g in groups for j in g[1:]})


def ancestors(works: Sequence[Work]) -> list[set[int]]:
    """Everything each work waits for, directly or not. Works come in order of start, so one pass does."""
    found: list[set[int]] = []
    for work in works:
        found.append(set(work.after).union(*(found[j] for j in work.after)))
    return found


def _direct(waited: set[int], before: Sequence[set[int]]) -> tuple[int, ...]:
    """Those of `waited` that no other of them waits for."""
    return tuple(sorted(waited.difference(*(before[j] for j in waited))))


def _bridged(works: Sequence[Work], gone: set[int]) -> list[tuple[int, ...]]:
    """What each work waits for directly once `gone` are not in the way."""
    before = ancestors(works)
    kept = [waited - gone for waited in before]
    return [_direct(waited, kept) for waited in kept]


def _spliced(works: Sequence[Work], gone: set[int], instead: dict[int, int] | None = None) -> list[Work]:
    """Leave out `gone`, renumbering; `instead` names the position that now stands for one that is gone."""
    if not gone:
        return list(works)
    instead = instead or {}
    direct = _bridged(works, gone)
    place = {i: new for new, i in enumerate(i for i in range(len(works)) if i not in gone)}
    before = ancestors(works)

    def moved(i: int, work: Work) -> Work:
        stand_ins = {instead[j] for j in before[i] & instead.keys()} - {i}
        after = sorted({place[j] for j in (*direct[i], *stand_ins)})
        uses = frozenset(place[instead.get(j, j)] for j in work.uses if instead.get(j, j) in place)
        return replace(work, after=tuple(after), uses=uses)

    return [moved(i, w) for i, w in enumerate(works) if i not in gone]


def _merged(first: Work, other: Work) -> Work:
    """One call that does the work of two."""
    cost = None if first.cost_usd is None or other.cost_usd is None else first.cost_usd + other.cost_usd
    tokens = first.input_tokens + other.input_tokens, first.output_tokens + other.output_tokens
    cached = first.cached_tokens + other.cached_tokens
    return replace(
        first,
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        cached_tokens=cached,
        cost_usd=cost,
        priced_as=(first.model, *tokens, cached) if first.model else None,
        prompt=None,
        cpu_s=first.cpu_s + other.cpu_s,
    )
