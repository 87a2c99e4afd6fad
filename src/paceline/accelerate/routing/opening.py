"""The opening of a stream: what comes before its first token, and so may be held back and given up. Pure."""

from typing import Any

import msgspec

from paceline.wire.sse import SseParser

HOLD, PASS, FAILED = "hold", "pass", "failed"
_HELD_BYTES = 64 * 1024  # more than this is passed on whatever it is

# Events that announce an answer and hold nothing of it. Anthropic's first, then those of OpenAI's Responses API.
_ANNOUNCING = frozenset(
    {
        "message_start",
        "ping",
        "content_block_start",
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    }
)
# What an error inside a stream would have been as a status: Anthropic's types, OpenAI's types and codes.
_STATUS = {
    "overloaded_error": 529,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "timeout_error": 504,
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "insufficient_quota": 429,
}


class _Event(msgspec.Struct, gc=False):
    type: Any = None
    error: Any = None
    choices: Any = None
    response: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class Opening:
    """Reads a stream up to its first token: `feed` the pieces until the state is no longer HOLD.

    Only what is known to announce an answer is held back; anything else counts as its first token.
    """

    __slots__ = ("_parser", "pieces", "size", "state", "status")

    def __init__(self) -> None:
        self._parser = SseParser()
        self.pieces: list[bytes] = []
        self.size = 0
        self.state = HOLD
        self.status = 0  # of a FAILED one: what the error in it would have been

    def feed(self, piece: bytes) -> str:
        """Take the next piece, cut anywhere; returns the state."""
        self.pieces.append(piece)
        self.size += len(piece)
        try:
            events = self._parser.feed(piece)
        except ValueError:
            events = []
            self.state = PASS
        for event in events:
            self.state = self._judge(event)
            if self.state != HOLD:
                break
        else:
            if self.size > _HELD_BYTES:
                self.state = PASS
        return self.state

    def _judge(self, data: bytes) -> str:
        try:
            event = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return PASS  # [DONE], and what nobody knows
        error = event.error
        if event.type == "response.failed" and isinstance(event.response, dict):
            error = event.response.get("error")
        if error or event.type == "error":
            self.status = _status_of(error)
            return FAILED
        if event.type in _ANNOUNCING or (event.choices is not None and _announces(event.choices)):
            return HOLD
        return PASS


def _announces(choices: object) -> bool:
    """True for chat chunks without content: Azure's filter results, the assistant's role."""
    if not isinstance(choices, list):
        return False
    return all(
        isinstance(choice, dict)
        and not choice.get("finish_reason")
        and isinstance(choice.get("delta"), dict)
        and not any(value for name, value in choice["delta"].items() if name != "role")
        for choice in choices
    )


def _status_of(error: object) -> int:
    if not isinstance(error, dict):
        return 500
    code = error.get("code")
    if isinstance(code, int) and 400 <= code <= 599:  # Gemini's
        return code
    return next((_STATUS[word] for word in (code, error.get("type")) if isinstance(word, str) and word in _STATUS), 500)
