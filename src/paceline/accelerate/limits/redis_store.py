"""Redis as the place where processes keep limits together: GCRA, one script, one round trip, Redis's own clock.

GCRA keeps one number a limit, the theoretical arrival time (TAT): when the limit would be whole again. A unit may pass
once TAT is less than a burst ahead (ITU-T I.371; as used by redis-cell). Keys expire by themselves.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from paceline.accelerate.limits.shared import _LONGEST_S, KEEP_S, Answer, Grant, StoreDown, Want
from paceline.errors import ConfigError

if TYPE_CHECKING:
    from redis.asyncio import Redis

_LOG = logging.getLogger("paceline.limits")
_CONNECTIONS = 8
_RETRY_S = (0.5, 1.0, 2.0, 5.0)  # until a Redis that failed is tried again
_FAR = 1e15  # "not heard" as a number for Lua

SCRIPT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local keep, longest, hold = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if hold > 0 and redis.call('PTTL', KEYS[1]) < hold then
  redis.call('SET', KEYS[1], 1, 'PX', hold)
end
local answer = {redis.call('PTTL', KEYS[1])}
for i = 2, #KEYS do
  local at = (i - 2) * 6 + 3
  local unit, burst = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local units, least = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local back, at_most = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  local tat = (tonumber(redis.call('GET', KEYS[i])) or now) - back * unit
  tat = math.max(tat, now, now + (burst - at_most) * unit)
  local granted = math.min(units, math.max(0, math.floor((now + keep - tat) / unit + burst)))
  local due = 0
  if granted < least then
    due = tat + (math.min(least, burst) - burst) * unit - now
    if due <= longest then
      granted = least
    else
      granted = 0
    end
  else
    due = tat + (math.min(granted, burst) - burst) * unit - now
  end
  tat = tat + granted * unit
  if tat > now then
    redis.call('SET', KEYS[i], string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000) + 1000)
  else
    redis.call('DEL', KEYS[i])
  end
  answer[#answer + 1] = string.format('%.0f', granted)
  answer[#answer + 1] = string.format('%.0f', math.max(0, due))
end
return answer
"""


class RedisStore:
    """Limits in Redis. Down after one failed exchange; then tried again in the background, ever more rarely."""

    def __init__(
        self, url: str, *, timeout_s: float, now_s: Callable[[], float], prefix: str = "paceline:limits"
    ) -> None:
        """Connects at the first exchange. Raises ConfigError when the client is not installed."""
        try:
            import redis.asyncio  # noqa: F401
        except ImportError as error:
            msg = "limits.shared needs the Redis client; run: pip install 'paceline[redis]'"
            raise ConfigError(msg) from error
        parts = urlsplit(url)
        self.name = f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
        self.is_up = True
        self.failures = 0
        self._url = url
        self._timeout_s = timeout_s
        self._now_s = now_s
        self._prefix = prefix
        self._client: Redis | None = None
        self._script_sha = ""
        self._in_row = 0
        self._retry_at_s = -math.inf

    def may_try(self) -> bool:
        """As `Store` says."""
        return self._now_s() >= self._retry_at_s

    async def exchange(self, gate: str, wants: Sequence[Want], hold_s: float) -> Answer:
        """As `Store` says."""
        keys = [f"{self._prefix}:{{{gate}}}:hold", *(f"{self._prefix}:{{{gate}}}:{i}" for i in range(len(wants)))]
        args: list[str] = [f"{KEEP_S * 1e6:.0f}", f"{_LONGEST_S * 1e6:.0f}", f"{math.ceil(hold_s * 1000)}"]
        for want in wants:
            args += [
                repr(1e6 / want.rate.per_s),
                repr(want.rate.burst),
                f"{want.units:.0f}",
                f"{want.least:.0f}",
                repr(want.back),
                repr(min(want.at_most, _FAR)),
            ]
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await self._run(keys, args)
            answer = _read(found, len(wants))
        except Exception as error:  # whatever a network or a stranger on it does: it is down
            self._failed(error)
            raise StoreDown from error
        self._succeeded()
        return answer

    async def close(self) -> None:
        """As `Store` says."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose(close_connection_pool=True)

    async def _run(self, keys: list[str], args: list[str]) -> Any:
        from redis.exceptions import NoScriptError

        client = self._client or self._connect()
        if not self._script_sha:
            self._script_sha = await client.script_load(SCRIPT)
        try:
            return await client.evalsha(self._script_sha, len(keys), *keys, *args)
        except NoScriptError:  # restarted or failed over
            return await client.eval(SCRIPT, len(keys), *keys, *args)

    def _connect(self) -> "Redis":
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        pool = BlockingConnectionPool.from_url(
            self._url,
            max_connections=_CONNECTIONS,
            timeout=self._timeout_s,
            socket_timeout=self._timeout_s,
            socket_connect_timeout=self._timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._client = Redis(connection_pool=pool)
        return self._client

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        pause_s = _RETRY_S[min(self._in_row, len(_RETRY_S) - 1)]
        self._in_row += 1
        self._retry_at_s = self._now_s() + pause_s
        if self.is_up:
            self.is_up = False
            _LOG.warning("limits: %s is down (%s); each process keeps its part until it answers", self.name, error)

    def _succeeded(self) -> None:
        if not self.is_up:
            self.is_up = True
            _LOG.warning("limits: %s answers again; kept together as before", self.name)
        self._in_row = 0


def _read(found: Any, wants: int) -> Answer:
    """The script's answer; ValueError, TypeError or IndexError when it is anything else."""
    held_ms = int(found[0])
    grants = [Grant(float(found[1 + 2 * i]), float(found[2 + 2 * i]) / 1e6) for i in range(wants)]
    if any(not (math.isfinite(g.units) and g.units >= 0 and math.isfinite(g.due_s)) for g in grants):
        msg = f"not an answer to the limits' script: {found!r:.100}"
        raise ValueError(msg)
    return Answer(grants, max(0.0, held_ms / 1000))
