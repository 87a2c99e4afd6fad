"""Measuring one phase: a fresh provider, the application with the phase's setting, the load, the golden set."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from paceline.errors import ServiceError
from paceline.load.driver import Snapshot, drive
from paceline.load.scenario import Scenario
from paceline.model.figures import Figures
from paceline.model.run import COMPLETE, PARTIAL
from paceline.model.tuning import Quality
from paceline.store.folder import RunFolder
from paceline.trace.data import RunData
from paceline.trace.figures import figures_of
from paceline.tune.provider import SimulatedProvider
from paceline.tune.quality import Question, ask_golden
from paceline.tune.recorded import RecordedService
from paceline.tune.target import Setting, Target, fill

_DYING_S = 1.0


class Watch(Protocol):
    """Who is told how a tuning goes."""

    def step(self, text: str) -> None:
        """Something that takes a while begins."""

    def note(self, text: str) -> None:
        """A line worth keeping."""

    def load(self, snapshot: Snapshot) -> None:
        """Where a scenario stands; called four times a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What stays the same over the phases of one tuning."""

    target: Target
    folder: Path  # of the tuning
    speed: float
    seed: int
    golden: list[Question]
    watch: Watch

    @asynccontextmanager
    async def upstream(self) -> AsyncIterator[str]:
        """The provider's base URL; a simulated one is fresh, so no phase inherits another's rate limits."""
        provider = self.target.provider
        if provider.base_url:
            yield provider.base_url
            return
        config = self.target.folder / provider.simulate if isinstance(provider.simulate, str) else None
        log = self.folder / "provider.log"
        async with SimulatedProvider(config=config, speed=self.speed, seed=self.seed, log=log) as simulated:
            yield simulated.url

    def env(self, setting: Setting) -> dict[str, str]:
        """The application's variables, placeholders filled except {port}."""
        env = dict(zip(setting.env, fill(setting.env.values(), self.target, self.speed), strict=True))
        if self.target.provider.simulate:
            env.setdefault("OPENAI_API_KEY", "simulated")  # SDKs insist on one; a real one has no business here
        return env


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What measuring one setting gave."""

    data: RunData
    figures: dict[str, Figures]  # per scenario that was driven to its end
    quality: Quality | None
    notes: list[str]


async def prepare(bench: Bench) -> None:
    """Run the target's prepare commands, model calls going straight to the provider.

    Raises ServiceError with the last line a failing command printed. Cancelling kills the command.
    """
    target, setting = bench.target, bench.target.after(0)
    if not target.service.prepare:
        return
    async with bench.upstream() as url:
        env = {**os.environ, **bench.env(setting), target.provider.env: f"{url}/v1"}
        for command in target.service.prepare:
            bench.watch.step(f"preparing: {' '.join(command)}")
            await _run(fill(command, target, bench.speed), target, env, bench.folder / "prepare.log")


async def _run(command: list[str], target: Target, env: dict[str, str], log: Path) -> None:
    timeout_s = target.service.prepare_timeout_s
    shown = " ".join(command)
    try:
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(*command, cwd=target.cwd, env=env, stdout=out, stderr=out)
    except OSError as error:
        msg = f"{target.path}: service.prepare: cannot start {shown!r}: {error.strerror}"
        raise ServiceError(msg) from error
    try:
        async with asyncio.timeout(timeout_s):
            code = await process.wait()
    except TimeoutError:
        msg = f"the prepare command {shown!r} took longer than {timeout_s:g} s; raise service.prepare_timeout_s"
        raise ServiceError(msg) from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if code:
        said = log.read_text(errors="replace").strip().splitlines()
        msg = f"the prepare command {shown!r} ended with code {code}: {said[-1] if said else 'it printed nothing'}"
        raise ServiceError(msg)


async def measure(bench: Bench, setting: Setting, run: RunFolder, scenarios: list[Scenario]) -> Measured:
    """Measure the application with `setting` and seal the run.

    Raises:
        ServiceError: the application did not start, or ended under the load. What was recorded is kept, the run
            marked partial; the same holds when cancelled.
    """
    service = bench.target.service
    quality: Quality | None = None
    try:
        async with (
            bench.upstream() as url,
            RecordedService(
                run,
                command=fill(service.command, bench.target, bench.speed),
                cwd=bench.target.cwd,
                env=bench.env(setting),
                base_url_env=bench.target.provider.env,
                ready_url=service.ready_url,
                ready_timeout_s=service.ready_timeout_s,
                stop_timeout_s=service.stop_timeout_s,
                upstream=url,
                policy=setting.policy,
            ) as recorded,
        ):
            for scenario in scenarios:
                bench.watch.step(f"{run.info.name}: load {scenario.name!r}")
                await _drive(bench, recorded, run, scenario)
            if bench.golden:
                bench.watch.step(f"{run.info.name}: golden set, {len(bench.golden)} questions")
                quality = await _golden(bench, recorded.url)
    except BaseException as error:
        # Cancellation too: whoever interrupts a tuning keeps what was recorded.
        run.finish(PARTIAL, str(error) or "interrupted")
        raise
    run.finish(COMPLETE)
    return summed_up(bench.target, run, quality)


async def _drive(bench: Bench, recorded: RecordedService, run: RunFolder, scenario: Scenario) -> None:
    info = await drive(scenario, recorded.url, run, speed=bench.speed, progress=bench.watch.load)
    if info.stopped:
        # A dying process answers nobody for a moment before it is gone; its exit says more than our errors.
        with suppress(TimeoutError):
            await asyncio.wait_for(recorded.wait(), _DYING_S)
    recorded.check()
    if info.stopped:
        msg = f"scenario {scenario.name!r} was given up: {info.stopped}"
        raise ServiceError(msg)


async def _golden(bench: Bench, url: str) -> Quality:
    golden, main = bench.target.quality, bench.target.main
    assert golden is not None  # noqa: S101 - there are questions
    endpoint = main.endpoints[0]
    return await ask_golden(
        bench.golden,
        url,
        method=golden.method or endpoint.method,
        path=golden.path or endpoint.path,
        at_once=golden.at_once,
        timeout_s=golden.timeout_s / bench.speed,
    )


def summed_up(target: Target, run: RunFolder, quality: Quality | None) -> Measured:
    """The figures of a sealed run; the quality is the main scenario's."""
    data = RunData(run.info, run.requests(), run.spans(), run.resources())
    figures = {}
    notes = []
    for name in data.scenario_names:
        info = data.scenario_info(name)
        part = data.scenario(name)
        figures[name] = figures_of(part.requests, part.spans, part.resources, info=info)
        if quality and name == target.main.name:
            figures[name] = msgspec.structs.replace(figures[name], quality_ratio=quality.ratio)
        if info and info.trouble:
            notes.append(f"{name}: {info.trouble}")
    return Measured(data=data, figures=figures, quality=quality, notes=notes)
