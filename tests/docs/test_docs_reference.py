"""The reference page is what the commands say of themselves; `make docs` writes it anew."""

import os
import re
import sys
from pathlib import Path

import pytest

from paceline.cli import VERBS, _parser

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"

HEAD = """# Reference: the commands

Every verb is a library call and a print. Results go to stdout, progress and logs to stderr; `--json` prints one object.

| exit code | meaning |
|---:|---|
| 0 | fine |
| 1 | a check failed: an objective missed, every request failed |
| 2 | wrong usage or configuration; the application did not start or cannot be reached |
| 3 | unreadable input: not a run, damaged, empty, written by a newer version |
| 4 | the measurement itself cannot be trusted or kept: the generator was the bottleneck, the disk is full |
| 130 | interrupted; partial results are kept and marked |

Runs go to `.paceline/runs`, tunings to `.paceline/tunes`, below the folder you are in.
"""


def reference() -> str:
    """The page as it should be."""
    parts = [HEAD]
    for verb, summary in VERBS.items():
        actions = _parser(verb)._subparsers
        assert actions is not None
        choices = actions._group_actions[0].choices
        assert isinstance(choices, dict)
        parts.append(
            f"## paceline {verb}\n\n{summary[0].upper()}{summary[1:]}.\n\n```\n{choices[verb].format_help()}```\n"
        )
    return "\n".join(parts)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse lays help out differently from Python 3.13 on")
def test_the_reference_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    assert PAGE.read_text(encoding="utf-8") == reference(), "run: make docs"


def test_links_between_documents_lead_somewhere() -> None:
    """Relative links of the README and docs name files that exist."""
    root = PAGE.parents[1]
    for page in (root / "README.md", root / "CHANGELOG.md", *sorted((root / "docs").rglob("*.md"))):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} links to {link}, which is not there"


if __name__ == "__main__":
    os.environ["COLUMNS"] = "110"
    PAGE.write_text(reference(), encoding="utf-8")
