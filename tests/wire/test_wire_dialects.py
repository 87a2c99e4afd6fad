"""What all dialects have in common."""

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples

from paceline.accelerate.cost import cost_usd
from paceline.wire.anthropic import ANTHROPIC
from paceline.wire.call import COUNT, EMBEDDING, LLM, Dialect, ReplyInfo, Usage, replace_field
from paceline.wire.dialects import DIALECTS, dialect_for, dialect_of, without_credentials
from paceline.wire.gemini import GEMINI
from paceline.wire.openai import OPENAI
from paceline.wire.sse import encode

FIELDS = [
    *("model", "messages", "role", "content", "text", "type", "tools", "system", "input", "prompt", "stream", "source"),
    *("contents", "parts", "systemInstruction", "requests", "functionCall", "args", "tool_calls", "function"),
    *("choices", "message", "delta", "usage", "finish_reason", "error", "status", "output", "response", "stop_reason"),
    *("candidates", "finishReason", "usageMetadata", "promptTokenCount", "promptFeedback", "prompt_tokens"),
    *("cache_control", "thinking", "generateContentRequest", "arguments", "index", "conversation"),
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=5),
    max_leaves=15,
)
SMALL = st.none() | st.integers() | st.text(max_size=2) | st.lists(st.text(max_size=2), max_size=2)
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "gemini": "/v1beta/models/m:generateContent"}
both = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)


@pytest.mark.parametrize(
    ("path", "name", "kind"),
    [
        ("/v1/chat/completions", "openai", LLM),
        ("/openai/deployments/our-gpt/chat/completions", "openai", LLM),
        ("/v1beta/openai/chat/completions", "openai", LLM),
        ("/v1/responses", "openai", LLM),
        ("/v1/completions", "openai", LLM),
        ("/v1/embeddings", "openai", EMBEDDING),
        ("/v1/messages", "anthropic", LLM),
        ("/proxy/v1/messages", "anthropic", LLM),
        ("/v1/messages/count_tokens", "anthropic", COUNT),
        ("/v1beta/models/gemini-2.5-flash:generateContent", "gemini", LLM),
        ("/v1beta/models/gemini-2.5-flash:streamGenerateContent", "gemini", LLM),
        ("/v1/projects/p/locations/l/publishers/google/models/gemini-2.5-pro:generateContent", "gemini", LLM),
        ("/v1beta/tunedModels/ours:generateContent", "gemini", LLM),
        ("/v1beta/models/gemini-embedding-001:embedContent", "gemini", EMBEDDING),
        ("/v1beta/models/gemini-embedding-001:batchEmbedContents", "gemini", EMBEDDING),
        ("/v1beta/models/gemini-2.5-flash:countTokens", "gemini", COUNT),
    ],
)
def test_paths_say_who_is_called(path: str, name: str, kind: str) -> None:
    found = dialect_of(path)
    assert found is not None
    assert (found[0].name, found[1]) == (name, kind)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/models",
        "/v1/files",
        "/v1/responses/resp_1",
        "/v1/threads/thread_1/messages",  # OpenAI's, not Anthropic's
        "/v1/messages/batches",
        "/v1beta/models",
        "/v1beta/models/gemini-2.5-flash",
        "/v1beta/models/gemini-2.5-flash:predict",
        "/v1beta/cachedContents",
    ],
)
def test_other_paths_are_no_model_calls(path: str) -> None:
    assert dialect_of(path) is None


@pytest.mark.parametrize(
    ("path", "header", "name"),
    [
        ("/v1/models", (b"authorization", b"Bearer x"), "openai"),
        ("/v1/models", (b"anthropic-version", b"2023-06-01"), "anthropic"),
        ("/v1/files", (b"x-api-key", b"x"), "anthropic"),
        ("/upload/v1beta/files", (b"x-goog-api-key", b"x"), "gemini"),
        ("/v1beta/models", (b"accept", b"*/*"), "gemini"),
        ("/v1/messages", (b"authorization", b"Bearer x"), "anthropic"),
    ],
)
def test_other_paths_have_a_likely_dialect(path: str, header: tuple[bytes, bytes], name: str) -> None:
    assert dialect_for(path, [header]).name == name


def test_credentials_in_a_query_are_set_apart() -> None:
    path = "/v1beta/models/m:generateContent"
    assert without_credentials(f"{path}?alt=sse&key=secret") == (f"{path}?alt=sse", "key=secret")
    assert without_credentials(f"{path}?key=secret") == (path, "key=secret")
    assert without_credentials(f"{path}?alt=sse") == (f"{path}?alt=sse", "")
    assert without_credentials(f"{path}?monkey=1") == (f"{path}?monkey=1", "")


# --- the same answer, plain and streamed, in each dialect -------------------------------------------------------------


def openai_answer(words: list[str], usage: Usage) -> tuple[bytes, list[bytes]]:
    counted = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
    message = {"role": "assistant", "content": "".join(words)}
    plain = {"model": "gpt-4o", "choices": [{"message": message, "finish_reason": "stop"}], "usage": counted}
    chunks: list[dict[str, Any]] = [
        *({"model": "gpt-4o", "choices": [{"delta": {"content": w}}], "usage": None} for w in words),
        {"model": "gpt-4o", "choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": counted},
    ]
    return msgspec.json.encode(plain), [*(encode(msgspec.json.encode(chunk)) for chunk in chunks), encode(b"[DONE]")]


def responses_answer(words: list[str], usage: Usage) -> tuple[bytes, list[bytes]]:
    output = [{"type": "message", "content": [{"type": "output_text", "text": "".join(words)}]}]
    counted = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
    plain = {"model": "gpt-4o", "status": "completed", "output": output, "usage": counted, "error": None}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"model": "gpt-4o", "status": "in_progress", "usage": None}},
        {"type": "response.reasoning_summary_text.delta", "delta": "hm"},
        *({"type": "response.output_text.delta", "delta": w} for w in words),
        {"type": "response.completed", "response": plain},
    ]
    return msgspec.json.encode(plain), [encode(msgspec.json.encode(event)) for event in events]


def anthropic_answer(words: list[str], usage: Usage) -> tuple[bytes, list[bytes]]:
    counted = {
        "input_tokens": usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_tokens - usage.cache_write_1h_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }
    content = [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "".join(words)}]
    plain = {"type": "message", "model": "claude", "content": content, "stop_reason": "end_turn", "usage": counted}
    begun = counted | {"output_tokens": 1, "output_tokens_details": None}
    final = {"output_tokens": usage.output_tokens, "output_tokens_details": counted["output_tokens_details"]}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"model": "claude", "content": [], "stop_reason": None, "usage": begun}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "x"}},
        {"type": "content_block_stop", "index": 0},
        *({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": w}} for w in words),
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": final},
        {"type": "message_stop"},
    ]
    named = (f"event: {event['type']}\n".encode() + encode(msgspec.json.encode(event)) for event in events)
    return msgspec.json.encode(plain), list(named)


def gemini_chunks(words: list[str], usage: Usage) -> tuple[bytes, list[dict[str, Any]]]:
    counted = {
        "promptTokenCount": usage.input_tokens,
        "cachedContentTokenCount": usage.cached_tokens,
        "candidatesTokenCount": usage.output_tokens - usage.reasoning_tokens,
        "thoughtsTokenCount": usage.reasoning_tokens,
    }

    def chunk(parts: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        candidate = {"content": {"parts": parts, "role": "model"}, "index": 0, **more}
        return {"candidates": [candidate], "modelVersion": "gemini-2.5-flash", "usageMetadata": counted}

    thought: dict[str, Any] = {"text": "hm", "thought": True}
    plain = chunk([thought, {"text": "".join(words)}], finishReason="STOP")
    early = {"promptTokenCount": usage.input_tokens, "candidatesTokenCount": 1}
    chunks = [chunk([thought]), *(chunk([{"text": w}]) | {"usageMetadata": early} for w in words)]
    return msgspec.json.encode(plain), [*chunks, chunk([{"text": ""}], finishReason="STOP")]


def gemini_answer(words: list[str], usage: Usage) -> tuple[bytes, list[bytes]]:
    plain, chunks = gemini_chunks(words, usage)
    return plain, [b"data: " + msgspec.json.encode(chunk) + b"\r\n\r\n" for chunk in chunks]


def gemini_array(words: list[str], usage: Usage) -> tuple[bytes, list[bytes]]:
    plain, chunks = gemini_chunks(words, usage)
    pieces = [b",\r\n" + msgspec.json.format(msgspec.json.encode(chunk)) for chunk in chunks]
    return plain, [b"[" + pieces[0][3:], *pieces[1:], b"\n]\n"]


def read(dialect: Dialect, *pieces: bytes) -> ReplyInfo:
    reader = dialect.stream_reader()
    for piece in pieces:
        reader.feed(piece)
    return reader.result()


Answer = Callable[[list[str], Usage], tuple[bytes, list[bytes]]]
ANSWERS: list[tuple[Dialect, Answer]] = [
    (OPENAI, openai_answer),
    (OPENAI, responses_answer),
    (ANTHROPIC, anthropic_answer),
    (GEMINI, gemini_answer),
    (GEMINI, gemini_array),
]
each_answer = pytest.mark.parametrize(("dialect", "answer"), ANSWERS, ids=lambda part: getattr(part, "__name__", ""))


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    fresh, cached, hour, said, thought = (draw(st.integers(0, 300_000)) for _ in range(5))
    return Usage(
        input_tokens=fresh + cached,
        output_tokens=said + thought,
        cached_tokens=cached,
        cache_write_1h_tokens=min(hour, fresh) // 2,
        cache_write_tokens=min(hour, fresh),
        reasoning_tokens=thought,
    )


@each_answer
@examples(40)
@given(words=st.lists(st.text(), max_size=5), usage=usages())
def test_a_streamed_answer_says_what_the_plain_one_says(
    dialect: Dialect, answer: Answer, words: list[str], usage: Usage
) -> None:
    """The same text, the same usage, and so the same cost to the cent."""
    body, events = answer(words, usage)
    plain, streamed = dialect.read_reply(body), read(dialect, b"".join(events))
    assert streamed == plain
    assert plain.complete
    assert plain.text == "".join(words)
    assert plain.usage is not None
    assert plain.usage.input_tokens == usage.input_tokens
    assert plain.usage.output_tokens == usage.output_tokens
    costs = {cost_usd("claude-sonnet-4-5", info.usage, "anthropic") for info in (plain, streamed)}
    assert len(costs) == 1
    assert None not in costs


@each_answer
@examples(40)
@given(cuts=st.lists(st.integers(0, 4000), max_size=20), data=st.data())
def test_a_stream_may_be_cut_anywhere(dialect: Dialect, answer: Answer, cuts: list[int], data: st.DataObject) -> None:
    """However the bytes come, they say the same; and the whole stream but its last event is not complete."""
    _, events = answer(["Hel", "lo \u65c5\u884c", '"}]['], Usage(input_tokens=9, output_tokens=4))
    stream = b"".join(events)
    upto = data.draw(st.integers(0, len(stream)))
    places = [0, *sorted(cut % (upto + 1) for cut in cuts), upto]
    pieces = [stream[start:end] for start, end in itertools.pairwise(places)]
    assert read(dialect, *pieces) == read(dialect, stream[:upto])
    assert not read(dialect, stream[: len(stream) - len(events[-1])]).complete


@each_answer
def test_a_cut_stream_has_text_and_usage_so_far(dialect: Dialect, answer: Answer) -> None:
    """What was said before the cut is there, to be counted."""
    _, events = answer(["Hel", "lo", " there"], Usage(input_tokens=9, output_tokens=400))
    end = next(i for i, event in enumerate(events) if b" there" in event)
    info = read(dialect, b"".join(events[:end]) + events[end][:12])
    assert (info.text, info.complete) == ("Hello", False)
    if dialect is ANTHROPIC:
        assert (info.usage, info.usage_partial) == (Usage(input_tokens=9, output_tokens=3), True)


# --- nothing breaks them ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@both
@examples(40)
@given(call=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6))
def test_any_call_is_described(dialect: Dialect, call: dict[str, Any]) -> None:
    """Whatever fields hold, there is a description, and equal calls have equal ones."""
    path = PATHS[dialect.name]
    canon = dialect.canonical(call)
    info = dialect.describe(LLM, path, call, canon)
    assert info == dialect.describe(LLM, path, call, dialect.canonical(dict(reversed(call.items()))))
    assert info.input_tokens >= 0
    assert dialect.delivery(path, call)


@pytest.mark.slow
@both
@examples(40)
@given(value=JSON, tail=st.binary(max_size=8))
def test_any_answer_is_read(dialect: Dialect, value: Any, tail: bytes) -> None:
    """Whatever an answer or an event holds, reading it raises nothing."""
    body = msgspec.json.encode(value)
    assert isinstance(dialect.read_reply(body + tail), ReplyInfo)
    assert isinstance(read(dialect, encode(body), tail, encode(body)), ReplyInfo)
    assert not dialect.read_reply(tail).complete


@both
def test_a_call_can_go_to_another_model(dialect: Dialect) -> None:
    """Only the model changes, in the body or in the path; spelling and order stay."""
    body = b'{ "messages": [{"model": "old"}],\n "model" :  "old", "n": 1.50, "contents": "\\u00e9" }'
    target, changed = dialect.with_model(f"{PATHS[dialect.name]}?alt=sse", body, "new")
    if dialect is GEMINI:
        assert target == "/v1beta/models/new:generateContent?alt=sse"
    else:
        assert target == f"{PATHS[dialect.name]}?alt=sse"
        assert changed == body.replace(b'"model" :  "old"', b'"model" :  "new"')


@given(st.dictionaries(st.text(max_size=2), SMALL, max_size=5), st.text(max_size=2), SMALL)
def test_one_field_is_replaced_and_no_other(fields: dict[str, Any], name: str, value: Any) -> None:
    body = msgspec.json.encode(fields)
    assert msgspec.json.decode(replace_field(body, name, value)) == fields | {name: value}
    assert replace_field(b"[1, 2", name, value) == b"[1, 2"


@both
def test_only_whole_answers_are_complete(dialect: Dialect) -> None:
    for body in (b"", b"{}", b"nonsense", b"[1]", b'{"error": {"type": "x", "message": "m", "status": "X"}}'):
        assert not dialect.read_reply(body).complete
