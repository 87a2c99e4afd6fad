"""How long the caller will wait: what its request says, and what the policy allows."""

from collections.abc import Sequence
from typing import NamedTuple

# In order of authority: ours (the last, where it is said twice); what OpenAI's and Anthropic's SDKs say they will wait
# for a read; google-genai's.
# The SDKs' are bounds of one read. A plain answer comes in one, and a stream's first piece does, so for the time until
# the answer begins they are the caller's deadline.
PATIENCE = b"x-paceline-timeout-s"
_HEADERS = (PATIENCE, b"x-stainless-read-timeout", b"x-stainless-timeout", b"x-server-timeout")
IDEMPOTENT = b"x-paceline-idempotent"


class Patience(NamedTuple):
    """How long a caller waits, and whether its call may be made twice."""

    limit_s: float | None  # None: it does not say
    idempotent: bool  # asking twice does no harm; false only when the caller says so


def patience_of(headers: Sequence[tuple[bytes, bytes]]) -> Patience:
    """What the headers say (lower-case names). Nonsense, zero and "NOT_GIVEN" say nothing."""
    said = dict(headers)
    for name in _HEADERS:
        value = said.get(name)
        limit_s = _seconds(value) if value is not None else None
        if limit_s is not None:
            break
    else:
        limit_s = None
    return Patience(limit_s, said.get(IDEMPOTENT, b"").lower() not in (b"false", b"0", b"no"))


def _seconds(value: bytes) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 < seconds < float("inf") else None
