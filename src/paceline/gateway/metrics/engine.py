"""What an engine holds and has counted itself, in the families of the metrics page."""

import time
from collections.abc import Callable

from paceline.accelerate.cache import Cache
from paceline.accelerate.engine import Engine
from paceline.gateway.metrics.counts import MAX_NAMES, OTHER, Metrics
from paceline.gateway.metrics.text import label

_CACHE_S = 10.0  # between two looks at the cache's statistics, which visit every entry: 1 ms for 10,000
_COUNTED = ("hits", "misses", "errors", "puts", "dropped", "evicted", "unreadable")
_LEARNED = "paceline_limit_learned_per_second"
_WAITING = "paceline_limit_waiting_calls"

Gauges = dict[str, dict[str, float]]


class EngineMetrics:
    """Reads the engine that serves now into `metrics`: counts as counters that go on when it is replaced."""

    def __init__(
        self, engine: Callable[[], Engine], metrics: Metrics, *, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine, self._metrics, self._now_s = engine, metrics, now_s
        self._cache: Cache | None = None
        self._seen: dict[tuple[str, str], float] = {}  # counts of `_cache` that are in the metrics already
        self._looked_s = float("-inf")
        self._levels: Gauges = {}

    def gauges(self) -> Gauges:
        """Now."""
        engine = self._engine()
        state = engine.state()
        return {
            "paceline_in_flight_calls": {"": state["in_flight"]},
            "paceline_waiting_calls": {"": state["waiting"]},
            "paceline_shared_calls": {"": state["flights"]},
            "paceline_upstream_connections": {
                label("state", "busy"): state["upstream_busy"],
                label("state", "idle"): state["upstream_idle"],
            },
            **self._limits(engine),
            **self._caches(engine),
        }

    def _limits(self, engine: Engine) -> Gauges:
        learned: dict[str, float] = {}
        waiting: dict[str, float] = {}
        for state in engine.limits.states() if engine.limits is not None else ():
            name = label("model", state.model if len(waiting) < MAX_NAMES else OTHER)
            waiting[name] = waiting.get(name, 0) + state.waiting
            if state.learned_per_s is not None:
                learned[name] = learned.get(name, 0.0) + state.learned_per_s
        return {_WAITING: waiting, _LEARNED: learned}

    def _caches(self, engine: Engine) -> Gauges:
        now_s = self._now_s()
        cache = engine.cache
        if cache is not self._cache:
            self._cache, self._seen, self._levels = cache, {}, {}
            self._looked_s = float("-inf")
        if cache is None or now_s - self._looked_s < _CACHE_S:
            return self._levels
        self._looked_s = now_s
        held: Gauges = {"paceline_cache_bytes": {}, "paceline_cache_entries": {}, "paceline_cache_up": {}}
        for row in cache.statistics().levels:
            level = label("level", row.name)
            for what in _COUNTED:
                count, key = getattr(row, what), (row.name, what)
                if count != self._seen.get(key):
                    more = max(0, count - self._seen.get(key, 0))
                    self._metrics.count("paceline_cache_events_total", f"{level},{label('event', what)}", more)
                    self._seen[key] = count
            held["paceline_cache_up"][level] = float(row.state == "up")
            # What several processes share each of them sees whole: not to be added up.
            shared = "" if row.name == "memory" else "shared_"
            for field in ("bytes", "entries"):
                value = getattr(row, field)
                if value is not None:
                    held.setdefault(f"paceline_cache_{shared}{field}", {})[level] = float(value)
        self._levels = held
        return held
