"""Changes: what can be done to an application, in terms a simulation understands.

A finding proposes one, a roadmap phase holds several, the projector consumes them. Steps are named by the
function that makes the call (`Span.step`), models by the name the provider knows.
"""

import msgspec

from paceline.model.estimate import Range

ONE = Range(1.0, 1.0)


class _Tagged(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Stored as an object whose `kind` says which change it is."""


class Parallelise(_Tagged, frozen=True, kw_only=True, tag="parallelise", forbid_unknown_fields=True):
    """These steps start together instead of one after the other; what follows waits for all.

    "a > b" is a chain that stays in order beside the others; a single step means its own calls of one request.
    """

    steps: list[str]


class Cache(_Tagged, frozen=True, kw_only=True, tag="cache", forbid_unknown_fields=True):
    """Answers are kept. Without `hit_ratio` the recorded keys are replayed against the cache described.

    `step` None caches the whole request. `key` is "exact" (same body) or "text" (case, white space, punctuation
    ignored). `shared_in_flight`: equal requests in flight wait for the first instead of doing the work again.
    """

    step: str | None = None
    key: str = "exact"
    hit_ratio: Range | None = None
    hit_s: float = 0.002
    shared_in_flight: bool = False
    entries: int | None = None  # None: larger than the traffic needs
    ttl_s: float | None = None


class SpeedUp(_Tagged, frozen=True, kw_only=True, tag="speed_up", forbid_unknown_fields=True):
    """The step's service time is divided by `factor` (above 1 is faster)."""

    step: str
    factor: Range


class Remove(_Tagged, frozen=True, kw_only=True, tag="remove", forbid_unknown_fields=True):
    """The step is no longer done; with `repeats_only`, only its second and later calls within one request."""

    step: str
    repeats_only: bool = False


class Defer(_Tagged, frozen=True, kw_only=True, tag="defer", forbid_unknown_fields=True):
    """The step runs after the answer is sent: off the response path, but its work and cost remain."""

    step: str


class Limit(_Tagged, frozen=True, kw_only=True, tag="limit", forbid_unknown_fields=True):
    """At most `size` at once pass `resource`; the others queue in order instead of failing and backing off.

    `resource`: "provider" (all LLM calls), "provider:MODEL", or "threads" (requests in the service).
    `memory_ratio`: memory each request in flight holds afterwards, relative to before; `cpu_ratio`: processor time
    the application spends on a request, relative to before.
    """

    resource: str
    size: int | None = None
    queued: bool = True
    memory_ratio: Range = ONE
    cpu_ratio: Range = ONE


class Route(_Tagged, frozen=True, kw_only=True, tag="route", forbid_unknown_fields=True):
    """The step's calls go to another model: its latency, limits and price."""

    step: str
    model: str


class Trim(_Tagged, frozen=True, kw_only=True, tag="trim", forbid_unknown_fields=True):
    """The step's tokens are multiplied; a ratio above 1 is growth (an answer that now gets its context)."""

    step: str
    input_ratio: Range = ONE
    output_ratio: Range = ONE


class Batch(_Tagged, frozen=True, kw_only=True, tag="batch", forbid_unknown_fields=True):
    """Up to `size` of the step's concurrent calls share one call to the provider."""

    step: str
    size: int


Change = Parallelise | Cache | SpeedUp | Remove | Defer | Limit | Route | Trim | Batch


def describe(change: Change) -> str:
    """The change in a few plain words, for tables and reports."""
    match change:
        case Parallelise(steps=steps):
            return f"run {' and '.join(steps)} in parallel"
        case Cache(step=step, key=key, shared_in_flight=shared):
            what = f"{step} answers" if step else "answers"
            return f"cache {what} by {key} key" + (", share calls in flight" if shared else "")
        case SpeedUp(step=step, factor=factor):
            return f"make {step} {factor.value:g}x faster"
        case Remove(step=step, repeats_only=repeats):
            return f"remove repeated {step} calls" if repeats else f"remove {step}"
        case Defer(step=step):
            return f"do {step} after the answer"
        case Limit(resource="threads", size=size):
            return f"at most {size} threads for all requests" if size else "no thread of its own for each request"
        case Limit(resource=resource, size=size):
            return f"queue for {resource}" + (f", at most {size} at once" if size else "")
        case Route(step=step, model=model):
            return f"send {step} to {model}"
        case Trim(step=step, input_ratio=inp, output_ratio=out):
            parts = [f"{name} x{r.value:g}" for name, r in (("input", inp), ("output", out)) if r != ONE]
            return f"{step} tokens: {', '.join(parts)}"
        case Batch(step=step, size=size):
            return f"batch {step} calls by {size}"
