"""All gates of one process."""

import asyncio
import itertools
import time
from collections.abc import Callable
from hashlib import blake2b

from paceline.accelerate.limits.ask import Ask
from paceline.accelerate.limits.gate import Gate, GateState
from paceline.accelerate.limits.meter import LocalMeter, Meter
from paceline.accelerate.limits.permit import Permit
from paceline.accelerate.limits.policy import Bounds, LimitsPolicy
from paceline.accelerate.limits.redis_store import RedisStore
from paceline.accelerate.limits.shared import SharedMeter, Store
from paceline.errors import Overloaded

_GATES = 4096
_FULL_S = 1.0  # told to a call for which there is no gate left


class Limits:
    """One gate for each provider key and model: that is how providers count. For one event loop.

    `now_s` must be the loop's clock, as deadlines are. `shared` replaces the Redis of the policy (tests do).
    Whoever made it closes it.
    """

    def __init__(
        self, policy: LimitsPolicy, *, now_s: Callable[[], float] = time.monotonic, shared: Store | None = None
    ) -> None:
        self.policy = policy
        self.now_s = now_s
        if shared is None and policy.shared is not None:
            shared = RedisStore(policy.shared, timeout_s=policy.shared_timeout_s, now_s=now_s)
        self._store = shared
        self.ticket: Callable[[], int] = itertools.count().__next__  # the next place in the order of admission
        self._gates: dict[tuple[bytes, str], Gate] = {}
        self._is_open = not policy.adaptive.enabled and policy.for_model("").is_unlimited
        self._open_gate = Gate("any", policy.for_model(""), policy, LocalMeter(policy.for_model(""), 0.0), self)

    def try_admit(self, ask: Ask) -> Permit | None:
        """A permit if the call may go now; None means: `await admit`. Never waits. About 1 us."""
        gate = self._gates.get((ask.key, ask.model)) or self._gate(ask)
        return gate.try_pass(ask)

    async def admit(self, ask: Ask) -> Permit:
        """Wait for a turn; whoever returns from here calls `Permit.leave`.

        Raises Overloaded with an estimate of the wait: at once when the wait would outlast the deadline or the queue
        is full; else when the deadline comes. Cancelling gives the place up.
        """
        gate = self._gates.get((ask.key, ask.model)) or self._gate(ask)
        return await gate.pass_(ask)

    def estimate_s(self, ask: Ask) -> float:
        """Seconds the call would have to wait now. O(1) but for the limits of its gate."""
        gate = self._gates.get((ask.key, ask.model)) or self._gate(ask)
        return gate.estimate_s(ask, self.now_s())

    @property
    def in_flight(self) -> int:
        """Calls past a gate now."""
        return self._open_gate.in_flight + sum(gate.in_flight for gate in self._gates.values())

    @property
    def waiting(self) -> int:
        """Calls queued now."""
        return sum(len(gate.queue) for gate in self._gates.values())

    def states(self) -> list[GateState]:
        """Every gate now. O(gates)."""
        now_s = self.now_s()
        return [gate.state(key.hex()[:8], now_s) for (key, _), gate in self._gates.items()]

    def describe(self) -> str:
        """One sentence for whoever starts the service: what is bounded, and among whom."""
        policy = self.policy
        if policy.is_off:
            return "limits: none"
        what = _wording(policy.for_model("")) + [f"{name}: its own" for name in sorted(policy.models)]
        if policy.adaptive.enabled:
            what.append("learned from the provider's answers")
        bounds = "; ".join(what)
        if self._store is not None:
            return (
                f"limits for each provider key and model, kept by all processes together ({self._store.name}): {bounds}"
            )
        if policy.processes > 1:
            among = f"each of {policy.processes} processes keeps its part"
        else:
            among = "each process for itself: several see several times as much at the provider (limits.shared = redis://...)"
        return f"limits for each provider key and model: {bounds}; {among}"

    async def close(self) -> None:
        """Stop timers and let go of Redis. Calls still waiting are left to their cancellation."""
        ending = [task for gate in self._gates.values() if (task := gate.close()) is not None]
        await asyncio.gather(*ending, return_exceptions=True)
        if self._store is not None:
            await self._store.close()

    def _gate(self, ask: Ask) -> Gate:
        policy = self.policy
        if self._is_open and ask.model not in policy.models:
            return self._open_gate
        if len(self._gates) >= _GATES:
            self._forget_idle()
        bounds = policy.for_model(ask.model)
        gate = Gate(ask.model, bounds.divided(policy.processes), policy, self._meter(ask, bounds), self)
        self._gates[ask.key, ask.model] = gate
        return gate

    def _meter(self, ask: Ask, bounds: Bounds) -> Meter:
        local = LocalMeter(bounds, self.now_s(), parts=self.policy.processes)
        if self._store is None:
            return local
        name = blake2b(ask.key + b"\0" + ask.model.encode(), digest_size=16).hexdigest()
        return SharedMeter(name, bounds, self._store, local, self.now_s)

    def _forget_idle(self) -> None:
        """Callers choose keys and models, so the number of gates needs a bound: the oldest idle quarter goes.

        First those the provider does not hold. Raises Overloaded when every gate is in use.
        """
        idle = [key for key, gate in self._gates.items() if gate.is_idle]
        if not idle:
            msg = f"{len(self._gates)} provider keys and models have calls in flight; try again in {_FULL_S:g} s"
            raise Overloaded(msg, retry_after_s=_FULL_S)
        idle.sort(key=lambda key: self._gates[key].is_held)
        for key in idle[: max(1, _GATES // 4)]:
            self._gates.pop(key).close()


def _wording(bounds: Bounds) -> list[str]:
    said = [] if bounds.concurrency is None else [f"{bounds.concurrency} at once"]
    said += [f"{rate.per_s:.4g} calls/s (burst {rate.burst:.4g})" for rate in bounds.requests]
    return said + ([] if bounds.tokens is None else [f"{bounds.tokens.per_s * 60:.0f} tokens/min"])
