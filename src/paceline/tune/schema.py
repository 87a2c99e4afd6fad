"""The shape of paceline.toml: what may stand in it and what a single field can get wrong (docs/target-file.md)."""

import re

import msgspec

from paceline.load.scenario import Scenario
from paceline.model.change import Change
from paceline.model.figures import Objective

SCHEMA = 1  # of the file


class Service(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the application is started. `{port}` in the command or the environment becomes a free port."""

    command: list[str]
    cwd: str = "."  # relative to the file
    ready_url: str = "/ready"  # answers 2xx when the application can take requests
    ready_timeout_s: float = 60.0  # wall time
    prepare: list[list[str]] = []  # commands run once, before the baseline
    prepare_timeout_s: float = 600.0
    stop_timeout_s: float = 10.0  # between SIGTERM and SIGKILL
    env: dict[str, str] = {}

    def __post_init__(self) -> None:
        _require(bool(self.command), "command must not be empty")
        _require(all(self.prepare), "a prepare command must not be empty")
        _require(self.ready_url.startswith("/"), f"ready_url must begin with /; got {self.ready_url!r}")
        for name in ("ready_timeout_s", "prepare_timeout_s", "stop_timeout_s"):
            _require(getattr(self, name) > 0, f"{name} must be above 0; got {getattr(self, name):g}")
        texts = [*self.command, *self.env.values()]
        _require(any("{port}" in t for t in texts), "command must say where {port} goes, or env must")


class Provider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who answers the model calls: the simulated provider, or a real one behind `base_url`."""

    simulate: str | bool = False  # a configuration file of `paceline sim`, or true for its presets
    base_url: str | None = None  # without /v1
    env: str = "OPENAI_BASE_URL"  # the variable through which the application finds the gateway

    def __post_init__(self) -> None:
        both = bool(self.simulate) + bool(self.base_url)
        _require(both == 1, "give either simulate or base_url")
        if self.base_url:
            known = self.base_url.startswith(("http://", "https://"))
            _require(known, f"base_url must begin with http:// or https://; got {self.base_url!r}")


class Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The golden set: questions with what their answers must say."""

    golden: str  # JSON lines {"body": ..., "expect": [...]}, relative to the file
    method: str | None = None  # None: as the main scenario
    path: str | None = None
    at_once: int = 4
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        _require(self.at_once >= 1, f"at_once must be at least 1; got {self.at_once}")
        _require(self.timeout_s > 0, f"timeout_s must be above 0; got {self.timeout_s:g}")


class Phase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step of the roadmap. What it sets adds to what earlier phases set."""

    name: str
    title: str = ""
    fixes: list[str] = []  # rules whose findings it is meant to remove
    env: dict[str, str] = {}
    gateway: dict[str, object] = {}  # fields of Policy
    changes: list[Change] = []  # what the projection is told

    def __post_init__(self) -> None:
        plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name)
        _require(plain is not None, f"name may hold letters, digits, '-', '_' and '.'; got {self.name!r}")


class TargetFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    schema: int = SCHEMA
    name: str
    service: Service
    provider: Provider
    scenarios: list[Scenario]
    objectives: list[Objective] = []
    quality: Golden | None = None
    gateway: dict[str, object] = {}  # the policy the application starts with
    phases: list[Phase] = []


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
