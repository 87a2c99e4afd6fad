"""The support desk as a whole, against the simulated provider: its slow form, its fast form, and over HTTP."""

import asyncio
import importlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.patience import PATIENCE_S

from paceline.record.launcher import free_port
from paceline.testing import SimulatedProvider

SUPPORT = Path(__file__).parents[2] / "workloads" / "support"
sys.path.insert(0, str(SUPPORT))

QUESTION = "Is Slack content a federal record?"
SAYS = "potentially a federal"
FAST = {
    "collection": "handbook",
    "ready_checks": True,
    "small_model": "gpt-4o-mini",
    "parallel": True,
    "intent_once": True,
    "validate_after": True,
    "chunks": 3,
    "short_prompts": True,
    "history_messages": 3,
    "limit_replies": True,
    "async_calls": True,
    "stream": True,
    "cache_key": "text",
    "single_flight": True,
    "reuse_steps": True,
    "web_cache": True,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector store over a tenth of the handbook, the asked section included."""
    folder = tmp_path_factory.mktemp("state")
    with SimulatedProvider(speed=200.0) as provider, pytest.MonkeyPatch.context() as patch:
        point_at(patch, provider)
        assert ingest(folder) == len(few_sections())
    return folder


@pytest.fixture(autouse=True)
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedProvider]:
    with SimulatedProvider(speed=200.0) as provider:
        point_at(monkeypatch, provider)
        yield provider


def point_at(patch: pytest.MonkeyPatch, provider: SimulatedProvider) -> None:
    patch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1")
    patch.setenv("OPENAI_API_KEY", "any")


def few_sections() -> list[Any]:
    retrieval: Any = importlib.import_module("support.retrieval")
    known = list(retrieval.sections(retrieval.load_handbook()))
    return known[::10] + [section for section in known if QUESTION in section.source]


def ingest(folder: Path) -> int:
    module: Any = importlib.import_module("support.ingest")
    return int(module.ingest(settings(folder), few_sections()))


def settings(folder: Path, **switches: Any) -> Any:
    module: Any = importlib.import_module("support.settings")
    return module.Settings(state_dir=str(folder), time_scale=0.005, **switches)


async def ask(desk: Any, *messages: str) -> list[tuple[str, str]]:
    """How each message was served and what the answer says, all asked at once; checks are made."""
    pending = [await desk.ask(message, session=0) for message in messages]
    found = []
    for each in pending:
        draft = await asyncio.shield(each.draft)
        if draft.check and each.cache == "miss":
            await draft.check()
        found.append((each.cache, draft.reply.answer))
    return found


def serve(folder: Path, rounds: list[list[str]], **switches: Any) -> list[list[tuple[str, str]]]:
    """Answers of a desk with these switches to rounds of messages."""
    module: Any = importlib.import_module("support.desk")

    async def scenario() -> list[list[tuple[str, str]]]:
        desk = module.Desk(settings(folder, **switches))
        try:
            return [await ask(desk, *messages) for messages in rounds]
        finally:
            await desk.close()

    return asyncio.run(scenario())


def kinds(provider: SimulatedProvider) -> list[str]:
    return [call.kind for call in provider.calls]


def test_ingest_adds_nothing_twice(state: Path) -> None:
    """Running it again is cheap."""
    assert ingest(state) == 0


def test_ingest_starts_anew_when_the_embeddings_are_of_another_model(
    tmp_path: Path, provider: SimulatedProvider
) -> None:
    """A store that no question can find anything in is not complete."""
    retrieval: Any = importlib.import_module("support.retrieval")
    store = retrieval.open_store(settings(tmp_path))
    stale = store.create_collection("handbook", embedding_function=None)
    stale.add(ids=["0"], embeddings=[[1.0, 0.0, 0.0]], documents=["old"])
    assert ingest(tmp_path) == len(few_sections())


def test_the_slow_desk_answers_without_the_handbook(state: Path, provider: SimulatedProvider) -> None:
    """Six calls for one answer, one after the other, and the failing look-up hidden: nothing of the handbook in it."""
    (((how, answer),),) = serve(state, [[QUESTION]])
    assert how == "miss"
    assert SAYS not in answer
    assert kinds(provider) == ["label", "embedding", "label", "tone", "vague", "verdict"]
    assert {call.model for call in provider.calls if call.kind != "embedding"} == {"gpt-4o"}


def test_the_slow_desk_knows_only_the_very_same_text(state: Path) -> None:
    """And what is in flight is asked again."""
    first, second = serve(state, [[QUESTION, QUESTION], [QUESTION, QUESTION.lower()]])
    assert [how for how, _ in first] == ["miss", "miss"]
    assert [how for how, _ in second] == ["hit", "miss"]


def test_the_fast_desk_quotes_the_handbook(state: Path, provider: SimulatedProvider) -> None:
    """Five calls, the small model for the small ones."""
    (((how, answer),),) = serve(state, [[QUESTION]], **FAST)
    assert how == "miss"
    assert SAYS in answer
    assert sorted(kinds(provider)) == ["embedding", "label", "quoted", "tone", "verdict"]
    assert {call.model for call in provider.calls if call.kind in ("label", "verdict")} == {"gpt-4o-mini"}
    assert kinds(provider)[-1] == "verdict"


def test_the_fast_desk_answers_the_same_question_once(state: Path, provider: SimulatedProvider) -> None:
    """Joined in flight, then from the cache, however it is typed."""
    first, second = serve(
        state, [[QUESTION, QUESTION.lower(), "is slack content, a federal record"], [QUESTION.upper()]], **FAST
    )
    assert [how for how, _ in first] == ["miss", "join", "join"]
    assert second == [("hit", first[0][1])]
    assert kinds(provider).count("quoted") == 1


def test_a_joined_answer_is_a_turn_of_the_session_that_joined(state: Path) -> None:
    """Whoever waited for the same answer can go on from it."""
    module: Any = importlib.import_module("support.desk")

    async def scenario() -> list[list[dict[str, str]]]:
        desk = module.Desk(settings(state, **FAST))
        pending = [await desk.ask(QUESTION, session) for session in (900_001, 900_002)]
        for each in pending:
            await asyncio.shield(each.draft)
        await asyncio.sleep(0)
        await desk.close()
        return [desk.history.of(session) for session in (900_001, 900_002)]

    first, second = asyncio.run(scenario())
    assert [message["role"] for message in second] == ["user", "assistant"]
    assert first == second


def test_a_second_desk_finds_answers_in_redis(state: Path, provider: SimulatedProvider) -> None:
    """The second level is shared between processes."""
    redis_server: Any = importlib.import_module("support.redis_server")
    with redis_server.LocalRedis() as redis:
        first = serve(state, [[QUESTION]], **FAST, redis=redis.url)
        again = serve(state, [[QUESTION]], **FAST, redis=redis.url)
    assert [first[0][0][0], again[0][0][0]] == ["miss", "hit"]
    assert kinds(provider).count("quoted") == 1


def test_verdicts_reach_the_audit_log(state: Path) -> None:
    """In both forms; it is all that validation is for."""
    log = state / "audit.jsonl"
    before = len(log.read_text().splitlines()) if log.exists() else 0
    serve(state, [["What is Slack?"]])
    serve(state, [["What is Slack?"]], **FAST)
    written = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    assert [row["question"] for row in written] == ["What is Slack?"] * 2
    assert all(row["verdict"] for row in written)


class Server:
    """The application as its command starts it."""

    def __init__(self, folder: Path, **switches: Any) -> None:
        self.port = free_port()
        named = {f"SUPPORT_{k.upper()}": str(int(v) if isinstance(v, bool) else v) for k, v in switches.items()}
        command = [sys.executable, "-m", "uvicorn", "support.app:app", "--port", str(self.port), "--log-level", "error"]
        env = {**os.environ, **named, "SUPPORT_STATE_DIR": str(folder), "SUPPORT_TIME_SCALE": "0.005"}
        self.process = subprocess.Popen(command, cwd=SUPPORT, env=env)

    def __enter__(self) -> "Server":
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return self
        pytest.fail("the desk did not start")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def get(self, path: str, body: object = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        data = None if body is None else json.dumps(body).encode()
        if data:
            headers["content-type"] = "application/json"
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request) as reply:
                return reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, {}, error.read()


def test_the_slow_desk_over_http_is_always_ready(tmp_path: Path) -> None:
    """Although there is no collection at all; and it does not stream."""
    with Server(tmp_path) as server:
        assert server.get("/ready")[0] == 200
        status, headers, body = server.get("/chat", {"session": 1, "message": QUESTION, "stream": True})
        assert (status, headers["x-cache"], headers["content-type"]) == (200, "miss", "application/json")
        assert json.loads(body)["sources"] == []
        assert "cache-control" not in server.get("/static/chat.css")[1]


def test_a_checked_desk_without_its_collection_is_not_ready(tmp_path: Path) -> None:
    """The reason is in the answer."""
    with Server(tmp_path, collection="handbook", ready_checks=True) as server:
        status, _, body = server.get("/ready")
        assert status == 503
        assert "handbook" in json.loads(body)["reason"]


def test_the_fast_desk_over_http_streams_and_caches(state: Path) -> None:
    """Pieces add up to the reply; the page and its files come compressed and may be kept."""
    with Server(state, **FAST, redis="local") as server:
        assert server.get("/ready")[0] == 200
        _, headers, body = server.get("/chat", {"session": 1, "message": QUESTION, "stream": True})
        events = [event.split("\n") for event in body.decode().strip().split("\n\n")]
        named = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in events]
        assert (headers["x-cache"], headers["content-type"]) == ("miss", "text/event-stream; charset=utf-8")
        assert [name for name, _ in named] == ["piece"] * (len(named) - 1) + ["reply"]
        assert "".join(data["text"] for _, data in named[:-1]) == named[-1][1]["answer"]
        assert SAYS in named[-1][1]["answer"]

        _, headers, body = server.get("/chat", {"session": 2, "message": QUESTION.lower()})
        assert headers["x-cache"] == "hit"
        assert json.loads(body) == named[-1][1]

        page = server.get("/", **{"accept-encoding": "gzip"})
        assert page[0] == 200
        css = server.get("/static/chat.css", **{"accept-encoding": "gzip"})[1]
        assert (css["content-encoding"], css["cache-control"]) == ("gzip", "public, max-age=86400")


def test_an_answer_is_finished_when_its_reader_has_left(state: Path) -> None:
    """It is checked and kept, and the desk goes on."""
    question = "What is Slack and who uses it?"
    body = json.dumps({"session": 1, "message": question, "stream": True}).encode()
    head = f"POST /chat HTTP/1.1\r\nHost: desk\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with Server(state, **FAST) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as reader:
            reader.sendall(head.encode() + body)
            reader.recv(1)
        deadline = time.monotonic() + PATIENCE_S
        while question not in (state / "audit.jsonl").read_text():
            assert time.monotonic() < deadline, "the answer was not checked"
            time.sleep(0.05)
        assert server.get("/chat", {"session": 2, "message": question})[1]["x-cache"] == "hit"


def test_a_provider_that_refuses_for_good_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with a sentence, not a traceback."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}/v1")
        with Server(tmp_path) as server:
            status, _, body = server.get("/chat", {"session": 1, "message": QUESTION})
    assert status == 503
    assert json.loads(body)["detail"].startswith("the model provider does not answer")
