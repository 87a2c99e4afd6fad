"""What reading a call and its answer costs: `python -m benchmarks.dialects --json [--quick]`.

For each dialect, CPU in microseconds (process time, best of many short rounds, several times in turn, so that a busy
machine disturbs little) of: decoding a 1 KB call, its canonical form, its description, reading a 0.8 KB plain answer,
and one event of a streamed answer, parsing of the event stream included.
Budget: canonical + describe + read_reply <= 15 us; a stream event <= 3 us.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import msgspec

from paceline.wire.call import LLM, Dialect, decode_object
from paceline.wire.dialects import DIALECTS

SYSTEM = "You answer questions of staff from the handbook passages below. Quote them, or say so. " * 5
QUESTION = "How do I book travel to a conference, and who has to approve it before I may buy the ticket? " * 5
ANSWER = "You book travel in Concur. A supervisor must approve the trip first, then the desk buys the ticket. " * 4
WORDS = 200


def openai() -> tuple[str, dict[str, Any], dict[str, Any], list[bytes]]:
    """Path, call, answer, events of a stream."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    call = {"model": "gpt-4o", "messages": messages, "temperature": 0.2, "max_tokens": 300, "user": "u-17"}
    head = {"id": "chatcmpl-9f3", "created": 1_763_000_000, "model": "gpt-4o-2024-08-06", "system_fingerprint": "fp_1"}
    usage = {
        "prompt_tokens": 212,
        "completion_tokens": 96,
        "total_tokens": 308,
        "prompt_tokens_details": {"cached_tokens": 128, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }
    message = {"role": "assistant", "content": ANSWER, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    reply = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}

    def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _data({**head, "object": "chat.completion.chunk", "choices": [choice]})

    events = [event({"role": "assistant", "content": ""}), *(event({"content": " word"}) for _ in range(WORDS))]
    return "/v1/chat/completions", call, reply, [*events, event({}, "stop"), b"data: [DONE]\n\n"]


def anthropic() -> tuple[str, dict[str, Any], dict[str, Any], list[bytes]]:
    """Path, call, answer, events of a stream."""
    system = [{"type": "text", "text": SYSTEM, "cache_control": {"type": "ephemeral"}}]
    call = {
        "model": "claude-sonnet-4-5",
        "max_tokens": 300,
        "system": system,
        "messages": [{"role": "user", "content": QUESTION}],
        "metadata": {"user_id": "u-17"},
    }
    usage = {
        "input_tokens": 84,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 128,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 96,
        "service_tier": "standard",
    }
    head = {"id": "msg_01", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5-20250929"}
    content = [{"type": "text", "text": ANSWER}]
    reply = {**head, "content": content, "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}

    def event(kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\n".encode() + _data({"type": kind, **fields})

    word = {"type": "text_delta", "text": " word"}
    events = [event("message_start", message={**head, "content": [], "stop_reason": None, "usage": usage})]
    events += [event("content_block_delta", index=0, delta=word) for _ in range(WORDS)]
    events += [event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 96})]
    return "/v1/messages", call, reply, [*events, event("message_stop")]


def gemini() -> tuple[str, dict[str, Any], dict[str, Any], list[bytes]]:
    """Path, call, answer, events of a stream."""
    call = {
        "systemInstruction": {"parts": [{"text": SYSTEM}]},
        "contents": [{"role": "user", "parts": [{"text": QUESTION}]}],
        "generationConfig": {"temperature": 0.2, "maxOutputTokens": 300},
    }
    usage = {
        "promptTokenCount": 212,
        "candidatesTokenCount": 96,
        "totalTokenCount": 308,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 212}],
    }

    def reply(text: str, finish: str | None) -> dict[str, Any]:
        candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
        candidates = [{**candidate, "finishReason": finish} if finish else candidate]
        tail = {"usageMetadata": usage, "modelVersion": "gemini-2.5-flash", "responseId": "r-1"}
        return {"candidates": candidates, **tail}

    events = [*(_data(reply(" word", None)) for _ in range(WORDS)), _data(reply("", "STOP"))]
    return "/v1beta/models/gemini-2.5-flash:generateContent", call, reply(ANSWER, "STOP"), events


SAMPLES = {"openai": openai, "anthropic": anthropic, "gemini": gemini}


def measure(dialect: Dialect, rounds: int) -> dict[str, float]:
    """Microseconds of each step in one dialect."""
    path, call, reply, events = SAMPLES[dialect.name]()
    call_body, reply_body = msgspec.json.encode(call), msgspec.json.encode(reply)
    decoded = decode_object(call_body)
    assert decoded is not None
    canon = dialect.canonical(decoded)
    assert dialect.read_reply(reply_body).complete

    def stream() -> None:
        reader = dialect.stream_reader()
        for event in events:
            reader.feed(event)
        assert reader.result().complete

    figures = {
        "decode_us": _best_us(lambda: decode_object(call_body), rounds),
        "canonical_us": _best_us(lambda: dialect.canonical(decoded), rounds),
        "describe_us": _best_us(lambda: dialect.describe(LLM, path, decoded, canon), rounds),
        "read_reply_us": _best_us(lambda: dialect.read_reply(reply_body, text=False), rounds),
        "stream_event_us": _best_us(stream, rounds, times=1) / len(events),
    }
    return figures | {"call_bytes": len(call_body), "reply_bytes": len(reply_body)}


def _best_us(step: Callable[[], object], rounds: int, times: int = 100) -> float:
    best_s = float("inf")
    for _ in range(rounds):
        began_s = time.process_time()
        for _ in range(times):
            step()
        best_s = min(best_s, time.process_time() - began_s)
    return best_s / times * 1e6


def _data(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object (the default output)")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    args = parser.parse_args()
    passes = [
        {dialect.name: measure(dialect, 10 if args.quick else 100) for dialect in DIALECTS}
        for _ in range(3 if args.quick else 8)
    ]
    result = {}
    for name in passes[0]:
        best = {step: min(figures[name][step] for figures in passes) for step in passes[0][name]}
        best["call_us"] = best["canonical_us"] + best["describe_us"] + best["read_reply_us"]
        result[name] = {step: round(value, 2) for step, value in best.items()}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
