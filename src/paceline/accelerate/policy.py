"""The acceleration policy: what the layer may do besides passing calls on. Everything is off until asked for."""

from pathlib import Path
from typing import Any

import msgspec

from paceline.accelerate.batching.policy import BatchPolicy
from paceline.accelerate.cache.policy import CachePolicy
from paceline.accelerate.limits.policy import AdaptivePolicy, LimitsPolicy
from paceline.accelerate.prompts.policy import PromptPolicy
from paceline.accelerate.routing.policy import RetryPolicy, RoutingPolicy
from paceline.errors import ConfigError


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it. In TOML: single_flight, [cache], [limits], [routing], [prompts], [batching]. Seconds at real pace."""

    single_flight: bool = False  # equal calls in flight share one call to the provider
    cache: CachePolicy = CachePolicy()
    limits: LimitsPolicy = LimitsPolicy()
    routing: RoutingPolicy = RoutingPolicy()
    prompts: PromptPolicy = PromptPolicy()
    batching: BatchPolicy = BatchPolicy()

    @property
    def shares(self) -> bool:
        """True when one answer may serve several calls, so that keys are needed."""
        return self.cache.enabled or self.single_flight

    def at_speed(self, speed: float) -> "Policy":
        """The same policy in wall seconds, for a simulated provider that runs `speed` times faster than real."""
        if speed == 1.0:
            return self
        return msgspec.structs.replace(
            self,
            cache=self.cache.at_speed(speed),
            limits=self.limits.at_speed(speed),
            routing=self.routing.at_speed(speed),
            prompts=self.prompts.at_speed(speed),
            batching=self.batching.at_speed(speed),
        )


# What `paceline serve` does when no policy is given: what helps every service and changes no answer but by giving the
# same one again, for W3.1's five minutes, to a caller who asks the very same.
RECOMMENDED = Policy(
    single_flight=True,
    cache=CachePolicy(enabled=True),
    limits=LimitsPolicy(adaptive=AdaptivePolicy(enabled=True)),
    routing=RoutingPolicy(retries=RetryPolicy(enabled=True)),
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
    return msgspec.structs.replace(policy, routing=policy.routing.in_folder(path.parent.resolve()))
