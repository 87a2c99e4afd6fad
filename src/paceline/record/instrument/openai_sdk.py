"""The openai SDK: one llm or embedding span a call, around its own retries; streamed calls end with their stream.

The attempts appear below it as http.client spans. Prompts and answers are looked at for data flow and sizes and are
not stored.
"""

import functools
import inspect
from asyncio import coroutines
from collections.abc import AsyncIterator, Iterable, Iterator
from types import ModuleType
from typing import Any

from paceline.model.span import EMBEDDING, LLM, PROVIDER, STREAM, TTFT_S, USES
from paceline.record.flow import vector_excerpt
from paceline.record.frames import handed_over
from paceline.record.instrument.wrapping import argument, wrap
from paceline.record.recorder import LiveSpan, Recorder
from paceline.record.warn import quietly

_OPERATIONS = {
    "/chat/completions": (LLM, "chat"),
    "/responses": (LLM, "chat"),
    "/embeddings": (EMBEDDING, "embeddings"),
    "/completions": (LLM, "text_completion"),
}
_MAX_OUTPUT = 100_000  # characters of a streamed answer that are remembered until its end


def instrument(recorder: Recorder, module: ModuleType) -> None:
    """Patch SyncAPIClient.request and AsyncAPIClient.request of openai._base_client."""

    def begin(cpu: bool, args: Any, kwargs: Any) -> LiveSpan | None:
        options = argument(args, kwargs, 1, "options")
        body = options.json_data
        operation = next((o for path, o in _OPERATIONS.items() if options.url.endswith(path)), None)
        if operation is None or not isinstance(body, dict):
            return None
        model = str(body.get("model", ""))
        prompt = "\n".join(prompt_texts(body))
        span = recorder.start(operation[0], f"{operation[1]} {model}", callers=True, cpu=cpu, asks=prompt)
        span.fields["model"] = model
        span.attributes[PROVIDER] = "openai"
        if kwargs.get("stream"):
            span.attributes[STREAM] = True
        used = span.trace.flow.uses(prompt)
        if used:
            span.attributes[USES] = used
        return span

    def end(span: LiveSpan, result: Any) -> bool:
        if hasattr(result, "_iterator"):
            span.cpu_ns = None  # between chunks the thread does other work
            _follow(recorder, span, result)
            return True
        _note_answer(span, result)
        return False

    wrap(recorder, module.SyncAPIClient, "request", lambda _, args, kwargs: begin(True, args, kwargs), end)
    wrap(recorder, module.AsyncAPIClient, "request", lambda _, args, kwargs: begin(False, args, kwargs), end)


def instrument_resource(recorder: Recorder, module: ModuleType) -> None:
    """Note who made the coroutine of an async call: in `gather(client...create(...))` its stack shows nobody."""
    for name in ("AsyncCompletions", "AsyncResponses", "AsyncEmbeddings"):
        owner = getattr(module, name, None)
        if owner is not None:
            owner.create = _with_callers(recorder, owner.create)


def _with_callers(recorder: Recorder, original: Any) -> Any:
    async def run(callers: tuple[str, ...], call: Any) -> Any:
        token = handed_over.set(callers)
        try:
            return await call
        finally:
            handed_over.reset(token)

    @functools.wraps(original)
    def create(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run(recorder.frames.chain(), original(self, *args, **kwargs))

    if not inspect.iscoroutinefunction(original):
        return create  # the SDK's own decorator hides that it is one, too
    if hasattr(inspect, "markcoroutinefunction"):
        inspect.markcoroutinefunction(create)
    else:
        create._is_coroutine = coroutines._is_coroutine  # type: ignore[attr-defined] # noqa: SLF001
    return create


def prompt_texts(body: dict[str, Any]) -> Iterator[str]:
    """Every text a request sends to the model: messages, input, instructions, prompt."""
    for key in ("messages", "input", "instructions", "prompt", "system"):
        if key in body:
            yield from _texts(body[key])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key in ("content", "text", "output", "arguments", "function", "tool_calls"):
            if key in value:
                yield from _texts(value[key])
    elif isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        for item in value:
            yield from _texts(item)


def _note_answer(span: LiveSpan, result: Any) -> None:
    """Tokens and data flow of a complete answer: a parsed model, or a raw response already read."""
    raw = getattr(result, "http_response", None)
    data = raw.json() if raw is not None and raw.is_closed else result
    note_usage(span, _get(data, "usage"))
    span.trace.flow.remember(span.hex_id, _output_texts(data))


def _output_texts(data: Any) -> Iterator[str]:
    for choice in _get(data, "choices") or ():
        message = _get(choice, "message")
        text = _get(message, "content") or _get(choice, "text")
        if isinstance(text, str):
            yield text
        for call in _get(message, "tool_calls") or ():
            arguments = _get(_get(call, "function"), "arguments")
            if isinstance(arguments, str):
                yield arguments
    for item in _get(data, "output") or ():
        yield from (t for part in _get(item, "content") or () if isinstance(t := _get(part, "text"), str))
    for row in _get(data, "data") or ():
        vector = _get(row, "embedding")
        if isinstance(vector, list):
            yield vector_excerpt(vector)


def note_usage(span: LiveSpan, usage: Any) -> None:
    """Token counts as the provider gave them, under either of its two spellings."""
    if usage is None:
        return
    details = _get(usage, "prompt_tokens_details") or _get(usage, "input_tokens_details")
    counts = {
        "input_tokens": _get(usage, "prompt_tokens") or _get(usage, "input_tokens"),
        "output_tokens": _get(usage, "completion_tokens") or _get(usage, "output_tokens"),
        "cached_tokens": _get(details, "cached_tokens"),
    }
    span.fields.update({name: int(count) for name, count in counts.items() if count is not None})


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


class _Answer:
    """What a stream has given so far."""

    def __init__(self, recorder: Recorder, span: LiveSpan) -> None:
        self._recorder = recorder
        self._span = span
        self._parts: list[str] = []
        self._chars = 0

    def take(self, event: Any) -> None:
        """One chunk (chat, text) or event (responses)."""
        delta = ""
        for choice in _get(event, "choices") or ():
            delta += _get(_get(choice, "delta"), "content") or _get(choice, "text") or ""
        if _get(event, "type") == "response.output_text.delta":
            delta = _get(event, "delta") or ""
        if delta:
            if not self._parts:
                self._span.attributes[TTFT_S] = self._recorder.elapsed_s(self._span)
            if self._chars < _MAX_OUTPUT:
                self._parts.append(delta)
                self._chars += len(delta)
        note_usage(self._span, _get(event, "usage") or _get(_get(event, "response"), "usage"))

    def end(self, error: BaseException | None = None) -> None:
        """The stream is over: exhausted, closed, abandoned or broken."""
        # Leaving a stream early is the caller's choice, not a failure.
        failed = error if not isinstance(error, GeneratorExit) else None
        if failed is None and self._span.duration_ns < 0:
            self._span.trace.flow.remember(self._span.hex_id, ["".join(self._parts)])
        self._recorder.finish(self._span, failed)


def _follow(recorder: Recorder, span: LiveSpan, stream: Any) -> None:
    """Watch a Stream or AsyncStream through the iterator and `close` that it keeps on itself."""
    answer = _Answer(recorder, span)
    take = quietly(answer.take)
    iterator, close = stream._iterator, stream.close  # noqa: SLF001

    def recorded(items: Iterator[Any]) -> Iterator[Any]:
        try:
            for item in items:
                take(item)
                yield item
        except BaseException as error:
            answer.end(error)
            raise
        answer.end()

    async def recorded_async(items: AsyncIterator[Any]) -> AsyncIterator[Any]:
        try:
            async for item in items:
                take(item)
                yield item
        except BaseException as error:
            answer.end(error)
            raise
        answer.end()

    def recorded_close() -> Any:
        answer.end()
        return close()

    is_async = hasattr(iterator, "__anext__")
    stream._iterator = recorded_async(iterator) if is_async else recorded(iterator)  # noqa: SLF001
    stream.close = recorded_close
