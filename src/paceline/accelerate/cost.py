"""Cost of a call, from its usage and the price of its model."""

from functools import lru_cache

from paceline.model.price import Price, price_of
from paceline.wire.call import Usage


def cost_usd(
    model: str | None, usage: Usage | None, provider: str | None = None, *, answered_by: str | None = None
) -> float | None:
    """US dollars; None when the model's price or the usage is not known (never zero for "unknown").

    `provider` is the dialect's `price_provider`; many others speak OpenAI's, so a model it does not sell is looked for
    elsewhere. `answered_by` is the model the answer names, for calls that asked for a deployment or an alias.
    """
    if usage is None:
        return None
    price = _price(model, provider) or (_price(answered_by, provider) if answered_by != model else None)
    if price is None:
        return None
    return price.cost_usd(
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        output_image_tokens=usage.output_image_tokens,
    )


@lru_cache(maxsize=2048)
def _price(model: str | None, provider: str | None) -> Price | None:
    if model is None:
        return None
    name = model.rpartition("models/")[2]  # as Google writes it in bodies
    return (price_of(name, provider) if provider else None) or price_of(name) or price_of(name, "openai")
