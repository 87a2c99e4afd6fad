"""What a key may take: requests and tokens a minute, money a day and a month, over all processes of the gateway.

Nobody knows what a call will have used before it is over, so limits of tokens and money are exceeded by the calls in
flight when they are reached; money besides by what the other processes spent in the last LOOK_S.
"""

import time
from collections.abc import Callable

import msgspec

from paceline.gateway.keys.file import Key
from paceline.gateway.keys.table import REQUESTS, TOKENS, Table, periods, until_next_day_s, until_next_month_s

LOOK_S = 0.1


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a call is not made."""

    status: int
    code: str
    message: str
    retry_after_s: float | None = None


class Meter:
    """One key's limits in one process: `take` admits a call or says why not, `charge` adds what it used."""

    def __init__(
        self,
        key: Key,
        table: Table,
        row: int,
        process: int,
        *,
        now_s: Callable[[], float] = time.monotonic,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._key, self._table, self._row, self._process = key, table, row, process
        self._now_s, self._unix_s = now_s, unix_s
        limits = ((REQUESTS, key.requests_per_min, "requests"), (TOKENS, key.tokens_per_min, "tokens"))
        self._buckets = {
            rate: _Bucket(table.cells, table.index(row, rate), limit, unit)
            for rate, limit, unit in limits
            if limit is not None
        }
        self._free = not self._buckets and not key.has_budget
        self._day_usd = self._month_usd = 0.0
        self._looked_s = float("-inf")

    def take(self) -> Refusal | None:
        """Count one call; a refused one counts nothing. About 0.1 us without limits, 3 us with all of them."""
        if self._free:
            return None
        now_s = self._now_s()
        for bucket in self._buckets.values():
            wait_s = bucket.wait_s(now_s)
            if wait_s > 0:
                msg = f"this gateway key may use {bucket.per_min:,.0f} {bucket.unit} a minute; wait {wait_s:.1f} s"
                return Refusal(status=429, code="rate_limit_exceeded", message=msg, retry_after_s=wait_s)
        if self._key.has_budget and (broke := self._broke(now_s)) is not None:
            return broke
        if REQUESTS in self._buckets:
            self._buckets[REQUESTS].pour(1, now_s)
        return None

    def charge(self, tokens: int, cost_usd: float | None) -> None:
        """Add what a finished call used. An unknown cost adds nothing here: it is counted apart, in the costs."""
        if tokens and TOKENS in self._buckets:
            self._buckets[TOKENS].pour(tokens, self._now_s())
        if cost_usd:
            self._table.spend(self._row, self._process, cost_usd, *periods(self._unix_s()))
            self._day_usd += cost_usd
            self._month_usd += cost_usd

    def _broke(self, now_s: float) -> Refusal | None:
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            self._day_usd, self._month_usd = self._table.spent_usd(self._row, *periods(self._unix_s()))
        key = self._key
        for limit_usd, spent_usd, period, until_next_s in (
            (key.budget_usd_per_day, self._day_usd, "day", until_next_day_s),
            (key.budget_usd_per_month, self._month_usd, "month", until_next_month_s),
        ):
            if limit_usd is not None and spent_usd >= limit_usd:
                msg = f"this gateway key has spent its budget of ${limit_usd:,.2f} for the {period} (UTC)"
                wait_s = until_next_s(self._unix_s())
                return Refusal(status=429, code="insufficient_quota", message=msg, retry_after_s=wait_s)
        return None


class _Bucket:
    """A bucket that holds a minute's worth and runs out steadily, kept as the moment it will be empty (GCRA)."""

    __slots__ = ("_cells", "_index", "_room_s", "_unit_s", "per_min", "unit")

    def __init__(self, cells: "memoryview[float]", index: int, per_min: float, unit: str) -> None:
        self.per_min, self.unit = per_min, unit
        self._cells, self._index = cells, index
        self._unit_s = 60 / per_min  # what one request or token adds
        self._room_s = max(60.0, self._unit_s)  # a full bucket

    def wait_s(self, now_s: float) -> float:
        """Seconds until there is room for one more; 0 or less when there is."""
        return max(0.0, self._cells[self._index] - now_s) + self._unit_s - self._room_s

    def pour(self, amount: int, now_s: float) -> None:
        """Add that many."""
        self._cells[self._index] = max(self._cells[self._index], now_s) + amount * self._unit_s
