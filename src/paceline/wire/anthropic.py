"""The dialect of Anthropic's API: messages and count_tokens.

Everything here reads a copy of what passes through; shapes it does not know give empty answers, never errors.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from paceline.wire.call import (
    COUNT,
    DECODING,
    LLM,
    NOTHING,
    CallInfo,
    EventReader,
    ReplyInfo,
    Turn,
    Usage,
    count,
    describe_turns,
    dicts,
    encode_sorted,
    replace_field,
    word,
)
from paceline.wire.tokens import estimate_tokens

# Only after /v1: OpenAI's threads have messages too.
_KINDS = {"/v1/messages": LLM, "/v1/messages/count_tokens": COUNT}

# Fields that change nothing about the answer:
#   metadata, user_profile_id, workspace_id     whose call it is
#   stream                                      how the answer is delivered
#   service_tier, inference_geo, cache_control  where it is computed and what is kept of the prompt
#   diagnostics                                 what is told about the prompt's cache
HYGIENE_FIELDS = frozenset(
    {
        "metadata",
        "user_profile_id",
        "workspace_id",
        "stream",
        "service_tier",
        "inference_geo",
        "cache_control",
        "diagnostics",
    }
)
_MARK = "cache_control"

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Anthropic:
    """Anthropic's dialect."""

    name = "anthropic"
    price_provider = "anthropic"
    key_headers = frozenset({b"anthropic-version", b"anthropic-beta"})
    credential_headers = frozenset({b"x-api-key", b"authorization"})
    text_fields = frozenset({"system", "messages"})

    def kind_of(self, path: str) -> str | None:
        """LLM for `/v1/messages`, COUNT for its `count_tokens`, after any prefix; None for other paths."""
        return next((kind for end, kind in _KINDS.items() if path.endswith(end)), None)

    def model_of(self, path: str, call: Mapping[str, Any]) -> str | None:
        """The body's model."""
        return word(call.get("model"))

    def is_stream(self, path: str, call: Mapping[str, Any]) -> bool:
        """Whether `stream` is true."""
        return call.get("stream") is True

    def delivery(self, path: str, call: Mapping[str, Any]) -> bytes:
        """Plain or streamed."""
        return b"stream" if call.get("stream") is True else b"plain"

    def is_stateful(self, call: Mapping[str, Any]) -> bool:
        """Whether it goes on in a container."""
        return bool(call.get("container"))

    def canonical(self, call: dict[str, Any]) -> bytes:
        """The call in one spelling: sorted, no white space, without hygiene fields and marks of the prompt's cache."""
        return encode_sorted(
            {
                name: _unmarked(value) if name in _BLOCKS else value
                for name, value in call.items()
                if name not in HYGIENE_FIELDS
            }
        )

    def describe(self, kind: str, path: str, call: dict[str, Any], canon: bytes) -> CallInfo:
        """What a decoded call of this kind asks; `canon` is its `canonical` form."""
        return describe_turns(
            kind,
            turns_of(call),
            model=word(call.get("model")),
            stream=call.get("stream") is True,
            stateful=self.is_stateful(call),
            tools=call.get("tools"),
            canon=canon,
        )

    def read_reply(self, body: bytes, *, text: bool = True) -> ReplyInfo:
        """What a plain answer of status 200 says; without `text`, its text only where usage is missing."""
        try:
            reply = _decode_message(body)
        except DECODING:
            return ReplyInfo()
        usage = _usage_of(reply.usage) if reply.usage is not None else None
        finish = word(reply.stop_reason)
        return ReplyInfo(
            usage=usage,
            text="".join(_texts(reply)) if text or usage is None else "",
            complete=reply.error is None and (finish is not None or reply.input_tokens is not None),
            refused=finish in _REFUSED,
            truncated=finish in _LENGTH,
            finish=finish,
            model=word(reply.model),
            error=word(reply.error.type) if reply.error is not None else None,
        )

    def stream_reader(self) -> "MessageReader":
        """A reader for one streamed answer."""
        return MessageReader()

    def error_body(
        self, status: int, message: str, code: str | None = None, *, retry_after_s: float | None = None
    ) -> bytes:
        """An error as Anthropic words it; how long to wait is told in headers only."""
        error: dict[str, Any] = {"type": error_type(status), "message": message}
        return msgspec.json.encode(
            {"type": "error", "error": error | ({"details": {"error_code": code}} if code else {})}
        )

    def with_model(self, target: str, body: bytes, model: str) -> tuple[str, bytes]:
        """The call with another model in its body."""
        return target, replace_field(body, "model", model)


ANTHROPIC = Anthropic()


def error_type(status: int) -> str:
    """What Anthropic calls an error of this status."""
    return _ERRORS.get(status, "api_error" if status >= 500 else _ERRORS[400])


# --- what a call says -----------------------------------------------------------------------------------------------

_BLOCKS = frozenset({"system", "messages", "tools"})


def _unmarked(value: object) -> object:
    """Blocks, messages or tools without their marks. Schemas, tool arguments and texts keep what looks like one."""
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    if not isinstance(value, dict):
        return value
    content = value.get("content")
    if isinstance(content, list):
        value = value | {"content": _unmarked(content)}
    return {name: value[name] for name in value if name != _MARK} if _MARK in value else value


def turns_of(call: dict[str, Any]) -> list[Turn]:
    """(role, text) of everything the model is to read; results of tools have the role "tool"."""
    turns: list[Turn] = []
    system = call.get("system")
    if system:
        turns.append(("system", system if isinstance(system, str) else _joined(system)))
    for message in dicts(call.get("messages")):
        role, content = word(message.get("role")) or "user", message.get("content")
        if isinstance(content, str):
            turns.append((role, content))
            continue
        results = [block for block in dicts(content) if block.get("type") == "tool_result"]
        turns += [("tool", _block(block)) for block in results]
        said = _joined([block for block in dicts(content) if block.get("type") != "tool_result"])
        if said or not results:
            turns.append((role, said))
    return turns


def _joined(blocks: object) -> str:
    return "\n".join(text for block in dicts(blocks) if (text := _block(block)))


def _block(block: dict[str, Any]) -> str:
    """Text of a content block: its own, a tool's arguments, its result, a document's."""
    for name in ("text", "thinking"):
        if isinstance(block.get(name), str):
            return block[name]  # type: ignore[no-any-return]
    if block.get("type") == "tool_use":
        return msgspec.json.encode(block.get("input")).decode()
    content = block.get("content")
    if content is not None:
        return content if isinstance(content, str) else _joined(content)
    source = block.get("source")
    if isinstance(source, dict) and source.get("type") == "text":
        return word(source.get("data")) or ""
    return ""


# --- what an answer says: only the fields that matter are decoded, of any type where nothing hangs on it -------------

_LENGTH = frozenset({"max_tokens", "model_context_window_exceeded"})
_REFUSED = frozenset({"refusal"})


class _Creation(msgspec.Struct, gc=False):
    ephemeral_1h_input_tokens: Any = None


class _Details(msgspec.Struct, gc=False):
    thinking_tokens: Any = None


class _Usage(msgspec.Struct, gc=False):
    input_tokens: Any = None  # without those read from and written to the cache
    output_tokens: Any = None
    cache_read_input_tokens: Any = None
    cache_creation_input_tokens: Any = None
    cache_creation: _Creation | None = None
    output_tokens_details: _Details | None = None


class _Block(msgspec.Struct, gc=False):
    """A content block, its beginning, or a delta of it."""

    type: Any = None
    text: Any = None
    input: msgspec.Raw = NOTHING
    partial_json: Any = None
    thinking: Any = None
    stop_reason: Any = None  # in message_delta


class _Error(msgspec.Struct, gc=False):
    type: Any = None


class _Message(msgspec.Struct, gc=False):
    content: list[_Block] | None = None
    model: Any = None
    stop_reason: Any = None
    usage: _Usage | None = None
    input_tokens: Any = None  # all that count_tokens answers
    error: _Error | None = None


class _Event(msgspec.Struct, gc=False):
    type: Any = None
    delta: _Block | None = None
    message: _Message | None = None
    usage: _Usage | None = None
    error: _Error | None = None


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_event = msgspec.json.Decoder(_Event).decode


def _usage_of(raw: _Usage) -> Usage | None:
    if not isinstance(raw.input_tokens, int):
        return None
    read, written = count(raw.cache_read_input_tokens), count(raw.cache_creation_input_tokens)
    hour = count(raw.cache_creation.ephemeral_1h_input_tokens) if raw.cache_creation is not None else 0
    thought = count(raw.output_tokens_details.thinking_tokens) if raw.output_tokens_details is not None else 0
    return Usage(
        input_tokens=raw.input_tokens + read + written,
        output_tokens=count(raw.output_tokens),
        cached_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=min(hour, written),
        reasoning_tokens=thought,
    )


def _merged(old: _Usage, new: _Usage) -> _Usage:
    """Counts of a stream are cumulative: what the last event names replaces what the first one said."""
    return _Usage(
        **{
            name: value if (value := getattr(new, name)) is not None else getattr(old, name)
            for name in _Usage.__struct_fields__
        }
    )


def _texts(message: _Message) -> Iterator[str]:
    for block in message.content or ():
        if isinstance(block.text, str):
            yield block.text
        elif block.type == "tool_use":
            yield bytes(block.input).decode()


class MessageReader(EventReader):
    """Reads a streamed message."""

    LENGTH = _LENGTH

    def __init__(self) -> None:
        super().__init__()
        self._usage = _Usage()
        self._thought_tokens = 0  # our estimate, needed when the stream is cut before its count

    def take(self, event: bytes) -> None:
        """Read one event."""
        seen = _decode_event(event)
        kind, delta = seen.type, seen.delta
        if kind == "content_block_delta" and delta is not None:
            if isinstance(delta.text, str):
                self.texts.append(delta.text)
            elif isinstance(delta.partial_json, str):
                self.texts.append(delta.partial_json)
            elif isinstance(delta.thinking, str):
                self._thought_tokens += estimate_tokens(delta.thinking)
        elif kind == "message_start" and seen.message is not None:
            self.model = word(seen.message.model)
            self._usage = seen.message.usage or self._usage
        elif kind == "message_delta":
            if delta is not None:
                self.finish = word(delta.stop_reason) or self.finish
                self.refused |= self.finish in _REFUSED
            if seen.usage is not None:
                self._usage = _merged(self._usage, seen.usage)
        elif kind == "message_stop":
            self.ended = self.finish is not None
        elif seen.error is not None or kind == "error":
            self.error = (word(seen.error.type) if seen.error is not None else None) or "api_error"

    def result(self) -> ReplyInfo:
        """What the answer said so far. Before its end the provider has counted the prompt only, so we count."""
        self._read_on()
        usage = _usage_of(self._usage)
        if usage is not None and self.finish is None:
            written = self._thought_tokens + estimate_tokens("".join(self.texts))
            usage = msgspec.structs.replace(usage, output_tokens=max(usage.output_tokens, written))
            self.usage_partial = True
        else:
            self.usage_partial = False
        self.usage = usage
        return super().result()
