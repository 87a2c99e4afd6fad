"""Writing an answer: thoughts, then text or the call of a tool. Everything follows from the call and its draw."""

import zlib
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from paceline.testing.answers import VAGUE, Answer, answer
from paceline.testing.config import Model
from paceline.testing.draws import Draw
from paceline.testing.exchange import (
    ANY,
    LENGTH,
    NONE,
    STOP,
    STOP_SEQUENCE,
    TEXT,
    THOUGHT,
    TOOL,
    TOOL_USE,
    Block,
    ModelCall,
    Tool,
)
from paceline.testing.structured import as_json
from paceline.testing.words import topics
from paceline.wire.tokens import BYTES_PER_TOKEN, estimate_tokens

AnswerRule = Callable[[list[tuple[str, str]]], str | None]
OWN, CALLED = "own", "tool"  # kinds of answers beside those of `answers`

_REMEMBERED_ANSWERS = 1_000  # refused and repeated questions skip the rules
_SHARED_WORDS = 2  # a tool is called unasked when its name and description share as many topics with the question
_THOUGHT_SHARE = 2  # thoughts are as long as the answer would be, this many times
_THOUGHTS = (
    "Let me see what is asked here and what I have been given. ",
    "The question has one main point, and a few details that depend on it. ",
    "I should start with what is certain and leave out what is not. ",
    "There may be an exception, so I will check the wording once more. ",
    "That seems to settle it; a short answer will do. ",
)


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """An answer before anybody words it."""

    kind: str  # of the answer: label, verdict, tone, quoted, vague, generic, own, tool
    blocks: list[Block]
    finish: str
    stop: str | None = None

    @property
    def tokens(self) -> int:
        """All that is written."""
        return sum(block.tokens for block in self.blocks)


class Writer:
    """Writes answers. `rule` gets the turns; its text is the answer, None means by the usual rules."""

    def __init__(self, rule: AnswerRule | None = None) -> None:
        self._rule = rule
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()

    def write(self, call: ModelCall, prompt: bytes, model: Model, draw: Draw) -> Written:
        """The answer to `call`; `prompt` is a digest that equal prompts share."""
        own = self._rule(call.turns) if self._rule else None
        found = self._found(call, prompt)
        thoughts = _thoughts(call, draw.output_tokens(model, with_context=True))
        tool = chosen_tool(call, found.question) if own is None else None
        if tool is not None:
            arguments = as_json(found, found.question, tool.parameters or {"type": "object"})
            block = Block(kind=TOOL, text=arguments, tokens=_tokens(arguments), name=tool.name)
            return Written(kind=CALLED, blocks=[*thoughts, block], finish=TOOL_USE)
        kind, text = (OWN, own) if own is not None else (found.kind, self._text(call, found, model, draw))
        text, finish, stop = _cut(text, call)
        block = Block(kind=TEXT, text=text, tokens=_tokens(text))
        return Written(kind=kind, blocks=[*thoughts, block], finish=finish, stop=stop)

    def _found(self, call: ModelCall, prompt: bytes) -> Answer:
        found = self._answers.get(prompt)
        if found is None:
            found = self._answers[prompt] = answer(call.turns)
            if len(self._answers) > _REMEMBERED_ANSWERS:
                self._answers.popitem(last=False)
        else:
            self._answers.move_to_end(prompt)
        return found

    def _text(self, call: ModelCall, found: Answer, model: Model, draw: Draw) -> str:
        text = found.text(draw.output_tokens(model, with_context=found.kind != VAGUE))
        if call.json_object or call.schema is not None or found.wants_json:
            text = as_json(found, text, call.schema)
        return text


def chosen_tool(call: ModelCall, question: str) -> Tool | None:
    """The tool that is called: the one asked for, or the one whose words fit the question best.

    Left to itself a model calls one only when two topics fit, and not when a tool has just answered.
    """
    if not call.tools or call.tool_choice == NONE:
        return None
    named = next((tool for tool in call.tools if tool.name == call.tool_choice), None)
    if named is not None:
        return named
    asked = topics(question)
    scores = [len(asked & topics(f"{tool.name.replace('_', ' ')} {tool.description}")) for tool in call.tools]
    best = max(range(len(scores)), key=lambda i: scores[i])
    if call.tool_choice == ANY:
        return call.tools[best]
    answered = bool(call.turns) and call.turns[-1][0] == "tool"
    return call.tools[best] if scores[best] >= _SHARED_WORDS and not answered else None


def _thoughts(call: ModelCall, drawn_tokens: int) -> list[Block]:
    """Up to the call's budget; their text follows from the question."""
    if call.thought_tokens <= 0:
        return []
    tokens = min(call.thought_tokens, _THOUGHT_SHARE * drawn_tokens)
    at = zlib.crc32(call.turns[-1][1].encode("utf-8", "surrogatepass")) if call.turns else 0
    size, text = tokens * BYTES_PER_TOKEN, ""
    while len(text) < size:
        text += _THOUGHTS[at % len(_THOUGHTS)]
        at += 1
    return [Block(kind=THOUGHT, text=text[:size], tokens=tokens, shown=call.show_thoughts)]


def _cut(text: str, call: ModelCall) -> tuple[str, str, str | None]:
    """The text up to a stop sequence or the wanted length, why it ended, and at which sequence."""
    ends = [(at, stop) for stop in call.stop if (at := text.find(stop)) >= 0]
    finish, stop = STOP, None
    if ends:
        end, stop = min(ends)
        text, finish = text[:end], STOP_SEQUENCE
    if call.max_tokens is None or estimate_tokens(text) <= call.max_tokens:
        return text, finish, stop
    data = text.encode()[: call.max_tokens * BYTES_PER_TOKEN]
    return data.decode("utf-8", "ignore"), LENGTH, None


def _tokens(text: str) -> int:
    return max(1, estimate_tokens(text))
