"""The snippets of docs/prompts-and-batches.md run, and say what the page says."""

import re
import textwrap
import tomllib
from pathlib import Path

import msgspec
import pytest

from paceline.accelerate.batching.policy import BatchPolicy
from paceline.accelerate.prompts.policy import PromptPolicy

PAGE = (Path(__file__).parents[2] / "docs" / "prompts-and-batches.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SECTIONS = {"prompts": PromptPolicy, "batching": BatchPolicy}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_runs(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(SNIPPETS[number], f"snippet {number}", "exec"), {"__name__": "snippet"})  # noqa: S102 - our own page
    said = capsys.readouterr().out.strip()
    if said:
        assert said in " ".join(textwrap.dedent(PAGE).split())


def test_the_page_has_snippets() -> None:
    assert len(SNIPPETS) == 4


@pytest.mark.parametrize("settings", re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
def test_settings_are_settings(settings: str) -> None:
    for name, section in tomllib.loads(settings).items():
        msgspec.convert(section, SECTIONS[name])
