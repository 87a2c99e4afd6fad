"""Workers: one scenario driven by several processes, each with its share of the schedule, the users and the records.

The schedule follows from the scenario's seed, so every process knows all of it and takes its part. A worker is this
module run as a program (so nothing depends on fork): an Order comes on its standard input, then "start", perhaps
"stop"; Messages leave on its standard output. When its input ends, whoever started it is gone, and it stops.
"""

import asyncio
import contextlib
import os
import ssl
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from paceline.errors import MeasurementError, PacelineError
from paceline.load.address import Address
from paceline.load.driving import INTERRUPTED, Driving, add_info
from paceline.load.health import trouble_of
from paceline.load.links import Link, ProcessLink
from paceline.load.orders import ERRORS, Failed, Message, Order, Progress, Ready, Result, Trust
from paceline.load.scenario import CLOSED, Scenario
from paceline.load.snapshot import Snapshot, together
from paceline.load.source import Share
from paceline.model.run import ScenarioInfo
from paceline.stats.histogram import Histogram
from paceline.store.folder import RunFolder, disk_errors, open_run

_START_IN_S = 0.05  # for the word to arrive everywhere
_STOP_WITHIN_S = 5.0
Hire = Callable[[Order], Awaitable[Link]]


async def hire_here(order: Order) -> Link:
    """A worker process of this machine."""
    link = await ProcessLink.start(order.part, order.of)
    link.tell(msgspec.json.encode(order).decode())
    return link


async def drive_together(
    scenario: Scenario,
    base_url: str,
    run: RunFolder,
    processes: int,
    *,
    speed: float,
    progress: Callable[[Snapshot], None] | None = None,
    tls: ssl.SSLContext | None = None,
    hire: Hire = hire_here,
    start_in_s: float = _START_IN_S,
) -> ScenarioInfo:
    """Drive a scenario with several processes and return what they did together; as `drive` in every other respect.

    `hire` gives each its order, on whatever machine; `start_in_s` is how long the word to start needs to be everywhere.
    A worker that dies ends the scenario early: its load is missing. What it had recorded is kept.
    """
    address = Address.parse(base_url, tls)
    most = scenario.users if scenario.model == CLOSED else scenario.requests
    count = min(processes, most or processes)
    trust = Trust.of(address.tls) if tls is not None and address.tls is not None else None
    crew = _Crew(progress, hire)
    try:
        for part in range(count):
            order = Order(
                scenario=scenario,
                base_url=base_url,
                run=str(run.path),
                speed=speed,
                part=part,
                of=count,
                trust=trust,
            )
            await crew.hire(order)
        await crew.all_ready(start_in_s)
        await crew.work()
    except asyncio.CancelledError:
        crew.stop(INTERRUPTED)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_WITHIN_S):
                await crew.work()
        crew.stopped = crew.stopped or INTERRUPTED
        raise
    finally:
        await crew.dismiss()
        info = crew.info() or _salvaged(scenario, run, crew.stopped, count)
        if info is not None and info.requests:
            add_info(run, info)
    if info is None:
        msg = "the load generator's processes ended without a result"
        raise MeasurementError(msg)
    return info


def _salvaged(scenario: Scenario, run: RunFolder, stopped: str | None, processes: int) -> ScenarioInfo | None:
    """From what workers left on disk of whom none has finished; None when there is nothing."""
    kept = run.requests(scenario.name) if stopped is not None else []
    if not kept:
        return None
    return ScenarioInfo(
        name=scenario.name,
        model=scenario.model,
        users=scenario.users,
        ramp_s=scenario.ramp_s,
        think_s=scenario.think_s,
        rate_per_s=scenario.rate_per_s,
        arrivals=scenario.arrivals,
        cv=scenario.cv,
        requests=len(kept),
        seed=scenario.seed,
        timeout_s=scenario.timeout_s,
        started_s=min(request.intended_s for request in kept),
        ended_s=max(request.ended_s for request in kept),
        processes=processes,
        stopped=stopped,
    )


class _Worker:
    """One worker, as seen from outside."""

    def __init__(self, link: Link, order: Order) -> None:
        self.link, self.order = link, order
        self.is_ready = asyncio.Event()
        self.failed: Failed | None = None
        self.result: Result | None = None
        self.stands: Snapshot | None = None


class _Crew:
    """All workers of a scenario. `dismiss` leaves no process behind."""

    def __init__(self, progress: Callable[[Snapshot], None] | None, hire: Hire) -> None:
        self._progress, self._hire = progress, hire
        self._workers: list[_Worker] = []
        self._listening: list[asyncio.Task[None]] = []  # awaited by work() or dismiss()
        self.stopped: str | None = None

    async def hire(self, order: Order) -> None:
        """Have a worker take an order."""
        worker = _Worker(await self._hire(order), order)
        self._workers.append(worker)
        self._listening.append(asyncio.create_task(self._listen(worker)))

    async def all_ready(self, start_in_s: float) -> None:
        """Wait until everybody is; raises what kept one from it."""
        for worker in self._workers:
            await worker.is_ready.wait()
            self._raise_failure(worker)
        start_s = time.monotonic() + start_in_s
        for worker in self._workers:
            worker.link.tell(f"start {start_s!r}")

    async def work(self) -> None:
        """Wait until everybody has finished; raises what ended one."""
        await asyncio.gather(*(asyncio.shield(task) for task in self._listening))
        for worker in self._workers:
            self._raise_failure(worker)

    def stop(self, reason: str) -> None:
        """Tell everybody to send nothing more."""
        self.stopped = self.stopped or reason
        for worker in self._workers:
            worker.link.tell(f"stop {reason}")

    async def dismiss(self) -> None:
        """End what still runs."""
        for worker in self._workers:
            await worker.link.dismiss()
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)

    def info(self) -> ScenarioInfo | None:
        """What they did together; None when nobody has finished."""
        results = [worker.result for worker in self._workers if worker.result is not None]
        if not results:
            return None
        lost = [worker.stands.done for worker in self._workers if worker.result is None and worker.stands is not None]
        return merged(results, lost, len(self._workers), self.stopped)

    async def _listen(self, worker: _Worker) -> None:
        try:
            async for line in worker.link.lines():
                self._hear(worker, msgspec.json.decode(line, type=Message))
        finally:
            worker.is_ready.set()
        how = await worker.link.how()
        if worker.result is None and worker.failed is None:
            reason = f"{worker.link.name} {how}; what it had recorded is kept"
            if not any(w.result or w.stands for w in self._workers):
                worker.failed = Failed("MeasurementError", reason)
            self.stop(reason)

    def _hear(self, worker: _Worker, message: Message) -> None:
        match message:
            case Ready():
                worker.is_ready.set()
            case Failed():
                worker.failed = message
                self.stop(message.message)
            case Result():
                worker.result = message
                if message.info.stopped and self.stopped is None:
                    self.stop(message.info.stopped)
            case Progress():
                worker.stands = Snapshot.decode(bytes(message.snapshot))
                if self._progress is not None and worker is self._workers[-1]:
                    self._progress(together([w.stands for w in self._workers if w.stands is not None]))

    def _raise_failure(self, worker: _Worker) -> None:
        if worker.failed is not None:
            raise ERRORS.get(worker.failed.kind, MeasurementError)(worker.failed.message)


def merged(results: Sequence[Result], lost: Sequence[int], processes: int, stopped: str | None) -> ScenarioInfo:
    """One ScenarioInfo for all workers; `lost`: what those had done of which nothing more was heard."""
    infos = [result.info for result in results]
    lag = Histogram.merged(Histogram.decode(r.lag) for r in results)
    latencies = Histogram.merged(Histogram.decode(r.latencies) for r in results)
    cpu_ratio = max(info.generator_cpu_ratio or 0.0 for info in infos)
    achieved_s = [info.achieved_rate_per_s for info in infos if info.achieved_rate_per_s is not None]
    rate_per_s = infos[0].rate_per_s
    achieved = sum(achieved_s) if achieved_s else None
    compared = None if achieved is None or rate_per_s is None else (achieved, rate_per_s)
    wall_s = max(result.wall_s for result in results)
    return msgspec.structs.replace(
        infos[0],
        requests=sum(info.requests for info in infos) + sum(lost),
        started_s=min(info.started_s for info in infos),
        ended_s=max(info.ended_s for info in infos),
        lag_p50_s=lag.quantile(0.5),
        lag_p99_s=lag.quantile(0.99),
        lag_max_s=lag.max_s if lag.count else None,
        achieved_rate_per_s=achieved,
        generator_cpu_ratio=cpu_ratio,
        processes=processes,
        trouble=trouble_of(lag, cpu_ratio, wall_s, latencies.quantile(0.5), compared),
        failed_checks=dict(sum((Counter(info.failed_checks) for info in infos), Counter[str]())),
        stopped=stopped,
    )


# --- the worker's side -----------------------------------------------------------------------------------------------


async def _serve() -> None:
    orders = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    order = msgspec.json.decode(await orders.readline(), type=Order)
    try:
        await _obey(order, orders)
    except PacelineError as error:
        _say(Failed(type(error).__name__, str(error)))


async def _obey(order: Order, orders: asyncio.StreamReader) -> None:
    run = open_run(Path(order.run), salvage=True)
    address = Address.parse(order.base_url, order.trust.context() if order.trust else None)

    def tell(snapshot: Snapshot) -> None:
        _say(Progress(msgspec.Raw(snapshot.encode())))

    with disk_errors(run.path):
        driving = Driving(order.scenario, address, run, order.speed, tell, Share(order.part, order.of))
        stopping: asyncio.Task[None] | None = None
        try:
            await driving.prepare()
            _say(Ready())
            word, _, start_s = (await orders.readline()).decode().partition(" ")
            if word != "start":
                return  # another worker could not begin, or whoever ordered it is gone
            stopping = asyncio.create_task(_stop_when_told(orders, driving))
            await driving.run(float(start_s))
        finally:
            if stopping is not None:
                stopping.cancel()
            await driving.close()
    info, health = driving.info(), driving.health
    _say(Result(info, driving.latencies.encode(), health.lag.encode(), health.wall_s))


async def _stop_when_told(orders: asyncio.StreamReader, driving: Driving) -> None:
    _, _, reason = (await orders.readline()).decode().strip().partition(" ")
    driving.stop_soon(reason or INTERRUPTED)


def _say(message: Message) -> None:
    data = msgspec.json.encode(message) + b"\n"
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more; the end of our input says so, too
        while data:
            data = data[os.write(1, data) :]


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve())
