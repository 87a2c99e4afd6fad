"""Gemini's house: generateContent, its streams, embeddings, countTokens, models, errors in its own form."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec

from paceline.testing.buckets import Limit
from paceline.testing.config import Model
from paceline.testing.dialects.house import MAX_INPUTS, Excess, Form, House, check_dimensions
from paceline.testing.exchange import (
    ANY,
    AUTO,
    LENGTH,
    NONE,
    THOUGHT,
    TOOL,
    ApiError,
    Completion,
    Headers,
    ModelCall,
    Tool,
    prompt_tokens,
    texts_in,
)
from paceline.wire.call import dicts
from paceline.wire.gemini import RPC, error_status, turns_of
from paceline.wire.http import HttpRequest

_MODELS = "/models"
_QUOTAS = {"requests": "generate_content_requests", "tokens": "generate_content_input_token_count"}
_ADAPTIVE = 512  # tokens a model thinks when its budget is left to it
_LEVELS = {"minimal": 0, "low": 64, "medium": 256, "high": 1024}


class GenerateForm:
    """`generateContent` and `streamGenerateContent`."""

    def read(self, request: HttpRequest, call: dict[str, Any]) -> ModelCall:
        """Check and take a call apart."""
        check_contents(call.get("contents"))
        turns = turns_of(call)
        config = field(call, "generationConfig")
        config = config if isinstance(config, dict) else {}
        limit = field(config, "maxOutputTokens")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ApiError(400, f"Invalid value at 'generation_config.max_output_tokens': {limit!r}")
        if field(config, "candidateCount", 1) != 1:
            raise ApiError(400, "the simulated provider writes one candidate; leave candidateCount out or set it to 1")
        schema = field(config, "responseJsonSchema") or field(config, "responseSchema")
        tools = [
            _tool(made) for tool in dicts(call.get("tools")) for made in dicts(field(tool, "functionDeclarations"))
        ]
        return ModelCall(
            turns=turns,
            input_tokens=prompt_tokens(turns, call.get("tools")),
            max_tokens=limit,
            stop=texts_in(field(config, "stopSequences")),
            stream=request.path.endswith(":streamGenerateContent"),
            json_object=field(config, "responseMimeType") == "application/json",
            schema=schema if isinstance(schema, dict) else None,
            tools=tools,
            tool_choice=_tool_choice(field(call, "toolConfig"), tools),
            **_thinking(field(config, "thinkingConfig")),
        )

    def body(self, done: Completion) -> bytes:
        """The plain answer."""
        parts = [part for i in range(len(done.blocks)) if (part := _part(done, i, done.blocks[i].text))]
        return msgspec.json.encode(_chunk(done, parts, ended=True))

    def encoder(self, request: HttpRequest, done: Completion) -> "ChunkEncoder":
        """The streamed answer: events with `alt=sse`, else one array."""
        query = request.target.partition("?")[2].split("&")
        return ChunkEncoder(done) if "alt=sse" in query else ArrayEncoder(done)


GENERATE = GenerateForm()


class ChunkEncoder:
    """Chunks as server-sent events. A call of a function comes whole, with the last of its tokens."""

    content_type = b"text/event-stream"

    def __init__(self, done: Completion) -> None:
        self._done = done
        self._tokens = 0
        self._arguments = 0  # characters of the call that have come

    def first(self) -> bytes:
        """Nothing: the first chunk is the first text."""
        return b""

    def piece(self, block: int, text: str) -> bytes:
        """Some text, or a whole call."""
        self._tokens += 1
        part = self._done.blocks[block]
        if part.kind == TOOL:
            self._arguments += len(text)
            if self._arguments < len(part.text):
                return b""
            self._arguments, text = 0, part.text
        made = _part(self._done, block, text)
        return self.wrap(_chunk(self._done, [made], ended=False)) if made else b""

    def last(self) -> bytes:
        """Why it ended, and the usage."""
        return self.wrap(_chunk(self._done, [{"text": ""}], ended=True))

    def wrap(self, chunk: dict[str, Any]) -> bytes:
        """One chunk on the wire."""
        return b"data: " + msgspec.json.encode(chunk) + b"\r\n\r\n"


class ArrayEncoder(ChunkEncoder):
    """Chunks as the elements of one JSON array."""

    content_type = b"application/json; charset=UTF-8"

    def __init__(self, done: Completion) -> None:
        super().__init__(done)
        self._before = b"["

    def wrap(self, chunk: dict[str, Any]) -> bytes:
        """One element, with what goes before it."""
        before, self._before = self._before, b",\r\n"
        return before + msgspec.json.encode(chunk)

    def last(self) -> bytes:
        """The last element, and the end of the array."""
        return super().last() + b"\n]\n"


class GeminiHouse(House):
    """Google's developer API."""

    name = "gemini"

    def key_of(self, request: HttpRequest) -> str:
        """`x-goog-api-key`, `key` in the query, or a bearer token."""
        in_query = [part[4:] for part in request.target.partition("?")[2].split("&") if part.startswith("key=")]
        return request.header("x-goog-api-key") or next(iter(in_query), "") or super().key_of(request)

    def headers(self, serial: int, took_ms: int) -> Headers:
        """The time it took."""
        return [(b"server-timing", b"gfet4t7; dur=%d" % took_ms)]

    def limit_headers(self, limits: list[Limit]) -> Headers:
        """None: Google says nothing about limits in headers."""
        return []

    def error(self, error: ApiError, serial: int) -> tuple[Headers, bytes]:
        """A refusal; how long to wait stands in its details."""
        details = list(error.details)
        if error.retry_after_s is not None:
            details.append({"@type": f"{RPC}.RetryInfo", "retryDelay": f"{error.retry_after_s:.9g}s"})
        status = error.type or error_status(error.status)
        said = {"code": error.status, "message": error.message, "status": status}
        return [], msgspec.json.encode({"error": said | ({"details": details} if details else {})})

    def form(self, path: str) -> Form:
        """generateContent."""
        return GENERATE

    def prompt_of(self, call: dict[str, Any]) -> object:
        """System instruction and contents."""
        return [field(call, "systemInstruction"), call.get("contents", call.get("content", call.get("requests")))]

    def models(self, path: str, models: dict[str, Model]) -> bytes:
        """The list, or one."""
        made = {name: _model(name, model) for name, model in models.items()}
        wanted = path.rpartition(_MODELS)[2].strip("/")
        if not wanted:
            return msgspec.json.encode({"models": list(made.values())})
        if wanted not in made:
            raise self.unknown_model(wanted)
        return msgspec.json.encode(made[wanted])

    def read_embeddings(self, call: dict[str, Any], default_dimensions: int) -> tuple[list[str], int]:
        """One content, or several requests of equal dimensions."""
        asked = list(dicts(call.get("requests"))) or [call]
        if len(asked) > MAX_INPUTS:
            raise ApiError(400, f"at most {MAX_INPUTS} requests can be in one batch; got {len(asked)}")
        texts = [text for _, text in turns_of(call)]
        if len(texts) != len(asked) or not all(texts):
            raise ApiError(400, "content: must have a part with text")
        wanted = {field(one, "outputDimensionality", default_dimensions) for one in asked}
        if len(wanted) > 1:
            raise ApiError(400, "outputDimensionality: must be the same in all requests")
        return texts, check_dimensions(wanted.pop(), "outputDimensionality")

    def embeddings(self, path: str, call: dict[str, Any], vectors: Iterator[list[float]], tokens: int) -> bytes:
        """One vector, or several."""
        if path.endswith(":embedContent"):
            return msgspec.json.encode({"embedding": {"values": next(vectors)}})
        return msgspec.json.encode({"embeddings": [{"values": vector} for vector in vectors]})

    def read_counted(self, call: dict[str, Any]) -> list[tuple[str, str]]:
        """The turns of a call that only counts."""
        inner = field(call, "generateContentRequest")
        check_contents((inner if isinstance(inner, dict) else call).get("contents"))
        return turns_of(call)

    def counted(self, tokens: int) -> bytes:
        """The answer to countTokens."""
        details = [{"modality": "TEXT", "tokenCount": tokens}]
        return msgspec.json.encode({"totalTokens": tokens, "promptTokensDetails": details})

    def wrong_key(self, key: str) -> ApiError:
        """400 for a wrong key, 403 for none."""
        if not key:
            what = (
                "Method doesn't allow unregistered callers. Please use API Key or other form of API consumer identity."
            )
            return ApiError(403, what)
        details = [{"@type": f"{RPC}.ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}]
        return ApiError(400, "API key not valid. Please pass a valid API key.", details=details)

    def unknown_model(self, name: str) -> ApiError:
        """404."""
        return ApiError(404, f"models/{name} is not found for API version v1beta, or is not supported for this method.")

    def wrong_kind(self, name: str, kind: str, path: str) -> ApiError:
        """404."""
        return self.unknown_model(name)

    def too_long(self, limit: int, tokens: int) -> ApiError:
        """400."""
        what = f"The input token count ({tokens}) exceeds the maximum number of tokens allowed ({limit})."
        return ApiError(400, what)

    def over_limit(self, excess: Excess, headers: Headers) -> ApiError:
        """429."""
        violation = {
            "quotaMetric": f"generativelanguage.googleapis.com/{_QUOTAS[excess.what]}",
            "quotaId": f"{excess.what.title()}PerMinutePerProjectPerModel",
            "quotaDimensions": {"model": excess.model, "location": "global"},
            "quotaValue": f"{excess.per_min:.0f}",
        }
        details: list[dict[str, Any]] = [{"@type": f"{RPC}.QuotaFailure", "violations": [violation]}]
        what = f"You exceeded your current quota. * Quota exceeded for metric: {violation['quotaMetric']}"
        what += f", limit: {excess.per_min:.0f}, model: {excess.model}"
        if excess.never_fits:
            return ApiError(429, what, details=details)
        wait_s = excess.wait_s
        return ApiError(429, f"{what}\nPlease retry in {wait_s:.9g}s.", details=details, retry_after_s=wait_s)

    def overloaded(self) -> ApiError:
        """503."""
        return ApiError(503, "The model is overloaded. Please try again later.")

    def broken(self) -> ApiError:
        """500."""
        return ApiError(500, "An internal error has occurred. Please retry.")


# --- calls ----------------------------------------------------------------------------------------------------------


def field(given: dict[str, Any], name: str, default: Any = None) -> Any:
    """A field in either of the spellings Google takes: `maxOutputTokens`, `max_output_tokens`."""
    value = given.get(name)
    return value if value is not None else given.get(_snake(name), default)


@lru_cache(maxsize=256)
def _snake(name: str) -> str:
    return re.sub(r"([A-Z])", r"_\1", name).lower()


def check_contents(contents: object) -> None:
    """Raises ApiError 400."""
    if not isinstance(contents, list) or not contents:
        raise ApiError(400, "* GenerateContentRequest.contents: contents is not specified")
    for index, content in enumerate(contents):
        if not isinstance(content, dict) or not content.get("parts"):
            raise ApiError(400, f"* GenerateContentRequest.contents[{index}].parts: contents.parts must not be empty.")
        if content.get("role") not in (None, "user", "model", "function", "tool"):
            raise ApiError(400, "Please use a valid role: user, model.")


def _tool(declared: dict[str, Any]) -> Tool:
    parameters = field(declared, "parametersJsonSchema") or declared.get("parameters")
    return Tool(
        name=str(declared.get("name", "")),
        description=str(declared.get("description") or ""),
        parameters=parameters if isinstance(parameters, dict) else {},
    )


def _tool_choice(given: object, tools: list[Tool]) -> str:
    config = field(given, "functionCallingConfig") if isinstance(given, dict) else None
    if not isinstance(config, dict):
        return AUTO
    known = {tool.name for tool in tools}
    allowed = [name for name in texts_in(field(config, "allowedFunctionNames")) if name in known]
    if config.get("mode") == "ANY":
        return allowed[0] if len(allowed) == 1 else ANY
    return NONE if config.get("mode") == "NONE" else AUTO


def _thinking(given: object) -> dict[str, Any]:
    """How much to think (-1: the model decides), and whether to show it."""
    if not isinstance(given, dict):
        return {}
    budget = field(given, "thinkingBudget")
    if budget is None:
        budget = _LEVELS.get(str(field(given, "thinkingLevel", "")).casefold(), -1)
    tokens = _ADAPTIVE if not isinstance(budget, int) or budget < 0 else budget
    return {"thought_tokens": tokens, "show_thoughts": field(given, "includeThoughts") is True}


# --- answers --------------------------------------------------------------------------------------------------------


def _part(done: Completion, index: int, text: str) -> dict[str, Any] | None:
    block = done.blocks[index]
    if block.kind == TOOL:
        return {"functionCall": {"name": block.name, "args": msgspec.json.decode(text)}}
    if block.kind == THOUGHT:
        return {"text": text, "thought": True} if block.shown else None
    return {"text": text}


def _chunk(done: Completion, parts: list[dict[str, Any]], *, ended: bool) -> dict[str, Any]:
    """A piece of the answer, or all of it; the counts come with the end."""
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    usage: dict[str, Any] = {
        "promptTokenCount": done.input_tokens,
        "totalTokenCount": done.input_tokens,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": done.input_tokens}],
    }
    if ended:
        candidate["finishReason"] = "MAX_TOKENS" if done.finish == LENGTH else "STOP"
        usage["candidatesTokenCount"] = done.output_tokens - done.thought_tokens
        usage["totalTokenCount"] = done.input_tokens + done.output_tokens
        if done.thought_tokens:
            usage["thoughtsTokenCount"] = done.thought_tokens
    tail = {"usageMetadata": usage, "modelVersion": done.model, "responseId": f"{done.serial:022x}"}
    return {"candidates": [candidate], **tail}


def _model(name: str, model: Model) -> dict[str, Any]:
    methods = ["embedContent"] if model.kind == "embedding" else ["generateContent", "countTokens"]
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": name,
        "inputTokenLimit": model.context_tokens,
        "outputTokenLimit": model.max_output_tokens,
        "supportedGenerationMethods": methods,
    }
