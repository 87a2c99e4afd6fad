"""`paceline diagnose`: a real run folder in, text or JSON out."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from tests.diagnose.builders import RULES, START_NS, desk_run

from paceline.cli import main
from paceline.model.finding import Finding
from paceline.store.folder import create_run
from paceline.trace.data import RunData


def write_run(root: Path, data: RunData) -> Path:
    """Store what was built in memory the way recorder, driver and sampler do."""
    folder = create_run(root, "desk")
    folder.update(start_ns=START_NS, scenarios=data.info.scenarios)
    tables: dict[str, Sequence[msgspec.Struct]] = {"requests": data.requests, "spans": data.spans}
    tables["resources"] = data.resources
    for table, records in tables.items():
        spool = folder.spool(table, "test")
        for record in records:
            spool.append(record)
        spool.close()
    folder.finish()
    return folder.path


class Output(msgspec.Struct):
    """What --json prints."""

    run: str
    scenario: str | None
    requests: int
    spans: int
    findings: list[Finding]


def test_json_holds_the_findings_as_the_library_gives_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object, read back into the same structs."""
    path = write_run(tmp_path, desk_run(*RULES))
    assert main(["diagnose", str(path), "--scenario", "concurrent", "--json"]) == 0
    output = msgspec.json.decode(capsys.readouterr().out, type=Output)
    assert (output.scenario, output.requests) == ("concurrent", 60)
    assert {f.rule for f in output.findings} == set(RULES)


def test_text_names_line_saving_and_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A block per finding, numbered."""
    assert main(["diagnose", str(write_run(tmp_path, desk_run("deferrable_work")))]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 cause of lost time or money in desk")
    for part in (" 1. the answer waits 0.80 s", "desk/app.py:170 validate", "800 ms a request", "do validate after"):
        assert part in out


def test_a_healthy_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Silence would look like a failure to look."""
    assert main(["diagnose", str(write_run(tmp_path, desk_run()))]) == 0
    assert capsys.readouterr().out == "no cause of lost time or money found in 60 requests\n"


def test_an_empty_run_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 3, nothing on stdout."""
    run = desk_run()
    assert main(["diagnose", str(write_run(tmp_path, RunData(run.info, [], [], [])))]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "holds neither requests nor spans" in captured.err
    assert captured.err.count("\n") == 1


def test_an_unknown_scenario_and_a_missing_folder_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first is wrong usage, the second unreadable input."""
    path = write_run(tmp_path, desk_run())
    assert main(["diagnose", str(path), "--scenario", "hot"]) == 2
    assert "scenarios with requests: concurrent" in capsys.readouterr().err
    assert main(["diagnose", str(tmp_path / "none")]) == 3


def test_a_recording_without_load_says_what_savings_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Notes go to stderr."""
    run = desk_run("duplicate_calls")
    assert main(["diagnose", str(write_run(tmp_path, RunData(run.info, [], run.spans, run.resources)))]) == 0
    captured = capsys.readouterr()
    assert "no load was driven" in captured.err
    assert "classify_intent asks the same thing again" in captured.out
