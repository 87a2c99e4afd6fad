"""The whole loop on a small real application and the simulated provider, and how it ends when it cannot go on."""

import json
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.patience import PATIENCE_S

from paceline.cli import main
from paceline.store.folder import RunFolder, open_run
from paceline.store.tuning import load_result
from paceline.trace.tree import build_traces

TUNE_S = 600.0  # a tuning takes up to twenty seconds of CPU time: every phase starts three processes
pytestmark = pytest.mark.timeout(TUNE_S + 60)
APP = Path(__file__).parents[1] / "tutorial_app"
TOML = """
name = "notes"
[service]
command = ["{python}", "-m", "uvicorn", "notes:app", "--port", "{port}"]
ready_url = "/health"
ready_timeout_s = 300
prepare = [["{python}", "-c", "print('prepared at {speed} x')"]]
[provider]
simulate = true
[[scenarios]]
name = "concurrent"
users = 8
requests = 40
timeout_s = 3000
path = "/notes"
bodies = "requests.jsonl"
[[scenarios]]
name = "again"
model = "open"
rate_per_s = 0.5
requests = 4
timeout_s = 3000
path = "/notes"
bodies = "requests.jsonl"
when = "ends"
[[objectives]]
name = "P50"
metric = "p50_s"
op = "<"
target = 0.001
level = "should"
[[objectives]]
name = "success"
metric = "success_ratio"
op = "=="
target = 1
[quality]
golden = "golden.jsonl"
timeout_s = 3000
[[phases]]
name = "parallel"
env = { NOTES_PARALLEL = "1" }
[[phases.changes]]
kind = "parallelise"
steps = ["write_title", "list_actions", "summarise"]
[[phases]]
name = "small-model"
[phases.gateway]
routing = { routes = [{ step = "write_title", model = "gpt-4o-mini" }] }
[[phases.changes]]
kind = "route"
step = "write_title"
model = "gpt-4o-mini"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tutorial's application with a target file and a golden set."""
    for name in ("notes.py", "requests.jsonl"):
        shutil.copy(APP / name, tmp_path)
    (tmp_path / "paceline.toml").write_text(TOML)
    body = {"text": "Ana: We meet again. Ben: Yes."}
    lines = [{"body": body, "expect": ["ana"]}, {"body": body, "expect": ["never said by anyone"]}]
    (tmp_path / "golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    """The command line of a tuning at fifty times the real pace."""
    return [sys.executable, "-m", "paceline", "tune", str(folder), "--speed", "50", "--out", str(folder / "out"), *more]


def tune(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(command(folder, *more), capture_output=True, text=True, timeout=TUNE_S, check=False)


def overlapping_share(run: RunFolder) -> float:
    """Share of the requests in which one call to a model began before another had ended."""
    traces = [t.calls for t in build_traces(run.spans(), run.requests()) if len(t.calls) > 1]
    return sum(any(b.start_ns < a.end_ns for a, b in pairwise(calls)) for calls in traces) / len(traces)


def models_of(run: RunFolder, step: str) -> set[str | None]:
    """The models that answered a step's calls."""
    return {c.model for t in build_traces(run.spans(), run.requests()) for c in t.calls if c.step == step}


@pytest.mark.slow
def test_the_loop_measures_projects_applies_and_measures_again(folder: Path) -> None:
    """Two phases: projected before they are measured, applied (environment and gateway), measured, judged."""
    done = tune(folder, "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert [p["name"] for p in told["phases"]] == ["before", "parallel", "small-model"]
    before, parallel, small = told["phases"]
    assert before["projected"] is None
    for phase in (parallel, small):
        assert phase["refusal"] is None, phase["refusal"]
        said = phase["projected"]["p95_s"]
        assert said["low"] <= said["value"] <= said["high"]
        assert phase["measured"]["success_ratio"] == 1.0
        assert phase["measured"]["quality_ratio"] == 0.5
    # The same texts, a third of the calls at a seventeenth of the price.
    assert small["measured"]["cost_per_1000_usd"] < parallel["measured"]["cost_per_1000_usd"]
    assert {o["name"]: o["met"] for o in told["objectives"]} == {"P50": False, "success": True}
    assert set(told["projection_error"]) >= {"p50", "p95", "requests_per_s"}
    assert "again" in before["scenarios"]
    assert "again" not in parallel["scenarios"]
    assert "again" in small["scenarios"]
    assert Path(told["report"]).read_text().startswith("<!")

    result = load_result(Path(told["folder"]))
    assert result.state == "complete"
    assert result.probes[0].model == "gpt-4o-mini"
    assert [p.run for p in result.phases] == ["baseline", "phase-1-parallel", "phase-2-small-model"]
    said = json.loads((Path(told["folder"]) / "projections.json").read_text())
    first = open_run(Path(told["folder"]) / "phase-1-parallel")
    assert overlapping_share(open_run(Path(told["folder"]) / "baseline")) < 0.05
    assert overlapping_share(first) > 0.95
    routed = open_run(Path(told["folder"]) / "phase-2-small-model")
    assert models_of(routed, "write_title") == {"gpt-4o-mini"}
    assert models_of(routed, "summarise") == models_of(first, "write_title") == {"gpt-4o"}
    assert datetime.fromisoformat(said["written_at"]).timestamp() * 1e9 < first.info.start_ns
    assert "prepared at 50 x" in (Path(told["folder"]) / "prepare.log").read_text()


@pytest.mark.slow
def test_without_phases_a_roadmap_is_proposed(folder: Path) -> None:
    """Only the baseline is measured; a missed must is named and exits 1."""
    text = TOML[: TOML.index("[[phases]]")].replace('level = "should"', 'level = "must"')
    (folder / "paceline.toml").write_text(text)
    done = tune(folder, "--no-report")
    assert done.returncode == 1, done.stderr
    assert "missed: P50 (must): < 1.0 ms was asked" in done.stderr
    assert done.stdout.splitlines()[3].startswith("before")
    assert "speed 50: times are at the provider's pace" in done.stdout
    [out] = (folder / "out").iterdir()
    result = load_result(out)
    assert [f.change for f in result.findings if f.change] == [p.change for p in result.proposals]
    assert (out / "roadmap.toml").exists() == bool(result.proposals)


@pytest.mark.slow
def test_an_application_that_dies_at_start_is_one_sentence(folder: Path) -> None:
    """Exit 2, its last words, no traceback, and a result that says why it is partial."""
    text = TOML.replace('"-m", "uvicorn", "notes:app", "--port", "{port}"]', '"-c", "raise SystemExit(\'no {port}\')"]')
    (folder / "paceline.toml").write_text(text)
    done = tune(folder)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "ended with exit code 1 before it was ready" in done.stderr
    assert done.stdout == ""
    [out] = (folder / "out").iterdir()
    result = load_result(out)
    assert result.state == "partial"
    assert "before it was ready" in (result.reason or "")


@pytest.mark.slow
def test_an_endpoint_that_answers_nothing_is_named(folder: Path) -> None:
    """When every request of the baseline fails, the file is wrong, and the message says where to look."""
    (folder / "paceline.toml").write_text(TOML.replace('path = "/notes"', 'path = "/note"'))
    done = tune(folder, "--no-report")
    assert done.returncode == 2
    assert "every request of scenario 'concurrent' failed: status 404 (40 times)" in done.stderr


@pytest.mark.slow
def test_an_interrupted_tuning_keeps_what_it_has(folder: Path) -> None:
    """Ctrl-C while the load runs: exit 130, the run and the result are partial and readable."""
    (folder / "paceline.toml").write_text(TOML.replace("requests = 40", "requests = 20000"))
    process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "load 'concurrent'" in line:
            break
    while not any((folder / "out").glob("*/baseline/requests-*")):
        time.sleep(0.02)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    [out] = (folder / "out").iterdir()
    result = load_result(out)
    assert (result.state, result.reason) == ("partial", "interrupted")
    assert open_run(out / "baseline").info.state == "partial"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--speed", "0"], "--speed must be above 0; got 0"),
        (["--phases", "fast"], "no phase named 'fast'"),
        (["--users", "3"], "--users answers a question of --init"),
    ],
)
def test_wrong_options_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Exit 2 before anything is started or written."""
    assert main(["tune", str(folder), "--out", str(folder / "out"), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not (folder / "out").exists()


def test_a_real_provider_has_its_own_pace(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--speed with a base_url is a contradiction, and both are named."""
    (folder / "paceline.toml").write_text(TOML.replace("simulate = true", 'base_url = "https://api.example.com"'))
    assert main(["tune", str(folder), "--speed", "5", "--out", str(folder / "out")]) == 2
    assert "--speed 5 needs a simulated provider; https://api.example.com has its own pace" in capsys.readouterr().err


def test_init_writes_a_file_from_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line door to it; a second time it refuses."""
    shutil.copy(APP / "notes.py", tmp_path)
    arguments = ["tune", "--init", str(tmp_path), "--bodies", '{"text": "Hello"}', "--endpoint", "POST /notes"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'paceline.toml'}\n"
    assert main(arguments) == 2
    assert "--force replaces it" in capsys.readouterr().err
