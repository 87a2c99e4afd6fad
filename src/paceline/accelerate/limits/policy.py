"""What bounds calls to providers, as a user writes it. Everything is off until asked for; seconds at real pace."""

import math
from typing import TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from paceline.accelerate.limits.bucket import Rate

_S = TypeVar("_S", bound=msgspec.Struct)

_RATES = ("requests_per_min", "requests_per_s", "tokens_per_min")
_COUNTS = ("concurrency", "burst")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class ModelLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of one model, over the general ones: a field not given is the general one, None is no limit."""

    concurrency: int | UnsetType | None = UNSET
    requests_per_min: float | UnsetType | None = UNSET
    requests_per_s: float | UnsetType | None = UNSET
    burst: int | UnsetType | None = UNSET
    tokens_per_min: float | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        _check_limits(self, "limits.models.*")


class AdaptivePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is learned from the provider's answers: 429s, Retry-After, remaining-quota headers and the error rate.

    The error rate's rule and its figures are W3.4's: above `high_errors` the rate falls by `decrease`, below
    `low_errors` it rises by `increase`, never outside [`min_per_s`, `max_per_s`]. See `accelerate.limits.learned`.
    """

    enabled: bool = False
    start_paced: bool = False  # True: begin at `start_per_s` (W3.4); False: unbounded until the provider objects
    start_per_s: float = 10.0
    burst: int = 20  # of a rate that is learned, not told
    high_errors: float = 0.10  # share of answers that are 429 or 5xx
    low_errors: float = 0.01
    decrease: float = 0.20
    increase: float = 0.10
    min_per_s: float = 1.0  # errors lower the rate no further; a limit measured from refusals may be lower
    max_per_s: float = 10_000.0
    interval_s: float = 1.0  # the rate is judged this often, over at least `min_answers`
    min_answers: int = 10
    probe_s: float = 30.0  # a limit found by refusals is tried again after this long without one
    minute_s: float = 60.0  # the minute that limits in headers are per; shorter when a simulated provider runs faster
    max_hold_s: float = 3600.0  # a provider that asks for longer is asked again after this

    def __post_init__(self) -> None:
        for name in ("start_per_s", "min_per_s", "max_per_s", "interval_s", "probe_s", "minute_s", "max_hold_s"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"limits.adaptive.{name} must be above 0; got {value:g}")
        for name in ("burst", "min_answers"):
            _require(getattr(self, name) >= 1, f"limits.adaptive.{name} must be at least 1; got {getattr(self, name)}")
        for name in ("high_errors", "low_errors", "decrease"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"limits.adaptive.{name} must be from 0 to below 1; got {value:g}")
        _require(self.increase >= 0, f"limits.adaptive.increase must not be negative; got {self.increase:g}")
        _require(self.low_errors <= self.high_errors, "limits.adaptive.low_errors must not exceed high_errors")
        _require(self.min_per_s <= self.max_per_s, "limits.adaptive.min_per_s must not exceed max_per_s")

    def at_speed(self, speed: float) -> "AdaptivePolicy":
        """The same policy in wall seconds, for a simulated provider that runs `speed` times faster than real."""
        return msgspec.structs.replace(
            self,
            start_per_s=self.start_per_s * speed,
            min_per_s=self.min_per_s * speed,
            max_per_s=self.max_per_s * speed,
            interval_s=self.interval_s / speed,
            probe_s=self.probe_s / speed,
            minute_s=self.minute_s / speed,
            max_hold_s=self.max_hold_s / speed,
        )


class LimitsPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds for each provider key and model. In TOML: [limits], [limits.models.NAME], [limits.adaptive].

    A limit of None is no limit. Rates may be exceeded only by their burst: never more than rate x window + burst calls
    in any window. Tokens are estimated before a call and corrected after it.
    """

    concurrency: int | None = None  # calls at once
    requests_per_min: float | None = None
    requests_per_s: float | None = None
    burst: int | None = None  # calls at once after a pause; None: a second's worth
    tokens_per_min: float | None = None  # a minute's worth may go at once, as OpenAI's and Anthropic's buckets allow
    models: dict[str, ModelLimits] = {}
    max_wait_s: float = 60.0  # for a turn, unless the call has its own deadline; then 429
    max_queue: int = 10_000  # calls waiting for one key and model; above it 429 at once
    age_s: float = 5.0  # waiting this long lifts a call by one priority
    adaptive: AdaptivePolicy = AdaptivePolicy()
    shared: str | None = None  # redis://...: all processes together keep the limits; None: each process for itself
    shared_timeout_s: float = 0.05  # Redis slower than this: the limits are kept per process until it answers again
    processes: int = 1  # that share the limits; what is kept per process is divided by it

    def __post_init__(self) -> None:
        _check_limits(self, "limits")
        for name in ("max_wait_s", "age_s", "shared_timeout_s"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"limits.{name} must be above 0; got {value:g}")
        for name in ("max_queue", "processes"):
            _require(getattr(self, name) >= 1, f"limits.{name} must be at least 1; got {getattr(self, name)}")
        known = self.shared is None or self.shared.startswith(("redis://", "rediss://", "unix://"))
        _require(known, f"limits.shared must be a redis://, rediss:// or unix:// address; got {self.shared!r}")

    @property
    def is_off(self) -> bool:
        """True when no call can ever have to wait, so that callers may skip the limits altogether."""
        general = self.for_model("")
        return not self.adaptive.enabled and not self.models and general.is_unlimited

    def for_model(self, model: str) -> "Bounds":
        """What holds for a model: its own limits over the general ones."""
        return Bounds.of(self, self.models.get(model))

    def at_speed(self, speed: float) -> "LimitsPolicy":
        """The same policy in wall seconds, for a simulated provider that runs `speed` times faster than real."""
        faster = _faster(self, speed)
        return msgspec.structs.replace(
            faster,
            models={name: _faster(limits, speed) for name, limits in self.models.items()},
            max_wait_s=self.max_wait_s / speed,
            age_s=self.age_s / speed,
            adaptive=self.adaptive.at_speed(speed),
        )


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one gate, resolved."""

    concurrency: int | None
    requests: tuple[Rate, ...]  # all of them hold
    tokens: Rate | None

    @property
    def is_unlimited(self) -> bool:
        """True when nothing is bounded."""
        return self.concurrency is None and not self.requests and self.tokens is None

    @staticmethod
    def of(general: LimitsPolicy, own: ModelLimits | None) -> "Bounds":
        """Each field of `own` that is given, else the general one."""

        def pick(name: str) -> float | None:
            value: float | UnsetType | None = getattr(own, name, UNSET)
            common: float | None = getattr(general, name)
            return common if isinstance(value, UnsetType) else value

        per_min, per_s, burst, tokens = (
            pick(name) for name in ("requests_per_min", "requests_per_s", "burst", "tokens_per_min")
        )
        requests = []
        if per_s is not None:
            requests.append(Rate(per_s, burst or max(1.0, per_s)))
        if per_min is not None:
            # Beside a limit per second the minute's bucket is a whole minute: the second's bound shapes the calls.
            ours = per_min if per_s is not None else burst or max(1.0, per_min / 60)
            requests.append(Rate(per_min / 60, max(1.0, ours)))
        concurrency = pick("concurrency")
        return Bounds(
            concurrency=None if concurrency is None else int(concurrency),
            requests=tuple(requests),
            tokens=None if tokens is None else Rate(tokens / 60, tokens),
        )

    def divided(self, processes: int) -> "Bounds":
        """One process's part. A part is never below one call at once, nor a burst below one call."""
        if processes == 1:
            return self
        return Bounds(
            concurrency=None if self.concurrency is None else max(1, self.concurrency // processes),
            requests=tuple(rate.divided(processes) for rate in self.requests),
            tokens=None if self.tokens is None else self.tokens.divided(processes),
        )


def _faster(limits: _S, speed: float) -> _S:
    changed = {name: getattr(limits, name) for name in _RATES}
    return msgspec.structs.replace(
        limits,
        **{name: value if value is None or value is UNSET else value * speed for name, value in changed.items()},
    )


def _check_limits(limits: LimitsPolicy | ModelLimits, where: str) -> None:
    for name in _COUNTS:
        value = getattr(limits, name)
        given = value is not None and value is not UNSET
        _require(not given or value >= 1, f"{where}.{name} must be at least 1, or null for no bound; got {value}")
    for name in _RATES:
        value = getattr(limits, name)
        given = value is not None and value is not UNSET
        _require(
            not given or 0 < value < math.inf, f"{where}.{name} must be above 0, or null for no limit; got {value}"
        )
