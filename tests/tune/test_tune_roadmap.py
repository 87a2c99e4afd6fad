"""A roadmap proposed from findings: ordered, projected alone and together, and pasteable into paceline.toml."""

from pathlib import Path

import msgspec
import pytest

from paceline.model.change import Cache, Change, Limit, Parallelise, Remove, Route, Trim
from paceline.model.estimate import Range
from paceline.model.finding import Evidence, Finding, Saving, Where
from paceline.model.projection import Projection
from paceline.tune.roadmap import as_toml, by_gateway, keep, project_phases, propose
from paceline.tune.target import load_target

BASE = """
name = "small"
[service]
command = ["serve", "{port}"]
[provider]
simulate = true
[[scenarios]]
name = "main"
users = 1
requests = 1
"""


def finding(rule: str, change: Change | None, model: str | None = None) -> Finding:
    """A finding that asks for this change."""
    return Finding(
        rule=rule,
        title=rule,
        where=Where(step="answer", model=model),
        evidence=Evidence(count=1, of=1),
        critical_path_s=1.0,
        saving=Saving(latency_s=1.0),
        confidence=1.0,
        remedy="do it",
        change=change,
    )


def projector(changes: list[Change]) -> Projection:
    """Says only what it was asked."""
    return Projection(changes=changes, refusal="not asked for figures")


ROUTE = Route(step="classify", model="small")
PARALLEL = Parallelise(steps=["a", "b"])
TRIM = Trim(step="answer", input_ratio=Range(0.4, 0.6))


def test_proposals_follow_the_findings_and_add_up() -> None:
    """Each is projected alone and with all before it; the same change is proposed once, for both its rules."""
    findings = [
        finding("sequential_calls", PARALLEL),
        finding("strong_model_trivial_step", ROUTE, "big"),
        finding("provider_limit", None),
        finding("duplicate_calls", ROUTE, "big"),
        finding("oversized_prompt", TRIM, "big"),
    ]
    proposals = propose(findings, projector)
    assert [p.alone.changes for p in proposals] == [[PARALLEL], [ROUTE], [TRIM]]
    assert [p.together.changes for p in proposals] == [[PARALLEL], [PARALLEL, ROUTE], [PARALLEL, ROUTE, TRIM]]
    assert proposals[1].rules == ["duplicate_calls", "strong_model_trivial_step"]
    assert [bool(p.gateway) for p in proposals] == [False, True, False]


@pytest.mark.parametrize(
    ("change", "policy"),
    [
        (ROUTE, {"routing": {"routes": [{"step": "classify", "model": "small"}]}}),
        (
            Limit(resource="provider", size=8),
            {"limits": {"concurrency": 8, "adaptive": {"enabled": True}}, "routing": {"retries": {"enabled": True}}},
        ),
        (
            Limit(resource="provider:gpt-4o", size=8),
            {
                "limits": {"models": {"gpt-4o": {"concurrency": 8}}, "adaptive": {"enabled": True}},
                "routing": {"retries": {"enabled": True}},
            },
        ),
        (
            Cache(step="answer", key="text", shared_in_flight=True),
            {"cache": {"enabled": True, "key": "text"}, "single_flight": True},
        ),
        (Remove(step="answer", repeats_only=True), {"cache": {"enabled": True}, "single_flight": True}),
        (Limit(resource="threads", size=8), {}),
        (Cache(), {}),
        (PARALLEL, {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_gateway_can_do_itself(change: Change, policy: dict[str, object]) -> None:
    """Routes, limits and caches of model calls need no code; the rest does."""
    assert by_gateway(change, of_model=True) == policy


def test_a_store_behind_the_gateways_back_needs_code() -> None:
    """Calls that are not to a model do not pass the gateway, so it cannot cache them."""
    assert by_gateway(Cache(step="retrieve"), of_model=False) == {}


def test_the_proposed_toml_loads_as_phases(tmp_path: Path) -> None:
    """What is written can be appended to paceline.toml, and gives back the same changes and policies."""
    findings = [
        finding("sequential_calls", PARALLEL),
        finding("strong_model_trivial_step", ROUTE, "big"),
        finding("provider_limit", Limit(resource="provider:gpt-4.1", size=4), "gpt-4.1"),
        finding("oversized_prompt", TRIM, "big"),
    ]
    (tmp_path / "paceline.toml").write_text(BASE + as_toml(propose(findings, projector)))
    target = load_target(tmp_path)
    assert target.after(4).changes == [f.change for f in findings]
    policy = target.after(4).policy
    assert policy is not None
    assert policy.routing.routes[0].model == "small"
    assert policy.limits.models["gpt-4.1"].concurrency == 4
    assert target.phases[0].name == "1-sequential-calls"
    assert target.phases[0].env == {"FIX_1": "1"}


def test_projections_are_cumulative_and_kept(tmp_path: Path) -> None:
    """Phase two is projected with phase one; the file says when it was written and from which baseline."""
    toml = as_toml(propose([finding("a", PARALLEL), finding("b", ROUTE)], projector))
    (tmp_path / "paceline.toml").write_text(BASE + toml)
    said = project_phases(load_target(tmp_path), projector)
    assert [s.projection.changes for s in said] == [[PARALLEL], [PARALLEL, ROUTE]]
    at = keep(said, tmp_path, baseline="baseline", scenario="main")
    kept = msgspec.json.decode((tmp_path / "projections.json").read_bytes())
    assert kept["written_at"] == at
    assert [p["name"] for p in kept["phases"]] == ["1-a", "2-b"]
