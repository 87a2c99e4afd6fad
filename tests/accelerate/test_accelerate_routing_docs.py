"""The snippets of docs/routing.md are settings that are accepted, defaults as it states them, and code that runs."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from paceline.accelerate.policy import Policy
from paceline.accelerate.routing.policy import RoutingPolicy

PAGE = (Path(__file__).parents[2] / "docs" / "routing.md").read_text(encoding="utf-8")
SETTINGS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_settings_are_settings(number: int) -> None:
    """As a policy file."""
    policy = msgspec.convert(tomllib.loads(SETTINGS[number]), Policy)
    assert policy.routing != RoutingPolicy() or "[routing.breaker]" in SETTINGS[number]


@pytest.mark.parametrize("section", ["retries", "breaker", "hedge"])
def test_the_figures_of_a_section_are_its_defaults(section: str) -> None:
    """So that who copies a block changes nothing but what it switches on."""
    [block] = [block for block in SETTINGS if f"[routing.{section}]" in block]
    stated = getattr(msgspec.convert(tomllib.loads(block), Policy).routing, section)
    standard = getattr(RoutingPolicy(), section)
    if section != "breaker":
        standard = msgspec.structs.replace(standard, enabled=True)
    assert stated == standard


def test_the_code_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Each print beside its comment."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/routing.md", "exec"), {"__name__": "snippet"})  # noqa: S102 - our own page
    assert capsys.readouterr().out.split("\n")[:-1] == re.findall(r"print\(.*\)  # (.*)", code)
