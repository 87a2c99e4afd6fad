"""RunData: everything a run recorded, in memory. Whoever holds the run folder builds it; nothing here reads files."""

from dataclasses import dataclass, replace

import msgspec

from paceline.model.request import Request, ResourceSample
from paceline.model.run import RunInfo, ScenarioInfo
from paceline.model.span import Span


@dataclass(frozen=True, slots=True)
class RunData:
    """One run, times at the provider's pace. Any of the three tables may be empty (recorded only, load only)."""

    info: RunInfo
    requests: list[Request]
    spans: list[Span]
    resources: list[ResourceSample]

    @property
    def scenario_names(self) -> list[str]:
        """Scenarios that have requests, in the order they began."""
        first: dict[str, float] = {}
        for request in self.requests:
            first[request.scenario] = min(request.intended_s, first.get(request.scenario, request.intended_s))
        return sorted(first, key=lambda name: (first[name], name))

    def scenario_info(self, name: str) -> ScenarioInfo | None:
        """How the scenario was driven; None when run.json does not say."""
        return next((s for s in self.info.scenarios if s.name == name), None)

    def scenario(self, name: str) -> "RunData":
        """This run as if only scenario `name` had been driven.

        Keeps its requests, the spans of their traces (work after the answer included) and the resource samples
        between its first intended start and its last end.

        Raises:
            ValueError: it has no request in this run; the message lists those that have.
        """
        requests = [r for r in self.requests if r.scenario == name]
        if not requests:
            known = ", ".join(self.scenario_names) or "none"
            msg = f"no request of scenario {name!r} in run {self.info.id}; scenarios with requests: {known}"
            raise ValueError(msg)
        traces = {r.trace_id for r in requests}
        start_s = min(r.intended_s for r in requests)
        end_s = max(r.ended_s for r in requests)
        return replace(
            self,
            info=msgspec.structs.replace(self.info, scenarios=[s for s in self.info.scenarios if s.name == name]),
            requests=requests,
            spans=[s for s in self.spans if s.trace_id in traces],
            resources=[r for r in self.resources if start_s <= r.at_s <= end_s],
        )
