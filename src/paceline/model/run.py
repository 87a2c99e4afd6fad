"""RunInfo: what run.json says about a run."""

import msgspec

from paceline.model.figures import Objective

SCHEMA = 1  # of the run folder; readers accept this and older

COMPLETE = "complete"
PARTIAL = "partial"  # interrupted; what is there is right but not all of it
RUNNING = "running"  # still being written, or its writer was killed


class Unsent(msgspec.Struct, frozen=True, kw_only=True):
    """What the pacing of users asked for while they waited for an answer, and was never sent."""

    tasks: int
    p50_s: float  # of the requests recorded and an estimate for each of those together, from the intended start
    p95_s: float
    p99_s: float


class ScenarioInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One load scenario that was driven in this run; enough to simulate the same load again.

    Times and rates are at the provider's pace (as in the analysed tables), the generator's own lag is wall time.
    """

    name: str
    model: str  # "closed" (users) or "open" (arrivals)
    users: int | None = None
    ramp_s: float = 0.0  # one user starts in each of `users` equal parts of it
    think_s: float = 0.0
    rate_per_s: float | None = None
    arrivals: str = "constant"  # "constant", "poisson", "gamma" or "replay"
    cv: float = 1.0  # of gamma arrivals
    requests: int = 0
    seed: int = 0
    timeout_s: float = 120.0
    started_s: float = 0.0  # since the start of the run
    ended_s: float = 0.0
    lag_p50_s: float | None = None  # generator health: how late it sent or reacted, wall seconds
    lag_p99_s: float | None = None
    lag_max_s: float | None = None
    achieved_rate_per_s: float | None = None  # what an open scenario really sent; `rate_per_s` was asked
    generator_cpu_ratio: float | None = None  # its own CPU use, 1 = one core; of several processes the busiest
    processes: int = 1  # that drove it
    trouble: str | None = None  # why the generator itself spoiled the measurement
    failed_checks: dict[str, int] = {}  # how often each check failed
    driver: str | None = None  # who sent it, where it was not Paceline itself: "Locust 2.47.0"
    notes: list[str] = []  # what the figures of such a driver mean, and what they leave out
    unsent: Unsent | None = None  # None: no user was paced
    stopped: str | None = None  # why it ended early: "interrupted", "50 connection errors in a row"


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The header of a run folder. Times in the files are raw; readers multiply by `speed`."""

    schema: int = SCHEMA
    id: str
    name: str
    paceline: str  # version that wrote it
    start_ns: int  # Unix time at zero
    clock_offset_ns: int = 0
    speed: float = 1.0  # the simulated provider ran this many times faster than real
    state: str = RUNNING
    reason: str | None = None  # why it is partial
    ended_s: float | None = None  # wall seconds
    command: list[str] = []
    scenarios: list[ScenarioInfo] = []
    host: dict[str, str | int | float] = {}
    notes: list[str] = []
    objectives: list[Objective] = []  # that a load was to meet
    goodput: list[str] = []  # what a request must meet to count as good: "first_token_s<0.5"
