"""Routing: from a call to the place that serves it, in time, even when places fail; see docs/routing.md."""

from paceline.accelerate.routing.policy import Route, RoutingPolicy
from paceline.accelerate.routing.providers import Providers
from paceline.accelerate.routing.rules import Choice, Rules
from paceline.accelerate.routing.taken import RouteTaken

__all__ = ["Choice", "Providers", "Route", "RouteTaken", "RoutingPolicy", "Rules"]
