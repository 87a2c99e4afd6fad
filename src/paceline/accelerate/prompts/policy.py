"""What may be taken out of prompts, and of which. Everything is off until asked for."""

import re

import msgspec

TAG, BRACKET, LABEL, NUMBERED, RULE = "tag", "bracket", "label", "numbered", "rule"
CHUNK_FORMS = (TAG, BRACKET, LABEL, NUMBERED, RULE)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class Trimming(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to take out of one prompt. `chunk_forms` say how retrieved chunks look; the first in a message counts:

    tag       <doc>...</doc>, also document, chunk, passage, source, excerpt, snippet, article, result, search_result
    bracket   lines that begin with [1], [2], ...
    label     lines that begin with Document 1, Passage 2:, [Source 3], ### Chunk 4 and the like
    numbered  lines that begin with 1. or 1) -- not by default, since instructions are numbered so too
    rule      what stands between two lines of --- (or === or ***) -- not by default, since these part sections too
    """

    last_turns: int | None = None  # messages of the history to keep, rounded up to whole exchanges; 0: no history
    keep_first_turn: bool = False  # keep the first exchange too: what the conversation is about
    max_chunks: int | None = None  # in each message; chunks come best first, so the last ones go
    chunk_forms: tuple[str, ...] = (TAG, BRACKET, LABEL)
    chunk_pattern: str | None = None  # a regular expression for the start of a chunk's first line, tried first
    drop_repeats: bool = False  # a paragraph or chunk that stands twice in a prompt goes from the older place
    least_repeat_chars: int = 120  # shorter paragraphs may repeat
    white_space: bool = False  # trailing blanks, more than one empty line, double blanks in prose
    system_text: bool = False  # max_chunks, drop_repeats and white_space in the system prompt too
    max_input_tokens: int | None = None  # estimated; above it the oldest history goes, then the last chunks

    def __post_init__(self) -> None:
        for name, least in (("last_turns", 0), ("max_chunks", 1), ("max_input_tokens", 1)):
            value = getattr(self, name)
            _require(value is None or value >= least, f"prompts.{name} must be at least {least}; got {value}")
        _require(self.least_repeat_chars >= 1, f"least_repeat_chars must be at least 1; got {self.least_repeat_chars}")
        unknown = [form for form in self.chunk_forms if form not in CHUNK_FORMS]
        _require(not unknown, f"prompts.chunk_forms are {', '.join(CHUNK_FORMS)}; got {', '.join(unknown)}")
        if self.chunk_pattern is not None:
            try:
                re.compile(self.chunk_pattern)
            except re.error as error:
                msg = f"prompts.chunk_pattern is not a regular expression: {error}"
                raise ValueError(msg) from error

    @property
    def is_on(self) -> bool:
        """True when there is anything to take out."""
        return (
            self.drop_repeats
            or self.white_space
            or any(limit is not None for limit in (self.last_turns, self.max_chunks, self.max_input_tokens))
        )


class PromptRule(Trimming, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Other settings for some calls: of a step (as named in `x-paceline-step`), a prompt template, or both."""

    step: str | None = None
    template: str | None = None  # `CallInfo.template_hash`, as the reports show it

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.step or self.template), "a rule in prompts.rules names a step, a template or both")


class PromptPolicy(Trimming, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Section [prompts]. Its own settings hold for calls that no rule names; the first rule that fits wins, whole."""

    rules: tuple[PromptRule, ...] = ()
    watch_prefix: bool = False  # report what keeps the provider's own prompt cache from working

    def of(self, step: str | None, template: str | None) -> Trimming | None:
        """What to take out of this call, None for nothing."""
        for rule in self.rules:
            if rule.step in (None, step) and rule.template in (None, template):
                return rule if rule.is_on else None
        return self if self.is_on else None

    def at_speed(self, speed: float) -> "PromptPolicy":
        """Itself: it holds no durations."""
        return self
