"""CachePolicy: which levels there are, in which order, how large and for how long."""

from typing import Literal, Self

import msgspec

MEMORY, HOST, FLEET = "memory", "host", "fleet"
LEVELS = (MEMORY, HOST, FLEET)
EXACT, TEXT = "exact", "text"
_MB = 1_000_000
_GB = 1_000 * _MB


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class MemoryPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """This process's own level: the objects themselves, least recently used out first."""

    enabled: bool = True
    max_bytes: int = 100 * _MB  # what Python spends on the entries, estimated
    ttl_s: float = 300.0

    def __post_init__(self) -> None:
        _require(self.max_bytes >= 1, f"cache.memory.max_bytes must be at least 1; got {self.max_bytes}")
        _require(self.ttl_s > 0, f"cache.memory.ttl_s must be above 0; got {self.ttl_s:g}")


class HostPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all processes of one machine share, in a folder (LMDB). Needs `pip install 'paceline[host]'`."""

    enabled: bool = False
    path: str = ".paceline/cache"  # a folder on a local disk; created, readable by its owner only
    max_bytes: int = 10 * _GB  # of the file; what dies soonest leaves first
    ttl_s: float = 86_400.0
    lease: bool = True  # one process of the machine computes a key, the others wait for its answer

    def __post_init__(self) -> None:
        _require(bool(self.path), "cache.host.path must name a folder")
        _require(self.max_bytes >= _MB, f"cache.host.max_bytes must be at least 1000000; got {self.max_bytes}")
        _require(self.ttl_s > 0, f"cache.host.ttl_s must be above 0; got {self.ttl_s:g}")


class FleetPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all machines share (Redis). Needs `pip install 'paceline[redis]'`.

    `timeout_s`, `lease_s` and `retry_s` are wall seconds of the network: they do not scale with a simulated provider.
    """

    enabled: bool = False
    url: str = "redis://127.0.0.1:6379/0"  # redis://, rediss:// (TLS) or unix://; user and password as in redis-py
    namespace: str = "paceline"  # caches of one Redis that must not meet have different ones
    max_bytes: int | None = _GB  # of the stored values; what dies soonest leaves first. None: the server's maxmemory
    ttl_s: float = 3_600.0
    timeout_s: float = 0.05  # of one command, connecting included: what a request waits at most
    connections: int = 32
    failures: int = 3  # in a row, and Redis is left alone ...
    retry_s: float = 1.0  # ... for that long, twice as long each time it fails again, up to 30 s
    lease: bool = True  # one process of the fleet computes a key, the others wait for its answer
    lease_s: float = 10.0  # a holder that is not heard for that long is dead

    def __post_init__(self) -> None:
        _require(
            self.url.startswith(("redis://", "rediss://", "unix://")),
            f"cache.fleet.url must begin with redis://, rediss:// or unix://; got {self.url!r}",
        )
        _require(bool(self.namespace), "cache.fleet.namespace must not be empty")
        _require(
            self.max_bytes is None or self.max_bytes >= 1,
            f"cache.fleet.max_bytes must be at least 1, or null for the server's own limit; got {self.max_bytes}",
        )
        for name in ("ttl_s", "timeout_s", "retry_s", "lease_s"):
            value = getattr(self, name)
            _require(value > 0, f"cache.fleet.{name} must be above 0; got {value:g}")
        for name in ("connections", "failures"):
            value = getattr(self, name)
            _require(value >= 1, f"cache.fleet.{name} must be at least 1; got {value}")


class CachePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keep complete answers and give them again to equal calls of the same tenant.

    A level's `ttl_s` counts where a call names no time to live of its own.
    """

    enabled: bool = False  # read by the gateway and the transport; a Cache made by hand is on
    key: Literal["exact", "text"] = "exact"  # "text": case, white space and punctuation in prompts do not matter
    order: tuple[str, ...] = LEVELS  # asked in this order; by who shares an entry, not by what medium it is on
    memory: MemoryPolicy = MemoryPolicy()
    host: HostPolicy = HostPolicy()
    fleet: FleetPolicy = FleetPolicy()
    stale_s: float = 0.0  # after its end an answer is still given for that long while a new one is made
    early: float = 0.0  # early refresh (XFetch): 1.0 is the paper's optimum, larger refreshes earlier, 0 is off
    wait_s: float = 60.0  # how long to wait for an answer that another process is computing, then compute it too
    compress_min_bytes: int | None = None  # zlib, host and fleet, from this size on; None: never (see docs/caching.md)
    encrypt_key_env: str | None = None  # variable with 64 hexadecimal digits: AES-256-GCM on host and fleet

    def __post_init__(self) -> None:
        wrong = [name for name in self.order if name not in LEVELS]
        _require(not wrong, f"cache.order knows memory, host and fleet; got {', '.join(map(repr, wrong))}")
        _require(len(set(self.order)) == len(self.order), "cache.order must name each level once")
        for name in ("stale_s", "early"):
            value = getattr(self, name)
            _require(value >= 0, f"cache.{name} must not be negative; got {value:g}")
        _require(self.wait_s > 0, f"cache.wait_s must be above 0; got {self.wait_s:g}")
        least = self.compress_min_bytes
        _require(least is None or least >= 0, f"cache.compress_min_bytes must not be negative; got {least}")

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels in use, in the order they are asked."""
        return tuple(name for name in self.order if getattr(self, name).enabled)

    def at_speed(self, speed: float) -> Self:
        """The same policy in wall seconds, for a simulated provider that runs `speed` times faster than real."""
        replace = msgspec.structs.replace
        return replace(
            self,
            memory=replace(self.memory, ttl_s=self.memory.ttl_s / speed),
            host=replace(self.host, ttl_s=self.host.ttl_s / speed),
            fleet=replace(self.fleet, ttl_s=self.fleet.ttl_s / speed),
            stale_s=self.stale_s / speed,
            wait_s=self.wait_s / speed,
        )
