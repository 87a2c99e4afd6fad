"""Anthropic's house: messages and their events, count_tokens, models, limits and errors in its own form."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from paceline.testing.buckets import Limit
from paceline.testing.config import Model
from paceline.testing.dialects.house import Excess, Form, House, event
from paceline.testing.exchange import (
    ANY,
    AUTO,
    LENGTH,
    NONE,
    STOP_SEQUENCE,
    TEXT,
    THOUGHT,
    TOOL,
    TOOL_USE,
    ApiError,
    Block,
    Completion,
    Headers,
    ModelCall,
    Tool,
    prompt_tokens,
    texts_in,
)
from paceline.wire.anthropic import error_type, turns_of
from paceline.wire.call import dicts
from paceline.wire.http import HttpRequest

_MODELS = "/models"
_FINISH = {LENGTH: "max_tokens", TOOL_USE: "tool_use", STOP_SEQUENCE: "stop_sequence"}
_CAUSES = {"requests": "requests per minute", "tokens": "tokens per minute"}
_MIN_BUDGET, _ADAPTIVE = 1024, 2048  # tokens of thought: the least that may be given, what a model gives itself


class MessagesForm:
    """`/v1/messages`."""

    def read(self, request: HttpRequest, call: dict[str, Any]) -> ModelCall:
        """Check and take a call apart."""
        check_messages(call)
        limit = call.get("max_tokens")
        if not isinstance(limit, int) or isinstance(limit, bool):
            raise ApiError(
                400, "max_tokens: Field required" if limit is None else "max_tokens: Input should be a number"
            )
        if limit < 1:
            raise ApiError(400, "max_tokens: Input should be greater than or equal to 1")
        turns = turns_of(call)
        tools = [_tool(tool) for tool in dicts(call.get("tools")) if "input_schema" in tool]
        thinking = call.get("thinking")
        thinking = thinking if isinstance(thinking, dict) else {}
        return ModelCall(
            turns=turns,
            input_tokens=prompt_tokens(turns, call.get("tools")),
            max_tokens=limit,
            stop=texts_in(call.get("stop_sequences")),
            stream=call.get("stream") is True,
            schema=_schema(call),
            tools=tools,
            tool_choice=_tool_choice(call.get("tool_choice"), tools),
            thought_tokens=_budget(thinking, limit),
            show_thoughts=thinking.get("display") != "omitted",
        )

    def body(self, done: Completion) -> bytes:
        """The plain answer."""
        content = [_content(done, i, block.text) for i, block in enumerate(done.blocks)]
        return msgspec.json.encode(_message(done, content, ended=True))

    def encoder(self, request: HttpRequest, done: Completion) -> "MessageEncoder":
        """The streamed answer."""
        return MessageEncoder(done)


MESSAGES = MessagesForm()


class MessageEncoder:
    """Events of a message: it begins, each block begins, grows and stops, why it ended, the end."""

    content_type = b"text/event-stream; charset=utf-8"

    def __init__(self, done: Completion) -> None:
        self._done = done
        self._open: int | None = None

    def first(self) -> bytes:
        """The message begins."""
        return _event("message_start", message=_message(self._done, [], ended=False)) + _event("ping")

    def piece(self, block: int, text: str) -> bytes:
        """Some text of a block."""
        turn = b""
        if block != self._open:
            turn = self._close() + _event(
                "content_block_start", index=block, content_block=_content(self._done, block, "", begun=True)
            )
            self._open = block
        part = self._done.blocks[block]
        if not part.shown:
            return turn
        kind, field = _DELTAS[part.kind]
        return turn + _event("content_block_delta", index=block, delta={"type": kind, field: text})

    def last(self) -> bytes:
        """Why it ended, and the end."""
        delta = {"stop_reason": _FINISH.get(self._done.finish, "end_turn"), "stop_sequence": self._done.stop}
        usage = {"output_tokens": self._done.output_tokens, **_details(self._done)}
        return self._close() + _event("message_delta", delta=delta, usage=usage) + _event("message_stop")

    def _close(self) -> bytes:
        block, self._open = self._open, None
        if block is None:
            return b""
        signed = b""
        if self._done.blocks[block].kind == THOUGHT:
            delta = {"type": "signature_delta", "signature": _SIGNATURE}
            signed = _event("content_block_delta", index=block, delta=delta)
        return signed + _event("content_block_stop", index=block)


_DELTAS = {
    TEXT: ("text_delta", "text"),
    TOOL: ("input_json_delta", "partial_json"),
    THOUGHT: ("thinking_delta", "thinking"),
}
_SIGNATURE = "c2ltdWxhdGVk"


class AnthropicHouse(House):
    """Anthropic."""

    name = "anthropic"

    def key_of(self, request: HttpRequest) -> str:
        """`x-api-key`, or a bearer token."""
        return request.header("x-api-key") or super().key_of(request)

    def headers(self, serial: int, took_ms: int) -> Headers:
        """The request's id."""
        return [(b"request-id", b"req_%032x" % serial)]

    def limit_headers(self, limits: list[Limit]) -> Headers:
        """`anthropic-ratelimit-*`; resets are times of day (RFC 3339)."""
        found: Headers = []
        for limit in limits:
            reset_at = datetime.now(UTC) + timedelta(seconds=math.ceil(limit.reset_s))
            for name, value in (
                ("limit", f"{limit.per_min:.0f}"),
                ("remaining", str(limit.remaining)),
                ("reset", reset_at.strftime("%Y-%m-%dT%H:%M:%SZ")),
            ):
                found.append((f"anthropic-ratelimit-{limit.what}-{name}".encode(), value.encode()))
        return found

    def error(self, error: ApiError, serial: int) -> tuple[Headers, bytes]:
        """A refusal; how long to wait in whole seconds, as the provider sends them."""
        headers: Headers = []
        if error.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % math.ceil(error.retry_after_s)))
        said = {"type": error.type or error_type(error.status), "message": error.message}
        return headers, msgspec.json.encode({"type": "error", "error": said, "request_id": f"req_{serial:032x}"})

    def form(self, path: str) -> Form:
        """Messages."""
        return MESSAGES

    def prompt_of(self, call: dict[str, Any]) -> object:
        """System prompt and messages."""
        return [call.get("system"), call.get("messages")]

    def models(self, path: str, models: dict[str, Model]) -> bytes:
        """The list, or one."""
        made = {
            name: {"type": "model", "id": name, "display_name": name, "created_at": "2025-01-01T00:00:00Z"}
            for name in models
        }
        wanted = path.rpartition(_MODELS)[2].strip("/")
        if wanted:
            if wanted not in made:
                raise self.unknown_model(wanted)
            return msgspec.json.encode(made[wanted])
        names = list(made)
        ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
        return msgspec.json.encode({"data": list(made.values()), "has_more": False, **ends})

    def read_embeddings(self, call: dict[str, Any], default_dimensions: int) -> tuple[list[str], int]:
        """There are none."""
        raise ApiError(404, "Not found")

    def embeddings(self, path: str, call: dict[str, Any], vectors: Iterator[list[float]], tokens: int) -> bytes:
        """There are none."""
        raise ApiError(404, "Not found")

    def read_counted(self, call: dict[str, Any]) -> list[tuple[str, str]]:
        """The turns of a call that only counts."""
        check_messages(call)
        return turns_of(call)

    def counted(self, tokens: int) -> bytes:
        """The answer to count_tokens."""
        return msgspec.json.encode({"input_tokens": tokens})

    def wrong_key(self, key: str) -> ApiError:
        """401."""
        return ApiError(401, "invalid x-api-key" if key else "x-api-key header is required")

    def unknown_path(self, method: str, path: str) -> ApiError:
        """404."""
        return ApiError(404, "Not found")

    def over_limit(self, excess: Excess, headers: Headers) -> ApiError:
        """429."""
        where = f"rate limit of {excess.per_min:,.0f} {_CAUSES[excess.what]} (model: {excess.model})"
        if excess.never_fits:
            what = f"This request of {excess.asked:,} tokens would exceed your organization's {where} on its own."
            return ApiError(429, what, headers=headers)
        what = f"This request would exceed your organization's {where}. Please try again later."
        return ApiError(429, what, headers=headers, retry_after_s=excess.wait_s)

    def overloaded(self) -> ApiError:
        """529."""
        return ApiError(529, "Overloaded")


# --- calls ----------------------------------------------------------------------------------------------------------


def check_messages(call: dict[str, Any]) -> None:
    """Raises ApiError 400."""
    messages = call.get("messages")
    if not isinstance(messages, list):
        raise ApiError(
            400, "messages: Field required" if messages is None else "messages: Input should be a valid list"
        )
    if not messages:
        raise ApiError(400, "messages: at least one message is required")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            role = message.get("role") if isinstance(message, dict) else message
            what = f'messages.{index}: Input should be an object whose role is "user" or "assistant"; got {role!r}'
            raise ApiError(400, what)
        if not message.get("content"):
            raise ApiError(400, f"messages.{index}: all messages must have non-empty content")


def _tool(tool: dict[str, Any]) -> Tool:
    schema = tool.get("input_schema")
    return Tool(
        name=str(tool.get("name", "")),
        description=str(tool.get("description") or ""),
        parameters=schema if isinstance(schema, dict) else {},
    )


def _tool_choice(given: object, tools: list[Tool]) -> str:
    if not isinstance(given, dict):
        return AUTO
    if given.get("type") != "tool":
        return {"any": ANY, "none": NONE}.get(str(given.get("type")), AUTO)
    name = given.get("name")
    if not any(tool.name == name for tool in tools):
        raise ApiError(400, f"tool_choice: Tool '{name}' not found in provided tools")
    return str(name)


def _schema(call: dict[str, Any]) -> dict[str, Any] | None:
    """Of the JSON wanted: `output_config.format`, or `output_format` as the first versions called it."""
    config = call.get("output_config")
    form = config.get("format") if isinstance(config, dict) else None
    form = form or call.get("output_format")
    schema = form.get("schema") if isinstance(form, dict) else None
    return schema if isinstance(schema, dict) else None


def _budget(thinking: dict[str, Any], limit: int) -> int:
    """Tokens that may be thought. Raises ApiError 400."""
    if thinking.get("type") == "adaptive":
        return min(_ADAPTIVE, limit)
    if thinking.get("type") != "enabled":
        return 0
    budget = thinking.get("budget_tokens")
    if not isinstance(budget, int) or budget < _MIN_BUDGET:
        what = f"thinking.enabled.budget_tokens: Input should be greater than or equal to {_MIN_BUDGET}"
        raise ApiError(400, what)
    if budget >= limit:
        raise ApiError(400, "`max_tokens` must be greater than `thinking.budget_tokens`")
    return budget


# --- answers --------------------------------------------------------------------------------------------------------


def _content(done: Completion, index: int, text: str, *, begun: bool = False) -> dict[str, Any]:
    """A content block; `begun`: as it is when its event announces it."""
    block: Block = done.blocks[index]
    if block.kind == TOOL:
        arguments = msgspec.json.decode(text) if text else {}
        return {
            "type": "tool_use",
            "id": f"toolu_{done.serial:020x}{index:04x}",
            "name": block.name,
            "input": arguments,
        }
    if block.kind == THOUGHT:
        return {"type": "thinking", "thinking": text if block.shown else "", "signature": "" if begun else _SIGNATURE}
    return {"type": "text", "text": text}


def _message(done: Completion, content: list[dict[str, Any]], *, ended: bool) -> dict[str, Any]:
    usage = {
        "input_tokens": done.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": done.output_tokens if ended else 1,
        "service_tier": "standard",
        **(_details(done) if ended else {}),
    }
    return {
        "id": f"msg_{done.serial:024x}",
        "type": "message",
        "role": "assistant",
        "model": done.model,
        "content": content,
        "stop_reason": _FINISH.get(done.finish, "end_turn") if ended else None,
        "stop_sequence": done.stop if ended else None,
        "usage": usage,
    }


def _details(done: Completion) -> dict[str, Any]:
    return {"output_tokens_details": {"thinking_tokens": done.thought_tokens}} if done.thought_tokens else {}


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)
