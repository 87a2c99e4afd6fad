"""Prices: ours against genai-prices' own reckoning."""

import genai_prices
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.accelerate.cost import cost_usd
from paceline.model.price import price_of
from paceline.wire.call import Usage

MODELS = [
    ("gpt-4o", "openai"),
    ("gpt-5", "openai"),
    ("claude-sonnet-4-5", "anthropic"),
    ("claude-haiku-4-5", "anthropic"),
    ("gemini-2.5-pro", "google"),
    ("gemini-2.5-flash", "google"),
]
parts = st.lists(st.integers(0, 300_000), min_size=6, max_size=6)


@given(st.sampled_from(MODELS), parts)
def test_a_cost_is_what_the_price_list_says(model: tuple[str, str], sizes: list[int]) -> None:
    """Fresh, cached and written tokens, reasoning, and the tier of long prompts, each at its own price."""
    fresh, cached, short, hour, said, thought = sizes
    read = fresh + cached + short + hour
    name, provider = model
    ours = cost_usd(
        name,
        Usage(
            input_tokens=read,
            output_tokens=said + thought,
            cached_tokens=cached,
            cache_write_tokens=short + hour,
            cache_write_1h_tokens=hour,
            reasoning_tokens=thought,
        ),
        provider,
    )
    theirs = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=read,
            output_tokens=said + thought,
            cache_read_tokens=cached,
            cache_write_tokens=short + hour,
            cache_write_1h_tokens=hour,
            output_reasoning_tokens=thought,
        ),
        model_ref=name,
        provider_id=provider,
    )
    assert ours == pytest.approx(float(theirs.total_price), abs=1e-9)


def test_audio_costs_what_audio_costs() -> None:
    usage = Usage(input_tokens=1_000_000, input_audio_tokens=500_000)
    assert cost_usd("gemini-2.5-flash", usage, "google") == pytest.approx(0.5 * 0.3 + 0.5 * 1.0)


def test_an_unknown_model_costs_nobody_knows_what() -> None:
    """Never zero; but the model that answers for a deployment may be known, and others speak OpenAI's dialect."""
    usage = Usage(input_tokens=1000, output_tokens=10)
    assert cost_usd("our-deployment", usage, "openai") is None
    assert cost_usd(None, usage, "openai") is None
    assert cost_usd("gpt-4o", None, "openai") is None
    known = cost_usd("gpt-4o", usage, "openai")
    assert cost_usd("our-deployment", usage, "openai", answered_by="gpt-4o") == known
    assert cost_usd("claude-haiku-4-5", usage, "openai") == cost_usd("claude-haiku-4-5", usage, "anthropic")
    assert cost_usd("models/gemini-2.5-flash", usage, "google") == cost_usd("gemini-2.5-flash", usage, "google")


def test_prices_are_looked_up_once() -> None:
    assert price_of("gpt-4o", "openai") is price_of("gpt-4o", "openai")
