"""Recordings of a small application whose true behaviour is known: steps one after the other, nothing to wait for."""

import heapq
import math
import random
from dataclasses import dataclass, field
from typing import Any

from paceline.model.request import Request, ResourceSample
from paceline.model.run import RunInfo, ScenarioInfo
from paceline.model.span import PROMPT_HASH, TTFT_S, USES, AttributeValue, Span
from paceline.trace.data import RunData

START_NS = 1_700_000_000_000_000_000
MODEL = "gpt-4o"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of every request. `model` None: a database."""

    name: str
    seconds: float = 1.0  # median
    model: str | None = MODEL
    output_tokens: int = 50
    gap_s: float = 0.01
    uses: tuple[str, ...] = ()
    together: bool = False  # starts with the step before it


@dataclass(kw_only=True)
class Recorded:
    """What to record."""

    steps: tuple[Step, ...] = (Step(name="classify", output_tokens=3), Step(name="answer", seconds=2.0))
    requests: int = 80
    users: int | None = 8
    rate_per_s: float = 1.0
    questions: int = 1000
    cached: bool = False
    sigma: float = 0.3
    seed: int = 1
    cpu_s: float | None = None  # of a request; None: no resource samples
    spans: list[Span] = field(default_factory=list)

    def data(self) -> RunData:
        """The recording of scenario "main"."""
        rng = random.Random(self.seed)
        requests: list[Request] = []
        answered: dict[str, float] = {}
        free = [(0.0, user) for user in range(self.users or 1)]
        for index in range(self.requests):
            start_s, user = heapq.heappop(free) if self.users else (index / self.rate_per_s, 0)
            key = f"{rng.randrange(self.questions):016x}"
            hit = self.cached and answered.get(key, math.inf) <= start_s
            end_s = start_s + 0.004 if hit else self._request(index, key, start_s, rng)
            answered[key] = min(end_s, answered.get(key, end_s))
            requests.append(self._sent(index, start_s, end_s, key, user, hit=hit))
            if self.users:
                heapq.heappush(free, (end_s, user))
        return RunData(self._info(requests), requests, self.spans, self._resources(requests))

    def _request(self, index: int, key: str, start_s: float, rng: random.Random) -> float:
        """Spans of one request; returns its end."""
        trace_id, root_id = f"{index + 1:032x}", f"{index + 1:016x}"
        ids: dict[str, str] = {}
        at_s = began_s = start_s + 0.001
        end_s = at_s
        for position, step in enumerate(self.steps):
            began_s = began_s if step.together else end_s
            seconds = step.seconds * math.exp(rng.gauss(0, self.sigma))
            span_id = ids[step.name] = f"{(index + 1) * 1000 + position:016x}"
            fields: dict[str, Any] = {"kind": "db", "name": "query"}
            attributes: dict[str, AttributeValue] = {}
            if step.model:
                ttft_s = max(0.01, seconds - step.gap_s * (step.output_tokens - 1))
                seconds = ttft_s + step.gap_s * (step.output_tokens - 1)
                attributes = {TTFT_S: ttft_s, PROMPT_HASH: f"{step.name}{key}"}
                if step.uses:
                    attributes[USES] = [ids[name] for name in step.uses]
                fields = {"kind": "llm", "name": "chat", "model": step.model, "input_tokens": 400, "cost_usd": 0.001}
                fields["output_tokens"] = step.output_tokens
            self.spans.append(
                Span(
                    trace_id=trace_id,
                    span_id=span_id,
                    parent_id=root_id,
                    service="app",
                    start_ns=ns(began_s),
                    duration_ns=round(seconds * 1e9),
                    code=f"app.py:{len(step.name)} {step.name}",
                    attributes=attributes,
                    **fields,
                )
            )
            end_s = max(end_s, began_s + seconds)
        self.spans.append(
            Span(
                trace_id=trace_id,
                span_id=root_id,
                name="POST /ask",
                kind="http.server",
                service="app",
                start_ns=ns(at_s),
                duration_ns=ns(end_s) - ns(at_s),
            )
        )
        return end_s + 0.001

    def _sent(self, index: int, start_s: float, end_s: float, key: str, user: int, *, hit: bool) -> Request:
        return Request(
            index=index,
            scenario="main",
            endpoint="POST /ask",
            trace_id=f"{index + 1:032x}",
            intended_s=start_s,
            started_s=start_s,
            ended_s=end_s,
            status=200,
            cache=("hit" if hit else "miss") if self.cached else None,
            key=key,
            text_key=key,
            user=user if self.users else None,
        )

    def _info(self, requests: list[Request]) -> RunInfo:
        scenario = ScenarioInfo(
            name="main",
            model="closed" if self.users else "open",
            users=self.users,
            rate_per_s=None if self.users else self.rate_per_s,
            requests=len(requests),
        )
        return RunInfo(id="base", name="base", paceline="0", start_ns=START_NS, scenarios=[scenario])

    def _resources(self, requests: list[Request]) -> list[ResourceSample]:
        if self.cpu_s is None:
            return []
        end_s = max(r.ended_s for r in requests)
        samples = []
        for number in range(int(end_s / 0.5) + 1):
            at_s = number * 0.5
            begun = sum(r.started_s < at_s for r in requests)
            in_flight = sum(r.started_s < at_s < r.ended_s for r in requests)
            samples.append(
                ResourceSample(
                    at_s=at_s,
                    service="app",
                    processes=1,
                    threads=in_flight + 1,
                    cpu_s=begun * self.cpu_s,
                    rss_bytes=round((100 + 10 * in_flight) * 1e6),
                )
            )
        return samples


def ns(seconds: float) -> int:
    """Unix time of an offset."""
    return START_NS + round(seconds * 1e9)
