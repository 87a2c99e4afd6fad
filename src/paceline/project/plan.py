"""Plan: the application with changes applied, ready to be simulated."""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from paceline.model.change import Batch, Cache, Change, Defer, Limit, Parallelise, Remove, Route, SpeedUp, Trim
from paceline.model.estimate import Range
from paceline.project import rewrite
from paceline.project.app import App, Kept, Pace, PoolKey, Quota, Template, Work
from paceline.project.limits import SDK_RETRIES, assumed_quota
from paceline.project.pace import MIN_CALLS, ModelPace
from paceline.project.refusal import Refusal

PROVIDER = "provider"
THREADS = "threads"
DEFAULT_HIT_S = Cache().hit_s


@dataclass(slots=True)
class Gate:
    """How calls to one model are let through."""

    quota: Quota | None = None
    queued: bool = False  # they wait in order; else they are refused and the application backs off
    size: int | None = None  # most at once


@dataclass(slots=True)
class Answers:
    """The cache of whole answers."""

    by_text: bool = False
    shared: bool = False
    hit_share: float = 1.0  # of the requests whose answer is kept
    hit_ratio: Range | None = None  # declared, instead of replaying keys
    warm: frozenset[str] = frozenset()
    hit_s: float | None = None  # None: as long as recorded hits took
    entries: int | None = None
    ttl_s: float | None = None


@dataclass(slots=True)
class Plan:
    """Everything one simulated run needs, apart from its random numbers."""

    app: App
    templates: list[Template]
    changes: list[Change]
    paces: dict[PoolKey, list[Pace]]
    gates: dict[str, Gate]
    answers: Answers | None
    workers: int | None
    workers_hits: bool  # cached answers need a worker too
    step_caches: dict[int, Cache] = field(default_factory=dict)  # by position of the change
    memory_ratios: list[Range] = field(default_factory=list)
    cpu_ratios: list[Range] = field(default_factory=list)
    batches: dict[int, int] = field(default_factory=dict)  # size, by position of the change
    shared_prompts: frozenset[str] = frozenset()  # sent for different questions
    changing_steps: frozenset[str] = frozenset()  # their prompts differ though the question is the same
    assumptions: list[str] = field(default_factory=list)


def plan_of(app: App, changes: Sequence[Change], models: Mapping[str, ModelPace]) -> Plan:
    """The plan for these changes, applied in order.

    Raises:
        Refusal: a step or resource is not in the baseline, or a model's pace is not known.
    """
    plan = Plan(
        app=app,
        templates=app.templates,
        changes=list(changes),
        paces=dict(app.paces),
        gates={w.model: Gate(app.quotas.get(w.model), app.queued) for t in app.templates for w in t.works if w.model},
        answers=_recorded_answers(app.kept),
        workers=app.workers,
        workers_hits=app.workers is not None,
        shared_prompts=_shared_prompts(app),
        changing_steps=_changing_steps(app),
        assumptions=list(app.assumptions),
    )
    for position, change in enumerate(changes):
        _APPLY[type(change)](plan, change, position, models)
    _say_guesses(plan, changes)
    return plan


def _recorded_answers(kept: Kept | None) -> Answers | None:
    if kept is None:
        return None
    return Answers(by_text=kept.by_text, shared=kept.shares_flights, hit_share=kept.hit_share, warm=kept.warm)


def _shared_prompts(app: App) -> frozenset[str]:
    """Prompts sent for different questions, such as one that names the intent only."""
    askers: dict[str, set[str]] = defaultdict(set)
    for template in app.templates:
        for work in template.works:
            if work.prompt:
                askers[work.prompt].add(template.text_key)
    return frozenset(p for p, keys in askers.items() if len(keys) > 1)


def _changing_steps(app: App) -> frozenset[str]:
    """Steps whose prompt mostly differs when the same is asked again: it holds the conversation, a date, an id."""
    prompts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for template in app.templates:
        first = {w.step: w.prompt for w in reversed(template.works) if w.prompt}
        for step, prompt in first.items():
            prompts[step, template.text_key].append(prompt)
    again: dict[str, list[bool]] = defaultdict(list)
    for (step, _), sent in prompts.items():
        again[step] += [prompt != sent[0] for prompt in sent[1:]]
    return frozenset(step for step, differs in again.items() if 2 * sum(differs) > len(differs))


def _known(plan: Plan, name: str) -> None:
    names = plan.app.names
    if name not in names:
        msg = f"no step named {name!r} in the baseline; it has: {', '.join(names) or 'none'}"
        raise Refusal(msg)


def _each(plan: Plan, edit: Callable[[tuple[Work, ...]], Sequence[Work]]) -> None:
    """Rewrite the works of every template."""
    plan.templates = [rewrite.with_works(t, edit(t.works)) for t in plan.templates]


def _parallelise(plan: Plan, change: Parallelise, position: int, models: Mapping[str, ModelPace]) -> None:
    branches = [[name.strip() for name in step.split(">")] for step in change.steps]
    for name in (n for branch in branches for n in branch):
        _known(plan, name)
    used = rewrite.used_steps(plan.templates)
    _each(plan, lambda works: rewrite.parallel(works, branches, used))


def _cache(plan: Plan, change: Cache, position: int, models: Mapping[str, ModelPace]) -> None:
    if change.key not in ("exact", "text"):
        msg = f"a cache key is exact or text; got {change.key!r}"
        raise Refusal(msg)
    if change.step is not None:
        step = change.step
        _known(plan, step)
        plan.step_caches[position] = change
        _each(plan, lambda works: rewrite.scaled(works, step, position))
        return
    kept = plan.app.kept
    by_text = change.key == "text"
    warm = kept.warm if kept else frozenset()
    if by_text and kept and not kept.by_text:
        warm = frozenset(a.text_key for a in plan.app.load.asked if a.key in kept.warm)
    own = plan.app.hits_s and change.hit_s == DEFAULT_HIT_S
    plan.answers = Answers(
        by_text=by_text,
        shared=change.shared_in_flight,
        hit_ratio=change.hit_ratio,
        warm=warm,
        hit_s=None if own else change.hit_s,
        entries=change.entries,
        ttl_s=change.ttl_s,
    )


def _speed_up(plan: Plan, change: SpeedUp, position: int, models: Mapping[str, ModelPace]) -> None:
    if change.factor.low <= 0:
        msg = f"speed_up of {change.step} needs a factor above 0; got {change.factor.low:g}"
        raise Refusal(msg)
    _known(plan, change.step)
    _each(plan, lambda works: rewrite.scaled(works, change.step, position))


def _trim(plan: Plan, change: Trim, position: int, models: Mapping[str, ModelPace]) -> None:
    if min(change.input_ratio.low, change.output_ratio.low) < 0:
        msg = f"trim of {change.step} needs ratios of 0 or above"
        raise Refusal(msg)
    _known(plan, change.step)
    _each(plan, lambda works: rewrite.scaled(works, change.step, position))


def _batch(plan: Plan, change: Batch, position: int, models: Mapping[str, ModelPace]) -> None:
    if change.size < 1:
        msg = f"batch of {change.step} needs a size of at least 1; got {change.size}"
        raise Refusal(msg)
    _known(plan, change.step)
    if any(sum(change.step in w.names for w in t.works) > 1 for t in plan.templates):
        _each(plan, lambda works: rewrite.batched(works, change.step, change.size))
    else:
        plan.batches[position] = change.size
        _each(plan, lambda works: rewrite.scaled(works, change.step, position))


def _remove(plan: Plan, change: Remove, position: int, models: Mapping[str, ModelPace]) -> None:
    _known(plan, change.step)
    _each(plan, lambda works: rewrite.without(works, change.step, keep_first=change.repeats_only))


def _defer(plan: Plan, change: Defer, position: int, models: Mapping[str, ModelPace]) -> None:
    _known(plan, change.step)
    used = rewrite.used_steps(plan.templates)
    deferred = {w.step for t in plan.templates for w in t.works if change.step in w.names}
    for user, source in sorted(used):
        if source in deferred and user not in deferred:
            plan.assumptions.append(f"{user} is taken to do without the output of {source}, which now comes later")
    _each(plan, lambda works: rewrite.deferred(works, change.step))


def _limit(plan: Plan, change: Limit, position: int, models: Mapping[str, ModelPace]) -> None:
    if change.size is not None and change.size < 1:
        msg = f"limit of {change.resource} needs a size of at least 1; got {change.size}"
        raise Refusal(msg)
    if min(change.memory_ratio.low, change.cpu_ratio.low) < 0:
        msg = f"limit of {change.resource} needs ratios of 0 or above"
        raise Refusal(msg)
    plan.memory_ratios.append(change.memory_ratio)
    plan.cpu_ratios.append(change.cpu_ratio)
    if change.resource == THREADS:
        plan.workers = change.size  # None: as many as there are requests, which is what an event loop allows
        plan.workers_hits = False
        return
    kind, _, model = change.resource.partition(":")
    if kind != PROVIDER or (model and model not in plan.gates):
        known = ", ".join([PROVIDER, THREADS, *(f"{PROVIDER}:{m}" for m in sorted(plan.gates))])
        msg = f"no resource named {change.resource!r} in the baseline; it has: {known}"
        raise Refusal(msg)
    for name in [model] if model else list(plan.gates):
        gate = plan.gates[name]
        plan.gates[name] = Gate(gate.quota, change.queued, change.size or gate.size)


def _route(plan: Plan, change: Route, position: int, models: Mapping[str, ModelPace]) -> None:
    _known(plan, change.step)
    steps = {w.step for t in plan.templates for w in t.works if change.step in w.names and w.model}
    if not steps:
        msg = f"{change.step} makes no model calls in the baseline, so it cannot be routed to {change.model}"
        raise Refusal(msg)
    recorded = [p for (_, m), paces in plan.app.paces.items() if m == change.model for p in paces]
    given = models.get(change.model)
    if len(recorded) >= MIN_CALLS:
        draws = recorded
    elif given is not None:
        draws = given.draws(random.Random(f"pace:{change.model}"))
        plan.assumptions.append(f"the pace of {change.model} was given, not recorded in the baseline")
    else:
        msg = f"the pace of {change.model} is not known: the baseline has no calls to it; probe it or give its pace"
        raise Refusal(msg)
    for step in steps:
        plan.paces[step, change.model] = draws
    if change.model not in plan.gates:
        plan.gates[change.model] = Gate(_quota_of(plan, change.model, given), _provider_queued(plan))
    _each(plan, lambda works: rewrite.routed(works, change.step, change.model))


def _quota_of(plan: Plan, model: str, given: ModelPace | None) -> Quota | None:
    quota = plan.app.quotas.get(model)
    if quota is None and given is not None:
        quota = assumed_quota(given.requests_per_min, given.tokens_per_min)
        if quota is not None:
            plan.assumptions.append(f"{model} is taken to allow bursts of a tenth of its limits per minute")
    if quota is None:
        plan.assumptions.append(f"no rate limit is known for {model}; none is taken")
    return quota


def _provider_queued(plan: Plan) -> bool:
    """True when a limit on the whole provider was set before: it holds for a model that comes later too."""
    limits = [c for c in plan.changes if isinstance(c, Limit) and c.resource == PROVIDER]
    return limits[-1].queued if limits else plan.app.queued


_APPLY: dict[type, Callable[..., None]] = {
    Parallelise: _parallelise,
    Cache: _cache,
    SpeedUp: _speed_up,
    Trim: _trim,
    Batch: _batch,
    Remove: _remove,
    Defer: _defer,
    Limit: _limit,
    Route: _route,
}


def _say_guesses(plan: Plan, changes: Sequence[Change]) -> None:
    """Add a sentence for every number somebody declared rather than the baseline showed."""
    ratios: dict[str, list[str]] = defaultdict(list)
    for change in changes:
        match change:
            case Trim(step=step, input_ratio=inp, output_ratio=out):
                for name, r in (("input", inp), ("output", out)):
                    if (r.low, r.high) != (1.0, 1.0):
                        ratios[step].append(f"{name} tokens x {_range(r)}")
            case SpeedUp(step=step, factor=factor):
                ratios[step].append(f"{_range(factor)} times faster")
            case Cache(step=step, hit_ratio=Range() as ratio):
                ratios[step or "answers"].append(f"hit ratio {_range(ratio)}")
            case Limit(resource=resource, memory_ratio=memory, cpu_ratio=cpu):
                for name, r in (("memory", memory), ("processor time", cpu)):
                    if (r.low, r.high) != (1.0, 1.0):
                        ratios[resource].append(f"{name} per request x {_range(r)}")
            case _:
                pass
    plan.assumptions += [f"{step}: {'; '.join(parts)}, as declared" for step, parts in ratios.items()]
    if plan.app.retries is SDK_RETRIES and any(g.quota and not g.queued for g in plan.gates.values()):
        plan.assumptions.append("no refusal was recorded: retries are taken to be those of the SDKs")
    plan.assumptions = list(dict.fromkeys(plan.assumptions))


def _range(r: Range) -> str:
    return f"{r.low:g}" if r.low == r.high else f"{r.low:g} to {r.high:g}"
