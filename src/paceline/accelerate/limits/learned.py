"""A rate the provider does not state, found from what it refuses and how often it fails. Pure; time is handed in.

Two things are learned from:

- **How many answers are errors** (429, 5xx), W3.4's rule: over `high_errors` the rate falls by `decrease`, below
  `low_errors` it rises by `increase` while calls wait for it. A rate nobody waits for says nothing about the provider,
  so it does not rise (as TCP's congestion window, RFC 7661).
- **Refusals.** The allowance is used up at every refusal. So of a provider that refills steadily, or counts over a
  second or so, the limit is what it took between two refusals, if calls kept waiting: calls / time, or at least the
  last rate that went well. And of one that counts over a minute, the limit is what it took in the minute before; it
  is known by asking for a wait that no steady refill explains. The rate is then kept just below, and tried upwards
  again in growing steps after `probe_s` without a refusal, longer each time that the same limit is met (as BBR probes
  for bandwidth, Cardwell et al., ACM Queue 2016). Without a measured limit, what went through in the last moments
  less `decrease` is the start.
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
_SETTLED = 2  # intervals after a refusal: one that follows sooner still comes of what was sent before
_SLOTS = 240  # of the last minute
_WINDOWED = 5  # calls at the rate of late, in a wait: longer than a bucket takes for one call
_WINDOWED_S = 600.0  # so long a provider is held to count over minutes, after it last looked so
_SATURATED = 0.8  # share of calls that had to wait: from here on the provider was the bottleneck
_PROBES = 8  # times `probe_s`: the longest pause between two tries
_SAME = 0.03  # two measurements closer than this are of the same limit
_CREDIT = 1.2  # a rate that went well counts up to this much above the measurement: a bucket may have paid for it
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
        self._soonest_s = min(policy.interval_s, policy.minute_s / 4)  # between two judgements
        self._answers = self._errors = self._waited = 0
        self._taken: deque[float] = deque(maxlen=_MEMORY)  # when calls were taken, the last ones
        self._since_s: float | None = None  # the refusal that began the stretch being measured
        self._taken_since = self._admitted_since = self._waited_since = 0
        self._stretches: deque[tuple[int, float]] = deque(maxlen=64)  # calls taken and seconds, between refusals
        self._minute = _LastMinute(policy.minute_s)
        self._windowed_until_s = -math.inf
        self._step = _FIRST_STEP
        self._probe_s = policy.probe_s
        self._calm_since_s = now_s
        if policy.start_paced:
            self._set(policy.start_per_s, now_s)

    @property
    def per_s(self) -> float:
        """Calls a second; inf before anything was learned."""
        return math.inf if self.bucket is None else self.bucket.per_s

    def admitted(self, now_s: float, waited: bool) -> None:
        """A call passes the gate."""
        if self.bucket is not None:
            self.bucket.take(1.0)
        minute = self._minute
        minute.calls += 1
        if now_s >= minute.until_s:
            minute.turn(now_s)
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
        if now_s - self._judged_s >= self._soonest_s:
            self._judge(now_s)

    def not_taken(self) -> None:
        """An admitted call was refused."""
        self._minute.calls -= 1

    def refused(self, until_s: float, waited_s: float, now_s: float) -> None:
        """The provider refused again, calls sent together counted once.

        Args:
            until_s: When the gate opens again.
            waited_s: How long the provider makes us wait, as it says, or as it was seen to so far.
            now_s: The time.
        """
        self._see_wait(waited_s, now_s)
        if now_s < self._windowed_until_s:
            self._meet(self._minute.count(now_s) / self._policy.minute_s, now_s)
            self._begin(now_s)
        elif self._since_s is None:
            self._retreat(until_s - now_s, now_s, was_busy=False)
            self._begin(now_s)
        elif self._admitted_since >= _ENOUGH and now_s - self._since_s >= self._settled_s():
            self._end_stretch(now_s - self._since_s, until_s - now_s, now_s)
            self._begin(now_s)
        self._is_guess = self._is_guess and self._proven == 0.0
        self._calm_since_s = until_s
        self._step = _FIRST_STEP
        if self.bucket is not None:
            self.bucket.not_before(until_s, 1.0)

    def _see_wait(self, wait_s: float, now_s: float) -> None:
        """A wait long enough for several calls means a window that has to pass, not a bucket that refills."""
        lately = self._lately(now_s)
        if wait_s > 2 * self._policy.interval_s and wait_s * lately > _WINDOWED:
            self._windowed_until_s = now_s + _WINDOWED_S * self._policy.minute_s / 60

    def _settled_s(self) -> float:
        return self._policy.interval_s * (1.0 if self._ceiling is None else _SETTLED)

    def _end_stretch(self, since_s: float, hold_s: float, now_s: float) -> None:
        was_busy = self._waited_since >= _SATURATED * self._admitted_since
        measured = self._measure(since_s) if was_busy else None
        if measured is not None:
            self._meet(max(measured, min(self._proven, measured * _CREDIT)), now_s)
        else:
            self._stretches.clear()
            self._retreat(hold_s, now_s, was_busy=was_busy)

    def _begin(self, now_s: float) -> None:
        """A stretch between refusals begins."""
        self._since_s = now_s
        self._taken_since = self._admitted_since = self._waited_since = 0
        self._proven = 0.0

    def _measure(self, since_s: float) -> float | None:
        """The provider's limit, from what it took between refusals, the last of them `since_s` ago."""
        self._stretches.append((self._taken_since, since_s))
        taken, lasted_s = 0, 0.0
        for calls, stretch_s in reversed(self._stretches):
            taken += calls
            lasted_s += stretch_s
            if lasted_s >= _MEASURE * self._policy.interval_s and taken >= _MEASURE:
                break
        return taken / lasted_s if taken >= _ENOUGH else None

    def _lately(self, now_s: float) -> float:
        """Calls a second that were taken before now, or before the last refusal."""
        if not self._taken:
            return 0.0
        last_s, interval_s = self._taken[-1], self._policy.interval_s
        return sum(1 for at_s in self._taken if at_s > last_s - interval_s) / interval_s

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
        lately, interval_s = self._lately(now_s), self._policy.interval_s
        if lately * interval_s < _ENOUGH:
            self._is_guess = True
            lately = _GUESS / max(wait_s, interval_s / 100) / (1 - self._policy.decrease)
        self._set(min(self.per_s, lately) * (1 - self._policy.decrease), now_s)

    def _judge(self, now_s: float) -> None:
        """W3.4's rule, once an interval."""
        policy = self._policy
        # What a provider that counts over minutes thinks of a rate shows later.
        interval_s = policy.minute_s / 4 if now_s < self._windowed_until_s else policy.interval_s
        if now_s - self._judged_s < interval_s:
            return
        answers, errors, waited = self._answers, self._errors, self._waited
        if answers >= policy.min_answers and errors > policy.high_errors * answers:
            lately = len(self._taken) / max(now_s - self._taken[0], policy.interval_s) if self._taken else math.inf
            reduced = min(self.per_s, lately if self.bucket is None else math.inf) * (1 - policy.decrease)
            if reduced < math.inf:
                self._set(max(min(policy.min_per_s, self.per_s), reduced), now_s)
        elif answers and errors <= policy.low_errors * answers and 2 * waited >= answers and self.bucket is not None:
            self._rise(now_s)
        elif answers < policy.min_answers and now_s - self._judged_s < 10 * interval_s:
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


class _LastMinute:
    """How many calls in the last minute, to a fraction of it. Its owner counts `calls` up and asks for `turn`."""

    __slots__ = ("_minute_s", "_starts", "calls", "until_s")

    def __init__(self, minute_s: float) -> None:
        self._minute_s = minute_s
        self._starts: deque[tuple[float, int]] = deque()  # of slots in which there were calls: when, calls before it
        self.calls = 0
        self.until_s = -math.inf  # the end of the slot now

    def turn(self, now_s: float) -> None:
        """A call came after `until_s`: a new slot begins with it."""
        self.until_s = now_s + self._minute_s / _SLOTS
        self._starts.append((now_s, self.calls - 1))
        self._forget(now_s)

    def count(self, now_s: float) -> int:
        """Calls in the minute that ends now."""
        self._forget(now_s)
        return self.calls - self._starts[0][1] if self._starts else 0

    def _forget(self, now_s: float) -> None:
        while self._starts and self._starts[0][0] <= now_s - self._minute_s:
            self._starts.popleft()
