"""The dialects the simulated provider speaks: a house each, asked for by what only its clients send."""

from paceline.testing.dialects.anthropic import AnthropicHouse
from paceline.testing.dialects.gemini import GeminiHouse
from paceline.testing.dialects.house import House
from paceline.testing.dialects.openai import OpenAIHouse
from paceline.wire.dialects import dialect_for
from paceline.wire.http import HttpRequest

_HOUSES: dict[str, House] = {house.name: house for house in (OpenAIHouse(), AnthropicHouse(), GeminiHouse())}


def house_of(request: HttpRequest) -> House:
    """The house a request is for; OpenAI's when nothing tells."""
    return _HOUSES[dialect_for(request.path, request.headers).name]
