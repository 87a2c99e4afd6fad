"""Policies from files: defaults are off, mistakes are one sentence."""

from pathlib import Path

import pytest

from paceline.accelerate.cache import CachePolicy, MemoryPolicy
from paceline.accelerate.policy import RECOMMENDED, Policy, load_policy
from paceline.errors import ConfigError

WHOLE = """
single_flight = true
[cache]
enabled = true
key = "text"
[cache.memory]
ttl_s = 60
max_bytes = 1000
[limits]
concurrency = 8
max_wait_s = 5
[limits.models."gpt-4o"]
concurrency = 2
[routing.retries]
enabled = true
[[routing.routes]]
step = "classify_intent"
model = "gpt-4o-mini"
[prompts]
last_turns = 6
[batching]
enabled = true
"""


def test_everything_is_off_until_asked_for() -> None:
    """The empty policy passes calls on and shares nothing."""
    policy = Policy()
    assert not policy.shares
    assert policy.limits.is_off
    assert not policy.routing.retries.enabled
    assert not policy.prompts.is_on
    assert not policy.batching.enabled


def test_what_is_recommended_changes_no_answer() -> None:
    """Equal calls share, for W3.1's five minutes; refusals are waited out; prompts and models stay as they are."""
    assert RECOMMENDED.shares
    assert RECOMMENDED.cache.key == "exact"
    assert RECOMMENDED.cache.memory == MemoryPolicy(max_bytes=100_000_000, ttl_s=300.0)
    assert RECOMMENDED.cache.levels == ("memory",)
    assert not RECOMMENDED.prompts.is_on
    assert not RECOMMENDED.routing.routes


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    """A whole policy is read from either."""
    toml, json = tmp_path / "p.toml", tmp_path / "p.json"
    toml.write_text(WHOLE)
    policy = load_policy(toml)
    assert policy.shares
    assert policy.cache.key == "text"
    assert [policy.limits.for_model(name).concurrency for name in ("gpt-4o", "x")] == [2, 8]
    json.write_text('{"single_flight": true}')
    assert load_policy(json) == Policy(single_flight=True)


def test_at_speed_only_its_seconds_change() -> None:
    """A provider four times faster: everything takes a quarter, nothing else changes."""
    policy = Policy(cache=CachePolicy(enabled=True, memory=MemoryPolicy(ttl_s=40)), single_flight=True)
    fast = policy.at_speed(4.0)
    assert (fast.cache.memory.ttl_s, fast.limits.max_wait_s, fast.routing.retries.max_wait_s) == (10.0, 15.0, 15.0)
    assert fast.shares
    assert fast.at_speed(0.25) == policy


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[cache]\nenable = true", "enable"),
        ("[cache]\nkey = 'fuzzy'", "fuzzy"),
        ("[cache.memory]\nttl_s = 0", "ttl_s must be above 0"),
        ("[limits]\nconcurrency = 0", "concurrency must be at least 1"),
        ("[routing.retries]\nmax_wait_s = -1", "max_wait_s must be above 0"),
        ("[[routing.routes]]\nstep = 'a'", "model"),
        ("single_flight = 'yes'", "bool"),
        ("= nonsense", "wrong"),
    ],
)
def test_a_mistake_names_file_and_field(tmp_path: Path, text: str, problem: str) -> None:
    """One sentence with the file and what is wrong in it."""
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        load_policy(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """No such file."""
    with pytest.raises(ConfigError, match=r"cannot read the policy .*none\.toml"):
        load_policy(tmp_path / "none.toml")
