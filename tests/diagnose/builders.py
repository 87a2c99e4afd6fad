"""Synthetic recordings: runs whose causes of lost time are planted, so that the right answer is known.

`TraceMaker` writes the spans of one request on a virtual clock, the way the recorder and the gateway would;
`RunMaker` collects traces, requests and resource samples into RunData.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from paceline.model.price import price_of
from paceline.model.request import Request, ResourceSample
from paceline.model.run import RunInfo, ScenarioInfo
from paceline.model.span import (
    DB,
    EMBEDDING,
    HTTP_CLIENT,
    HTTP_SERVER,
    HTTP_STATUS,
    LIMIT_REQUESTS_PER_MIN,
    LLM,
    PROMPT_HASH,
    PROMPT_HISTORY_TOKENS,
    PROMPT_SYSTEM_TOKENS,
    PROMPT_USER_TOKENS,
    USED_IN_RESPONSE,
    USES,
    AttributeValue,
    Span,
)
from paceline.trace.data import RunData

START_NS = 1_700_000_000_000_000_000
FULL, HTTP_ONLY, GATEWAY_ONLY = "full", "http", "gateway"
_LINES = {"classify_intent": 88, "retrieve": 110, "tone_guidelines": 130, "write_answer": 150, "validate": 170}


def hex_id(*parts: object, digits: int = 16) -> str:
    """A stable id that looks like the recorder's."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:digits]


def ns(seconds: float) -> int:
    """Unix ns of a moment of the run."""
    return START_NS + round(seconds * 1e9)


@dataclass
class TraceMaker:
    """One request, its clock at `now_s`; calls move it forward."""

    run: "RunMaker"
    index: int
    start_s: float
    style: str = FULL
    now_s: float = 0.0
    spans: list[Span] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    cache: str | None = "miss"
    in_flight: bool = True

    def __post_init__(self) -> None:
        self.now_s = self.start_s + 0.002
        self.trace_id = hex_id("trace", self.index, digits=32)
        self.root_id = self.new_id()

    def new_id(self) -> str:
        """The next span id of this trace."""
        self.count = getattr(self, "count", 0) + 1
        return hex_id(self.index, self.count)

    def span(self, kind: str, start_s: float, end_s: float, **fields: object) -> str:
        """Add any span; gives its id."""
        values = {"span_id": self.new_id(), "parent_id": self.root_id, "name": kind, "service": "app"} | fields
        duration_ns = ns(end_s) - ns(start_s)
        self.spans.append(
            Span(trace_id=self.trace_id, kind=kind, start_ns=ns(start_s), duration_ns=duration_ns, **values)  # type: ignore[arg-type]
        )
        return str(values["span_id"])

    def llm(
        self,
        step: str,
        seconds: float,
        *,
        kind: str = LLM,
        model: str = "gpt-4o",
        system: int = 200,
        history: int = 0,
        user: int = 100,
        output: int = 150,
        uses: Sequence[str] = (),
        prompt: object = None,
        template: str | None = None,
        failures: Sequence[tuple[int, float, float]] = (),
        cost: bool = True,
        cached_tokens: int = 0,
        at_s: float | None = None,
        callers: Sequence[str] = (),
        code: str | None = None,
        error: int | None = None,
        limit_per_min: int | None = None,
        cache: str | None = None,
        queue_s: float = 0.0,
    ) -> str:
        """One call to a provider; `failures` are SDK retries before it: (status, seconds, pause after)."""
        start_s = self.now_s if at_s is None else at_s
        end_s = start_s + sum(took + pause for _, took, pause in failures) + seconds
        attributes: dict[str, AttributeValue] = {"paceline.callers": list(callers)} if callers else {}
        if uses:
            attributes[USES] = list(uses)
        template = template or hex_id("template", step, digits=12)
        place: dict[str, object] = {"code": code or f"desk/app.py:{_LINES.get(step, 10)} {step}"}
        parent = self.root_id
        gateway: dict[str, AttributeValue] = {PROMPT_HASH: hex_id(step, prompt if prompt is not None else self.index)}
        gateway |= {PROMPT_SYSTEM_TOKENS: system, PROMPT_HISTORY_TOKENS: history, PROMPT_USER_TOKENS: user}
        if limit_per_min:
            gateway[LIMIT_REQUESTS_PER_MIN] = limit_per_min
        failed = error is not None
        outer = ""
        if self.style == FULL:
            status = {"status": "error", "error": "APIStatusError"} if failed else {}
            outer = parent = self.span(
                kind, start_s, end_s, parent_id=parent, model=model, attributes=attributes, **place, **status
            )
        elif self.style == GATEWAY_ONLY:
            parent = hex_id("driver", self.index)
        tries = [*failures, (error or 200, seconds, 0.0)]
        at = start_s
        for status_code, took, pause in tries:
            good = status_code < 400
            state: dict[str, object] = {} if good else {"status": "error", "error": str(status_code)}
            http = parent
            if self.style != GATEWAY_ONLY:
                place_http = place if self.style == HTTP_ONLY else {}
                marks = {HTTP_STATUS: status_code} | (attributes if self.style == HTTP_ONLY else {})
                http = self.span(HTTP_CLIENT, at, at + took, parent_id=parent, attributes=marks, **place_http, **state)
            tokens: dict[str, object] = {}
            if good:
                tokens = {"input_tokens": system + history + user, "output_tokens": output}
                tokens |= {"cached_tokens": cached_tokens}
                price = price_of(model) if cost else None
                if price:
                    usage = (system + history + user, output, cached_tokens)
                    tokens["cost_usd"] = 0.0 if cache in ("hit", "join") else price.cost_usd(*usage)
            own = self.span(
                kind, at, at + took, parent_id=http, service="gateway", model=model, fingerprint=template, cache=cache,
                wait_ns=round(queue_s * 1e9), attributes=gateway | {HTTP_STATUS: status_code}, **tokens, **state,
            )  # fmt: skip
            outer = outer or (http if self.style == HTTP_ONLY else own)
            at += took + pause
        if at_s is None:
            self.now_s = end_s + 0.001
        return outer

    def db(
        self, step: str, seconds: float, *, name: str = "query", error: str | None = None, at_s: float | None = None
    ) -> str:
        """One call to the vector store."""
        start_s = self.now_s if at_s is None else at_s
        state = {"status": "error", "error": error, "attributes": {"exception.type": error}} if error else {}
        code = f"desk/retrieval.py:{_LINES.get(step, 10)} {step}"
        if at_s is None:
            self.now_s = start_s + seconds + 0.0005
        return self.span(DB, start_s, start_s + seconds, name=name, code=code, fingerprint=f"chroma {name}", **state)

    def embed(self, step: str, seconds: float, **more: object) -> str:
        """An embedding call."""
        fields: dict[str, object] = {"kind": EMBEDDING, "model": "text-embedding-3-small", "system": 0, "output": 0}
        return self.llm(step, seconds, **(fields | more))  # type: ignore[arg-type]

    def answer(self, *used: str, status: int = 200, endpoint: str = "POST /chat") -> None:
        """End the request; `used` are the spans whose output is in the answer."""
        self.now_s += 0.002
        end_s = self.now_s
        if self.style != GATEWAY_ONLY:
            self.span(
                HTTP_SERVER, self.start_s + 0.001, end_s, span_id=self.root_id,
                parent_id=hex_id("driver", self.index), name=endpoint,
                attributes={HTTP_STATUS: status, USED_IN_RESPONSE: list(used)},
            )  # fmt: skip
        self.run.spans += self.spans
        self.run.requests.append(
            Request(
                index=self.index, scenario=self.run.scenario, endpoint=endpoint, trace_id=self.trace_id,
                intended_s=self.start_s, started_s=self.start_s, first_byte_s=end_s, ended_s=end_s + 0.001,
                status=status, error=None if status < 400 else "status", cache=self.cache, key=f"key{self.index}",
            )
        )  # fmt: skip


@dataclass
class RunMaker:
    """A run being built."""

    scenario: str = "concurrent"
    style: str = FULL
    spans: list[Span] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    resources: list[ResourceSample] = field(default_factory=list)

    def trace(self, index: int, start_s: float) -> TraceMaker:
        """A new request."""
        return TraceMaker(self, index, start_s, self.style)

    def sample(self, at_s: float, *, threads: int = 12, rss_mb: float = 300, service: str = "app") -> None:
        """One resource reading."""
        self.resources.append(
            ResourceSample(
                at_s=at_s,
                service=service,
                processes=1,
                threads=threads,
                cpu_s=at_s * 0.2,
                rss_bytes=round(rss_mb * 1e6),
            )
        )

    def data(self) -> RunData:
        """The finished run."""
        names = dict.fromkeys(r.scenario for r in self.requests)
        info = RunInfo(
            id="run", name="run", paceline="0", start_ns=START_NS,
            scenarios=[ScenarioInfo(name=n, model="closed", users=8, requests=len(self.requests)) for n in names],
        )  # fmt: skip
        return RunData(info, self.requests, self.spans, self.resources)


def make_run(
    write: Callable[[TraceMaker], None], *, requests: int = 40, every_s: float = 0.5, style: str = FULL
) -> RunMaker:
    """A run of equal requests, each written by `write`, with calm resource samples."""
    run = RunMaker(style=style)
    for index in range(requests):
        write(run.trace(index, 1.0 + index * every_s))
    for tick in range(round((requests * every_s + 10) * 4)):
        run.sample(tick / 4)
    return run


RULES = (
    "swallowed_failure",
    "sequential_calls",
    "duplicate_calls",
    "strong_model_trivial_step",
    "oversized_prompt",
    "deferrable_work",
    "provider_limit",
    "thread_memory_spike",
)


def desk_request(trace: TraceMaker, causes: frozenset[str]) -> None:
    """A support desk's request: intent -> tone beside retrieval -> answer, with the named causes planted."""
    has = causes.__contains__
    label = {"model": "gpt-4o" if has("strong_model_trivial_step") else "gpt-4o-mini", "output": 4}
    size: dict[str, int] = {"system": 3000, "history": 600} if has("oversized_prompt") else {"system": 300}
    refused = [(429, 0.05, 4.0)] if has("provider_limit") and trace.index % 2 else []
    limit = 600 if has("provider_limit") else None

    intent = trace.llm("classify_intent", 0.7, **label, **size, prompt=("intent", trace.index))  # type: ignore[arg-type]
    began_s = trace.start_s + 0.002
    if has("duplicate_calls"):
        intent = trace.llm("classify_intent", 0.7, **label, **size, prompt=("intent", trace.index))  # type: ignore[arg-type]
    broken = "chromadb.errors.NotFoundError" if has("swallowed_failure") else None
    if has("sequential_calls"):
        vector = trace.embed("embed_query", 0.6)
        found = trace.db("search", 0.06, error=broken)
    else:
        vector = trace.embed("embed_query", 0.6, at_s=began_s)
        found = trace.db("search", 0.06, error=broken, at_s=began_s + 0.61)
    trace.spans[-1] = msgspec.structs.replace(trace.spans[-1], attributes=trace.spans[-1].attributes | {USES: [vector]})
    tone = trace.llm("tone_guidelines", 0.9, uses=[intent], output=40, model="gpt-4o", **size)  # type: ignore[arg-type]
    passages = [] if broken else [found]
    answer = trace.llm(
        "write_answer", 2.5, uses=[tone, *passages], output=180, user=900, failures=refused, limit_per_min=limit, **size  # type: ignore[arg-type]
    )  # fmt: skip
    if has("deferrable_work"):
        trace.llm("validate", 0.8, uses=[answer], **label, **size)  # type: ignore[arg-type]
    trace.answer(intent, answer)
    if not has("deferrable_work"):
        trace.spans.clear()
        trace.llm("validate", 0.8, uses=[answer], at_s=trace.now_s + 0.1, **label, **size)  # type: ignore[arg-type]
        trace.run.spans += trace.spans


def desk_run(*causes: str, requests: int = 60, users_per_s: float = 12.0, style: str = FULL) -> RunData:
    """A recorded run of the desk; with thread_memory_spike, each request in flight holds a thread and 6 MB."""
    planted = frozenset(causes)
    run = RunMaker(style=style)
    for index in range(requests):
        desk_request(run.trace(index, 5.0 + index / users_per_s), planted)
    last_s = max(r.ended_s for r in run.requests)
    for tick in range(round((last_s + 30) * 4)):
        at_s = tick / 4
        flying = sum(r.started_s <= at_s < r.ended_s for r in run.requests)
        if "thread_memory_spike" in planted:
            run.sample(at_s, threads=10 + flying, rss_mb=250 + 6 * flying)
        else:
            run.sample(at_s, threads=14, rss_mb=250 + 0.1 * flying)
    return run.data()
