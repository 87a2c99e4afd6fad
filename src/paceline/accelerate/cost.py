"""Cost of a call, from its usage and the price of its model."""

from paceline.model.price import price_of
from paceline.wire.openai import Usage


def cost_usd(model: str | None, usage: Usage | None) -> float | None:
    """US dollars; None when the model's price or the usage is not known (never zero for "unknown")."""
    if model is None or usage is None:
        return None
    # Some models (embeddings) are only found when the provider is named, and this is OpenAI's dialect.
    price = price_of(model) or price_of(model, "openai")
    if price is None:
        return None
    return price.cost_usd(usage.input_tokens, usage.output_tokens, usage.cached_tokens)
