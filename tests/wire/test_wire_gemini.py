"""Gemini's dialect: what calls ask and what answers say."""

from typing import Any

import msgspec
import pytest

from paceline.wire.call import COUNT, EMBEDDING, LLM, CallInfo, Usage
from paceline.wire.gemini import GEMINI

PATH = "/v1beta/models/gemini-2.5-flash:generateContent"
STREAM = "/v1beta/models/gemini-2.5-flash:streamGenerateContent"


def describe(path: str = PATH, kind: str = LLM, **call: Any) -> CallInfo:
    return GEMINI.describe(kind, path, call, GEMINI.canonical(call))


def content(text: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "parts": [{"text": text}]}


def test_a_call_is_split_by_role() -> None:
    """The system instruction and tools, history with what functions said, and what is asked now."""
    info = describe(
        systemInstruction={"parts": [{"text": "s" * 40}]},
        tools=[{"a": 1}],
        contents=[
            content("u" * 8),
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"q": 1}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"a": 2}}}]},
            {"role": "user", "parts": [{"inlineData": {"data": "x" * 99}}, {"text": "q" * 16}]},
        ],
    )
    assert (info.model, info.stream) == ("gemini-2.5-flash", False)
    assert (info.system_tokens, info.history_tokens, info.user_tokens) == (10 + 3, 2 + 2, 2 + 4)
    assert info.texts == ["s" * 40, "u" * 8, '{"q":1}', '{"a":2}', "q" * 16]


def test_the_model_and_the_delivery_stand_in_the_path() -> None:
    """So they are part of the hash and of the delivery, not of the body."""
    call: dict[str, Any] = {"contents": [content("hi")]}
    other = PATH.replace("flash", "pro")
    assert describe(PATH, **call).prompt_hash != describe(other, **call).prompt_hash
    assert describe(PATH, **call).prompt_hash == describe(STREAM, **call).prompt_hash
    assert describe(PATH, **call, labels={"team": "a"}).prompt_hash == describe(PATH, **call).prompt_hash
    assert (GEMINI.delivery(PATH, call), GEMINI.delivery(STREAM, call)) == (b"plain", b"stream")
    assert GEMINI.is_stream(STREAM, call)
    vertex = "/v1/projects/p/locations/l/publishers/google/models/gemini-2.5-pro:countTokens"
    assert GEMINI.model_of(vertex, {}) == "gemini-2.5-pro"


@pytest.mark.parametrize(
    ("method", "kind", "call", "texts"),
    [
        ("embedContent", EMBEDDING, {"content": content("one")}, ["one"]),
        (
            "batchEmbedContents",
            EMBEDDING,
            {"requests": [{"content": content(t)} for t in ("one", "two")]},
            ["one", "two"],
        ),
        ("countTokens", COUNT, {"contents": [content("one")]}, ["one"]),
        ("countTokens", COUNT, {"generateContentRequest": {"contents": [content("one")]}}, ["one"]),
    ],
)
def test_every_kind_of_call_gives_its_texts(method: str, kind: str, call: dict[str, Any], texts: list[str]) -> None:
    info = describe(f"/v1beta/models/m:{method}", kind, **call)
    assert (info.kind, info.texts) == (kind, texts)


def test_thoughts_are_output_beside_what_is_counted_as_candidates() -> None:
    """And what the cache had is part of the prompt; audio has a price of its own."""
    usage = {
        "promptTokenCount": 100,
        "cachedContentTokenCount": 60,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 30,
        "toolUsePromptTokenCount": 5,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 60}, {"modality": "AUDIO", "tokenCount": 40}],
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 20}],
    }
    call = {"functionCall": {"name": "f", "args": {"city": "Bern"}}}
    parts = [{"text": "hm", "thought": True}, {"text": "Hi"}, call]
    body = {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}], "usageMetadata": usage}
    info = GEMINI.read_reply(msgspec.json.encode(body))
    assert info.text == 'Hi{"city":"Bern"}'
    assert info.usage == Usage(
        input_tokens=105,
        cached_tokens=60,
        output_tokens=50,
        reasoning_tokens=30,
        input_audio_tokens=40,
        output_image_tokens=20,
    )


@pytest.mark.parametrize(
    ("reason", "complete", "refused", "truncated"),
    [
        ("STOP", True, False, False),
        ("MAX_TOKENS", True, False, True),
        ("SAFETY", True, True, False),
        ("RECITATION", True, True, False),
        ("MALFORMED_FUNCTION_CALL", False, False, False),
        (None, False, False, False),
    ],
)
def test_why_an_answer_ended(reason: str | None, complete: bool, refused: bool, truncated: bool) -> None:
    info = GEMINI.read_reply(msgspec.json.encode({"candidates": [{"finishReason": reason}]}))
    assert (info.complete, info.refused, info.truncated, info.finish) == (complete, refused, truncated, reason)


def test_a_blocked_prompt_is_a_refusal() -> None:
    info = GEMINI.read_reply(b'{"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 4}}')
    assert (info.complete, info.refused, info.usage) == (True, True, Usage(input_tokens=4))


@pytest.mark.parametrize("body", [b'{"embedding": {"values": [0.1]}}', b'{"embeddings": []}', b'{"totalTokens": 3}'])
def test_other_answers_are_complete(body: bytes) -> None:
    info = GEMINI.read_reply(body)
    assert (info.complete, info.usage) == (True, None)


def test_an_array_that_was_collected_whole_is_read() -> None:
    """A stream without `alt=sse` may come as an answer that is not known to be a stream."""
    chunks = [{"candidates": [{"content": {"parts": [{"text": t}]}}]} for t in ("Hel", "lo")]
    done = {"candidates": [{"finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 1}}
    info = GEMINI.read_reply(msgspec.json.encode([*chunks, done]))
    assert (info.text, info.complete, info.usage) == ("Hello", True, Usage(input_tokens=1))


def test_an_error_in_an_array_is_named() -> None:
    reader = GEMINI.stream_reader()
    reader.feed(b'[{"candidates": [{"content": {"parts": [{"text": "Hi"}]}}]}\n,{"error": {"status": "UNAVAILABLE"}}]')
    info = reader.result()
    assert (info.text, info.complete, info.error) == ("Hi", False, "UNAVAILABLE")


def test_embeddings_name_their_model_in_the_body_too() -> None:
    body = b'{"requests": [{"model": "models/old", "content": {"parts": []}}], "x": 1.50}'
    target, changed = GEMINI.with_model("/v1beta/models/old:batchEmbedContents?a=b", body, "new")
    assert target == "/v1beta/models/new:batchEmbedContents?a=b"
    assert changed == b'{"requests": [{"model":"models/new","content":{"parts":[]}}], "x": 1.50}'


def test_errors_are_worded_like_the_providers() -> None:
    """With the time to wait in the body, where clients look for it."""
    error = msgspec.json.decode(GEMINI.error_body(429, "m", "gateway_overloaded", retry_after_s=1.5))["error"]
    assert (error["code"], error["status"], error["message"]) == (429, "RESOURCE_EXHAUSTED", "m")
    assert [detail["@type"].rpartition(".")[2] for detail in error["details"]] == ["ErrorInfo", "RetryInfo"]
    assert error["details"][1]["retryDelay"] == "1.5s"
    assert msgspec.json.decode(GEMINI.error_body(503, "m"))["error"]["status"] == "UNAVAILABLE"
    assert msgspec.json.decode(GEMINI.error_body(418, "m"))["error"]["status"] == "INVALID_ARGUMENT"
