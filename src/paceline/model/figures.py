"""Figures: what a run comes to, and what an objective asks of it."""

import operator

import msgspec

from paceline.model.estimate import Estimate


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one scenario (or of all). Seconds at the provider's pace; None: not known or no such request."""

    requests: int
    duration_s: float
    mean_s: float | None = None
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None
    max_s: float | None = None
    p50_interval_s: tuple[float, float] | None = None  # 95 % confidence
    p95_interval_s: tuple[float, float] | None = None
    p99_interval_s: tuple[float, float] | None = None
    requests_per_s: float | None = None
    success_ratio: float | None = None
    hit_ratio: float | None = None  # hits and joins over requests; None: nothing says hit or miss
    cached_p50_s: float | None = None
    cached_p95_s: float | None = None
    uncached_p50_s: float | None = None
    uncached_p95_s: float | None = None
    first_byte_p50_s: float | None = None
    first_byte_p95_s: float | None = None
    first_token_p50_s: float | None = None  # of answers that stream; trace/streaming.py has the formulas
    first_token_p95_s: float | None = None
    first_token_p99_s: float | None = None
    cached_first_token_p50_s: float | None = None
    cached_first_token_p95_s: float | None = None
    uncached_first_token_p50_s: float | None = None
    uncached_first_token_p95_s: float | None = None
    token_gap_p50_s: float | None = None  # every gap of every answer, pooled
    token_gap_p95_s: float | None = None
    token_gap_p99_s: float | None = None
    mean_gap_p50_s: float | None = None  # one mean an answer
    mean_gap_p95_s: float | None = None
    mean_gap_p99_s: float | None = None
    time_per_token_p50_s: float | None = None  # (e2e - ttft) / (tokens - 1), one an answer
    time_per_token_p95_s: float | None = None
    time_per_token_p99_s: float | None = None
    tokens_p50_per_s: float | None = None  # tokens / e2e, one an answer
    tokens_per_s: float | None = None  # of all answers together
    goodput_ratio: float | None = None  # share of requests that meet every bound; failures do not
    goodput_per_s: float | None = None
    cost_per_1000_usd: float | None = None  # per 1,000 requests
    llm_calls_per_request: float | None = None
    memory_mb: float | None = None  # peak of the process tree
    memory_growth_mb_per_1000: float | None = None  # per 1,000 requests
    memory_verdict: str | None = None  # "steady", "spike", "leak", "run longer"
    processor_busy_ratio: float | None = None  # of the cores that the application's code can use at once
    errors: dict[str, int] = {}
    quality_ratio: float | None = None  # share of golden answers that hold what they must
    swallowed_failure_ratio: float | None = None  # requests in which a failed step was hidden, over requests


class ProjectedFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures a projection gives, each with its 90 % interval."""

    p50_s: Estimate
    p95_s: Estimate
    mean_s: Estimate
    requests_per_s: Estimate
    success_ratio: Estimate
    hit_ratio: Estimate | None = None
    cost_per_1000_usd: Estimate | None = None
    memory_mb: Estimate | None = None


WORDS = ("memory_verdict",)  # metrics that are words
METRICS = tuple(  # what an objective can ask for: single values
    name for name in Figures.__struct_fields__ if name != "errors" and not name.endswith("_interval_s")
)
MUST, SHOULD, STRETCH = "must", "should", "stretch"


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A target on one figure: `metric` is a field of Figures, `op` one of <, <=, >, >=, ==."""

    name: str
    metric: str
    op: str
    target: float | str
    level: str = MUST
    scenario: str | None = None  # None: the main scenario

    def met(self, figures: Figures) -> bool | None:
        """True or false; None when the figure is not known."""
        value = getattr(figures, self.metric)
        if value is None:
            return None
        return bool(_OPS[self.op](value, self.target))

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            known = ", ".join(METRICS)
            msg = f"objective {self.name!r}: unknown metric {self.metric!r}; one of {known}"
            raise ValueError(msg)
        is_word = self.metric in WORDS
        if is_word != isinstance(self.target, str) or (is_word and self.op not in ("==", "!=")):
            what = f"compares {self.metric} to a word with == or !=" if is_word else f"{self.metric} needs a number"
            msg = f"objective {self.name!r}: {what}; got {self.op} {self.target!r}"
            raise ValueError(msg)
        if self.op not in _OPS:
            msg = f"objective {self.name!r}: unknown op {self.op!r}; one of {' '.join(_OPS)}"
            raise ValueError(msg)
        if self.level not in (MUST, SHOULD, STRETCH):
            msg = f"objective {self.name!r}: unknown level {self.level!r}; one of must, should, stretch"
            raise ValueError(msg)


_OPS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
