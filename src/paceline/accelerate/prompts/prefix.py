"""PrefixWatch: how much of each prompt template the provider's own cache could serve, and what keeps it from doing so.

Providers keep the prompts they have read, by prefix: a call that begins like one of the last minutes pays a fraction
for the tokens up to where they part. So it is worth a lot that a prompt begins with what never changes. This counts,
without keeping any of it, how far calls agree, and finds the early piece that makes them part.
"""

import time
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paceline.accelerate.prompts.breaks import compare, words_of
from paceline.accelerate.prompts.prefix_counts import Template, minimum_tokens
from paceline.accelerate.prompts.prefix_report import PrefixReport, report_of
from paceline.accelerate.prompts.segments import Segment, is_marked, segments_of
from paceline.wire.call import Usage
from paceline.wire.tokens import BYTES_PER_TOKEN

BLOCK_TOKENS = 128  # OpenAI's step; the others do not tell theirs
_BLOCK = BLOCK_TOKENS * BYTES_PER_TOKEN
_MOST_BLOCKS = 256  # of a prompt: 32,768 tokens; what comes later counts as new
_SAMPLED_FIRST, _SAMPLED_EVERY = 16, 64  # calls of a template whose words are compared
_KEPT_EVERY = 256  # and the one they are compared with is renewed
_ANCHOR_CHARS, _LEAST_ANCHOR_CHARS = 80, 400


@dataclass(frozen=True, slots=True)
class PromptPrefix:
    """One call's prompt as hashes of its blocks, each over all before it. May be kept and counted several times."""

    template: Template
    blocks: "array[int]"
    tokens: int


class PrefixWatch:
    """Counts prompts by template. `read` a call when it is decoded, `saw` it when the provider has answered it.

    Bounded: `max_templates` of them (the least recently seen leaves first), each at most 40 KB and usually 5, and
    `max_blocks` hashes of blocks (100 bytes each).

    Args:
        retention_s: How long a provider keeps a prefix nobody asks for; OpenAI says 5 to 10 minutes, Anthropic 5.
        now_s: A monotonic clock.
    """

    def __init__(
        self,
        *,
        max_templates: int = 256,
        max_blocks: int = 65_536,
        retention_s: float = 300.0,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_templates = max_templates
        self._max_blocks = max_blocks
        self._retention_s = retention_s
        self._now_s = now_s
        self._templates: OrderedDict[tuple[str, str | None, str], Template] = OrderedDict()
        self._tails: dict[tuple[str, str | None, int], tuple[str, str | None, str]] = {}
        self._blocks: OrderedDict[int, float] = OrderedDict()  # hash -> when last seen

    def __len__(self) -> int:
        return len(self._templates)

    def read(
        self, dialect: str, call: dict[str, Any], *, template: str, model: str | None, tenant: bytes = b""
    ) -> PromptPrefix | None:
        """What to remember of a call to a language model; None when it has no prompt we can read.

        `template` is `CallInfo.template_hash`; `tenant` keeps apart whose prompts the provider keeps apart. About 15 us
        for 4 KB; the first 16 calls of a template and every 64th cost 150 us more.
        """
        segments = segments_of(dialect, call)
        if not segments:
            return None
        state = self._template(dialect, model, template, segments)
        if state.reads < _SAMPLED_FIRST or state.reads % _SAMPLED_EVERY == 0:
            if state.kept:
                state.note(compare(state.kept, segments))
            if state.reads % _KEPT_EVERY == 0:
                state.kept = words_of(segments)
                state.marked = dialect == "anthropic" and is_marked(call)
        state.reads += 1
        data = "\n".join([text for _, text in segments]).encode("utf-8", "surrogatepass")
        digest = hash((tenant, dialect, model))
        blocks = array("q")
        for at in range(_BLOCK, min(len(data), _MOST_BLOCKS * _BLOCK) + 1, _BLOCK):
            digest = hash((digest, data[at - _BLOCK : at]))
            blocks.append(digest)
        return PromptPrefix(state, blocks, -(-len(data) // BYTES_PER_TOKEN))

    def saw(self, prompt: PromptPrefix | None, usage: Usage | None = None, *, at_s: float | None = None) -> None:
        """Count a call that was sent to the provider; `at_s` on the monotonic clock, default now. About 2 us."""
        if prompt is None:
            return
        now_s = self._now_s() if at_s is None else at_s
        state, seen = prompt.template, self._blocks
        since_s = now_s - self._retention_s
        shared = 0
        for block in prompt.blocks:
            last_s = seen.get(block)
            if last_s is None or last_s < since_s:
                break
            shared += BLOCK_TOKENS
        for block in prompt.blocks:
            seen[block] = now_s
            seen.move_to_end(block)
        while len(seen) > self._max_blocks:
            seen.popitem(last=False)
        if not state.calls:
            state.first_s = now_s
        elif state.last_s >= since_s:
            state.warm += 1
        state.calls += 1
        state.last_s = max(state.last_s, now_s) if state.calls > 1 else now_s
        state.tokens += prompt.tokens
        state.shared_tokens += shared
        if shared >= state.minimum_tokens:
            state.servable_tokens += shared
        if usage is not None:
            state.told_calls += 1
            state.cached_tokens += usage.cached_tokens

    def report(self) -> list[PrefixReport]:
        """One report for each template, those first that cost most. The first call imports the prices (0.2 s)."""
        reports = [report_of(template) for template in self._templates.values() if template.calls]
        return sorted(
            reports, key=lambda r: (-(r.saves_usd_per_hour or 0.0), -r.saves_tokens * r.calls_per_min, r.template)
        )

    def _template(self, dialect: str, model: str | None, name: str, segments: list[Segment]) -> Template:
        """The template's counts. One whose first words vary has a new name each time, and is known by the end of its
        first long segment instead."""
        key = (dialect, model, name)
        state = self._templates.get(key)
        if state is None:
            tail = next(
                (hash(text[-_ANCHOR_CHARS:]) for _, text in segments[:2] if len(text) > _LEAST_ANCHOR_CHARS), None
            )
            tail_key = (dialect, model, tail) if tail is not None else None
            known = self._tails.get(tail_key) if tail_key is not None else None
            state = self._templates.get(known) if known is not None else None
            if state is not None and known is not None:
                key = known
            else:
                state = self._templates[key] = Template(name, dialect, model, minimum_tokens(dialect, model))
                if tail_key is not None:
                    self._tails[tail_key] = key
                if len(self._templates) > self._max_templates:
                    self._forget()
        self._templates.move_to_end(key)
        return state

    def _forget(self) -> None:
        gone, _ = self._templates.popitem(last=False)
        self._tails = {tail: key for tail, key in self._tails.items() if key != gone}
