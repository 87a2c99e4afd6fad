"""The closed loop: baseline, findings, every phase projected, then applied and measured, one after the other."""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from paceline import __version__
from paceline.diagnose import diagnose
from paceline.errors import ConfigError, PacelineError, ServiceError
from paceline.model.change import Route
from paceline.model.run import COMPLETE, PARTIAL
from paceline.model.tuning import BEFORE, PhaseResult, TuneResult
from paceline.project import Projector
from paceline.store.folder import create_run, disk_errors
from paceline.store.tuning import save_result
from paceline.trace.data import RunData
from paceline.tune.measure import Bench, Measured, Watch, measure, prepare
from paceline.tune.probe import probe
from paceline.tune.proof import judge, projection_error
from paceline.tune.quality import read_golden
from paceline.tune.roadmap import as_toml, keep, project_phases, propose
from paceline.tune.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to tune, beside what the target says."""

    speed: float = 1.0  # times faster than real; above 1 only with a simulated provider
    seed: int = 0  # of the simulated provider and the projections
    only_baseline: bool = False  # measure nothing after the projections
    root: Path = Path(".paceline/tunes")


class Tuning:
    """One tuning. `result` is what is known so far; after every step the same stands in `folder`/tune.json."""

    def __init__(self, target: Target, options: Options, watch: Watch) -> None:
        if options.speed <= 0:
            msg = f"--speed must be above 0; got {options.speed:g}"
            raise ConfigError(msg)
        if options.speed != 1 and not target.provider.simulate:
            msg = f"--speed {options.speed:g} needs a simulated provider; {target.provider.base_url} has its own pace"
            raise ConfigError(msg)
        golden = read_golden(target.folder / target.quality.golden) if target.quality else []
        self._target, self._options, self._watch = target, options, watch
        self.folder = _new_folder(options.root, target.name)
        self._bench = Bench(
            target=target, folder=self.folder, speed=options.speed, seed=options.seed, golden=golden, watch=watch
        )
        self.result = TuneResult(
            name=target.name,
            target=str(target.path),
            paceline=__version__,
            started_at=_now(),
            speed=options.speed,
            seed=options.seed,
            provider=target.provider.base_url or "simulated",
            command=target.service.command,
            scenario=target.main.name,
            phases=[PhaseResult(name=BEFORE, title="as it is")]
            + [
                PhaseResult(name=p.name, title=p.title, fixes=p.fixes, env=p.env, gateway=p.gateway, changes=p.changes)
                for p in target.phases
            ],
        )

    async def run(self) -> TuneResult:
        """Go round the loop.

        Raises:
            PacelineError: it had to stop; `result` has what was reached, marked partial, with the reason.
            CancelledError: the same, with the reason "interrupted".
        """
        try:
            with disk_errors(self.folder):
                await self._loop()
        except asyncio.CancelledError:
            self._end(PARTIAL, "interrupted")
            raise
        except PacelineError as error:
            self._end(PARTIAL, str(error))
            raise
        self._end(COMPLETE)
        return self.result

    async def _loop(self) -> None:
        self._save()
        await prepare(self._bench)
        before = await self._measure(0)
        self._refuse_all_failed(before)
        self._watch.step("diagnosing the baseline")
        base = before.data.scenario(self.result.scenario)
        self._save(findings=await asyncio.to_thread(diagnose, base))
        projector = await self._projector(before.data)
        if not self._target.phases:
            await self._propose(projector)
            return
        await self._project(projector, before.data.info.id)
        if self._options.only_baseline:
            return
        after = before
        for number in range(1, len(self._target.phases) + 1):
            after = await self._measure(number)
        self._watch.step("diagnosing what is left")
        self._save(left=await asyncio.to_thread(diagnose, after.data.scenario(self.result.scenario)))

    async def _measure(self, number: int) -> Measured:
        """Measure the target after `number` phases; the result has the run even when it ended early."""
        phase = self.result.phases[number]
        self._watch.step(f"{phase.name}: starting the application")
        ends = (0, len(self._target.phases))
        scenarios = [s for s in self._target.scenarios if s.when == "every" or number in ends]
        run = create_run(
            self.folder,
            phase.name,
            speed=self._options.speed,
            command=self._target.service.command,
            folder="baseline" if number == 0 else f"phase-{number}-{phase.name}",
        )
        began_s = time.monotonic()
        phase = msgspec.structs.replace(phase, run=run.path.name, started_at=_now())
        try:
            measured = await measure(self._bench, self._target.after(number), run, scenarios)
        except BaseException as error:
            note = f"not measured to the end: {error or 'interrupted'}"
            self._put(number, msgspec.structs.replace(phase, notes=[note]))
            raise
        phase = msgspec.structs.replace(
            phase,
            figures=measured.figures,
            scenarios=run.info.scenarios,
            quality=measured.quality,
            wall_s=time.monotonic() - began_s,
            notes=measured.notes,
        )
        for note in measured.notes:
            self._watch.note(f"{phase.name}: {note}")
        self._put(number, phase, host=run.info.host)
        return measured

    def _refuse_all_failed(self, before: Measured) -> None:
        """A baseline without a single answer shows a mistake in the file, not a slow application."""
        figures = before.figures[self.result.scenario]
        if figures.success_ratio:
            return
        endpoint = self._target.main.endpoints[0]
        seen = ", ".join(f"{error} ({count} times)" for error, count in figures.errors.items())
        msg = (
            f"every request of scenario {self.result.scenario!r} failed: {seen}. Check that {endpoint.method} "
            f"{endpoint.path} and the bodies are what the application expects; its log is {self.folder}/baseline"
        )
        raise ServiceError(msg)

    async def _projector(self, base: RunData) -> Projector:
        """What projects changes from the baseline; models it never called are asked for their pace first."""
        routed = [c.model for p in self._target.phases for c in p.changes if isinstance(c, Route)]
        routed += [f.change.model for f in self.result.findings if isinstance(f.change, Route)]
        paces, probes = await probe(self._bench, base, sorted(set(routed)))
        self._save(probes=probes)
        self._watch.step("simulating the baseline")
        return await asyncio.to_thread(Projector, base, self.result.scenario, models=paces, seed=self._options.seed)

    async def _project(self, projector: Projector, baseline: str) -> None:
        """Say what every phase will do, and write it down before any is made."""
        self._watch.step(f"projecting {len(self._target.phases)} phases")
        said = await asyncio.to_thread(project_phases, self._target, projector.project)
        at = keep(said, self.folder, baseline=baseline, scenario=self.result.scenario)
        phases = [
            msgspec.structs.replace(phase, projection=one.projection)
            for phase, one in zip(self.result.phases[1:], said, strict=True)
        ]
        self._save(phases=[self.result.phases[0], *phases], projected_at=at)

    async def _propose(self, projector: Projector) -> None:
        """Without phases: what to do first."""
        self._watch.step("projecting what the findings ask for")
        proposals = await asyncio.to_thread(propose, self.result.findings, projector.project)
        if proposals:
            (self.folder / "roadmap.toml").write_text(as_toml(proposals))
        self._save(proposals=proposals)

    def _put(self, number: int, phase: PhaseResult, **changes: Any) -> None:
        phases = list(self.result.phases)
        phases[number] = phase
        self._save(phases=phases, **changes)

    def _save(self, **changes: Any) -> None:
        """Change the result, judge it anew, and write it."""
        result = msgspec.structs.replace(self.result, **changes)
        self.result = msgspec.structs.replace(
            result,
            objectives=judge(self._target.objectives, result.phases, result.scenario),
            projection_error=projection_error(result.phases, result.scenario),
        )
        save_result(self.result, self.folder)

    def _end(self, state: str, reason: str | None = None) -> None:
        # A full disk is one of the reasons for ending: then tune.json stays as it was last written.
        with contextlib.suppress(PacelineError):
            self._save(state=state, reason=reason, ended_at=_now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _new_folder(root: Path, name: str) -> Path:
    """A new folder of the tuning's name and the time of day."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    with disk_errors(root):
        for attempt in range(1, 1000):
            path = root / (f"{name}-{stamp}" if attempt == 1 else f"{name}-{stamp}-{attempt}")
            with contextlib.suppress(FileExistsError):
                path.mkdir(parents=True)
                return path
    msg = f"cannot make a folder for this tuning in {root}: a thousand of its name exist"
    raise ConfigError(msg)
