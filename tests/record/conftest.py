"""A tiny provider and a way to run Python source recorded, in a process of its own as patches are for a lifetime."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.patience import PATIENCE_S

from paceline.model.span import Span
from paceline.record.launcher import recording_environment
from paceline.store.folder import RunFolder, create_run

ANSWER = "You can ask for your money back within thirty days of the purchase date."
_TEXTS = {"Intent": "Billing.", "Answer": ANSWER, "Embed": ""}


class _Provider(BaseHTTPRequestHandler):
    """Answers by the first word of the last message; the model "missing" gives 404, "busy" 429 once a trace."""

    protocol_version = "HTTP/1.1"
    server: "Provider"

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._send(200, {"ok": True})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
        self.server.seen.append((self.path, dict(self.headers), body))
        if self.path.endswith("/embeddings"):
            vector = [0.25, -0.5, 0.125, 1.0, 0.75]
            usage = {"prompt_tokens": 3, "total_tokens": 3}
            data = [{"object": "embedding", "index": 0, "embedding": vector}]
            self._send(200, {"object": "list", "model": body["model"], "data": data, "usage": usage})
        elif body["model"] == "missing":
            self._send(404, {"error": {"message": "no such model " + "x" * 300}})
        elif body["model"] == "busy" and self.headers["traceparent"][3:35] not in self.server.refused:
            self.server.refused.add(self.headers["traceparent"][3:35])
            self._send(429, {"error": {"message": "slow down"}}, {"retry-after": "0.01"})
        else:
            self._chat(body)

    def _chat(self, body: dict[str, Any]) -> None:
        text = _TEXTS.get(body["messages"][-1]["content"].split()[0], "warm and brief")
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        head = {"id": "1", "created": 1, "model": body["model"], "usage": usage}
        if not body.get("stream"):
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            self._send(200, {**head, "object": "chat.completion", "choices": [choice]})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for word in text.split(" "):
            choice = {"index": 0, "delta": {"content": word + " "}}
            event = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _send(self, status: int, record: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(record).encode()
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


class Provider(ThreadingHTTPServer):
    """`url`, and what was asked: (path, headers, body)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Provider)
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.refused: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def provider() -> Iterator[Provider]:
    server = Provider()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create_run(tmp_path / "runs", "test")


Recorded = Callable[..., list[Span]]


@pytest.fixture
def recorded(run: RunFolder, provider: Provider, tmp_path: Path) -> Recorded:
    """Runs source as app/main.py, recorded with `provider` as its provider and gateway; returns the spans by start."""

    def record(source: str, *, env: dict[str, str] | None = None, code: int = 0) -> list[Span]:
        app = tmp_path / "app"
        app.mkdir(exist_ok=True)
        (app / "main.py").write_text(textwrap.dedent(source))
        variables = {
            **os.environ,
            **recording_environment(run, app, provider.url),
            "OPENAI_BASE_URL": f"{provider.url}/v1",
            "OPENAI_API_KEY": "none",
            "PROVIDER": provider.url,
            **(env or {}),
        }
        done = subprocess.run(
            [sys.executable, "main.py"],
            cwd=app,
            env=variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert "paceline" not in done.stderr, done.stderr
        return run.spans()

    return record
