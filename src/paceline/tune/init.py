"""Writes a first paceline.toml from a few answers, given beforehand or asked for."""

import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paceline.errors import ConfigError
from paceline.tune.target import FILE_NAME, load_target

Ask = Callable[[str], str | None]  # shows a prompt and returns a line; None when there is nobody to answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One thing the file must say. `check` returns the value to write, or raises ValueError with what is wrong."""

    key: str
    prompt: str
    default: str | None  # None: there is no sensible one
    check: Callable[[str, Path], str]

    @property
    def flag(self) -> str:
        """The option that answers it."""
        return "--" + self.key.replace("_", "-")


def write_target(folder: Path, given: dict[str, str], ask: Ask, *, force: bool = False) -> Path:
    """Write `folder`/paceline.toml and return its path.

    Args:
        folder: The application's folder.
        given: Answers by the keys of `QUESTIONS`; when all without a default are here, nothing is asked.
        ask: How to ask for the others. An empty line takes the default.
        force: Replace a file that is there.

    Raises:
        ConfigError: the file exists, an answer is missing or wrong (the message names its option).
    """
    path = folder / FILE_NAME
    if not folder.is_dir():
        msg = f"{folder} is not a folder; name the one your application starts in"
        raise ConfigError(msg)
    if path.exists() and not force:
        msg = f"{path} exists; --force replaces it"
        raise ConfigError(msg)
    answers = _answers(folder, given, ask)
    part = folder / f".{FILE_NAME}.part"
    bodies = folder / "requests.jsonl"
    own_bodies = not answers["bodies"].endswith(".jsonl")
    if own_bodies and not bodies.exists():
        bodies.write_text(answers["bodies"] + "\n")
    part.write_text(_text(answers, "requests.jsonl" if own_bodies else answers["bodies"]))
    try:
        load_target(part)
    except ConfigError:
        part.unlink()
        raise
    part.replace(path)
    return path


def _answers(folder: Path, given: dict[str, str], ask: Ask) -> dict[str, str]:
    questions = _questions(folder)
    asks = any(q.default is None and q.key not in given for q in questions)
    answers = {}
    for question in questions:
        value = given.get(question.key)
        if value is None and asks:
            default = f" [{question.default}]" if question.default else ""
            value = ask(f"{question.prompt}{default}: ")
        value = (value or "").strip() or question.default
        if value is None:
            msg = f"{question.flag} is missing: {question.prompt[0].lower()}{question.prompt[1:]}"
            raise ConfigError(msg)
        try:
            answers[question.key] = question.check(value, folder)
        except ValueError as error:
            msg = f"{question.flag}: {error}"
            raise ConfigError(msg) from None
    return answers


def _questions(folder: Path) -> list[Question]:
    return [
        Question(key="command", prompt="Command that starts the application, {port} for its port",
                 default=_found_command(folder), check=_command),
        Question(key="ready", prompt="Path that answers 200 once it is ready", default="/", check=_path),
        Question(key="endpoint", prompt="Endpoint to drive, as METHOD PATH", default="POST /chat", check=_endpoint),
        Question(key="bodies", prompt="A request body (JSON), or a .jsonl file with one a line", default=None,
                 check=_bodies),
        Question(key="provider", prompt="Model provider: simulate, or its base URL", default="simulate",
                 check=_provider),
        Question(key="users", prompt="Users at once", default="20", check=_count),
        Question(key="requests", prompt="Requests in all", default="200", check=_count),
        Question(key="p95", prompt="P95 that must be reached, in seconds", default="5", check=_seconds),
    ]  # fmt: skip


def _found_command(folder: Path) -> str | None:
    """A command for the one FastAPI application that lies in the folder; None when there is none or several."""
    found = []
    for file in sorted(folder.glob("*.py")):
        match = re.search(r"^(\w+)\s*(?::\s*\w+\s*)?=\s*FastAPI\(", file.read_text(errors="replace"), re.MULTILINE)
        if match:
            found.append(f"{{python}} -m uvicorn {file.stem}:{match[1]} --port {{port}}")
    return found[0] if len(found) == 1 else None


def _command(value: str, folder: Path) -> str:
    words = shlex.split(value)
    if "{port}" not in value:
        # `--port 8000` is what people paste; the number cannot stay, for the port must be free.
        for i, word in enumerate(words[:-1]):
            if word in ("--port", "-p") and words[i + 1].isdigit():
                words[i + 1] = "{port}"
        words = [re.sub(r"^(--port=|--bind=[^:]*:|[\d.]+:)\d+$", r"\1{port}", word) for word in words]
    if not any("{port}" in word for word in words):
        msg = f"write {{port}} where the command takes its port; got {value!r}"
        raise ValueError(msg)
    return json.dumps(words, ensure_ascii=False)


def _path(value: str, folder: Path) -> str:
    if not value.startswith("/"):
        msg = f"must begin with /, like /ready; got {value!r}"
        raise ValueError(msg)
    return value


def _endpoint(value: str, folder: Path) -> str:
    if not re.fullmatch(r"[A-Z]+ /\S*", value):
        msg = f"must be METHOD PATH, like POST /chat; got {value!r}"
        raise ValueError(msg)
    return value


def _bodies(value: str, folder: Path) -> str:
    if value.endswith(".jsonl"):
        if not (folder / value).is_file():
            msg = f"{folder / value} does not exist"
            raise ValueError(msg)
        return os.path.relpath(folder / value, folder)
    try:
        return json.dumps(json.loads(value), ensure_ascii=False)
    except json.JSONDecodeError as error:
        msg = f'must be JSON, like {{"question": "..."}}, or a .jsonl file; got {value!r} ({error})'
        raise ValueError(msg) from None


def _provider(value: str, folder: Path) -> str:
    if value != "simulate" and not value.startswith(("http://", "https://")):
        msg = f"must be simulate or a URL like https://api.openai.com; got {value!r}"
        raise ValueError(msg)
    return value.rstrip("/").removesuffix("/v1")


def _count(value: str, folder: Path) -> str:
    if not value.isdigit() or int(value) < 1:
        msg = f"must be a whole number of at least 1; got {value!r}"
        raise ValueError(msg)
    return value


def _seconds(value: str, folder: Path) -> str:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 86_400:
        msg = f"must be seconds above 0, like 2.5; got {value!r}"
        raise ValueError(msg)
    return f"{seconds!r}"


def _text(answers: dict[str, str], bodies: str) -> str:
    method, path = answers["endpoint"].split(" ")
    provider = answers["provider"]
    return _TEMPLATE.format(
        name=json.dumps(path.strip("/").replace("/", "-") or "app"),
        command=answers["command"],
        ready=json.dumps(answers["ready"]),
        provider="simulate = true" if provider == "simulate" else f"base_url = {json.dumps(provider)}",
        users=answers["users"],
        requests=answers["requests"],
        method=json.dumps(method),
        path=json.dumps(path),
        bodies=json.dumps(bodies, ensure_ascii=False),
        p95=answers["p95"],
    )


_TEMPLATE = """\
# What `paceline tune` measures, and against what. Every field: docs/target-file.md
schema = 1
name = {name}

[service]
command = {command}
ready_url = {ready}
ready_timeout_s = 60

[provider]
{provider}
env = "OPENAI_BASE_URL" # the variable that points your SDK at Paceline's gateway

[[scenarios]]
name = "concurrent"
model = "closed" # so many users, each asking again when answered
users = {users}
requests = {requests}
method = {method}
path = {path}
bodies = {bodies} # one JSON body a line: the more of your real questions, the truer the figures

[[objectives]]
name = "P95"
metric = "p95_s"
op = "<"
target = {p95}
level = "must"

[[objectives]]
name = "success"
metric = "success_ratio"
op = ">"
target = 0.99
level = "must"

# Answers that must not get worse: lines like {{"body": {{...}}, "expect": ["words the answer must hold"]}}
# [quality]
# golden = "golden.jsonl"

# Without phases, `paceline tune` measures, finds and proposes a roadmap. With them, it projects each, applies it
# and measures it. A phase sets variables your application reads, or what the gateway does, or both:
# [[phases]]
# name = "parallel"
# [phases.env]
# PARALLEL = "1"
# [[phases.changes]]
# kind = "parallelise"
# steps = ["first_function", "second_function"]
"""
