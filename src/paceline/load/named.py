"""Load tests ready by name: the usual first ones, so that nobody has to think of numbers to begin."""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from paceline.errors import ConfigError
from paceline.load.parts import SEQUENCE
from paceline.load.scenario import CLOSED, OPEN, Scenario, questions

_CACHED_BODIES = 200


class Preset(NamedTuple):
    """A load test by name."""

    title: str
    make: Callable[[Scenario], list[Scenario]]  # from a scenario that says what to send


def _users(users: int, *, duration_s: float, spawn_per_s: float) -> Callable[[Scenario], list[Scenario]]:
    """Users that stay, so many of them starting a second."""

    def make(base: Scenario) -> list[Scenario]:
        return [_changed(base, model=CLOSED, users=users, ramp_s=users / spawn_per_s, duration_s=duration_s)]

    return make


def _concurrent(base: Scenario) -> list[Scenario]:
    return [_changed(base, model=CLOSED, users=100, requests=500)]


def _sustained(base: Scenario) -> list[Scenario]:
    return [_changed(base, model=OPEN, rate_per_s=10.0, duration_s=60.0)]


def _cache(base: Scenario) -> list[Scenario]:
    """Each body once, then each again: the first must miss, the second may hit."""
    count = min(_CACHED_BODIES, sum(len(questions(endpoint, base)) for endpoint in base.endpoints))
    fields = {"model": CLOSED, "users": min(10, count), "requests": count, "pick": SEQUENCE}
    return [_changed(base, name=f"{base.name}-{half}", **fields) for half in ("cold", "warm")]


PRESETS = {
    "concurrent": Preset("100 users at once, 500 requests", _concurrent),
    "sustained": Preset("10 requests a second for 60 s, whoever has answered", _sustained),
    "cache": Preset(f"every body once, then again: cold against warm (the first {_CACHED_BODIES})", _cache),
    "normal": Preset("100 users, 10 started a second, 5 min", _users(100, duration_s=300, spawn_per_s=10)),
    "burst": Preset("500 users, 50 started a second, 2 min", _users(500, duration_s=120, spawn_per_s=50)),
    "soak": Preset(
        "50 users, 10 started a second, 30 min, to watch for leaks", _users(50, duration_s=1800, spawn_per_s=10)
    ),
}


def preset(name: str, base: Scenario) -> list[Scenario]:
    """The scenarios of a preset, in the order to drive them; `base` says what to send, and how users think.

    Raises:
        ConfigError: there is no such preset, or a body file is missing. InputError: a body file is malformed.
    """
    if name not in PRESETS:
        msg = f"no preset {name!r}; there are: {', '.join(PRESETS)}"
        raise ConfigError(msg)
    return PRESETS[name].make(base)


def _changed(base: Scenario, **changes: Any) -> Scenario:
    load: dict[str, Any] = {
        "users": None,
        "requests": None,
        "duration_s": None,
        "rate_per_s": None,
        "ramp_s": 0.0,
        "shape": [],
    }
    return msgspec.structs.replace(base, **{**load, **changes})
