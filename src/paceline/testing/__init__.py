"""Fakes other people may use in their own tests: a provider that behaves like one, without the bill."""

from paceline.testing.config import PRESETS, Faults, Model, ProviderConfig, load_config
from paceline.testing.provider import SimulatedProvider
from paceline.testing.service import ProviderCall
from paceline.testing.writing import AnswerRule

__all__ = [
    "PRESETS",
    "AnswerRule",
    "Faults",
    "Model",
    "ProviderCall",
    "ProviderConfig",
    "SimulatedProvider",
    "load_config",
]
