"""Plan: where a model's calls go, in which order."""

import asyncio
from collections.abc import Mapping

from paceline.accelerate.routing.budget import Budget
from paceline.accelerate.routing.call import slowest_s
from paceline.accelerate.routing.lanes import Lane
from paceline.accelerate.routing.policy import Deployment, RoutingPolicy
from paceline.accelerate.routing.targets import Target

_PLANS = 1024  # callers choose model names, so what is kept of them needs a bound


class Stage:
    """One model and the lanes that serve it, with the extra calls it may have."""

    __slots__ = ("_retries", "hedges", "lanes", "model", "retries")

    def __init__(self, model: str | None, lanes: tuple[Lane, ...], policy: RoutingPolicy, now_s: float) -> None:
        retries, hedge = policy.retries, policy.hedge
        self.model = model
        self.lanes = lanes
        self._retries = policy.retries.enabled
        self.retries = Budget(retries.budget_ratio, per_s=retries.budget_per_s, burst=retries.budget_burst, now_s=now_s)
        self.hedges = Budget(hedge.budget_ratio, now_s=now_s) if hedge.enabled else None

    def earn(self) -> None:
        """A call came."""
        if self._retries:
            self.retries.earn()
        if self.hedges is not None:
            self.hedges.earn()

    def admits(self, now_s: float) -> bool:
        """False while the breaker of every lane is open."""
        return any(lane.admits(now_s) for lane in self.lanes)


class Plan:
    """The model asked for, then its fallbacks."""

    __slots__ = ("guarded", "only", "slowest_s", "stages")

    def __init__(self, stages: tuple[Stage, ...], *, guarded: bool, plain: bool = False) -> None:
        """`guarded`: nothing goes to the caller before the first token, so that another attempt can follow.

        `plain`: there is one place and one attempt, and nothing to learn from it; `slowest_s`: it is over by then.
        """
        self.stages = stages
        self.guarded = guarded
        self.only = stages[0].lanes[0].target if plain else None
        self.slowest_s = slowest_s(stages[0].lanes[0].target.client.timeouts)


class Plans:
    """Plans by dialect, model and group, made when first asked for."""

    def __init__(
        self, policy: RoutingPolicy, providers: Mapping[str, Target], deployments: list[tuple[Deployment, Target]]
    ) -> None:
        self._policy = policy
        self._providers = providers
        self._deployments = [
            (
                each,
                Lane(
                    target, each.model_there or each.model, policy, each.weight, serves=each.model, limits=each.limits
                ),
            )
            for each, target in deployments
        ]
        self._plans: dict[tuple[str, str | None, str | None], Plan] = {}
        self._plain: dict[str, Plan] = {}

    def find(self, dialect: str, model: str | None, group: str | None) -> Plan:
        """Where a call of this dialect for this model, or to this group, goes."""
        plan = self._plans.get((dialect, model, group))
        if plan is None:
            if len(self._plans) >= _PLANS:
                self._plans.clear()  # calls under way keep theirs; deployments keep their figures
            plan = self._plans[dialect, model, group] = self._make(dialect, model, group)
        return plan

    @property
    def in_flight(self) -> int:
        """Attempts under way in lanes that are known now."""
        plans = [*self._plans.values(), *self._plain.values()]
        lanes = {lane for plan in plans for stage in plan.stages for lane in stage.lanes}
        return sum(lane.in_flight for lane in lanes)

    def _make(self, dialect: str, model: str | None, group: str | None) -> Plan:
        now_s = asyncio.get_running_loop().time()
        policy = self._policy
        lanes = tuple(
            lane
            for deployment, lane in self._deployments
            if deployment.provider == dialect and (deployment.group == group if group else deployment.model == model)
        )
        others = policy.fallbacks.get(model, []) if model is not None else []
        if not lanes and not others and not policy.hedge.enabled:
            return self._shared(dialect, now_s)
        stages = [Stage(model, lanes or (Lane(self._providers[dialect], model, policy),), policy, now_s)]
        for name in others:
            other = policy.aliases.get(name, name)
            theirs = tuple(lane for d, lane in self._deployments if d.model == other and d.provider == dialect)
            stages.append(Stage(other, theirs or (Lane(self._providers[dialect], other, policy),), policy, now_s))
        return Plan(tuple(stages), guarded=policy.retries.enabled or policy.hedge.enabled or len(stages) > 1)

    def _shared(self, dialect: str, now_s: float) -> Plan:
        """The plan of every model nothing is said about: its provider, whatever the name."""
        plan = self._plain.get(dialect)
        if plan is None:
            policy = self._policy
            lane = Lane(self._providers[dialect], None, policy, watched=policy.breaker.refuse)
            plan = Plan(
                (Stage(None, (lane,), policy, now_s),),
                guarded=policy.retries.enabled,
                plain=not (policy.retries.enabled or policy.breaker.refuse or policy.timeout_s is not None),
            )
            self._plain[dialect] = plan
        return plan
