"""The simulated provider: OpenAI's API over a real socket, with a pace, limits, faults, and answers to the prompt."""

import asyncio
import base64
import random
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import msgspec

from paceline.testing.answers import Answer, answer
from paceline.testing.buckets import Quota, go_duration
from paceline.testing.config import Model, ProviderConfig
from paceline.testing.draws import Draw
from paceline.testing.vectors import embed
from paceline.wire.openai import canonical, decode_object, error_body, turns_of
from paceline.wire.server import HttpRequest, Reply, Server, serve
from paceline.wire.tokens import BYTES_PER_TOKEN, estimate_tokens

_JSON = (b"content-type", b"application/json")
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
_REMEMBERED_PROMPTS = 200_000
_MERGED_S = 0.001  # pieces due within a millisecond of the wall clock go out together; the total stays exact
_HANG_S = 3600.0
_PATHS = ("/v1/chat/completions", "/v1/embeddings")


class ProviderCall(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the provider saw it."""

    path: str
    model: str
    status: int
    kind: str = ""  # what it was answered with: "label", "verdict", "tone", "quoted", "vague", "embedding"
    turns: list[tuple[str, str]] = []
    input_tokens: int = 0
    output_tokens: int = 0
    stream: bool = False


class _Refusal(Exception):
    def __init__(self, status: int, message: str, type: str, code: str | None = None, headers: Any = ()) -> None:  # noqa: A002
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, type, code)
        self.headers = list(headers)


class SimulatedProvider:
    """A provider for the length of a `with` or `async with` block; `url` is its address (SDKs want `url + "/v1"`).

    Args:
        config: Models, limits, faults; default: the presets without limits.
        speed: How many times faster than real it answers and refills its limits.
        seed: The same seed answers the same traffic with the same pace, whatever the order.
        host: Address to listen on. port: 0 picks a free one.
        keep_calls: How many of the last calls `calls` holds.
    """

    def __init__(
        self,
        config: ProviderConfig | None = None,
        *,
        speed: float = 1.0,
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        keep_calls: int = 10_000,
    ) -> None:
        if speed <= 0:
            msg = f"speed must be above 0; got {speed:g}"
            raise ValueError(msg)
        self.config = config or ProviderConfig()
        self.speed = speed
        self.seed = seed
        self.calls: list[ProviderCall] = []
        self.answered = 0
        self.refused = 0
        self._host, self._port, self._keep_calls = host, port, keep_calls
        self._quotas: dict[tuple[str, str], Quota] = {}
        self._seen: OrderedDict[bytes, int] = OrderedDict()
        self._chain = random.Random(seed)
        self._bad = False
        self._server: Server | None = None
        self._thread: _Thread | None = None

    @property
    def url(self) -> str:
        """The base URL, without /v1."""
        if self._server is None:
            msg = "the provider is not running: use it in a `with` block"
            raise RuntimeError(msg)
        return f"http://{self._host}:{self._server.port}"

    async def __aenter__(self) -> Self:
        self._server = await serve(self._handle, self._host, self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server:
            await self._server.close(grace_s=0.0)

    def __enter__(self) -> Self:
        self._thread = _Thread(self)
        self._thread.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread:
            self._thread.end()

    # -- requests ---------------------------------------------------------------------------------------------------

    async def _handle(self, request: HttpRequest) -> Reply:
        began_s = time.monotonic()
        try:
            return await self._route(request, began_s)
        except _Refusal as refusal:
            self.refused += 1
            call = decode_object(request.body) or {}
            self._note(ProviderCall(path=request.path, model=str(call.get("model", "")), status=refusal.status))
            return Reply(refusal.status, [_JSON, *self._common(), *refusal.headers], refusal.body)

    async def _route(self, request: HttpRequest, began_s: float) -> Reply:
        key = _bearer(request)
        if self.config.api_keys and key not in self.config.api_keys:
            what = "You didn't provide an API key." if not key else "Incorrect API key provided."
            raise _Refusal(401, what, "invalid_request_error", "invalid_api_key")
        if request.path.startswith("/v1/models") and request.method == "GET":
            return self._models(request.path)
        if request.path not in _PATHS:
            raise _Refusal(404, f"Invalid URL ({request.method} {request.path})", "invalid_request_error")
        if request.method != "POST":
            raise _Refusal(405, f"Not allowed to {request.method} on {request.path}", "invalid_request_error")
        call = decode_object(request.body)
        if call is None:
            raise _Refusal(400, "We could not parse the JSON body of your request.", "invalid_request_error")
        name = call.get("model")
        if not isinstance(name, str):
            raise _Refusal(400, "you must provide a model parameter", "invalid_request_error")
        model = self.config.models.get(name)
        wanted = "chat" if request.path == _PATHS[0] else "embedding"
        if model is None or model.kind != wanted:
            message = f"The model `{name}` does not exist or you do not have access to it."
            raise _Refusal(404, message, "invalid_request_error", "model_not_found")
        draw = self._draw(name, canonical(call))
        await self._maybe_fail(draw)
        if wanted == "embedding":
            return await self._embeddings(call, name, model, key, draw, began_s)
        return await self._chat(call, name, model, key, draw, began_s)

    async def _chat(self, call: dict[str, Any], name: str, model: Model, key: str, draw: Draw, began_s: float) -> Reply:
        if not isinstance(call.get("messages"), list) or not call["messages"]:
            raise _Refusal(400, "'messages' must be a non-empty list", "invalid_request_error")
        asked = list(turns_of("llm", call))
        wants_json = isinstance(call.get("response_format"), dict) and "json" in str(
            call["response_format"].get("type")
        )
        text, finish, kind = self._text(call, answer(asked, wants_json=wants_json), model, draw)
        input_tokens = sum(estimate_tokens(t) for _, t in asked)
        output_tokens = estimate_tokens(text)
        stream = call.get("stream") is True
        limits = self._admit(name, model, key, input_tokens + output_tokens)
        self._note(
            ProviderCall(
                path=_PATHS[0],
                model=name,
                status=200,
                kind=kind,
                turns=asked,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                stream=stream,
            )
        )
        usage = {
            "prompt_tokens": input_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
        head = {"id": f"chatcmpl-{self.answered:012d}", "created": int(time.time()), "model": name}
        ttft_s = draw.ttft_s(model)
        if stream:
            options = call.get("stream_options")
            with_usage = isinstance(options, dict) and options.get("include_usage") is True
            cut = draw.share > 1 - self.config.faults.cut_stream
            events = self._events(
                head, text, finish, usage if with_usage else None, model, draw, ttft_s, began_s, cut=cut
            )
            return Reply(200, [_EVENTS, (b"cache-control", b"no-cache"), *self._common(began_s), *limits], events)
        pieces = -(-len(text) // BYTES_PER_TOKEN)
        await self._until(began_s, ttft_s + draw.total_gap_s(model, pieces - 1))
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        body = msgspec.json.encode({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
        return Reply(200, [_JSON, *self._common(began_s), *limits], body)

    def _text(self, call: dict[str, Any], found: Answer, model: Model, draw: Draw) -> tuple[str, str, str]:
        """The text, why it ended, and what sort of answer it is."""
        text = found.text
        if not found.fixed:
            wanted = draw.output_tokens(model, with_context=found.kind == "quoted")
            text = _filled(found, wanted * BYTES_PER_TOKEN)
        limit = call.get("max_completion_tokens") or call.get("max_tokens")
        if isinstance(limit, int) and limit > 0 and estimate_tokens(text) > limit:
            data = text.encode()[: limit * BYTES_PER_TOKEN]
            return data.decode("utf-8", "ignore"), "length", found.kind
        return text, "stop", found.kind

    async def _events(
        self,
        head: dict[str, Any],
        text: str,
        finish: str,
        usage: dict[str, Any] | None,
        model: Model,
        draw: Draw,
        ttft_s: float,
        began_s: float,
        *,
        cut: bool,
    ) -> AsyncIterator[bytes]:
        pieces = [text[i : i + BYTES_PER_TOKEN] for i in range(0, len(text), BYTES_PER_TOKEN)] or [""]
        if cut:
            pieces = pieces[: draw.cut_at(len(pieces))]
        frame = {**head, "object": "chat.completion.chunk"}
        tail = {"usage": None} if usage else {}

        def event(delta: dict[str, str], why: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": why}
            return b"data: " + msgspec.json.encode({**frame, "choices": [choice], **tail}) + b"\n\n"

        first = {"role": "assistant", "content": ""}
        due_s = ttft_s
        await self._until(began_s, due_s)
        yield event(first)
        waiting: list[str] = []
        sent_s = due_s - _MERGED_S * self.speed
        for piece, gap_s in zip(pieces, [0.0, *draw.gaps_s(model, len(pieces) - 1)], strict=True):
            due_s += gap_s
            waiting.append(piece)
            if due_s - sent_s >= _MERGED_S * self.speed:
                await self._until(began_s, due_s)
                sent_s = due_s
                yield event({"content": "".join(waiting)})
                waiting.clear()
        await self._until(began_s, due_s)
        if waiting:
            yield event({"content": "".join(waiting)})
        if cut:
            msg = "fault: the stream is cut"
            raise ConnectionResetError(msg)
        yield event({}, finish)
        if usage:
            yield b"data: " + msgspec.json.encode({**frame, "choices": [], "usage": usage}) + b"\n\n"
        yield b"data: [DONE]\n\n"

    async def _embeddings(
        self, call: dict[str, Any], name: str, model: Model, key: str, draw: Draw, began_s: float
    ) -> Reply:
        texts = _embedding_inputs(call.get("input"))
        if texts is None:
            raise _Refusal(
                400, "'input' must be a string, or a non-empty list of strings or tokens", "invalid_request_error"
            )
        dimensions = call.get("dimensions") or model.dimensions
        if not isinstance(dimensions, int) or not 1 <= dimensions <= 4096:
            raise _Refusal(400, f"'dimensions' must be 1 to 4096; got {dimensions!r}", "invalid_request_error")
        tokens = sum(estimate_tokens(t) for t in texts)
        limits = self._admit(name, model, key, tokens)
        self._note(ProviderCall(path=_PATHS[1], model=name, status=200, kind="embedding", input_tokens=tokens))
        base64_wanted = call.get("encoding_format") == "base64"
        data = []
        for index, text in enumerate(texts):
            vector: Any = embed(text, dimensions)
            if base64_wanted:
                vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = msgspec.json.encode({"object": "list", "data": data, "model": name, "usage": usage})
        await self._until(began_s, draw.ttft_s(model))
        return Reply(200, [_JSON, *self._common(began_s), *limits], body)

    def _models(self, path: str) -> Reply:
        def described(name: str) -> dict[str, Any]:
            return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "paceline-sim"}

        name = path.removeprefix("/v1/models").strip("/")
        if not name:
            body: dict[str, Any] = {"object": "list", "data": [described(n) for n in self.config.models]}
        elif name in self.config.models:
            body = described(name)
        else:
            raise _Refusal(404, f"The model '{name}' does not exist", "invalid_request_error", "model_not_found")
        return Reply(200, [_JSON, *self._common()], msgspec.json.encode(body))

    # -- limits, faults, time -----------------------------------------------------------------------------------------

    def _admit(self, name: str, model: Model, key: str, tokens: int) -> list[tuple[bytes, bytes]]:
        now_s = time.monotonic()
        quota = self._quotas.setdefault((name, key), Quota(model, self.speed, now_s))
        refused = quota.admit(tokens, now_s, failed_count=self.config.failed_count)
        headers = quota.headers(now_s)
        if refused is None:
            return headers
        what, wait_s = refused
        limit = model.requests_per_min if what == "requests" else model.tokens_per_min
        unit = "RPM" if what == "requests" else "TPM"
        message = (
            f"Rate limit reached for {name} on {what} per min ({unit}): Limit {limit:.0f}. "
            f"Please try again in {go_duration(wait_s)}."
        )
        wait = [
            (b"retry-after-ms", str(max(1, -int(-wait_s * 1000 // 1))).encode()),
            (b"retry-after", str(max(1, -int(-wait_s // 1))).encode()),
        ]
        raise _Refusal(429, message, what, "rate_limit_exceeded", [*headers, *wait])

    async def _maybe_fail(self, draw: Draw) -> None:
        faults = self.config.faults
        if faults.p_bad:
            turn = faults.p_good if self._bad else faults.p_bad
            self._bad ^= self._chain.random() < turn
            if self._bad and self._chain.random() < faults.bad_error:
                raise _Refusal(503, "The server is overloaded or not ready yet.", "server_error", "overloaded")
        if draw.share < faults.error_500:
            message = "The server had an error while processing your request. Sorry about that!"
            raise _Refusal(500, message, "server_error")
        if draw.share < faults.error_500 + faults.timeout:
            await asyncio.sleep(_HANG_S)

    def _draw(self, model: str, prompt: bytes) -> Draw:
        occurrence = self._seen.pop(prompt, 0)
        self._seen[prompt] = occurrence + 1
        if len(self._seen) > _REMEMBERED_PROMPTS:
            self._seen.popitem(last=False)
        return Draw(self.seed, model, prompt, occurrence)

    async def _until(self, began_s: float, after_s: float) -> None:
        """Sleep until `after_s` of the provider's time after `began_s`: absolute, so lateness never adds up."""
        wait_s = began_s + after_s / self.speed - time.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    def _common(self, began_s: float | None = None) -> list[tuple[bytes, bytes]]:
        self.answered += began_s is not None
        spent_ms = 0 if began_s is None else round((time.monotonic() - began_s) * 1000)
        return [
            (b"x-request-id", f"req_{self.answered + self.refused:012d}".encode()),
            (b"openai-processing-ms", str(spent_ms).encode()),
            (b"x-paceline-speed", f"{self.speed:g}".encode()),
        ]

    def _note(self, call: ProviderCall) -> None:
        self.calls.append(call)
        if len(self.calls) > self._keep_calls:
            del self.calls[: self._keep_calls // 10 + 1]


class _Thread:
    """Runs a provider on an event loop of its own, for tests that are not async."""

    def __init__(self, provider: SimulatedProvider) -> None:
        self._provider = provider
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="simulated-provider", daemon=True)

    def begin(self) -> None:
        self._thread.start()
        self._ready.wait()
        if self._failure:
            raise self._failure

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with _closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        try:
            async with self._provider:
                self._ready.set()
                await self._stop.wait()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._failure = error
            self._ready.set()


@contextmanager
def _closing(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    asyncio.set_event_loop(loop)
    try:
        yield
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _filled(found: Answer, size: int) -> str:
    """The answer's own text, never cut, then its filler in turn until about `size` characters."""
    parts, length, index = [found.text], len(found.text), 0
    while found.filler and length < size:
        sentence = found.filler[index % len(found.filler)]
        index += 1
        if length + 1 + len(sentence) > size + 40:
            break
        parts.append(sentence)
        length += 1 + len(sentence)
    return " ".join(parts)


def _embedding_inputs(raw: object) -> list[str] | None:
    if isinstance(raw, str):
        return [raw]
    if not isinstance(raw, list) or not raw:
        return None
    if all(isinstance(x, str) for x in raw):
        return list(raw)
    if all(isinstance(x, int) for x in raw):
        return [" ".join(map(str, raw))]
    if all(isinstance(x, list) and all(isinstance(t, int) for t in x) for x in raw):
        return [" ".join(map(str, x)) for x in raw]
    return None


def _bearer(request: HttpRequest) -> str:
    scheme, _, key = (request.header("authorization") or "").partition(" ")
    return key.strip() if scheme.casefold() == "bearer" else ""
