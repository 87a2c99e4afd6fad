"""Fleet: Locust workers on any machines, each driving its share of a scenario as `--processes` do here."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable

import msgspec

from paceline import __version__
from paceline.errors import ConfigError, MeasurementError
from paceline.load.driving import add_info
from paceline.load.links import Link
from paceline.load.locust.messages import (
    Assign,
    Dismiss,
    FromMaster,
    Joined,
    Listen,
    Listening,
    Over,
    Said,
    Tell,
)
from paceline.load.locust.parcel import pack
from paceline.load.locust.program import Program, require_locust
from paceline.load.orders import ERRORS, Failed, Order
from paceline.load.scenario import Scenario
from paceline.load.snapshot import Snapshot
from paceline.load.workers import drive_together
from paceline.model.run import ScenarioInfo
from paceline.store.folder import RunFolder

COME_WITHIN_S = 300.0  # workers, once the master listens
_START_IN_S = 1.0  # for the word to arrive on every machine
_QUIT_WITHIN_S = 5.0


@contextlib.asynccontextmanager
async def gather(
    host: str, port: int, workers: int, *, say: Callable[[str], None], within_s: float = COME_WITHIN_S
) -> AsyncIterator["Fleet"]:
    """Listen as a Locust master until so many workers have come; at the end they are sent home.

    Nothing checks who a worker is, nor that answers are kept from others: bind to a network you trust.

    Args:
        host: Address to bind to.
        port: 0 takes a free one.
        workers: How many to wait for; each is one process, on whatever machine.
        say: Told what to do next, in sentences.
        within_s: How long to wait.

    Raises:
        ConfigError: Locust is not installed, the port is in use, a worker has another version of Paceline, or too few
            came. MeasurementError: the master ended.
    """
    require_locust("--locust-workers")
    program = await Program.start("master")
    fleet = Fleet(program, workers)
    try:
        program.tell(Listen(host, port))
        await fleet.assemble(host, within_s, say)
        yield fleet
    finally:
        await fleet.close()


class Fleet:
    """Workers that have come. `drive` takes the place of `driver.drive`."""

    def __init__(self, program: Program, wanted: int) -> None:
        self._program, self.wanted = program, wanted
        self.workers: list[Joined] = []  # in the order of their coming
        self._links: dict[str, RemoteLink] = {}
        self._listening_on: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._complete = asyncio.Event()
        self._problem: Exception | None = None
        self._hearing = asyncio.create_task(self._hear())  # awaited by close()
        self._run: RunFolder | None = None

    async def assemble(self, host: str, within_s: float, say: Callable[[str], None]) -> None:
        """Wait for the workers; raises as `gather`."""
        port = await self._listening_on
        at = "THIS-MACHINE" if host in ("*", "0.0.0.0", "::") else host
        say(
            f"waiting for {_workers(self.wanted)}; start each, on any machine, with: "
            f"locust -f - --worker --master-host {at} --master-port {port}"
        )
        try:
            async with asyncio.timeout(within_s):
                await self._complete.wait()
        except TimeoutError:
            msg = f"{len(self.workers)} of {_workers(self.wanted)} came within {within_s:g} s"
            raise ConfigError(msg) from None
        if self._problem is not None:
            raise self._problem
        say(f"here: {_workers(self.wanted)} on {self._where()}")

    async def drive(
        self,
        scenario: Scenario,
        base_url: str,
        run: RunFolder,
        *,
        speed: float | None = None,
        progress: Callable[[Snapshot], None] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> ScenarioInfo:
        """As `driver.drive`, with the workers sharing the work. Body files are handed to them.

        Raises, beside what `drive` does:
            MeasurementError: a worker has gone.
        """
        if len(self.workers) < self.wanted:
            msg = f"{len(self.workers)} of {_workers(self.wanted)} left"
            raise MeasurementError(msg)
        self._run = run
        info = await drive_together(
            scenario,
            base_url,
            run,
            self.wanted,
            speed=run.info.speed if speed is None else speed,
            progress=progress,
            tls=tls,
            hire=self._assign,
            start_in_s=_START_IN_S,
        )
        within_ms = max(worker.within_s for worker in self.workers) * 1e3 if self.workers else 0.0
        note = f"sent by {_workers(info.processes)} on {self._where()}; clocks compared to within {within_ms:.2f} ms"
        info = msgspec.structs.replace(info, notes=[*info.notes, note])
        add_info(run, info)
        return info

    async def close(self) -> None:
        """Send the workers home and end the master."""
        self._program.end_input()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_QUIT_WITHIN_S):
                await asyncio.shield(self._hearing)
        await self._program.dismiss()
        self._hearing.cancel()
        await asyncio.gather(self._hearing, return_exceptions=True)

    def _where(self) -> str:
        return ", ".join(sorted({worker.host for worker in self.workers}))

    async def _assign(self, order: Order) -> Link:
        """Give a worker its order."""
        assert self._run is not None  # noqa: S101 - drive has set it
        worker = self.workers[order.part]
        info = self._run.info
        # What the worker's monotonic clock needs added to tell our wall time.
        header = msgspec.structs.replace(info, clock_offset_ns=info.clock_offset_ns + round(worker.ahead_s * 1e9))
        parcel = msgspec.msgpack.encode(pack(order, header))
        link = self._links[worker.worker] = RemoteLink(self._program, worker, order.part, order.of)
        self._program.tell(Assign(worker.worker, str(self._run.path), parcel))
        return link

    async def _hear(self) -> None:
        async for line in self._program.hear():
            match message := msgspec.json.decode(line, type=FromMaster):
                case Listening():
                    self._listening_on.set_result(message.port)
                case Joined():
                    self._join(message)
                case Said():
                    self._links[message.worker].heard(message.line)
                case Over():
                    self._part(message)
                case Failed():
                    self._fail(ERRORS.get(message.kind, MeasurementError)(message.message))
        self._fail(MeasurementError(f"Locust's master {self._program.how}"))

    def _join(self, worker: Joined) -> None:
        if worker.paceline != __version__:
            said = f"the Locust worker on {worker.host} has Paceline {worker.paceline}, and this is {__version__}"
            self._fail(ConfigError(f"{said}: install the same version"))
        elif len(self.workers) < self.wanted:
            self.workers.append(worker)
            if len(self.workers) == self.wanted:
                self._complete.set()

    def _part(self, over: Over) -> None:
        if over.is_gone:
            self.workers = [worker for worker in self.workers if worker.worker != over.worker]
        if over.worker in self._links:
            self._links[over.worker].end(over.how)

    def _fail(self, problem: Exception) -> None:
        self._problem = self._problem or problem
        self._complete.set()
        if not self._listening_on.done():
            self._listening_on.set_exception(problem)
        for link in self._links.values():
            link.end(f"was lost: {problem}")


class RemoteLink:
    """A worker process that a Locust worker has started, wherever that is."""

    def __init__(self, program: Program, worker: Joined, part: int, of: int) -> None:
        self._program, self._worker = program, worker
        self.name = f"Locust worker {part + 1} of {of} on {worker.host}"
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()  # bounded by the scenario: four lines a second
        self._how: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def tell(self, line: str) -> None:
        """Write a line to its input; it may be gone."""
        word, _, rest = line.partition(" ")
        if word == "start":
            line = f"start {float(rest) - self._worker.ahead_s!r}"
        self._program.tell(Tell(self._worker.worker, line))

    def heard(self, line: str) -> None:
        """It has said something."""
        self._lines.put_nowait(line.encode())

    def end(self, how: str) -> None:
        """It has ended."""
        if not self._how.done():
            self._how.set_result(how)
            self._lines.put_nowait(None)

    async def lines(self) -> AsyncIterator[bytes]:
        """What it says, until it has ended."""
        while (line := await self._lines.get()) is not None:
            yield line

    async def how(self) -> str:
        """How it ended."""
        return await self._how

    async def dismiss(self) -> None:
        """End it if it still runs."""
        if not self._how.done():
            self._program.tell(Dismiss(self._worker.worker))


def _workers(count: int) -> str:
    return f"{count} Locust workers" if count != 1 else "1 Locust worker"
