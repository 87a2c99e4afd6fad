"""Finding: one cause of lost time or money, with its evidence."""

import msgspec

from paceline.model.change import Change


class Where(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The place to look: as much of it as is known."""

    endpoint: str | None = None
    step: str | None = None
    code: str | None = None  # "support/app.py:88 classify_intent"
    model: str | None = None
    fingerprint: str | None = None


class Evidence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was seen. `facts` are named numbers, units in the names."""

    span_ids: list[str] = []  # examples, at most ten
    trace_ids: list[str] = []
    count: int  # how often it was seen
    of: int  # out of how many chances
    facts: dict[str, float | int | str] = {}


class Saving(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What fixing it is worth, as a mean over ALL requests of the run, others unchanged."""

    latency_s: float = 0.0
    cost_per_1000_usd: float = 0.0
    memory_mb: float = 0.0


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One cause. Findings are ranked by `saving`."""

    rule: str  # snake_case name of the rule that found it
    title: str  # one sentence
    where: Where
    evidence: Evidence
    critical_path_s: float  # mean seconds per affected request on the critical path
    saving: Saving
    confidence: float  # 0 to 1
    remedy: str  # what to do, one or two sentences
    change: Change | None = None
