"""Policy: what the gateway does beyond passing calls on. Everything is off until asked for."""

from pathlib import Path
from typing import Any

import msgspec

from paceline.errors import ConfigError

EXACT, TEXT = "exact", "text"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class CachePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keep complete answers in memory and give them again to equal calls of the same tenant."""

    enabled: bool = False
    key: str = EXACT  # "text": case, white space and punctuation in texts do not matter (see accelerate.key)
    ttl_s: float = 3600.0
    max_bytes: int = 256 * 1024 * 1024  # least recently used answers leave first

    def __post_init__(self) -> None:
        _require(self.key in (EXACT, TEXT), f"cache.key must be exact or text; got {self.key!r}")
        _require(self.ttl_s > 0, f"cache.ttl_s must be above 0; got {self.ttl_s:g}")
        _require(self.max_bytes > 0, f"cache.max_bytes must be above 0; got {self.max_bytes}")


class ConcurrencyPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most `limit` calls to each model at once; the others wait in order, at most `max_wait_s`."""

    limit: int | None = None  # of every model not named; None: no bound
    models: dict[str, int] = {}
    max_wait_s: float = 60.0  # then the caller gets 429
    max_queue: int = 10_000  # per model; above it 429 at once

    def __post_init__(self) -> None:
        for name, limit in {"limit": self.limit, **self.models}.items():
            _require(limit is None or limit >= 1, f"concurrency.{name} must be at least 1; got {limit}")
        _require(self.max_wait_s > 0, f"concurrency.max_wait_s must be above 0; got {self.max_wait_s:g}")
        _require(self.max_queue >= 1, f"concurrency.max_queue must be at least 1; got {self.max_queue}")

    def limit_of(self, model: str) -> int | None:
        """The bound for a model, None for none."""
        return self.models.get(model, self.limit)


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Absorb the provider's 429: hold the model's calls, in order, for as long as it asks, then send again."""

    enabled: bool = False
    max_wait_s: float = 60.0  # of one call, all its waits together; then the caller gets the 429

    def __post_init__(self) -> None:
        _require(self.max_wait_s > 0, f"retry_429.max_wait_s must be above 0; got {self.max_wait_s:g}")


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Calls made by `step` (the function named in `x-paceline-step`) go to `model` instead."""

    step: str
    model: str


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it. In TOML: [cache], single_flight, [concurrency], [retry_429], [[routes]]. Seconds at real pace."""

    cache: CachePolicy = CachePolicy()
    single_flight: bool = False  # equal calls in flight share one call to the provider
    concurrency: ConcurrencyPolicy = ConcurrencyPolicy()
    retry_429: RetryPolicy = RetryPolicy()
    routes: list[Route] = []

    @property
    def shares(self) -> bool:
        """True when one answer may serve several calls, so that keys are needed."""
        return self.cache.enabled or self.single_flight

    def at_speed(self, speed: float) -> "Policy":
        """The same policy in wall seconds, for a simulated provider that runs `speed` times faster than real."""
        replace = msgspec.structs.replace
        return replace(
            self,
            cache=replace(self.cache, ttl_s=self.cache.ttl_s / speed),
            concurrency=replace(self.concurrency, max_wait_s=self.concurrency.max_wait_s / speed),
            retry_429=replace(self.retry_429, max_wait_s=self.retry_429.max_wait_s / speed),
        )


def load_policy(path: Path) -> Policy:
    """Read a policy from TOML or JSON (by the file's ending). ConfigError names the file and the field."""
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"cannot read the policy {path}: {error.strerror}"
        raise ConfigError(msg) from error
    decode: Any = msgspec.json.decode if path.suffix == ".json" else msgspec.toml.decode
    try:
        policy: Policy = decode(data, type=Policy)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"the policy {path} is wrong: {error}"
        raise ConfigError(msg) from error
    return policy
