"""Chat completions, and the completions that were before them."""

from typing import Any

import msgspec

from paceline.testing.dialects.house import event
from paceline.testing.exchange import (
    ANY,
    AUTO,
    LENGTH,
    NONE,
    THOUGHT,
    TOOL,
    TOOL_USE,
    ApiError,
    Block,
    Completion,
    ModelCall,
    Tool,
    prompt_tokens,
    texts_in,
)
from paceline.wire.call import LLM, dicts
from paceline.wire.http import HttpRequest
from paceline.wire.openai import turns_of

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_FINISH = {LENGTH: "length", TOOL_USE: "tool_calls"}
_EFFORTS = {"low": 64, "medium": 256, "high": 1024, "xhigh": 2048}  # tokens of thought; others: none


class ChatForm:
    """`/v1/chat/completions`."""

    def read(self, request: HttpRequest, call: dict[str, Any]) -> ModelCall:
        """Check and take a chat completion apart."""
        _check_messages(call.get("messages"))
        check_options(call)
        turns = list(turns_of(LLM, call))
        form = call.get("response_format")
        form = form if isinstance(form, dict) else {}
        json_object = form.get("type") == "json_object"
        if json_object and not any("json" in text.casefold() for _, text in turns):
            what = "'messages' must contain the word 'json' in some form, to use 'response_format' of type"
            raise ApiError(400, f"{what} 'json_object'.", param="messages")
        wrapper = form.get("json_schema")
        schema = wrapper.get("schema") if form.get("type") == "json_schema" and isinstance(wrapper, dict) else None
        tools = [
            tool_of(tool["function"]) for tool in dicts(call.get("tools")) if isinstance(tool.get("function"), dict)
        ]
        return ModelCall(
            turns=turns,
            input_tokens=prompt_tokens(turns, call.get("tools")),
            max_tokens=max_tokens(call, "max_completion_tokens", "max_tokens"),
            stop=texts_in(call.get("stop")),
            stream=call.get("stream") is True,
            include_usage=_wants_usage(call),
            json_object=json_object,
            schema=schema if isinstance(schema, dict) else None,
            tools=tools,
            tool_choice=tool_choice(call.get("tool_choice"), tools),
            thought_tokens=effort_tokens(call.get("reasoning_effort")),
        )

    def body(self, done: Completion) -> bytes:
        """The plain answer."""
        message: dict[str, Any] = {"role": "assistant", "content": done.text or None, "refusal": None}
        if done.calls:
            message["tool_calls"] = [_call(done, i, call, call.text) for i, call in enumerate(done.calls)]
        else:
            message |= {"content": done.text, "annotations": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISH.get(done.finish, "stop")}
        return msgspec.json.encode({**_head(done, "chat.completion"), "choices": [choice], "usage": _usage(done)})

    def encoder(self, request: HttpRequest, done: Completion) -> "ChatEncoder":
        """The streamed answer."""
        return ChatEncoder(done)


CHAT = ChatForm()


class ChatEncoder:
    """Chunks of a chat. Only a piece's text is encoded anew."""

    content_type = b"text/event-stream; charset=utf-8"

    def __init__(self, done: Completion) -> None:
        self._done = done
        self._head = _head(done, "chat.completion.chunk")
        self._before, self._after = self._chunk({"content": ""}, None).split(b'{"content":""}')
        self._tools = [i for i, block in enumerate(done.blocks) if block.kind == TOOL]  # blocks, in order
        self._begun = -1

    def first(self) -> bytes:
        """The role, which comes with the first token."""
        return self._chunk({"role": "assistant", "content": None if self._done.calls else "", "refusal": None}, None)

    def piece(self, block: int, text: str) -> bytes:
        """Some text, or arguments of a call."""
        part = self._done.blocks[block]
        if not part.shown or part.kind == THOUGHT:
            return b""
        if part.kind != TOOL:
            return b'%b{"content":%b}%b' % (self._before, msgspec.json.encode(text), self._after)
        index = self._tools.index(block)
        begin = b""
        if index != self._begun:
            self._begun = index
            begin = self._chunk({"tool_calls": [{"index": index, **_call(self._done, index, part, "")}]}, None)
        return begin + self._chunk({"tool_calls": [{"index": index, "function": {"arguments": text}}]}, None)

    def last(self) -> bytes:
        """Why it ended, usage where asked for, and the end."""
        parts = [self._chunk({}, _FINISH.get(self._done.finish, "stop"))]
        if self._done.call.include_usage:
            parts.append(event({**self._head, "choices": [], "usage": _usage(self._done)}))
        return b"".join([*parts, b"data: [DONE]\n\n"])

    def _chunk(self, delta: dict[str, Any], finish: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self._head, "choices": [choice]} | ({"usage": None} if self._done.call.include_usage else {}))


class CompletionForm:
    """`/v1/completions`."""

    def read(self, request: HttpRequest, call: dict[str, Any]) -> ModelCall:
        """Check and take a completion apart: one prompt."""
        check_options(call)
        turns = list(turns_of(LLM, call))
        if len(turns) != 1:
            raise ApiError(400, "the simulated provider completes one prompt: a text, or a list of one", param="prompt")
        return ModelCall(
            turns=turns,
            input_tokens=prompt_tokens(turns),
            max_tokens=max_tokens(call, "max_tokens") or 16,  # as the API does
            stop=texts_in(call.get("stop")),
            stream=call.get("stream") is True,
            include_usage=_wants_usage(call),
        )

    def body(self, done: Completion) -> bytes:
        """The plain answer."""
        choice = _completion_choice(done.text, _FINISH.get(done.finish, "stop"))
        return msgspec.json.encode({**_completion_head(done), "choices": [choice], "usage": _usage(done)})

    def encoder(self, request: HttpRequest, done: Completion) -> "CompletionEncoder":
        """The streamed answer."""
        return CompletionEncoder(done)


COMPLETION = CompletionForm()


class CompletionEncoder:
    """Chunks of a completion."""

    content_type = ChatEncoder.content_type

    def __init__(self, done: Completion) -> None:
        self._done = done
        self._head = _completion_head(done)

    def first(self) -> bytes:
        """Nothing."""
        return b""

    def piece(self, block: int, text: str) -> bytes:
        """Some text."""
        return event({**self._head, "choices": [_completion_choice(text, None)]})

    def last(self) -> bytes:
        """Why it ended, usage where asked for, and the end."""
        parts = [event({**self._head, "choices": [_completion_choice("", _FINISH.get(self._done.finish, "stop"))]})]
        if self._done.call.include_usage:
            parts.append(event({**self._head, "choices": [], "usage": _usage(self._done)}))
        return b"".join([*parts, b"data: [DONE]\n\n"])


def _completion_choice(text: str, finish: str | None) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}


def _completion_head(done: Completion) -> dict[str, Any]:
    return {"id": f"cmpl-{done.serial:024x}", "object": "text_completion", "created": done.created, "model": done.model}


def _head(done: Completion, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{done.serial:024x}",
        "object": kind,
        "created": done.created,
        "model": done.model,
        "service_tier": "default",
        "system_fingerprint": "fp_paceline",
    }


def _usage(done: Completion) -> dict[str, Any]:
    return {
        "prompt_tokens": done.input_tokens,
        "completion_tokens": done.output_tokens,
        "total_tokens": done.input_tokens + done.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": done.thought_tokens},
    }


def _call(done: Completion, index: int, call: Block, arguments: str) -> dict[str, Any]:
    function = {"name": call.name, "arguments": arguments}
    return {"id": f"call_{done.serial:020x}{index:04x}", "type": "function", "function": function}


# --- checks that the Responses API has in common --------------------------------------------------------------------


def check_options(call: dict[str, Any]) -> None:
    """Raises ApiError 400."""
    if call.get("n", 1) not in (1, None):
        raise ApiError(400, "the simulated provider writes one choice; leave n out or set it to 1", param="n")
    if call.get("stream_options") is not None and call.get("stream") is not True:
        what = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise ApiError(400, what, param="stream_options")


def max_tokens(call: dict[str, Any], *names: str) -> int | None:
    """The limit of the answer's length under one of these names. Raises ApiError 400."""
    given = [name for name in names if call.get(name) is not None]
    if len(given) > 1:
        what = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        raise ApiError(400, what, param="max_tokens")
    if not given:
        return None
    limit = call[given[0]]
    if not isinstance(limit, int) or isinstance(limit, bool):
        what = f"Invalid type for '{given[0]}': expected an integer, but got {limit!r} instead."
        raise ApiError(400, what, code="invalid_type", param=given[0])
    if limit < 1:
        what = f"Invalid '{given[0]}': integer below minimum value. Expected a value >= 1, but got {limit} instead."
        raise ApiError(400, what, code="integer_below_min_value", param=given[0])
    return limit


def tool_choice(given: object, tools: list[Tool]) -> str:
    """Which tool is to be called. Raises ApiError 400 for one that is not there."""
    if not isinstance(given, dict):
        return {"required": ANY, "none": NONE}.get(str(given), AUTO)
    named = given.get("function")
    name = named.get("name") if isinstance(named, dict) else given.get("name")
    if not any(tool.name == name for tool in tools):
        raise ApiError(400, f"Tool choice '{name}' not found in 'tools' parameter.", param="tool_choice")
    return str(name)


def effort_tokens(effort: object) -> int:
    """How many tokens an effort is worth."""
    return _EFFORTS.get(str(effort), 0)


def tool_of(function: dict[str, Any]) -> Tool:
    """A function as OpenAI describes it."""
    parameters = function.get("parameters")
    return Tool(
        name=str(function.get("name", "")),
        description=str(function.get("description") or ""),
        parameters=parameters if isinstance(parameters, dict) else {},
    )


def _wants_usage(call: dict[str, Any]) -> bool:
    options = call.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _check_messages(messages: object) -> None:
    if messages is None:
        raise ApiError(
            400, "Missing required parameter: 'messages'.", code="missing_required_parameter", param="messages"
        )
    if not isinstance(messages, list):
        raise ApiError(400, "Invalid type for 'messages': expected an array.", code="invalid_type", param="messages")
    if not messages:
        what = "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty one instead."
        raise ApiError(400, what, code="empty_array", param="messages")
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        if not isinstance(message, dict):
            raise ApiError(400, f"Invalid type for '{place}': expected an object.", code="invalid_type", param=place)
        role = message.get("role")
        if role not in _ROLES:
            what = f"Invalid value: {role!r}. Supported values are: {', '.join(map(repr, _ROLES))}."
            raise ApiError(400, what, code="invalid_value", param=f"{place}.role")
