"""What happens to a request at the simulated provider: understood, admitted, answered at its own pace."""

import asyncio
import hashlib
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec

from paceline.testing.admission import Admission, Ask
from paceline.testing.config import Model, ProviderConfig
from paceline.testing.dialects import house_of
from paceline.testing.dialects.house import Encoder, House
from paceline.testing.draws import Draw
from paceline.testing.exchange import ApiError, Block, Completion, Headers, ModelCall, prompt_tokens
from paceline.testing.vectors import embed
from paceline.testing.writing import AnswerRule, Writer
from paceline.wire.call import COUNT, EMBEDDING, decode_object
from paceline.wire.dialects import dialect_of
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.tokens import estimate_tokens

Answering = Reply | Coroutine[Any, Any, Reply]

_JSON = (b"content-type", b"application/json")
_UNCACHED = (b"cache-control", b"no-cache")
_MODELS_PATH = re.compile(r"/v1\w*/models(?:/[^/:]+)?$")
_DATED = re.compile(r"-(?:\d{8}|\d{4}-\d\d-\d\d|latest|\d{3})$")  # how providers name one state of a model
_MERGED_S = 0.001  # pieces due within a millisecond of the wall clock go out together; the total stays exact
_HANG_S = 600.0  # at the provider's pace; then whatever stands in front of a real provider gives up


class ProviderCall(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the provider saw it."""

    path: str
    model: str
    status: int  # 0: left without an answer
    dialect: str = "openai"
    kind: str = (
        ""  # of the answer: label, verdict, tone, quoted, vague, generic, own (by `rule`), tool, embedding, count
    )
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
        self._writer = Writer(rule)
        self._speed = speed
        self._now_s = now_s
        self._start_s = now_s()

    def handle(self, request: HttpRequest) -> Answering:
        """Answer one request; what takes the provider time is to be awaited."""
        began_s = self._now_s()
        house = house_of(request)
        key = house.key_of(request)
        try:
            return self._route(request, house, key, began_s)
        except ApiError as error:
            self.refused += 1
            found = dialect_of(request.path)
            call = decode_object(request.body) or {}
            name = found[0].model_of(request.path, call) if found else call.get("model")
            noted = {"path": request.path, "model": str(name or ""), "dialect": house.name, "key": key}
            self._note(began_s, status=error.status, fault=error.fault, **noted)
            headers, body = house.error(error, self.answered + self.refused)
            return Reply(error.status, [_JSON, *self._common(house, 0.0), *headers, *error.headers], body)

    def _route(self, request: HttpRequest, house: House, key: str, began_s: float) -> Answering:
        path = request.path
        self._admission.check_key(key, house)
        if request.method == "GET" and _MODELS_PATH.match(path):
            listed = {name: model for name, model in self._models.items() if model.provider in (None, house.name)}
            return Reply(200, [_JSON, *self._common(house, 0.0)], house.models(path, listed))
        found = dialect_of(path)
        if found is None:
            raise house.unknown_path(request.method, path)
        if request.method != "POST":
            raise ApiError(405, f"Not allowed to {request.method} on {path}. (HINT: use POST)")
        dialect, kind = found
        call = decode_object(request.body)
        if call is None:
            raise house.not_json()
        if self.told:
            raise self.told.popleft()
        name = dialect.model_of(path, call)
        if not name:
            raise house.no_model()
        known, model = self._model(name, house)
        if (model.kind == "embedding") != (kind == EMBEDDING):
            raise house.wrong_kind(name, model.kind, path)
        ask = Ask(
            request=request,
            house=house,
            name=name,
            known=known,
            model=model,
            key=key,
            prompt=_digest(name, house.prompt_of(call)),
            began_s=began_s,
            at_s=self._at_s(began_s),
        )
        if kind == COUNT:
            return self._count(call, ask)
        if kind == EMBEDDING:
            return self._embed(call, ask)
        return self._write(house.form(path).read(request, call), ask)

    def _model(self, name: str, house: House) -> tuple[str, Model]:
        """The model by its name, or by that without the date at its end. Raises ApiError 404."""
        for known in (name, _DATED.sub("", name)):
            model = self._models.get(known)
            if model is not None and model.provider in (None, house.name):
                return known, model
        raise house.unknown_model(name)

    # --- the kinds of call -------------------------------------------------------------------------------------------

    def _write(self, call: ModelCall, ask: Ask) -> Answering:
        _check_length(ask, call.input_tokens)
        draw = self._admission.draw(ask)
        written = self._writer.write(call, ask.prompt, ask.model, draw)
        counted = {"input_tokens": call.input_tokens, "output_tokens": written.tokens}
        fault, limits = self._admitted(ask, draw, kind=written.kind, turns=call.turns, stream=call.stream, **counted)
        if fault == "timeout":
            return self._hang(ask)
        done = Completion(
            serial=self.answered,
            created=int(time.time()),
            model=ask.name,
            call=call,
            blocks=written.blocks,
            finish=written.finish,
            stop=written.stop,
        )
        form = ask.house.form(ask.request.path)
        first_s = _first_s(ask, draw, call.input_tokens)
        if call.stream:
            times_s = [first_s + t for t in draw.token_times_s(ask.model, written.tokens)]
            pieces = _pieces(done.blocks, times_s, ask.model.event_tokens)
            cut_after = int(draw.cut * len(pieces)) if fault == "cut_stream" else None
            encoder = form.encoder(ask.request, done)
            head = [(b"content-type", encoder.content_type), _UNCACHED, *self._common(ask.house, first_s), *limits]
            return Reply(200, head, self._events(encoder, pieces, ask.began_s, cut_after=cut_after))
        after_s = first_s + draw.writing_s(ask.model, written.tokens)
        return self._later(
            ask, after_s, Reply(200, [_JSON, *self._common(ask.house, after_s), *limits], form.body(done))
        )

    def _embed(self, call: dict[str, Any], ask: Ask) -> Answering:
        texts, dimensions = ask.house.read_embeddings(call, ask.model.dimensions)
        sizes = [estimate_tokens(text) for text in texts]
        tokens = sum(sizes)
        _check_length(ask, max(sizes))
        draw = self._admission.draw(ask)
        fault, limits = self._admitted(ask, draw, kind="embedding", inputs=texts, input_tokens=tokens)
        if fault == "timeout":
            return self._hang(ask)
        body = ask.house.embeddings(ask.request.path, call, (embed(text, dimensions) for text in texts), tokens)
        after_s = _first_s(ask, draw, tokens)
        return self._later(ask, after_s, Reply(200, [_JSON, *self._common(ask.house, after_s), *limits], body))

    def _count(self, call: dict[str, Any], ask: Ask) -> Reply:
        """Counting takes no time here and falls under no limit."""
        turns = ask.house.read_counted(call)
        tokens = prompt_tokens(turns, call.get("tools"))
        self._note_ask(ask, status=200, kind="count", turns=turns, input_tokens=tokens)
        return Reply(200, [_JSON, *self._common(ask.house, 0.0)], ask.house.counted(tokens))

    def _admitted(
        self, ask: Ask, draw: Draw, *, input_tokens: int, output_tokens: int = 0, stream: bool = False, **what: Any
    ) -> tuple[str, Headers]:
        """The fault that befalls the request, and its limits' headers. Raises ApiError 429, 500 and 503 or 529."""
        tokens = input_tokens + output_tokens
        limits = self._admission.admit(ask, tokens)
        fault = self._admission.fault(ask, draw, tokens, stream=stream)
        self.answered += 1
        counted = {"input_tokens": input_tokens, "output_tokens": output_tokens, "stream": stream}
        self._note_ask(ask, status=0 if fault == "timeout" else 200, fault=fault, **counted, **what)
        return fault, limits

    # --- pace --------------------------------------------------------------------------------------------------------

    async def _events(
        self, encoder: Encoder, pieces: list[tuple[int, str, float]], began_s: float, *, cut_after: int | None
    ) -> AsyncIterator[bytes]:
        """A streamed answer: each piece at its own time after `began_s`, so lateness never adds up."""
        due_s = [began_s + at_s / self._speed for *_, at_s in pieces]
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
            data += [encoder.piece(block, text) for block, text, _ in pieces[at:together]]
            at = together
            if at < len(pieces) and (joined := b"".join(data)):
                yield joined
                data = []
        if cut_after is not None:
            msg = "fault: the stream is cut"
            raise ConnectionResetError(msg)
        yield b"".join([*data, encoder.last()])

    async def _later(self, ask: Ask, after_s: float, reply: Reply) -> Reply:
        await self._until(ask.began_s + after_s / self._speed)
        return reply

    async def _hang(self, ask: Ask) -> Reply:
        await asyncio.sleep(_HANG_S / self._speed)
        error = ApiError(504, "The server took too long to answer.")
        headers, body = ask.house.error(error, self.answered + self.refused)
        return Reply(error.status, [_JSON, *self._common(ask.house, _HANG_S), *headers], body)

    async def _until(self, due_s: float) -> None:
        wait_s = due_s - self._now_s()
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    # --- bookkeeping -------------------------------------------------------------------------------------------------

    def _common(self, house: House, took_s: float) -> Headers:
        """Headers of every reply; `took_s` is at the provider's pace, the header's milliseconds are wall time."""
        said = house.headers(self.answered + self.refused, round(took_s / self._speed * 1000))
        return [*said, (b"x-paceline-speed", f"{self._speed:g}".encode())]

    def _at_s(self, wall_s: float) -> float:
        return (wall_s - self._start_s) * self._speed

    def _note_ask(self, ask: Ask, **fields: Any) -> None:
        asked = {"path": ask.request.path, "model": ask.name, "dialect": ask.house.name, "key": ask.key}
        self._note(ask.began_s, **asked, **fields)

    def _note(self, began_s: float, **fields: Any) -> None:
        if self.calls.maxlen:
            self.calls.append(ProviderCall(at_s=self._at_s(began_s), **fields))


def _pieces(blocks: list[Block], times_s: list[float], together: int) -> list[tuple[int, str, float]]:
    """(block, text, seconds) of each event: `together` tokens of one block, due with the last of them."""
    found: list[tuple[int, str, float]] = []
    begin = 0
    for index, block in enumerate(blocks):
        texts = block.pieces()
        for at in range(0, block.tokens, together):
            end = min(at + together, block.tokens)
            found.append((index, "".join(texts[at:end]), times_s[begin + end - 1]))
        begin += block.tokens
    return found


def _first_s(ask: Ask, draw: Draw, input_tokens: int) -> float:
    return draw.ttft_s(ask.model) + ask.model.ttft_per_1000_tokens_s * input_tokens / 1000


def _check_length(ask: Ask, tokens: int) -> None:
    if tokens > ask.model.context_tokens:
        raise ask.house.too_long(ask.model.context_tokens, tokens)


def _digest(name: str, asked: object) -> bytes:
    return hashlib.blake2b(msgspec.json.encode([name, asked]), digest_size=16).digest()
