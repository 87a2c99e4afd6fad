"""Price of model calls, from genai-prices; unknown models have an unknown price, never zero."""

from functools import lru_cache

import msgspec


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars per token."""

    input_usd: float
    output_usd: float
    cached_input_usd: float

    def cost_usd(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """Cost of one call; `cached_tokens` are the part of `input_tokens` the provider had cached."""
        fresh = input_tokens - cached_tokens
        return fresh * self.input_usd + cached_tokens * self.cached_input_usd + output_tokens * self.output_usd


_PROVIDERS = ("openai", "anthropic", "google")


@lru_cache(maxsize=512)
def price_of(model: str, provider: str | None = None) -> Price | None:
    """Price of `model`, or None when genai-prices does not know it. The first call imports it (0.2 s).

    Asked as the price of a million tokens of one sort, so tiered prices are taken at that size's first tier.
    """
    from genai_prices import Usage, calc_price

    def per_token(usage: Usage, source: str | None) -> float:
        return float(calc_price(usage, model_ref=model, provider_id=source).total_price) / 1000

    # Without a provider only well-known chat models are found by name; the largest provider's embeddings are not.
    for source in (provider,) if provider else (None, *_PROVIDERS):
        try:
            return Price(
                input_usd=per_token(Usage(input_tokens=1000), source),
                output_usd=per_token(Usage(output_tokens=1000), source),
                cached_input_usd=per_token(Usage(input_tokens=1000, cache_read_tokens=1000), source),
            )
        except LookupError:
            continue
    return None
