"""What the caller gets when there is no answer from the provider."""

import asyncio

from paceline.accelerate.routing.taken import RouteTaken
from paceline.errors import Overloaded, UpstreamBroken, UpstreamTimeout
from paceline.wire.call import Dialect
from paceline.wire.http import Reply
from paceline.wire.openai import OPENAI

_JSON = (b"content-type", b"application/json")


def error_name(error: BaseException) -> str:
    """How a span calls it."""
    match error:
        case asyncio.CancelledError():
            return "client_closed"
        case UpstreamTimeout():
            return "upstream_timeout"
        case UpstreamBroken():
            return "upstream_broken"
        case Overloaded():
            return "429"
    return type(error).__name__


def error_reply(error: Exception, outcome: bytes, dialect: Dialect = OPENAI, taken: RouteTaken | None = None) -> Reply:
    """504, 502, or 429 with Retry-After, worded as the provider would: its SDK raises the exception it knows.

    `taken` adds what was tried. After attempts of our own, `x-should-retry: false` keeps the official SDKs from
    multiplying them by theirs.
    """
    headers = [_JSON, (b"x-paceline-cache", outcome)]
    if isinstance(error, Overloaded):
        wait_s = max(1, round(error.retry_after_s))
        headers.append((b"retry-after", b"%d" % wait_s))
        message = str(error)
        body = dialect.error_body(429, message, "gateway_overloaded", retry_after_s=wait_s)
        return Reply(429, headers, body)
    status = 504 if isinstance(error, UpstreamTimeout) else 502
    message = f"the model server failed: {error}"
    failed = taken.failed if taken is not None else []
    if len(failed) > 1 and taken is not None:
        message += f"; {len(failed)} attempts: {taken.story()}"
        headers.append((b"x-should-retry", b"false"))
    code = "upstream_timeout" if status == 504 else "upstream_error"
    return Reply(status, headers, dialect.error_body(status, message, code))
