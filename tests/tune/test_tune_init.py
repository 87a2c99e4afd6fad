"""`paceline tune --init` writes a file that loads, from options, typed lines, or what it finds in the folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from paceline.errors import ConfigError
from paceline.tune.init import write_target
from paceline.tune.target import load_target

APP = "from fastapi import FastAPI\n\nservice = FastAPI()\n"


def nobody(prompt: str) -> None:
    """There is no one to answer."""


def lines(*answers: str) -> Callable[[str], str | None]:
    """Someone who types these lines and then leaves."""
    left = iter(answers)
    return lambda prompt: next(left, None)


def test_options_alone_are_enough(tmp_path: Path) -> None:
    """With the command and a body given nothing is asked, and the rest has defaults."""
    given = {"command": "uvicorn app:app --port 8000", "bodies": '{"question": "Wo?"}'}

    def ask(prompt: str) -> str:
        raise AssertionError(prompt)

    target = load_target(write_target(tmp_path, given, ask))
    assert target.service.command == ["uvicorn", "app:app", "--port", "{port}"]
    assert target.provider.simulate is True
    assert (target.main.users, target.main.requests, target.main.path) == (20, 200, "/chat")
    assert json.loads((tmp_path / "requests.jsonl").read_text()) == {"question": "Wo?"}
    assert [o.metric for o in target.objectives] == ["p95_s", "success_ratio"]


def test_typed_lines_answer_and_an_empty_line_takes_the_default(tmp_path: Path) -> None:
    """The one FastAPI application in the folder is offered as the command."""
    (tmp_path / "main.py").write_text(APP)
    (tmp_path / "questions.jsonl").write_text("{}\n")
    answers = lines("", "/health", "POST /ask", "questions.jsonl", "https://api.example.com/v1", "5", "50", "2.5")
    target = load_target(write_target(tmp_path, {}, answers))
    assert target.service.command == ["{python}", "-m", "uvicorn", "main:service", "--port", "{port}"]
    assert target.service.ready_url == "/health"
    assert target.provider.base_url == "https://api.example.com"
    assert (target.main.path, target.main.users, target.main.requests) == ("/ask", 5, 50)
    assert target.main.bodies == str(tmp_path / "questions.jsonl")
    assert target.objectives[0].target == 2.5


def test_a_missing_answer_is_named(tmp_path: Path) -> None:
    """Without anybody to ask, the message names the option."""
    with pytest.raises(ConfigError, match="--command is missing: command that starts"):
        write_target(tmp_path, {}, nobody)
    with pytest.raises(ConfigError, match="--bodies is missing"):
        write_target(tmp_path, {"command": "serve {port}"}, nobody)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("command", "python app.py", r"--command: write \{port\} where"),
        ("ready", "ready", "--ready: must begin with /"),
        ("endpoint", "/chat", "--endpoint: must be METHOD PATH"),
        ("bodies", "{question: 1}", "--bodies: must be JSON"),
        ("bodies", "none.jsonl", "--bodies: .*none.jsonl does not exist"),
        ("provider", "openai", "--provider: must be simulate or a URL"),
        ("users", "0", "--users: must be a whole number"),
        ("p95", "fast", "--p95: must be seconds above 0"),
    ],
)
def test_a_wrong_answer_is_named(tmp_path: Path, key: str, value: str, message: str) -> None:
    """Each is one sentence with the option and what would be right; nothing is written."""
    given = {"command": "serve {port}", "bodies": "{}", key: value}
    with pytest.raises(ConfigError, match=message):
        write_target(tmp_path, given, nobody)
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_kept_unless_forced(tmp_path: Path) -> None:
    """Refusing names --force."""
    given = {"command": "serve {port}", "bodies": "{}"}
    path = tmp_path / "paceline.toml"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="--force replaces it"):
        write_target(tmp_path, given, nobody)
    assert path.read_text() == "mine"
    assert load_target(write_target(tmp_path, given, nobody, force=True)).name == "chat"
