"""Make a prompt shorter by the rules of a policy. Pure: the call given is not changed.

What always stays: the last exchange (the user's last message and what tools answered to it), system messages, tools,
images and files, tool results, every text at least in part. Applying the same policy again changes nothing more.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from paceline.accelerate.prompts.chunks import Pieces
from paceline.accelerate.prompts.conversation import (
    SYSTEM,
    USER,
    Conversation,
    Text,
    read_conversation,
    rewritten,
    words_of,
)
from paceline.accelerate.prompts.policy import Trimming
from paceline.accelerate.prompts.texts import with_chunks, without_blanks, without_repeats
from paceline.wire.tokens import estimate_tokens

HISTORY, CHUNKS, REPEATS, WHITE_SPACE, BUDGET = "history", "chunks", "repeats", "white_space", "budget"
_LLM = "llm"
_MOST_PASSES = 5  # of repeats, chunks and budget: what one takes out may show the next one more; two do
# The rest of the conversation is at the provider, and may refer to what is here.
_ELSEWHERE = ("previous_response_id", "conversation")


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The shorter call, or the very same object when nothing went."""

    call: dict[str, Any]
    saved_tokens: int  # estimated, see `estimate_tokens`
    what: dict[str, int]  # of it by technique: history, chunks, repeats, white_space, budget

    @property
    def changed(self) -> bool:
        """True when the call must be encoded anew."""
        return bool(self.what)


def trim(kind: str, dialect: str, call: dict[str, Any], policy: Trimming | None) -> Trimmed:
    """Take out of a call what `policy` says (None: nothing).

    Args:
        kind: Of the call; only "llm" is trimmed.
        dialect: "openai", "anthropic" or "gemini"; others, and shapes not known, are left alone.
        call: The decoded body. Not modified; the result shares with it what did not change.
        policy: From `PromptPolicy.of`.

    Costs 1 us when off; for a call of 4 KB 0.05 ms for `last_turns` alone, 0.3 ms with everything on (a busy machine,
    benchmarks/prompts.py).
    """
    conversation = read_conversation(dialect, call) if policy is not None and policy.is_on and kind == _LLM else None
    if policy is None or conversation is None:
        return Trimmed(call, 0, {})
    work = _Work(call, conversation, policy)
    work.run()
    what = {name: tokens for name, tokens in work.saved.items() if tokens}
    changed = [(text.path, text.text) for text in work.texts if text.text is not work.before[text.path]]
    changed = [(path, text) for path, text in changed if not work.dropped.intersection(path[1:2])]
    if not changed and not work.dropped:
        return Trimmed(call, 0, {})
    return Trimmed(rewritten(call, conversation.field, work.dropped, changed), sum(what.values()), what)


@dataclass(slots=True)
class _Work:
    """One call while it is trimmed."""

    call: dict[str, Any]
    conversation: Conversation
    policy: Trimming
    dropped: set[int] = field(default_factory=set)  # messages
    changes: int = 0
    saved: dict[str, int] = field(default_factory=dict)
    spared: dict[int | None, int] = field(default_factory=dict)  # tokens by message
    before: dict[tuple[str | int, ...], str] = field(default_factory=dict)
    texts: list[Text] = field(default_factory=list)  # that may change

    def run(self) -> None:
        """In this order: what goes whole first, and what a later step removes is not counted twice."""
        policy, conversation = self.policy, self.conversation
        if policy.last_turns is not None:
            self._shorten_history(policy.last_turns)
        wanted = (USER, SYSTEM) if policy.system_text else (USER,)
        self.texts = [t for t in conversation.texts if t.role in wanted and t.item not in self.dropped]
        self.before = {text.path: text.text for text in self.texts}
        pieces = Pieces(policy.chunk_forms, policy.chunk_pattern)
        if policy.white_space:
            self._each(WHITE_SPACE, without_blanks)
        for _ in range(_MOST_PASSES):
            changes = self.changes
            self._shorten_texts(pieces)
            if policy.max_input_tokens is not None:
                self._keep_budget(policy.max_input_tokens, pieces)
            if self.changes == changes:
                break
        if policy.white_space and not self.saved.keys() <= {WHITE_SPACE, HISTORY}:
            self._each(WHITE_SPACE, without_blanks)  # around what was taken out

    def _shorten_texts(self, pieces: Pieces) -> None:
        """Repeats and chunks out of each text."""
        policy, least = self.policy, self.policy.least_repeat_chars
        if policy.drop_repeats:
            self._each(REPEATS, lambda text: without_repeats(text, pieces, set(), least_chars=least))
        if policy.max_chunks is not None:
            most = policy.max_chunks
            self._each(CHUNKS, lambda text: with_chunks(text, pieces, most))
        if not policy.drop_repeats or sum(len(text.text) >= least for text in self.texts) < 2:
            return
        seen: set[str] = set()
        # The user's last message first: nothing is taken out of it because another says it too. Then the newest.
        current = self.conversation.current
        last = [text for text in self.texts if text.role == USER and (text.item is None or text.item >= current)]
        order = [*reversed(last), *(text for text in reversed(self.texts) if text not in last)]
        self._each(REPEATS, lambda text: without_repeats(text, pieces, seen, least_chars=least), order)

    def _each(self, name: str, change: Callable[[str], str], texts: list[Text] | None = None) -> None:
        """Change every text that is still there."""
        for text in self.texts if texts is None else texts:
            if text.item in self.dropped:
                continue
            shorter = change(text.text)
            if shorter != text.text:
                spared = estimate_tokens(text.text) - estimate_tokens(shorter)
                self._count(name, spared)
                self.spared[text.item] = self.spared.get(text.item, 0) + spared
                text.text = shorter
                self.changes += 1

    def _count(self, name: str, tokens: int) -> None:
        self.saved[name] = self.saved.get(name, 0) + tokens

    def _droppable(self) -> list[tuple[int, int]]:
        """Exchanges that may go, oldest first."""
        if any(self.call.get(name) for name in _ELSEWHERE):
            return []
        history = self.conversation.history()
        if self.policy.keep_first_turn:
            history = history[1:]
        return [exchange for exchange in history if not self.conversation.must_stay(exchange)]

    def _drop(self, exchange: tuple[int, int], name: str) -> int:
        """Take an exchange out; its tokens."""
        messages = self.conversation.messages(exchange)
        tokens = sum(_tokens(self.conversation.items[i]) - self.spared.get(i, 0) for i in messages)
        self.dropped.update(messages)
        self.changes += 1
        self._count(name, tokens)
        return tokens

    def _shorten_history(self, last_turns: int) -> None:
        conversation = self.conversation
        turns = 0  # messages of user and model; calls of tools and their results belong to the model's
        kept_from = conversation.current
        for exchange in reversed(conversation.history()):
            if turns >= last_turns:
                break
            turns += sum(conversation.is_turn(i) for i in conversation.messages(exchange))
            kept_from = exchange[0]
        for exchange in self._droppable():
            if exchange[1] <= kept_from:
                self._drop(exchange, HISTORY)

    def _keep_budget(self, most: int, pieces: Pieces) -> None:
        """Oldest exchanges first, then the last chunks of all lists, a rank at a time; each list keeps one."""
        conversation = self.conversation
        read = [item for i, item in enumerate(conversation.items) if i not in self.dropped]
        apart = [self.call.get("tools"), conversation.system, *([] if conversation.items else [self._plain()])]
        tokens = sum(_tokens(part) for part in (*read, *apart)) - sum(self.spared.values())
        for exchange in self._droppable():
            if tokens <= most:
                return
            if exchange[0] not in self.dropped and not self.dropped.issuperset(conversation.messages(exchange)):
                tokens -= self._drop(exchange, BUDGET)
        ranks = [len(group) for text in self.texts for group in pieces.chunks(text.text)]
        for rank in range(max(ranks, default=1) - 1, 0, -1):
            if tokens <= most:
                return
            before = self.saved.get(BUDGET, 0)
            self._each(BUDGET, lambda text, rank=rank: with_chunks(text, pieces, rank))  # type: ignore[misc]
            tokens -= self.saved.get(BUDGET, 0) - before

    def _plain(self) -> object:
        return self.call.get(self.conversation.field)


def _tokens(value: object) -> int:
    """Estimated tokens of everything in a part of the call that the model reads."""
    return sum(estimate_tokens(text) for text in words_of(value))
