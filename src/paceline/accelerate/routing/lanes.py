"""Lane: one target serving one model, with what was seen of it; and the choice between several."""

import math
import random
from collections.abc import Callable, Sequence

from paceline.accelerate.routing.breaker import Breaker
from paceline.accelerate.routing.latency import PeakEwma, RecentQuantile
from paceline.accelerate.routing.policy import RoutingPolicy
from paceline.accelerate.routing.targets import Target

_FADED_S = 0.001  # a mean that has faded to this is as good as none
_UNSEEN_S = 10.0  # taken for the latency of a lane that answered nothing yet but has calls: no herd on a new one
_OUTPUT_TOKENS = 250.0  # expected of a call before any was seen
_FAILED_S = 5.0  # at least, for a failure: one that fails fast must not look fast


class Lane:
    """Where a model's calls can go. Figures are kept in memory, for this process only."""

    __slots__ = (
        "_quantiles",
        "breaker",
        "held_until_s",
        "in_flight",
        "is_watched",
        "latency",
        "limits",
        "listened_s",
        "model",
        "output_tokens",
        "serves",
        "target",
        "weight",
    )

    def __init__(
        self,
        target: Target,
        model: str | None,
        policy: RoutingPolicy,
        weight: float = 1.0,
        *,
        serves: str | None = None,
        limits: str | None = None,
        watched: bool = True,
    ) -> None:
        """A lane no call has taken yet.

        Args:
            target: Where its calls go.
            model: Its name there; None: as the call has it.
            policy: How it is watched.
            weight: Of a lane with 2, twice the load is taken for the same.
            serves: The model as the policy and the price list call it; None: `model`.
            limits: The name of the model whose limits hold; None: `serves`.
            watched: There is a choice to be based on its figures.
        """
        self.target = target
        self.model = model
        self.serves = serves or model
        self.limits = limits or self.serves
        self.weight = weight
        self.is_watched = watched
        self.in_flight = 0
        self.held_until_s = 0.0  # the provider's last 429 asks to stay away until then
        self.listened_s = 0.0  # when an answer's stated limits were last read
        self.output_tokens = _OUTPUT_TOKENS  # of a call, lately
        self.latency = PeakEwma(policy.latency_decay_s)
        self.breaker = Breaker(policy.breaker) if watched and policy.breaker.enabled else None
        hedge = policy.hedge
        # Apart, for the first byte of a stream is its first token, that of a plain answer comes after its last.
        self._quantiles = (
            {stream: RecentQuantile(hedge.after_quantile, hedge.min_calls) for stream in (False, True)}
            if watched and hedge.enabled
            else None
        )

    def admits(self, now_s: float) -> bool:
        """False while its breaker is open."""
        return self.breaker is None or self.breaker.admits(now_s)

    def cost(self, now_s: float) -> float:
        """What one more call here is thought to take: peak latency x calls, by weight. Lower is better."""
        latency_s = self.latency.at(now_s)
        if latency_s < _FADED_S:
            if self.in_flight == 0:
                return 0.0
            latency_s = _UNSEEN_S
        return latency_s * (self.in_flight + 1) / self.weight

    def begin(self, now_s: float) -> bool:
        """A call goes there; the result goes to `end`."""
        self.in_flight += 1
        return self.breaker is not None and self.breaker.begin(now_s)

    def answered(self, took_s: float, now_s: float, *, stream: bool) -> None:
        """The first byte of an answer came; or, with the time so far, the wait for it was given up."""
        self.latency.observe(took_s, now_s)
        if self._quantiles is not None:
            self._quantiles[stream].observe(took_s)

    def end(self, now_s: float, *, failed: bool | None, probe: bool) -> None:
        """The call is over; `failed` None: it says nothing about the lane."""
        self.in_flight -= 1
        if not self.is_watched:
            return
        if failed:
            self.latency.observe(max(_FAILED_S, self.latency.at(now_s)), now_s)
        if self.breaker is not None:
            self.breaker.end(now_s, failed=failed, probe=probe)

    def wrote(self, output_tokens: int) -> None:
        """A call's answer was that long: the next estimate of what one takes."""
        self.output_tokens += 0.1 * (output_tokens - self.output_tokens)

    def hedge_after_s(self, *, stream: bool) -> float | None:
        """How long to wait for the first byte before asking elsewhere; None: too few calls seen."""
        return None if self._quantiles is None else self._quantiles[stream].value_s


def pick(lanes: Sequence[Lane], now_s: float, rand: Callable[[], float] = random.random) -> Lane:
    """The cheaper of two chosen at random; of one or two, all are looked at. At least one lane.

    Two choices already spare the longest queue exponentially, and unlike "the best of all" they do not send everybody
    to the same place at once. Source: Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, IEEE TPDS
    12(10), 2001. Equal costs go to either.
    """
    count = len(lanes)
    if count == 1:
        return lanes[0]
    first = math.floor(rand() * count)
    second = math.floor(rand() * (count - 1))
    second += second >= first
    one, other = lanes[first], lanes[second]
    return other if other.cost(now_s) < one.cost(now_s) else one
