"""Names: what the fleet level calls its things in Redis. One hash slot, so that a cluster keeps them together."""

from typing import NamedTuple, Self


class Names(NamedTuple):
    """Of one namespace. `value`, `lease` and `tag` are beginnings."""

    value: bytes
    lease: bytes
    tag: bytes
    order: bytes
    sizes: bytes
    total: bytes
    epoch: bytes
    log: bytes
    channel: str

    @classmethod
    def of(cls, namespace: str) -> Self:
        """The names of a namespace."""
        start = ("{" + namespace + "}:").encode()
        return cls(
            value=start + b"v:",
            lease=start + b"l:",
            tag=start + b"t:",
            order=start + b"order",
            sizes=start + b"sizes",
            total=start + b"bytes",
            epoch=start + b"epoch",
            log=start + b"log",
            channel=start.decode() + "events",
        )
