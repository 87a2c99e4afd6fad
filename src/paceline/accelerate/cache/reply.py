"""StoredReply: a provider's complete answer as the layer keeps it."""

import msgspec

_REPLY_BYTES = 600  # what Python spends on one besides its bytes, about


class StoredReply(msgspec.Struct, frozen=True, kw_only=True):
    """One complete answer. `pieces` are the events of a stream, or the whole body as one."""

    status: int = 200
    headers: list[tuple[bytes, bytes]]
    pieces: list[bytes]
    stream: bool
    cost_usd: float | None = None  # what it cost when it was made, and so what a hit saves
    stored_at: float = 0.0  # Unix seconds
    model: str | None = None
    tags: list[str] = []

    @property
    def size_bytes(self) -> int:
        """Memory it takes, about."""
        size = _REPLY_BYTES + sum(map(len, self.pieces)) + 33 * len(self.pieces)
        for name, value in self.headers:  # every new answer passes here, and `sum` would call a generator for each
            size += len(name) + len(value)
        return size
