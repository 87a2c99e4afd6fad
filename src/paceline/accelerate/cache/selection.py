"""Selection: which entries an invalidation means, as it is applied here, logged on the host and told to the fleet."""

from collections.abc import Collection
from typing import Self

import msgspec

from .keys import PARTITION_BYTES


class Selection(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Entries with one of `keys` or `tags`, or everything; of one tenant or, with `partition` None, of all."""

    id: bytes = b""  # random, so that who hears it twice (host and fleet) applies it once
    partition: bytes | None = None
    everything: bool = False
    keys: frozenset[bytes] = frozenset()
    tags: frozenset[bytes] = frozenset()

    def matches(self, key: bytes, tags: Collection[bytes]) -> bool:
        """True when the entry is meant."""
        if self.partition is not None and key[:PARTITION_BYTES] != self.partition:
            return False
        return self.everything or key in self.keys or not self.tags.isdisjoint(tags)

    def encode(self) -> bytes:
        """As bytes, for the log and the event."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """From bytes; what cannot be read means everything: dropping too much is never wrong."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return cls(everything=True)


EVERYTHING = Selection(everything=True)
