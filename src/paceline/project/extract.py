"""Extract: from the recording of a scenario to what the simulation needs to know of the application."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median, pvariance

from paceline.model.request import Request, ResourceSample
from paceline.model.span import CALLERS
from paceline.project.app import App, Asked, Load, PoolKey, Template, Work
from paceline.project.kept import kept_of
from paceline.project.limits import REFUSED, gave_up_on_limit, quotas_of, retries_of
from paceline.project.pace import paces_of, prefill_of
from paceline.project.refusal import Refusal
from paceline.project.structure import StepPair, independent_steps, leaf_calls, waits
from paceline.project.usage import APP, Usage, usage_of
from paceline.stats.quantiles import quantile
from paceline.trace.calls import SAVED, Call
from paceline.trace.data import RunData
from paceline.trace.figures import figures_of_traces
from paceline.trace.tree import Trace, build_traces

MIN_REQUESTS = 30
_TIMEOUT = "timeout"
_TAIL = ("", 0)  # the time after the last call, as a place

Place = tuple[str, int]  # step, and how many of it came before
_MIN_REPEATED = 10
_QUICKEST = 0.02  # share of the requests that met no queue, even on a busy processor
_MAX_LOST = 0.2  # share of requests without their trace: above, the recording is not whole


def extract(base: RunData, scenario: str) -> App:
    """What the baseline says about the application under this scenario.

    Raises:
        Refusal: too few requests, none answered without a cache, or too many without a trace.
        ValueError: the run has no such scenario.
    """
    data = base.scenario(scenario)
    assumptions: list[str] = []
    requests = sorted(data.requests, key=lambda r: r.index)
    if len(requests) < MIN_REQUESTS:
        msg = f"the baseline has {len(requests)} requests of scenario {scenario!r}; at least {MIN_REQUESTS} are needed"
        raise Refusal(msg)
    traces = build_traces(data.spans, requests)[: len(requests)]
    hits = _hits(traces)
    missed = [t for t, hit in zip(traces, hits, strict=True) if not hit]
    _check_whole(missed)
    leaves = [leaf_calls(t) for t in missed]
    calls = [c for of_request in leaves for c in of_request]
    failed = {c.span_id: not t.ok for t, of_request in zip(missed, leaves, strict=True) for c in of_request}
    attempted_s = [(a.start_ns - data.info.start_ns) / 1e9 for c in calls if c.to_provider for a in c.attempts]
    usage = usage_of(requests, hits, attempted_s, _samples(base, requests), assumptions, speed=data.info.speed)
    paces, unknown = paces_of(calls)
    assumptions += [
        f"what {m} takes per token is not in the recording; its calls keep their time" for m in sorted(unknown)
    ]
    recorder = _Recorder(data.info.start_ns, usage, independent_steps(leaves), paces)
    workers = _workers(traces, hits)
    templates = recorder.templates(missed, leaves)
    if workers is not None:
        templates = _without_queue(templates)
    if not templates:
        msg = "the baseline has no request that was answered without a cache; record one with a cold cache"
        raise Refusal(msg)
    return App(
        templates=templates,
        alike=_alike(templates),
        load=_load(data, scenario, requests),
        paces=paces,
        prefill_s=prefill_of(calls),
        quotas=quotas_of(data.spans, assumptions),
        queued=_queued(calls),
        retries=retries_of(calls, failed, assumptions),
        kept=kept_of(requests, hits),
        hits_s=[
            usage.beyond_cpu(r.service_s, usage.hit_cpu_s)
            for r, hit in zip(requests, hits, strict=True)
            if hit and r.ok and r.cache != "join" and not usage.is_busy
        ],
        hit_cpu_s=usage.hit_cpu_s,
        refused_cpu_s=usage.attempt_cpu_s,
        cores=usage.cores,
        slice_s=usage.slice_s,
        workers=workers,
        mb_per_request=usage.mb_per_request,
        measured=figures_of_traces(traces, data.resources),
        assumptions=assumptions,
    )


def _alike(templates: list[Template]) -> float:
    """How alike requests that ask the same are in length: 1 less the share of the spread of output tokens among them.

    Half, where too few questions were answered twice to tell.
    """
    lengths: dict[str, list[int]] = defaultdict(list)
    for template in templates:
        lengths[template.text_key].append(sum(w.output_tokens for w in template.works))
    repeated = [of_same for of_same in lengths.values() if len(of_same) > 1]
    freedom = sum(len(of_same) - 1 for of_same in repeated)
    everyone = [n for of_same in lengths.values() for n in of_same]
    spread = pvariance(everyone)
    if freedom < _MIN_REPEATED or spread == 0:
        return 0.5
    within = sum(pvariance(of_same) * len(of_same) for of_same in repeated) / freedom
    return max(0.0, 1 - within / spread)


def _samples(base: RunData, requests: list[Request]) -> list[ResourceSample]:
    """Samples of the application during the load, and the last one before it: what it takes when idle."""
    start_s, end_s = min(r.intended_s for r in requests), max(r.ended_s for r in requests)
    own = sorted((s for s in base.resources if s.service == APP), key=lambda s: s.at_s)
    before = [s for s in own if s.at_s < start_s]
    return before[-1:] + [s for s in own if start_s <= s.at_s <= end_s]


def _hits(traces: Sequence[Trace]) -> list[bool]:
    """Whether each request was answered from a cache: as its answer says, else because it made no call."""
    calling = any(t.calls for t in traces)
    found = []
    for trace in traces:
        cache = trace.request.cache if trace.request else None
        silent = cache is None and calling and trace.ok and trace.root is not None and not trace.calls
        found.append(cache in SAVED or silent)
    return found


def _check_whole(missed: list[Trace]) -> None:
    lost = sum(not t.spans for t in missed)
    if missed and lost > _MAX_LOST * len(missed):
        msg = f"{lost} of {len(missed)} requests not cached have no trace: the recording is damaged or partial"
        raise Refusal(msg)


class _Recorder:
    """Turns recorded requests into templates."""

    def __init__(
        self, start_ns: int, usage: Usage, independent: set[StepPair], paces: dict[PoolKey, list[tuple[float, float]]]
    ) -> None:
        self.start_ns = start_ns
        self.usage = usage
        self.independent = independent
        self.paces = paces

    def templates(self, traces: list[Trace], leaves: list[list[Call]]) -> list[Template]:
        """One for every complete request; those cut short by a limit or a time-out would play only half of it."""
        found = [self._template(t, c) for t, c in zip(traces, leaves, strict=True) if _complete(t, c)]
        return self._with_cpu(found)

    def _template(self, trace: Trace, calls: list[Call]) -> Template:
        request = trace.request
        assert request is not None  # noqa: S101 - traces here are those of requests
        sent_ns = self.start_ns + round(request.started_s * 1e9)
        answered_ns = self.start_ns + round(request.ended_s * 1e9)
        before = waits(calls, self.independent)
        position = {span_id: i for i, call in enumerate(calls) for span_id in call.span_ids}
        around = _functions_around(trace)
        works = []
        for call, after in zip(calls, before, strict=True):
            late = call.deferred and call.start_ns >= answered_ns - round(0.02 * (answered_ns - sent_ns))
            ready_ns = max((calls[j].end_ns for j in after), default=sent_ns)
            own_s = max(0.0, call.start_ns - (max(ready_ns, answered_ns) if late else ready_ns)) / 1e9
            works.append(self._work(call, own_s, after, late, position, around))
        last_ns = max((c.end_ns for c in calls if not c.deferred), default=sent_ns)
        return Template(
            key=request.key,
            text_key=request.text_key or request.key,
            works=tuple(works),
            tail_cpu_s=0.0,
            tail_delay_s=max(0.0, answered_ns - last_ns) / 1e9,
            ok=request.ok,
        )

    def _work(
        self,
        call: Call,
        own_s: float,
        after: tuple[int, ...],
        late: bool,
        position: dict[str, int],
        around: dict[str, frozenset[str]],
    ) -> Work:
        """The client's share of a call (request building, parsing the answer) is the application's own time too."""
        overhead_s = max(0.0, call.duration_s - call.wait_s - call.service_s)
        names = frozenset((call.step, call.step.partition(":")[0])).union(
            *(around.get(s, frozenset()) for s in call.span_ids)
        )
        to_provider = call.to_provider and call.model is not None and call.cache not in SAVED
        model = call.model if to_provider else None
        pool = (call.step, model) if model is not None else None
        gave_up = gave_up_on_limit(call)
        return Work(
            step=call.step,
            names=names,
            after=after,
            uses=frozenset(position[u] for u in call.uses if u in position),
            awaited=not call.deferred,
            after_answer=late,
            delay_s=own_s + overhead_s,
            fault_s=_fault_s(call),
            service_s=None if gave_up else call.service_s,
            model=model,
            pool=pool if (call.ok or gave_up) and pool in self.paces else None,
            input_tokens=call.input_tokens or 0,
            output_tokens=call.output_tokens or 0,
            cached_tokens=call.cached_tokens or 0,
            cost_usd=call.cost_usd,
            priced_as=_priced_as(call, model),
            prompt=call.prompt_hash,
        )

    def _with_cpu(self, templates: list[Template]) -> list[Template]:
        """Split the application's own time into processor time, where it can queue, and the rest.

        Each call to the provider takes what an attempt takes. What the resource samples say a request takes besides
        is told apart by place (a step's first call, its second, ...) in proportion to the own time of quick requests
        there beyond an attempt's: slow ones waited.
        """
        own_s: dict[Place, list[float]] = defaultdict(list)
        attempt_s: dict[Place, float] = defaultdict(float)
        for template in templates:
            for place, work in _places(template):
                own_s[place].append(work.delay_s)
                if work.model is not None:
                    attempt_s[place] = self.usage.attempt_cpu_s
            own_s[_TAIL].append(template.tail_delay_s)
        quick_s = {place: max(0.0, quantile(times, 0.1) - attempt_s[place]) for place, times in own_s.items()}
        total_s = sum(quick_s[place] * len(times) for place, times in own_s.items()) / max(1, len(templates))
        share = self.usage.request_cpu_s / total_s if total_s > 0 else 0.0
        cpu_s = {
            place: attempt_s[place] + min(share * quick_s[place], sum(times) / len(times))
            for place, times in own_s.items()
        }
        most_s = {place: self._most_delay_s(times, cpu_s[place]) for place, times in own_s.items()}

        def delay_s(place: Place, took_s: float) -> float:
            return min(self.usage.beyond_cpu(took_s, cpu_s[place]), most_s[place])

        def split(template: Template) -> Template:
            works = [replace(w, cpu_s=cpu_s[p], delay_s=delay_s(p, w.delay_s)) for p, w in _places(template)]
            tail_s = delay_s(_TAIL, template.tail_delay_s)
            return replace(template, works=tuple(works), tail_cpu_s=cpu_s[_TAIL], tail_delay_s=tail_s)

        return [split(t) for t in templates]

    def _most_delay_s(self, own_s: list[float], cpu_s: float) -> float:
        """With a busy processor slow own time is waiting for it: nobody's delay is longer than a quick request's."""
        if not self.usage.is_busy:
            return math.inf
        return max(0.0, quantile(own_s, _QUICKEST) - cpu_s)


def _places(template: Template) -> Iterator[tuple[Place, Work]]:
    """Each work with its step and how many of that step came before it."""
    seen: dict[str, int] = defaultdict(int)
    for work in template.works:
        yield (work.step, seen[work.step]), work
        seen[work.step] += 1


def _complete(trace: Trace, calls: list[Call]) -> bool:
    """True when the trace shows the whole request."""
    request = trace.request
    if request is None or not trace.spans or request.error == _TIMEOUT:
        return False
    return request.ok or not any(gave_up_on_limit(c) for c in calls)


def _fault_s(call: Call) -> float:
    """Seconds lost to failed attempts that were not refusals, until the next one began."""
    lost = [b.start_ns - a.start_ns for a, b in pairwise(call.attempts) if a.status != REFUSED]
    return sum(lost) / 1e9


def _priced_as(call: Call, model: str | None) -> tuple[str, int, int, int] | None:
    if model is None:
        return None
    return model, call.input_tokens or 0, call.output_tokens or 0, call.cached_tokens or 0


def _functions_around(trace: Trace) -> dict[str, frozenset[str]]:
    """For each span the names of the application's functions it was called through."""
    own = {}
    for span in trace.spans:
        callers = span.attributes.get(CALLERS)
        frames = callers if isinstance(callers, list) else []
        own[span.span_id] = frozenset(f.rsplit(" ", 1)[-1] for f in frames)
    return own


def _load(data: RunData, scenario: str, requests: list[Request]) -> Load:
    info = data.scenario_info(scenario)
    first_s = min(r.intended_s for r in requests)
    asked = [Asked(r.key, r.text_key or r.key, r.intended_s - first_s) for r in requests]
    if info is None or info.model != "closed":
        return Load(asked=asked, users=None, ramp_s=0.0, think_s=0.0, timeout_s=info.timeout_s if info else 120.0)
    users = info.users or len({r.user for r in requests})
    return Load(asked=asked, users=users, ramp_s=info.ramp_s, think_s=info.think_s, timeout_s=info.timeout_s)


def _queued(calls: Sequence[Call]) -> bool:
    """True when calls wait in the gateway rather than being refused."""
    waited = sum(bool(c.spans) and any(s.service == "gateway" and s.wait_ns > 1e6 for s in c.spans) for c in calls)
    refused = sum(a.status == 429 for c in calls for a in c.attempts)
    return waited > refused


def _without_queue(templates: list[Template]) -> list[Template]:
    """Time before the first work without the wait for a worker, which the simulation adds: a quick request's."""
    firsts = [w.delay_s for t in templates for w in t.works if not w.after and not w.after_answer]
    most_s = quantile(firsts, 0.1) if firsts else 0.0

    def started(work: Work) -> Work:
        first = not work.after and not work.after_answer
        return replace(work, delay_s=min(work.delay_s, most_s)) if first else work

    return [replace(t, works=tuple(started(w) for w in t.works)) for t in templates]


def _workers(traces: list[Trace], hits: list[bool]) -> int | None:
    """Requests worked on at once, where that never rose above a level it stayed at while others waited.

    A pool of threads shows as a plateau: requests in flight whose first call has not begun.
    """
    edges: list[tuple[int, int]] = []
    starts: list[float] = []
    for trace, hit in zip(traces, hits, strict=True):
        if hit or trace.request is None or not trace.calls:
            continue
        busy = [c for c in trace.calls if not c.deferred] or trace.calls
        begin, end = min(c.start_ns for c in busy), max(c.end_ns for c in busy)
        edges += [(begin, 1), (end, -1)]
        starts.append((begin - trace.window_ns[0]) / max(1, end - begin))
    if len(starts) < MIN_REQUESTS:
        return None
    level = most = 0
    at_level: dict[int, int] = {}
    edges.sort()
    for (at, step), (following, _) in zip(edges, edges[1:] + edges[-1:], strict=True):
        level += step
        most = max(most, level)
        at_level[level] = at_level.get(level, 0) + following - at
    total = max(1, edges[-1][0] - edges[0][0])
    full = sum(ns for at, ns in at_level.items() if at >= 0.9 * most)
    return most if full > 0.5 * total and median(starts) > 0.2 else None
