"""What to make of one attempt: hand it to the caller, wait and come again, try elsewhere. Pure."""

import enum

from paceline.accelerate.routing.policy import RoutingPolicy
from paceline.errors import UpstreamError, UpstreamTimeout

# Refusals before any work was done, so that even a call that must not be made twice may be made again.
_NOT_BEGUN = frozenset({429, 503, 529})
# The deployment's own credential or model name is wrong: nothing a caller can mend.
_MISCONFIGURED = frozenset({401, 403, 404})
# OpenAI's code, Anthropic's and Gemini's words, vLLM's.
_TOO_LONG = (
    b"context_length_exceeded",
    b"prompt is too long",
    b"exceeds the maximum number of tokens",
    b"maximum context length",
    b"request_too_large",
)


class Verdict(enum.Enum):
    """What happens after an attempt."""

    ANSWER = "answer"  # the caller gets it, whatever it is
    WAIT = "wait"  # the provider's rate limit: its gate is held, come again
    AGAIN = "again"  # it failed: once more, elsewhere if there is such a place
    ELSEWHERE = "elsewhere"  # this deployment will not serve it
    OTHER_MODEL = "other model"  # no deployment of this model will


class Judge:
    """The policy's retries and fallbacks, ready to be applied."""

    def __init__(self, policy: RoutingPolicy) -> None:
        self._statuses = frozenset(policy.retries.statuses)
        self._on_context_length = policy.fallback_on_context_length

    def of_error(self, error: UpstreamError, *, idempotent: bool) -> Verdict:
        """No answer came, or it ended before its first token."""
        if isinstance(error, UpstreamTimeout) and error.phase == "total":
            return Verdict.ANSWER  # the caller's own deadline
        return Verdict.AGAIN if idempotent or never_sent(error) else Verdict.ANSWER

    def of_refusal(
        self, status: int, body: bytes, *, should_retry: bytes | None, no_quota: bool, own_key: bool, idempotent: bool
    ) -> Verdict:
        """A refusal, read whole. `should_retry` is the provider's x-should-retry, which OpenAI's SDK obeys as well."""
        if status == 429:
            if no_quota or should_retry == b"false":
                return Verdict.ELSEWHERE
            return Verdict.WAIT if status in self._statuses else Verdict.ANSWER
        if status in _MISCONFIGURED and own_key:
            return Verdict.ELSEWHERE
        if status in (400, 413) and self._on_context_length and any(words in body for words in _TOO_LONG):
            return Verdict.OTHER_MODEL
        if should_retry == b"false":
            return Verdict.OTHER_MODEL if status >= 500 else Verdict.ANSWER
        if status in self._statuses or should_retry == b"true":
            return Verdict.AGAIN if idempotent or status in _NOT_BEGUN else Verdict.ANSWER
        return Verdict.ANSWER


def never_sent(error: UpstreamError) -> bool:
    """True when not a byte of the request left: connecting failed. The client raises that from an OSError."""
    return (isinstance(error, UpstreamTimeout) and error.phase == "connect") or isinstance(error.__cause__, OSError)


def is_failure(status: int) -> bool:
    """True for statuses that speak against a deployment: it is broken, not busy and not asked wrongly."""
    return status >= 500 or status == 408
