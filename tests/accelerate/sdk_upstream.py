"""A small provider of all three dialects on a real socket: the same question is always answered with the same bytes.

Event sequences and error bodies are those of the providers' documentation. The model's name says what goes wrong:
"unauthorized", "busy", "broken", "overloaded", "cut". Who asks is in every answer, so that none can pass for another's.
"""

import asyncio
import base64
import hashlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import msgspec

from paceline.wire.http import HttpRequest, Reply

JSON = (b"content-type", b"application/json")
EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
ARGUMENTS = {"city": "Paris"}
STRUCTURED = {"name": "Ada", "age": 36}
_STATUS = {"unauthorized": 401, "busy": 429, "broken": 500}


class SdkUpstream:
    """Answers what the SDKs send. `calls` are the paths asked for; `gate`, while closed, holds every answer back."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.bodies: list[bytes] = []
        self.gate: asyncio.Event | None = None

    def handle(self, request: HttpRequest) -> Reply | Awaitable[Reply]:
        """Answer one request."""
        self.calls.append(request.path)
        self.bodies.append(request.body)
        reply = self._reply(request)
        return reply if self.gate is None else self._held(self.gate, reply)

    async def _held(self, gate: asyncio.Event, reply: Reply) -> Reply:
        await gate.wait()
        return reply

    def _reply(self, request: HttpRequest) -> Reply:
        path = request.path
        if path.endswith("/files"):
            body = {
                "id": "file-1",
                "object": "file",
                "bytes": len(request.body),
                "created_at": 1,
                "filename": "a.jsonl",
            }
            return _json({**body, "purpose": "batch", "status": "processed"})
        if request.method == "GET":
            return _json({"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "o"}]})
        call = msgspec.json.decode(request.body)
        for end, answer in _PATHS.items():
            if path.endswith(end):
                return answer(request, call)
        return _gemini(request, call)


def _json(value: Any, status: int = 200, *headers: tuple[bytes, bytes]) -> Reply:
    return Reply(status, [JSON, (b"x-request-id", b"req_1"), (b"request-id", b"req_1"), *headers], _encode(value))


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _events(events: Iterator[bytes], *, cut: bool) -> Reply:
    async def body() -> AsyncIterator[bytes]:
        for number, event in enumerate(events):
            if cut and number == 3:
                raise ConnectionResetError("cut")
            yield event
            await asyncio.sleep(0)

    return Reply(200, [EVENT_STREAM, (b"x-request-id", b"req_1")], body())


def _who(request: HttpRequest) -> str:
    """The end of the key."""
    for name in ("authorization", "x-api-key", "x-goog-api-key"):
        if value := request.header(name):
            return value[-8:]
    return "nobody"


def _id(request: HttpRequest) -> str:
    """The same for calls that differ only in the order of their fields."""
    call = msgspec.json.encode(msgspec.json.decode(request.body), order="deterministic")
    return hashlib.sha256(call).hexdigest()[:16]


def _pieces(text: str) -> list[str]:
    return [text[i : i + 7] for i in range(0, len(text), 7)]


def _vector(text: str) -> list[float]:
    return [b / 256 for b in hashlib.sha256(text.encode()).digest()[:4]]


# --- OpenAI --------------------------------------------------------------------------------------------------------


def _openai_error(name: str) -> Reply | None:
    if name == "overloaded":
        error = {"message": "The server is overloaded", "type": "server_error", "param": None, "code": None}
        return _json({"error": error}, 503, (b"retry-after", b"1"))
    if name not in _STATUS:
        return None
    kinds = {"unauthorized": "invalid_request_error", "busy": "requests", "broken": "server_error"}
    codes = {"unauthorized": "invalid_api_key", "busy": "rate_limit_exceeded", "broken": None}
    error = {"message": f"{name}: no", "type": kinds[name], "param": None, "code": codes[name]}
    extra = [(b"retry-after", b"7"), (b"x-ratelimit-remaining-requests", b"0")] if name == "busy" else []
    return _json({"error": error}, _STATUS[name], *extra)


def _question(content: Any) -> str:
    """The text of a message's content; of an image, its size."""
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        image = part.get("image_url") or part.get("source") or part.get("inlineData") or part.get("inline_data")
        if image is not None:
            data = image if isinstance(image, str) else image.get("url") or image.get("data")
            parts.append(f"an image of {len(data)}")
        else:
            parts.append(part.get("text") or _encode(part).decode())
    return " ".join(parts)


def _chat(request: HttpRequest, call: dict[str, Any]) -> Reply:
    if error := _openai_error(call["model"]):
        return error
    last = call["messages"][-1]
    text = f"{_who(request)} asked {_question(last['content'])}"
    tool: dict[str, Any] | None = None
    wanted = call.get("response_format") or {}
    forced = call.get("tool_choice")
    if wanted.get("type") in ("json_schema", "json_object"):
        text = _encode(STRUCTURED).decode()
    elif call.get("tools") and last["role"] == "user":
        name = forced["function"]["name"] if isinstance(forced, dict) else call["tools"][0]["function"]["name"]
        arguments = ARGUMENTS if name == "weather" else STRUCTURED
        function = {"name": name, "arguments": _encode(arguments).decode()}
        tool = {"id": "call_1", "type": "function", "function": function}
    base = {"id": f"chatcmpl-{_id(request)}", "created": 1, "model": call["model"], "service_tier": "default"}
    details = {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}}
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, **details}
    finish = "tool_calls" if tool else "stop"
    if not call.get("stream"):
        content = {"content": None, "tool_calls": [tool]} if tool else {"content": text}
        message = {"role": "assistant", "refusal": None, **content}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return _json({**base, "object": "chat.completion", "choices": [choice], "usage": usage})
    with_usage = (call.get("stream_options") or {}).get("include_usage")

    def events() -> Iterator[bytes]:
        def event(delta: dict[str, Any] | None, end: str | None = None, **more: Any) -> bytes:
            choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}]
            unset = {"usage": None} if with_usage else {}
            chunk = {**base, "object": "chat.completion.chunk", "choices": choices, **unset, **more}
            return b"data: " + _encode(chunk) + b"\n\n"

        yield event({"role": "assistant", "content": None if tool else "", "refusal": None})
        if tool:
            function = tool["function"]
            yield event({"tool_calls": [{"index": 0, **tool, "function": {**function, "arguments": ""}}]})
            for piece in _pieces(function["arguments"]):
                yield event({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        else:
            for piece in _pieces(text):
                yield event({"content": piece})
        yield event({}, finish)
        if with_usage:
            yield event(None, usage=usage)
        yield b"data: [DONE]\n\n"

    return _events(events(), cut=call["model"] == "cut")


def _responses(request: HttpRequest, call: dict[str, Any]) -> Reply:
    if error := _openai_error(call["model"]):
        return error
    asked = call["input"] if isinstance(call["input"], str) else _question(call["input"][-1]["content"])
    text = f"{_who(request)} asked {asked}"
    usage = {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    response: dict[str, Any] = {
        "id": f"resp_{_id(request)}",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": call["model"],
        "output": [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {**usage, **details},
    }
    if not call.get("stream"):
        return _json(response)

    def events() -> Iterator[bytes]:
        number = 0

        def event(kind: str, **fields: Any) -> bytes:
            nonlocal number
            data = {"type": kind, "sequence_number": number, **fields}
            number += 1
            return b"event: " + kind.encode() + b"\ndata: " + _encode(data) + b"\n\n"

        begun = {**response, "status": "in_progress", "output": [], "usage": None}
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        yield event("response.created", response=begun)
        yield event("response.in_progress", response=begun)
        empty = {**item, "status": "in_progress", "content": []}
        yield event("response.output_item.added", output_index=0, item=empty)
        yield event("response.content_part.added", **place, part={**part, "text": ""})
        for piece in _pieces(text):
            yield event("response.output_text.delta", **place, delta=piece, logprobs=[])
        yield event("response.output_text.done", **place, text=text, logprobs=[])
        yield event("response.content_part.done", **place, part=part)
        yield event("response.output_item.done", output_index=0, item=item)
        yield event("response.completed", response=response)

    return _events(events(), cut=call["model"] == "cut")


def _embeddings(request: HttpRequest, call: dict[str, Any]) -> Reply:
    if error := _openai_error(call["model"]):
        return error
    asked = [call["input"]] if isinstance(call["input"], str) else call["input"]
    data = []
    for index, item in enumerate(asked):
        vector = _vector(item if isinstance(item, str) else _encode(item).decode())
        packed = base64.b64encode(struct.pack("<4f", *vector)).decode()
        embedding = packed if call.get("encoding_format") == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return _json({"object": "list", "data": data, "model": call["model"], "usage": usage})


# --- Anthropic -----------------------------------------------------------------------------------------------------


def _anthropic_error(name: str) -> Reply | None:
    kinds = {"unauthorized": "authentication_error", "busy": "rate_limit_error", "broken": "api_error"}
    status = {**_STATUS, "overloaded": 529}.get(name)
    if status is None:
        return None
    error = {"type": kinds.get(name, "overloaded_error"), "message": f"{name}: no"}
    extra = [(b"retry-after", b"7"), (b"anthropic-ratelimit-requests-remaining", b"0")] if name == "busy" else []
    return _json({"type": "error", "error": error, "request_id": "req_1"}, status, *extra)


def _messages(request: HttpRequest, call: dict[str, Any]) -> Reply:
    name = call["model"]
    if error := _anthropic_error(name):
        return error
    last = call["messages"][-1]
    blocks: list[dict[str, Any]] = []
    if call.get("thinking"):
        blocks.append({"type": "thinking", "thinking": "Let me think.", "signature": "c2lnbmVk"})
    answers_tool = isinstance(last["content"], list) and last["content"][0].get("type") == "tool_result"
    if call.get("tools") and not answers_tool:
        tool = (call.get("tool_choice") or {}).get("name") or call["tools"][0]["name"]
        arguments = ARGUMENTS if tool == "weather" else STRUCTURED
        blocks.append({"type": "tool_use", "id": "toolu_1", "name": tool, "input": arguments})
    elif call.get("output_config") or call.get("output_format"):
        blocks.append({"type": "text", "text": _encode(STRUCTURED).decode()})
    else:
        blocks.append({"type": "text", "text": f"{_who(request)} asked {_question(last['content'])}"})
    stop = "tool_use" if blocks[-1]["type"] == "tool_use" else "end_turn"
    cache = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 2}
    message = {
        "id": f"msg_{_id(request)}",
        "type": "message",
        "role": "assistant",
        "model": name,
        "content": blocks,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 4, **cache},
    }
    if not call.get("stream"):
        return _json(message)

    def event(kind: str, **fields: Any) -> bytes:
        return b"event: " + kind.encode() + b"\ndata: " + _encode({"type": kind, **fields}) + b"\n\n"

    def events() -> Iterator[bytes]:
        usage = {"input_tokens": 9, "output_tokens": 1, **cache}
        begun = {**message, "content": [], "stop_reason": None, "usage": usage}
        yield event("message_start", message=begun)
        for index, block in enumerate(blocks):
            for kind, fields in _block_events(block):
                yield event(kind, index=index, **fields)
            if not index:
                yield event("ping")
        yield event("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage={"output_tokens": 4})
        yield event("message_stop")

    return _events(events(), cut=name == "cut")


def _block_events(block: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A content block as the events that build it."""
    match block["type"]:
        case "tool_use":
            begun = {**block, "input": {}}
            pieces = ["", *_pieces(_encode(block["input"]).decode())]
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        case "thinking":
            begun = {"type": "thinking", "thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _pieces(block["thinking"])]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        case _:
            begun = {"type": "text", "text": ""}
            deltas = [{"type": "text_delta", "text": piece} for piece in _pieces(block["text"])]
    yield "content_block_start", {"content_block": begun}
    for delta in deltas:
        yield "content_block_delta", {"delta": delta}
    yield "content_block_stop", {}


def _count(request: HttpRequest, call: dict[str, Any]) -> Reply:
    return _json({"input_tokens": len(_question(call["messages"][-1]["content"]))})


# --- Gemini --------------------------------------------------------------------------------------------------------


def _gemini_error(name: str) -> Reply | None:
    said = {"unauthorized": "UNAUTHENTICATED", "busy": "RESOURCE_EXHAUSTED", "broken": "INTERNAL"}
    status = {**_STATUS, "overloaded": 503}.get(name)
    if status is None:
        return None
    error: dict[str, Any] = {"code": status, "message": f"{name}: no", "status": said.get(name, "UNAVAILABLE")}
    if name == "busy":
        error["details"] = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}]
    return _json({"error": error}, status)


def _gemini(request: HttpRequest, call: dict[str, Any]) -> Reply:
    name, _, method = request.path.rpartition("/")[2].partition(":")
    if error := _gemini_error(name):
        return error
    if method == "countTokens":
        return _json({"totalTokens": 5})
    if method in ("batchEmbedContents", "embedContent"):
        asked = call.get("requests") or [call]
        vectors = [{"values": _vector(_encode(one["content"]["parts"]).decode())} for one in asked]
        return _json({"embeddings": vectors} if "requests" in call else {"embedding": vectors[0]})
    parts = _gemini_parts(request, call)
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 4, "totalTokenCount": 13}
    base = {"usageMetadata": usage, "modelVersion": name, "responseId": _id(request)}

    def answer(parts: list[dict[str, Any]], finish: str | None) -> dict[str, Any]:
        end = {"finishReason": finish} if finish else {}
        return {"candidates": [{"content": {"parts": parts, "role": "model"}, **end, "index": 0}], **base}

    if method == "generateContent":
        return _json(answer(parts, "STOP"))

    def events() -> Iterator[bytes]:
        for part in parts:
            pieces = [{"text": piece} for piece in _pieces(part["text"])] if "text" in part else [part]
            for piece in pieces:
                yield b"data: " + _encode(answer([piece], None)) + b"\r\n\r\n"
        yield b"data: " + _encode(answer([{"text": ""}], "STOP")) + b"\r\n\r\n"

    return _events(events(), cut=name == "cut")


def _gemini_parts(request: HttpRequest, call: dict[str, Any]) -> list[dict[str, Any]]:
    last = call["contents"][-1]["parts"]
    answers_tool = "functionResponse" in last[0]
    config = call.get("generationConfig") or {}
    declared = [one for tool in call.get("tools") or [] for one in tool.get("functionDeclarations") or []]
    if declared and not answers_tool:
        allowed = ((call.get("toolConfig") or {}).get("functionCallingConfig") or {}).get("allowedFunctionNames")
        name = allowed[0] if allowed else declared[0]["name"]
        arguments = ARGUMENTS if name == "weather" else STRUCTURED
        return [{"functionCall": {"id": "call_1", "name": name, "args": arguments}, "thoughtSignature": "c2lnbmVk"}]
    if config.get("responseMimeType") == "application/json":
        return [{"text": _encode(STRUCTURED).decode()}]
    return [{"text": f"{_who(request)} asked {_question(last)}"}]


_PATHS: dict[str, Callable[[HttpRequest, dict[str, Any]], Reply]] = {
    "/chat/completions": _chat,
    "/responses": _responses,
    "/embeddings": _embeddings,
    "/messages": _messages,
    "/messages/count_tokens": _count,
}
