"""Limits: calls wait here rather than be refused by the provider; see docs/limits.md."""

from paceline.accelerate.limits.ask import Ask
from paceline.accelerate.limits.policy import LimitsPolicy
from paceline.accelerate.limits.signals import Signal, signal_of

__all__ = ["Ask", "LimitsPolicy", "Signal", "signal_of"]
