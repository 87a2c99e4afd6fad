"""When concurrent embedding calls become one."""

import msgspec


class BatchPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Section [batching]. Off until asked for: a call that finds no company waits `window_s` for nothing."""

    enabled: bool = False
    window_s: float = 0.003  # from the first call of a batch to its sending
    max_inputs: int = 100  # of a batch, then it goes at once. Gemini takes 100, OpenAI 2,048
    max_tokens: int = 50_000  # estimated, of a batch. OpenAI takes 300,000

    def __post_init__(self) -> None:
        for name, least in (("max_inputs", 2), ("max_tokens", 1)):
            if getattr(self, name) < least:
                msg = f"batching.{name} must be at least {least}; got {getattr(self, name)}"
                raise ValueError(msg)
        if not 0 <= self.window_s <= 1:
            msg = f"batching.window_s must be 0 to 1; got {self.window_s:g}"
            raise ValueError(msg)

    def at_speed(self, speed: float) -> "BatchPolicy":
        """The same in wall seconds, for a provider that runs `speed` times faster than real."""
        return msgspec.structs.replace(self, window_s=self.window_s / speed)
