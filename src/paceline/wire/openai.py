"""The dialect of OpenAI's API: what a call asks, and what its answer says. Pure; unknown fields are left alone.

Everything here reads a copy of what passes through; shapes it does not know give empty answers, never errors.
"""

import functools
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from paceline.wire.sse import SseParser
from paceline.wire.tokens import estimate_tokens

LLM, EMBEDDING = "llm", "embedding"
_KINDS = {"/chat/completions": LLM, "/completions": LLM, "/responses": LLM, "/embeddings": EMBEDDING}

# Fields that change nothing about the answer, so two calls that differ only here ask the same:
#   user, safety_identifier, metadata, store   whose call it is and how the provider files it
#   stream, stream_options                     how the answer is delivered
#   prompt_cache_key, service_tier             where it is computed
HYGIENE_FIELDS = frozenset(
    {"user", "safety_identifier", "metadata", "store", "stream", "stream_options", "prompt_cache_key", "service_tier"}
)

_TEMPLATE_CHARS = 80
_SYSTEM_ROLES = ("system", "developer")
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode


class CallInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What one call asks. Token counts are estimates of `estimate_tokens`, split by the role of the messages."""

    kind: str | None = None  # "llm", "embedding"; None: not a model call, or not one we can read
    model: str | None = None
    stream: bool = False
    system_tokens: int = 0  # system and developer messages, tools
    history_tokens: int = 0  # up to and with the last answer of the assistant
    user_tokens: int = 0  # what came after it
    prompt_hash: str | None = None  # 32 hex digits; the very same call has the same one
    template_hash: str | None = None  # 16 hex digits; calls written by the same piece of code have the same one
    texts: list[str] = []  # of the messages, or the embedding's inputs, in order
    system_text: str = ""

    @property
    def input_tokens(self) -> int:
        """Estimated prompt tokens."""
        return self.system_tokens + self.history_tokens + self.user_tokens


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens as the provider counted them."""

    input_tokens: int
    output_tokens: int = 0
    cached_tokens: int = 0  # part of the input that the provider had cached


class ReplyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer says."""

    usage: Usage | None = None
    text: str = ""  # message text, tool arguments included
    complete: bool = False  # it ended as the protocol says, without an error in it
    refused: bool = False  # declined by the model or a content filter


@functools.lru_cache(maxsize=256)
def kind_of(path: str) -> str | None:
    """LLM, EMBEDDING, or None for other paths; any prefix (`/v1`, `/openai/deployments/x`) will do."""
    return next((kind for end, kind in _KINDS.items() if path.endswith(end)), None)


def read_call(path: str, body: bytes) -> CallInfo:
    """What a POST to `path` (without query) asks."""
    kind = kind_of(path)
    call = decode_object(body) if kind else None
    return CallInfo() if kind is None or call is None else describe_call(kind, call, canonical(call))


def decode_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in `body`, or None when it is anything else."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def describe_call(kind: str, call: dict[str, Any], canon: bytes) -> CallInfo:
    """What a decoded call of this kind asks; `canon` is its `canonical` form."""
    model = call.get("model")
    turns = list(turns_of(kind, call))
    last_answer = max((i for i, (role, _) in enumerate(turns) if role == "assistant"), default=-1)
    tokens = {"system": 0, "history": 0, "user": 0}
    for i, (role, text) in enumerate(turns):
        part = "system" if role in _SYSTEM_ROLES else "history" if i <= last_answer else "user"
        tokens[part] += estimate_tokens(text)
    if call.get("tools"):
        tokens["system"] += estimate_tokens(_encode_sorted(call["tools"]).decode())
    return CallInfo(
        kind=kind,
        model=model if isinstance(model, str) else None,
        stream=call.get("stream") is True,
        system_tokens=tokens["system"],
        history_tokens=tokens["history"],
        user_tokens=tokens["user"],
        prompt_hash=hashlib.sha256(canon).hexdigest()[:32],
        template_hash=_template_hash(kind, turns),
        texts=[text for _, text in turns],
        system_text="\n".join(text for role, text in turns if role in _SYSTEM_ROLES),
    )


def canonical(call: dict[str, Any]) -> bytes:
    """The call in one spelling: sorted fields, no white space, hygiene fields left out."""
    return _encode_sorted({name: value for name, value in call.items() if name not in HYGIENE_FIELDS})


def read_reply(body: bytes, *, text: bool = True) -> ReplyInfo:
    """What a plain (not streamed) answer of status 200 says; without `text`, its text only where usage is missing."""
    reply = decode_object(body)
    if reply is None:
        return ReplyInfo()
    usage = _usage(reply.get("usage"))
    return ReplyInfo(
        usage=usage,
        text="".join(_output_texts(reply)) if text or usage is None else "",
        complete=not reply.get("error") and reply.get("status") in (None, "completed"),
        refused=_refused(reply),
    )


class StreamReader:
    """Reads a streamed answer as it passes: `feed` the bytes, ask `result` at the end."""

    def __init__(self) -> None:
        self._parser = SseParser()
        self._text: list[str] = []
        self._usage: Usage | None = None
        self._ended = self._refused = self._failed = False

    def feed(self, data: bytes) -> None:
        """Take bytes of the body, cut anywhere. Never raises; what it cannot read makes the answer incomplete."""
        try:
            events = self._parser.feed(data)
        except ValueError:
            self._failed = True
            return
        for event in events:
            if event == b"[DONE]":
                self._ended = True
            else:
                self._take(decode_object(event))

    def result(self) -> ReplyInfo:
        """What the answer said so far; `complete` once its final event was seen."""
        return ReplyInfo(
            usage=self._usage,
            text="".join(self._text),
            complete=self._ended and not self._failed,
            refused=self._refused,
        )

    def _take(self, event: dict[str, Any] | None) -> None:
        if event is None or event.get("error"):
            self._failed = True
            return
        kind = event.get("type")
        if isinstance(kind, str) and kind.startswith("response."):  # the Responses API
            response = event.get("response")
            if isinstance(event.get("delta"), str):
                self._text.append(event["delta"])
            if kind in ("response.failed", "response.incomplete"):
                self._failed = True
            if kind == "response.completed" and isinstance(response, dict):
                self._ended = True
                self._usage = _usage(response.get("usage")) or self._usage
                self._refused |= _refused(response)
            return
        self._text.extend(_output_texts(event))
        self._usage = _usage(event.get("usage")) or self._usage
        self._refused |= _refused(event)


def error_body(status: int, message: str, type: str | None = None, code: str | None = None) -> bytes:  # noqa: A002
    """An error as OpenAI words it; the type follows from the status when not given."""
    default = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    return msgspec.json.encode({"error": {"message": message, "type": type or default, "param": None, "code": code}})


def _dicts(value: object) -> Iterator[dict[str, Any]]:
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else iter(())


def turns_of(kind: str, call: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(role, text) of everything the model is to read."""
    if isinstance(call.get("instructions"), str):
        yield "system", call["instructions"]
    for field in ("prompt", "input"):
        value = call.get(field)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                yield "user", item
            elif isinstance(item, dict) and kind == LLM:
                yield str(item.get("role", "user")), _message_text(item)
    for message in _dicts(call.get("messages")):
        yield str(message.get("role", "user")), _message_text(message)


def _message_text(message: dict[str, Any]) -> str:
    content = message.get("content")
    parts = [content] if isinstance(content, str) else [_text(part) for part in _dicts(content)]
    parts += [_text(call.get("function")) for call in _dicts(message.get("tool_calls"))]
    parts += [_text(message)]
    return "\n".join(part for part in parts if part)


def _text(part: object) -> str:
    """Text of a content part, a function call or its output."""
    if not isinstance(part, dict):
        return ""
    return next((part[name] for name in ("text", "arguments", "output") if isinstance(part.get(name), str)), "")


def _template_hash(kind: str, turns: list[tuple[str, str]]) -> str:
    """Prompts begin with what the programmer wrote and go on with what changes, so the start of the first text says
    which code it came from; digits are masked. Embeddings have no template: all share one."""
    start = turns[0][1][: 4 * _TEMPLATE_CHARS] if turns and kind == LLM else ""
    masked = re.sub(r"\d+", "0", " ".join(start.split()))[:_TEMPLATE_CHARS]
    return hashlib.sha256(f"{kind}\n{masked}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _output_texts(reply: dict[str, Any]) -> Iterator[str]:
    """Texts in choices (messages, deltas, completions) or in the output of the Responses API."""
    for choice in _dicts(reply.get("choices")):
        message = choice.get("message", choice.get("delta"))
        if isinstance(message, dict):
            yield _message_text(message)
        elif isinstance(choice.get("text"), str):
            yield choice["text"]
    for item in _dicts(reply.get("output")):
        yield _message_text(item)


def _refused(reply: dict[str, Any]) -> bool:
    if any(
        part.get("type") == "refusal" for item in _dicts(reply.get("output")) for part in _dicts(item.get("content"))
    ):
        return True
    for choice in _dicts(reply.get("choices")):
        message = choice.get("message", choice.get("delta"))
        if choice.get("finish_reason") == "content_filter" or (isinstance(message, dict) and message.get("refusal")):
            return True
    return False


def _usage(raw: object) -> Usage | None:
    if not isinstance(raw, dict):
        return None
    details = raw.get("prompt_tokens_details", raw.get("input_tokens_details"))
    read = raw.get("prompt_tokens", raw.get("input_tokens"))
    written = raw.get("completion_tokens", raw.get("output_tokens", 0))  # embeddings write nothing
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    if not isinstance(read, int) or not isinstance(written, int):
        return None
    return Usage(input_tokens=read, output_tokens=written, cached_tokens=cached if isinstance(cached, int) else 0)
