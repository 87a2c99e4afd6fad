"""Run every rule over a run and rank what they find. Adding a rule is a file and a line in RULES."""

from collections.abc import Callable

from paceline.diagnose.rules.deferrable_work import deferrable_work
from paceline.diagnose.rules.duplicate_calls import duplicate_calls
from paceline.diagnose.rules.oversized_prompt import oversized_prompt
from paceline.diagnose.rules.provider_limit import provider_limit
from paceline.diagnose.rules.sequential_calls import sequential_calls
from paceline.diagnose.rules.strong_model_trivial_step import strong_model_trivial_step
from paceline.diagnose.rules.swallowed_failure import swallowed_failure
from paceline.diagnose.rules.thread_memory_spike import thread_memory_spike
from paceline.diagnose.view import View, view_of
from paceline.model.finding import Finding
from paceline.trace.data import RunData
from paceline.trace.tree import paused_collector

Rule = Callable[[View], list[Finding]]

RULES: dict[str, Rule] = {
    "swallowed_failure": swallowed_failure,
    "sequential_calls": sequential_calls,
    "duplicate_calls": duplicate_calls,
    "strong_model_trivial_step": strong_model_trivial_step,
    "oversized_prompt": oversized_prompt,
    "deferrable_work": deferrable_work,
    "provider_limit": provider_limit,
    "thread_memory_spike": thread_memory_spike,
}


def diagnose(run: RunData) -> list[Finding]:
    """Everything the rules find in a run, what saves most first.

    Hidden failures come before all others: what they cost is not time but the worth of every answer, and no figure of
    the failing step means anything until it works. The rest is ranked by what fixing it saves: its share of the mean
    response time, of the cost and of the peak memory, added up. Savings are each for that fix alone and overlap, so
    they don't add up; `project` says what several are worth together. A healthy run gives an empty list.
    """
    with paused_collector():
        view = view_of(run)
        if not view.traces:
            return []
        found = [finding for rule in RULES.values() for finding in rule(view)]
    return sorted(found, key=lambda f: _rank(f, view))


def _rank(finding: Finding, view: View) -> tuple[bool, float, str, str]:
    peak_mb = max((r.rss_bytes for r in view.resources), default=0) / 1e6
    saving = finding.saving
    shares = (
        saving.latency_s / view.mean_s if view.mean_s else 0.0,
        saving.cost_per_1000_usd / view.per_1000(view.cost_usd) if view.cost_usd else 0.0,
        saving.memory_mb / peak_mb if peak_mb else 0.0,
    )
    # Rounded, so that figures equal but for the order of additions do not change the order.
    return finding.rule != "swallowed_failure", -round(sum(shares), 9), finding.rule, finding.title
