"""The golden set: questions whose answers must say certain things, asked once after each phase's load."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec

from paceline.errors import ConfigError, InputError, UpstreamError
from paceline.model.tuning import GoldenMiss, Quality
from paceline.wire.client import HttpClient, Timeouts
from paceline.wire.sse import SseParser


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the golden file."""

    body: msgspec.Raw
    expect: list[str]  # all of them must stand in the answer; case and white space do not matter

    def __post_init__(self) -> None:
        if not any(self.expect):
            msg = "expect names nothing the answer must say"
            raise ValueError(msg)


def read_golden(path: Path) -> list[Question]:
    """The questions of a golden file. Raises ConfigError (missing) or InputError (a bad line, or none)."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        msg = f"cannot read the golden set {path}: {error.strerror}"
        raise ConfigError(msg) from error
    questions = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            questions.append(msgspec.json.decode(line, type=Question))
        except msgspec.DecodeError as error:
            msg = f'{path}, line {number}: {error}; expected {{"body": ..., "expect": ["what the answer must say"]}}'
            raise InputError(msg, path=path, line=number) from error
    if not questions:
        msg = f'{path} is empty; expected lines like {{"body": ..., "expect": ["what the answer must say"]}}'
        raise InputError(msg, path=path)
    return questions


async def ask_golden(
    questions: list[Question],
    base_url: str,
    *,
    method: str = "POST",
    path: str = "/",
    at_once: int = 4,
    timeout_s: float = 120.0,
) -> Quality:
    """Ask every question once, `at_once` at a time, and say which answers lack what.

    `timeout_s` is wall time for a whole answer. An answer that does not come counts as a miss, with the reason.
    """
    slots = asyncio.Semaphore(at_once)
    client = HttpClient(base_url, timeouts=Timeouts(first_byte_s=timeout_s, silence_s=timeout_s))

    async def ask(index: int, question: Question) -> GoldenMiss | None:
        async with slots:
            try:
                async with asyncio.timeout(timeout_s):
                    return await _ask(client, method, path, index, question)
            except (UpstreamError, TimeoutError) as error:
                problem = f"no answer in {timeout_s:g} s" if isinstance(error, TimeoutError) else str(error)
                return GoldenMiss(index=index, missing=question.expect, problem=problem)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(i, q)) for i, q in enumerate(questions)]
    finally:
        await client.close()
    misses = [miss for task in tasks if (miss := task.result())]
    return Quality(asked=len(questions), passed=len(questions) - len(misses), misses=misses)


async def _ask(client: HttpClient, method: str, path: str, index: int, question: Question) -> GoldenMiss | None:
    reply = await client.request(method, path, [(b"content-type", b"application/json")], bytes(question.body))
    body = await reply.read()
    if reply.status >= 400:
        return GoldenMiss(index=index, missing=question.expect, problem=f"HTTP {reply.status}")
    lacking = missing(answer_text(body), question.expect)
    return GoldenMiss(index=index, missing=lacking) if lacking else None


def missing(answer: str, expect: list[str]) -> list[str]:
    """Those of `expect` that do not stand in the answer; case and white space do not matter."""
    said = _plain(answer)
    return [text for text in expect if _plain(text) not in said]


def answer_text(body: bytes) -> str:
    """The text of an answer: all string leaves of JSON, the same of server-sent events, else the body itself.

    Leaves of events are joined without a space when they stand at the same place, as the pieces of one text do.
    """
    events = SseParser().feed(body + b"\n\n") if body.lstrip().startswith((b"data:", b"event:", b"id:", b":")) else None
    pieces: dict[str, list[str]] = defaultdict(list)
    for data in [body] if events is None else events:
        try:
            value = msgspec.json.decode(data)
        except msgspec.DecodeError:
            value = data.decode(errors="replace")
        for place, text in _leaves(value):
            pieces[place].append(text)
    glue = " " if events is None else ""
    return " ".join(glue.join(texts) for texts in pieces.values())


def _leaves(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    match value:
        case str():
            yield place, value
        case list():
            for item in value:
                yield from _leaves(item, place + "[]")
        case dict():
            for name, item in value.items():
                yield from _leaves(item, f"{place}.{name}")


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
