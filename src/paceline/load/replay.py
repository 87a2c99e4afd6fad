"""Replay: recorded traffic sent again, with its own times, prompt lengths and shared prefixes."""

import bisect
import csv
import functools
import itertools
import random
from array import array
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from paceline.errors import ConfigError, InputError
from paceline.load.parts import AUTO, AZURE, MOONCAKE, RUN, Trace
from paceline.load.scenario import Body, Endpoint, Scenario, digest, questions
from paceline.store.folder import open_run
from paceline.wire.tokens import BYTES_PER_TOKEN

BLOCK_TOKENS = 512  # of a Mooncake hash id
_POOL_BYTES = 1 << 16


class Recorded(NamedTuple):
    """One request as it was recorded."""

    at_s: float  # since the first one
    input_tokens: int = 0
    output_tokens: int = 0
    blocks: tuple[int, ...] = ()  # the prompt's prefix blocks: the same number is the same text
    endpoint: str = ""  # of a Paceline run: "POST /chat"
    key: str = ""


def due_times(scenario: Scenario) -> Sequence[float]:
    """When the requests of a replay are due, in seconds from its start: window taken, silences cut, time scaled.

    `requests` and `duration_s` of the scenario may end it early.

    Raises:
        ConfigError, InputError: the trace is missing, empty in this window, or malformed.
    """
    return array("d", (at_s for at_s, _ in replayed(scenario)))


def replayed(scenario: Scenario) -> list[tuple[float, Recorded]]:
    """The requests of a replay with the times they are due; errors as in `due_times`."""
    trace = scenario.trace
    assert trace is not None  # noqa: S101 - the caller's scenario is a replay
    rows = read_trace(trace)
    first = bisect.bisect_left(rows, trace.start_s, key=_at_s)
    last = len(rows)
    if trace.length_s is not None:
        last = bisect.bisect_left(rows, trace.start_s + trace.length_s, key=_at_s)
    window = rows[first:last]
    if not window:
        msg = (
            f"no request of {trace.path} lies between {trace.start_s:g} s and "
            f"{trace.start_s + (trace.length_s or 0):g} s; it lasts {rows[-1].at_s:.0f} s"
        )
        raise ConfigError(msg)
    due: list[tuple[float, Recorded]] = []
    at_s, before_s = 0.0, trace.start_s
    end_s = float("inf") if scenario.duration_s is None else scenario.duration_s
    for row in window[: scenario.requests]:
        gap_s = row.at_s - before_s
        at_s += (gap_s if trace.max_gap_s is None else min(gap_s, trace.max_gap_s)) / trace.time_scale
        before_s = row.at_s
        if at_s >= end_s:
            break
        due.append((at_s, row))
    return due


def bodies(scenario: Scenario) -> Iterator[Body]:
    """What a replay sends, made one by one: a chat call of the recorded lengths, or the body of a run's request.

    Errors as in `due_times`; ConfigError where a run's request is not in the scenario's body files.
    """
    trace = scenario.trace
    assert trace is not None  # noqa: S101 - the caller's scenario is a replay
    rows = [row for _, row in replayed(scenario)]
    if _format_of(trace) == RUN:
        return iter(_run_bodies(scenario, rows))
    _pool()  # 0.1 s that must not fall into the run
    endpoint = scenario.endpoints[0]
    return (_chat_body(scenario, endpoint, trace, number, row) for number, row in enumerate(rows))


def read_trace(trace: Trace) -> list[Recorded]:
    """All requests of a trace, in the order of their times, the first at 0; errors as in `due_times`."""
    kind, path = _format_of(trace), Path(trace.path)
    if kind == RUN:
        rows = _run_rows(trace)
    else:
        try:
            with path.open(encoding="utf-8-sig", newline="") as lines:
                rows = list(_azure_rows(path, lines) if kind == AZURE else _mooncake_rows(path, lines))
        except OSError as error:
            msg = f"cannot read the trace {path}: {error.strerror}"
            raise ConfigError(msg) from error
        except UnicodeDecodeError as error:
            msg = f"{path} is not UTF-8: {error.reason} at byte {error.start}"
            raise InputError(msg, path=path) from error
    if not rows:
        msg = f"{path} holds no requests"
        raise InputError(msg, path=path)
    rows.sort(key=_at_s)
    zero_s = rows[0].at_s
    return [row._replace(at_s=row.at_s - zero_s) for row in rows]


def prompt(number: int, row: Recorded) -> str:
    """Text of exactly the row's input tokens by `wire.tokens`' estimate; the same for the same row.

    A block's text depends on its number only, so prompts share prefixes as the recorded ones did. What no block
    covers is the row's own.
    """
    size = row.input_tokens * BYTES_PER_TOKEN
    pieces = [block_text(f"b{block}") for block in row.blocks]
    missing = size - len(pieces) * BLOCK_TOKENS * BYTES_PER_TOKEN
    if missing > 0:
        count = -(-missing // (BLOCK_TOKENS * BYTES_PER_TOKEN))
        pieces += [block_text(f"{number}.{part}") for part in range(count)]
    return "".join(pieces)[:size]


@functools.lru_cache(maxsize=4096)
def block_text(name: str) -> str:
    """2,048 characters of words that begin with the block's name: different names, different texts."""
    pool, size = _pool(), BLOCK_TOKENS * BYTES_PER_TOKEN
    start = random.Random(name).randrange(_POOL_BYTES)
    return (f"[{name}] " + pool[start : start + size]).ljust(size)[:size]


@functools.cache
def _pool() -> str:
    rng = random.Random("paceline")
    syllables = ["ka", "to", "mi", "ren", "sul", "va", "pe", "lor", "in", "das", "qui", "o", "ter", "na"]
    words: list[str] = []
    size = 0
    while size < _POOL_BYTES + BLOCK_TOKENS * BYTES_PER_TOKEN:
        words.append("".join(rng.choices(syllables, k=rng.randint(1, 4))))
        size += len(words[-1]) + 1
    return " ".join(words)


def _chat_body(scenario: Scenario, endpoint: Endpoint, trace: Trace, number: int, row: Recorded) -> Body:
    call: dict[str, Any] = {
        "model": trace.call_model,
        "messages": [{"role": "user", "content": prompt(number, row)}],
        "max_tokens": max(1, row.output_tokens),
    }
    if trace.stream:
        call["stream"] = True
    data = msgspec.json.encode(call)
    name = f"{endpoint.method} {endpoint.path}"
    # What the prompt is made from identifies it; reading 100 kB of text for a key takes 5 ms.
    covered = len(row.blocks) * BLOCK_TOKENS >= row.input_tokens
    made_from = f"{row.blocks} {row.input_tokens} {'' if covered else number}"
    text_key = digest(f"{name}\n{made_from}".encode())
    key = digest(f"{name}\n{made_from} {trace.call_model} {call['max_tokens']} {trace.stream}".encode())
    headers = {"Content-Type": "application/json", **scenario.headers}
    return Body(
        endpoint=name,
        method=endpoint.method,
        path=endpoint.path,
        headers=tuple(headers.items()),
        data=data,
        key=key,
        text_key=text_key,
        once=True,
    )


def _run_bodies(scenario: Scenario, rows: Sequence[Recorded]) -> list[Body]:
    """The bodies a run's requests had, found by endpoint and key; those without a body need no file."""
    known: dict[tuple[str, str], Body] = {}
    plain = {row.endpoint for row in rows}
    bare = [Endpoint(method=m, path=p) for m, _, p in (name.partition(" ") for name in sorted(plain)) if p]
    for endpoint in itertools.chain(bare, scenario.endpoints):
        for question in questions(endpoint, scenario):
            for body in question.variants:
                known[body.endpoint, body.key] = body
    found = [known.get((row.endpoint, row.key)) for row in rows]
    missing = next((row for row, body in zip(rows, found, strict=True) if body is None), None)
    if missing is not None:
        count = sum(body is None for body in found)
        msg = (
            f"{count} of {len(rows)} requests of the run have bodies that are not given, the first one of "
            f"{missing.endpoint}; name the method, path and body files (and key_fields) it was driven with"
        )
        raise ConfigError(msg)
    return [body for body in found if body is not None]


def _format_of(trace: Trace) -> str:
    if trace.format != AUTO:
        return trace.format
    path = Path(trace.path)
    if path.is_dir():
        return RUN
    return AZURE if path.suffix.lower() == ".csv" else MOONCAKE


def _run_rows(trace: Trace) -> list[Recorded]:
    run = open_run(trace.path, salvage=True)
    requests, speed = run.requests(trace.scenario), run.info.speed
    names = {request.scenario for request in requests}
    if len(names) > 1:
        msg = f"{trace.path} has several scenarios, name one of them: {', '.join(sorted(names))}"
        raise ConfigError(msg)
    return [Recorded(at_s=r.intended_s * speed, endpoint=r.endpoint, key=r.key) for r in requests]


def _azure_rows(path: Path, lines: Iterator[str]) -> Iterator[Recorded]:
    reader = csv.DictReader(lines)
    for row in reader:
        try:
            at_s = datetime.fromisoformat(row["TIMESTAMP"]).timestamp()
            yield Recorded(at_s, _count(row["ContextTokens"]), _count(row["GeneratedTokens"]))
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{path}, line {reader.line_num}: expected TIMESTAMP, ContextTokens, GeneratedTokens; got {row}"
            raise InputError(msg, path=path, line=reader.line_num) from error


class _MooncakeRow(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = []

    def __post_init__(self) -> None:
        _count(self.input_length)
        _count(self.output_length)


def _mooncake_rows(path: Path, lines: Iterator[str]) -> Iterator[Recorded]:
    decoder = msgspec.json.Decoder(_MooncakeRow)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
        except msgspec.DecodeError as error:
            msg = f"{path}, line {number}: {error}; expected timestamp, input_length, output_length, hash_ids"
            raise InputError(msg, path=path, line=number) from error
        yield Recorded(row.timestamp / 1000, row.input_length, row.output_length, tuple(row.hash_ids))


def _count(value: str | int) -> int:
    count = int(value)
    if count < 0:
        msg = f"a number of tokens is not negative; got {count}"
        raise ValueError(msg)
    return count


def _at_s(row: Recorded) -> float:
    return row.at_s
