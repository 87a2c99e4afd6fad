"""Locustfiles as people have them, run unchanged by real Locust: recorded, refused, interrupted, killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from paceline.cli import main
from paceline.errors import ConfigError, PacelineError
from paceline.load.locust.locustfile import LocustLoad, LocustOutcome, drive_locustfile
from paceline.model.request import Request
from paceline.model.run import ScenarioInfo
from paceline.store.folder import RunFolder, create_run, open_run
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve

FILES = Path(__file__).with_name("locustfiles")
ANSWER = b'{"token": "t"}'


async def with_server(work: Callable[[str, list[HttpRequest]], Awaitable[Any]]) -> Any:
    """Do something with the URL of a server and the list of what it was asked: /fail answers 500, others 200."""
    asked: list[HttpRequest] = []

    def answer(request: HttpRequest) -> Reply:
        asked.append(request)
        return Reply(500) if request.path == "/fail" else Reply(200, body=ANSWER)

    server = await serve(answer, "127.0.0.1", 0)
    try:
        return await work(f"http://127.0.0.1:{server.port}", asked)
    finally:
        await server.close(grace_s=0)


def sessions() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "paceline.load.locust.session" in p.cmdline()]


def by_name(requests: list[Request]) -> Counter[tuple[str, str | None]]:
    return Counter((request.endpoint, request.error) for request in requests)


@pytest.mark.slow
def test_three_locustfiles_run_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An HttpUser with a TaskSet, a LoadTestShape, and by the command a paced FastHttpUser that checks; all at once."""
    shop, stages = create_run(tmp_path, "shop"), create_run(tmp_path, "stages")
    asked: list[HttpRequest] = []

    async def work(url: str, seen: list[HttpRequest]) -> tuple[LocustOutcome, LocustOutcome, int]:
        nonlocal asked
        asked = seen
        load = LocustLoad(locustfile=FILES / "shop.py", host=url, users=3, spawn_rate_per_s=30, duration_s=1.5)
        command = [url, "--locust", str(FILES / "catalogue.py"), "--users", "3", "--spawn-rate", "30", "--json"]
        more = ["--duration", "1.5", "--locust-args=--language de", "--runs", str(tmp_path / "runs")]
        return await asyncio.gather(
            drive_locustfile(replace(load, arguments=["--exclude-tags", "slow"]), shop),
            drive_locustfile(LocustLoad(locustfile=FILES / "stages.py", host=url), stages),
            asyncio.to_thread(main, ["load", *command, *more, "--objective", "success_ratio>=0"]),
        )

    bought, staged, code = asyncio.run(with_server(work))
    said = capsys.readouterr()
    (catalogue,) = (open_run(path) for path in (tmp_path / "runs").iterdir())
    _check_shop(bought, shop.requests())
    _check_stages(staged, stages.requests())
    _check_catalogue(catalogue.info.scenarios[0], catalogue.requests())
    _check_traces([r for run in (shop, stages, catalogue) for r in run.requests()], asked)
    assert code in (1, 4)  # 4 when others keep this machine busy: Locust needs much of a core
    assert "set the exit code 7" in said.err or code == 4  # its listener saw context, option and request
    (scenario,) = json.loads(said.out)["scenarios"]  # whatever Locust and the locustfile print
    assert scenario["generator"]["unsent"]["tasks"] >= 0
    assert scenario["figures"]["requests"] == scenario["generator"]["requests"]
    assert not sessions()


def _check_shop(outcome: LocustOutcome, requests: list[Request]) -> None:
    info, found = outcome.info, by_name(requests)
    assert outcome.complaint is None
    assert info.stopped is None
    assert info.driver is not None
    assert info.driver.startswith("Locust 2.")
    assert (info.model, info.users, info.requests, info.ramp_s) == ("closed", 3, len(requests), 0.1)
    assert info.generator_cpu_ratio is not None
    assert info.generator_cpu_ratio > 0
    assert info.lag_p99_s is not None
    assert 0 < info.think_s < 0.1
    assert info.unsent is None  # nobody was paced
    assert "coordinated omission" in info.notes[0]
    assert found["POST /login", None] == 3
    assert found["GET /products/[id]", None] > 10
    assert found["GET /fail", "status"] > 0
    assert {r.endpoint for r in requests} == {"POST /login", "GET /products/[id]", "GET /fail"}  # the tag was heeded
    assert {r.status for r in requests if r.error == "status"} == {500}
    assert {r.user for r in requests} == {0, 1, 2}
    assert {r.response_bytes for r in requests if r.ok} == {len(ANSWER)}
    assert all(r.intended_s <= r.started_s <= r.ended_s for r in requests)


def _check_catalogue(info: ScenarioInfo, requests: list[Request]) -> None:
    found = by_name(requests)
    assert found["GET /search", "check"] > 5
    assert {r.failed_check for r in requests if r.error == "check"} == {"not the results page"}
    assert info.failed_checks == {"not the results page": found["GET /search", "check"]}
    assert found["GET /expected-failure", None] > 0  # 500, and response.success()
    assert found["MQTT publish", None] > 0
    published = next(r for r in requests if r.endpoint == "MQTT publish")
    assert published.service_s == pytest.approx(0.0035)
    assert published.response_bytes == 12
    assert info.unsent is not None
    assert "paced" in info.notes[0]


def _check_stages(outcome: LocustOutcome, requests: list[Request]) -> None:
    info = outcome.info
    assert (outcome.complaint, info.stopped, info.users) == (None, None, 6)
    assert by_name(requests).keys() == {("GET /read", None), ("POST /write", None)}
    first = min(r.intended_s for r in requests)
    assert {r.user for r in requests if r.intended_s < first + 0.5} <= {0, 1, 2}
    assert {r.user for r in requests} == set(range(6))


def _check_traces(requests: list[Request], asked: list[HttpRequest]) -> None:
    """Each request carried the trace id that its record has, so spans of the target can be joined."""
    sent = Counter(dict(request.headers)[b"traceparent"].decode().split("-")[1] for request in asked)
    recorded = [r.trace_id for r in requests if r.endpoint != "MQTT publish"]
    assert set(sent.values()) == {1}
    assert len(set(recorded)) == len(recorded)
    assert set(recorded) <= sent.keys()


BROKEN = {
    "from locust import HttpUser, task\nclass U(HttpUser):\n    @task\n    def t(self): pass": (
        ConfigError,
        "U has no host: give a URL to load",
    ),
    "from locust import User\nclass U(User):\n    def on_start(self): {}['token']": (
        ConfigError,
        "sent no request: KeyError: 'token' (broken.py, line 3)",
    ),
}


@pytest.mark.slow
def test_a_locustfile_that_cannot_run_is_one_sentence(tmp_path: Path) -> None:
    async def refused(place: int, text: str) -> PacelineError:
        file = tmp_path / str(place) / "broken.py"
        file.parent.mkdir()
        file.write_text(text)
        with pytest.raises(PacelineError) as caught:
            await drive_locustfile(LocustLoad(locustfile=file, users=1, duration_s=0.5), runs[place])
        return caught.value

    async def all_of_them() -> list[PacelineError]:
        return await asyncio.gather(*(refused(place, text) for place, text in enumerate(BROKEN)))

    runs = [create_run(tmp_path, f"r{place}") for place in range(len(BROKEN))]
    for error, (kind, says) in zip(asyncio.run(all_of_them()), BROKEN.values(), strict=True):
        assert type(error) is kind
        assert says in str(error)
        assert "\n" not in str(error)
    assert not any(run.info.scenarios for run in runs)
    assert not sessions()


@pytest.mark.slow
def test_what_was_recorded_is_kept_when_locust_is_interrupted_or_killed(tmp_path: Path) -> None:
    """And exceptions in tasks are told."""
    file = tmp_path / "oops.py"
    file.write_text(
        "from locust import FastHttpUser, constant, task\nclass U(FastHttpUser):\n    wait_time = constant(0.02)\n"
        "    @task\n    def t(self):\n        self.client.get('/')\n        raise ValueError('oops')\n"
    )

    async def drive(run: RunFolder, url: str) -> "tuple[asyncio.Task[LocustOutcome], asyncio.Event]":
        under_way = asyncio.Event()
        load = LocustLoad(locustfile=file, host=url, users=1, duration_s=30.0)

        def show(snapshot: Any) -> None:
            if snapshot.done > 5:
                under_way.set()

        return asyncio.create_task(drive_locustfile(load, run, progress=show)), under_way

    async def work(url: str, _: list[HttpRequest]) -> LocustOutcome:
        killed, killable = await drive(runs[0], url)
        await killable.wait()
        os.kill(sessions()[0].pid, signal.SIGKILL)
        interrupted, interruptible = await drive(runs[1], url)
        outcome = await killed
        await interruptible.wait()
        interrupted.cancel()
        with pytest.raises(asyncio.CancelledError):
            await interrupted
        return outcome

    runs = [create_run(tmp_path, name) for name in ("killed", "interrupted")]
    outcome = asyncio.run(with_server(work))
    assert outcome.info.stopped == "Locust was killed by signal 9; what it had recorded is kept"
    assert outcome.info.requests == len(runs[0].requests()) > 5
    (info,) = runs[1].info.scenarios
    assert info.stopped == "interrupted"
    assert info.requests == len(runs[1].requests()) > 5
    assert any("x ValueError: oops (oops.py, line 7)" in note for note in info.notes)
    assert not sessions()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--locust", "none.py"], "no such locustfile: none.py"),
        (["http://x/", "--locust", "none.py", "--rate", "5"], "--locust and --rate exclude each other"),
        (["ftp://x/", "--locust", __file__], "the host for a locustfile must be a URL"),
        (["--locust", __file__, "--users", "0"], "--users must be above 0; got 0"),
        (["--locust", __file__, "--locust-args", "'x"], "--locust-args: No closing quotation"),
        (["--locust", __file__, "--preset", "cache"], "--locust takes presets of users and a time"),
        (["--locust", __file__, "--preset", "soak", "--spawn-rate", "1"], "--preset and --spawn-rate exclude"),
        (["http://x/", "--spawn-rate", "5"], "--spawn-rate goes with --locust FILE"),
        (["http://x/", "--locust-master", "127.0.0.1:1"], "--locust-master goes with --locust-workers N"),
        (["http://x/", "--locust-workers", "0"], "--locust-workers must be at least 1; got 0"),
        (["http://x/", "--locust-workers", "2", "--processes", "2"], "--locust-workers and --processes exclude"),
        (["http://x/", "--locust-workers", "2", "--locust-master", "x"], "--locust-master must look like 0.0.0.0:5557"),
        ([".", "--locust-workers", "2"], "--locust-workers goes with a URL"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_one_sentence(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["load", *arguments, "--runs", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    assert not list((tmp_path / "runs").glob("*"))


def test_without_locust_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "locust", None)
    for arguments in (
        ["--locust", __file__],
        ["http://x/", "--users", "1", "--requests", "1", "--locust-workers", "2"],
    ):
        assert main(["load", *arguments, "--runs", str(tmp_path / "runs")]) == 2
        assert "not installed: pip install 'paceline[locust]'" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*"))


def test_the_command_line_imports_none_of_it() -> None:
    code = "import sys; from paceline.cli import main; main(['load', '--presets']); print(sys.modules.keys())"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "paceline.cli.load_locust" in loaded
    for name in ("'locust'", "'gevent'", "'flask'", "'zmq'", "paceline.load.locust"):
        assert name not in loaded
