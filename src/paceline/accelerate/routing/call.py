"""RoutedCall: one call on its way: what is sent, how long the caller waits, where it has been."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from paceline.accelerate.asked import Asked
from paceline.accelerate.cost import cost_usd
from paceline.accelerate.headers import to_upstream
from paceline.accelerate.key import TENANT_HEADERS, tenant_of
from paceline.accelerate.limits import Ask
from paceline.accelerate.record import CallRecord
from paceline.accelerate.routing.deadline import patience_of
from paceline.accelerate.routing.lanes import Lane
from paceline.accelerate.routing.taken import FailedAttempt, RouteTaken
from paceline.accelerate.routing.targets import Headers, Worded
from paceline.errors import UpstreamTimeout
from paceline.wire.call import Usage
from paceline.wire.client import Timeouts
from paceline.wire.framing import encode_headers
from paceline.wire.http import HttpRequest

_FOREVER = float("inf")


class Head(NamedTuple):
    """What follows from a request's head alone, worked out once for equal heads (see `HttpRequest.notes`)."""

    headers: Headers  # for any provider
    limit_s: float | None
    idempotent: bool


def head_of(request: HttpRequest) -> Head:
    """The head's part in routing."""
    head: Head | None = request.notes.get(Head)
    if head is None:
        patience = patience_of(request.headers)
        head = Head(encode_headers(to_upstream(request.headers, readable=True)), patience.limit_s, patience.idempotent)
        request.notes[Head] = head
    return head


class RoutedCall:
    """State of one call while it is tried. Times are on the event loop's clock."""

    __slots__ = (
        "_asks",
        "_headers",
        "_request",
        "asked",
        "deadline_s",
        "idempotent",
        "limit_s",
        "method",
        "now_s",
        "record",
        "spent",
        "started_s",
        "stream",
        "taken",
        "tried",
        "waited_s",
    )

    def __init__(
        self,
        request: HttpRequest,
        head: Head,
        asked: Asked,
        record: CallRecord,
        taken: RouteTaken,
        timeout_s: float | None,
        now_s: Callable[[], float],
    ) -> None:
        """`timeout_s` is the policy's; the caller may ask for less. `now_s`: the loop's clock."""
        self._request = request
        self._headers = head.headers
        self._asks: dict[Lane, Ask] | None = None
        self.asked = asked
        self.record = record
        self.taken = taken
        self.method = request.method
        self.stream = asked.info.stream
        self.now_s = now_s
        self.started_s = now_s()
        self.idempotent = head.idempotent and not asked.info.stateful
        limit_s = head.limit_s
        if limit_s is None or (timeout_s is not None and timeout_s < limit_s):
            limit_s = timeout_s
        self.limit_s = limit_s
        self.deadline_s = _FOREVER if self.limit_s is None else self.started_s + self.limit_s
        self.waited_s = 0.0  # between its attempts
        self.tried: tuple[Lane, ...] = ()
        self.spent: tuple[Lane, ...] = ()  # lanes that will not serve it

    def worded_for(self, lane: Lane) -> Worded:
        """The request for this lane."""
        asked = self.asked
        target, body = asked.target, asked.body
        if lane.model is not None and lane.model != asked.info.model:
            target, body = asked.dialect.with_model(target, body, lane.model)
        return lane.target.word(target, self._headers, body)

    def ask_of(self, lane: Lane, until_s: float | None) -> Ask:
        """What it asks of the limits for this lane: the same each time, so that it keeps its place."""
        if self._asks is None:
            self._asks = {}
        ask = self._asks.get(lane)
        if ask is None:
            ask = self._asks[lane] = self.new_ask(lane)
        ask.deadline_s = until_s
        return ask

    def new_ask(self, lane: Lane) -> Ask:
        """The same without a place of its own."""
        asked, caller = self.asked, self.record.caller
        return Ask(
            tenant=asked.tenant,
            key=lane.target.quota_of(asked.tenant if caller is None else _credential(self._request.headers)),
            model=lane.limits or asked.info.model or "",
            tokens=asked.info.input_tokens + round(lane.output_tokens),
            priority=self.record.priority,
        )

    def until_s(self, max_wait_s: float) -> float | None:
        """When waiting for a turn must be over: at the deadline, and when coming again by what is left of
        `max_wait_s`; None: as the limits allow."""
        if not self.tried:
            return None if self.limit_s is None else self.deadline_s
        return min(self.deadline_s, self.now_s() + max_wait_s - self.waited_s)

    def left_s(self) -> float:
        """Seconds until the caller's deadline; infinite without one."""
        return self.deadline_s - self.now_s()

    def alarm_s(self, timeouts: Timeouts) -> float | None:
        """When an attempt that starts now must be stopped; None where the client's own limits are shorter: that spares
        a timer on every call of the official SDKs, which say they wait 600 s."""
        if self.limit_s is None:
            return None
        return self.deadline_s if self.left_s() < slowest_s(timeouts) else None

    def too_late(self, target: str) -> UpstreamTimeout:
        """The error of a deadline that passed."""
        limit_s = self.limit_s or 0.0
        msg = f"{target} did not answer in the {limit_s:g} s the caller waits"
        return UpstreamTimeout(msg, target=target, phase="total", limit_s=limit_s)

    def note(self, lane: Lane, what: str, *, billed: bool = False) -> None:
        """Remember an attempt that did not serve the caller; `billed`: the provider had begun to work on it."""
        model = lane.serves or self.asked.info.model
        taken = self.taken
        taken.failed = [*taken.failed, FailedAttempt(lane.target.name, model, what)]
        if billed:
            cost = cost_usd(model, Usage(input_tokens=self.asked.info.input_tokens))
            taken.wasted_usd += cost or 0.0
            taken.wasted_unknown |= cost is None

    def arrived(self, lane: Lane, fallback: str | None) -> None:
        """Remember where it went in the end."""
        taken = self.taken
        taken.provider = lane.target.dialect
        taken.deployment = lane.target.deployment
        taken.model = lane.serves or self.asked.info.model
        taken.fallback = fallback


def slowest_s(timeouts: Timeouts) -> float:
    """An attempt's answer has begun, or failed, after this long whatever happens."""
    return timeouts.connect_s + timeouts.first_byte_s + timeouts.silence_s


def _credential(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    return tenant_of([header for header in headers if header[0] in TENANT_HEADERS])
