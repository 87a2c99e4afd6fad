"""What happens to a request at the simulated provider: understood, admitted, answered at its own pace."""

import asyncio
import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec

from paceline.testing import dialect
from paceline.testing.admission import Admission, Ask, Headers, remember
from paceline.testing.answers import VAGUE, Answer, answer
from paceline.testing.config import ProviderConfig
from paceline.testing.dialect import ApiError, ChatCall, Completion
from paceline.testing.draws import Draw
from paceline.testing.structured import as_json
from paceline.testing.vectors import embed
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.openai import decode_object
from paceline.wire.tokens import BYTES_PER_TOKEN, estimate_tokens

AnswerRule = Callable[[list[tuple[str, str]]], str | None]
Answering = Reply | Coroutine[Any, Any, Reply]

_JSON = (b"content-type", b"application/json")
_EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_REMEMBERED_ANSWERS = 1_000  # refused and repeated questions skip the rules
_MERGED_S = 0.001  # pieces due within a millisecond of the wall clock go out together; the total stays exact
_HANG_S = 600.0  # at the provider's pace; then whatever stands in front of a real provider gives up
_KINDS = {dialect.CHAT_PATH: "chat", dialect.EMBEDDINGS_PATH: "embedding"}


class ProviderCall(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the provider saw it."""

    path: str
    model: str
    status: int  # 0: left without an answer
    kind: str = ""  # of the answer: label, verdict, tone, quoted, vague, generic, own (by `rule`), embedding
    turns: list[tuple[str, str]] = []  # (role, text) of a chat
    inputs: list[str] = []  # of an embedding
    input_tokens: int = 0
    output_tokens: int = 0
    stream: bool = False
    key: str = ""  # API key as sent
    fault: str = ""  # error_500, bad_error, timeout, cut_stream, told (by `fail_next`)
    at_s: float = 0.0  # of its arrival, since the provider started, at its pace


class Service:
    """The provider without its socket. `now_s` is a monotonic wall clock; all else is at the provider's pace."""

    def __init__(
        self,
        config: ProviderConfig,
        *,
        speed: float = 1.0,
        seed: int = 0,
        keep_calls: int = 10_000,
        rule: AnswerRule | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calls: deque[ProviderCall] = deque(maxlen=keep_calls)
        self.told: deque[ApiError] = deque()  # what the next model calls are refused with
        self.answered = 0
        self.refused = 0
        self._models = config.models
        self._admission = Admission(config, speed=speed, seed=seed)
        self._speed = speed
        self._rule = rule
        self._now_s = now_s
        self._start_s = now_s()
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()

    def handle(self, request: HttpRequest) -> Answering:
        """Answer one request; what takes the provider time is to be awaited."""
        began_s = self._now_s()
        key = _bearer(request)
        try:
            return self._route(request, key, began_s)
        except ApiError as error:
            self.refused += 1
            name = str((decode_object(request.body) or {}).get("model", ""))
            self._note(began_s, path=request.path, model=name, status=error.status, key=key, fault=error.fault)
            return Reply(error.status, [_JSON, *self._common(0.0), *error.headers], error.body)

    def _route(self, request: HttpRequest, key: str, began_s: float) -> Answering:
        path = request.path
        self._admission.check_key(key)
        if request.method == "GET" and (path == dialect.MODELS_PATH or path.startswith(dialect.MODELS_PATH + "/")):
            return Reply(200, [_JSON, *self._common(0.0)], dialect.models_body(path, list(self._models)))
        if path not in _KINDS:
            raise ApiError(404, f"Invalid URL ({request.method} {path})")
        if request.method != "POST":
            raise ApiError(405, f"Not allowed to {request.method} on {path}. (HINT: use POST)")
        call = decode_object(request.body)
        if call is None:
            raise ApiError(400, "We could not parse the JSON body of your request: it must be a JSON object.")
        if self.told:
            raise self.told.popleft()
        name = call.get("model")
        if not isinstance(name, str) or not name:
            raise ApiError(400, "you must provide a model parameter")
        model = self._models.get(name)
        if model is None:
            raise dialect.unknown_model(name)
        if model.kind != _KINDS[path]:
            raise ApiError(403, f"You are not allowed to use the {model.kind} model {name} on {path}")
        ask = Ask(
            path=path,
            name=name,
            model=model,
            key=key,
            prompt=_digest(name, call.get("messages", call.get("input"))),
            began_s=began_s,
            at_s=self._at_s(began_s),
        )
        return self._embed(call, ask) if model.kind == "embedding" else self._chat(dialect.read_chat(call), ask)

    # --- the two kinds of call -----------------------------------------------------------------------------------

    def _chat(self, asked: ChatCall, ask: Ask) -> Answering:
        _check_length(ask, asked.input_tokens)
        draw = self._admission.draw(ask)
        kind, text = self._written(asked, ask, draw)
        text, finish = _cut(text, asked)
        tokens = max(1, estimate_tokens(text))
        counted = {"input_tokens": asked.input_tokens, "output_tokens": tokens}
        fault, limits = self._admitted(ask, draw, kind=kind, turns=asked.turns, stream=asked.stream, **counted)
        if fault == "timeout":
            return self._hang()
        completion = Completion(
            id=f"chatcmpl-{self.answered:024x}",
            created=int(time.time()),
            model=ask.name,
            text=text,
            tokens=tokens,
            finish=finish,
            input_tokens=asked.input_tokens,
        )
        first_s = _first_s(ask, draw, asked.input_tokens)
        if asked.stream:
            times_s = [first_s + t for t in draw.token_times_s(ask.model, tokens)]
            cut_after = int(draw.cut * tokens) if fault == "cut_stream" else None
            events = self._events(completion, ask.began_s, times_s, usage=asked.include_usage, cut_after=cut_after)
            return Reply(200, [*_EVENTS, *self._common(first_s), *limits], events)
        after_s = first_s + draw.writing_s(ask.model, tokens)
        return self._later(ask, after_s, Reply(200, [_JSON, *self._common(after_s), *limits], completion.body()))

    def _embed(self, call: dict[str, Any], ask: Ask) -> Answering:
        texts, dimensions = dialect.read_embeddings(call, ask.model.dimensions)
        sizes = [estimate_tokens(text) for text in texts]
        tokens = sum(sizes)
        _check_length(ask, max(sizes))
        draw = self._admission.draw(ask)
        fault, limits = self._admitted(ask, draw, kind="embedding", inputs=texts, input_tokens=tokens)
        if fault == "timeout":
            return self._hang()
        vectors = (embed(text, dimensions) for text in texts)
        packed = call.get("encoding_format") == "base64"
        body = dialect.embeddings_body(vectors, model=ask.name, tokens=tokens, packed=packed)
        after_s = _first_s(ask, draw, tokens)
        return self._later(ask, after_s, Reply(200, [_JSON, *self._common(after_s), *limits], body))

    def _written(self, asked: ChatCall, ask: Ask, draw: Draw) -> tuple[str, str]:
        """Kind and text of the answer, before `max_tokens`."""
        own = self._rule(asked.turns) if self._rule else None
        if own is not None:
            return "own", own
        found = self._answers.get(ask.prompt)
        if found is None:
            found = answer(asked.turns)
            remember(self._answers, ask.prompt, found, _REMEMBERED_ANSWERS)
        text = found.text(draw.output_tokens(ask.model, with_context=found.kind != VAGUE))
        if asked.json_object or asked.schema is not None or found.wants_json:
            text = as_json(found, text, asked.schema)
        return found.kind, text

    def _admitted(
        self, ask: Ask, draw: Draw, *, input_tokens: int, output_tokens: int = 0, stream: bool = False, **what: Any
    ) -> tuple[str, Headers]:
        """The fault that befalls the request, and its limits' headers. Raises ApiError 429, 500 and 503."""
        tokens = input_tokens + output_tokens
        limits = self._admission.admit(ask, tokens)
        fault = self._admission.fault(ask, draw, tokens, stream=stream)
        self.answered += 1
        counted = {"input_tokens": input_tokens, "output_tokens": output_tokens, "stream": stream}
        status = 0 if fault == "timeout" else 200
        self._note(
            ask.began_s, path=ask.path, model=ask.name, status=status, key=ask.key, fault=fault, **counted, **what
        )
        return fault, limits

    # --- pace ----------------------------------------------------------------------------------------------------

    async def _events(
        self, completion: Completion, began_s: float, times_s: list[float], *, usage: bool, cut_after: int | None
    ) -> AsyncIterator[bytes]:
        """A streamed answer: each piece at its own time after `began_s`, so lateness never adds up."""
        pieces, encoder = completion.pieces(), completion.events(usage=usage)
        due_s = [began_s + t / self._speed for t in times_s]
        end = len(pieces) if cut_after is None else cut_after
        at = 0
        data = [encoder.first()]
        while at < end:
            together = at + 1
            while together < end and due_s[together] < due_s[at] + _MERGED_S:
                together += 1
            await self._until(due_s[together - 1])
            now_s = self._now_s()
            while together < end and due_s[together] <= now_s:  # we are late: what is due meanwhile goes too
                together += 1
            data += map(encoder.piece, pieces[at:together])
            at = together
            if at < len(pieces):
                yield b"".join(data)
                data = []
        if cut_after is not None:
            msg = "fault: the stream is cut"
            raise ConnectionResetError(msg)
        yield b"".join([*data, encoder.last()])

    async def _later(self, ask: Ask, after_s: float, reply: Reply) -> Reply:
        await self._until(ask.began_s + after_s / self._speed)
        return reply

    async def _hang(self) -> Reply:
        await asyncio.sleep(_HANG_S / self._speed)
        error = ApiError(504, "The server took too long to answer.", "server_error")
        return Reply(error.status, [_JSON, *self._common(_HANG_S)], error.body)

    async def _until(self, due_s: float) -> None:
        wait_s = due_s - self._now_s()
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    # --- bookkeeping ---------------------------------------------------------------------------------------------

    def _common(self, took_s: float) -> Headers:
        """Headers of every reply; `took_s` is at the provider's pace, the header's milliseconds are wall time."""
        return [
            (b"x-request-id", b"req_%032x" % (self.answered + self.refused)),
            (b"openai-processing-ms", b"%d" % round(took_s / self._speed * 1000)),
            (b"x-paceline-speed", f"{self._speed:g}".encode()),
        ]

    def _at_s(self, wall_s: float) -> float:
        return (wall_s - self._start_s) * self._speed

    def _note(self, began_s: float, **fields: Any) -> None:
        if self.calls.maxlen:
            self.calls.append(ProviderCall(at_s=self._at_s(began_s), **fields))


def _first_s(ask: Ask, draw: Draw, input_tokens: int) -> float:
    return draw.ttft_s(ask.model) + ask.model.ttft_per_1000_tokens_s * input_tokens / 1000


def _check_length(ask: Ask, tokens: int) -> None:
    limit = ask.model.context_tokens
    if tokens > limit:
        what = f"This model's maximum context length is {limit} tokens. However, you sent {tokens} tokens."
        raise ApiError(400, f"{what} Please reduce the length of the input.", code="context_length_exceeded")


def _cut(text: str, asked: ChatCall) -> tuple[str, str]:
    """The text up to a stop sequence or the wanted length, and why it ended."""
    ends = [at for stop in asked.stop if (at := text.find(stop)) >= 0]
    text = text[: min(ends)] if ends else text
    if asked.max_tokens is None or estimate_tokens(text) <= asked.max_tokens:
        return text, "stop"
    data = text.encode()[: asked.max_tokens * BYTES_PER_TOKEN]
    return data.decode("utf-8", "ignore"), "length"


def _digest(name: str, asked: object) -> bytes:
    return hashlib.blake2b(msgspec.json.encode([name, asked]), digest_size=16).digest()


def _bearer(request: HttpRequest) -> str:
    scheme, _, key = (request.header("authorization") or "").partition(" ")
    return key.strip() if scheme.casefold() == "bearer" else ""
