"""Dropping kept answers of a running gateway: `POST /-/cache/invalidate`, in all of its processes."""

from collections.abc import Awaitable, Callable

import msgspec

from paceline.accelerate.cache import Cache, Selection, selected
from paceline.gateway.keys.door import Door, tenant_digest

INVALIDATE = "/-/cache/invalidate"

Tell = Callable[[Selection], Awaitable[tuple[int, int]]]


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of the request: what to drop."""

    tags: list[str] = []  # answers with one of these
    tenant: str | None = None  # only of this tenant, as `paceline keys` names it; alone: all of it
    everything: bool = False


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """Body of the answer."""

    dropped: int  # entries: what the memories of all processes lost, or the shared level that lost most
    processes: int  # that have dropped them


async def nobody_else(selection: Selection) -> tuple[int, int]:
    """Of a gateway of one process."""
    return 0, 0


def meant(body: bytes, door: Door | None, tenant: bytes | None) -> Selection:
    """What a request's body selects; `tenant`: the only one it may touch. ValueError says what is wrong with it."""
    wanted = msgspec.json.decode(body or b"{}", type=Wanted)
    if wanted.tenant is not None:
        if door is None or not door.asks_for_keys:
            msg = "tenants have names only where callers have keys; name tags, or everything"
            raise ValueError(msg)
        named = tenant_digest(wanted.tenant)
        if tenant is not None and named != tenant:
            msg = "this key may drop answers of its own tenant only"
            raise ValueError(msg)
        tenant = named
    if not (wanted.tags or wanted.everything or wanted.tenant is not None):
        msg = 'say what to drop: {"tags": [...]}, {"tenant": "..."} or {"everything": true}'
        raise ValueError(msg)
    return selected(tags=wanted.tags, tenant=tenant, everything=wanted.everything)


async def drop(cache: Cache | None, selection: Selection, tell: Tell) -> Dropped:
    """Drop it here, in the levels that are shared, and in the other processes."""
    here = await cache.forget(selection) if cache is not None else 0
    there, processes = await tell(selection)
    return Dropped(dropped=here + there, processes=1 + processes)
