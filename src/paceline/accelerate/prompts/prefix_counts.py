"""What is counted of one prompt template: figures, masked patterns and hashes, no text."""

from dataclasses import dataclass, field

from paceline.accelerate.prompts.breaks import Break, Words

_MOST_BREAKS = 16


@dataclass(slots=True)
class Place:
    """Calls that parted at the same field by the same kind of piece; tokens are sums over them."""

    calls: int = 0
    stable_tokens: int = 0
    movable_tokens: int = 0
    pattern: str = ""


@dataclass(slots=True)
class Template:
    """What is counted of one template. No text of a prompt."""

    name: str
    dialect: str
    model: str | None
    minimum_tokens: int
    marked: bool = False
    reads: int = 0
    calls: int = 0
    warm: int = 0  # calls so soon after the one before that the provider still had it
    first_s: float = 0.0
    last_s: float = 0.0
    tokens: int = 0  # of all calls, estimated
    shared_tokens: int = 0  # of them in the longest prefix that an earlier call had, in blocks
    servable_tokens: int = 0  # and long enough for the provider's cache
    told_calls: int = 0  # calls whose usage is known
    cached_tokens: int = 0  # of those, as the provider told
    sampled: int = 0
    stable_tokens: int = 0  # of the calls sampled
    kept: list[Words] = field(default_factory=list)
    breaks: dict[tuple[str, str], Place] = field(default_factory=dict)  # by field and kind

    def note(self, found: Break) -> None:
        """Count where one call parted from the one kept."""
        self.sampled += 1
        self.stable_tokens += found.stable_tokens
        if found.field is None:
            return
        key = (found.field, found.kind)
        place = self.breaks.get(key)
        if place is None:
            if len(self.breaks) >= _MOST_BREAKS:
                del self.breaks[min(self.breaks, key=lambda k: self.breaks[k].calls)]
            place = self.breaks[key] = Place()
        place.calls += 1
        place.stable_tokens += found.stable_tokens
        place.movable_tokens += found.movable_tokens
        place.pattern = found.pattern


def minimum_tokens(dialect: str, model: str | None) -> int:
    """The shortest prefix the provider caches, as its documentation says (2026): 1,024 where it says nothing."""
    name = (model or "").casefold()
    if dialect == "anthropic":
        if "haiku-4" in name or "opus-4-5" in name or "opus-4-6" in name:
            return 4096
        return 2048 if "haiku" in name or "sonnet-4-6" in name else 1024
    return 4096 if dialect == "gemini" and "pro" in name else 1024
