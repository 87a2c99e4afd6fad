"""A call taken apart: which messages it has, whose they are, where their texts stand. Pure.

Three dialects, four shapes: OpenAI's `messages`, `input` (Responses) and `prompt`, Anthropic's `messages` with `system`
apart, Gemini's `contents` with `systemInstruction`. A shape not known here is no conversation, and is left alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

SYSTEM, USER, OTHER = "system", "user", "other"
Path = tuple[str | int, ...]

_SYSTEM_ROLES = ("system", "developer")
# Parts and items of which only words are lost when they go with their exchange. All else (images, audio, files, what
# is invented tomorrow) keeps its exchange.
_WORDS_NAMES = (
    "message text input_text output_text refusal thinking redacted_thinking reasoning tool_use tool_result "
    "server_tool_use web_search_tool_result function_call function_call_output custom_tool_call "
    "custom_tool_call_output web_search_call file_search_call mcp_call mcp_list_tools"
)
_WORDS = frozenset(_WORDS_NAMES.split())
_GEMINI_WORDS = frozenset({"text", "thought", "thoughtSignature", "functionCall", "functionResponse"})
_RESULTS = ("tool_result", "web_search_tool_result")
_CONTENT = frozenset(("content", "output", "parts"))  # where messages, tool results and their like hold parts
# Not words of the prompt: bytes, addresses, signatures and names of things.
_NOT_WORDS_NAMES = (
    "data url image_url file_data fileUri file_id signature thoughtSignature encrypted_content id call_id "
    "tool_call_id tool_use_id type role mimeType media_type cache_control"
)
_NOT_WORDS = frozenset(_NOT_WORDS_NAMES.split())


@dataclass(slots=True)
class Text:
    """One text of the call, and where it stands in it."""

    path: Path
    role: str  # SYSTEM or USER
    item: int | None  # index of its message; None: not in a message
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """One call. `exchanges` are (start, end) in `items`: a user's messages and all that answers them, oldest first.

    Tool calls, their results and reasoning stand inside an exchange, so exchanges can go without parting them.
    """

    field: str  # of the call, that holds `items`
    items: list[Any]
    roles: list[str]
    exchanges: list[tuple[int, int]]
    texts: list[Text]  # of the user and the system, in order
    system: list[Any]  # what stands apart from the messages

    @property
    def current(self) -> int:
        """Index of the last exchange's first message: from there on nothing goes."""
        return self.exchanges[-1][0] if self.exchanges else 0

    def history(self) -> list[tuple[int, int]]:
        """Exchanges before the last."""
        return self.exchanges[:-1]

    def messages(self, exchange: tuple[int, int]) -> list[int]:
        """What of an exchange can go: everything but system messages."""
        return [i for i in range(*exchange) if self.roles[i] != SYSTEM]

    def is_turn(self, index: int) -> bool:
        """True for what the user or the model said in words; calls of tools and their results are none."""
        item = self.items[index]
        if self.roles[index] != OTHER or item.get("role") not in ("assistant", "model"):
            return self.roles[index] == USER
        content = item.get("content", item.get("parts"))
        return isinstance(content, str) or any(True for _ in _texts(content, (), OTHER, None))

    def must_stay(self, exchange: tuple[int, int]) -> bool:
        """True when more than words would be lost: images, files, references to what is not in the call."""
        return any(_holds_more(self.items[i]) for i in range(*exchange))


def read_conversation(dialect: str, call: dict[str, Any]) -> Conversation | None:
    """Take a call to a language model apart, or None where its shape is not known. Costs about 1 us a message."""
    if dialect == "openai":
        field = next((name for name in ("messages", "input", "prompt") if name in call), "")
        apart = ["instructions"] if field == "input" else []
    elif dialect == "anthropic":
        field, apart = "messages", ["system"]
    elif dialect == "gemini":
        field, apart = "contents", [name for name in ("systemInstruction", "system_instruction") if name in call]
    else:
        return None
    return _read(call, field, "parts" if dialect == "gemini" else "content", apart)


def _read(call: dict[str, Any], field: str, content: str, apart: list[str]) -> Conversation | None:
    value = call.get(field)
    texts = [text for name in apart for text in _texts(call.get(name), (name,), SYSTEM, None)]
    system = [call.get(name) for name in apart]
    if isinstance(value, str):
        texts.append(Text((field,), USER, None, value))
        return Conversation(field, [], [], [], texts, system)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return None
    roles = [_role(item, content) for item in value]
    for i, (role, item) in enumerate(zip(roles, value, strict=True)):
        if role != OTHER:
            inner = item.get(content)
            if type(inner) is str:  # most are, and this is the path of every call
                texts.append(Text((field, i, content), role, i, inner))
            else:
                texts += _texts(inner, (field, i, content), role, i)
    return Conversation(field, value, roles, _exchanges(roles), texts, system)


def _role(item: dict[str, Any], content: str) -> str:
    """Whose message it is. A message with results of tools is no user's, whatever its role says."""
    role = item.get("role")
    if role is None and content == "parts":
        role = USER  # Gemini's default
    if role != USER:
        return SYSTEM if role in _SYSTEM_ROLES else OTHER
    if item.get("type", "message") != "message":
        return OTHER
    parts = item.get(content)
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict) and (part.get("type") in _RESULTS or "functionResponse" in part):
            return OTHER
    return USER


def _exchanges(roles: list[str]) -> list[tuple[int, int]]:
    """Spans that begin where a user speaks after somebody else did; what stands before the first is its own span."""
    found = []
    start, before = 0, None
    for i, role in enumerate(roles):
        if role == SYSTEM:
            continue
        if role == USER and before == OTHER:
            found.append((start, i))
            start = i
        before = role
    if before is not None:
        found.append((start, len(roles)))
    return found


def _texts(value: object, path: Path, role: str, item: int | None) -> Iterator[Text]:
    """Texts of a content: a string, parts with a `text`, or Gemini's object with `parts`."""
    if isinstance(value, dict):
        value, path = value.get("parts"), (*path, "parts")
    if isinstance(value, str):
        yield Text(path, role, item, value)
    elif isinstance(value, list):
        for i, part in enumerate(value):
            if isinstance(part, dict) and isinstance(part.get("text"), str) and not part.get("thought"):
                yield Text((*path, i, "text"), role, item, part["text"])


def _holds_more(item: dict[str, Any]) -> bool:
    """True when a message holds anything but words, tool calls and their results."""
    if item.get("type", "message") not in _WORDS or item.get("audio"):
        return True
    stack = [item[name] for name in _CONTENT if name in item]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            kind = value.get("type")
            if (kind not in _WORDS) if kind is not None else not _GEMINI_WORDS.issuperset(value):
                return True
            if "functionResponse" in value and "parts" in (value["functionResponse"] or ()):
                return True
            stack.extend(value[name] for name in _CONTENT if name in value and kind is not None)
    return False


def words_of(value: object) -> list[str]:
    """Every text the model reads in a part of a call: messages, tool calls and results, tools; no bytes, no ids."""
    words = []
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            words.append(value)
        elif isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            stack.extend([inner for name, inner in value.items() if name not in _NOT_WORDS])
    return words


def rewritten(call: dict[str, Any], field: str, dropped: set[int], texts: Iterable[tuple[Path, str]]) -> dict[str, Any]:
    """A copy of `call` with other texts and without some messages. Shares with it all that did not change."""
    new = dict(call)
    copied: dict[Path, Any] = {(): new}
    for path, text in texts:
        holder: Any = new
        for depth in range(1, len(path)):
            step = path[depth - 1]
            inner = copied.get(path[:depth])
            if inner is None:
                inner = copied[path[:depth]] = holder[step].copy()
                holder[step] = inner
            holder = inner
        holder[path[-1]] = text
    if dropped:
        new[field] = [item for i, item in enumerate(new[field]) if i not in dropped]
    return new
