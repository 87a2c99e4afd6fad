"""`paceline load` as a user meets it: figures, one clear sentence each for what can go wrong, exit codes."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.patience import PATIENCE_S

from paceline.cli import main
from paceline.cli.load_view import fitting_mode
from paceline.model.run import COMPLETE, PARTIAL
from paceline.store.folder import create_run, open_run
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve


@pytest.fixture
def url() -> Iterator[str]:
    """A server in a thread: /fail answers 500, /slow after 50 ms, anything else says whether it saw the body before."""
    loop = asyncio.new_event_loop()
    seen: set[bytes] = set()

    async def handler(request: HttpRequest) -> Reply:
        if request.path == "/slow":
            await asyncio.sleep(0.05)
        if request.path == "/fail":
            return Reply(500)
        said = b"hit" if request.body in seen else b"miss"
        seen.add(request.body)
        return Reply(200, [(b"x-cache", said)], b"ok")

    server = loop.run_until_complete(serve(handler, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    asyncio.run_coroutine_threadsafe(server.close(grace_s=0), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that does not mind being late: others use this machine, too."""
    monkeypatch.setattr("paceline.load.health._LAG_S", 60.0)
    monkeypatch.setattr("paceline.load.health._ACHIEVED_RATIO", 0.0)


def load(folder: Path, *arguments: str) -> int:
    return main(["load", *arguments, "--runs", str(folder / "runs")])


def only_run(folder: Path) -> Path:
    (path,) = (folder / "runs").iterdir()
    return path


def test_figures_go_to_stdout_and_the_run_is_kept(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text('{"q": 1}\n{"q": 2}\n')
    code = load(tmp_path, f"{url}/chat", "--users", "2", "--requests", "60", "--bodies", str(bodies), "--name", "demo")
    said = capsys.readouterr()
    assert code == 0
    for words in ("demo: 2 users", "p95 (95 % interval)", "cached", "uncached", "cache hits 96.7 %", "generator: "):
        assert words in said.out
    run = open_run(only_run(tmp_path))
    assert run.info.state == COMPLETE
    assert len(run.requests("demo")) == 60
    assert f"paceline report {run.path}" in said.out


def test_json_is_one_object_with_all_figures(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert load(tmp_path, url, "--rate", "400", "--duration", "0.1", "--poisson", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    (scenario,) = said["scenarios"]
    assert scenario["figures"]["requests"] == scenario["generator"]["requests"] > 10
    assert scenario["figures"]["success_ratio"] == 1.0
    assert set(scenario["parts"]) == {"cached", "uncached"}
    assert scenario["generator"]["arrivals"] == "poisson"
    assert said["run"] == str(only_run(tmp_path))


def test_requests_can_be_added_to_a_run_being_recorded(tmp_path: Path, url: str) -> None:
    """The run stays open and somebody else's; two loads leave two scenarios."""
    run = create_run(tmp_path, "recorded", speed=2.0)
    for name in ("a", "b"):
        assert load(tmp_path, url, "--users", "1", "--requests", "3", "--run", str(run.path), "--name", name) == 0
    again = open_run(run.path)
    assert again.info.state == "running"
    assert [s.name for s in again.info.scenarios] == ["a", "b"]
    assert len(again.requests("a")) == len(again.requests("b")) == 3
    assert not (tmp_path / "runs").exists()


def test_when_every_request_fails_the_exit_code_says_so(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(tmp_path, f"{url}/fail", "--users", "1", "--requests", "5") == 1
    said = capsys.readouterr()
    assert "every request failed" in said.err
    assert "5 x status 500" in said.out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["http://127.0.0.1:1/", "--users", "1", "--requests", "1"], 2, "nothing listens on 127.0.0.1:1"),
        (["http://no-such-host.invalid/", "--users", "1", "--requests", "1"], 2, "cannot resolve the host name"),
        (["nowhere"], 2, "neither a URL"),
        (["ftp://x/", "--users", "1", "--requests", "1"], 2, "must be a URL such as"),
        (["http://x/"], 2, "say how much"),
        (["http://x/", "--users", "1"], 2, "give requests or duration_s"),
        (["http://x/", "--users", "1", "--requests", "0"], 2, "requests must be above 0; got 0"),
        (["http://x/", "--users", "1", "--rate", "1"], 2, "--users and --rate exclude each other"),
        (["http://x/", "--rate", "1", "--poisson", "--cv", "2"], 2, "--poisson and --cv exclude each other"),
        (["http://x/", "--users", "1", "--requests", "1", "--header", "nonsense"], 2, "Name: value"),
        (["http://x/", "--users", "1", "--requests", "1", "--speed", "0"], 2, "--speed must be above 0"),
        (["http://x/", "--users", "1", "--requests", "1", "--run", "none"], 3, "none is not a run"),
        ([".", "--run", "x"], 2, "--run goes with a URL"),
        ([], 2, "say where to"),
        ([".", "--users", "1"], 2, "--users goes with a URL"),
        (["http://x/", "--users", "1", "--preset", "burst"], 2, "--users and --preset exclude each other"),
        (["http://x/", "--preset", "burst", "--duration", "5"], 2, "--preset and --duration exclude each other"),
        (["http://x/", "--rate", "1", "--ramp", "5"], 2, "--rate and --ramp exclude each other"),
        (["http://x/", "--preset", "stress"], 2, "no preset 'stress'; there are: concurrent"),
        (["http://x/", "--stage", "ramp:many:5"], 2, "--stage must look like ramp:100:60"),
        (["http://x/", "--stage", "wave:10:5"], 2, "kind must be one of hold, ramp, burst"),
        (["http://x/", "--stage", "hold:5:5", "--stage", "hold:5/s:5"], 2, "closed scenario have to_users"),
        (["http://x/", "--replay", "none.csv", "--window", "5"], 2, "--window must look like 600:120"),
        (["http://x/", "--find-knee", "5"], 2, "say what must be kept"),
        (["http://x/", "--find-knee", "5", "--objective", "p95_s<1", "--run", "r"], 2, "--run and --find-knee exclude"),
        (["http://x/", "--file", "none.toml"], 2, "cannot read the scenario file"),
        (["http://x/", "--file", "none.toml", "--bodies", "x"], 2, "--file and --bodies exclude each other"),
        (["--openapi", "api.json"], 2, "--openapi FILE and --out DIR go together"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_one_sentence(
    arguments: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(tmp_path, *arguments) == code
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not list((tmp_path / "runs").glob("*"))  # no empty run is left behind


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [("", 3, "holds no request bodies"), ('{"q": 1}\n{"q": \n', 3, "line 2"), (None, 2, "cannot read the bodies file")],
    ids=["empty", "malformed", "missing"],
)
def test_a_bad_bodies_file_is_named(
    text: str | None, code: int, says: str, tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = tmp_path / "bodies.jsonl"
    if text is not None:
        bodies.write_text(text)
    assert load(tmp_path, url, "--users", "1", "--requests", "2", "--bodies", str(bodies)) == code
    said = capsys.readouterr().err
    assert says in said
    assert str(bodies) in said


def test_a_generator_that_was_the_bottleneck_is_exit_4_with_results(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.load.health._LAG_S", -1.0)
    monkeypatch.setattr("paceline.load.health._LAG_RATIO", 0.0)
    assert load(tmp_path, url, "--rate", "100", "--requests", "5") == 4
    said = capsys.readouterr()
    assert "load generator was up to" in said.err
    assert "p95" in said.out
    assert len(open_run(only_run(tmp_path)).requests()) == 5


def test_presets_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load(tmp_path, "--presets") == 0
    assert "burst       500 users, 50 started a second, 2 min" in capsys.readouterr().out
    assert load(tmp_path, "--presets", "--json") == 0
    assert "soak" in json.loads(capsys.readouterr().out)


def test_a_shape_goes_through_its_stages(tmp_path: Path, url: str) -> None:
    assert load(tmp_path, url, "--stage", "ramp:400/s:0.1", "--stage", "hold:400/s:0.1") == 0
    run = open_run(only_run(tmp_path))
    at_s = [r.intended_s - run.info.scenarios[0].started_s for r in run.requests()]
    assert len(at_s) == 60
    assert sum(t < 0.1 for t in at_s) == pytest.approx(20, abs=1)


def test_the_cache_preset_shows_cold_and_warm_apart(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text("".join(f'{{"q": {i}}}\n' for i in range(20)))
    assert load(tmp_path, url, "--preset", "cache", "--bodies", str(bodies), "--name", "c", "--json") == 0
    cold, warm = json.loads(capsys.readouterr().out)["scenarios"]
    assert (cold["name"], cold["figures"]["hit_ratio"]) == ("c-cold", 0)
    assert (warm["name"], warm["figures"]["hit_ratio"]) == ("c-warm", 1)


def test_an_answer_that_is_not_what_was_expected_is_a_named_failure(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(tmp_path, url, "--users", "1", "--requests", "4", "--expect", "fine") == 1
    assert "4 x " in capsys.readouterr().out
    (info,) = open_run(only_run(tmp_path)).info.scenarios
    assert info.failed_checks == {'contains "fine"': 4}


def test_objectives_decide_the_exit_code(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--users", "1", "--requests", "4", "--objective", "success_ratio>=99%", "--objective"]
    assert load(tmp_path, url, *asked, "p95_s<60") == 0
    assert load(tmp_path, url, *asked, "p95_s<0.000001") == 1
    assert "objective p95_s < 0.000001: missed" in capsys.readouterr().err


def test_a_trace_is_replayed(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    trace = Path(__file__).parents[1] / "data" / "traffic" / "azure_llm_2023_conv_head.csv"
    assert load(tmp_path, url, "--replay", str(trace), "--time-scale", "100", "--window", "5:20") == 0
    assert "replay" in capsys.readouterr().out
    run = open_run(only_run(tmp_path))
    assert len(run.requests()) == 38
    assert {r.endpoint for r in run.requests()} == {"POST /"}


def test_an_api_is_drafted_and_the_draft_driven(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    api = tmp_path / "api.json"
    api.write_text('{"openapi": "3.0.0", "paths": {"/a/{id}": {"get": {}, "delete": {}}}}')
    assert load(tmp_path, "--openapi", str(api), "--out", str(tmp_path / "out")) == 0
    said = capsys.readouterr()
    path = tmp_path / "out" / "scenario.json"
    assert f"--file {path}" in said.out
    assert "DELETE /a/{id} left out" in said.err
    path.write_text(path.read_text().replace('"duration_s": 60.0', '"requests": 10'))
    assert load(tmp_path, f"{url}/v1", "--file", str(path), "--header", "x-key: k") == 0
    assert {r.endpoint for r in open_run(only_run(tmp_path)).requests()} == {"GET /a/1"}


@pytest.mark.slow
def test_the_knee_is_told_with_its_trials(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # In trials of 0.1 s a server that others hold up looks like one whose queue grows.
    monkeypatch.setattr("paceline.load.knee.queue_growth", lambda _: None)
    knee = ["--find-knee", "200", "--trial", "0.1", "--most-rate", "400", "--objective", "p95_s<5"]
    assert load(tmp_path, url, *knee) == 0
    said = capsys.readouterr().out
    assert "knee: at least 400/s; kept at 400/s, the highest rate to try" in said
    assert said.count(": kept") == 2


def test_ctrl_c_prints_and_keeps_what_there_is(tmp_path: Path, url: str) -> None:
    """A real process, a real signal: exit 130, figures printed, run sealed and marked partial."""
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "paceline", "load", f"{url}/slow", "--users", "4", "--requests", "100000"]
    process = subprocess.Popen(
        [*command, "--runs", str(runs)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    while not any(path.stat().st_size for path in runs.glob("*/requests-*.rows")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "interrupted; what was recorded is kept" in err
    assert "Traceback" not in err
    assert "p95 (95 % interval)" in out
    run = open_run(only_run(tmp_path))
    assert run.info.state == PARTIAL
    assert run.info.reason == "interrupted"
    assert all(r.ok for r in run.requests())
    assert list(run.path.glob("requests-*.parquet"))


def test_a_port_that_accepts_and_never_answers_is_a_timeout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        code = load(tmp_path, f"http://127.0.0.1:{port}", "--users", "1", "--requests", "2", "--timeout", "0.03")
    assert code == 1
    assert "2 x timeout" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "is_terminal", "is_quiet", "mode"),
    [
        ({"TERM": "xterm"}, True, False, "live"),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False, "live"),
        ({"TERM": "xterm", "CI": "true"}, True, False, "plain"),
        ({"TERM": "xterm", "CI": "false"}, True, False, "live"),
        ({"TERM": "dumb"}, True, False, "plain"),
        ({"TERM": "xterm"}, False, False, "plain"),
        ({"TERM": "xterm"}, True, True, "none"),
    ],
)
def test_what_is_shown_suits_where_it_is_shown(
    environment: dict[str, str], is_terminal: bool, is_quiet: bool, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

    for name in ("TERM", "CI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert fitting_mode(Stream(), is_quiet=is_quiet) == mode
