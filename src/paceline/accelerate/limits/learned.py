"""A rate the provider does not state, found from what it refuses and how often it fails. Pure; time is handed in.

Two things are learned from:

- **How many answers are errors** (429, 5xx), W3.4's rule: over `high_errors` the rate falls by `decrease`, below
  `low_errors` it rises by `increase` while calls wait for it. A rate nobody waits for says nothing about the provider,
  so it does not rise (as TCP's congestion window, RFC 7661).
- **Refusals.** The provider's allowance is used up at every refusal, so between two of them, if calls kept waiting,
  it took exactly what it allows: calls taken / time, or at least the last rate that went well. The rate is then kept
  just below, and tried upwards again in growing steps after `probe_s` without a refusal, longer each time that the
  same limit is met (as BBR probes for bandwidth, Cardwell et al., ACM Queue 2016). Without a measured limit, what went through in the last
  moments less `decrease` is the start.
"""

import math
from collections import deque

from paceline.accelerate.limits.bucket import Bucket, Rate
from paceline.accelerate.limits.policy import AdaptivePolicy

_BELOW = 0.99  # of a measured limit: the rest pays for answers that take longer once and shorter once
_FIRST_STEP = 0.02  # above a measured limit, doubled up to `increase`
_MEMORY = 128  # calls: what "lately" is made of
_ENOUGH = 5  # calls, to call something a throughput
_MEASURE = 10  # intervals: a measured limit covers at least this much time, if it can
_SATURATED = 0.8  # share of calls that had to wait: from here on the provider was the bottleneck
_PROBES = 8  # times `probe_s`: the longest pause between two tries
_SAME = 0.1  # two measurements closer than this are of the same limit
_GUESS = 8  # calls in the wait the provider asked for, when nothing else is known
_QUICKEN = 1.25  # a guess grows by this with every call that is taken


class Learned:
    """The learned rate of one gate; none (no `bucket`) until something was learned."""

    def __init__(self, policy: AdaptivePolicy, now_s: float) -> None:
        self._policy = policy
        self.bucket: Bucket | None = None
        self._ceiling: float | None = None  # the provider's limit as last measured, calls a second
        self._burst = float(policy.burst)
        self._proven = 0.0  # the highest rate since the last refusal that went well for an interval, before a rise
        self._is_guess = False
        self._changed_s = now_s  # answers to calls from before do not judge the rate
        self._judged_s = now_s
        self._answers = self._errors = self._waited = 0
        self._taken: deque[float] = deque(maxlen=_MEMORY)  # when calls were taken, the last ones
        self._refused_s: float | None = None  # the last refusal that began something
        self._taken_since = self._admitted_since = self._waited_since = 0
        self._stretches: deque[tuple[int, float]] = deque(maxlen=64)  # calls taken and seconds, between refusals
        self._step = _FIRST_STEP
        self._probe_s = policy.probe_s
        self._calm_since_s = now_s
        if policy.start_paced:
            self._set(policy.start_per_s, now_s)

    @property
    def per_s(self) -> float:
        """Calls a second; inf before anything was learned."""
        return math.inf if self.bucket is None else self.bucket.per_s

    def admitted(self, *, waited: bool) -> None:
        """A call passes the gate."""
        self._admitted_since += 1
        if waited:
            self._waited_since += 1
            self._waited += 1

    def taken(self, admitted_s: float, now_s: float, *, error: bool) -> None:
        """The provider took a call that was admitted at `admitted_s`; `error`: and failed (5xx)."""
        if not error:
            self._taken.append(now_s)
            self._taken_since += 1
            if self._is_guess and self.bucket is not None:
                self._change(self.bucket.per_s * _QUICKEN, now_s)
        if admitted_s >= self._changed_s:
            self._answers += 1
            self._errors += error
        self._judge(now_s)

    def refused(self, admitted_s: float, until_s: float, now_s: float) -> None:
        """The provider refused a call and asks to come again at `until_s`."""
        if self._refused_s is not None and admitted_s <= self._refused_s:
            return  # sent before the last refusal was known: nothing new
        proven, self._proven = self._proven, 0.0
        was_busy = self._admitted_since >= _ENOUGH and self._waited_since >= _SATURATED * self._admitted_since
        since_s = None if self._refused_s is None else now_s - self._refused_s
        measured = self._measure(since_s) if was_busy and since_s is not None else None
        self._refused_s = now_s
        self._taken_since = self._admitted_since = self._waited_since = 0
        if measured is not None:
            self._meet(max(measured, proven), now_s)
        else:
            self._stretches.clear()
            self._retreat(until_s - now_s, now_s, was_busy=was_busy)
        self._calm_since_s = until_s
        self._step = _FIRST_STEP
        if self.bucket is not None:
            self.bucket.not_before(until_s, 1.0)

    def _measure(self, since_s: float) -> float | None:
        """The provider's limit, from what it took between refusals, the last of them `since_s` ago."""
        self._stretches.append((self._taken_since, since_s))
        taken, lasted_s = 0, 0.0
        for calls, stretch_s in reversed(self._stretches):
            taken += calls
            lasted_s += stretch_s
            if lasted_s >= _MEASURE * self._policy.interval_s and taken >= _MEASURE:
                break
        return taken / lasted_s if taken >= _ENOUGH and lasted_s >= self._policy.interval_s else None

    def _meet(self, measured: float, now_s: float) -> None:
        """A limit was measured: stay below it, and wait the longer before trying again the surer it is."""
        same = self._ceiling is not None and abs(measured / self._ceiling - 1) < _SAME
        policy = self._policy
        self._probe_s = min(self._probe_s * 2, policy.probe_s * _PROBES) if same else policy.probe_s
        self._ceiling = measured
        self._is_guess = False
        self._set(measured * _BELOW, now_s)

    def _retreat(self, wait_s: float, now_s: float, *, was_busy: bool) -> None:
        """Refused, and the limit is not known: a fifth below what went through lately."""
        interval_s = self._policy.interval_s
        lately = sum(1 for at_s in self._taken if at_s > now_s - interval_s) / interval_s
        if not was_busy:
            self._burst = max(1.0, self._burst / 2)  # a burst was refused
            if self.bucket is not None:  # not the rate
                self._change(self.per_s, now_s)
                return
        if lately * interval_s < _ENOUGH:
            self._is_guess = True
            lately = _GUESS / max(wait_s, interval_s / 100) / (1 - self._policy.decrease)
        self._set(min(self.per_s, lately) * (1 - self._policy.decrease), now_s)

    def _judge(self, now_s: float) -> None:
        """W3.4's rule, once an interval."""
        policy = self._policy
        if now_s - self._judged_s < policy.interval_s:
            return
        answers, errors, waited = self._answers, self._errors, self._waited
        if answers >= policy.min_answers and errors > policy.high_errors * answers:
            lately = len(self._taken) / max(now_s - self._taken[0], policy.interval_s) if self._taken else math.inf
            reduced = min(self.per_s, lately if self.bucket is None else math.inf) * (1 - policy.decrease)
            if reduced < math.inf:
                self._set(max(min(policy.min_per_s, self.per_s), reduced), now_s)
        elif answers and errors <= policy.low_errors * answers and 2 * waited >= answers and self.bucket is not None:
            self._rise(now_s)
        elif answers < policy.min_answers and now_s - self._judged_s < 10 * policy.interval_s:
            return  # too few to judge: look at more
        self._judged_s = now_s
        self._answers = self._errors = self._waited = 0

    def _rise(self, now_s: float) -> None:
        policy, per_s = self._policy, self.per_s
        target = per_s * (1 + policy.increase)
        if self._ceiling is not None:
            if now_s - self._calm_since_s >= self._probe_s:
                self._burst = min(self._burst + 1, float(policy.burst))
                target = min(target, max(per_s, self._ceiling) * (1 + self._step))
                self._step = min(self._step * 2, policy.increase)
            else:
                target = min(target, max(per_s, self._ceiling * _BELOW))
        target = min(target, policy.max_per_s)
        if target > per_s:
            self._proven = per_s
            self._change(target, now_s)

    def _set(self, per_s: float, now_s: float) -> None:
        """A new start: earlier answers do not judge it."""
        self._change(per_s, now_s)
        self._changed_s = self._judged_s = now_s
        self._answers = self._errors = self._waited = 0

    def _change(self, per_s: float, now_s: float) -> None:
        rate = Rate(min(max(per_s, 1e-4), self._policy.max_per_s), self._burst)
        if self.bucket is None:
            self.bucket = Bucket(rate, now_s)
        else:
            self.bucket.change(rate, now_s)
