"""Warming: answers written to a file by one cache and put into another before anybody asks.

One JSON object a line, in either of two forms:

    {"key": "greeting", "value": "hello", "ttl_s": 3600, "tags": ["texts"], "tenant": "acme"}
    {"storage_key": "<64 hex digits>", "kind": 1, "data": "<base64>", "created_s": 1790000000.0, "tag_ids": []}

The first is for people and scripts (`ttl_s`, `tags` and `tenant` may be left out; a list as key is a tuple), the
second is what `export` writes: it keeps the age, so an answer that has become too old meanwhile is left out.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from paceline.errors import InputError

from .cache import Cache
from .keys import KEY_BYTES, storage_key, tag_id
from .levels import Question
from .values import decode, encode, kind_of

FILE = "cache.jsonl"  # in a run folder: the answers it holds


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    key: Any = None
    value: Any = None
    ttl_s: float | None = None
    tags: list[str] = []
    tenant: str | None = None
    storage_key: str | None = None
    kind: int = 0
    data: bytes = b""
    created_s: float | None = None
    tag_ids: list[bytes] = []


class Warmed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a file."""

    stored: int
    too_old: int
    unkeyed: int = 0  # calls of a run that the policy does not keep


async def warm(cache: Cache, path: Path) -> Warmed:
    """Put the answers of a file, or of a run folder, into every level of a cache.

    Raises:
        InputError: there is no such file, the run holds no answers, or a line is none; path and line.
    """
    if path.is_dir():
        folder, path = path, path / FILE
        if not path.exists():
            msg = (
                f"{folder} holds no recorded answers. Prompts and answers are recorded only when asked for: "
                f"paceline record --record-answers, or paceline serve --run DIR --record-answers. What "
                f"paceline cache export writes can be put there, too, as {FILE}"
            )
            raise InputError(msg, path=folder)
    levels = cache._levels  # noqa: SLF001 - of the same package
    await levels.connect()
    stored = too_old = 0
    for line in _lines(path):
        if line.storage_key is None:
            key = tuple(line.key) if isinstance(line.key, list) else line.key
            tags = tuple(sorted({tag_id(tag) for tag in line.tags}))
            question, value = Question(storage_key(line.tenant, key)), line.value
        else:
            tags = tuple(line.tag_ids)
            question, value = Question(bytes.fromhex(line.storage_key)), decode(line.kind, line.data)
        lives_s = line.ttl_s or max((getattr(cache.policy, name).ttl_s for name in cache.policy.levels), default=0.0)
        if line.created_s is not None and line.created_s + lives_s <= levels.now_s():
            too_old += 1
            continue
        _, write = levels.store(
            question, value, ttl_s=line.ttl_s or None, tags=tags, compute_s=0.0, created_s=line.created_s
        )
        if write is not None:
            await write
        stored += 1
    await cache.flush()
    return Warmed(stored=stored, too_old=too_old)


def export(cache: Cache, path: Path) -> int:
    """Write every fresh answer of the memory and host levels to a file that `warm` reads; how many.

    The file holds the answers in clear, whatever the policy encrypts; it is readable by its owner only.
    """
    levels = cache._levels  # noqa: SLF001 - of the same package
    lines: dict[bytes, _Line] = {}
    now_s = levels.now_s()
    if levels.host is not None:
        for key, opened in levels.host.items():
            lines[key] = _line(key, opened.value, opened.created_s, opened.ttl_s, opened.tags)
    if levels.memory is not None:
        for entry in levels.memory.entries.values():
            if entry.expires_s > now_s and entry.key not in lines:
                ttl_s = entry.expires_s - entry.created_s
                lines[entry.key] = _line(entry.key, entry.value, entry.created_s, ttl_s, entry.tags)
    path.touch(mode=0o600)
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        for line in lines.values():
            file.write(encoder.encode({name: value for name, value in msgspec.structs.asdict(line).items() if value}))
            file.write(b"\n")
    return len(lines)


def _line(key: bytes, value: Any, created_s: float, ttl_s: float, tags: tuple[bytes, ...]) -> _Line:
    return _Line(
        storage_key=key.hex(),
        kind=kind_of(value),
        data=encode(value),
        created_s=created_s,
        ttl_s=ttl_s,
        tag_ids=list(tags),
    )


def _lines(path: Path) -> Iterator[_Line]:
    decoder = msgspec.json.Decoder(_Line)
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    line = decoder.decode(text)
                    _check(line)
                except ValueError as error:
                    msg = f"{path} line {number} is no answer to warm with: {error}"
                    raise InputError(msg, path=path, line=number) from error
                yield line
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise InputError(msg, path=path) from error


def _check(line: _Line) -> None:
    if line.storage_key is None:
        if line.key is None:
            msg = "neither key nor storage_key"
            raise ValueError(msg)
    elif len(bytes.fromhex(line.storage_key)) != KEY_BYTES:
        msg = f"storage_key needs {2 * KEY_BYTES} hexadecimal digits"
        raise ValueError(msg)
    if line.ttl_s is not None and not (0 <= line.ttl_s < math.inf):
        msg = f"ttl_s must not be negative; got {line.ttl_s}"
        raise ValueError(msg)
