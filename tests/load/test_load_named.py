"""Presets say what their names promise; scenario files are read as they are written."""

import json
from pathlib import Path

import pytest

from paceline.errors import ConfigError
from paceline.load.named import PRESETS, preset
from paceline.load.scenario import Scenario, sequence
from paceline.load.scenario_file import read_scenarios


def base(**changes: object) -> Scenario:
    return Scenario(name="n", users=1, requests=1, path="/chat", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("concurrent", {"users": 100, "requests": 500, "duration_s": None, "ramp_s": 0}),
        ("sustained", {"model": "open", "rate_per_s": 10, "duration_s": 60, "requests": None}),
        ("normal", {"users": 100, "ramp_s": 10, "duration_s": 300, "requests": None}),
        ("burst", {"users": 500, "ramp_s": 10, "duration_s": 120}),
        ("soak", {"users": 50, "ramp_s": 5, "duration_s": 1800}),
    ],
)
def test_a_preset_is_what_was_asked_for(name: str, wanted: dict[str, object]) -> None:
    (scenario,) = preset(name, base(think_s=1.5))
    assert {field: getattr(scenario, field) for field in wanted} == wanted
    assert (scenario.name, scenario.path, scenario.think_s) == ("n", "/chat", 1.5)


def test_the_cache_preset_sends_every_body_twice_the_second_time_warm(tmp_path: Path) -> None:
    bodies = tmp_path / "b.jsonl"
    bodies.write_text("".join(f'{{"q": {i}}}\n' for i in range(30)))
    cold, warm = preset("cache", base(bodies=str(bodies), pick="zipf"))
    assert (cold.name, warm.name) == ("n-cold", "n-warm")
    assert cold.requests == 30
    assert len({body.key for body in sequence(cold)}) == 30
    assert sequence(cold) == sequence(warm)


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no preset 'stress'; there are: concurrent, sustained, cache"):
        preset("stress", base())
    assert all(entry.title for entry in PRESETS.values())


TOML = """
[[scenarios]]
name = "talk"
bodies = "b.jsonl"
shape = [{ kind = "ramp", to_users = 4, duration_s = 2 }, { to_users = 4, duration_s = 3 }]

[[scenarios]]
name = "turns"
users = 1
requests = 2
variables = { who = { file = "who.csv" } }
turns = [{ path = "/a", body = { name = "{{who}}" } }]
"""


def test_scenario_files_are_toml_or_json_with_files_beside_them(tmp_path: Path) -> None:
    toml = tmp_path / "s.toml"
    toml.write_text(TOML)
    talk, turns = read_scenarios(toml)
    assert (talk.users, talk.duration_s, talk.bodies) == (4, 5, str(tmp_path / "b.jsonl"))
    assert turns.variables["who"].file == str(tmp_path / "who.csv")
    plain = tmp_path / "s.json"
    plain.write_text(json.dumps({"scenarios": [{"name": "x", "users": 1, "requests": 1}]}))
    assert [scenario.name for scenario in read_scenarios(plain)] == ["x"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("s.toml", None, "cannot read the scenario file"),
        ("s.toml", "scenarios = [", "s.toml: "),
        ("s.json", "{", "s.json: "),
        ("s.toml", "scenarios = []", "there are no scenarios in it"),
        ("s.toml", '[[scenarios]]\nname = "a"\nusers = 0\nrequests = 1', r"users must be above 0.*scenarios\[0\]"),
        ("s.toml", '[[scenarios]]\nname = "a"\nuserz = 1', r"userz.*scenarios\[0\]"),
        ("s.toml", '[[scenarios]]\nname = "a"\nusers = 1\nrequests = 1\n' * 2, "two scenarios are called 'a'"),
    ],
)
def test_a_scenario_file_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, name: str, text: str | None, says: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_scenarios(path)
