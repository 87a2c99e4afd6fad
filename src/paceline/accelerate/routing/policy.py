"""RoutingPolicy: which model and deployment a call goes to, and what happens when that one fails.

Everything is off until asked for: the empty policy sends each call once, to its own dialect's provider.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

DIALECTS = ("openai", "anthropic", "gemini")

# What the official SDKs send again (openai/_base_client.py, `_should_retry`), the 5xx of the network in front of the
# providers spelled out, and Anthropic's 529 "overloaded".
RETRIED = (408, 409, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)

# Model names that give their provider away; any other name says nothing.
_FAMILIES = {"claude": "anthropic", "gemini": "gemini", "gpt": "openai", "o1": "openai", "o3": "openai", "o4": "openai"}


def require(condition: bool, message: str) -> None:
    """ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Calls that agree with every matcher given go to `model`, or to the deployments of `group`."""

    step: str | None = None  # the function that makes the call: the header x-paceline-step
    prompt: str | None = None  # fingerprint of the prompt's template, as the reports and spans spell it
    caller: str | None = None  # who asks, where callers have names
    asked_model: str | None = None  # the model the call names
    min_input_tokens: int | None = None  # estimated, inclusive
    max_input_tokens: int | None = None
    model: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        require((self.model is None) != (self.group is None), "a route needs either a model or a group to go to")
        low, high = self.min_input_tokens, self.max_input_tokens
        require(
            low is None or high is None or low <= high,
            f"a route's min_input_tokens must not be above max_input_tokens; got {low} and {high}",
        )


class Deployment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place that serves a model. Several of one model share its calls."""

    name: str
    model: str  # what callers, routes and fallbacks call it
    url: str  # what the provider's SDK takes as base URL: https://api.openai.com/v1
    provider: str = "openai"  # the dialect it speaks
    model_there: str | None = None  # its name there; None: the same
    group: str | None = None
    weight: float = 1.0  # 2 takes twice the load of 1 at equal latency
    key_env: str | None = None  # variable that holds its credential; None: the caller's own goes along
    key_file: str | None = None  # or file; read again on reload, and relative to the file that names it
    keyless: bool = False  # send no credential at all
    key_header: str | None = None  # None: as the dialect has it; `api-key` on *.azure.com
    headers: dict[str, str] = {}  # added to every call
    query: dict[str, str] = {}  # likewise; Azure's api-version
    limits: str | None = None  # NAME of the [limits.models.NAME] that hold here; None: the model's

    def __post_init__(self) -> None:
        require(bool(self.name), "a deployment needs a name")
        require(self.name not in DIALECTS, f"a deployment must not be called {self.name}: that is the provider itself")
        for name, value in self.headers.items():
            line = f"{name}: {value}"
            require(line.isprintable() and line.isascii(), f"deployment {self.name}: not a header: {line!r}")
        require(
            self.provider in DIALECTS,
            f"deployment {self.name}: provider must be one of {', '.join(DIALECTS)}; got {self.provider!r}",
        )
        require(self.weight > 0, f"deployment {self.name}: weight must be above 0; got {self.weight:g}")
        said = [name for name in ("key_env", "key_file", "keyless") if getattr(self, name)]
        require(len(said) < 2, f"deployment {self.name}: {' and '.join(said)} contradict each other")

    @property
    def has_own_key(self) -> bool:
        """True when it says which credential it is sent, or that it is sent none."""
        return self.key_env is not None or self.key_file is not None or self.keyless


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send again what failed before a byte of the answer reached the caller.

    Waits are drawn from [0, min(max_backoff_s, first_backoff_s * 2^n)]: "full jitter" (Brooker, Exponential Backoff
    And Jitter, AWS Architecture Blog, 2015). A 429 is another matter: its gate is held as long as the provider asks,
    for all calls behind it, so it counts neither as an attempt nor against the budget, only against `max_wait_s`.
    """

    enabled: bool = False
    attempts: int = 4  # for one model, the first included
    statuses: tuple[int, ...] = RETRIED
    first_backoff_s: float = 0.5
    max_backoff_s: float = 8.0
    max_wait_s: float = 60.0  # of one call, all its waits together; then the caller gets the provider's refusal
    budget_ratio: float = 0.2  # extra calls a call to the same model earns: an outage is not answered by a flood
    budget_per_s: float = 1.0  # and what every second earns, so that rare calls may be retried too
    budget_burst: float = 10.0  # saved at most

    def __post_init__(self) -> None:
        require(self.attempts >= 1, f"retries.attempts must be at least 1; got {self.attempts}")
        for name in ("first_backoff_s", "max_backoff_s", "max_wait_s"):
            require(getattr(self, name) > 0, f"retries.{name} must be above 0; got {getattr(self, name):g}")
        for name in ("budget_ratio", "budget_per_s"):
            require(getattr(self, name) >= 0, f"retries.{name} must not be negative; got {getattr(self, name):g}")
        require(self.budget_burst >= 1, f"retries.budget_burst must be at least 1; got {self.budget_burst:g}")
        for status in self.statuses:
            require(400 <= status <= 599, f"retries.statuses must be between 400 and 599; got {status}")

    def at_speed(self, speed: float) -> "RetryPolicy":
        """The same in wall seconds of a provider that runs `speed` times faster."""
        return msgspec.structs.replace(
            self,
            first_backoff_s=self.first_backoff_s / speed,
            max_backoff_s=self.max_backoff_s / speed,
            max_wait_s=self.max_wait_s / speed,
            budget_per_s=self.budget_per_s * speed,
        )


class BreakerPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Leave a deployment alone that fails: open at `failure_ratio` of the last `window_s`, one probe after `open_s`.

    Matters only where a call has somewhere else to go, unless `refuse` is set.
    """

    enabled: bool = True
    window_s: float = 10.0
    failure_ratio: float = 0.5
    min_calls: int = 10  # in the window, before it is judged
    open_s: float = 5.0  # doubled at each failed probe in a row
    max_open_s: float = 60.0
    refuse: bool = False  # answer 502 at once while every deployment of the model is open

    def __post_init__(self) -> None:
        for name in ("window_s", "open_s", "max_open_s"):
            require(getattr(self, name) > 0, f"breaker.{name} must be above 0; got {getattr(self, name):g}")
        ratio = self.failure_ratio
        require(0 < ratio <= 1, f"breaker.failure_ratio must be above 0 and at most 1; got {ratio:g}")
        require(self.min_calls >= 1, f"breaker.min_calls must be at least 1; got {self.min_calls}")

    def at_speed(self, speed: float) -> "BreakerPolicy":
        """The same in wall seconds of a provider that runs `speed` times faster."""
        return msgspec.structs.replace(
            self,
            window_s=self.window_s / speed,
            open_s=self.open_s / speed,
            max_open_s=self.max_open_s / speed,
        )


class HedgePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask a second time when the first byte is later than usual, take what comes first, cancel the other.

    Source: Dean and Barroso, The Tail at Scale, CACM 56(2), 2013: past the 95th percentile it costs about 5 % more
    calls and takes most of the tail.
    """

    enabled: bool = False
    after_quantile: float = 0.95  # of the time to the first byte, seen at this deployment
    min_calls: int = 30  # seen before the quantile is believed
    min_wait_s: float = 0.1  # never sooner than this
    budget_ratio: float = 0.05  # second calls a call earns

    def __post_init__(self) -> None:
        require(0 < self.after_quantile < 1, f"hedge.after_quantile must be in (0, 1); got {self.after_quantile:g}")
        require(self.min_calls >= 2, f"hedge.min_calls must be at least 2; got {self.min_calls}")
        require(self.min_wait_s >= 0, f"hedge.min_wait_s must not be negative; got {self.min_wait_s:g}")
        require(0 < self.budget_ratio <= 1, f"hedge.budget_ratio must be in (0, 1]; got {self.budget_ratio:g}")

    def at_speed(self, speed: float) -> "HedgePolicy":
        """The same in wall seconds of a provider that runs `speed` times faster."""
        return msgspec.structs.replace(self, min_wait_s=self.min_wait_s / speed)


class RoutingPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it, in TOML under [routing]. Seconds at the provider's real pace."""

    aliases: dict[str, str] = {}  # name a caller may use -> model
    routes: list[Route] = []  # the first that agrees decides
    deployments: list[Deployment] = []
    fallbacks: dict[str, list[str]] = {}  # model -> models to ask, in order, when it fails
    fallback_on_context_length: bool = False  # also when the prompt is too long for the model
    retries: RetryPolicy = RetryPolicy()
    breaker: BreakerPolicy = BreakerPolicy()
    hedge: HedgePolicy = HedgePolicy()
    timeout_s: float | None = None  # until an answer begins, all attempts together; callers may ask for less
    latency_decay_s: float = 10.0  # how long a slow answer weighs on a deployment

    def __post_init__(self) -> None:
        require(self.timeout_s is None or self.timeout_s > 0, f"timeout_s must be above 0; got {self.timeout_s}")
        require(self.latency_decay_s > 0, f"latency_decay_s must be above 0; got {self.latency_decay_s:g}")
        names = [deployment.name for deployment in self.deployments]
        for name in names:
            require(names.count(name) == 1, f"two deployments are called {name!r}; each needs a name of its own")
        groups = {deployment.group for deployment in self.deployments}
        for route in self.routes:
            require(
                route.group is None or route.group in groups,
                f"a route names the group {route.group!r}, which has no deployment",
            )
        for name, model in self.aliases.items():
            require(model not in self.aliases, f"the alias {name!r} names another alias, {model!r}; name a model")
        for model, others in self.fallbacks.items():
            for other in others:
                self._check_fallback(model, other)

    def at_speed(self, speed: float) -> "RoutingPolicy":
        """The same in wall seconds of a simulated provider that runs `speed` times faster than real."""
        return msgspec.structs.replace(
            self,
            retries=self.retries.at_speed(speed),
            breaker=self.breaker.at_speed(speed),
            hedge=self.hedge.at_speed(speed),
            timeout_s=None if self.timeout_s is None else self.timeout_s / speed,
            latency_decay_s=self.latency_decay_s / speed,
        )

    def in_folder(self, folder: Path) -> "RoutingPolicy":
        """The same with the names of files relative to this folder."""
        replace = msgspec.structs.replace
        deployments = [
            d if d.key_file is None else replace(d, key_file=str(folder / Path(d.key_file).expanduser()))
            for d in self.deployments
        ]
        return replace(self, deployments=deployments)

    def dialects_of(self, model: str) -> frozenset[str]:
        """The dialects a model can be asked in: its deployments', else its family's, else any."""
        model = self.aliases.get(model, model)
        spoken = frozenset(d.provider for d in self.deployments if d.model == model)
        return spoken or frozenset(_by_family(model))

    def _check_fallback(self, model: str, other: str) -> None:
        require(model != other, f"fallbacks: {model!r} falls back to itself")
        ours, theirs = self.dialects_of(model), self.dialects_of(other)
        require(
            bool(ours & theirs),
            f"fallbacks: {model!r} speaks {_list(ours)} and {other!r} {_list(theirs)}; calls are not translated, "
            f"so name a model or add a deployment that speaks {_list(ours)}",
        )


def _by_family(model: str) -> Iterable[str]:
    family = next((dialect for start, dialect in _FAMILIES.items() if model.startswith(start)), None)
    return DIALECTS if family is None else (family,)


def _list(names: Iterable[str]) -> str:
    return " or ".join(sorted(names))
