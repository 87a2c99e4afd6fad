"""Works: how the works of a request run: own time, the provider's gate, refusals, caches of steps, batches."""

from collections.abc import Callable

from paceline.project.draws import Draws, Service
from paceline.project.engine import Agenda, Gatekeeper, Processor, Store
from paceline.project.plan import Plan
from paceline.project.script import Job, Live, Script

_MOST_ATTEMPTS = 30  # where nobody was ever seen giving up


class Works:
    """Runs scripts. `finished` hears of a request whose awaited works are done, `failed` of one that gave up."""

    def __init__(
        self,
        plan: Plan,
        draws: Draws,
        agenda: Agenda,
        cpu: Processor,
        finished: Callable[[Live], None],
        failed: Callable[[Live], None],
    ) -> None:
        self.plan = plan
        self.draws = draws
        self.agenda = agenda
        self.cpu = cpu
        self.finished = finished
        self.failed = failed
        self.cost_usd: float | None = 0.0
        self.gates = {
            model: Gatekeeper(agenda, gate.quota, queued=gate.queued, size=gate.size, ratio=draws.quota_ratio)
            for model, gate in plan.gates.items()
        }
        self._stores = {position: Store(c.entries, c.ttl_s) for position, c in plan.step_caches.items()}
        self._unlike = 0  # prompts so far that nobody sends again
        self._flights: dict[tuple[int, str], list[Job]] = {}
        self._gathering: dict[int, list[Job]] = {position: [] for position in plan.batches}
        self._batches_out = dict.fromkeys(plan.batches, 0)

    def start(self, live: Live, script: Script) -> None:
        """Begin the works that wait for nothing."""
        live.script = script
        live.waits = script.waits.copy()
        live.left = script.awaited
        for index in script.first:
            self._ready(live, index)
        if not script.awaited:
            self.finished(live)

    def answered(self, live: Live) -> None:
        """The answer is sent: begin what was put off until then."""
        for index in live.script.late:
            self._release(live, index)

    def _release(self, live: Live, index: int) -> None:
        live.waits[index] -= 1
        if live.waits[index] == 0:
            self._ready(live, index)

    def _ready(self, live: Live, index: int) -> None:
        """All it waited for is done: the application's own time, then the call."""
        job = Job(live, index)
        work = job.work
        self.cpu.do(work.cpu_s, work.delay_s + work.fault_s, self._call, job)

    def _call(self, job: Job) -> None:
        work = job.work
        effect = self.draws.effect(work)
        if effect.cache is not None and self._cached(job, effect.cache):
            return
        if work.model is None:
            self.agenda.at(self.agenda.now + (work.service_s or 0.0) * effect.time_ratio, self._done, job)
            return
        job.service = self.draws.service(work)
        if effect.batch is not None:
            self._gather(job, effect.batch)
        else:
            self._ask(job)

    def _done(self, job: Job) -> None:
        live = job.live
        if job.flight is not None:
            self._keep(job)
        for index in live.script.then[job.index]:
            self._release(live, index)
        if job.work.awaited:
            live.left -= 1
            if live.left == 0:
                self.finished(live)

    # --- provider ------------------------------------------------------------------------------------------------

    def _ask(self, job: Job) -> None:
        tokens = job.service.tokens + sum(other.service.tokens for other in job.others)
        if self.gates[job.work.model or ""].ask(tokens, self._serve, job):
            return
        if job.attempt >= (self.plan.app.retries.attempts or _MOST_ATTEMPTS):
            self._give_up(job)
            return
        pause_s = self.draws.pause_s(job.attempt)
        job.attempt += 1
        self.cpu.do(self.plan.app.refused_cpu_s, pause_s, self._ask, job)

    def _serve(self, job: Job) -> None:
        """The provider has taken the call."""
        seconds = job.service.seconds
        self._pay(job.service)
        for other in job.others:  # one prompt, the outputs one after the other
            seconds += other.service.pace[1] * other.service.output_tokens
            self._pay(other.service)
        self.agenda.at(self.agenda.now + seconds, self._served, job)

    def _served(self, job: Job) -> None:
        self.gates[job.work.model or ""].leave()
        self._end_batch(job)
        for each in (job, *job.others):
            self._done(each)

    def _give_up(self, job: Job) -> None:
        """The provider refused once too often."""
        self._end_batch(job)
        for each in (job, *job.others):
            if not self.plan.app.retries.fatal or not each.work.awaited:
                self._done(each)
            elif not each.live.ended:
                self.failed(each.live)

    def _pay(self, service: Service) -> None:
        known = self.cost_usd is not None and service.cost_usd is not None
        self.cost_usd = (self.cost_usd or 0.0) + (service.cost_usd or 0.0) if known else None

    # --- caches of steps -----------------------------------------------------------------------------------------

    def _cached(self, job: Job, position: int) -> bool:
        """True when the job needs no call of its own: the answer is kept, or on its way for another."""
        cache = self.plan.step_caches[position]
        now = self.agenda.now
        if cache.hit_ratio is not None:
            hit = self.draws.rng.random() < self.draws.of(cache.hit_ratio)
        else:
            entry = (position, self._key(job, by_text=cache.key == "text"))
            hit = self._stores[position].has(entry[1], now)
            if not hit and cache.shared_in_flight and entry in self._flights:
                self._flights[entry].append(job)
                return True
            if not hit:
                self._flights.setdefault(entry, [])
                job.flight = entry
        if hit:
            self.agenda.at(now + cache.hit_s, self._done, job)
        return hit

    def _key(self, job: Job, *, by_text: bool) -> str:
        """The recorded prompt where it is sent for several questions, else what is asked; never the same twice where
        the prompt changes from one time to the next.
        """
        work, asked = job.work, job.live.asked
        if work.prompt in self.plan.shared_prompts:
            return work.prompt or ""
        if work.step in self.plan.changing_steps:
            self._unlike += 1
            return f"{work.step}:{self._unlike}"
        return f"{asked.text_key if by_text else asked.key}:{work.step}:{job.index}"

    def _keep(self, job: Job) -> None:
        if job.flight is None:
            return
        position, key = job.flight
        self._stores[position].put(key, self.agenda.now)
        for other in self._flights.pop(job.flight, ()):
            self.agenda.at(self.agenda.now + self.plan.step_caches[position].hit_s, self._done, other)

    # --- batches -------------------------------------------------------------------------------------------------

    def _gather(self, job: Job, position: int) -> None:
        """Calls that come while one is out gather; they go when it is back, or when the batch is full."""
        self._gathering[position].append(job)
        full = len(self._gathering[position]) >= self.plan.batches[position]
        if full or not self._batches_out[position]:
            self._send(position)

    def _send(self, position: int) -> None:
        first, *others = self._gathering[position]
        self._gathering[position] = []
        first.others = others
        self._batches_out[position] += 1
        self._ask(first)

    def _end_batch(self, job: Job) -> None:
        position = self.draws.effect(job.work).batch
        if position is not None:
            self._batches_out[position] -= 1
            if self._gathering[position] and not self._batches_out[position]:
                self._send(position)
