"""Target: the application to tune, as its paceline.toml describes it (reference: docs/target-file.md)."""

import itertools
import re
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from paceline.accelerate.policy import Policy
from paceline.errors import ConfigError
from paceline.load.scenario import Scenario
from paceline.model.change import Change
from paceline.model.estimate import Range
from paceline.model.figures import Objective
from paceline.tune.explain import CHANGES, example, explain
from paceline.tune.schema import SCHEMA, Golden, Phase, Provider, Service, TargetFile

FILE_NAME = "paceline.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The application with some phases applied: what to hand to its processes, what to tell the projection."""

    env: dict[str, str]
    policy: Policy | None  # None: the gateway only records
    changes: list[Change]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A checked paceline.toml. Paths are absolute, body files of scenarios too."""

    path: Path
    name: str
    service: Service
    provider: Provider
    scenarios: list[Scenario]  # in the order they are driven
    objectives: list[Objective]
    quality: Golden | None
    gateway: dict[str, object]
    phases: list[Phase]

    @property
    def folder(self) -> Path:
        """Where the file is; its paths start there."""
        return self.path.parent

    @property
    def cwd(self) -> Path:
        """Where the application's commands run."""
        return self.folder / self.service.cwd

    @property
    def main(self) -> Scenario:
        """The scenario that is diagnosed and projected."""
        return next((s for s in self.scenarios if s.main), self.scenarios[0])

    def after(self, phases: int) -> Setting:
        """The setting with the first `phases` phases applied; 0 is the application as it is."""
        applied = self.phases[:phases]
        gateway = self.gateway
        for phase in applied:
            gateway = merge_policy(gateway, phase.gateway)
        return Setting(
            env={k: v for env in (self.service.env, *(p.env for p in applied)) for k, v in env.items()},
            policy=msgspec.convert(gateway, Policy) if gateway else None,
            changes=[change for phase in applied for change in phase.changes],
        )

    def only(self, names: Iterable[str]) -> "Target":
        """The same target with these phases, in the file's order. Raises ConfigError for an unknown one."""
        wanted = set(names)
        if unknown := sorted(wanted - {p.name for p in self.phases}):
            known = ", ".join(p.name for p in self.phases) or "none"
            msg = f"no phase named {unknown[0]!r} in {self.path}; it has: {known}"
            raise ConfigError(msg)
        fields = {name: getattr(self, name) for name in self.__slots__}
        return Target(**{**fields, "phases": [p for p in self.phases if p.name in wanted]})


def load_target(path: Path | str) -> Target:
    """Read and check a paceline.toml.

    Args:
        path: The file, or the folder it lies in.

    Raises:
        ConfigError: there is none, or something in it is wrong; the message names the file and the field.
    """
    path = Path(path)
    path = (path / FILE_NAME if path.is_dir() else path).absolute()
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        msg = f"{path} does not exist; `paceline tune --init {path.parent}` writes one"
        raise ConfigError(msg) from None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read {path}: {error}"
        raise ConfigError(msg) from error
    except tomllib.TOMLDecodeError as error:
        msg = f"{path} is not valid TOML: {error}"
        raise ConfigError(msg) from error
    file = _decode(raw, path)
    target = Target(
        path=path,
        name=file.name,
        service=file.service,
        provider=file.provider,
        scenarios=[s.resolved(path.parent) for s in file.scenarios],
        objectives=file.objectives,
        quality=file.quality,
        gateway=file.gateway,
        phases=file.phases,
    )
    _check(target)
    return target


def merge_policy(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """One policy laid over another: tables merge field by field, routes by step, anything else is replaced."""
    merged = dict(base)
    for name, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            merged[name] = merge_policy(base[name], value)
        elif name == "routes" and isinstance(value, list):
            again = {r.get("step") for r in value if isinstance(r, dict)}
            merged[name] = [r for r in base.get(name, []) if r.get("step") not in again] + value
        else:
            merged[name] = value
    return merged


def fill(texts: Iterable[str], target: Target, speed: float) -> list[str]:
    """Replace {python}, {speed}, {time_scale} and {dir}; {port} is left to whoever starts the process."""
    words = {
        "python": sys.executable,
        "speed": f"{speed:g}",
        "time_scale": f"{1 / speed:.9g}",
        "dir": str(target.folder),
    }
    return [_PLACEHOLDER.sub(lambda m: words.get(m[1], m[0]), text) for text in texts]


# A lower-case word in braces; `${word}` belongs to the shell, other braces (JSON) to the command.
_PLACEHOLDER = re.compile(r"(?<!\$)\{([a-z_]+)\}")
_PLACEHOLDERS = ("port", "python", "speed", "time_scale", "dir")


def _check(target: Target) -> None:
    """What no single field can say: files exist, names are unique, references lead somewhere."""
    _check_names(target)
    _check_policies(target)
    for field, file in _files(target):
        if not file.exists():
            raise _wrong(target, field, f"{file} does not exist; paths start at the folder of {FILE_NAME}")
    for field, text in _texts(target):
        for match in _PLACEHOLDER.finditer(text):
            if match[1] not in _PLACEHOLDERS:
                words = ", ".join(f"{{{w}}}" for w in _PLACEHOLDERS)
                raise _wrong(target, field, f"unknown placeholder {match[0]}; one of {words}")


def _wrong(target: Target, field: str, problem: str) -> ConfigError:
    return ConfigError(f"{target.path}: {field}: {problem}")


def _check_names(target: Target) -> None:
    scenarios = [s.name for s in target.scenarios]
    if not scenarios:
        raise _wrong(target, "scenarios", "there is none; " + example("scenarios"))
    lists = {
        "scenarios": scenarios,
        "phases": [p.name for p in target.phases],
        "objectives": [o.name for o in target.objectives],
    }
    for field, names in lists.items():
        if twice := next((n for i, n in enumerate(names) if n in names[:i]), None):
            raise _wrong(target, field, f"two are named {twice!r}; give each its own name")
    if len(mains := [s.name for s in target.scenarios if s.main]) > 1:
        raise _wrong(target, "scenarios", f"only one can be the main one; got {', '.join(mains)}")
    if target.main.when != "every":
        raise _wrong(target, "scenarios", f'the main scenario {target.main.name!r} must have when = "every"')
    for i, objective in enumerate(target.objectives):
        if objective.scenario not in (None, *scenarios):
            problem = f"{objective.scenario!r} is none of {', '.join(scenarios)}"
            raise _wrong(target, f"objectives[{i}].scenario", problem)


def _check_policies(target: Target) -> None:
    gateways = [
        ("gateway", target.gateway),
        *((f"phases[{i}].gateway", p.gateway) for i, p in enumerate(target.phases)),
    ]
    for field, gateway in gateways:
        try:
            msgspec.convert(gateway, Policy)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{target.path}: {explain(str(error), gateway, Policy, field)}") from error


def _files(target: Target) -> list[tuple[str, Path]]:
    files = [("service.cwd", target.cwd)]
    if isinstance(target.provider.simulate, str):
        files.append(("provider.simulate", target.folder / target.provider.simulate))
    for i, scenario in enumerate(target.scenarios):
        files += [(f"scenarios[{i}].bodies", Path(e.bodies)) for e in scenario.endpoints if e.bodies]
    if target.quality:
        files.append(("quality.golden", target.folder / target.quality.golden))
    return files


def _texts(target: Target) -> list[tuple[str, str]]:
    service = target.service
    texts = [("service.command", text) for text in service.command]
    texts += [("service.prepare", text) for text in itertools.chain(*service.prepare)]
    texts += [(f"service.env.{name}", text) for name, text in service.env.items()]
    texts += [(f"phases[{i}].env.{k}", v) for i, p in enumerate(target.phases) for k, v in p.env.items()]
    return texts


def _decode(raw: dict[str, Any], path: Path) -> TargetFile:
    schema = raw.get("schema", SCHEMA)
    if schema != SCHEMA:
        advice = "upgrade Paceline" if isinstance(schema, int) and schema > SCHEMA else f"write schema = {SCHEMA}"
        msg = f"{path}: schema: this version reads schema {SCHEMA}; got {schema!r}: {advice}"
        raise ConfigError(msg)
    _open_ranges(raw, path)
    try:
        return msgspec.convert(raw, TargetFile)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {explain(str(error), raw, TargetFile)}") from error


def _range_fields(kind: type) -> set[str]:
    """Fields of a Change that hold a Range."""
    return {f.name for f in msgspec.structs.fields(kind) if f.type is Range or f.type == Range | None}


_RANGES = {tag: _range_fields(kind) for tag, kind in CHANGES.items()}


def _open_ranges(raw: dict[str, Any], path: Path) -> None:
    """Rewrite `factor = 2` and `factor = [2, 3]` of every change, in place, into what Range decodes from."""
    for i, j, change in _raw_changes(raw):
        for name in _RANGES.get(str(change.get("kind")), set()) & change.keys():
            try:
                change[name] = msgspec.to_builtins(Range.parse(change[name]))
            except ValueError as error:
                msg = f"{path}: phases[{i}].changes[{j}].{name}: {error}"
                raise ConfigError(msg) from error


def _raw_changes(raw: dict[str, Any]) -> Iterable[tuple[int, int, dict[str, Any]]]:
    phases = raw.get("phases")
    for i, phase in enumerate(phases if isinstance(phases, list) else []):
        changes = phase.get("changes") if isinstance(phase, dict) else None
        for j, change in enumerate(changes if isinstance(changes, list) else []):
            if isinstance(change, dict):
                yield i, j, change
