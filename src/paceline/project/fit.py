"""Fit: the provider's real limit, where the baseline shows that it is not the one the provider states."""

from collections.abc import Callable
from dataclasses import replace
from statistics import median

from paceline.project.app import App, Quota
from paceline.project.simulate import Outcome

_TOLERATED = 0.1  # of requests/s: less is one run's chance, or a cause that is not the limit
_BINDING = 0.6  # of the limit in use: below, it is not what the baseline's throughput says
_ROUNDS = 5
_BOUNDS = (0.4, 2.5)


def with_real_limit(app: App, simulate_base: Callable[[App], list[Outcome]]) -> App:
    """The app with its busiest model's limit scaled until the simulated baseline has the measured throughput.

    Providers count other tokens than they bill (an estimate, or `max_tokens`), and say less than all their limits.
    Left as it is when the limit was hardly used, or when throughput is right within a run's chance.
    """
    measured = app.measured.requests_per_s
    outcomes = simulate_base(app)
    binding = _binding(outcomes)
    if not measured or binding is None or app.load.users is None:
        return app
    model, unit = binding
    scale, fitted = 1.0, app
    ratio = _throughput(outcomes) / measured
    for _ in range(_ROUNDS):
        if abs(ratio - 1) <= _TOLERATED / 2 or (scale == 1.0 and abs(ratio - 1) <= _TOLERATED):
            break
        scale = min(_BOUNDS[1], max(_BOUNDS[0], scale / ratio))
        fitted = replace(app, quotas={**app.quotas, model: _scaled(app.quotas[model], unit, scale)})
        ratio = _throughput(simulate_base(fitted)) / measured
    if fitted is app:
        return app
    said = f"{model} lets through {scale:.0%} of the {unit} it states, judging by the baseline's throughput"
    return replace(fitted, assumptions=[*app.assumptions, said])


def _binding(outcomes: list[Outcome]) -> tuple[str, str] | None:
    """Model and unit ("requests", "tokens") of the limit that is used most."""
    busy = {name: median(o.busy[name] for o in outcomes) for name in outcomes[0].busy}
    most = max(busy, key=lambda name: busy[name], default="")
    if not most.startswith("provider:") or busy[most] < _BINDING:
        return None
    model, _, unit = most.removeprefix("provider:").rpartition(" ")
    return model, unit


def _throughput(outcomes: list[Outcome]) -> float:
    return median(o.ok / max(o.duration_s, 1e-9) for o in outcomes)


def _scaled(quota: Quota, unit: str, scale: float) -> Quota:
    if unit == "requests":
        return replace(quota, requests_per_min=(quota.requests_per_min or 0.0) * scale)
    return replace(quota, tokens_per_min=(quota.tokens_per_min or 0.0) * scale)
