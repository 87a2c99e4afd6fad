"""OpenAI's dialect: what calls ask and what answers say."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.wire.call import CallInfo, Usage, decode_object
from paceline.wire.openai import OPENAI, StreamReader, error_body
from paceline.wire.sse import encode
from paceline.wire.tokens import estimate_tokens

CHAT = "/v1/chat/completions"


def read_call(path: str, body: bytes) -> CallInfo:
    kind, fields = OPENAI.kind_of(path), decode_object(body)
    if kind is None or fields is None:
        return CallInfo()
    return OPENAI.describe(kind, path, fields, OPENAI.canonical(fields))


def call(path: str = CHAT, **fields: Any) -> CallInfo:
    return read_call(path, msgspec.json.encode(fields))


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_a_chat_call_is_split_by_role() -> None:
    """System, history (up to the last answer) and what the user now asks are counted apart."""
    info = call(
        model="gpt-4o",
        stream=True,
        messages=[
            message("system", "s" * 40),
            message("user", "u" * 8),
            message("assistant", "a" * 12),
            message(
                "user", [{"type": "text", "text": "q" * 16}, {"type": "image_url", "image_url": {"url": "x" * 99}}]
            ),
        ],
    )
    assert (info.kind, info.model, info.stream) == ("llm", "gpt-4o", True)
    assert (info.system_tokens, info.history_tokens, info.user_tokens) == (10, 5, 4)
    assert info.input_tokens == 19
    assert info.texts == ["s" * 40, "u" * 8, "a" * 12, "q" * 16]
    assert info.system_text == "s" * 40


@pytest.mark.parametrize(
    ("path", "fields", "texts"),
    [
        ("/v1/embeddings", {"input": "one"}, ["one"]),
        ("/v1/embeddings", {"input": ["one", "two"]}, ["one", "two"]),
        ("/v1/embeddings", {"input": [1, 2, 3]}, []),
        ("/v1/completions", {"prompt": ["one", "two"]}, ["one", "two"]),
        ("/v1/responses", {"instructions": "sys", "input": "hi"}, ["sys", "hi"]),
        (
            "/openai/v1/responses",
            {
                "input": [
                    message("user", [{"type": "input_text", "text": "hi"}]),
                    {"type": "function_call_output", "output": "42"},
                ]
            },
            ["hi", "42"],
        ),
        (
            CHAT,
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{1}"}}]}]},
            ["{1}"],
        ),
    ],
)
def test_every_kind_of_call_gives_its_texts(path: str, fields: dict[str, Any], texts: list[str]) -> None:
    """Embeddings, completions, responses and tool calls are read."""
    info = call(path, model="m", **fields)
    assert info.texts == texts
    assert info.kind == ("embedding" if "embeddings" in path else "llm")


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[1]", b"\xff", b'{"messages": 3, "model": 4}', b"[" * 100_000])
def test_unreadable_calls_are_no_error(body: bytes) -> None:
    """What we cannot read passes: an empty answer, never an exception."""
    assert read_call(CHAT, body).model is None
    assert read_call("/v1/files", body) == CallInfo()


def test_hygiene_fields_do_not_change_the_hash() -> None:
    """Who calls and how it is delivered does not matter; anything that can change the answer does."""
    base: dict[str, Any] = {"model": "m", "messages": [message("user", "hi")]}
    same: list[dict[str, Any]] = [
        {"user": "bob"},
        {"metadata": {"a": "b"}},
        {"stream": True, "stream_options": {"include_usage": True}},
    ]
    other: list[dict[str, Any]] = [{"temperature": 0.1}, {"seed": 1}, {"model": "n"}, {"tools": []}, {"unheard_of": 1}]
    assert {call(**base, **extra).prompt_hash for extra in same} == {call(**base).prompt_hash}
    assert len({call(**{**base, **extra}).prompt_hash for extra in other} | {call(**base).prompt_hash}) == 6


def test_the_template_hash_follows_the_start_of_the_prompt() -> None:
    """Same instructions with other questions are the same template; other instructions are not."""

    def template(system: str, user: str) -> str | None:
        return call(model="m", messages=[message("system", system), message("user", user)]).template_hash

    classify = "Classify the intent of the customer's message into one of these 4 labels: refund, order"
    assert template(classify, "a") == template(classify.replace("4", "12"), "b")
    assert template(classify, "a") != template("Answer kindly", "a")


def test_a_plain_answer_is_read() -> None:
    """Text, tool arguments, usage with cached tokens."""
    info = OPENAI.read_reply(
        msgspec.json.encode(
            {
                "choices": [
                    {"message": {"content": "Hello", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}
                ],
                "usage": {
                    "prompt_tokens": 9,
                    "completion_tokens": 3,
                    "prompt_tokens_details": {"cached_tokens": 4},
                },
            }
        )
    )
    assert info.text == "Hello\n{}"
    assert info.usage == Usage(input_tokens=9, output_tokens=3, cached_tokens=4)
    assert info.complete
    assert not info.refused


@pytest.mark.parametrize(
    ("reply", "complete", "refused"),
    [
        ({"choices": [{"message": {"content": None, "refusal": "no"}}]}, True, True),
        ({"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}, True, True),
        ({"error": {"message": "x"}}, False, False),
        ({"status": "incomplete", "output": []}, False, False),
        ({"status": "completed", "output": [{"content": [{"type": "refusal", "refusal": "no"}]}]}, True, True),
        ({"data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 2, "total_tokens": 2}}, True, False),
    ],
)
def test_refusals_and_errors_are_told_apart(reply: dict[str, Any], complete: bool, refused: bool) -> None:
    """Only complete, willing answers may be kept."""
    info = OPENAI.read_reply(msgspec.json.encode(reply))
    assert (info.complete, info.refused) == (complete, refused)


def delta(text: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text is not None else {}, **fields}
    return encode(msgspec.json.encode({"choices": [choice]}))


def read_stream(*events: bytes, size: int = 7) -> StreamReader:
    reader, stream = StreamReader(), b"".join(events)
    for start in range(0, len(stream), size):
        reader.feed(stream[start : start + size])
    return reader


def test_a_stream_is_read_in_pieces() -> None:
    """Deltas add up, usage comes from the last chunk, [DONE] completes it."""
    usage = encode(b'{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}')
    info = read_stream(delta("Hel"), delta("lo"), delta(finish_reason="stop"), usage, encode(b"[DONE]")).result()
    assert (info.text, info.complete, info.refused) == ("Hello", True, False)
    assert info.usage == Usage(input_tokens=5, output_tokens=2)


def test_a_cut_stream_is_not_complete() -> None:
    """Without its final event a stream is not whole, nor after an error in it."""
    assert not read_stream(delta("Hel")).result().complete
    failed = read_stream(delta("Hel"), encode(b'{"error": {"message": "overloaded"}}'), encode(b"[DONE]")).result()
    assert (failed.text, failed.complete) == ("Hel", False)
    assert not read_stream(delta("x"), encode(b"not json"), encode(b"[DONE]")).result().complete


def test_a_responses_stream_is_read() -> None:
    """The Responses API ends with response.completed, which holds the usage."""
    events = [
        {"type": "response.created", "response": {}},
        {"type": "response.output_text.delta", "delta": "Hi"},
        {"type": "response.completed", "response": {"usage": {"input_tokens": 3, "output_tokens": 1}}},
    ]
    info = read_stream(*(encode(msgspec.json.encode(event)) for event in events)).result()
    assert (info.text, info.complete, info.usage) == ("Hi", True, Usage(input_tokens=3, output_tokens=1))


def test_errors_are_worded_like_the_providers() -> None:
    """The type follows from the status."""
    error = msgspec.json.decode(error_body(429, "slow down", code="x"))["error"]
    assert error == {"message": "slow down", "type": "rate_limit_error", "param": None, "code": "x"}
    assert msgspec.json.decode(error_body(502, "m"))["error"]["type"] == "server_error"
    assert msgspec.json.decode(error_body(400, "m"))["error"]["type"] == "invalid_request_error"


@given(st.text(), st.text())
def test_tokens_follow_the_bytes(left: str, right: str) -> None:
    """Nothing is no token, anything at least one; joining texts never costs more than one apart."""
    assert estimate_tokens("") == 0
    both, apart = estimate_tokens(left + right), estimate_tokens(left) + estimate_tokens(right)
    assert apart - 1 <= both <= apart


def test_tokens_of_known_texts() -> None:
    """Four characters of English a token; three bytes each for Chinese characters."""
    assert estimate_tokens("abcdefgh") == 2
    assert estimate_tokens("abcdefghi") == 3
    assert estimate_tokens("你好世界") == 3


def test_an_azure_deployment_is_named_in_the_path() -> None:
    """Two deployments asked the same are two questions."""
    asked: dict[str, Any] = {"messages": [message("user", "hi")]}
    paths = [f"/openai/deployments/{name}/chat/completions" for name in ("a", "b")]
    infos = [OPENAI.describe("llm", path, asked, OPENAI.canonical(asked)) for path in paths]
    assert [info.model for info in infos] == ["a", "b"]
    assert infos[0].prompt_hash != infos[1].prompt_hash


def test_how_an_answer_is_delivered_is_told_apart() -> None:
    """Usage in a stream is asked for in its options, so streams with and without it are different bytes."""
    calls: list[dict[str, Any]] = [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}]
    assert len({OPENAI.delivery(CHAT, asked) for asked in calls}) == 3
    assert len({OPENAI.canonical(asked) for asked in calls}) == 1


@pytest.mark.parametrize(
    ("reply", "complete", "refused", "truncated"),
    [
        ({"choices": [{"message": {"content": "Hel"}, "finish_reason": "length"}]}, True, False, True),
        (
            {"status": "incomplete", "output": [], "incomplete_details": {"reason": "max_output_tokens"}},
            True,
            False,
            True,
        ),
        ({"status": "incomplete", "output": [], "incomplete_details": {"reason": "content_filter"}}, True, True, False),
        ({"status": "failed", "output": [], "error": {"code": "server_error"}}, False, False, False),
        ({"status": "in_progress", "output": []}, False, False, False),
    ],
)
def test_why_an_answer_ended(reply: dict[str, Any], complete: bool, refused: bool, truncated: bool) -> None:
    """The end of its length is an end; plain and streamed answers agree."""
    plain = OPENAI.read_reply(msgspec.json.encode(reply))
    assert (plain.complete, plain.refused, plain.truncated) == (complete, refused, truncated)
    if "status" in reply and reply["status"] != "in_progress":
        event = {"type": f"response.{reply['status']}", "response": reply}
        streamed = read_stream(encode(msgspec.json.encode(event))).result()
        assert (streamed.complete, streamed.refused, streamed.truncated) == (complete, refused, truncated)


def test_tool_calls_and_refusals_are_read_from_a_stream() -> None:
    first = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a"'}}]}
    chunks: list[Any] = [first, {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}, {"refusal": "no"}]
    events = [encode(msgspec.json.encode({"choices": [{"delta": d}]})) for d in chunks]
    info = read_stream(*events, encode(b"[DONE]")).result()
    assert (info.text, info.refused, info.complete) == ('{"a":1}', True, True)


def test_what_the_provider_keeps_makes_a_call_stateful() -> None:
    assert call("/v1/responses", input="x", conversation="conv_1").stateful
    assert not call("/v1/responses", input="x", previous_response_id="resp_1").stateful


def test_reasoning_and_audio_tokens_are_counted() -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 30,
        "prompt_tokens_details": {"audio_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 3},
    }
    info = OPENAI.read_reply(msgspec.json.encode({"choices": [], "usage": usage}))
    assert info.usage == Usage(
        input_tokens=9, output_tokens=30, input_audio_tokens=4, reasoning_tokens=20, output_audio_tokens=3
    )
