"""OpenAI's dialect from the provider's side: checks of what is asked, bodies of what is answered. Pure."""

import base64
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from paceline.testing.config import MAX_DIMENSIONS
from paceline.wire.openai import LLM, turns_of
from paceline.wire.tokens import estimate_tokens

CHAT_PATH, EMBEDDINGS_PATH, MODELS_PATH = "/v1/chat/completions", "/v1/embeddings", "/v1/models"
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MAX_INPUTS = 2048
INVALID = "invalid_request_error"


class ApiError(Exception):
    """A refusal in OpenAI's own form."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str = INVALID,  # noqa: A002 - OpenAI's word
        *,
        code: str | None = None,
        param: str | None = None,
        headers: list[tuple[bytes, bytes]] | None = None,
        fault: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.fault = fault  # which planted fault it is; "": a refusal on its own merits
        self.headers = headers or []
        self.body = msgspec.json.encode({"error": {"message": message, "type": type, "param": param, "code": code}})


class ChatCall(msgspec.Struct, frozen=True, kw_only=True):
    """One chat completion asked for."""

    turns: list[tuple[str, str]]  # (role, text)
    input_tokens: int
    max_tokens: int | None
    stop: list[str]
    stream: bool
    include_usage: bool
    json_object: bool
    schema: dict[str, Any] | None  # of the JSON wanted


def read_chat(call: dict[str, Any]) -> ChatCall:
    """Check and take a chat completion apart. Raises ApiError as OpenAI would."""
    _check_messages(call.get("messages"))
    if call.get("n", 1) not in (1, None):
        raise _invalid("n", "the simulated provider writes one choice; leave n out or set it to 1")
    options = call.get("stream_options")
    stream = call.get("stream") is True
    if options is not None and not stream:
        raise _invalid("stream_options", "The 'stream_options' parameter is only allowed when 'stream' is enabled.")
    turns = list(turns_of(LLM, call))
    form = call.get("response_format")
    form = form if isinstance(form, dict) else {}
    json_object = form.get("type") == "json_object"
    if json_object and not any("json" in text.casefold() for _, text in turns):
        what = "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'."
        raise _invalid("messages", what)
    wrapper = form.get("json_schema")
    schema = wrapper.get("schema") if form.get("type") == "json_schema" and isinstance(wrapper, dict) else None
    stop = call.get("stop")
    return ChatCall(
        turns=turns,
        input_tokens=sum(estimate_tokens(text) for _, text in turns),
        max_tokens=_max_tokens(call),
        stop=[s for s in (stop if isinstance(stop, list) else [stop]) if isinstance(s, str) and s],
        stream=stream,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        json_object=json_object,
        schema=schema if isinstance(schema, dict) else None,
    )


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


def _max_tokens(call: dict[str, Any]) -> int | None:
    given = [name for name in ("max_completion_tokens", "max_tokens") if call.get(name) is not None]
    if len(given) > 1:
        what = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        raise _invalid("max_tokens", what)
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


def read_embeddings(call: dict[str, Any], default_dimensions: int) -> tuple[list[str], int]:
    """Texts and dimensions asked for. Raises ApiError as OpenAI would."""
    texts = _inputs(call.get("input"))
    if not texts or any(not text for text in texts):
        raise _invalid("input", "'input' must be a text, or a non-empty array of texts or of token numbers; none empty")
    if len(texts) > _MAX_INPUTS:
        raise _invalid("input", f"'input' must have at most {_MAX_INPUTS} items; got {len(texts)}")
    dimensions = call.get("dimensions", default_dimensions)
    if not isinstance(dimensions, int) or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise _invalid("dimensions", f"'dimensions' must be 1 to {MAX_DIMENSIONS}; got {dimensions!r}")
    if call.get("encoding_format", "float") not in ("float", "base64"):
        raise _invalid("encoding_format", f"'encoding_format' must be float or base64; got {call['encoding_format']!r}")
    return texts, dimensions


def _inputs(raw: object) -> list[str]:
    """Texts of an embedding's input; token numbers become words, so equal ones are equal."""
    items: list[Any] = raw if isinstance(raw, list) else [raw]
    if items and all(isinstance(item, int) for item in items):
        items = [items]
    if items and all(isinstance(item, list) and all(isinstance(t, int) for t in item) for item in items):
        items = [" ".join(map(str, item)) for item in items]
    return items if all(isinstance(item, str) for item in items) else []


def _invalid(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param)


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, written."""

    id: str
    created: int
    model: str
    text: str
    tokens: int
    finish: str  # "stop" or "length"
    input_tokens: int

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens, as the API reports them."""
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.input_tokens + self.tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    def body(self) -> bytes:
        """The plain answer."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None, "annotations": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish}
        return msgspec.json.encode({**self._head("chat.completion"), "choices": [choice], "usage": self.usage})

    def pieces(self) -> list[str]:
        """The text in as many pieces as it has tokens."""
        size = len(self.text)
        return [self.text[i * size // self.tokens : (i + 1) * size // self.tokens] for i in range(self.tokens)]

    def events(self, *, usage: bool) -> "Events":
        """Encoder of the streamed answer."""
        return Events(self, self._head("chat.completion.chunk"), usage=usage)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": "fp_paceline",
        }


class Events:
    """Server-sent events of one streamed answer. Only a piece's text is encoded anew: there are many."""

    def __init__(self, completion: Completion, head: dict[str, Any], *, usage: bool) -> None:
        self._completion = completion
        self._head = head
        self._usage = usage
        whole = self._event({"content": ""}, None)
        self._before, self._after = whole.split(b'{"content":""}')

    def first(self) -> bytes:
        """The role, which comes with the first token."""
        return self._event({"role": "assistant", "content": "", "refusal": None}, None)

    def piece(self, text: str) -> bytes:
        """Some text."""
        return b'%b{"content":%b}%b' % (self._before, msgspec.json.encode(text), self._after)

    def last(self) -> bytes:
        """Why it ended, usage where asked for, and the end."""
        parts = [self._event({}, self._completion.finish)]
        if self._usage:
            parts.append(_data({**self._head, "choices": [], "usage": self._completion.usage}))
        return b"".join([*parts, b"data: [DONE]\n\n"])

    def _event(self, delta: dict[str, Any], finish: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _data({**self._head, "choices": [choice]} | ({"usage": None} if self._usage else {}))


def embeddings_body(vectors: Iterator[list[float]], *, model: str, tokens: int, packed: bool) -> bytes:
    """The answer to an embeddings call; `packed`: little-endian floats in base64 instead of numbers."""

    def shown(vector: list[float]) -> list[float] | str:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if packed else vector

    data = [{"object": "embedding", "index": i, "embedding": shown(vector)} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


def models_body(path: str, names: list[str]) -> bytes:
    """The list of models, or one of them. Raises ApiError 404."""
    described = {
        name: {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "paceline"} for name in names
    }
    wanted = path.removeprefix(MODELS_PATH).strip("/")
    if not wanted:
        return msgspec.json.encode({"object": "list", "data": list(described.values())})
    if wanted not in described:
        raise unknown_model(wanted)
    return msgspec.json.encode(described[wanted])


def unknown_model(name: str) -> ApiError:
    """404 for a model that is not there."""
    what = f"The model `{name}` does not exist or you do not have access to it."
    return ApiError(404, what, code="model_not_found", param="model")


def _data(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
