"""Which events carry tokens: real streams of the simulated provider, in the four formats."""

import json

import pytest

from paceline.load.token_events import carries_tokens, stated_tokens

OPENAI: list[tuple[dict[str, object], bool]] = [
    ({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}, False),
    ({"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}]}, True),
    ({"choices": [{"index": 0, "delta": {"content": '"'}}]}, True),
    ({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]}, True),
    ({"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}}]}, True),
    ({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, False),
    ({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 7}}, False),
]
OTHERS: list[tuple[dict[str, object], bool]] = [
    ({"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}, "content": []}}, False),
    ({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}, False),
    ({"type": "ping"}, False),
    ({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}}, True),
    ({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{"}}, True),
    ({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}}, False),
    ({"type": "message_stop"}, False),
    ({"candidates": [{"content": {"parts": [{"text": "Hi"}], "role": "model"}}]}, True),
    ({"candidates": [{"finishReason": "STOP"}], "usageMetadata": {"candidatesTokenCount": 5}}, False),
    ({"type": "response.created", "response": {"output": []}}, False),
    ({"type": "response.output_text.delta", "delta": "Hi"}, True),
    ({"type": "response.output_text.done", "text": "Hi there"}, False),
    ({"token": "somebody's own"}, True),
]


@pytest.mark.parametrize("indent", [None, 1])
def test_events_with_text_carry_tokens_and_the_others_do_not(indent: int | None) -> None:
    for event, carries in OPENAI:
        whole = {"object": "chat.completion.chunk", **event}
        assert carries_tokens(json.dumps(whole, indent=indent).encode()) is carries, event
    for event, carries in OTHERS:
        assert carries_tokens(json.dumps(event, indent=indent).encode()) is carries, event
    assert carries_tokens(b"a plain word")


def test_the_tokens_a_stream_states_are_read() -> None:
    assert stated_tokens(b'{"usage": {"prompt_tokens": 3, "completion_tokens": 7}}') == 7
    assert stated_tokens(b'{"usage":{"input_tokens":9,"output_tokens":15}}') == 15
    assert stated_tokens(b'{"usageMetadata": {"candidatesTokenCount": 5, "thoughtsTokenCount": 2}}') == 7
    assert stated_tokens(b'{"choices": []}') is None
