"""Whole services recorded: a real FastAPI server, the launcher, and the record verb under signals."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.patience import PATIENCE_S
from tests.record.conftest import Provider

from paceline.errors import ConfigError, ServiceError
from paceline.model.run import COMPLETE, PARTIAL, RUNNING
from paceline.model.span import EMBEDDING, HTTP_ROUTE, HTTP_STATUS, LLM, USED_IN_RESPONSE, USES
from paceline.record.launcher import free_port, refuse_taken_port
from paceline.store.folder import RunFolder, open_run
from paceline.testing import SimulatedProvider
from paceline.tune.recorded import RecordedService

pytestmark = pytest.mark.slow

DESK = """
import asyncio, os
import openai
from fastapi import APIRouter, BackgroundTasks, FastAPI
from fastapi.responses import StreamingResponse

app = FastAPI()
router = APIRouter(prefix="/v2")
client = openai.AsyncOpenAI(api_key="none", max_retries=0)

async def ask(text, model="m"):
    answer = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}])
    return answer.choices[0].message.content

async def classify(question): return await ask("Intent of " + question)
async def tone(question): return await ask("Tone for " + question)
async def answer(question, intent): return await ask(f"Answer {question}; intent {intent}")
async def validate(text): await ask("Check " + text)

@router.post("/chat/{user}")
async def chat(user: int, body: dict, later: BackgroundTasks):
    question = body["message"]
    intent = await classify(question)
    await tone(question)
    try:
        await ask("look up", model="missing")
    except openai.NotFoundError:
        pass  # the swallowed failure
    text = await answer(question, intent)
    later.add_task(validate, text)
    return {"answer": text}

@router.get("/stream")
async def stream():
    async def parts():
        for part in ("one ", "two"):
            await asyncio.sleep(0.01)
            yield part
    return StreamingResponse(parts())

@app.get("/boom")
def boom(): raise ValueError("broken on purpose")

@app.get("/ready")
def ready(): return {"ok": True}

app.include_router(router)
"""
UVICORN = ["{python}", "-m", "uvicorn", "desk:app", "--port", "{port}", "--log-level", "warning"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: Provider) -> Path:
    (tmp_path / "desk.py").write_text(DESK)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return tmp_path


def post(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        return json.load(reply)


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as reply:
            reply.read()
            return int(reply.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_request_becomes_one_tree_from_arrival_to_background_work(desk: Path, run: RunFolder) -> None:
    trace = "ab" * 16

    async def use() -> None:
        async with RecordedService(run, command=UVICORN, cwd=desk, ready_url="/ready") as service:
            headers = {"traceparent": f"00-{trace}-{'cd' * 8}-01"}
            for header in ({}, headers):
                await asyncio.to_thread(post, f"{service.url}/v2/chat/7", {"message": "my money, please"}, header)
            assert await asyncio.to_thread(status_of, f"{service.url}/boom") == 500
            assert await asyncio.to_thread(status_of, f"{service.url}/nothing") == 404
            assert await asyncio.to_thread(status_of, f"{service.url}/v2/stream") == 200
            service.check()

    asyncio.run(use())
    run.finish()
    spans = [s for s in run.spans() if s.trace_id == trace]
    request = next(s for s in spans if s.kind == "http.server")
    assert (request.name, request.parent_id, request.status) == ("POST /v2/chat/{user}", "cd" * 8, "ok")
    assert request.attributes[HTTP_ROUTE] == "/v2/chat/{user}"
    calls = {s.step: s for s in spans if s.kind == "llm"}
    # The second request: the shared `ask` has been recognised during the first.
    assert list(calls) == ["classify", "tone", "chat", "answer", "validate"]
    assert all(s.parent_id == request.span_id for s in calls.values())
    assert (calls["chat"].status, calls["chat"].error) == ("error", "NotFoundError")
    assert calls["answer"].attributes[USES] == [calls["classify"].span_id]
    assert USES not in calls["tone"].attributes
    assert request.attributes[USED_IN_RESPONSE] == [calls["answer"].span_id]
    assert calls["validate"].attributes[USES] == [calls["answer"].span_id]
    assert calls["validate"].start_ns >= request.end_ns - 5_000_000
    assert calls["answer"].end_ns <= request.end_ns
    served = {s.name: s for s in run.spans() if s.kind == "http.server"}
    assert (served["GET /boom"].error, served["GET /boom"].attributes[HTTP_STATUS]) == ("ValueError", 500)
    assert served["GET (no route)"].attributes[HTTP_STATUS] == 404
    assert served["GET /v2/stream"].duration_s >= 0.02
    resources = run.resources()
    assert {r.service for r in resources} == {"app", "generator"}
    assert max(r.cpu_s for r in resources if r.service == "app") > 0.1


def test_every_worker_of_a_server_is_recorded(desk: Path, run: RunFolder) -> None:
    async def use() -> set[int]:
        command = [*UVICORN, "--workers", "2"]
        async with RecordedService(run, command=command, cwd=desk, ready_url="/ready") as service:
            await asyncio.gather(*[asyncio.to_thread(status_of, f"{service.url}/v2/stream") for _ in range(12)])
            return {p.pid for p in psutil.Process(service.pid).children(recursive=True)}

    pids = asyncio.run(use())
    Recording.until(lambda: not any(alive(pid) for pid in pids))  # killed, but the kernel may still be clearing up
    assert sum(s.name == "GET /v2/stream" for s in run.spans()) == 12


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["{python}", "-c", "raise SystemExit('no database')"],
            r"ended with exit code 1 before it was ready.*no database",
        ),
        (["sh", "-c", "echo slow; sleep 60"], r"not ready after 1 s: .*no connection.*slow"),
        (["sh", "-c", "echo 'ERROR: [Errno 98] Address already in use'; exit 1"], r"its port is already in use"),
    ],
    ids=["dies", "never ready", "port in use"],
)
def test_a_service_that_does_not_start_is_one_error(
    run: RunFolder, tmp_path: Path, command: list[str], said: str
) -> None:
    async def use() -> None:
        ready_s = 1 if "sleep" in command[-1] else PATIENCE_S
        async with RecordedService(
            run, command=[*command, "{port}"], cwd=tmp_path, ready_url="/", ready_timeout_s=ready_s
        ):
            raise AssertionError

    with pytest.raises(ServiceError, match=r"(?s)" + said):
        asyncio.run(use())


def test_a_missing_program_and_a_taken_port_are_named(run: RunFolder, tmp_path: Path) -> None:
    async def use(command: list[str]) -> None:
        async with RecordedService(run, command=command, cwd=tmp_path):
            raise AssertionError

    with pytest.raises(ConfigError, match="cannot run 'no-such-program'"):
        asyncio.run(use(["no-such-program"]))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServiceError, match="is already in use"):
        refuse_taken_port(f"http://127.0.0.1:{taken.getsockname()[1]}/ready")


def test_the_environments_own_sitecustomize_still_runs_and_a_broken_recorder_does_not_stop_it(
    run: RunFolder, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('theirs ran')")

    async def use(env: dict[str, str]) -> int:
        command = ["{python}", "-c", "import sitecustomize; print('app ran', sitecustomize.__file__)"]
        async with RecordedService(run, command=command, cwd=tmp_path, env=env) as service:
            return await service.wait()

    assert asyncio.run(use({"PYTHONPATH": str(tmp_path)})) == 0
    log = (run.path / "service.log").read_text()
    assert "theirs ran" in log
    assert f"app ran {tmp_path}" in log
    assert "paceline:" not in log


def test_a_broken_recording_warns_once_and_the_service_runs(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path("src/paceline/record/_site").resolve())}
    env |= {"PACELINE_RUN": str(tmp_path), "PACELINE_CLOCK_OFFSET_NS": "nonsense"}
    done = subprocess.run([sys.executable, "-c", "print('ran')"], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "ran\n"
    assert done.stderr.count("paceline: this process is not recorded") == 1


class Recording:
    """`paceline record` around the desk, as a user's process."""

    def __init__(self, desk: Path, *more: str) -> None:
        self.desk = desk
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        options = ["--runs", "runs", "--no-gateway", "--ready", f"{self.url}/ready", *more]
        command = [part.format(python=sys.executable, port=port) for part in UVICORN]
        with (desk / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "paceline", "record", *options, "--", *command],
                cwd=desk,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
            )
        self.until(lambda: "running as process" in self.err)

    @property
    def err(self) -> str:
        return (self.desk / "err").read_text()

    @property
    def app_pid(self) -> int:
        return int(self.err.split("running as process ")[1].split(";")[0].split(",")[0])

    @property
    def run(self) -> RunFolder:
        return open_run(next((self.desk / "runs").iterdir()))

    @staticmethod
    def until(true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s"
            time.sleep(0.02)

    def ask(self) -> None:
        post(f"{self.url}/v2/chat/1", {"message": "my money, please"})

    def seen(self) -> int:
        return sum(s.name.startswith("POST /v2") for s in self.run.spans())

    def model_calls(self) -> int:
        return sum(s.kind in (LLM, EMBEDDING) and s.service == "app" for s in self.run.spans())


@pytest.fixture
def recording(desk: Path) -> Iterator[Callable[..., Recording]]:
    made: list[Recording] = []

    def start(*more: str) -> Recording:
        made.append(Recording(desk, *more))
        return made[-1]

    yield start
    for each in made:
        each.process.kill()
        each.process.wait()
        assert each.process.stdout is not None
        each.process.stdout.close()


def test_ctrl_c_seals_the_run_and_says_what_was_recorded(recording: Callable[..., Recording]) -> None:
    recorded = recording()
    recorded.ask()
    recorded.process.send_signal(signal.SIGINT)
    out, _ = recorded.process.communicate(timeout=PATIENCE_S)
    assert recorded.process.returncode == 130
    assert recorded.run.info.state == COMPLETE
    assert "1 requests" in out or "2 requests" in out
    assert "model calls: 5 (1 failed), 40 tokens in, 20 out" in out
    assert "overhead: about" in out
    assert f"next: paceline diagnose {recorded.run.path.relative_to(recorded.desk)}" in out
    assert not alive(recorded.app_pid)


def test_json_prints_one_object_and_the_exit_code_is_the_services_own(desk: Path) -> None:
    command = [sys.executable, "-m", "paceline", "record", "--no-gateway", "--json", "--", sys.executable, "-c"]
    done = subprocess.run([*command, "raise SystemExit(7)"], cwd=desk, capture_output=True, text=True, check=False)
    assert done.returncode == 7
    record = json.loads(done.stdout)
    assert (record["exit_code"], record["spans"], record["requests"]) == (7, 0, 0)
    assert open_run(desk / record["run"]).info.state == PARTIAL


def test_kill_9_of_the_service_keeps_what_was_recorded(recording: Callable[..., Recording]) -> None:
    recorded = recording()
    recorded.ask()
    recorded.until(lambda: recorded.seen() == 1 and recorded.model_calls() == 5)  # one comes after the answer
    os.kill(recorded.app_pid, signal.SIGKILL)
    out, _ = recorded.process.communicate(timeout=PATIENCE_S)
    assert recorded.process.returncode == 137
    assert "model calls: 5" in out
    info = recorded.run.info
    assert (info.state, info.reason) == (PARTIAL, "the service ended with exit code 137")


def test_kill_9_of_paceline_keeps_what_was_recorded_and_leaves_no_orphan(recording: Callable[..., Recording]) -> None:
    recorded = recording()
    recorded.ask()
    recorded.until(lambda: recorded.seen() == 1)
    app = recorded.app_pid
    recorded.process.kill()
    recorded.until(lambda: not alive(app))
    run = recorded.run
    assert run.info.state == RUNNING
    assert [s.kind for s in run.spans() if s.name.startswith("POST /v2")] == ["http.server"]
    assert run.resources()


ASKS_ALL = """
import anthropic, openai
from google import genai

openai.OpenAI().chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}])
anthropic.Anthropic().messages.create(
    model="claude-sonnet-4-5", max_tokens=20, messages=[{"role": "user", "content": "Hi"}]
)
google = genai.Client()
google.models.generate_content(model="gemini-2.5-flash", contents="Hi")
"""


def test_the_calls_of_every_providers_sdk_go_through_the_gateway(tmp_path: Path) -> None:
    """Each with its cost; with --record-answers what was said is kept. Where they went without it, they still go."""
    (tmp_path / "app.py").write_text(ASKS_ALL)
    with SimulatedProvider(speed=100.0) as provider:
        keys = {"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k", "GEMINI_API_KEY": "k"}
        urls = {"ANTHROPIC_BASE_URL": provider.url, "GOOGLE_GEMINI_BASE_URL": provider.url}
        env = {**os.environ, **keys, **urls}
        env.pop("OPENAI_BASE_URL", None)
        command = [sys.executable, "-m", "paceline", "record", "--json", "--upstream", provider.url, "--record-answers"]
        done = subprocess.run(
            [*command, "--", sys.executable, "app.py"],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        assert sorted(call.dialect for call in provider.calls) == ["anthropic", "gemini", "openai"]
    run = open_run(tmp_path / json.loads(done.stdout)["run"])
    calls = [span for span in run.spans() if span.service == "gateway"]
    assert len(calls) == 3
    assert all(span.cost_usd for span in calls)
    [answers] = run.path.glob("answers-*.jsonl")
    assert answers.read_text().count('"target"') == 3


@pytest.mark.parametrize(
    ("options", "variables", "said"),
    [
        (["--upstream", "nonsense"], {}, "--upstream is not a server's URL: 'nonsense'"),
        ([], {"ANTHROPIC_BASE_URL": "localhost:8000"}, "ANTHROPIC_BASE_URL is not a server's URL: 'localhost:8000'"),
        (["--no-gateway", "--record-answers"], {}, "--record-answers and --no-gateway contradict each other"),
    ],
)
def test_what_cannot_be_recorded_is_one_sentence_and_leaves_no_run(
    tmp_path: Path, options: list[str], variables: dict[str, str], said: str
) -> None:
    command = [sys.executable, "-m", "paceline", "record", *options, "--", "true"]
    env = {**os.environ, **variables}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"paceline record: {said}")
    assert not (tmp_path / ".paceline").exists()
