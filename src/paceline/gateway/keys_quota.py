"""What a key may take: requests and tokens a minute, money a day and a month, over all processes of the gateway.

A process knows its own use at once and that of the others LOOK_S later. So a limit is exceeded at most by what the
other processes admit in LOOK_S and, for tokens and money, by the calls in flight when it is reached: nobody knows what
a call will have used before it is over.
"""

import time
from collections.abc import Callable

import msgspec

from paceline.gateway.keys import Key
from paceline.gateway.keys_table import REQUESTS, TOKENS, Table, periods, until_next_day_s, until_next_month_s

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
        self._looked_s = now_s()
        limits = ((REQUESTS, key.requests_per_min, "requests"), (TOKENS, key.tokens_per_min, "tokens"))
        self._buckets = [
            _Bucket(field, limit, unit, self._looked_s, table.used(row, field, without=process))
            for field, limit, unit in limits
            if limit is not None
        ]
        self._free = not self._buckets and not key.has_budget
        self._day_usd = self._month_usd = 0.0
        self._look(self._looked_s)

    def take(self) -> Refusal | None:
        """Count one call; a refused one counts nothing. About 0.1 us without limits, 3 us with all of them."""
        if self._free:
            return None
        now_s = self._now_s()
        if now_s - self._looked_s >= LOOK_S:
            self._look(now_s)
        for bucket in self._buckets:
            wait_s = bucket.wait_s(now_s)
            if wait_s > 0:
                msg = f"this gateway key may use {bucket.per_min:,.0f} {bucket.unit} a minute; wait {wait_s:.1f} s"
                return Refusal(status=429, code="rate_limit_exceeded", message=msg, retry_after_s=wait_s)
        if self._key.has_budget and (broke := self._broke()) is not None:
            return broke
        self._use(REQUESTS, 1)
        return None

    def charge(self, tokens: int, cost_usd: float | None) -> None:
        """Add what a finished call used. An unknown cost adds nothing here: it is counted apart, in the costs."""
        if tokens:
            self._use(TOKENS, tokens)
        if cost_usd:
            self._table.spend(self._row, self._process, cost_usd, *periods(self._unix_s()))
            self._day_usd += cost_usd
            self._month_usd += cost_usd

    def _use(self, field: int, amount: int) -> None:
        for bucket in self._buckets:
            if bucket.field == field:
                bucket.level += amount
                self._table.add(self._row, self._process, field, amount)

    def _look(self, now_s: float) -> None:
        """Take in what the other processes used since last time."""
        self._looked_s = now_s
        for bucket in self._buckets:
            bucket.pass_time(now_s, self._table.used(self._row, bucket.field, without=self._process))
        if self._key.has_budget:
            self._day_usd, self._month_usd = self._table.spent_usd(self._row, *periods(self._unix_s()))

    def _broke(self) -> Refusal | None:
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
    """A bucket that holds a minute's worth and runs out steadily."""

    __slots__ = ("_at_s", "_others", "field", "level", "per_min", "unit")

    def __init__(self, field: int, per_min: float, unit: str, now_s: float, others: float) -> None:
        self.field, self.per_min, self.unit = field, per_min, unit
        self.level = 0.0
        self._at_s = now_s
        self._others = others  # running count of the other processes

    def pass_time(self, now_s: float, others: float | None = None) -> None:
        """Run out for the time that passed, and take in what the others used meanwhile."""
        if others is not None:
            self.level += others - self._others
            self._others = others
        self.level = max(0.0, self.level - (now_s - self._at_s) * self.per_min / 60)
        self._at_s = now_s

    def wait_s(self, now_s: float) -> float:
        """Seconds until there is room for one more (request or token); 0 when there is."""
        self.pass_time(now_s)
        return max(0.0, self.level + 1.0 - max(1.0, self.per_min)) * 60 / self.per_min
