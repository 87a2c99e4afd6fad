"""The dialect of OpenAI's API: chat completions, responses, completions, embeddings. Also what many others speak.

Everything here reads a copy of what passes through; shapes it does not know give empty answers, never errors.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from paceline.wire.call import (
    DECODING,
    EMBEDDING,
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

_KINDS = {"completions": LLM, "responses": LLM, "embeddings": EMBEDDING}  # by the last part of the path
_DEPLOYMENTS = "/deployments/"  # Azure names the model in the path

# Fields that change nothing about the answer, so two calls that differ only here ask the same:
#   user, safety_identifier, metadata, store         whose call it is and how the provider files it
#   stream, stream_options                           how the answer is delivered (see `delivery`)
#   prompt_cache_key, ..._retention, service_tier    where it is computed
HYGIENE_FIELDS = frozenset(
    {
        "user",
        "safety_identifier",
        "metadata",
        "store",
        "stream",
        "stream_options",
        "prompt_cache_key",
        "prompt_cache_retention",
        "service_tier",
    }
)


class OpenAI:
    """OpenAI's dialect."""

    name = "openai"
    price_provider = "openai"
    key_headers = frozenset({b"openai-beta"})
    credential_headers = frozenset({b"authorization", b"api-key", b"openai-organization", b"openai-project"})
    text_fields = frozenset({"messages", "input", "prompt", "instructions"})

    def kind_of(self, path: str) -> str | None:
        """LLM, EMBEDDING, or None for other paths; any prefix (`/v1`, `/openai/deployments/x`) will do."""
        return _KINDS.get(path.rpartition("/")[2])

    def model_of(self, path: str, call: Mapping[str, Any]) -> str | None:
        """The body's model, else Azure's deployment."""
        model = call.get("model")
        if isinstance(model, str):
            return model
        return path.partition(_DEPLOYMENTS)[2].partition("/")[0] or None

    def is_stream(self, path: str, call: Mapping[str, Any]) -> bool:
        """Whether `stream` is true."""
        return call.get("stream") is True

    def delivery(self, path: str, call: Mapping[str, Any]) -> bytes:
        """Plain, or streamed with these options: usage in the stream is asked for there."""
        if call.get("stream") is not True:
            return b"plain"
        options = call.get("stream_options")
        return b"stream" + encode_sorted(options) if options else b"stream"

    def is_stateful(self, call: Mapping[str, Any]) -> bool:
        """Whether it names a conversation, or runs in the background."""
        return bool(call.get("conversation") or call.get("background"))  # of the Responses API

    def canonical(self, call: dict[str, Any]) -> bytes:
        """The call in one spelling: sorted fields, no white space, hygiene fields left out."""
        return encode_sorted({name: call[name] for name in call if name not in HYGIENE_FIELDS})

    def describe(self, kind: str, path: str, call: dict[str, Any], canon: bytes) -> CallInfo:
        """What a decoded call of this kind asks; `canon` is its `canonical` form."""
        model = self.model_of(path, call)
        return describe_turns(
            kind,
            turns_of(kind, call),
            model=model,
            stream=call.get("stream") is True,
            stateful=self.is_stateful(call),
            tools=call.get("tools"),
            canon=canon if "model" in call or model is None else model.encode() + canon,
        )

    def read_reply(self, body: bytes, *, text: bool = True) -> ReplyInfo:
        """What a plain answer of status 200 says; without `text`, its text only where usage is missing."""
        try:
            reply = _decode_reply(body)
        except DECODING:
            return ReplyInfo()
        usage = _usage_of(reply.usage) if reply.usage is not None else None
        finish, refused = _ending(reply)
        model = reply.model
        return ReplyInfo(
            usage=usage,
            text="".join(_texts(reply)) if text or usage is None else "",
            complete=_is_whole(reply, finish),
            refused=refused,
            truncated=finish in _LENGTH,
            finish=finish,
            model=model if isinstance(model, str) else None,
            error=_error_type(reply.error) if reply.error else None,
        )

    def stream_reader(self) -> "StreamReader":
        """A reader for one streamed answer."""
        return StreamReader()

    def error_body(
        self, status: int, message: str, code: str | None = None, *, retry_after_s: float | None = None
    ) -> bytes:
        """An error as OpenAI words it; how long to wait is told in headers only."""
        return error_body(status, message, code=code)

    def with_model(self, target: str, body: bytes, model: str) -> tuple[str, bytes]:
        """The call with another model in its body. An Azure deployment stays the one in the path."""
        return target, replace_field(body, "model", model)


OPENAI = OpenAI()


def error_body(status: int, message: str, type: str | None = None, code: str | None = None) -> bytes:  # noqa: A002
    """An error as OpenAI words it; the type follows from the status when not given."""
    default = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    return msgspec.json.encode({"error": {"message": message, "type": type or default, "param": None, "code": code}})


# --- what a call says -----------------------------------------------------------------------------------------------


def turns_of(kind: str, call: dict[str, Any]) -> list[Turn]:
    """(role, text) of everything the model is to read."""
    turns: list[Turn] = []
    if "messages" not in call:
        if isinstance(call.get("instructions"), str):
            turns.append(("system", call["instructions"]))
        for field in ("prompt", "input"):
            value = call.get(field)
            for item in value if isinstance(value, list) else (value,):
                if isinstance(item, str):
                    turns.append(("user", item))
                elif isinstance(item, dict) and kind == LLM:
                    turns.append((_role(item), _said(item)))
    for message in dicts(call.get("messages")):
        content = message.get("content")
        text = content if isinstance(content, str) and "tool_calls" not in message else _said(message)
        turns.append((_role(message), text))
    return turns


def _role(message: dict[str, Any]) -> str:
    role = message.get("role")
    return role if isinstance(role, str) else _ITEM_ROLES.get(str(message.get("type")), "user")


_ITEM_ROLES = {"function_call": "assistant", "function_call_output": "tool", "reasoning": "assistant"}


def _said(message: dict[str, Any]) -> str:
    content = message.get("content")
    parts = [content] if isinstance(content, str) else [_part(part) for part in dicts(content)]
    parts += [_part(call.get("function")) for call in dicts(message.get("tool_calls"))]
    parts.append(_part(message))
    return "\n".join(part for part in parts if part)


def _part(part: object) -> str:
    """Text of a content part, a function call or its output."""
    if not isinstance(part, dict):
        return ""
    return next((part[name] for name in ("text", "arguments", "output") if isinstance(part.get(name), str)), "")


# --- what an answer says: only the fields that matter are decoded, of any type where nothing hangs on it -------------

_LENGTH = frozenset({"length", "max_output_tokens"})
_FILTERED = frozenset({"content_filter"})


class _Said(msgspec.Struct, gc=False):
    """A content part, or a function call."""

    type: Any = None
    text: Any = None
    arguments: Any = None


class _ToolCall(msgspec.Struct, gc=False):
    function: _Said | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | list[_Said] | None = None
    refusal: Any = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message | None = None
    delta: _Message | None = None
    text: Any = None
    finish_reason: Any = None


class _Item(msgspec.Struct, gc=False):
    """One item of a response's output."""

    type: Any = None
    content: str | list[_Said] | None = None
    arguments: Any = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: Any = None
    cache_write_tokens: Any = None
    reasoning_tokens: Any = None
    audio_tokens: Any = None


_NO_DETAILS = _Details()


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    input_tokens: Any = None
    output_tokens: Any = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: Any = None


class _Reply(msgspec.Struct, gc=False):
    """A plain answer, a chunk of a chat, or a response within an event."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    model: Any = None
    error: Any = None
    status: Any = None
    output: list[_Item] | None = None
    data: msgspec.Raw = NOTHING  # embeddings
    incomplete_details: _Incomplete | None = None


class _Event(_Reply, gc=False):
    """One event of a stream, of chat completions or of the Responses API."""

    type: Any = None
    delta: Any = None
    code: Any = None
    response: _Reply | None = None


_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_event = msgspec.json.Decoder(_Event).decode


def _usage_of(raw: _Usage) -> Usage | None:
    read = raw.prompt_tokens if raw.prompt_tokens is not None else raw.input_tokens
    written = raw.completion_tokens if raw.completion_tokens is not None else raw.output_tokens
    if not isinstance(read, int) or not (written is None or isinstance(written, int)):
        return None
    given = raw.prompt_tokens_details or raw.input_tokens_details or _NO_DETAILS
    made = raw.completion_tokens_details or raw.output_tokens_details or _NO_DETAILS
    if given is made:  # no details of either
        return Usage(input_tokens=read, output_tokens=written or 0)
    return Usage(
        input_tokens=read,
        output_tokens=written or 0,  # embeddings write nothing
        cached_tokens=count(given.cached_tokens),
        cache_write_tokens=count(given.cache_write_tokens),
        reasoning_tokens=count(made.reasoning_tokens),
        input_audio_tokens=count(given.audio_tokens),
        output_audio_tokens=count(made.audio_tokens),
    )


def _texts(reply: _Reply) -> Iterator[str]:
    """Texts in choices (messages, deltas, completions) or in the output of the Responses API."""
    for choice in reply.choices or ():
        message = choice.message or choice.delta
        if message is not None:
            yield _message_text(message)
        elif isinstance(choice.text, str):
            yield choice.text
    for item in reply.output or ():
        if isinstance(item.arguments, str):
            yield item.arguments
        elif item.type != "reasoning":
            yield _content_text(item.content)


def _message_text(message: _Message) -> str:
    if message.tool_calls is None:
        return _content_text(message.content)
    calls = [call.function.arguments for call in message.tool_calls if call.function is not None]
    return "\n".join(part for part in (_content_text(message.content), *calls) if part and isinstance(part, str))


def _content_text(content: str | list[_Said] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content if isinstance(part.text, str))


def _ending(reply: _Reply) -> tuple[str | None, bool]:
    """Why an answer, or a chunk, ended (None: it did not say), and whether that was a refusal."""
    finish, refused = None, False
    for choice in reply.choices or ():
        message = choice.message or choice.delta
        reason = choice.finish_reason
        finish = reason if isinstance(reason, str) and reason else finish
        refused |= finish in _FILTERED or (message is not None and bool(message.refusal))
    if reply.status is not None:
        why = word(reply.incomplete_details.reason) if reply.incomplete_details is not None else None
        finish = why or word(reply.status)
        refused = why in _FILTERED or any(
            part.type == "refusal"
            for item in reply.output or ()
            if isinstance(item.content, list)
            for part in item.content
        )
    return finish, refused


def _is_whole(reply: _Reply, finish: str | None) -> bool:
    if reply.error:
        return False
    if reply.status is None:
        return reply.choices is not None or reply.data is not NOTHING
    return reply.output is not None and (reply.status == "completed" or finish in _LENGTH | _FILTERED)


def _error_type(error: object) -> str | None:
    if not error:
        return None
    kind = error.get("type") or error.get("code") if isinstance(error, dict) else None
    return kind if isinstance(kind, str) else "error"


class StreamReader(EventReader):
    """Reads a streamed answer of chat completions, completions or the Responses API."""

    LENGTH = _LENGTH

    def take(self, event: bytes) -> None:
        """Read one event."""
        if event == b"[DONE]":
            self.ended = True
        else:
            self._take(_decode_event(event))

    def _take(self, event: _Event) -> None:
        if event.error:
            self.error = _error_type(event.error)
        elif event.choices is not None:
            self._take_chunk(event)
        elif event.type is not None:
            self._take_typed(event)
        if event.usage is not None:
            self.usage = _usage_of(event.usage) or self.usage

    def _take_chunk(self, chunk: _Event) -> None:
        if self.model is None:
            self.model = word(chunk.model)
        for choice in chunk.choices or ():
            message = choice.delta or choice.message
            if message is None:  # a legacy completion
                self.texts.append(word(choice.text) or "")
            else:
                self.texts.append(_message_text(message))
                if message.refusal:
                    self.refused = True
            if choice.finish_reason is not None:
                self.finish = word(choice.finish_reason)
                self.refused |= self.finish in _FILTERED

    def _take_typed(self, event: _Event) -> None:
        """An event of the Responses API."""
        kind = word(event.type)
        if kind in _TEXT_EVENTS:
            self.texts.append(word(event.delta) or "")
        elif kind == "error":
            self.error = word(event.code) or "error"
        elif kind in _FINAL_EVENTS and event.response is not None:
            response = event.response
            self.model = word(response.model)
            self.finish, refused = _ending(response)
            self.refused |= refused
            self.usage = (_usage_of(response.usage) if response.usage is not None else None) or self.usage
            whole = kind == "response.completed" or self.finish in _LENGTH | _FILTERED
            self.ended = whole
            if not whole:
                self.error = _error_type(response.error) or "incomplete"


_TEXT_EVENTS = frozenset(
    {
        "response.output_text.delta",
        "response.function_call_arguments.delta",
        "response.custom_tool_call_input.delta",
        "response.refusal.delta",
    }
)
_FINAL_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed"})
