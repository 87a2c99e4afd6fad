"""The dispatcher: a call goes to the cheapest place that serves it, again or elsewhere when that fails, in time."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence

from paceline.accelerate.asked import Asked
from paceline.accelerate.headers import to_upstream
from paceline.accelerate.record import CallRecord
from paceline.accelerate.routing.answer import Answer, kind_of
from paceline.accelerate.routing.attempt import Attempt
from paceline.accelerate.routing.begun import Begun
from paceline.accelerate.routing.call import Head, RoutedCall, head_of
from paceline.accelerate.routing.gates import Limits, Permit
from paceline.accelerate.routing.hedge import Race
from paceline.accelerate.routing.lanes import Lane, pick
from paceline.accelerate.routing.plan import Plan, Plans, Stage
from paceline.accelerate.routing.policy import RoutingPolicy
from paceline.accelerate.routing.retries import Pauses, usable
from paceline.accelerate.routing.taken import RouteTaken
from paceline.accelerate.routing.targets import Target
from paceline.accelerate.routing.verdict import Judge, Verdict
from paceline.errors import Overloaded, UpstreamBroken
from paceline.wire.clients import IncomingReply
from paceline.wire.dialects import dialect_for
from paceline.wire.http import HttpRequest

_QUEUED_S = 0.0005  # a wait worth mentioning


class Dispatcher:
    """The providers behind routing and limits. It owns no connections: whoever makes the clients closes them."""

    def __init__(
        self,
        policy: RoutingPolicy,
        providers: dict[str, Target],
        plans: Plans,
        limits: Limits | None = None,
        *,
        gated: bool = False,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """`providers` by dialect. `gated`: a 429 closes the limits' gate, so a refused call need not wait by itself."""
        self._policy = policy
        self._providers = providers
        self._plans = plans
        self._limits = limits
        self._judge = Judge(policy)
        self._gated = gated
        self._rand = rand
        self._now_s: Callable[[], float] | None = None

    def send(self, request: HttpRequest, record: CallRecord) -> Begun | Awaitable[Answer]:
        """Send and wait for the answer to begin; the record's `taken` is filled in on the way.

        Begun: it was sent at once, nothing needs to wait for it until it is ready. Raises UpstreamTimeout,
        UpstreamBroken, Overloaded, when it is awaited; then, and when cancelled, nothing is held.
        """
        asked, taken = record.asked, RouteTaken()
        record.taken = taken
        if asked is None:
            return self._pass(request, record)
        head: Head = request.notes.get(Head) or head_of(request)
        plan = self._plans.find(asked.dialect.name, asked.info.model, asked.group)
        is_patient = head.limit_s is None or head.limit_s > plan.slowest_s
        if plan.only is not None and self._limits is None and is_patient:
            return self._once(request, head, asked, record, taken, plan.only)
        now_s = self._now_s or self._enter_loop()
        call = RoutedCall(request, head, asked, record, taken, self._policy.timeout_s, now_s)
        return self._begin(call, plan)

    def _enter_loop(self) -> Callable[[], float]:
        """The clock of the loop this lives in: kept, because asking for it costs a system call in Python 3.11."""
        self._now_s = asyncio.get_running_loop().time
        return self._now_s

    def _begin(self, call: RoutedCall, plan: Plan) -> Begun | Awaitable[Answer]:
        """Send at once, where there is one model to try, nothing to wait for and no timer to set."""
        stage = plan.stages[0]
        if len(plan.stages) > 1 or stage.hedges is not None or self._policy.breaker.refuse:
            return self._routed(call, plan, None)
        try:
            admitted = self._admit_now(call, stage)
        except Overloaded:  # told to who awaits the call
            return self._routed(call, plan, None)
        if admitted is None:
            return self._routed(call, plan, None)
        stage.earn()
        attempt = Attempt(call, *admitted, adaptive=self._gated)
        try:
            reply = attempt.begin()
        except BaseException:
            attempt.end()
            raise
        if reply is None:
            return self._routed(call, plan, attempt)
        return Begun(reply, call.record, attempt, lambda: self._routed(call, plan, attempt))

    async def _routed(self, call: RoutedCall, plan: Plan, first: Attempt | None) -> Answer:
        """The path of a call for which something can be done when it fails, or that has to wait.

        `first`: the attempt that was begun already.
        """
        if len(plan.stages) == 1:
            attempt = await self._ask(call, plan, plan.stages[0], first)
            call.arrived(attempt.lane, None)
        else:
            attempt = await self._serve(call, plan)
        if attempt.error is not None or attempt.reply is None:
            raise attempt.error or UpstreamBroken("no answer came", target=attempt.lane.target.client.base_url)
        return Answer(attempt.reply, call.record, attempt, kind_of(attempt.reply, call.record))

    @property
    def in_flight(self) -> int:
        """Model calls under way at places that are chosen between, and the others' as far as they are counted."""
        return self._plans.in_flight

    async def _pass(self, request: HttpRequest, record: CallRecord) -> Answer:
        """What is no model call goes to its provider as it is."""
        target = self._providers[dialect_for(request.path, request.headers).name]
        worded = target.word(request.target, to_upstream(request.headers, readable=False), request.body)
        record.sent()
        reply = await target.client.request(request.method, worded.target, worded.headers, worded.body)
        return Answer(reply, record, None, kind_of(reply, record))

    def _once(
        self, request: HttpRequest, head: Head, asked: Asked, record: CallRecord, taken: RouteTaken, target: Target
    ) -> Begun | Awaitable[Answer]:
        """The usual path, without anything that could be done about a failure."""
        client, worded = target.client, target.word(asked.target, head.headers, asked.body)
        taken.provider = target.dialect
        taken.model = asked.info.model
        record.sent()
        reply = client.begin(request.method, worded.target, worded.headers, worded.body)
        if reply is None:
            return _answer(client.request(request.method, worded.target, worded.headers, worded.body), record)
        return Begun(reply, record, None, lambda: _answer(reply.arrived(), record))

    async def _serve(self, call: RoutedCall, plan: Plan) -> Attempt:
        """One model after the other; those whose breakers are open only when there is no other."""
        now_s = call.now_s()
        stages = tuple(stage for stage in plan.stages if stage.admits(now_s)) or plan.stages[:1]
        for stage in stages:
            is_last = stage is stages[-1]
            try:
                attempt = await self._ask(call, plan, stage)
            except Overloaded:
                call.note(stage.lanes[0], "no turn in time")
                if is_last or call.left_s() <= 0:
                    raise
                continue
            call.arrived(attempt.lane, stage.model if stage is not plan.stages[0] else None)
            if is_last or attempt.verdict is Verdict.ANSWER or call.left_s() <= 0:
                break
        return attempt

    async def _ask(self, call: RoutedCall, plan: Plan, stage: Stage, first: Attempt | None = None) -> Attempt:
        """Try one model until it serves or trying on makes no sense; an attempt that failed holds nothing any more.

        `first`: the attempt that was begun already, and earned.
        """
        breaker = self._policy.breaker
        if breaker.refuse and not stage.admits(call.now_s()):
            target = stage.lanes[0].target
            msg = f"{target.name} was not called: at least {breaker.failure_ratio:.0%} of its last calls failed"
            raise UpstreamBroken(msg, target=target.client.base_url)
        if first is None:
            stage.earn()
        pauses: Pauses | None = None
        while True:
            if first is None:
                lane, permit = self._admit_now(call, stage) or await self._admit(call, stage)
                first = Attempt(call, lane, permit, adaptive=self._gated)
            attempt = first
            try:
                if stage.hedges is None:
                    await first.run(self._judge, guarded=plan.guarded)
                else:
                    attempt = await self._hedged(call, plan, stage, first)
            except BaseException:
                first.end()
                raise
            if attempt.verdict is Verdict.ANSWER and attempt.error is None:
                return attempt
            attempt.fail()
            pauses = pauses or Pauses(self._policy.retries, stage, self._rand, gated=self._gated)
            wait_s = pauses.after(call, attempt)
            if wait_s is None:
                return attempt
            if wait_s > 0.0:
                call.record.queued |= attempt.verdict is Verdict.WAIT
                call.waited_s += wait_s
                await asyncio.sleep(wait_s)
            first = None

    async def _hedged(self, call: RoutedCall, plan: Plan, stage: Stage, first: Attempt) -> Attempt:
        """The first attempt, or another begun when it is late."""
        after_s = self._hedge_after_s(call, first.lane)
        if after_s is None:
            await first.run(self._judge, guarded=plan.guarded)
            return first
        race = Race(
            first,
            lambda: self._second(call, stage, first.lane),
            lambda attempt: attempt.run(self._judge, guarded=plan.guarded),
        )
        return await race.result(after_s)

    def _hedge_after_s(self, call: RoutedCall, lane: Lane) -> float | None:
        after_s = lane.hedge_after_s(stream=call.stream)
        if after_s is None or not call.idempotent:
            return None
        return max(after_s, self._policy.hedge.min_wait_s)

    def _second(self, call: RoutedCall, stage: Stage, late: Lane) -> Attempt | None:
        """Another attempt, elsewhere if there is such a place; None where no limit or budget has room for it now."""
        now_s = call.now_s()
        others = [lane for lane in usable(call, stage.lanes, now_s) if lane is not late] or [late]
        lane = pick(others, now_s, self._rand)
        permit = None
        if self._limits is not None:
            with contextlib.suppress(Overloaded):
                permit = self._limits.try_admit(call.new_ask(lane))
            if permit is None:
                return None
        if stage.hedges is None or not stage.hedges.spend(now_s):
            if permit is not None:
                permit.leave()
            return None
        call.taken.hedged = True
        return Attempt(call, lane, permit, adaptive=self._gated)

    def _admit_now(self, call: RoutedCall, stage: Stage) -> tuple[Lane, Permit | None] | None:
        """The lane to try next and the permit for it; None when every lane would have the call wait."""
        lanes: Sequence[Lane] = stage.lanes
        limits, now_s = self._limits, 0.0
        if len(lanes) == 1:
            lane = lanes[0]
        else:
            now_s = call.now_s()
            lanes = usable(call, lanes, now_s)
            lane = pick(lanes, now_s, self._rand)
        if limits is None:
            return lane, None
        until_s = call.until_s(self._policy.retries.max_wait_s)
        permit = limits.try_admit(call.ask_of(lane, until_s))
        if permit is None and len(lanes) > 1:
            for other in sorted(lanes, key=lambda each: each.cost(now_s)):
                permit = limits.try_admit(call.ask_of(other, until_s)) if other is not lane else None
                if permit is not None:
                    return other, permit
        return None if permit is None else (lane, permit)

    async def _admit(self, call: RoutedCall, stage: Stage) -> tuple[Lane, Permit | None]:
        """Wait for a turn where one is expected first. Raises Overloaded when it cannot come in time."""
        now_s = call.now_s()
        lanes = usable(call, stage.lanes, now_s)
        lane = min(lanes, key=lambda each: (each.held_until_s, each.cost(now_s)))
        assert self._limits is not None  # noqa: S101 - without limits nobody waits
        permit = await self._limits.admit(call.ask_of(lane, call.until_s(self._policy.retries.max_wait_s)))
        waited_s = call.now_s() - now_s
        call.record.queued |= waited_s > _QUEUED_S
        if call.tried:
            call.waited_s += waited_s
        return lane, permit


async def _answer(coming: Awaitable[IncomingReply], record: CallRecord) -> Answer:
    reply = await coming
    return Answer(reply, record, None, kind_of(reply, record))
