"""Directives: what a request's headers say to the layer, worked out once for equal heads."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from paceline.accelerate.key import tenant_of
from paceline.wire.call import Dialect
from paceline.wire.dialects import dialect_of, without_credentials

# Of `x-paceline-cache`, or of `cache-control` (no-cache, no-store).
Mode = Literal["use", "refresh", "bypass"]
USE: Mode = "use"
REFRESH: Mode = "refresh"
BYPASS: Mode = "bypass"
_TAGS = 16  # of one request; more are left out


class Directives(msgspec.Struct, frozen=True, kw_only=True):
    """What one request head says, whatever its body."""

    path: str
    dialect: Dialect | None = None  # None: not a model call
    kind: str = ""  # of the model call
    tenant: bytes = b""
    key_part: bytes = b""  # what of the query and the headers changes the answer
    step: str | None = None  # the function that asks, as it names itself
    traceparent: bytes | None = None
    mode: Mode = USE  # "refresh": ask anew and keep the answer; "bypass": neither look nor keep
    ttl_s: float | None = None  # for the answer; None: the policy's
    tags: tuple[str, ...] = ()
    priority: int = 0


def read_directives(
    method: str, target: str, headers: Sequence[tuple[bytes, bytes]], tenant: bytes | None = None
) -> Directives:
    """What the head says. `tenant` None: its credentials tell. Nonsense in our own headers counts as not said."""
    path = target.partition("?")[0]
    seen = dict(headers)
    found = dialect_of(path) if method == "POST" else None
    if found is None:
        return Directives(path=path, traceparent=seen.get(b"traceparent"))
    dialect, kind = found
    bare, secret = without_credentials(target)
    secrets = [*headers, (b"x-goog-api-key", secret.encode())] if secret else headers
    query = bare.partition("?")[2]
    said = sorted(header for header in headers if header[0] in dialect.key_headers)
    step = seen.get(b"x-paceline-step")
    tags = seen.get(b"x-paceline-tags", b"").decode("latin-1").split(",")
    return Directives(
        path=path,
        dialect=dialect,
        kind=kind,
        tenant=tenant or tenant_of(secrets),
        # Neither a query nor a header holds a line feed, so no two lists of parts look alike.
        key_part=b"\n".join([query.encode(), *(name + b":" + value for name, value in said)]),
        step=step.decode("latin-1") if step else None,
        traceparent=seen.get(b"traceparent"),
        mode=_mode(seen),
        ttl_s=_seconds(seen.get(b"x-paceline-ttl-s")),
        tags=tuple(tag.strip() for tag in tags if tag.strip())[:_TAGS],
        priority=_integer(seen.get(b"x-paceline-priority")),
    )


def _mode(seen: dict[bytes, bytes]) -> Mode:
    """`x-paceline-cache` first; else RFC 9111's `no-store` (bypass) and `no-cache` (refresh)."""
    own = seen.get(b"x-paceline-cache", b"").strip().lower()
    if own in (b"bypass", b"refresh"):
        return BYPASS if own == b"bypass" else REFRESH
    control = seen.get(b"cache-control", b"").lower()
    return BYPASS if b"no-store" in control else REFRESH if b"no-cache" in control else USE


def _seconds(value: bytes | None) -> float | None:
    try:
        seconds = float(value or b"")
    except ValueError:
        return None
    return seconds if 0 < seconds < float("inf") else None


def _integer(value: bytes | None) -> int:
    try:
        return max(-9, min(9, int(value or b"")))
    except ValueError:
        return 0
