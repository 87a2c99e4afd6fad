"""Calls: one LOGICAL call to a provider or store, made of every span that belongs to it.

The application's SDK span, the HTTP attempts below it, the gateway's span below each of those, and the attempts of
a home-made retry loop beside it are one call: its cost is that of all attempts, its service that of the last one.
"""

from typing import NamedTuple

import msgspec

from paceline.model.price import price_of
from paceline.model.span import (
    CACHE,
    DB,
    EMBEDDING,
    HTTP_CLIENT,
    HTTP_STATUS,
    LLM,
    PROMPT_HASH,
    QUEUE,
    STREAM,
    TOOL,
    TTFT_S,
    USES,
    AttributeValue,
    Span,
)

PROVIDER_KINDS = frozenset((LLM, EMBEDDING))
STORE_KINDS = frozenset((DB, CACHE, TOOL, QUEUE))
GATEWAY = "gateway"
SAVED = frozenset(("hit", "join"))  # cache outcomes for which the provider was not asked again
_RETRIED = frozenset((0, 408, 409, 425, 429))  # and every 5xx: what SDKs and retry loops try again

Children = dict[str, list[Span]]


class Attempt(NamedTuple):
    """One try. `status` is the HTTP status; 200 and 0 stand for "worked" and "failed" where there is none."""

    start_ns: int
    end_ns: int
    status: int


class Call(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One logical call. Unix ns for instants, seconds for lengths; None: not known."""

    step: str  # function that made it; without code: what is known of the call
    code: str | None
    kind: str
    model: str | None
    span_id: str  # the last attempt's outermost span: `uses` of later calls name it
    parent_id: str | None
    start_ns: int
    end_ns: int
    service_s: float  # upstream time of the last attempt
    wait_s: float  # failed attempts, the pauses between them, and the gateway's queue
    attempts: list[Attempt]
    ok: bool
    error: str | None  # of the last attempt
    deferred: bool  # off the response path: it started, or ended, after the answer was sent
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    cost_usd: float | None  # all attempts; 0 for stores and cache hits
    prompt_hash: str | None
    fingerprint: str | None
    uses: list[str]  # span_id of the calls (or spans) whose output appears in this one's input
    ttft_s: float | None
    cache: str | None
    spans: list[Span]  # all merged spans, outermost first, attempts in order

    @property
    def duration_s(self) -> float:
        """Length in seconds, waits and failed attempts included."""
        return (self.end_ns - self.start_ns) / 1e9

    @property
    def to_provider(self) -> bool:
        """True for a call to a model."""
        return self.kind in PROVIDER_KINDS

    @property
    def span_ids(self) -> list[str]:
        """Ids of all merged spans."""
        return [s.span_id for s in self.spans]

    def attribute(self, name: str) -> AttributeValue | None:
        """The attribute as the innermost span of the last attempt knows it; None when no span has it."""
        return _attribute(self.spans, name)


def retriable(status: int) -> bool:
    """Statuses that clients try again: time-outs, broken connections (0), 429 and the 5xx."""
    return status in _RETRIED or status >= 500


def build_calls(tops: list[Span], children: Children, *, window_end_ns: int | None = None) -> list[Call]:
    """The calls of one trace in order of start, `uses` as recorded (see `named_uses`).

    Args:
        tops: Spans without a parent in the trace.
        children: Spans by the id of their parent.
        window_end_ns: Calls that end later are marked deferred; None: nothing is.
    """
    singles: list[_Single] = []
    stack: list[tuple[Span, bool]] = [(span, False) for span in tops]
    while stack:
        span, in_store = stack.pop()
        kind = span.kind
        if kind in PROVIDER_KINDS:
            merged = _subtree(span, children)
            singles.append(_Single(span, kind, merged))
            stack += [(s, False) for s in merged if s.kind in STORE_KINDS]
            continue
        if kind == HTTP_CLIENT:
            merged = _subtree(span, children)
            provider = next((s for s in merged if s.kind in PROVIDER_KINDS), None)
            if provider is not None:
                singles.append(_Single(span, provider.kind, merged))
            elif not in_store:
                singles.append(_Single(span, kind, merged))
            continue
        if kind in STORE_KINDS:
            singles.append(_Single(span, kind, [span]))
            in_store = True
        for below in children.get(span.span_id, ()):
            stack.append((below, in_store))
    singles.sort(key=lambda s: (s.span.start_ns, s.span.span_id))
    groups = _join_retries(singles) if len(singles) > 1 else [[s] for s in singles]
    return [_call(group, window_end_ns) for group in groups]


class _Single:
    """One call as the application made it once: SDK retries inside, home-made retries not yet joined."""

    __slots__ = (
        "attempts",
        "code",
        "gateways",
        "kind",
        "model",
        "ok",
        "prompt_hash",
        "span",
        "spans",
        "ttft_s",
        "uses",
    )

    def __init__(self, span: Span, kind: str, spans: list[Span]) -> None:
        self.span = span
        self.kind = kind
        self.ok = span.status == "ok"
        self.code = span.code
        self.model = span.model
        self.prompt_hash: str | None = None
        self.ttft_s: float | None = None
        self.uses: list[str] = []
        self.spans: list[Span] = []
        self.gateways: list[Span] = []
        tries: list[Span] = []
        for each in spans:
            if each.kind in STORE_KINDS and each is not span:
                continue
            self.spans.append(each)
            self.code = self.code or each.code
            self.model = self.model or each.model
            if each.kind == HTTP_CLIENT:
                tries.append(each)
            elif each.service == GATEWAY and each.kind in PROVIDER_KINDS:
                self.gateways.append(each)
                self.model = each.model or self.model  # the gateway may have routed it
            if each.attributes:
                self._note(each.attributes)
        tries = tries or self.gateways or [span]
        self.attempts = [Attempt(s.start_ns, s.start_ns + s.duration_ns, _status(s)) for s in tries]
        if len(tries) > 1:
            self.attempts.sort()

    def _note(self, attributes: dict[str, AttributeValue]) -> None:
        """Keep what the innermost span says."""
        prompt_hash = attributes.get(PROMPT_HASH)
        if prompt_hash is not None:
            self.prompt_hash = str(prompt_hash)
        ttft_s = attributes.get(TTFT_S)
        if isinstance(ttft_s, int | float):
            self.ttft_s = float(ttft_s)
        uses = attributes.get(USES)
        if isinstance(uses, list):
            self.uses += uses

    def retried_by(self, later: "_Single") -> bool:
        """True when `later` is the next attempt of a retry loop around this one."""
        if self.ok or later.span.start_ns < self.span.end_ns or not retriable(self.attempts[-1].status):
            return False
        if self.kind != later.kind or self.span.parent_id != later.span.parent_id:
            return False
        if self.prompt_hash and later.prompt_hash:
            return self.prompt_hash == later.prompt_hash
        return self.span.code is not None and self.span.code == later.span.code and self.model == later.model


def _join_retries(singles: list[_Single]) -> list[list[_Single]]:
    groups: list[list[_Single]] = []
    failed: list[list[_Single]] = []  # groups whose last attempt could still be tried again
    for single in singles:
        group = next((g for g in reversed(failed) if g[-1].retried_by(single)), None) if failed else None
        if group is None:
            group = []
            groups.append(group)
        else:
            failed.remove(group)
        group.append(single)
        if not single.ok:
            failed.append(group)
    return groups


def _call(group: list[_Single], window_end_ns: int | None) -> Call:
    first, last = group[0], group[-1]
    span = last.span
    attempts, spans, uses = first.attempts, first.spans, first.uses
    if len(group) > 1:
        attempts = [a for single in group for a in single.attempts]
        spans = [s for single in group for s in single.spans]
        uses = [u for single in group for u in single.uses]
    end_ns = span.start_ns + span.duration_ns
    gateway = last.gateways[-1] if last.gateways else None
    served = gateway or span
    if gateway is not None and gateway.end_ns > end_ns and gateway.attributes.get(STREAM):
        end_ns = gateway.end_ns  # the SDK's span may end when the stream begins
    queue_s = served.wait_ns / 1e9
    final = attempts[-1]
    fingerprint = span.fingerprint or served.fingerprint
    upstream_ns = gateway.duration_ns if gateway is not None else final.end_ns - final.start_ns
    code = last.code or first.code
    return Call(
        step=code.rsplit(" ", 1)[-1] if code else _nameless(last.kind, last.model, fingerprint, span.name),
        code=code,
        kind=last.kind,
        model=last.model,
        span_id=span.span_id,
        parent_id=span.parent_id,
        start_ns=first.span.start_ns,
        end_ns=end_ns,
        service_s=max(0.0, upstream_ns / 1e9 - queue_s),
        wait_s=(final.start_ns - attempts[0].start_ns) / 1e9 + queue_s,
        attempts=attempts,
        ok=last.ok,
        error=None if last.ok else span.error or served.error,
        deferred=window_end_ns is not None and end_ns > window_end_ns,
        input_tokens=span.input_tokens if served.input_tokens is None else served.input_tokens,
        output_tokens=span.output_tokens if served.output_tokens is None else served.output_tokens,
        cached_tokens=span.cached_tokens if served.cached_tokens is None else served.cached_tokens,
        cost_usd=_cost(group),
        prompt_hash=last.prompt_hash or first.prompt_hash,
        fingerprint=fingerprint,
        uses=sorted(set(uses)) if uses else uses,
        ttft_s=last.ttft_s,
        cache=served.cache or span.cache,
        spans=spans,
    )


def _cost(group: list[_Single]) -> float | None:
    """Dollars of all attempts; a failed one without a price cost nothing, a good one without makes it unknown."""
    if group[-1].kind not in PROVIDER_KINDS:
        return 0.0
    total = 0.0
    for single in group:
        for span in single.gateways or [single.span]:
            if span.cost_usd is not None:
                total += span.cost_usd
            elif span.status == "ok" and span.cache not in SAVED:
                cost = _priced(span, single.model)
                if cost is None:
                    return None
                total += cost
    return total


def _priced(span: Span, model: str | None) -> float | None:
    if model is None or span.input_tokens is None:
        return None
    price = price_of(model)
    if price is None:
        return None
    return price.cost_usd(span.input_tokens, span.output_tokens or 0, span.cached_tokens or 0)


def owners(calls: list[Call]) -> dict[str, str]:
    """The call (by `Call.span_id`) that each merged span belongs to."""
    return {s.span_id: call.span_id for call in calls for s in call.spans}


def named_uses(calls: list[Call], owner: dict[str, str]) -> list[Call]:
    """`uses` may name any merged span of a call; make them name the call."""
    named = []
    for call in calls:
        if call.uses:
            uses = sorted({owner.get(u, u) for u in call.uses} - {call.span_id})
            named.append(call if uses == call.uses else msgspec.structs.replace(call, uses=uses))
        else:
            named.append(call)
    return named


def _subtree(span: Span, children: Children) -> list[Span]:
    """The span and everything below it, parents before children, siblings in order of start."""
    found = [span]
    for each in found:
        below = children.get(each.span_id)
        if below:
            found += below
    return found


def _status(span: Span) -> int:
    status = span.attributes.get(HTTP_STATUS)
    if isinstance(status, int):
        return status
    if span.status == "ok":
        return 200
    return int(span.error) if span.error and span.error.isdigit() else 0


def _attribute(spans: list[Span], name: str) -> AttributeValue | None:
    for span in reversed(spans):
        value = span.attributes.get(name)
        if value is not None:
            return value
    return None


def _nameless(kind: str, model: str | None, fingerprint: str | None, name: str) -> str:
    """A step name for a call whose code is not known: the same work gets the same one in every run."""
    return f"{model or name}:{fingerprint[:8]}" if fingerprint else f"{kind}:{model or name}"
