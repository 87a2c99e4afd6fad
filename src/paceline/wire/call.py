"""Model calls whatever the dialect: what one asks, what its answer says, and what a dialect has to know."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Protocol

import msgspec

from paceline.wire.sse import SseParser
from paceline.wire.tokens import estimate_bytes, estimate_tokens

LLM, EMBEDDING, COUNT = "llm", "embedding", "count_tokens"
SYSTEM_ROLES = ("system", "developer")
_TEMPLATE_CHARS, _TEMPLATE_START = 80, 320
_UNREAD_BYTES = 32 * 1024  # of a stream, passed on and not read yet
_DIGITS = re.compile(r"\d+")
encode_sorted = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder().decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

DECODING = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what decoding foreign JSON may raise
UNREADABLE = "unreadable"  # an error of ours: an event that is no JSON, or not of the form we know
NOTHING = msgspec.Raw(b"")  # a field that is not there
Turn = tuple[str, str]  # role, text


class CallInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What one call asks. Token counts are estimates of `estimate_tokens`, split by the role of the messages.

    Images and other media count nothing: how many tokens they are only the provider knows.
    """

    kind: str | None = None  # LLM, EMBEDDING, COUNT; None: not a model call, or not one we can read
    model: str | None = None
    stream: bool = False
    stateful: bool = False  # hangs on, or changes, what the provider keeps: never answered from another call
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
    """Tokens as the provider counted them. `input_tokens` and `output_tokens` are whole; the rest are parts of them."""

    input_tokens: int
    output_tokens: int = 0
    cached_tokens: int = 0  # of the input: read from the provider's cache
    cache_write_tokens: int = 0  # of the input: written to it
    cache_write_1h_tokens: int = 0  # of those written: to be kept for an hour (dearer than five minutes)
    reasoning_tokens: int = 0  # of the output
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    output_image_tokens: int = 0


class ReplyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer says."""

    usage: Usage | None = None
    usage_partial: bool = False  # it was cut before its final count: the output tokens are our estimate
    text: str = ""  # message text, tool arguments included; no reasoning
    complete: bool = False  # it ended as the protocol says, without an error in it
    refused: bool = False  # declined by the model or a content filter
    truncated: bool = False  # complete, but ended by the limit of its length
    finish: str | None = None  # why it ended, in the provider's word
    model: str | None = None  # as the provider names it: where an alias or a deployment was asked for
    error: str | None = None  # type of an error inside the answer ("overloaded_error")


class StreamReader(Protocol):
    """Reads a streamed answer as it passes."""

    def feed(self, data: bytes) -> None:
        """Take bytes of the body, cut anywhere. Never raises; what it cannot read makes the answer incomplete."""

    def result(self) -> ReplyInfo:
        """What the answer said so far; `complete` once its final event was seen."""


class EventReader:
    """A StreamReader for server-sent events. A dialect says in `take` what each event means."""

    LENGTH: frozenset[str] = frozenset()  # why an answer ended that reached the limit of its length

    def __init__(self) -> None:
        self._parser: SseParser | None = None
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self.texts: list[str] = []
        self.usage: Usage | None = None
        self.usage_partial = False
        self.finish: str | None = None
        self.model: str | None = None
        self.error: str | None = None
        self.ended = self.refused = False

    def take(self, event: bytes) -> None:
        """Read the data of one event. DecodeError and other ValueErrors: it cannot be read."""
        raise NotImplementedError

    def feed(self, data: bytes) -> None:
        """Take bytes of the body, cut anywhere. Never raises; what it cannot read makes the answer incomplete."""
        self._unread.append(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > _UNREAD_BYTES:
            self._read_on()

    def _read_on(self) -> None:
        """Read what was fed since: all at once, for in the moment a piece passes its caller waits for it."""
        if not self._unread:
            return
        data = b"".join(self._unread)
        self._unread.clear()
        self._unread_bytes = 0
        if self._parser is None:
            self._parser = SseParser()
        try:
            events = self._parser.feed(data)
        except ValueError:
            self.error = self.error or UNREADABLE
            return
        for event in events:
            try:
                self.take(event)
            except (ValueError, RecursionError):
                self.error = self.error or UNREADABLE

    def result(self) -> ReplyInfo:
        """What the answer said so far; `complete` once its final event was seen."""
        self._read_on()
        return ReplyInfo(
            usage=self.usage,
            usage_partial=self.usage_partial,
            text="".join(self.texts),
            complete=self.ended and self.error is None,
            refused=self.refused,
            truncated=self.finish in self.LENGTH,
            finish=self.finish,
            model=self.model,
            error=self.error,
        )


class Dialect(Protocol):
    """One provider's language. Pure, without state; shapes it does not know give empty answers, never errors."""

    name: str  # "openai", "anthropic", "gemini"
    price_provider: str  # its name in genai-prices
    key_headers: frozenset[bytes]  # request headers that change the answer
    credential_headers: frozenset[bytes]  # request headers that say whose call it is
    text_fields: frozenset[str]  # of a call: those that hold its prompt

    def kind_of(self, path: str) -> str | None:
        """LLM, EMBEDDING, COUNT for a path without query, after any prefix; None: not a model call."""

    def model_of(self, path: str, call: Mapping[str, Any]) -> str | None:
        """The model asked for."""

    def is_stream(self, path: str, call: Mapping[str, Any]) -> bool:
        """Whether the answer is to come as a stream."""

    def delivery(self, path: str, call: Mapping[str, Any]) -> bytes:
        """How the answer is to be delivered: part of a cache key, for no hygiene field may change the bytes."""

    def is_stateful(self, call: Mapping[str, Any]) -> bool:
        """Whether it hangs on, or changes, what the provider keeps: never answered from another call."""

    def canonical(self, call: dict[str, Any]) -> bytes:
        """The call in one spelling: sorted fields, no white space, without fields that change nothing."""

    def describe(self, kind: str, path: str, call: dict[str, Any], canon: bytes) -> CallInfo:
        """What a decoded call of this kind asks; `canon` is its `canonical` form."""

    def read_reply(self, body: bytes, *, text: bool = True) -> ReplyInfo:
        """What a plain answer of status 200 says; without `text`, its text only where usage is missing."""

    def stream_reader(self) -> StreamReader:
        """A reader for one streamed answer."""

    def error_body(
        self, status: int, message: str, code: str | None = None, *, retry_after_s: float | None = None
    ) -> bytes:
        """An error as the provider words it, so that its SDK raises the exception it raises for the provider."""

    def with_model(self, target: str, body: bytes, model: str) -> tuple[str, bytes]:
        """Target and body of the same call to another model; every other byte untouched."""


def decode_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in `body`, or None when it is anything else."""
    try:
        value = _decode(body)
    except DECODING:
        return None
    return value if isinstance(value, dict) else None


def describe_turns(
    kind: str,
    turns: list[Turn],
    *,
    model: str | None,
    stream: bool,
    stateful: bool,
    tools: object,
    canon: bytes,
) -> CallInfo:
    """The call these (role, text) turns and tools make; assistants' roles are "assistant". `canon` names the model."""
    system = estimate_bytes(encode_sorted(tools)) if tools else 0
    history = user = 0
    texts: list[str] = []
    system_texts: list[str] = []
    for role, text in turns:
        texts.append(text)
        tokens = estimate_tokens(text)
        if role == "assistant":  # what came before it was history already then
            history += user + tokens
            user = 0
        elif role in SYSTEM_ROLES:
            system += tokens
            system_texts.append(text)
        else:
            user += tokens
    return CallInfo(
        kind=kind,
        model=model,
        stream=stream,
        stateful=stateful,
        system_tokens=system,
        history_tokens=history,
        user_tokens=user,
        # blake2b: 3 us a KB where sha256 takes 5 (no SHA instructions), and as hard to fool.
        prompt_hash=blake2b(canon, digest_size=16).hexdigest(),
        template_hash=_template_hash(kind, texts[0][:_TEMPLATE_START] if texts and kind != EMBEDDING else ""),
        texts=texts,
        system_text="\n".join(system_texts),
    )


@lru_cache(maxsize=1024)
def _template_hash(kind: str, start: str) -> str:
    """Prompts begin with what the programmer wrote and go on with what changes, so the start of the first text says
    which code it came from; digits are masked. Embeddings have no template: all share one."""
    masked = _DIGITS.sub("0", " ".join(start.split()))[:_TEMPLATE_CHARS]
    return blake2b(f"{kind}\n{masked}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def replace_field(body: bytes, name: str, value: object) -> bytes:
    """The JSON object with another value in one top-level field, every other byte as it was.

    A body that is no object is unchanged; a field that is not there is added.
    """
    try:
        fields = _decode_fields(body)
    except DECODING:
        return body
    new = msgspec.json.encode(value)
    old = fields.get(name)
    fields[name] = msgspec.Raw(new)
    if old is not None:
        pattern = rb'"%b"\s*:\s*(%b)' % (re.escape(name.encode()), re.escape(bytes(old)))
        for place in re.finditer(pattern, body):
            spliced = body[: place.start(1)] + new + body[place.end(1) :]
            if _decode_fields_or_none(spliced) == fields:  # it was the field itself, not one of that name further in
                return spliced
    return msgspec.json.encode(fields)


def _decode_fields_or_none(body: bytes) -> dict[str, msgspec.Raw] | None:
    try:
        return _decode_fields(body)
    except DECODING:
        return None


def dicts(value: object) -> Iterable[dict[str, Any]]:
    """The objects in a list; none when it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else ()


def count(value: object) -> int:
    """A number of tokens, 0 for anything else."""
    return value if type(value) is int and value > 0 else 0  # not a bool


def word(value: object) -> str | None:
    """A text, or None for anything else."""
    return value if isinstance(value, str) else None
