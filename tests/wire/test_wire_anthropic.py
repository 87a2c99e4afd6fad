"""Anthropic's dialect: what calls ask and what answers say."""

from typing import Any

import msgspec
import pytest

from paceline.wire.anthropic import ANTHROPIC
from paceline.wire.call import COUNT, LLM, CallInfo, Usage
from paceline.wire.sse import encode

MARK = {"cache_control": {"type": "ephemeral"}}
TOOL: dict[str, Any] = {
    "name": "find",
    "input_schema": {"type": "object", "properties": {"cache_control": {"type": "string"}}},
}


def describe(kind: str = LLM, **call: Any) -> CallInfo:
    return ANTHROPIC.describe(kind, "/v1/messages", call, ANTHROPIC.canonical(call))


def test_a_call_is_split_by_role() -> None:
    """Tools and the system prompt, history with the results of tools, and what is asked now; images count nothing."""
    info = describe(
        model="claude-sonnet-4-5",
        stream=True,
        system=[{"type": "text", "text": "s" * 40}],
        tools=[{"name": "f"}],
        messages=[
            {"role": "user", "content": "u" * 8},
            {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"q": 1}}]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "content": [{"type": "text", "text": "r" * 12}]},
                    {"type": "image", "source": {"type": "base64", "data": "x" * 99}},
                    {"type": "text", "text": "q" * 16},
                ],
            },
        ],
    )
    assert (info.kind, info.model, info.stream, info.stateful) == (LLM, "claude-sonnet-4-5", True, False)
    assert (info.system_tokens, info.history_tokens, info.user_tokens) == (10 + 4, 2 + 2, 3 + 4)
    assert info.texts == ["s" * 40, "u" * 8, '{"q":1}', "r" * 12, "q" * 16]
    assert info.system_text == "s" * 40


def test_marks_of_the_prompt_cache_and_names_of_users_change_nothing() -> None:
    """Where marks may stand they are hygiene; what only looks like one, in a tool's schema or arguments, is not."""
    base: dict[str, Any] = {
        "model": "m",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "r"}]}]}
        ],
        "tools": [TOOL],
    }
    result: Any = {"type": "tool_result", "content": [{"type": "text", "text": "r", **MARK}], **MARK}
    marked = base | {
        "system": [{"type": "text", "text": "s", **MARK}],
        "messages": [{"role": "user", "content": [result]}],
        "tools": [TOOL | MARK],
        "metadata": {"user_id": "bob"},
        "stream": True,
        **MARK,
    }
    assert ANTHROPIC.canonical(marked) == ANTHROPIC.canonical(base)
    assert b"cache_control" in ANTHROPIC.canonical(base)
    arguments = {"type": "tool_use", "name": "find", "input": {"cache_control": "x"}}
    asked: dict[str, Any] = {"messages": [{"role": "assistant", "content": [arguments]}]}
    assert ANTHROPIC.canonical(asked) != ANTHROPIC.canonical(
        {"messages": [{"role": "assistant", "content": [arguments | {"input": {}}]}]}
    )


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.1},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"tools": [TOOL]},
        {"tool_choice": {"type": "any"}},
        {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
        {"system": "s"},
        {"unheard_of": 1},
    ],
)
def test_what_changes_the_answer_changes_the_hash(change: dict[str, Any]) -> None:
    base: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    assert describe(**base, **change).prompt_hash != describe(**base).prompt_hash
    assert {b"anthropic-beta", b"anthropic-version"} == ANTHROPIC.key_headers


def test_usage_counts_what_the_cache_read_and_wrote_as_input() -> None:
    """Anthropic counts them beside the input, everyone else as part of it."""
    info = ANTHROPIC.read_reply(
        msgspec.json.encode(
            {
                "type": "message",
                "model": "claude-sonnet-4-5-20250929",
                "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"city": "Bern"}}],
                "stop_reason": "tool_use",
                "usage": {
                    "input_tokens": 10,
                    "cache_read_input_tokens": 300,
                    "cache_creation_input_tokens": 200,
                    "cache_creation": {"ephemeral_5m_input_tokens": 150, "ephemeral_1h_input_tokens": 50},
                    "output_tokens": 7,
                },
            }
        )
    )
    assert info.usage == Usage(
        input_tokens=510, cached_tokens=300, cache_write_tokens=200, cache_write_1h_tokens=50, output_tokens=7
    )
    assert (info.text, info.complete, info.model) == (
        '{"city": "Bern"}'.replace(" ", ""),
        True,
        "claude-sonnet-4-5-20250929",
    )


@pytest.mark.parametrize(
    ("stop", "refused", "truncated"),
    [("end_turn", False, False), ("max_tokens", False, True), ("refusal", True, False), ("pause_turn", False, False)],
)
def test_why_an_answer_ended(stop: str, refused: bool, truncated: bool) -> None:
    info = ANTHROPIC.read_reply(msgspec.json.encode({"type": "message", "content": [], "stop_reason": stop}))
    assert (info.complete, info.refused, info.truncated, info.finish) == (True, refused, truncated, stop)


def test_an_error_in_a_stream_is_named() -> None:
    """A stream that begins well may still end in an error event."""
    reader = ANTHROPIC.stream_reader()
    started = {"type": "message_start", "message": {"usage": {"input_tokens": 4, "output_tokens": 1}}}
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    for event in (started, overloaded, {"type": "message_stop"}):
        reader.feed(encode(msgspec.json.encode(event)))
    info = reader.result()
    assert (info.complete, info.error, info.usage_partial) == (False, "overloaded_error", True)


def test_counting_tokens_has_an_answer_of_its_own() -> None:
    info = ANTHROPIC.read_reply(b'{"input_tokens": 14}')
    assert (info.complete, info.usage) == (True, None)
    assert describe(COUNT, model="m", messages=[{"role": "user", "content": "x" * 8}]).input_tokens == 2


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (429, "rate_limit_error"), (502, "api_error"), (529, "overloaded_error")],
)
def test_errors_are_worded_like_the_providers(status: int, kind: str) -> None:
    said = msgspec.json.decode(ANTHROPIC.error_body(status, "m"))
    assert said == {"type": "error", "error": {"type": kind, "message": "m"}}
    coded = msgspec.json.decode(ANTHROPIC.error_body(status, "m", "gateway_overloaded"))
    assert coded["error"]["details"] == {"error_code": "gateway_overloaded"}


def test_a_container_is_kept_by_the_provider() -> None:
    assert describe(model="m", container="c_1").stateful
