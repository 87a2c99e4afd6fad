"""The command line as a whole: quick to start, clear when it refuses."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import paceline
from paceline.cli import INTERRUPTED, VERBS, main
from paceline.errors import InputError


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"paceline {verb}" in capsys.readouterr().out
    assert f"paceline {verb}" in (importlib.import_module(f"paceline.cli.{verb}").__doc__ or "")


def test_importing_paceline_loads_nothing_else() -> None:
    """No room, no library: a service that imports us pays nothing until it uses something."""
    program = "import sys; before = set(sys.modules); import paceline; print(sorted(set(sys.modules) - before))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "['paceline']"


def test_help_loads_no_heavy_library() -> None:
    """The start-up budget: none of these is needed to print help."""
    program = (
        "import sys\nfrom paceline.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'duckdb', 'rich', 'jinja2', 'simpy', 'genai_prices', 'uvloop', 'psutil'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.strip().endswith("[]")


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"paceline {paceline.__version__}"


@pytest.mark.parametrize("arguments", [[], ["tuen"], ["report"]])
def test_wrong_usage_is_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize("verb", ["diagnose", "project", "report"])
def test_a_folder_that_is_no_run_is_exit_3_and_one_sentence(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = ["--change", "defer:step=x"] if verb == "project" else []
    assert main([verb, str(tmp_path / "nothing"), *extra]) == InputError.exit_code
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    assert "is not a run" in said.err


def test_an_interrupt_is_exit_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("paceline.cli.report.run", interrupted)
    assert main(["report", "somewhere"]) == INTERRUPTED
    assert "kept" in capsys.readouterr().err
