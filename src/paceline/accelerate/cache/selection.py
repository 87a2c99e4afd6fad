"""Selection: which entries an invalidation means, as it is applied here, logged on the host and told to the fleet."""

from collections.abc import Collection, Iterable
from typing import Self

import msgspec

from .keys import PARTITION_BYTES, Key, partition_of, storage_key, tag_id


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


def selected(
    *,
    tags: Iterable[str] = (),
    keys: Iterable[Key] = (),
    storage_keys: Iterable[bytes] = (),
    tenant: str | bytes | None = None,
    everything: bool = False,
) -> Selection:
    """What `Cache.invalidate` means by these. ValueError: nothing is named."""
    selection = Selection(
        partition=None if tenant is None else partition_of(tenant),
        keys=frozenset([*(storage_key(tenant, key) for key in keys), *storage_keys]),
        tags=frozenset(map(tag_id, several(tags))),
        everything=everything,
    )
    if not (selection.keys or selection.tags or everything):
        if tenant is None:
            msg = "invalidate what? Name tags, keys, storage_keys, a tenant, or everything=True"
            raise ValueError(msg)
        selection = msgspec.structs.replace(selection, everything=True)
    return selection


def several(tags: Iterable[str]) -> Iterable[str]:
    """The tags. TypeError for one str, whose letters would be taken for tags."""
    if isinstance(tags, str):
        msg = f"tags is a collection of names; got the str {tags!r}. Write tags=[{tags!r}]"
        raise TypeError(msg)
    return tags
