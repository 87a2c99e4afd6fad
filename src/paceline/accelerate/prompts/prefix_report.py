"""What PrefixWatch has found of one template, and what it is worth, in figures and in one sentence."""

import msgspec

from paceline.accelerate.prompts.breaks import TEXT
from paceline.accelerate.prompts.prefix_counts import Template
from paceline.model.price import price_of

_LEAST_MOVABLE = 64  # tokens after a varying piece for it to be worth a word
_STEP = 128
_PRICED_AS = {"openai": "openai", "anthropic": "anthropic", "gemini": "google"}
_WRITE_SURCHARGE = {"anthropic": 0.25}  # on the input price, for each token written to its cache of five minutes


class PrefixReport(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt template. Tokens are means over its calls, estimated; None: not known."""

    template: str  # as `CallInfo.template_hash`
    dialect: str
    model: str | None
    calls: int
    calls_per_min: float
    prompt_tokens: float
    stable_tokens: float  # before the first word that differs from another call of the template
    servable_tokens: float  # in a prefix some call of the last minutes had, long enough for the provider's cache
    cached_tokens: float | None  # what the provider says it served
    breaker_field: str | None = None  # where the piece stands that breaks the prefix: "system", "messages[0]"
    breaker_kind: str | None = None  # timestamp, date, time, id, number, name, ...
    breaker_pattern: str | None = None  # its shape, letters and digits masked
    breaker_share: float = 0.0  # of the calls compared
    would_serve_tokens: float = 0.0  # of a call, if the piece stood at the end
    saves_tokens: float = 0.0  # more than now that the provider would serve, a call
    saves_usd_per_1000: float | None = None  # calls; None: the price is not known
    saves_usd_per_hour: float | None = None  # at the calls per minute seen
    sentence: str = ""

    @property
    def stable_share(self) -> float:
        """Share of the prompt before its first varying piece, 0 to 1."""
        return self.stable_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def report_of(template: Template) -> PrefixReport:
    """Work out one report."""
    calls = template.calls
    span_s = template.last_s - template.first_s
    per_min = (calls - 1) / span_s * 60 if span_s > 0 else 0.0
    cached = template.cached_tokens / template.told_calls if template.told_calls else None
    report = PrefixReport(
        template=template.name,
        dialect=template.dialect,
        model=template.model,
        calls=calls,
        calls_per_min=per_min,
        prompt_tokens=template.tokens / calls,
        stable_tokens=template.stable_tokens / template.sampled if template.sampled else 0.0,
        servable_tokens=template.servable_tokens / calls,
        cached_tokens=cached,
    )
    report = _with_breaker(report, template)
    return msgspec.structs.replace(report, sentence=_sentence(report, template))


def _with_breaker(report: PrefixReport, template: Template) -> PrefixReport:
    """The piece whose moving would save most, and how much."""
    worth = {key: p for key, p in template.breaks.items() if p.movable_tokens >= _LEAST_MOVABLE * p.calls}
    if not worth:
        return report
    (field, kind), place = max(worth.items(), key=lambda item: item[1].movable_tokens)
    share = place.calls / template.sampled
    reach = (place.stable_tokens + place.movable_tokens) / place.calls // _STEP * _STEP
    warm = template.warm / max(1, report.calls - 1)
    would = reach * warm * share if reach >= template.minimum_tokens else 0.0
    now = max(report.servable_tokens, report.cached_tokens or 0.0)
    # Only the calls that break there gain; what the others are served already stays.
    gain = max(0.0, would - now * share)
    per_1000, per_hour = _usd(template, gain, (1 - warm) * reach * share if would else 0.0, report.calls_per_min)
    return msgspec.structs.replace(
        report,
        breaker_field=field,
        breaker_kind=kind,
        breaker_pattern=place.pattern,
        breaker_share=share,
        would_serve_tokens=now * (1 - share) + max(would, now * share),
        saves_tokens=gain,
        saves_usd_per_1000=per_1000,
        saves_usd_per_hour=per_hour,
    )


def _usd(template: Template, gain: float, written: float, per_min: float) -> tuple[float | None, float | None]:
    """Dollars saved per 1,000 calls and per hour: cached tokens at their price, less what writing them costs more."""
    price = price_of(template.model, _PRICED_AS[template.dialect]) if template.model else None
    if price is None:
        return None, None
    surcharge = _WRITE_SURCHARGE.get(template.dialect, 0.0) * price.input_usd
    per_call = gain * (price.input_usd - price.cached_input_usd) - written * surcharge
    return max(0.0, per_call * 1000), max(0.0, per_call * per_min * 60)


def _sentence(report: PrefixReport, template: Template) -> str:
    least, prompt = template.minimum_tokens, report.prompt_tokens
    if template.calls == 1:
        return f"One call of {prompt:,.0f} tokens: nothing to compare it with yet."
    if report.breaker_field is not None:
        what = "A piece of text" if report.breaker_kind == TEXT else f"A {report.breaker_kind}".replace("A e", "An e")
        what = what.replace("A id", "An id").replace("A address", "An address")
        place = f"{what} in {report.breaker_field} differs from call to call after {report.stable_tokens:,.0f} tokens"
        if not report.saves_tokens:
            return f"{place}, but at its end the prompt would still have too little to cache ({least:,} tokens)."
        money = report.saves_usd_per_1000
        worth = "" if money is None else f", {money:,.2f} USD less per 1,000 calls"
        return (
            f"{place}, so the provider's cache can serve {report.servable_tokens:,.0f} of {prompt:,.0f}; "
            f"at the end of the prompt it would leave {report.would_serve_tokens:,.0f}{worth}."
        )
    if report.stable_tokens < least and report.servable_tokens < least:
        return (
            f"{report.stable_tokens:,.0f} of {prompt:,.0f} tokens are the same from call to call; "
            f"the provider caches prefixes from {least:,} on."
        )
    told = "" if report.cached_tokens is None else f", and it says it served {report.cached_tokens:,.0f}"
    hint = ""
    if template.dialect == "anthropic" and not template.marked:
        hint = " No part of the prompt is marked with cache_control, so nothing is cached."
    return f"The provider's cache can serve {report.servable_tokens:,.0f} of {prompt:,.0f} tokens{told}.{hint}"
