"""Simulate: one run of the application under the recorded load, with a plan's changes in place."""

from collections import deque
from dataclasses import dataclass, field

from paceline.project.app import Asked
from paceline.project.draws import Draws
from paceline.project.engine import Agenda, Processor, Store
from paceline.project.plan import Plan
from paceline.project.script import Live, Script
from paceline.project.works import Works


@dataclass(slots=True)
class Outcome:
    """What one simulated run came to. Latencies are those of answers and of time-outs."""

    latencies_s: list[float] = field(default_factory=list)
    requests: int = 0
    ok: int = 0
    hits: int = 0
    cost_usd: float | None = 0.0
    duration_s: float = 0.0
    peak: int = 0  # most requests worked on at once; cached ones are not
    memory_ratio: float = 1.0  # as drawn: memory of a request in flight, relative to the baseline
    busy: dict[str, float] = field(default_factory=dict)  # share of each resource that was used
    demand_s: dict[str, float] = field(default_factory=dict)  # seconds of each that a request needs


def scripts_of(plan: Plan) -> list[Script]:
    """The plan's templates, prepared once for all repetitions."""
    return [Script(t) for t in plan.templates]


def simulate(plan: Plan, seed: str, scripts: list[Script] | None = None) -> Outcome:
    """Play the load once. The same plan and seed give the same outcome."""
    return _Simulation(plan, Draws(plan, seed), scripts or scripts_of(plan)).run()


class _Simulation:
    """The state of one simulated run: users, the cache of whole answers, workers."""

    def __init__(self, plan: Plan, draws: Draws, scripts: list[Script]) -> None:
        self.plan = plan
        self.load = plan.app.load
        self.draws = draws
        self.scripts = scripts
        self.agenda = Agenda()
        self.cpu = Processor(self.agenda, plan.app.cores, slice_s=plan.app.slice_s, ratio=draws.cpu_ratio)
        self.works = Works(plan, draws, self.agenda, self.cpu, self._finished, self._failed)
        self.out = Outcome()
        self.next = 0  # request of the sequence
        self.last_s = 0.0
        self.answers = plan.answers
        self.store = Store(self.answers.entries, self.answers.ttl_s) if self.answers else Store(None, None)
        for key in sorted(self.answers.warm) if self.answers else ():
            self.store.put(key, 0.0)
        self.flights: dict[str, list[Live]] = {}
        self.workers_free = plan.workers
        self.workers_used_s = 0.0
        self.queue: deque[Live] = deque()  # for a worker
        self.active = 0

    def run(self) -> Outcome:
        """Send everything, and go on until the last work is done."""
        load = self.load
        if load.users is None:
            for asked in load.asked:
                self.agenda.at(asked.at_s, self._arrive, asked)
        else:
            for user in range(min(load.users, len(load.asked))):
                self.agenda.at(load.ramp_s * user / load.users, self._send, user)
        self.agenda.run()
        return self._outcome()

    # --- users ---------------------------------------------------------------------------------------------------

    def _arrive(self, asked: Asked) -> None:
        self._start(asked, -1)

    def _send(self, user: int) -> None:
        if self.next < len(self.load.asked):
            self.next += 1
            self._start(self.load.asked[self.next - 1], user)

    def _start(self, asked: Asked, user: int) -> None:
        by_text = self.answers is not None and self.answers.by_text
        live = Live(asked, asked.text_key if by_text else asked.key, user, self.agenda.now)
        self.out.requests += 1
        self.agenda.at(self.agenda.now + self.load.timeout_s, self._time_out, live)
        if not self.plan.workers_hits or self._worker(live):
            self._enter(live)

    def _enter(self, live: Live) -> None:
        """Reading the request and looking it up takes what a hit takes, whether it is one or not."""
        self.cpu.do(self.plan.app.hit_cpu_s, 0.0, self._look_up, live)

    def _time_out(self, live: Live) -> None:
        """The user leaves; the application does not notice."""
        if not live.over:
            self.out.latencies_s.append(self.load.timeout_s)
            self._release(live)

    def _answer(self, live: Live, *, hit: bool) -> None:
        if not live.over:
            self.out.ok += 1
            self.out.hits += hit
            self.out.latencies_s.append(self.agenda.now - live.start_s)
            self._release(live)

    def _release(self, live: Live) -> None:
        live.over = True
        self.last_s = self.agenda.now
        if live.user >= 0:
            self.agenda.at(self.agenda.now + self.load.think_s, self._send, live.user)

    # --- cache of whole answers ----------------------------------------------------------------------------------

    def _look_up(self, live: Live) -> None:
        if self._kept(live):
            self._hit(live)
        elif self.answers and self.answers.shared and live.key in self.flights:
            self.flights[live.key].append(live)
        else:
            if self.answers and self.answers.shared:
                self.flights[live.key] = []
            if live.holds_worker or self._worker(live):
                self._work(live)

    def _kept(self, live: Live) -> bool:
        answers = self.answers
        if answers is None:
            return False
        if answers.hit_ratio is not None:
            return self.draws.rng.random() < self.draws.of(answers.hit_ratio)
        kept = self.store.has(live.key, self.agenda.now)
        return kept and (answers.hit_share >= 1 or self.draws.rng.random() < answers.hit_share)

    def _hit(self, live: Live) -> None:
        declared_s = self.answers.hit_s if self.answers else None
        took_s = self.agenda.now - live.start_s
        rest_s = self.draws.hit_s() if declared_s is None else max(0.0, declared_s - took_s)
        self.agenda.at(self.agenda.now + rest_s, self._answer_hit, live)

    def _answer_hit(self, live: Live) -> None:
        self._leave(live)
        self._answer(live, hit=True)

    def _land(self, live: Live, *, ok: bool) -> None:
        """Those who waited for the same answer get it; without one they try for themselves."""
        if ok:
            self.store.put(live.key, self.agenda.now)
        for other in self.flights.pop(live.key, ()):
            if ok:
                self._hit(other)
            else:
                self._look_up(other)

    # --- workers -------------------------------------------------------------------------------------------------

    def _worker(self, live: Live) -> bool:
        """Take a worker; false: none is free, and the request is in the queue for one."""
        if self.workers_free is not None:
            if self.workers_free == 0:
                self.queue.append(live)
                return False
            self.workers_free -= 1
            self.workers_used_s -= self.agenda.now
        live.holds_worker = True
        return True

    def _leave(self, live: Live) -> None:
        if self.workers_free is None or not live.holds_worker:
            return
        live.holds_worker = False
        self.workers_free += 1
        self.workers_used_s += self.agenda.now
        if self.queue:
            following = self.queue.popleft()
            self._worker(following)
            if self.plan.workers_hits:
                self._enter(following)
            else:
                self._work(following)

    # --- work ----------------------------------------------------------------------------------------------------

    def _work(self, live: Live) -> None:
        self.active += 1
        self.out.peak = max(self.out.peak, self.active)
        self.works.start(live, self.scripts[self.draws.template(live.asked.text_key)])

    def _finished(self, live: Live) -> None:
        """After the last awaited work: what the application still does before it answers."""
        template = live.script.template
        self.cpu.do(template.tail_cpu_s, template.tail_delay_s, self._ended, live)

    def _ended(self, live: Live) -> None:
        self._end(live, ok=live.script.template.ok)
        self.works.answered(live)

    def _failed(self, live: Live) -> None:
        self._end(live, ok=False)

    def _end(self, live: Live, *, ok: bool) -> None:
        live.ended = True
        self.active -= 1
        self._land(live, ok=ok)
        self._leave(live)
        if ok:
            self._answer(live, hit=False)
        elif not live.over:
            self._release(live)

    # --- sums ----------------------------------------------------------------------------------------------------

    def _outcome(self) -> Outcome:
        out = self.out
        out.duration_s = self.last_s
        out.cost_usd = self.works.cost_usd
        for ratio in self.plan.memory_ratios:
            out.memory_ratio *= self.draws.of(ratio)
        self._use("app cpu", self.cpu.busy_s, self.plan.app.cores)
        self._use("threads", self.workers_used_s, self.plan.workers)
        for model, gate in self.works.gates.items():
            for unit, bucket in (("requests", gate.requests), ("tokens", gate.tokens)):
                if bucket is not None:
                    self._use(f"provider:{model} {unit}", bucket.taken, bucket.rate_per_s)
        return out

    def _use(self, resource: str, used: float, per_s: float | None) -> None:
        """Note the use of a resource that gives `per_s` a second; None or 0: it has no bound."""
        if per_s:
            self.out.busy[resource] = used / per_s / max(self.last_s, 1e-9)
            self.out.demand_s[resource] = used / per_s / max(1, self.out.requests)
