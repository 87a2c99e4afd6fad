"""Run an existing locustfile unchanged, in a process of its own, and record what its users do as a scenario."""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from paceline.errors import ConfigError, MeasurementError
from paceline.load.driving import INTERRUPTED, add_info
from paceline.load.locust.messages import Ended, SessionMessage, SessionOrder, SessionProgress
from paceline.load.locust.program import Program, require_locust
from paceline.load.orders import ERRORS, Failed
from paceline.load.snapshot import Snapshot
from paceline.model.run import ScenarioInfo
from paceline.store.folder import RunFolder

_END_WITHIN_S = 10.0  # after SIGTERM: on_stop of every user may still ask something
_CLOCK = (
    "clock: Locust's users wait for an answer before they want the next one, so what a stall keeps them from sending "
    "is missing and quantiles look better than they are (coordinated omission); --rate drives without that"
)
_PACED = (
    "clock: of paced users latency counts from when each task was due; what came due while they waited was never sent "
    "(coordinated omission)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocustLoad:
    """A locustfile, and how to run it."""

    locustfile: Path
    host: str | None = None  # None: the locustfile says
    users: int | None = None
    spawn_rate_per_s: float | None = None
    duration_s: float | None = None  # None: the locustfile's shape says
    arguments: list[str] = field(default_factory=list)  # more of Locust's command line
    name: str = "locust"
    stop_error_ratio: float | None = None

    def command_line(self) -> list[str]:
        """For Locust's own parser; what the user gave comes last and wins."""
        line = ["--locustfile", str(self.locustfile), "--headless", "--only-summary", "--loglevel", "WARNING"]
        for option, value in (("--users", self.users), ("--spawn-rate", self.spawn_rate_per_s), ("--host", self.host)):
            line += [] if value is None else [option, str(value)]
        return [*line, *self.arguments]


@dataclass(frozen=True, slots=True)
class LocustOutcome:
    """What came of it."""

    info: ScenarioInfo
    complaint: str | None  # why the locustfile itself calls the run failed


async def drive_locustfile(
    load: LocustLoad, run: RunFolder, *, progress: Callable[[Snapshot], None] | None = None
) -> LocustOutcome:
    """Run a locustfile; write its requests to the run, add a ScenarioInfo to run.json and return it.

    Requests that fail are records with an `error`. A Locust that is killed leaves what it had recorded, with `stopped`
    set. `notes` of the info say what Locust's clock leaves out.

    Raises:
        ConfigError: Locust is not installed, or it cannot run the file: what is wrong and where.
        MeasurementError: no request came of it, or the disk is full.
        CancelledError: Locust was told to end its users and had 10 s for it; everything is recorded.
    """
    require_locust("--locust")
    if not load.locustfile.is_file():
        msg = f"no such locustfile: {load.locustfile}"
        raise ConfigError(msg)
    session = _Session(load, run, progress)
    try:
        await session.start()
        await session.listen()
    except asyncio.CancelledError:
        session.interrupt()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_WITHIN_S):
                await session.listen()
        raise
    finally:
        await session.dismiss()
        info = session.info()
        if info is not None:
            add_info(run, info)
    if info is None:
        raise session.error()
    return LocustOutcome(info, session.complaint())


class _Session:
    """The process with Locust in it, as seen from outside. `dismiss` leaves nothing behind."""

    def __init__(self, load: LocustLoad, run: RunFolder, progress: Callable[[Snapshot], None] | None) -> None:
        self._load, self._run, self._show = load, run, progress
        self.interrupted = False
        self._program: Program | None = None
        self._last: SessionProgress | None = None
        self._failed: Failed | None = None
        self._ended: Ended | None = None

    async def start(self) -> None:
        """Start it; it begins at once."""
        load = self._load
        order = SessionOrder(
            locustfile=str(load.locustfile),
            arguments=load.command_line(),
            run=str(self._run.path),
            scenario=load.name,
            duration_s=load.duration_s,
            stop_error_ratio=load.stop_error_ratio,
        )
        self._program = await Program.start("session")
        self._program.tell(order)

    async def listen(self) -> None:
        """Hear it out."""
        if self._program is None:
            return
        async for line in self._program.hear():
            match message := msgspec.json.decode(line, type=SessionMessage):
                case SessionProgress():
                    self._last = message
                    if self._show is not None:
                        self._show(Snapshot.decode(bytes(message.snapshot)))
                case Failed():
                    self._failed = message
                case Ended():
                    self._ended = message

    def interrupt(self) -> None:
        """Have Locust end its users."""
        self.interrupted = True
        if self._program is not None:
            self._program.signal(signal.SIGTERM)

    async def dismiss(self) -> None:
        """End what still runs."""
        if self._program is not None:
            await self._program.dismiss()

    def info(self) -> ScenarioInfo | None:
        """What it did; None when nothing was recorded."""
        if self._ended is None:
            return self._salvaged()
        info, ended = self._ended.info, self._ended
        if not info.requests:
            return None
        return msgspec.structs.replace(
            info,
            ramp_s=self._ramp_s(info.users),
            notes=_notes(ended),
            stopped=INTERRUPTED if self.interrupted else info.stopped,
        )

    def _salvaged(self) -> ScenarioInfo | None:
        """From what a killed Locust left on disk."""
        if self._last is None:
            return None
        kept = self._run.requests(self._load.name)
        if not kept:
            return None
        return ScenarioInfo(
            name=self._load.name,
            model="closed",
            users=self._last.users or None,
            ramp_s=self._ramp_s(self._last.users),
            requests=len(kept),
            started_s=min(r.intended_s for r in kept),
            ended_s=max(r.ended_s for r in kept),
            driver="Locust",
            notes=[_CLOCK],
            stopped=INTERRUPTED if self.interrupted else f"{self._how()}; what it had recorded is kept",
        )

    def _ramp_s(self, users: int | None) -> float:
        rate_per_s = self._load.spawn_rate_per_s
        return (users or 0) / rate_per_s if rate_per_s else 0.0

    def _how(self) -> str:
        return f"Locust {self._program.how}" if self._program is not None else "Locust was not started"

    def error(self) -> Exception:
        """Why there is nothing to show."""
        if self._failed is not None:
            return ERRORS.get(self._failed.kind, MeasurementError)(self._failed.message)
        if self._ended is None:
            return MeasurementError(f"{self._how()} before it had recorded anything")
        said = "; ".join(self._ended.exceptions)
        why = f": {said}" if said else f" in the {self._load.duration_s or 0:g} s it ran: give it longer"
        return ConfigError(f"{self._load.locustfile} sent no request{why}")

    def complaint(self) -> str | None:
        """Why the locustfile itself calls the run failed."""
        if self._ended is None:
            return None
        if self._ended.exceptions:
            most = max(self._ended.exceptions, key=self._ended.exceptions.__getitem__)
            count = sum(self._ended.exceptions.values())
            return f"tasks of {self._load.locustfile} raised {count:,} exceptions, most often {most}"
        if self._ended.exit_code:
            return f"{self._load.locustfile} set the exit code {self._ended.exit_code}"
        return None


def _notes(ended: Ended) -> list[str]:
    notes = [_CLOCK if ended.info.unsent is None else _PACED]
    if ended.cut_off:
        many = f"{ended.cut_off:,} requests were" if ended.cut_off > 1 else "1 request was"
        raised = "or ended by an exception in their `with` block, " if ended.exceptions else ""
        notes.append(
            f"{many} under way when Locust ended its users, {raised}and left out; "
            "--locust-args='--stop-timeout 10' waits for them"
        )
    notes += [f"exception in a task: {count:,} x {said}" for said, count in ended.exceptions.items()]
    return notes
