"""Policies from files: defaults are off, mistakes are one sentence."""

from pathlib import Path

import pytest

from paceline.accelerate.policy import CachePolicy, Policy, load_policy
from paceline.errors import ConfigError

WHOLE = """
single_flight = true
[cache]
enabled = true
key = "text"
ttl_s = 60
max_bytes = 1000
[concurrency]
limit = 8
max_wait_s = 5
[concurrency.models]
"gpt-4o" = 2
[retry_429]
enabled = true
[[routes]]
step = "classify_intent"
model = "gpt-4o-mini"
"""


def test_everything_is_off_until_asked_for() -> None:
    """The empty policy passes calls on and shares nothing."""
    policy = Policy()
    assert not policy.shares
    assert policy.concurrency.limit_of("any") is None
    assert not policy.retry_429.enabled


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    """A whole policy is read from either."""
    toml, json = tmp_path / "p.toml", tmp_path / "p.json"
    toml.write_text(WHOLE)
    policy = load_policy(toml)
    assert policy.shares
    assert (policy.cache.key, policy.concurrency.limit_of("gpt-4o"), policy.concurrency.limit_of("x")) == ("text", 2, 8)
    json.write_text('{"single_flight": true}')
    assert load_policy(json) == Policy(single_flight=True)


def test_at_speed_only_its_seconds_change() -> None:
    """A provider five times faster: everything takes a fifth, nothing else changes."""
    policy = Policy(cache=CachePolicy(enabled=True, ttl_s=50), single_flight=True)
    fast = policy.at_speed(5.0)
    assert (fast.cache.ttl_s, fast.concurrency.max_wait_s, fast.retry_429.max_wait_s) == (10.0, 12.0, 12.0)
    assert fast.shares
    assert fast.at_speed(0.2) == policy


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[cache]\nenable = true", "enable"),
        ("[cache]\nkey = 'fuzzy'", "must be exact or text; got 'fuzzy'"),
        ("[cache]\nttl_s = 0", "ttl_s must be above 0"),
        ("[concurrency]\nlimit = 0", "limit must be at least 1; got 0"),
        ("[retry_429]\nmax_wait_s = -1", "max_wait_s must be above 0"),
        ("[[routes]]\nstep = 'a'", "model"),
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
