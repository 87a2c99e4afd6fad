"""Fakes other people may use in their own tests: a provider that behaves like one, without the bill."""

from paceline.testing.config import PRESETS, Faults, Model, ProviderConfig, load_config
from paceline.testing.provider import ProviderCall, SimulatedProvider

__all__ = ["PRESETS", "Faults", "Model", "ProviderCall", "ProviderConfig", "SimulatedProvider", "load_config"]
