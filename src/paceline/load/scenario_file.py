"""Scenario files: one or several scenarios written down, in TOML or JSON, for `paceline load --file`."""

import tomllib
from pathlib import Path

import msgspec

from paceline.errors import ConfigError
from paceline.load.scenario import Scenario


class ScenarioFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in one."""

    scenarios: list[Scenario]


def read_scenarios(path: Path) -> list[Scenario]:
    """The scenarios of a file, in the order they are driven; their files are found from its folder.

    Raises:
        ConfigError: it is missing, malformed, or a scenario makes no sense; says where.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"cannot read the scenario file {path}: {error.strerror}"
        raise ConfigError(msg) from error
    try:
        is_json = path.suffix.lower() == ".json"
        plain = msgspec.json.decode(data) if is_json else tomllib.loads(data.decode())
        file = msgspec.convert(plain, ScenarioFile)
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path}: {error}"
        raise ConfigError(msg) from error
    if not file.scenarios:
        msg = f"{path}: there are no scenarios in it"
        raise ConfigError(msg)
    names = [scenario.name for scenario in file.scenarios]
    if twice := next((name for name in names if names.count(name) > 1), None):
        msg = f"{path}: two scenarios are called {twice!r}"
        raise ConfigError(msg)
    return [scenario.resolved(path.parent) for scenario in file.scenarios]
