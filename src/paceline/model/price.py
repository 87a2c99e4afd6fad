"""Price of model calls, from genai-prices; unknown models have an unknown price, never zero.

List prices of ordinary calls: batches, priority tiers and committed use are billed otherwise, and nothing in an answer
says so reliably.
"""

from functools import lru_cache
from typing import Any

import msgspec

_PROVIDERS = ("openai", "anthropic", "google")
_SAMPLE = 1000  # tokens whose price is asked


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars per token. None: as any other token of that direction."""

    input_usd: float
    output_usd: float
    cached_input_usd: float
    cache_write_usd: float | None = None
    cache_write_1h_usd: float | None = None  # kept for an hour; None: as any other written
    reasoning_usd: float | None = None
    input_audio_usd: float | None = None
    output_audio_usd: float | None = None
    output_image_usd: float | None = None
    tiers: tuple["Tier", ...] = ()  # dearer prices of long prompts, longest first

    def cost_usd(
        self,
        input_tokens: int,
        output_tokens: int,
        cached_tokens: int = 0,
        *,
        cache_write_tokens: int = 0,
        cache_write_1h_tokens: int = 0,
        reasoning_tokens: int = 0,
        input_audio_tokens: int = 0,
        output_audio_tokens: int = 0,
        output_image_tokens: int = 0,
    ) -> float:
        """Cost of one call. The named tokens are parts of the input or output; those written for an hour are a part
        of those written. A long prompt pays its tier's price for every token."""
        rates = self
        for tier in self.tiers:
            if input_tokens > tier.above_tokens:
                rates = tier.price
                break
        cost_usd = input_tokens * rates.input_usd + output_tokens * rates.output_usd
        if cached_tokens:
            cost_usd += cached_tokens * (rates.cached_input_usd - rates.input_usd)
        if cache_write_tokens and rates.cache_write_usd is not None:
            cost_usd += cache_write_tokens * (rates.cache_write_usd - rates.input_usd)
            if cache_write_1h_tokens and rates.cache_write_1h_usd is not None:
                cost_usd += cache_write_1h_tokens * (rates.cache_write_1h_usd - rates.cache_write_usd)
        if reasoning_tokens and rates.reasoning_usd is not None:
            cost_usd += reasoning_tokens * (rates.reasoning_usd - rates.output_usd)
        if input_audio_tokens and rates.input_audio_usd is not None:
            cost_usd += input_audio_tokens * (rates.input_audio_usd - rates.input_usd)
        if output_audio_tokens and rates.output_audio_usd is not None:
            cost_usd += output_audio_tokens * (rates.output_audio_usd - rates.output_usd)
        if output_image_tokens and rates.output_image_usd is not None:
            cost_usd += output_image_tokens * (rates.output_image_usd - rates.output_usd)
        return cost_usd


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """The price when the prompt is longer than `above_tokens`, its cached part included."""

    above_tokens: int
    price: Price


@lru_cache(maxsize=2048)
def price_of(model: str, provider: str | None = None) -> Price | None:
    """Price of `model`, or None when genai-prices does not know it. The first call imports it (0.2 s).

    `provider` is genai-prices' name for it; without one the model is looked for at the large ones.
    """
    from genai_prices import Usage, calc_price

    # Without a provider only well-known chat models are found by name; the largest provider's embeddings are not.
    for source in (provider,) if provider else (None, *_PROVIDERS):
        try:
            found = calc_price(Usage(input_tokens=_SAMPLE), model_ref=model, provider_id=source)
        except LookupError:
            continue
        if found.model_price.input_mtok is not None or found.model_price.output_mtok is not None:
            return _price(found)
    return None  # unknown, or not sold by the token


def _price(found: Any) -> Price:
    """The rates behind a priced call of genai-prices, asked for sort by sort so that its rules stay its own."""
    starts = {
        tier.start
        for value in vars(found.model_price).values()
        if hasattr(value, "tiers")
        for tier in value.tiers
        if tier.start > 0
    }
    tiers = (Tier(above_tokens=start, price=_rates(found.model_price, start)) for start in sorted(starts, reverse=True))
    return msgspec.structs.replace(_rates(found.model_price, 0), tiers=tuple(tiers))


def _rates(model_price: Any, above_tokens: int) -> Price:
    from genai_prices import Usage

    def cost(**tokens: int) -> Any:
        return model_price.calc_price(Usage(**tokens))["total_price"]

    def of_input(*sorts: str) -> float:
        size = above_tokens + _SAMPLE
        return float(cost(input_tokens=size, **dict.fromkeys(sorts, size)) / size)

    def of_output(*sorts: str) -> float:
        size = above_tokens + _SAMPLE
        whole = cost(input_tokens=size, output_tokens=_SAMPLE, **dict.fromkeys(sorts, _SAMPLE))
        return float((whole - cost(input_tokens=size)) / _SAMPLE)

    return Price(
        input_usd=of_input(),
        output_usd=of_output(),
        cached_input_usd=of_input("cache_read_tokens"),
        cache_write_usd=of_input("cache_write_tokens"),
        cache_write_1h_usd=of_input("cache_write_tokens", "cache_write_1h_tokens"),
        reasoning_usd=of_output("output_reasoning_tokens"),
        input_audio_usd=of_input("input_audio_tokens"),
        output_audio_usd=of_output("output_audio_tokens"),
        output_image_usd=of_output("output_image_tokens"),
    )
