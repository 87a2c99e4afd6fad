"""A prompt in the order in which its provider reads it, and its cache works: tools, system, messages."""

from typing import Any, NamedTuple

import msgspec

_encode = msgspec.json.encode


class Segment(NamedTuple):
    """One piece of a prompt: a field of the call or one of its messages."""

    field: str  # "tools", "system", "messages[0]"
    text: str  # with its role before it


def segments_of(dialect: str, call: dict[str, Any]) -> list[Segment]:
    """The prompt of a call to a language model; empty for shapes not known. Costs 1 us a message."""
    found = []
    tools = call.get("tools")
    if tools:
        found.append(Segment("tools", _encode(tools).decode()))
    if dialect == "gemini":
        names = [name for name in ("systemInstruction", "system_instruction") if name in call]
        found += [Segment(name, _text(call[name], "parts")) for name in names]
        _messages(found, call.get("contents"), "contents", "parts")
    elif dialect == "anthropic":
        if "system" in call:
            found.append(Segment("system", _text({"content": call["system"]}, "content")))
        _messages(found, call.get("messages"), "messages", "content")
    elif dialect == "openai":
        form = call.get("response_format")
        if isinstance(form, dict) and form.get("type") == "json_schema":
            found.append(Segment("response_format", _encode(form).decode()))
        if "instructions" in call:
            found.append(Segment("instructions", str(call["instructions"])))
        for field in ("messages", "input", "prompt"):
            if field in call:
                _messages(found, call[field], field, "content")
                break
    return found


def is_marked(call: dict[str, Any]) -> bool:
    """True when the call asks for caching as Anthropic wants it asked: a `cache_control` somewhere."""
    stack: list[object] = [call.get("system"), call.get("tools"), call.get("messages")]
    if "cache_control" in call:
        return True
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            if "cache_control" in value:
                return True
            stack.append(value.get("content"))
    return False


def _messages(found: list[Segment], value: object, field: str, content: str) -> None:
    if isinstance(value, str):
        found.append(Segment(field, value))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            if isinstance(item, dict):
                found.append(Segment(f"{field}[{i}]", _text(item, content)))


def _text(item: object, content: str) -> str:
    """Role and words of a message; what is not text (images, calls of tools) as JSON."""
    if not isinstance(item, dict):
        return str(item)
    value = item.get(content)
    role = item.get("role", "")
    if isinstance(value, str) and "tool_calls" not in item:
        return f"{role}\n{value}"
    parts = value if isinstance(value, list) else [item]
    words = [part["text"] if _is_text(part) else _encode(part).decode() for part in parts]
    if "tool_calls" in item:
        words.append(_encode(item["tool_calls"]).decode())
    return "\n".join((str(role), *words))


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)
