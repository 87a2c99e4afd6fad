"""What a model call asks and what is answered, in no dialect: what the provider's rules work on."""

from typing import Any

import msgspec

from paceline.wire.tokens import estimate_tokens

Headers = list[tuple[bytes, bytes]]

AUTO, NONE, ANY = "auto", "none", "any"  # choices of a tool; anything else is a tool's name
TEXT, THOUGHT, TOOL = "text", "thought", "tool"  # kinds of blocks
STOP, STOP_SEQUENCE, LENGTH, TOOL_USE = "stop", "stop_sequence", "length", "tool_use"  # why an answer ended


class ApiError(Exception):
    """A refusal. The house it is raised in words it; fields one house does not know are left out by it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,  # noqa: A002 - the providers' word; None: what follows from the status
        code: str | None = None,
        param: str | None = None,
        details: list[dict[str, Any]] | None = None,
        headers: Headers | None = None,
        retry_after_s: float | None = None,
        fault: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.details = details or []
        self.headers = headers or []
        self.retry_after_s = retry_after_s  # wall time
        self.fault = fault  # which planted fault it is; "": a refusal on its own merits


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function the model may call."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}  # JSON schema


class ModelCall(msgspec.Struct, frozen=True, kw_only=True):
    """One answer asked for."""

    turns: list[tuple[str, str]]  # (role, text)
    input_tokens: int
    max_tokens: int | None = None
    stop: list[str] = []
    stream: bool = False
    json_object: bool = False
    schema: dict[str, Any] | None = None  # of the JSON wanted
    tools: list[Tool] = []
    tool_choice: str = AUTO
    thought_tokens: int = 0  # how much may be thought first
    show_thoughts: bool = False
    include_usage: bool = True  # in a stream


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an answer: text, thoughts, or a call of a tool, whose text are its arguments."""

    kind: str
    text: str
    tokens: int
    name: str = ""  # of the tool
    shown: bool = True  # False: counted and waited for, never sent

    def pieces(self) -> list[str]:
        """The text in as many pieces as it has tokens."""
        size, tokens = len(self.text), self.tokens
        return [self.text[i * size // tokens : (i + 1) * size // tokens] for i in range(tokens)]


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, written."""

    serial: int  # for the ids
    created: int  # unix time
    model: str  # as asked for
    call: ModelCall
    blocks: list[Block]
    finish: str
    stop: str | None = None  # the stop sequence that ended it

    @property
    def input_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.call.input_tokens

    @property
    def output_tokens(self) -> int:
        """Tokens written, thoughts included."""
        return sum(block.tokens for block in self.blocks)

    @property
    def thought_tokens(self) -> int:
        """Tokens of the thoughts."""
        return sum(block.tokens for block in self.blocks if block.kind == THOUGHT)

    @property
    def text(self) -> str:
        """The text, without thoughts and calls."""
        return "".join(block.text for block in self.blocks if block.kind == TEXT)

    @property
    def calls(self) -> list[Block]:
        """The calls of tools."""
        return [block for block in self.blocks if block.kind == TOOL]


def texts_in(given: object) -> list[str]:
    """A text, or those in a list; empty ones and anything else left out."""
    return [text for text in (given if isinstance(given, list) else [given]) if isinstance(text, str) and text]


def prompt_tokens(turns: list[tuple[str, str]], tools: object = None) -> int:
    """Tokens of a prompt, with its tools."""
    written = estimate_tokens(msgspec.json.encode(tools).decode()) if tools else 0
    return sum(estimate_tokens(text) for _, text in turns) + written
