"""The dialect of Gemini's API: generateContent, streamGenerateContent, embedContent, countTokens and their batches.

The model and whether to stream stand in the path, on Google's developer API as on Vertex. A stream comes as
server-sent events with `alt=sse`, else as one JSON array whose elements arrive one by one.

Everything here reads a copy of what passes through; shapes it does not know give empty answers, never errors.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from paceline.wire.call import (
    COUNT,
    DECODING,
    EMBEDDING,
    LLM,
    NOTHING,
    UNREADABLE,
    CallInfo,
    EventReader,
    ReplyInfo,
    Turn,
    Usage,
    count,
    decode_object,
    describe_turns,
    dicts,
    encode_sorted,
    replace_field,
    word,
)

_STREAM = "streamGenerateContent"
_KINDS = {
    "generateContent": LLM,
    _STREAM: LLM,
    "embedContent": EMBEDDING,
    "batchEmbedContents": EMBEDDING,
    "countTokens": COUNT,
}
HYGIENE_FIELDS = frozenset({"labels", "serviceTier", "service_tier"})  # how the call is billed and where it is computed
_ARRAY_BYTES = 64 * 1024 * 1024  # bound of a stream that is one JSON array
_TAIL_TRIES = 200

_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    504: "DEADLINE_EXCEEDED",
}


class Gemini:
    """Gemini's dialect."""

    name = "gemini"
    price_provider = "google"
    key_headers: frozenset[bytes] = frozenset()
    credential_headers = frozenset({b"x-goog-api-key", b"authorization", b"x-goog-user-project"})
    text_fields = frozenset({"contents", "content", "requests", "systemInstruction", "system_instruction"})

    def kind_of(self, path: str) -> str | None:
        """By the method after the last colon (`.../models/gemini-2.5-flash:generateContent`); None for other paths."""
        return _KINDS.get(path.rpartition(":")[2])

    def model_of(self, path: str, call: Mapping[str, Any]) -> str | None:
        """The model in the path."""
        return path.rpartition("/")[2].rpartition(":")[0] or None

    def is_stream(self, path: str, call: Mapping[str, Any]) -> bool:
        """Whether the method streams."""
        return path.endswith(_STREAM)

    def delivery(self, path: str, call: Mapping[str, Any]) -> bytes:
        """Plain or streamed; `alt=sse` stands in the target."""
        return b"stream" if path.endswith(_STREAM) else b"plain"

    def is_stateful(self, call: Mapping[str, Any]) -> bool:
        """Never: what it refers to (`cachedContent`) does not change."""
        return False

    def canonical(self, call: dict[str, Any]) -> bytes:
        """The call in one spelling: sorted fields, no white space, hygiene fields left out. The model is not in it."""
        return encode_sorted({name: call[name] for name in call if name not in HYGIENE_FIELDS})

    def describe(self, kind: str, path: str, call: dict[str, Any], canon: bytes) -> CallInfo:
        """What a decoded call of this kind asks; `canon` is its `canonical` form."""
        model = self.model_of(path, call)
        return describe_turns(
            kind,
            turns_of(call),
            model=model,
            stream=path.endswith(_STREAM),
            stateful=self.is_stateful(call),
            tools=call.get("tools"),
            canon=f"{model}\n".encode() + canon,
        )

    def read_reply(self, body: bytes, *, text: bool = True) -> ReplyInfo:
        """What an answer of status 200 says, also one that is an array of chunks; without `text`, as elsewhere."""
        reader = ChunkReader()
        try:
            for chunk in _decode_chunks(body) if body.lstrip()[:1] == b"[" else (_decode_chunk(body),):
                reader.take_chunk(chunk)
        except DECODING:
            return ReplyInfo()
        info = reader.result()
        return info if text or info.usage is None else msgspec.structs.replace(info, text="")

    def stream_reader(self) -> "ChunkReader":
        """A reader for one streamed answer, whichever of the two forms it has."""
        return ChunkReader()

    def error_body(
        self, status: int, message: str, code: str | None = None, *, retry_after_s: float | None = None
    ) -> bytes:
        """An error as Google words it. How long to wait stands in the body, where its clients look for it."""
        details: list[dict[str, Any]] = []
        if code is not None:
            details.append({"@type": f"{RPC}.ErrorInfo", "reason": code, "domain": "paceline"})
        if retry_after_s is not None:
            details.append({"@type": f"{RPC}.RetryInfo", "retryDelay": f"{retry_after_s:.9g}s"})
        error = {"code": status, "message": message, "status": error_status(status)} | (
            {"details": details} if details else {}
        )
        return msgspec.json.encode({"error": error})

    def with_model(self, target: str, body: bytes, model: str) -> tuple[str, bytes]:
        """The call with another model in its path, and in the body of embeddings, which name it again."""
        path, mark, query = target.partition("?")
        before, slash, last = path.rpartition("/")
        new = f"{before}{slash}{model}:{last.rpartition(':')[2]}{mark}{query}"
        if b'"model"' not in body:
            return new, body
        call = decode_object(body) or {}
        named = f"models/{model}"
        if isinstance(call.get("model"), str):
            body = replace_field(body, "model", named)
        if any("model" in asked for asked in dicts(call.get("requests"))):
            body = replace_field(body, "requests", [asked | {"model": named} for asked in dicts(call["requests"])])
        return new, body


GEMINI = Gemini()
RPC = "type.googleapis.com/google.rpc"  # where the types of an error's details are declared


def error_status(status: int) -> str:
    """What Google calls an error of this status."""
    return _STATUSES.get(status, "UNAVAILABLE" if status >= 500 else "INVALID_ARGUMENT")


# --- what a call says -----------------------------------------------------------------------------------------------

_ROLES = {"model": "assistant", "function": "tool", "tool": "tool"}


def turns_of(call: dict[str, Any]) -> list[Turn]:
    """(role, text) of everything the model is to read, in OpenAI's roles; results of functions have the role "tool"."""
    turns: list[Turn] = []
    system = call.get("systemInstruction") or call.get("system_instruction")
    if system:
        turns.append(("system", system if isinstance(system, str) else _text(system)))
    contents = call.get("contents")
    for content in dicts(_contents(call) if contents is None else contents):
        role = content.get("role")
        parts = content.get("parts")
        if isinstance(parts, list) and len(parts) == 1 and isinstance(parts[0], dict) and "text" in parts[0]:
            text = _part(parts[0])  # nearly always
        else:
            text = _text(content)
            if any("functionResponse" in part or "function_response" in part for part in dicts(parts)):
                role = "function"
        turns.append((_ROLES.get(role, "user") if isinstance(role, str) else "user", text))
    return turns


def _contents(call: dict[str, Any]) -> list[Any]:
    """The contents of calls that don't have them at the top: countTokens, embeddings, their batches."""
    inner = call.get("generateContentRequest")
    if isinstance(inner, dict):
        return list(dicts(inner.get("contents")))
    return [call.get("content"), *(asked.get("content") for asked in dicts(call.get("requests")))]


def _text(content: object) -> str:
    parts = content.get("parts") if isinstance(content, dict) else None
    texts = map(_part, (parts,) if isinstance(parts, dict) else dicts(parts))
    return "\n".join(text for text in texts if text)


def _part(part: dict[str, Any]) -> str:
    """A part's text, or a function's arguments or result."""
    if isinstance(part.get("text"), str):
        return part["text"]  # type: ignore[no-any-return]
    for name, other, field in (
        ("functionCall", "function_call", "args"),
        ("functionResponse", "function_response", "response"),
    ):
        call = part.get(name) or part.get(other)
        if isinstance(call, dict):
            return msgspec.json.encode(call.get(field)).decode()
    return ""


# --- what an answer says: only the fields that matter are decoded, of any type where nothing hangs on it -------------

_WHOLE = frozenset({"STOP", "MAX_TOKENS"})
_LENGTH = frozenset({"MAX_TOKENS"})
_REFUSED = frozenset(
    {
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
    }
)


class _Function(msgspec.Struct, gc=False):
    args: msgspec.Raw = NOTHING


class _Part(msgspec.Struct, gc=False):
    text: Any = None
    thought: Any = None
    functionCall: _Function | None = None  # noqa: N815 - Google's spelling, here and below


class _Content(msgspec.Struct, gc=False):
    parts: list[_Part] | None = None


class _Candidate(msgspec.Struct, gc=False):
    content: _Content | None = None
    finishReason: Any = None  # noqa: N815


class _Modality(msgspec.Struct, gc=False):
    modality: Any = None
    tokenCount: Any = None  # noqa: N815


class _Usage(msgspec.Struct, gc=False):
    promptTokenCount: Any = None  # noqa: N815 - what the cache had is part of it
    toolUsePromptTokenCount: Any = None  # noqa: N815
    cachedContentTokenCount: Any = None  # noqa: N815
    candidatesTokenCount: Any = None  # noqa: N815 - thoughts are not part of it
    thoughtsTokenCount: Any = None  # noqa: N815
    promptTokensDetails: list[_Modality] | None = None  # noqa: N815
    candidatesTokensDetails: list[_Modality] | None = None  # noqa: N815


class _Feedback(msgspec.Struct, gc=False):
    blockReason: Any = None  # noqa: N815


class _Error(msgspec.Struct, gc=False):
    status: Any = None


class _Chunk(msgspec.Struct, gc=False):
    """A plain answer, or one piece of a stream."""

    candidates: list[_Candidate] | None = None
    promptFeedback: _Feedback | None = None  # noqa: N815
    usageMetadata: msgspec.Raw = NOTHING  # noqa: N815 - of a stream's chunks only the last is read
    modelVersion: Any = None  # noqa: N815
    error: _Error | None = None
    embedding: msgspec.Raw = NOTHING
    embeddings: msgspec.Raw = NOTHING
    totalTokens: Any = None  # noqa: N815 - all that countTokens answers


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_chunks = msgspec.json.Decoder(list[_Chunk]).decode
_decode_usage = msgspec.json.Decoder(_Usage).decode


def _usage_of(data: msgspec.Raw) -> Usage | None:
    try:
        raw = _decode_usage(data)
    except DECODING:
        return None
    if not isinstance(raw.promptTokenCount, int):
        return None
    thoughts = count(raw.thoughtsTokenCount)
    return Usage(
        input_tokens=raw.promptTokenCount + count(raw.toolUsePromptTokenCount),
        output_tokens=count(raw.candidatesTokenCount) + thoughts,
        cached_tokens=count(raw.cachedContentTokenCount),
        reasoning_tokens=thoughts,
        input_audio_tokens=_of(raw.promptTokensDetails, "AUDIO"),
        output_audio_tokens=_of(raw.candidatesTokensDetails, "AUDIO"),
        output_image_tokens=_of(raw.candidatesTokensDetails, "IMAGE"),
    )


def _of(details: list[_Modality] | None, modality: str) -> int:
    return sum(count(part.tokenCount) for part in details if part.modality == modality) if details else 0


class ChunkReader(EventReader):
    """Reads a streamed answer: server-sent events, or one JSON array (told apart by the first byte)."""

    LENGTH = _LENGTH

    def __init__(self) -> None:
        super().__init__()
        self._array: list[bytes] | None = None  # pieces of an array; None: events, or nothing yet
        self._array_bytes = 0
        self._begun = False
        self._usage = NOTHING  # counts are cumulative: the last ones
        self._failed = False  # a candidate ended as none should

    def feed(self, data: bytes) -> None:
        """Take bytes of the body, cut anywhere. Never raises; what it cannot read makes the answer incomplete."""
        if not self._begun:
            data = data.lstrip()
            if not data:
                return
            self._begun = True
            self._array = [] if data[0] == ord("[") else None
        if self._array is None:
            super().feed(data)
        elif self._array_bytes <= _ARRAY_BYTES:
            self._array.append(data)
            self._array_bytes += len(data)

    def take(self, event: bytes) -> None:
        """Read one event."""
        self.take_chunk(_decode_chunk(event))

    def result(self) -> ReplyInfo:
        """What the answer said so far; an array is read here, whole or as far as it came."""
        self._read_on()
        if self._array:
            data, self._array = b"".join(self._array), []
            for chunk in self._chunks(data):
                self.take_chunk(chunk)
        self.ended = self.ended and not self._failed
        self.usage = _usage_of(self._usage) if self._usage is not NOTHING else None
        return super().result()

    def _chunks(self, data: bytes) -> list[_Chunk]:
        try:
            return _decode_chunks(data)
        except DECODING:
            self.error = UNREADABLE
        end = len(data)
        for _ in range(_TAIL_TRIES):  # cut: what came before the last, unfinished element
            end = data.rfind(b"}", 0, end)
            if end < 0:
                break
            try:
                return _decode_chunks(data[: end + 1] + b"]")
            except DECODING:
                continue
        return []

    def take_chunk(self, chunk: _Chunk) -> None:
        """Read one piece of a stream, or a whole answer."""
        for candidate in chunk.candidates or ():
            if candidate.content is not None:
                self._take_parts(candidate.content.parts or ())
            if candidate.finishReason is not None:
                self.finish = word(candidate.finishReason)
                self.ended = True
                self.refused |= self.finish in _REFUSED
                self._failed |= self.finish not in _WHOLE | _REFUSED
        if chunk.usageMetadata is not NOTHING:
            self._usage = chunk.usageMetadata
        if self.model is None:
            self.model = word(chunk.modelVersion)
        if chunk.promptFeedback is not None and chunk.promptFeedback.blockReason:
            self.ended = self.refused = True
            self.finish = word(chunk.promptFeedback.blockReason)
        if chunk.error is not None:
            self.error = word(chunk.error.status) or "error"
        if chunk.embedding is not NOTHING or chunk.embeddings is not NOTHING or chunk.totalTokens is not None:
            self.ended = True

    def _take_parts(self, parts: list[_Part] | tuple[()]) -> None:
        for part in parts:
            if part.functionCall is not None:
                self.texts.append(bytes(part.functionCall.args).decode())
            elif isinstance(part.text, str) and not part.thought:
                self.texts.append(part.text)
