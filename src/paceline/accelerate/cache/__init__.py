"""The cache: memory, then the host (LMDB), then the fleet (Redis), then computed, once for all who ask.

    cache = Cache(CachePolicy(host=HostPolicy(enabled=True, path="/var/cache/app")))
    answer = await cache.get_or_compute(("summary", document_id), make_summary, ttl_s=3600, tags=[document_id])

Guide: docs/caching.md.
"""

from .cache import Cache
from .keys import storage_key
from .lease import Lease
from .levels import Found
from .policy import CachePolicy, FleetPolicy, HostPolicy, MemoryPolicy
from .recurrence import Advice
from .reply import StoredReply
from .selection import Selection, selected
from .statistics import GroupStatistics, LevelStatistics, Statistics
from .warm import Warmed, export, warm

__all__ = [
    "Advice",
    "Cache",
    "CachePolicy",
    "FleetPolicy",
    "Found",
    "GroupStatistics",
    "HostPolicy",
    "Lease",
    "LevelStatistics",
    "MemoryPolicy",
    "Selection",
    "Statistics",
    "StoredReply",
    "Warmed",
    "export",
    "selected",
    "storage_key",
    "warm",
]
