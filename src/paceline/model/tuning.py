"""TuneResult: all a tuning came to, as stored in tune.json. Reports read nothing else but the runs."""

import msgspec

from paceline.model.change import Change
from paceline.model.figures import MUST, Figures, Objective
from paceline.model.finding import Finding
from paceline.model.projection import Projection
from paceline.model.run import RUNNING, ScenarioInfo

SCHEMA = 1  # of tune.json; readers accept this and older
BEFORE = "before"  # the name of the phase that changes nothing


class GoldenMiss(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One golden question whose answer lacked what it must say."""

    index: int  # line of the golden file, from 0
    missing: list[str] = []
    problem: str | None = None  # why there was no answer at all: "HTTP 500", "no answer in 120 s"


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """How the golden set fared."""

    asked: int
    passed: int
    misses: list[GoldenMiss] = []

    @property
    def ratio(self) -> float:
        """Share that passed, 0 to 1."""
        return self.passed / self.asked


class PhaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """One phase: what it changes, what it was projected to be, what it was measured to be."""

    name: str
    title: str = ""
    fixes: list[str] = []  # rules whose findings it means to remove
    env: dict[str, str] = {}  # its own; phases are cumulative
    gateway: dict[str, object] = {}  # its own gateway policy fields
    changes: list[Change] = []  # its own
    projection: Projection | None = None  # of all changes so far together, from the baseline; None for the baseline
    run: str | None = None  # folder of its run, relative to tune.json; None: not measured
    figures: dict[str, Figures] = {}  # per scenario
    scenarios: list[ScenarioInfo] = []  # as driven
    quality: Quality | None = None
    started_at: str | None = None  # UTC, ISO 8601
    wall_s: float | None = None
    notes: list[str] = []  # anything a reader must know to trust the figures


class ObjectiveResult(msgspec.Struct, frozen=True, kw_only=True):
    """An objective before the first and after the last measured phase; None: the figure is not known."""

    objective: Objective
    scenario: str
    before: float | str | None
    after: float | str | None
    met_before: bool | None
    met: bool | None


class PhaseError(msgspec.Struct, frozen=True, kw_only=True):
    """Projected over measured, minus 1, for one phase: 0.05 is 5 % too high. `held`: the interval held the figure."""

    name: str
    p50: float | None = None
    p95: float | None = None
    requests_per_s: float | None = None
    held: dict[str, bool] = {}


class ProjectionError(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over the phases of the absolute error; `coverage`: share of phases whose interval held the figure."""

    p50: float | None = None
    p95: float | None = None
    requests_per_s: float | None = None
    coverage: dict[str, float] = {}
    phases: list[PhaseError] = []


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the roadmap that follows from the findings, when the file names no phases."""

    rules: list[str]  # the findings it follows from
    title: str
    change: Change
    alone: Projection  # this change only
    together: Projection  # with all proposals before it
    gateway: dict[str, object] = {}  # policy fields that make the change without touching code; empty: code is needed


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What asking a provider for a model's pace showed and cost."""

    model: str
    calls: int
    ttft_p50_s: float
    token_gap_s: float
    cost_usd: float | None  # None: the price is not known


class TuneResult(msgspec.Struct, frozen=True, kw_only=True):
    """A whole tuning. Times are seconds at the provider's pace."""

    schema: int = SCHEMA
    name: str
    target: str  # the paceline.toml it followed, as given
    paceline: str  # version that wrote it
    started_at: str  # UTC, ISO 8601
    ended_at: str | None = None
    state: str = RUNNING
    reason: str | None = None  # why it is partial
    speed: float = 1.0  # the simulated provider ran this many times faster than real
    seed: int = 0
    provider: str = ""  # "simulated" or the base URL
    command: list[str] = []
    host: dict[str, str | int | float] = {}
    scenario: str  # the main one: what is projected
    phases: list[PhaseResult] = []  # the first is "before"
    findings: list[Finding] = []  # on the baseline
    left: list[Finding] = []  # on the last measured phase
    objectives: list[ObjectiveResult] = []
    projection_error: ProjectionError = ProjectionError()
    projected_at: str | None = None  # when projections.json was written
    proposals: list[Proposal] = []
    probes: list[Probe] = []
    notes: list[str] = []
    report: str | None = None  # file name, relative to tune.json

    @property
    def measured(self) -> list[PhaseResult]:
        """The phases that were measured, the baseline first."""
        return [p for p in self.phases if p.run is not None and p.figures]

    def missed(self, level: str = MUST) -> list[ObjectiveResult]:
        """Objectives of `level` that the last phase does not meet; not knowing the figure is not meeting it."""
        return [o for o in self.objectives if o.objective.level == level and not o.met]
