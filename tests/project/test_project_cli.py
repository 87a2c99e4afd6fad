"""`paceline project` on a run folder."""

import json
from pathlib import Path

import msgspec
import pytest
from tests.project.builders import Recorded

from paceline.cli import main
from paceline.cli.project import parse_change, parse_model
from paceline.errors import ConfigError
from paceline.model.change import Cache, Limit, Parallelise, Route, Trim
from paceline.model.estimate import Range
from paceline.store.folder import create_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run on disk."""
    data = Recorded(cpu_s=0.002).data()
    folder = create_run(tmp_path_factory.mktemp("runs"), "base")
    for table, records in (("requests", data.requests), ("spans", data.spans), ("resources", data.resources)):
        spool = folder.spool(table, "test")
        for record in records:
            spool.append(record)
        spool.close()
    folder.update(start_ns=data.info.start_ns, scenarios=data.info.scenarios)
    folder.finish()
    return folder.path


def test_a_change_is_projected_and_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before, projected, interval, what was assumed."""
    changes = ["--change", "parallelise:steps=classify+answer", "--change", "trim:step=answer,output_ratio=0.4..0.6"]
    assert main(["project", str(run), *changes, "--repetitions", "5"]) == 0
    shown = capsys.readouterr().out
    for text in ("before", "projected", "p95", "cost per 1,000", "run classify and answer in parallel", "0.4 to 0.6"):
        assert text in shown


def test_json_is_one_object(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the measured figures and the projection."""
    assert main(["project", str(run), "--change", "defer:step=classify", "--repetitions", "5", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    projected = record["projection"]["figures"]["mean_s"]
    assert projected["low"] <= projected["value"] <= projected["high"] < record["before"]["mean_s"]


def test_a_refusal_is_one_sentence_and_exit_1(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, naming the steps there are."""
    assert main(["project", str(run), "--change", "defer:step=validate"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no step named 'validate' in the baseline; it has: answer, classify" in captured.err


def test_changes_come_from_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same tables as in paceline.toml."""
    path = tmp_path / "changes.toml"
    path.write_text('[[changes]]\nkind = "speed_up"\nstep = "answer"\nfactor = [2, 3]\n')
    assert main(["project", str(run), "--changes", str(path), "--repetitions", "5", "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)["projection"]["changes"]
    assert changes == [{"kind": "speed_up", "step": "answer", "factor": {"low": 2.0, "high": 3.0}}]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--change", "fasten:step=a"], "unknown kind 'fasten'; one of parallelise, cache"),
        (["--change", "defer:stage=a"], "unknown field `stage`"),
        (["--change", "defer:step"], "expected"),
        (["--change", "trim:step=a,output_ratio=high"], "expected a number or"),
        (["--model", "m:ttft_p50_s=1"], "ttft_p95_s"),
        (["--scenario", "night"], "no scenario 'night' in run"),
        (["--repetitions", "2"], "--repetitions must be at least 5"),
        (["--changes", "/nowhere.toml"], "cannot read /nowhere.toml"),
    ],
    ids=["kind", "field", "value", "range", "model", "scenario", "repetitions", "file"],
)
def test_a_mistake_is_exit_2(
    run: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence that names it."""
    assert main(["project", str(run), *arguments]) == 2
    assert sentence.lower() in capsys.readouterr().err.lower()


def test_changes_are_written_as_they_are_meant() -> None:
    """Lists by +, ranges by .., chains by >, booleans and numbers as such."""
    assert parse_change("parallelise:steps=retrieve+classify>tone") == Parallelise(steps=["retrieve", "classify>tone"])
    assert parse_change("cache:key=text,shared_in_flight=true,entries=50") == Cache(
        key="text", shared_in_flight=True, entries=50
    )
    assert parse_change("limit:resource=provider:gpt-4o,size=8") == Limit(resource="provider:gpt-4o", size=8)
    assert parse_change("trim:step=a,input_ratio=0.5") == Trim(step="a", input_ratio=Range(0.5, 0.5))
    assert parse_change("route:step=a,model=gpt-4o-mini") == Route(step="a", model="gpt-4o-mini")


def test_a_pace_is_given_by_name() -> None:
    """Model names may hold colons."""
    name, pace = parse_model("ft:gpt-4o:ttft_p50_s=0.3,ttft_p95_s=0.8,token_gap_s=0.01,requests_per_min=500")
    assert name == "ft:gpt-4o"
    assert msgspec.structs.asdict(pace)["requests_per_min"] == 500


def test_an_empty_change_is_a_config_error() -> None:
    """It says how a change is written."""
    with pytest.raises(ConfigError, match="such as defer:step=validate"):
        parse_change("")
