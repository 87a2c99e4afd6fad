"""Whether a failed attempt is followed by another, where, and after how long."""

from collections.abc import Callable, Sequence

from paceline.accelerate.routing.attempt import Attempt
from paceline.accelerate.routing.call import RoutedCall
from paceline.accelerate.routing.lanes import Lane
from paceline.accelerate.routing.plan import Stage
from paceline.accelerate.routing.policy import RetryPolicy
from paceline.accelerate.routing.verdict import Verdict

_REFUSALS = 20  # by rate limits, of one call at one model, however long it may wait


class Pauses:
    """The attempts of one call at one model."""

    __slots__ = ("_failures", "_gated", "_policy", "_rand", "_refusals", "_stage")

    def __init__(self, policy: RetryPolicy, stage: Stage, rand: Callable[[], float], *, gated: bool) -> None:
        """`gated`: after a 429 the limits hold the call back."""
        self._policy = policy
        self._stage = stage
        self._rand = rand
        self._gated = gated
        self._failures = self._refusals = 0

    def after(self, call: RoutedCall, attempt: Attempt) -> float | None:
        """Seconds until the next attempt; None: there is none."""
        call.tried += (attempt.lane,)
        if not self._policy.enabled or call.left_s() <= 0.0:
            return None
        match attempt.verdict:
            case Verdict.WAIT:
                return self._after_refusal(call, attempt)
            case Verdict.AGAIN:
                return self._after_failure(call, attempt)
            case Verdict.ELSEWHERE:
                call.spent += (attempt.lane,)
                return 0.0 if any(lane not in call.spent for lane in self._stage.lanes) else None
        return None

    def _after_refusal(self, call: RoutedCall, attempt: Attempt) -> float | None:
        """A 429: come again when the gate opens. It counts neither as an attempt nor against the budget."""
        self._refusals += 1
        asked_s = _asked_s(attempt)
        wait_s = self._backoff_s(self._refusals) if asked_s is None else asked_s
        call.record.retry_after_s = asked_s
        now_s = call.now_s()
        attempt.lane.held_until_s = now_s + wait_s
        if self._refusals >= _REFUSALS:
            return None
        if _is_free_elsewhere(call, self._stage.lanes, now_s):
            return 0.0
        if not self._may_wait(call, wait_s):
            return None
        call.record.queued = True
        # Ten per cent apart, or all that were refused together would come again together.
        return 0.0 if self._gated else wait_s * (1.0 + 0.1 * self._rand())

    def _after_failure(self, call: RoutedCall, attempt: Attempt) -> float | None:
        self._failures += 1
        now_s = call.now_s()
        if self._failures >= self._policy.attempts or not self._stage.retries.spend(now_s):
            return None
        if _is_free_elsewhere(call, self._stage.lanes, now_s):
            return 0.0
        wait_s = max(self._backoff_s(self._failures), _asked_s(attempt) or 0.0)
        return wait_s if self._may_wait(call, wait_s) else None

    def _backoff_s(self, failures: int) -> float:
        policy = self._policy
        return self._rand() * min(policy.max_backoff_s, policy.first_backoff_s * 2.0 ** (failures - 1))

    def _may_wait(self, call: RoutedCall, wait_s: float) -> bool:
        return call.waited_s + wait_s <= self._policy.max_wait_s and wait_s < call.left_s()


def usable(call: RoutedCall, lanes: Sequence[Lane], now_s: float) -> Sequence[Lane]:
    """Lanes worth trying, at least one unless all are spent: those with closed breakers, not held, not tried before."""
    found = lanes
    for wanted in (
        lambda lane: lane not in call.spent,
        lambda lane: lane.admits(now_s),
        lambda lane: lane.held_until_s <= now_s,
        lambda lane: lane not in call.tried,
    ):
        found = [lane for lane in found if wanted(lane)] or found
    return found


def _is_free_elsewhere(call: RoutedCall, lanes: Sequence[Lane], now_s: float) -> bool:
    """True when there is a lane this call has not been to."""
    return any(
        lane not in call.tried and lane not in call.spent and lane.held_until_s <= now_s and lane.admits(now_s)
        for lane in lanes
    )


def _asked_s(attempt: Attempt) -> float | None:
    return attempt.signal.retry_after_s if attempt.signal is not None else None
