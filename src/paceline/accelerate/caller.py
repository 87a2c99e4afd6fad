"""Caller: who asks, where the door in front of the engine has found that out."""

import msgspec

from paceline.wire.call import Usage


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """One known caller. Without one, the credentials a request carries separate tenants."""

    tenant: bytes  # 32 bytes: the partition of caches, flights and queues it lives in
    name: str  # for metrics, cost tables and logs; never a secret
    priority: int = 0  # in queues; higher goes first

    def charge(self, usage: Usage | None, cost_usd: float | None) -> None:
        """Its call is over and took that; nothing is told of what was answered from a cache or by another's call."""
