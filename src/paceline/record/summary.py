"""What a recording holds, in a few figures, and what it cost the service."""

import msgspec

from paceline.model.span import EMBEDDING, HTTP_SERVER, LLM
from paceline.record.cost import span_cost_s
from paceline.store.folder import RunFolder
from paceline.trace.calls import Call
from paceline.trace.tree import build_traces

GATEWAY = "gateway"


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Counts and sums over a run. `cost_usd` is None when no call has a known price."""

    run: str
    seconds: float  # wall
    spans: int
    requests: int  # seen by the service
    failed_requests: int
    llm_calls: int
    failed_llm_calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    unpriced_calls: int  # calls to models whose price is not known
    processes: int  # recorded processes of the service
    lost_spans: int
    span_cost_us: float  # CPU of one span on this machine, measured just now
    overhead_cpu_s: float  # that times the spans the service wrote

    def lines(self) -> list[str]:
        """For people."""
        if not self.spans:
            hint = "Was it used? A service that is not Python, or runs `python -I` or `-E`, cannot be recorded"
            return [f"nothing was recorded in {self.seconds:.0f} s. {hint}"]
        cost = "cost not known" if self.cost_usd is None else f"${self.cost_usd:.4f}"
        if self.cost_usd is not None and self.unpriced_calls:
            cost += f" without {self.unpriced_calls:,} calls whose price is not known"
        lost = f"; {self.lost_spans:,} spans were lost" if self.lost_spans else ""
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        requests = f"{self.requests:,} requests ({self.failed_requests:,} failed)"
        calls = f"{self.llm_calls:,} ({self.failed_llm_calls:,} failed)"
        tokens = f"{self.input_tokens:,} tokens in, {self.output_tokens:,} out"
        estimate = "an estimate: one span measured just now, times all; no comparison with an unrecorded run"
        overhead = f"about {self.overhead_cpu_s:.3f} s of its CPU time at {self.span_cost_us:.1f} us a span"
        return [
            f"recorded {requests} in {self.seconds:.0f} s: {self.spans:,} spans of {processes}{lost}",
            f"model calls: {calls}, {tokens}, {cost}",
            f"overhead: {overhead} ({estimate})",
        ]


def summarise(folder: RunFolder) -> Summary:
    """The summary of a run, sealed or not. Takes about 30 us a span."""
    spans = folder.spans()
    own = [s for s in spans if s.service != GATEWAY]
    served = [s for s in own if s.kind == HTTP_SERVER]
    calls = [c for t in build_traces(spans, []) for c in t.calls if c.kind in (LLM, EMBEDDING)]
    priced = [c.cost_usd for c in calls if c.cost_usd is not None]
    cost_s = span_cost_s()
    return Summary(
        run=str(folder.path),
        seconds=folder.info.ended_s or folder.now_s(),
        spans=len(spans),
        requests=len(served),
        failed_requests=sum(s.status == "error" for s in served),
        llm_calls=len(calls),
        failed_llm_calls=sum(not c.ok for c in calls),
        input_tokens=_total(calls, "input_tokens"),
        output_tokens=_total(calls, "output_tokens"),
        cost_usd=sum(priced) if priced else None,
        unpriced_calls=len(calls) - len(priced),
        processes=len({p.stem for p in folder.path.glob("spans-app-*")}),
        lost_spans=sum(int(p.read_text()) for p in folder.path.glob("lost-*")),
        span_cost_us=cost_s * 1e6,
        overhead_cpu_s=cost_s * len(own),
    )


def _total(calls: list[Call], field: str) -> int:
    return sum(getattr(call, field) or 0 for call in calls)
