"""Limits: calls wait here rather than be refused by the provider; see docs/limits.md."""

from paceline.accelerate.limits.ask import Ask
from paceline.accelerate.limits.gate import GateState
from paceline.accelerate.limits.limits import Limits
from paceline.accelerate.limits.permit import Permit
from paceline.accelerate.limits.policy import AdaptivePolicy, LimitsPolicy, ModelLimits
from paceline.accelerate.limits.signals import Signal, signal_of

__all__ = [
    "AdaptivePolicy",
    "Ask",
    "GateState",
    "Limits",
    "LimitsPolicy",
    "ModelLimits",
    "Permit",
    "Signal",
    "signal_of",
]
