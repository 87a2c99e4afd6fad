"""A true system with known switches, in virtual time: what projections are judged against.

Written on SimPy and independent of paceline.project, so that an error in one is not an error in both. The processor is
shared in slices of 5 ms like CPython's lock, the provider's limits are GCRA, the gateway holds calls under a lock.
Each run is written down as the recorder and the gateway would: requests, spans, resource samples.
"""

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import simpy

from paceline.model.price import price_of
from paceline.model.request import Request, ResourceSample
from paceline.model.run import RunInfo, ScenarioInfo
from paceline.model.span import (
    CALLERS,
    EMBEDDING,
    HTTP_STATUS,
    LIMIT_REQUESTS_PER_MIN,
    LIMIT_TOKENS_PER_MIN,
    LLM,
    PROMPT_HASH,
    TTFT_S,
    USES,
    Span,
)
from paceline.trace.data import RunData

START_NS = 1_700_000_000_000_000_000
SLICE_S = 0.005
STRONG, SMALL, EMBED = "gpt-4o", "gpt-4o-mini", "text-embedding-3-small"
Process = Generator[Any, Any, Any]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A provider's model. `ttft_sigma` is that of a log-normal; limits are per minute, None: none."""

    name: str
    ttft_s: float
    ttft_sigma: float
    gap_s: float
    requests_per_min: float | None = None
    tokens_per_min: float | None = None
    burst_share: float = 0.1
    prefill_s: float = 0.0  # per input token


@dataclass(frozen=True, kw_only=True)
class World:
    """The true application and its load. Switches are what roadmap phases change."""

    name: str
    users: int | None
    requests: int
    rate_per_s: float = 0.0
    ramp_s: float = 10.0
    questions: int = 150
    zipf_s: float = 0.9
    models: tuple[Model, ...]
    charge: Callable[[int, int], int] = lambda inp, out: inp + out  # tokens counted against the limit
    cpu_call_s: float = 0.004
    cpu_request_s: float = 0.008
    hit_cpu_s: float = 0.0012
    agents: int = 0  # independent calls in a row, for applications of another shape
    cached: bool = True
    # Switches.
    retrieval: bool = False
    parallel: bool = False
    once: bool = False
    routed: bool = False
    deferred: bool = False
    queued: bool = False
    trimmed: bool = False
    event_loop: bool = False
    text_cache: bool = False
    single_flight: bool = False

    def with_switches(self, *names: str) -> "World":
        switches: dict[str, Any] = dict.fromkeys(names, True)
        return replace(self, **switches)


class Limiter:
    """GCRA: the time at which an empty bucket would have refilled to what was taken."""

    def __init__(self, per_min: float, burst: float) -> None:
        self.cost_s = 60 / per_min
        self.slack_s = burst * self.cost_s
        self.full_at_s = 0.0

    def wait_s(self, now_s: float, amount: float) -> float:
        amount_s = min(amount * self.cost_s, self.slack_s)
        return max(0.0, max(self.full_at_s, now_s) + amount_s - self.slack_s - now_s - 1e-9)

    def take(self, now_s: float, amount: float) -> None:
        self.full_at_s = max(self.full_at_s, now_s) + min(amount * self.cost_s, self.slack_s)


class Provider:
    """Answers or refuses; latencies are drawn afresh for every call."""

    def __init__(self, env: simpy.Environment, world: World, rng: random.Random) -> None:
        self.env, self.world, self.rng = env, world, rng
        self.models = {m.name: m for m in world.models}
        self.limits: dict[str, list[tuple[Limiter, bool]]] = {}
        for m in world.models:
            limits = []
            if m.requests_per_min:
                limits.append((Limiter(m.requests_per_min, max(1, m.requests_per_min * m.burst_share)), False))
            if m.tokens_per_min:
                limits.append((Limiter(m.tokens_per_min, m.tokens_per_min * m.burst_share), True))
            self.limits[m.name] = limits

    def retry_after_s(self, model: str, inp: int, out: int) -> float:
        """0 when the call is taken."""
        tokens = self.world.charge(inp, out)
        now = self.env.now
        wait_s = max((lim.wait_s(now, tokens if by else 1) for lim, by in self.limits[model]), default=0.0)
        if wait_s == 0:
            for limiter, by_tokens in self.limits[model]:
                limiter.take(now, tokens if by_tokens else 1)
        return wait_s

    def latency(self, model: str, inp: int, out: int) -> tuple[float, float]:
        m = self.models[model]
        ttft_s = m.ttft_s * math.exp(self.rng.gauss(0, m.ttft_sigma)) + m.prefill_s * inp
        gap_s = m.gap_s * math.exp(self.rng.gauss(0, 0.15))
        return ttft_s, ttft_s + gap_s * max(0, out - 1)


@dataclass
class Recording:
    """What the recorder would have kept."""

    spans: list[Span] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    resources: list[ResourceSample] = field(default_factory=list)
    ids: Any = field(default_factory=lambda: itertools.count(1))

    def span(self, **fields: Any) -> Span:
        span = Span(span_id=f"{next(self.ids):016x}", name=fields["kind"], **fields)
        self.spans.append(span)
        return span


def _ns(seconds: float) -> int:
    return START_NS + round(seconds * 1e9)


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class System:
    """One run of the true system."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.seed = world, seed
        self.rng = random.Random(f"{world.name}:{seed}")
        self.env = simpy.Environment()
        self.provider = Provider(self.env, world, self.rng)
        self.cpu = simpy.Resource(self.env, 1)
        self.held = {m.name: simpy.Resource(self.env, 1) for m in world.models}
        self.rec = Recording()
        self.cpu_s = 0.0
        self.in_flight = 0
        self.peak_mb = 0.0
        self.cache: dict[str, bool] = {}
        self.flights: dict[str, simpy.Event] = {}
        self.finished = False
        self.left = world.requests

    def run(self) -> RunData:
        world = self.world
        asked = self._sequence()
        if world.users:
            queue = iter(asked)
            for user in range(world.users):
                self.env.process(self._user(queue, user, world.ramp_s * user / world.users))
        else:
            self.env.process(self._arrivals(asked))
        self.env.process(self._sampler())
        self.env.run()
        end_s = max(r.ended_s for r in self.rec.requests)
        scenario = ScenarioInfo(
            name="main",
            model="closed" if world.users else "open",
            users=world.users,
            ramp_s=world.ramp_s if world.users else 0.0,
            rate_per_s=None if world.users else world.rate_per_s,
            requests=world.requests,
            ended_s=end_s,
        )
        info = RunInfo(id=world.name, name=world.name, paceline="0", start_ns=START_NS, scenarios=[scenario])
        return RunData(info, self.rec.requests, self.rec.spans, self.rec.resources)

    def _sequence(self) -> list[tuple[int, int, int]]:
        """Question, wording and index of each request: the same in every run of the world."""
        rng = random.Random(f"{self.world.name}:sequence")
        weights = [1 / k**self.world.zipf_s for k in range(1, self.world.questions + 1)]
        picks = rng.choices(range(self.world.questions), weights, k=self.world.requests)
        return [(question, rng.choice((0, 0, 1, 2)), i) for i, question in enumerate(picks)]

    def _user(self, queue: Any, user: int, start_s: float) -> Process:
        yield self.env.timeout(start_s)
        for asked in queue:
            yield from self._request(asked, user)

    def _arrivals(self, asked: list[tuple[int, int, int]]) -> Process:
        rng = random.Random(f"{self.world.name}:arrivals")
        for each in asked:
            self.env.process(self._request(each, None))
            yield self.env.timeout(rng.expovariate(self.world.rate_per_s))

    def _sampler(self) -> Process:
        while self.left > 0:
            rss_mb = 150 + (1.5 if self.world.event_loop else 14.0) * self.in_flight
            self.peak_mb = max(self.peak_mb, rss_mb)
            rss = round((0.3 * rss_mb + 0.7 * self.peak_mb) * 1e6)
            self.rec.resources.append(
                ResourceSample(
                    at_s=self.env.now, service="app", processes=1, threads=1, cpu_s=self.cpu_s, rss_bytes=rss
                )
            )
            yield self.env.timeout(0.25)

    def busy(self, mean_s: float) -> Process:
        """Processor time, shared in slices."""
        mean_s *= 0.6 if self.world.event_loop else 1.0
        left_s = mean_s * self.rng.uniform(0.5, 1.5)
        while left_s > 0:
            with self.cpu.request() as turn:
                yield turn
                yield self.env.timeout(min(SLICE_S, left_s))
            self.cpu_s += min(SLICE_S, left_s)
            left_s -= SLICE_S

    def _request(self, asked: tuple[int, int, int], user: int | None) -> Process:
        question, wording, index = asked
        world, start_s = self.world, self.env.now
        key, text_key = _hash(question, wording), _hash(question)
        kept = text_key if world.text_cache else key
        trace_id = f"{index + 1:032x}"
        cache = "miss"
        yield from self.busy(world.hit_cpu_s)
        while True:
            if world.cached and kept in self.cache:
                cache = "hit" if cache == "miss" else cache
                break
            if world.single_flight and kept in self.flights:
                cache = "join"
                yield self.flights[kept]
                continue
            cache = "miss"
            break
        ok = True
        root = self.rec.span(trace_id=trace_id, kind="http.server", service="app", start_ns=_ns(start_s), duration_ns=1)
        at = len(self.rec.spans) - 1
        after: list[Callable[[], Process]] = []
        if cache == "miss":
            self.flights[kept] = self.env.event()
            self.in_flight += 1
            ok = yield from self._answer(_Asking(self, question, index, trace_id, root.span_id), after)
            self.in_flight -= 1
            if ok:
                self.cache[kept] = True
            if kept in self.flights:
                self.flights.pop(kept).succeed()
        end_s = self.env.now
        self.rec.spans[at] = msgspec.structs.replace(
            root, duration_ns=_ns(end_s) - root.start_ns, status="ok" if ok else "error"
        )
        self.left -= 1
        self.rec.requests.append(
            Request(
                index=index,
                scenario="main",
                endpoint="POST /chat",
                trace_id=trace_id,
                intended_s=start_s,
                started_s=start_s,
                ended_s=end_s,
                status=200 if ok else 503,
                error=None if ok else "status",
                cache=cache if world.cached and ok else None,
                key=key,
                text_key=text_key,
                user=user,
            )
        )
        for work in after:
            self.env.process(_outcome(work()))

    def _answer(self, asking: "_Asking", after: list[Callable[[], Process]]) -> Process:
        """The application's own logic; returns whether it worked."""
        world = self.world
        yield from self.busy(world.cpu_request_s)
        try:
            if world.agents:
                yield from self._agents(asking)
                return True
            branches = [self._judge(asking), self._retrieve(asking)]
            if world.parallel:
                tone = (yield from self._together(branches))[0]
            else:
                tone = yield from branches[0]
                yield from branches[1]
            answer = yield from asking.write(tone)
            if world.deferred:
                after.append(lambda: asking.validate(answer))
            else:
                yield from asking.validate(answer)
        except GaveUp:
            return False
        return True

    def _agents(self, asking: "_Asking") -> Process:
        names = [f"agent_{i}" for i in range(self.world.agents)]
        if self.world.parallel:
            spans = yield from self._together([asking.agent(n) for n in names])
        else:
            spans = []
            for name in names:
                spans.append((yield from asking.agent(name)))
        yield from asking.synthesise(spans)

    def _together(self, branches: list[Process]) -> Process:
        """Their results; all are awaited before one that gave up counts."""
        tasks = [self.env.process(_outcome(b)) for b in branches]
        yield simpy.AllOf(self.env, tasks)
        if any(t.value is GaveUp for t in tasks):
            raise GaveUp
        return [t.value for t in tasks]

    def _judge(self, asking: "_Asking") -> Process:
        yield from asking.classify()
        if not self.world.once:
            yield from asking.classify()
        tone = yield from asking.tone()
        return tone

    def _retrieve(self, asking: "_Asking") -> Process:
        yield from asking.embed()
        yield from asking.search()


class GaveUp(Exception):
    """The provider refused seven times."""


def _outcome(process: Process) -> Process:
    try:
        return (yield from process)
    except GaveUp:
        return GaveUp


class _Asking:
    """The calls of one request."""

    def __init__(self, system: System, question: int, index: int, trace_id: str, root_id: str) -> None:
        self.system, self.question = system, question
        self.trace_id, self.root_id = trace_id, root_id
        about = random.Random(f"{system.world.name}:question:{question}")
        self.answer_tokens = round(about.lognormvariate(math.log(220), 0.35))
        self.context_tokens = about.randint(700, 1600)
        self.history_tokens = random.Random(f"{system.world.name}:{index}:history").randint(0, 1200)

    def _common(self) -> int:
        return 250 if self.system.world.trimmed else 1400 + self.history_tokens

    def classify(self) -> Process:
        model = SMALL if self.system.world.routed else STRONG
        return self._call("classify_intent", "judge", model, self._common() + 60, 3)

    def tone(self) -> Process:
        out = self.system.rng.randint(25, 45)
        return self._call("tone_guidelines", "judge", STRONG, self._common() + 40, out)

    def embed(self) -> Process:
        return self._call("embed_query", "retrieve", EMBED, 20, 0, kind=EMBEDDING)

    def search(self) -> Process:
        system = self.system
        start_s = system.env.now
        yield from system.busy(0.004 if system.world.retrieval else 0.001)
        self._store("search", start_s)

    def write(self, tone: str) -> Process:
        world = self.system.world
        context = (self.context_tokens if not world.trimmed else self.context_tokens * 0.6) if world.retrieval else 0
        out = self.answer_tokens * (0.58 if world.retrieval else 1.0) * (0.85 if world.trimmed else 1.0)
        out *= self.system.rng.uniform(0.85, 1.15)
        inp = round(self._common() + context) + 80
        return self._call("write_answer", "answer", STRONG, inp, round(out), uses=[tone])

    def validate(self, answer: str) -> Process:
        model = SMALL if self.system.world.routed else STRONG
        return self._call("validate_answer", "answer", model, self._common() + 350, 3, uses=[answer])

    def agent(self, name: str) -> Process:
        out = self.system.rng.randint(120, 360)
        return self._call(name, "analyse", STRONG, 900 + self.history_tokens, out)

    def synthesise(self, spans: list[str]) -> Process:
        out = self.system.rng.randint(300, 500)
        return self._call("synthesise", "analyse", STRONG, 2500, out, uses=spans)

    def _store(self, step: str, start_s: float) -> None:
        self.system.rec.span(
            trace_id=self.trace_id,
            parent_id=self.root_id,
            kind="db",
            service="app",
            start_ns=_ns(start_s),
            duration_ns=round((self.system.env.now - start_s) * 1e9),
            code=f"app/main.py:10 {step}",
            attributes={CALLERS: [f"app/main.py:10 {step}", "app/main.py:20 retrieve"]},
        )

    def _call(
        self, step: str, around: str, model: str, inp: int, out: int, *, kind: str = LLM, uses: list[str] | None = None
    ) -> Process:
        """One logical call with the application's own back-off; returns its span id."""
        system = self.system
        for pause_s in (1, 2, 4, 8, 16, 32, None):
            yield from system.busy(system.world.cpu_call_s)
            began_s = system.env.now
            refused = yield from self._attempt(model, inp, out)
            call = system.rec.span(
                trace_id=self.trace_id,
                parent_id=self.root_id,
                kind=kind,
                service="app",
                model=model,
                start_ns=_ns(began_s),
                duration_ns=round((system.env.now - began_s) * 1e9),
                status="error" if refused.status == 429 else "ok",
                error="429" if refused.status == 429 else None,
                code=f"app/main.py:30 {step}",
                attributes={
                    CALLERS: [f"app/main.py:30 {step}", f"app/main.py:20 {around}"],
                    USES: uses or [],
                    PROMPT_HASH: _hash(step, self.question, inp),
                },
            )
            system.rec.spans.append(refused.span(call, kind))
            if refused.status == 200:
                return call.span_id
            if pause_s is None:
                break
            yield system.env.timeout(pause_s + system.rng.random())
        raise GaveUp

    def _attempt(self, model: str, inp: int, out: int) -> Process:
        """One HTTP call through the gateway."""
        system = self.system
        came_s = system.env.now
        yield system.env.timeout(0.001)
        if system.world.queued:
            with system.held[model].request() as turn:
                yield turn
                while wait_s := system.provider.retry_after_s(model, inp, out):
                    yield system.env.timeout(wait_s + 0.005)
        elif system.provider.retry_after_s(model, inp, out):
            yield system.env.timeout(0.02)
            return _Attempt(self, model, came_s, 0.0, 429, inp, out, None)
        waited_s = system.env.now - came_s - 0.001
        ttft_s, seconds = system.provider.latency(model, inp, out)
        yield system.env.timeout(seconds)
        return _Attempt(self, model, came_s, waited_s, 200, inp, out, ttft_s)


@dataclass
class _Attempt:
    asking: _Asking
    model: str
    came_s: float
    waited_s: float
    status: int
    inp: int
    out: int
    ttft_s: float | None

    def span(self, parent: Span, kind: str) -> Span:
        system = self.asking.system
        m = system.provider.models[self.model]
        attributes: dict[str, Any] = {HTTP_STATUS: self.status}
        if self.ttft_s is not None:
            attributes[TTFT_S] = self.ttft_s
        if m.requests_per_min:
            attributes[LIMIT_REQUESTS_PER_MIN] = m.requests_per_min
        if m.tokens_per_min:
            attributes[LIMIT_TOKENS_PER_MIN] = m.tokens_per_min
        good = self.status == 200
        price = price_of(self.model, "openai")
        start_s = self.came_s + 0.001
        return Span(
            trace_id=parent.trace_id,
            span_id=f"{next(system.rec.ids):016x}",
            parent_id=parent.span_id,
            name="chat",
            kind=kind,
            service="gateway",
            model=self.model,
            start_ns=_ns(start_s),
            duration_ns=round((system.env.now - start_s) * 1e9),
            wait_ns=round(self.waited_s * 1e9),
            status="ok" if good else "error",
            error=None if good else "429",
            input_tokens=self.inp if good else None,
            output_tokens=self.out if good else None,
            cost_usd=price.cost_usd(self.inp, self.out) if good and price else None,
            attributes=attributes,
        )
