"""A provider that refuses as the real ones do, in virtual time, and callers that offer it too much."""

import asyncio
import json
import math
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from tests.virtual_loop import now_s

from paceline.accelerate.limits import Ask, Limits, signal_of
from paceline.errors import Overloaded

Headers = list[tuple[bytes, bytes]]


class Allowance(Protocol):
    """One limit of the provider."""

    def wait_s(self, amount: float, at_s: float) -> float:
        """Seconds until so much would be taken; 0: now."""
        ...

    def take(self, amount: float, at_s: float) -> None:
        """Count it."""
        ...

    def left(self, at_s: float) -> float:
        """What is left."""
        ...


class SlidingWindow:
    """At most `limit` in any `window_s`, as Redis-backed limiters and Gemini's minutes count."""

    def __init__(self, limit: float, window_s: float) -> None:
        self.limit, self.window_s = limit, window_s
        self._taken: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def left(self, at_s: float) -> float:
        while self._taken and self._taken[0][0] <= at_s - self.window_s + 1e-9:
            self._sum -= self._taken.popleft()[1]
        return self.limit - self._sum

    def wait_s(self, amount: float, at_s: float) -> float:
        short = amount - self.left(at_s)
        for taken_s, taken in self._taken:
            if short <= 1e-9:
                break
            short -= taken
            if short <= 1e-9:
                return taken_s + self.window_s - at_s
        return 0.0 if short <= 1e-9 else math.inf

    def take(self, amount: float, at_s: float) -> None:
        self._taken.append((at_s, amount))
        self._sum += amount


class TokenBucket:
    """Refills at `per_s` up to `capacity`, as Anthropic says it counts."""

    def __init__(self, per_s: float, capacity: float) -> None:
        self.per_s, self.capacity = per_s, capacity
        self._level, self._at_s = capacity, 0.0

    def left(self, at_s: float) -> float:
        self._level = min(self.capacity, self._level + (at_s - self._at_s) * self.per_s)
        self._at_s = at_s
        return self._level

    def wait_s(self, amount: float, at_s: float) -> float:
        short = min(amount, self.capacity) - self.left(at_s)
        return short / self.per_s if short > 1e-9 else 0.0

    def take(self, amount: float, at_s: float) -> None:
        self._level = self.left(at_s) - amount


@dataclass
class Provider:
    """Answers 200 or 429. `hint`: how a refusal says how long: "ms", "s" (whole seconds), "body" (Gemini) or ""."""

    requests: Allowance | None = None
    tokens: Allowance | None = None
    hint: str = "ms"
    states: bool = False  # x-ratelimit headers, per minute
    per_min: tuple[float, float] = (0, 0)
    failed_count: bool = True
    fail_until_s: float = 0.0  # 500 before this
    latency_s: float = 0.05
    jitter_s: float = 0.05
    service_s: float = 0.5
    seed: int = 1
    accepted: list[tuple[float, int]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    async def call(self, tokens: int) -> tuple[int, Headers, bytes]:
        """One call, over the network."""
        await asyncio.sleep(self.latency_s + self._random.random() * self.jitter_s)
        at_s = now_s()
        wait_s = max(
            self.requests.wait_s(1, at_s) if self.requests else 0.0,
            self.tokens.wait_s(tokens, at_s) if self.tokens else 0.0,
        )
        if wait_s > 0:
            self.refused.append(at_s)
            if self.failed_count and self.requests and self.requests.left(at_s) >= 1:
                self.requests.take(1, at_s)
            await asyncio.sleep(self.latency_s)
            return 429, self._stated(at_s) + self._hints(wait_s), self._body(wait_s)
        if self.requests:
            self.requests.take(1, at_s)
        if self.tokens:
            self.tokens.take(tokens, at_s)
        stated = self._stated(at_s)
        if at_s < self.fail_until_s:
            await asyncio.sleep(self.latency_s)
            return 500, stated, b"{}"
        self.accepted.append((at_s, tokens))
        await asyncio.sleep(self.latency_s + self.service_s * (0.5 + self._random.random()))
        return 200, stated, b"{}"

    def _hints(self, wait_s: float) -> Headers:
        if self.hint == "ms":
            return [(b"retry-after-ms", b"%d" % math.ceil(wait_s * 1000))]
        return [(b"retry-after", b"%d" % math.ceil(wait_s))] if self.hint == "s" else []

    def _body(self, wait_s: float) -> bytes:
        error: dict[str, object] = {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Quota exceeded."}
        if self.hint == "body":
            kind = "type.googleapis.com/google.rpc.RetryInfo"
            error["details"] = [{"@type": kind, "retryDelay": f"{math.ceil(wait_s * 1000) / 1000}s"}]
        return json.dumps({"error": error}).encode()

    def _stated(self, at_s: float) -> Headers:
        if not self.states:
            return []
        found: Headers = []
        for kind, allowance, per_min in (
            (b"requests", self.requests, self.per_min[0]),
            (b"tokens", self.tokens, self.per_min[1]),
        ):
            if allowance is not None and per_min:
                left = max(0.0, allowance.left(at_s))
                found.append((b"x-ratelimit-limit-" + kind, b"%d" % per_min))
                found.append((b"x-ratelimit-remaining-" + kind, b"%d" % left))
                found.append((b"x-ratelimit-reset-" + kind, b"%.3fs" % ((per_min - left) * 60 / per_min)))
        return found


@dataclass
class Seen:
    """What befell the callers."""

    answered: list[tuple[float, float]] = field(default_factory=list)  # (came, first admitted)
    refused: list[float] = field(default_factory=list)  # a 429 of the provider reached the caller
    shed: list[tuple[float, float, float]] = field(default_factory=list)  # (came, told, retry after)
    late_s: float = 0.0  # the worst admission after its deadline
    by_tenant: dict[bytes, int] = field(default_factory=dict)


async def offer(
    limits: Limits,
    provider: Provider,
    seen: Seen,
    *,
    per_s: float,
    for_s: float,
    patience_s: float,
    tokens: Iterable[int] = (1,),
    attempts: int = 8,
    tenants: int = 5,
    seed: int = 2,
) -> None:
    """Poisson arrivals for so long, each retried after a 429 as often as `attempts` and its deadline allow."""
    chance = random.Random(seed)
    sizes = list(tokens)
    async with asyncio.TaskGroup() as tasks:
        end_s = now_s() + for_s
        while now_s() < end_s:
            tenant = b"t%d" % chance.randrange(tenants)
            tasks.create_task(_one(limits, provider, seen, tenant, chance.choice(sizes), patience_s, attempts))
            await asyncio.sleep(chance.expovariate(per_s))


async def _one(
    limits: Limits, provider: Provider, seen: Seen, tenant: bytes, tokens: int, patience_s: float, attempts: int
) -> None:
    came_s = now_s()
    ask = Ask(tenant=tenant, key=b"k", model="m", tokens=tokens, deadline_s=came_s + patience_s)
    status, first_s = 0, None
    for _ in range(attempts):
        try:
            permit = limits.try_admit(ask) or await limits.admit(ask)
        except Overloaded as error:
            if status == 429:
                seen.refused.append(now_s())
            else:
                seen.shed.append((came_s, now_s(), error.retry_after_s))
            return
        try:
            first_s = now_s() if first_s is None else first_s
            assert ask.deadline_s is not None
            seen.late_s = max(seen.late_s, now_s() - ask.deadline_s)
            status, headers, body = await provider.call(tokens)
            permit.heard(signal_of(status, headers, body, 0.0))
        finally:
            permit.leave()
        if status != 429:
            break
    if status == 429:
        seen.refused.append(now_s())
    elif status == 200:
        assert first_s is not None
        seen.answered.append((came_s, first_s))
        seen.by_tenant[tenant] = seen.by_tenant.get(tenant, 0) + 1
