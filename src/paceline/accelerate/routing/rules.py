"""Rules: which model or group of deployments a call goes to. Pure."""

import msgspec

from paceline.accelerate.routing.policy import Route, RoutingPolicy


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Where a call goes: the model its body is to name, and the group, if one was chosen, that serves it."""

    model: str | None = None  # None: the call names none, and no route gave it one
    group: str | None = None


class Rules:
    """The policy's routes and aliases.

    `by_step` and `by_caller` say whether the step or the caller can matter: what remembers a choice for equal bodies
    needs them in its key only then.
    """

    def __init__(self, policy: RoutingPolicy) -> None:
        self._aliases = policy.aliases
        self._routes = policy.routes
        self.by_step = any(route.step is not None for route in policy.routes)
        self.by_caller = any(route.caller is not None for route in policy.routes)
        self.is_empty = not policy.routes and not policy.aliases

    def choose(
        self,
        model: str | None,
        *,
        step: str | None = None,
        prompt: str | None = None,
        input_tokens: int = 0,
        caller: str | None = None,
    ) -> Choice:
        """The first route that agrees with the call, then the aliases. `prompt` is a fingerprint, `prompt:` or bare."""
        for route in self._routes:
            if _agrees(route, model, step, prompt, input_tokens, caller):
                chosen = model if route.model is None else route.model
                return Choice(model=self._resolved(chosen), group=route.group)
        return Choice(model=self._resolved(model))

    def _resolved(self, model: str | None) -> str | None:
        return model if model is None else self._aliases.get(model, model)


def _agrees(
    route: Route, model: str | None, step: str | None, prompt: str | None, input_tokens: int, caller: str | None
) -> bool:
    return (
        (route.step is None or route.step == step)
        and (route.caller is None or route.caller == caller)
        and (route.asked_model is None or route.asked_model == model)
        and (route.prompt is None or (prompt is not None and _bare(route.prompt) == _bare(prompt)))
        and (route.min_input_tokens is None or input_tokens >= route.min_input_tokens)
        and (route.max_input_tokens is None or input_tokens <= route.max_input_tokens)
    )


def _bare(fingerprint: str) -> str:
    return fingerprint.removeprefix("prompt:")
