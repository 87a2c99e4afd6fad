"""Roadmaps: the file's phases projected before they are made, or one proposed from the findings."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from paceline.model.change import Cache, Change, Limit, Remove, Route, describe
from paceline.model.estimate import Range
from paceline.model.finding import Finding
from paceline.model.projection import Projection
from paceline.model.tuning import Proposal
from paceline.store.tuning import write_json
from paceline.tune.target import Target

Projector = Callable[[list[Change]], Projection]


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What was projected for one phase."""

    name: str
    projection: Projection


class Projections(msgspec.Struct, frozen=True, kw_only=True):
    """projections.json: written and synced before the first phase is measured, and never again."""

    written_at: str  # UTC, ISO 8601
    baseline: str  # id of the run they rest on
    scenario: str
    phases: list[Said]


def project_phases(target: Target, projector: Projector) -> list[Said]:
    """Every phase with all before it, from the baseline."""
    return [
        Said(name=phase.name, projection=projector(target.after(i).changes))
        for i, phase in enumerate(target.phases, start=1)
    ]


def keep(said: list[Said], folder: Path, *, baseline: str, scenario: str) -> str:
    """Write projections.json and return the time that stands in it."""
    record = Projections(
        written_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        baseline=baseline,
        scenario=scenario,
        phases=said,
    )
    write_json(record, folder / "projections.json")
    return record.written_at


def propose(findings: Sequence[Finding], projector: Projector) -> list[Proposal]:
    """What to do first: the findings' changes in the order of what they save, each alone and with those before it.

    Findings that ask for the same change are one proposal; those without a change are none.
    """
    groups: dict[bytes, list[Finding]] = {}
    for finding in findings:
        if finding.change is not None:
            groups.setdefault(msgspec.json.encode(finding.change), []).append(finding)
    proposals: list[Proposal] = []
    made: list[Change] = []
    for group in groups.values():
        change = group[0].change
        assert change is not None  # noqa: S101 - grouped by it
        alone = projector([change])
        made.append(change)
        proposals.append(
            Proposal(
                rules=sorted({f.rule for f in group}),
                title=describe(change),
                change=change,
                alone=alone,
                together=alone if len(made) == 1 else projector(list(made)),
                gateway=by_gateway(change, of_model=group[0].where.model is not None),
            )
        )
    return proposals


def by_gateway(change: Change, *, of_model: bool) -> dict[str, object]:
    """The gateway policy that makes the change without touching code, or nothing when only code can.

    `of_model`: the step calls a model, so its calls pass the gateway.
    """
    match change:
        case Route(step=step, model=model):
            return {"routing": {"routes": [{"step": step, "model": model}]}}
        case Limit(resource=resource, size=size, queued=True) if resource.startswith("provider"):
            model = resource.removeprefix("provider").removeprefix(":")
            bound: dict[str, object] = {"concurrency": size} if size else {}
            limits = {"models": {model: bound}} if model and bound else bound
            return {"limits": {**limits, "adaptive": {"enabled": True}}, "routing": {"retries": {"enabled": True}}}
        case Cache(step=str(), key=key, shared_in_flight=shared) if of_model:
            return {"cache": {"enabled": True, "key": key}} | ({"single_flight": True} if shared else {})
        case Remove(repeats_only=True) if of_model:
            return {"cache": {"enabled": True}, "single_flight": True}
    return {}


def as_toml(proposals: Sequence[Proposal]) -> str:
    """The proposals as phases for paceline.toml. Those that need code get a variable for the code to read."""
    lines = [
        "# Proposed by `paceline tune` from what it measured. Append what you want to try to paceline.toml.",
        "# Phases with a [phases.gateway] need no code; the others set a variable for your code to read.",
    ]
    for number, proposal in enumerate(proposals, start=1):
        name = f"{number}-{'-'.join(proposal.rules)}".replace("_", "-")
        lines += ["", "[[phases]]", f"name = {_value(name)}", f"title = {_value(proposal.title)}"]
        lines += [f"fixes = {_value(proposal.rules)}"]
        lines += _table("phases.gateway", proposal.gateway or {})
        if not proposal.gateway:
            lines += ["[phases.env]", f'FIX_{number} = "1" # say here which variable switches it on']
        lines += ["[[phases.changes]]"]
        lines += [f"{k} = {_value(v)}" for k, v in _change_fields(proposal.change).items()]
    return "\n".join(lines) + "\n"


def _table(name: str, fields: dict[str, object]) -> list[str]:
    return [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in fields.items())] if fields else []


def _change_fields(change: Change) -> dict[str, object]:
    """The change as the file writes it: no defaults, ranges as numbers or pairs."""
    config = change.__struct_config__
    fields: dict[str, object] = {"kind": config.tag}
    for field in msgspec.structs.fields(change):
        value = getattr(change, field.name)
        if value is not None and value != field.default:
            fields[field.name] = value
    return fields


def _value(value: object) -> str:
    """A TOML value on one line."""
    match value:
        case Range(low=low, high=high):
            return f"{low!r}" if low == high else f"[{low!r}, {high!r}]"
        case dict():
            return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
        case list():
            return "[" + ", ".join(map(_value, value)) + "]"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case bool():
            return str(value).lower()
    return repr(value)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)
