"""How providers write "how long": Go durations, protobuf durations, RFC 3339 moments, and Retry-After's three forms.

All functions take what a stranger sent: nonsense is None, never an exception.
"""

import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_UNIT_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_PART = r"\d{1,15}(?:\.\d{1,15})?(?:ms|us|µs|μs|ns|d|h|m|s)"
_PARTS = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)(ms|us|µs|μs|ns|d|h|m|s)")
_DURATION = re.compile(rf"(?:{_PART}){{1,8}}")
_RETRY_IN = re.compile(rf"(?:retry|try again) in ((?:{_PART}){{1,8}})", re.IGNORECASE)


def duration_s(text: str) -> float | None:
    """Seconds of a duration as Go and protobuf write it: `12ms`, `6m0s`, `10h17m5.72s`, `35s`."""
    if not _DURATION.fullmatch(text.strip()):
        return None
    return sum(float(number) * _UNIT_S[unit] for number, unit in _PARTS.findall(text))


def seconds(text: str) -> float | None:
    """A plain number of seconds, decimals allowed; not negative, not endless."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None


def until_s(text: str, now_s: float) -> float | None:
    """Seconds from `now_s` (Unix) to an RFC 3339 moment; 0 when it is past."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now_s)


def reset_s(text: str, now_s: float) -> float | None:
    """A reset header's value: a duration (OpenAI), plain seconds (others), or a moment (Anthropic)."""
    wait_s = duration_s(text)
    if wait_s is None:
        wait_s = seconds(text)
    return until_s(text, now_s) if wait_s is None else wait_s


def retry_after_s(ms: str | None, after: str | None, now_s: float) -> float | None:
    """What `retry-after-ms` and `retry-after` ask for: milliseconds first, then seconds, then an HTTP date.

    None when they do not say, or say nonsense. `now_s` is Unix time, for dates.
    """
    wait_s = seconds(ms) if ms is not None else None
    if wait_s is not None:
        return wait_s / 1000
    if after is None:
        return None
    wait_s = seconds(after)
    if wait_s is not None:
        return wait_s
    try:
        return max(0.0, parsedate_to_datetime(after).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def retry_in_s(message: str) -> float | None:
    """Seconds in an error's text: "Please retry in 10h17m5.72s", "Please try again in 20ms"."""
    found = _RETRY_IN.search(message)
    return duration_s(found.group(1)) if found else None
