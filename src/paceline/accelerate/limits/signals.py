"""What a provider's answer says about its limits, read from status, headers and body. Pure.

OpenAI     `retry-after-ms`, `retry-after` or its text; `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`
Anthropic  `retry-after`; `anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-*`, resets in RFC 3339
Gemini     in the body: RetryInfo.retryDelay or its text; nothing about what is left
Azure      as OpenAI, with -1 or 0 in the token headers now and then (openai-dotnet#838)

Shapes seen: Gemini's body in google-gemini/gemini-cli#8437, Anthropic's spend limit in can1357/oh-my-pi#5418.
"""

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from paceline.accelerate.limits.spans import duration_s, reset_s, retry_after_s, retry_in_s

_BODY_BYTES = 256 * 1024  # an error's body is small; a larger one is not read
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded"}
_SPENT = ("spend limit", "spending limit", "credit balance", "usage limits", "billing hard limit")
_DAILY = ("perday", "per_day", "permonth", "per_month")


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer said. None: it did not say. Limits are per the provider's period, most often a minute."""

    status: int
    retry_after_s: float | None = None
    limit_requests: float | None = None
    remaining_requests: float | None = None
    reset_requests_s: float | None = None  # until the limit is whole again
    limit_tokens: float | None = None
    remaining_tokens: float | None = None
    reset_tokens_s: float | None = None
    quota_exhausted: bool = False  # no waiting helps within the day: credit, spend limit, daily quota


def signal_of(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes | None, now_s: float) -> Signal:
    """Read an answer. Never raises: what is not understood is None.

    Args:
        status: The answer's HTTP status.
        headers: Its headers, names in lower case.
        body: An error's body (429 and 5xx), or None where it is not at hand; a good answer's is never looked at.
        now_s: Unix time, for dates.

    Cost: 1-3 us without rate-limit headers, about 10 us with them.
    """
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name.startswith((b"x-ratelimit-", b"anthropic-ratelimit-", b"retry-after", b"x-should-retry")):
            found[name] = value.decode("latin-1").strip()
    failed = status == 429 or status >= 500
    error = _error_of(body) if failed and body else {}
    if not found and not error:
        return Signal(status=status)
    message = str(error.get("message") or "")
    wait_s = retry_after_s(found.get(b"retry-after-ms"), found.get(b"retry-after"), now_s)
    if wait_s is None and error:
        wait_s = _retry_delay_s(error)
        if wait_s is None:
            wait_s = retry_in_s(message)
    requests = _openai(found, b"requests", now_s) or _anthropic(found, (b"requests",), now_s)
    tokens = _openai(found, b"tokens", now_s) or _anthropic(
        found, (b"tokens", b"input-tokens", b"output-tokens"), now_s
    )
    limit_requests, remaining_requests, reset_requests_s = requests or (None, None, None)
    limit_tokens, remaining_tokens, reset_tokens_s = tokens or (None, None, None)
    return Signal(
        status=status,
        retry_after_s=wait_s if failed else None,
        limit_requests=limit_requests,
        remaining_requests=remaining_requests,
        reset_requests_s=reset_requests_s,
        limit_tokens=limit_tokens,
        remaining_tokens=remaining_tokens,
        reset_tokens_s=reset_tokens_s,
        quota_exhausted=status == 429 and (_is_spent(error, message) or found.get(b"x-should-retry") == "false"),
    )


_Quota = tuple[float | None, float | None, float | None]


def _openai(found: dict[bytes, str], what: bytes, now_s: float) -> _Quota | None:
    return _quota(
        found.get(b"x-ratelimit-limit-" + what),
        found.get(b"x-ratelimit-remaining-" + what),
        found.get(b"x-ratelimit-reset-" + what),
        now_s,
    )


def _anthropic(found: dict[bytes, str], kinds: tuple[bytes, ...], now_s: float) -> _Quota | None:
    """The `tokens` headers stand for the most restrictive limit in effect; without them the scarcer of the others."""
    quotas = []
    for kind in kinds:
        start = b"anthropic-ratelimit-" + kind
        quota = _quota(
            found.get(start + b"-limit"), found.get(start + b"-remaining"), found.get(start + b"-reset"), now_s
        )
        if quota is not None:
            quotas.append(quota)
            if kind == b"tokens":
                break
    return min(quotas, key=_left_ratio, default=None)


def _left_ratio(quota: _Quota) -> float:
    limit, remaining, _ = quota
    return 1.0 if limit is None or remaining is None else remaining / limit


def _quota(limit: str | None, remaining: str | None, reset: str | None, now_s: float) -> _Quota | None:
    """A limit that is not above 0 is none (Azure), and then what remains of it says nothing either."""
    most, left = _count(limit), _count(remaining)
    if most is None or most <= 0:
        return None
    if left is not None and not 0 <= left <= most:
        left = None
    return most, left, reset_s(reset, now_s) if reset is not None else None


def _count(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _error_of(body: bytes) -> dict[str, Any]:
    """The `error` object of a body in any dialect; Gemini sometimes wraps it in a list."""
    if len(body) > _BODY_BYTES:
        return {}
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    if isinstance(decoded, list) and decoded:
        decoded = decoded[0]
    error = decoded.get("error") if isinstance(decoded, dict) else None
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}


def _details(error: dict[str, Any], kind: str) -> Iterable[dict[str, Any]]:
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and str(detail.get("@type", "")).endswith(kind):
            yield detail


def _retry_delay_s(error: dict[str, Any]) -> float | None:
    """The longest RetryInfo.retryDelay."""
    delays = [duration_s(str(detail.get("retryDelay", ""))) for detail in _details(error, "google.rpc.RetryInfo")]
    return max((delay for delay in delays if delay is not None), default=None)


def _is_spent(error: dict[str, Any], message: str) -> bool:
    """True for exhausted credit, a spend limit, or a quota per day: waiting for seconds is no use."""
    if {str(error.get("code")), str(error.get("type"))} & _QUOTA_CODES:
        return True
    text = message.lower()
    if any(words in text for words in _SPENT):
        return True
    for detail in _details(error, "google.rpc.QuotaFailure"):
        violations = detail.get("violations")
        for violation in violations if isinstance(violations, list) else ():
            if isinstance(violation, dict):
                names = f"{violation.get('quotaId', '')} {violation.get('quotaMetric', '')}".lower()
                if any(period in names for period in _DAILY):
                    return True
    return False
