"""OpenAI's Responses API: items instead of messages, and a stream of events with names."""

from typing import Any

import msgspec

from paceline.testing.dialects.house import event
from paceline.testing.dialects.openai_chat import effort_tokens, max_tokens, tool_choice, tool_of
from paceline.testing.exchange import (
    LENGTH,
    TEXT,
    THOUGHT,
    TOOL,
    ApiError,
    Block,
    Completion,
    ModelCall,
    prompt_tokens,
)
from paceline.wire.call import LLM, dicts
from paceline.wire.http import HttpRequest
from paceline.wire.openai import turns_of


class ResponsesForm:
    """`/v1/responses`."""

    def read(self, request: HttpRequest, call: dict[str, Any]) -> ModelCall:
        """Check and take a call apart."""
        if not call.get("input"):
            what = "Missing required parameter: 'input'."
            raise ApiError(400, what, code="missing_required_parameter", param="input")
        if call.get("previous_response_id") or call.get("conversation"):
            raise ApiError(400, "the simulated provider keeps no responses; send the whole input")
        turns = list(turns_of(LLM, call))
        text = call.get("text")
        form = text.get("format") if isinstance(text, dict) else None
        form = form if isinstance(form, dict) else {}
        schema = form.get("schema") if form.get("type") == "json_schema" else None
        reasoning = call.get("reasoning")
        reasoning = reasoning if isinstance(reasoning, dict) else {}
        tools = [tool_of(tool) for tool in dicts(call.get("tools")) if tool.get("type") == "function"]
        return ModelCall(
            turns=turns,
            input_tokens=prompt_tokens(turns, call.get("tools")),
            max_tokens=max_tokens(call, "max_output_tokens"),
            stream=call.get("stream") is True,
            json_object=form.get("type") == "json_object",
            schema=schema if isinstance(schema, dict) else None,
            tools=tools,
            tool_choice=tool_choice(call.get("tool_choice"), tools),
            thought_tokens=effort_tokens(reasoning.get("effort")),
            show_thoughts=bool(reasoning.get("summary")),
        )

    def body(self, done: Completion) -> bytes:
        """The plain answer."""
        return msgspec.json.encode(_response(done, _status(done)))

    def encoder(self, request: HttpRequest, done: Completion) -> "ResponsesEncoder":
        """The streamed answer."""
        return ResponsesEncoder(done)


RESPONSES = ResponsesForm()


class ResponsesEncoder:
    """Events of a response: it, its items, their parts and their deltas, each begun and done."""

    content_type = b"text/event-stream; charset=utf-8"

    def __init__(self, done: Completion) -> None:
        self._done = done
        self._number = -1  # of the event
        self._open: int | None = None  # block that is begun

    def first(self) -> bytes:
        """The response begins."""
        begun = _response(self._done, "in_progress")
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def piece(self, block: int, text: str) -> bytes:
        """Some text, arguments of a call, or a summary of thoughts."""
        turn = b""
        if block != self._open:
            turn = self._close() + self._begin(block)
        part = self._done.blocks[block]
        if part.kind == THOUGHT and not part.shown:
            return turn
        delta: dict[str, Any] = {"delta": text} | ({"logprobs": []} if part.kind == TEXT else {})
        return turn + self._event(f"{_NAMES[part.kind]}.delta", **self._place(block), **delta)

    def last(self) -> bytes:
        """The last item and the response are done."""
        status = _status(self._done)
        return self._close() + self._event(f"response.{status}", response=_response(self._done, status))

    def _begin(self, block: int) -> bytes:
        self._open = block
        part = self._done.blocks[block]
        item = _item(self._done, block, "in_progress")
        begun = self._event("response.output_item.added", output_index=block, item=item)
        if part.kind == TEXT:
            return begun + self._event("response.content_part.added", **self._place(block), part=_text_part(""))
        if part.kind == THOUGHT and part.shown:
            summary = {"type": "summary_text", "text": ""}
            return begun + self._event("response.reasoning_summary_part.added", **self._place(block), part=summary)
        return begun

    def _close(self) -> bytes:
        block, self._open = self._open, None
        if block is None:
            return b""
        item = _item(self._done, block, "completed")
        return self._ended(block) + self._event("response.output_item.done", output_index=block, item=item)

    def _ended(self, block: int) -> bytes:
        """The text of a block is whole."""
        part, place = self._done.blocks[block], self._place(block)
        if part.kind == TOOL:
            said = {"arguments": part.text, "name": part.name}
            return self._event("response.function_call_arguments.done", **place, **said)
        if part.kind == TEXT:
            text = self._event("response.output_text.done", **place, text=part.text, logprobs=[])
            return text + self._event("response.content_part.done", **place, part=_text_part(part.text))
        if not part.shown:
            return b""
        text = self._event("response.reasoning_summary_text.done", **place, text=part.text)
        summary = {"type": "summary_text", "text": part.text}
        return text + self._event("response.reasoning_summary_part.done", **place, part=summary)

    def _place(self, block: int) -> dict[str, Any]:
        part = self._done.blocks[block]
        index = {TEXT: {"content_index": 0}, THOUGHT: {"summary_index": 0}}.get(part.kind, {})
        return {"item_id": _item_id(self._done, block), "output_index": block, **index}

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **fields}, kind)


_NAMES = {
    TEXT: "response.output_text",
    TOOL: "response.function_call_arguments",
    THOUGHT: "response.reasoning_summary_text",
}
_PREFIXES = {TEXT: "msg", TOOL: "fc", THOUGHT: "rs"}


def _status(done: Completion) -> str:
    return "incomplete" if done.finish == LENGTH else "completed"


def _item_id(done: Completion, block: int) -> str:
    return f"{_PREFIXES[done.blocks[block].kind]}_{done.serial:028x}{block:04x}"


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item(done: Completion, block: int, status: str) -> dict[str, Any]:
    """One item of the output; empty while it is in progress."""
    part: Block = done.blocks[block]
    text = part.text if status == "completed" else ""
    whole = {"id": _item_id(done, block), "status": status}
    if part.kind == TOOL:
        call_id = f"call_{done.serial:020x}{block:04x}"
        return whole | {"type": "function_call", "call_id": call_id, "name": part.name, "arguments": text}
    if part.kind == THOUGHT:
        summary = [{"type": "summary_text", "text": text}] if part.shown and text else []
        return {"id": whole["id"], "type": "reasoning", "summary": summary}
    content = [_text_part(text)] if status == "completed" else []
    return whole | {"type": "message", "role": "assistant", "content": content}


def _response(done: Completion, status: str) -> dict[str, Any]:
    ended = status != "in_progress"
    usage = {
        "input_tokens": done.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": done.output_tokens,
        "output_tokens_details": {"reasoning_tokens": done.thought_tokens},
        "total_tokens": done.input_tokens + done.output_tokens,
    }
    return {
        "id": f"resp_{done.serial:032x}",
        "object": "response",
        "created_at": done.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "max_output_tokens": done.call.max_tokens,
        "metadata": {},
        "model": done.model,
        "output": [_item(done, i, "completed") for i in range(len(done.blocks))] if ended else [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage if ended else None,
    }
