"""What one gate's provider says and does: holds, stated limits, and what has to be found out."""

import math
from collections import deque

from paceline.accelerate.limits.dry import DrySpell
from paceline.accelerate.limits.learned import Learned
from paceline.accelerate.limits.meter import REQUESTS, TOKENS, Meter
from paceline.accelerate.limits.permit import Permit
from paceline.accelerate.limits.policy import AdaptivePolicy, Bounds
from paceline.accelerate.limits.signals import Signal
from paceline.accelerate.limits.told import Told

_BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)  # after refusals that do not say how long, one after the other
_DOUBTS = 5  # refusals within `probe_s` despite known limits ...
_DOUBTFUL = 0.03  # ... that are more than this share of the calls: then the limits are not believed
_DOUBTED_S = 600.0  # for so long


class Answers:
    """Turns answers into a hold, into limits for the meter, and into a learned rate."""

    def __init__(self, policy: AdaptivePolicy, bounds: Bounds, meter: Meter, now_s: float) -> None:
        self.held_until_s = -math.inf
        self.learned = Learned(policy, now_s)
        self.states_tokens = False
        self._policy = policy
        self._meter = meter
        self._told = {REQUESTS: Told(policy.minute_s), TOKENS: Told(policy.minute_s)}
        self._figures = {REQUESTS: bool(bounds.requests), TOKENS: bounds.tokens is not None}  # of user or provider
        self._dry = DrySpell()
        self._refusal: deque[tuple[float, int]] = deque(maxlen=_DOUBTS)  # the last ones: when, calls admitted till then
        self._doubted_until_s = -math.inf

    def wait_s(self, now_s: float) -> float:
        """Seconds until a call may pass, for all that the provider said; 0.0: now."""
        wait_s = self.held_until_s - now_s
        bucket = self.learned.bucket
        if bucket is not None:
            learned_s = bucket.wait_s(1.0, now_s)
            if learned_s > wait_s:
                return learned_s
        return max(0.0, wait_s)

    def drain_s(self, calls: float, now_s: float) -> float:
        """Seconds until so many calls will have passed, at best."""
        bucket = self.learned.bucket
        return max(0.0, self.held_until_s - now_s, bucket.drain_s(calls, now_s) if bucket is not None else 0.0)

    def admitted(self, now_s: float, waited: bool) -> None:
        """A call passes the gate."""
        self._dry.lately += 1
        self.learned.admitted(now_s, waited)

    def heard(self, permit: Permit, signal: Signal, sent: tuple[int, int], now_s: float) -> None:
        """An answer; `sent`: calls and tokens admitted up to now."""
        if signal.status == 429:
            self._refused(permit, signal, sent, now_s)
            return
        self._dry.taken(permit.admitted_s)
        if signal.limit_requests is not None or signal.limit_tokens is not None:
            self._see_stated(permit, signal, sent, now_s)
        failed = signal.status >= 500
        if failed and signal.retry_after_s is not None:
            self._hold(signal.retry_after_s, now_s)
        self.learned.taken(permit.admitted_s, now_s, error=failed)

    def _hold(self, wait_s: float, now_s: float) -> float:
        """Nobody passes for so long; the moment it ends."""
        self.held_until_s = max(self.held_until_s, now_s + min(wait_s, self._policy.max_hold_s))
        return self.held_until_s

    def _refused(self, permit: Permit, signal: Signal, sent: tuple[int, int], now_s: float) -> None:
        """429: hold everybody for as long as it asks, and remember what it lacked."""
        if signal.quota_exhausted:
            if signal.retry_after_s is not None:
                self._hold(signal.retry_after_s, now_s)
            return
        tokens = permit.tokens
        permit.used(0)  # what is refused costs no tokens
        self.learned.not_taken()
        is_new = self._dry.refused(permit.admitted_s, now_s)
        wait_s = signal.retry_after_s
        if wait_s is None:
            wait_s = _BACKOFF_S[min(self._dry.times, len(_BACKOFF_S)) - 1] * self._policy.minute_s / 60
        lacks_calls = signal.remaining_requests is not None and signal.remaining_requests < 1
        lacks_tokens = signal.remaining_tokens is not None and signal.remaining_tokens < tokens
        if self._figures[TOKENS] and not self._figures[REQUESTS]:
            lacks_tokens = not lacks_calls  # it does not say, but this is the limit that we know of
        if is_new:
            self._told[TOKENS if lacks_tokens else REQUESTS].refused(permit.admitted_s, now_s)
        self._see_stated(permit, signal, sent, now_s)
        until_s = self._hold(wait_s, now_s)
        calls_left = None if lacks_tokens and not lacks_calls else 1.0
        self._meter.not_before(until_s, calls_left, float(tokens) if lacks_tokens else None, now_s)
        if is_new:
            self._refusal.append((now_s, sent[0]))
            if calls_left and not self._believes_figures(sent[0], now_s):
                seen_s = now_s - self._dry.since_s if signal.retry_after_s is None else signal.retry_after_s
                self.learned.refused(until_s, seen_s, now_s)

    def _believes_figures(self, sent: int, now_s: float) -> bool:
        """True while known limits explain the refusals: some come of calls that took a different time on their way."""
        if not self._figures[REQUESTS]:
            return False
        since_s, sent_then = self._refusal[0]
        policy = self._policy
        often = len(self._refusal) == _DOUBTS and now_s - since_s < policy.probe_s
        if often and _DOUBTFUL * (sent - sent_then) < _DOUBTS:
            self._doubted_until_s = now_s + _DOUBTED_S * policy.minute_s / 60
        return now_s >= self._doubted_until_s

    def _see_stated(self, permit: Permit, signal: Signal, sent: tuple[int, int], now_s: float) -> None:
        """Follow the limits in the headers, and what is left of them.

        The provider counted what was left, in whole units, at some moment between this call's admission and now. So at
        most that, and what came back since, less the calls admitted later, is left; at least that, less those and all
        that were in flight.
        """
        stated = (
            (REQUESTS, signal.limit_requests, signal.remaining_requests, signal.reset_requests_s),
            (TOKENS, signal.limit_tokens, signal.remaining_tokens, signal.reset_tokens_s),
        )
        since = (sent[0] - permit.serial, sent[1] - permit.serial_tokens)
        before = (permit.before, permit.before_tokens)
        for index, (kind, limit, remaining, reset_s) in enumerate(stated):
            if limit is None:
                continue
            self._figures[kind] = True
            self.states_tokens = self.states_tokens or kind == TOKENS
            rate = self._told[kind].rate(limit, remaining, reset_s, now_s)
            low, high = -math.inf, math.inf
            if remaining is not None:
                left = remaining - since[index]
                low, high = left - before[index], left + 1 + rate.per_s * (now_s - permit.admitted_s)
            self._meter.told(kind, rate, low, high, now_s)
