"""Making a dispatcher from what the configuration says."""

import os
import random
from collections.abc import Callable, Mapping

from paceline.accelerate.routing.gates import Limits
from paceline.accelerate.routing.plan import Plans
from paceline.accelerate.routing.policy import RoutingPolicy
from paceline.accelerate.routing.providers import Clients, Providers
from paceline.accelerate.routing.send import Dispatcher
from paceline.accelerate.routing.targets import Target, deployment_target, provider_targets
from paceline.wire.clients import Client
from paceline.wire.dialects import DIALECTS


def make_dispatcher(
    policy: RoutingPolicy,
    clients: Clients,
    providers: Providers | Client,
    *,
    limits: Limits | None = None,
    gated: bool = False,
    environ: Mapping[str, str] | None = None,
    rand: Callable[[], float] = random.random,
) -> Dispatcher:
    """A dispatcher over these providers and the policy's deployments.

    Args:
        policy: In wall seconds (`at_speed` applied).
        clients: One for each server; whoever made it closes it.
        providers: Their URLs; or one client that every dialect's calls go through.
        limits: What every attempt must pass; None: nothing is limited.
        gated: The limits are adaptive, so that a 429 holds the calls behind it back.
        environ: Where credentials are looked up; None: the environment.
        rand: Draws waits and choices, from [0, 1).

    Raises:
        ConfigError: a URL is none, or a variable that holds a credential is not set.
    """
    found = os.environ if environ is None else environ
    if not isinstance(providers, Providers):
        targets = {dialect.name: Target(providers, dialect.name, dialect.name) for dialect in DIALECTS}
    else:
        targets = provider_targets(providers, clients)
    deployments = [(each, deployment_target(each, clients, found)) for each in policy.deployments]
    return Dispatcher(policy, targets, Plans(policy, targets, deployments), limits, gated=gated, rand=rand)
