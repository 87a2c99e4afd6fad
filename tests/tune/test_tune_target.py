"""paceline.toml is read into a checked target, or refused with the field and a valid value."""

import tomllib
from pathlib import Path

import pytest

from paceline.errors import ConfigError
from paceline.model.change import Parallelise, SpeedUp, Trim
from paceline.model.estimate import Range
from paceline.tune.target import Target, fill, load_target, merge_policy

SMALL = """
schema = 1
name = "small"

[service]
command = ["{python}", "-m", "uvicorn", "app:app", "--port", "{port}"]
env = { FAST = "0" }

[provider]
simulate = true

[[scenarios]]
name = "concurrent"
users = 4
requests = 20
path = "/chat"
bodies = "bodies.jsonl"

[[objectives]]
name = "P95"
metric = "p95_s"
op = "<"
target = 8.0

[[phases]]
name = "parallel"
env = { FAST = "1" }
[phases.gateway]
single_flight = true
[[phases.changes]]
kind = "parallelise"
steps = ["tone", "retrieve"]

[[phases]]
name = "shorter"
env = { SHORT = "1" }
[phases.gateway.cache]
enabled = true
[[phases.changes]]
kind = "trim"
step = "answer"
input_ratio = [0.4, 0.6]
[[phases.changes]]
kind = "speed_up"
step = "retrieve"
factor = 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bodies.jsonl").write_text('{"question": "Where is my parcel?"}\n')
    (tmp_path / "paceline.toml").write_text(SMALL)
    return tmp_path


def edited(folder: Path, old: str, new: str) -> Target:
    """Load the file with one piece replaced."""
    text = (folder / "paceline.toml").read_text()
    assert text.count(old) >= 1
    (folder / "paceline.toml").write_text(text.replace(old, new, 1))
    return load_target(folder)


def test_a_folder_or_the_file_itself_can_be_named(folder: Path) -> None:
    """Both give the same target, with absolute paths."""
    target = load_target(folder)
    assert target == load_target(folder / "paceline.toml")
    assert target.main.bodies == str(folder / "bodies.jsonl")
    assert target.main.name == "concurrent"


def test_phases_are_cumulative(folder: Path) -> None:
    """After both phases, the environment, the policy and the changes of both hold."""
    target = load_target(folder)
    before, both = target.after(0), target.after(2)
    assert (before.env, before.policy, before.changes) == ({"FAST": "0"}, None, [])
    assert both.env == {"FAST": "1", "SHORT": "1"}
    assert both.policy is not None
    assert both.policy.single_flight
    assert both.policy.cache.enabled
    assert both.changes == [
        Parallelise(steps=["tone", "retrieve"]),
        Trim(step="answer", input_ratio=Range(0.4, 0.6)),
        SpeedUp(step="retrieve", factor=Range(2.0, 2.0)),
    ]


def test_only_keeps_the_files_order(folder: Path) -> None:
    """Phases are picked by name; an unknown one is named together with those there are."""
    target = load_target(folder)
    assert [p.name for p in target.only(["shorter"]).phases] == ["shorter"]
    with pytest.raises(ConfigError, match=r"no phase named 'fast'.*parallel, shorter"):
        target.only(["fast"])


def test_routes_merge_by_step() -> None:
    """A later route for a step replaces the earlier one; others stay; tables merge field by field."""
    base = {
        "routes": [{"step": "a", "model": "x"}, {"step": "b", "model": "x"}],
        "cache": {"enabled": True, "ttl_s": 5},
    }
    over = {"routes": [{"step": "a", "model": "y"}], "cache": {"ttl_s": 9}}
    assert merge_policy(base, over) == {
        "routes": [{"step": "b", "model": "x"}, {"step": "a", "model": "y"}],
        "cache": {"enabled": True, "ttl_s": 9},
    }


def test_placeholders_are_filled_except_the_port(folder: Path) -> None:
    """The time scale is one over the speed; a shell's own variables and JSON braces are left alone."""
    target = load_target(folder)
    texts = ["{time_scale}", "{speed}", "{dir}/x", "--port={port}", "${home}", '{"a": 1}']
    assert fill(texts, target, 8.0) == ["0.125", "8", f"{folder}/x", "--port={port}", "${home}", '{"a": 1}']


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "small"', 'name = "small', r"not valid TOML: .*line 3"),
        ("schema = 1", "schema = 2", "schema: this version reads schema 1; got 2: upgrade"),
        ('name = "small"', 'nam = "small"', "top level: unknown field 'nam'; did you mean 'name'"),
        ('name = "small"', "", "name: is missing; for example name ="),
        ("simulate = true", "", "provider: give either simulate or base_url"),
        ("simulate = true", 'base_url = "api.openai.com"', "base_url must begin with http"),
        ("simulate = true", 'simulate = "no.toml"', "provider.simulate: .*no.toml does not exist"),
        ('"{port}"', '"8000"', "service: command must say where {port} goes"),
        ('"{port}"', '"{port}", "{prot}"', r"service.command: unknown placeholder \{prot\}; one of \{port\}"),
        ('FAST = "0"', "FAST = 0", "service.env.FAST|service.env.*expected 'str', got 'int'; for example KEY"),
        ("users = 4", 'users = "4"', r"scenarios\[0\].users: expected 'int"),
        ("users = 4", "rate_per_s = 4", r"scenarios\[0\].*a closed scenario needs users"),
        ("users = 4", "user = 4", r"scenarios\[0\]: unknown field 'user'; did you mean 'users'"),
        ("users = 4", 'users = 4\nwhen = "ends"', "the main scenario 'concurrent' must have when"),
        ('"bodies.jsonl"', '"bodis.jsonl"', r"scenarios\[0\].bodies: .*bodis.jsonl does not exist"),
        ('"p95_s"', '"p95"', r"objectives\[0\]: objective 'P95': unknown metric 'p95'; one of requests"),
        ("target = 8.0", 'target = 8.0\nscenario = "x"', r"objectives\[0\].scenario: 'x' is none of concurrent"),
        ('name = "shorter"', 'name = "parallel"', "phases: two are named 'parallel'"),
        ('name = "shorter"', 'name = "a b"', r"phases\[1\]: name may hold letters"),
        (
            'kind = "trim"',
            'kind = "trimm"',
            r"phases\[1\].changes\[0\].kind: invalid value 'trimm'; one of batch, cache",
        ),
        ('step = "answer"', 'stp = "answer"', r"phases\[1\].changes\[0\]: unknown field 'stp'; did you mean 'step'"),
        ("factor = 2", 'factor = "2"', r"phases\[1\].changes\[1\].factor: expected a number or \[low, high\]"),
        ("[0.4, 0.6]", "[0.6, 0.4]", r"phases\[1\].changes\[0\].input_ratio: a range needs low <= high"),
        (
            "single_flight = true",
            "singel_flight = true",
            r"phases\[0\].gateway: unknown field .*did you mean 'single_f",
        ),
        ("enabled = true", "enabled = 3", r"phases\[1\].gateway.cache.enabled: expected 'bool', got 'int'"),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(folder: Path, old: str, new: str, message: str) -> None:
    """Every mistake is one sentence with the file and the field."""
    with pytest.raises(ConfigError, match=message) as caught:
        edited(folder, old, new)
    assert str(folder / "paceline.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    """The message names the command that writes one."""
    with pytest.raises(ConfigError, match="does not exist; `paceline tune --init"):
        load_target(tmp_path)


def test_two_main_scenarios_are_refused(folder: Path) -> None:
    """Only one scenario can be projected."""
    second = '\n[[scenarios]]\nname = "again"\nusers = 1\nrequests = 1\nmain = true\n'
    with pytest.raises(ConfigError, match="only one can be the main one; got concurrent, again"):
        edited(folder, '"bodies.jsonl"\n', '"bodies.jsonl"\nmain = true\n' + second)


def test_the_reference_page_names_every_field() -> None:
    """docs/target-file.md mentions each field of each table, and its example is a valid file."""
    page = (Path(__file__).parents[2] / "docs" / "target-file.md").read_text()
    from paceline.load.scenario import Scenario
    from paceline.model.figures import Objective
    from paceline.tune.schema import Golden, Phase, Provider, Service, TargetFile

    for struct in (TargetFile, Service, Provider, Scenario, Objective, Golden, Phase):
        for name in struct.__struct_fields__:
            assert f"`{name}`" in page, f"{struct.__name__}.{name} is not in docs/target-file.md"
    example = page.split("```toml\n", 1)[1].split("```", 1)[0]
    assert tomllib.loads(example)["schema"] == 1
