"""Calls and answers kept in a run folder, so that a cache can be warmed from it. Written only where asked for.

`answers-WRITER.jsonl` begins with a line that names its schema; each further line is one call that was answered whole.
Prompts and answers stand in it in clear, so only its owner can read it; credentials do not.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from paceline.accelerate.cache.reply import StoredReply
from paceline.accelerate.headers import to_store
from paceline.accelerate.record import CallRecord
from paceline.errors import InputError
from paceline.wire.dialects import without_credentials

SCHEMA = 1
MOST_BYTES = 1_000_000_000  # of one writer's file; later calls are left out
ANSWER_BYTES = 4_000_000  # of one answer; a larger one is left out
_OWN = frozenset({b"x-paceline-step", b"x-paceline-tags", b"x-paceline-ttl-s"})  # what keys, rules and times hang on


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line of a file."""

    paceline_answers: int = SCHEMA


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """One call and its answer."""

    target: str  # path and query, without credentials
    headers: list[tuple[str, str]]  # those that change the answer or say how it is kept
    body: bytes
    tenant: bytes  # digest
    caller: str | None = None  # its name
    created_s: float  # Unix seconds
    compute_s: float
    reply: StoredReply


def recorded(record: CallRecord, now_s: float) -> Recorded | None:
    """The finished call; None: it is not to be kept. Never an error, a refusal, a cut answer, or a fallback's."""
    tape, asked, info, taken = record.tape, record.asked, record.info, record.taken
    if tape is None or asked is None or asked.info.stateful or not tape.pieces:
        return None
    if record.error is not None or record.status != 200 or not info.complete or info.refused:
        return None
    if taken is not None and taken.fallback is not None:
        return None
    body = b"".join(tape.pieces)
    if len(body) > ANSWER_BYTES:
        return None
    dialect, request = asked.dialect, tape.request
    kept = dialect.key_headers | _OWN
    return Recorded(
        target=without_credentials(request.target)[0],
        headers=[(name.decode(), value.decode("latin-1")) for name, value in request.headers if name in kept],
        body=request.body,
        tenant=asked.tenant,
        caller=record.caller.name if record.caller is not None else None,
        created_s=now_s,
        compute_s=(record.end_ns - record.start_ns) / 1e9,
        reply=StoredReply(
            headers=to_store(record.headers),
            pieces=split_events(body) if record.streamed else [body],
            stream=record.streamed,
            cost_usd=record.cost_usd,
            model=asked.info.model,
        ),
    )


def split_events(body: bytes) -> list[bytes]:
    """A stream's body cut after each event."""
    *events, rest = body.split(b"\n\n")
    return [event + b"\n\n" for event in events] + ([rest] if rest else [])


class AnswersWriter:
    """One process's file in a run folder. `add` writes to memory, `flush` to the disk."""

    def __init__(self, folder: Path, writer: str, *, most_bytes: int = MOST_BYTES) -> None:
        path = folder / f"answers-{writer}.jsonl"
        path.touch(mode=0o600)
        self.left_out = 0  # calls, for want of room
        self._file = path.open("ab", buffering=1 << 20)
        self._room_bytes = most_bytes - self._file.tell()
        self._encode = msgspec.json.Encoder().encode
        if self._file.tell() == 0:
            self._file.write(self._encode(Header()) + b"\n")

    def add(self, call: Recorded) -> None:
        """Keep a call, while there is room."""
        line = self._encode(call) + b"\n"
        if len(line) > self._room_bytes:
            self.left_out += 1
            return
        self._room_bytes -= len(line)
        self._file.write(line)

    def flush(self) -> None:
        """What was added is on its way to the disk."""
        self._file.flush()

    def close(self) -> None:
        """The file is complete."""
        self._file.close()


def answer_files(folder: Path) -> list[Path]:
    """The files of recorded answers in a run folder."""
    return sorted(folder.glob("answers-*.jsonl"))


def read_answers(path: Path) -> Iterator[Recorded]:
    """The calls of a file, one by one; a last line that a killed process left half written is left out.

    InputError: the file cannot be read, is of a later schema, or a line is none.
    """
    decode = msgspec.json.Decoder(Recorded).decode
    try:
        with path.open("rb") as file:
            _check_header(path, file.readline())
            for number, line in enumerate(file, 2):
                if not line.endswith(b"\n"):
                    return
                try:
                    call = decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    msg = f"{path} line {number} is no recorded call: {error}"
                    raise InputError(msg, path=path, line=number) from error
                yield call
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise InputError(msg, path=path) from error


def _check_header(path: Path, line: bytes) -> None:
    try:
        schema = msgspec.json.decode(line, type=Header).paceline_answers
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"{path} does not begin as a file of recorded answers does: {error}"
        raise InputError(msg, path=path, line=1) from error
    if schema > SCHEMA:
        msg = f"{path} has schema {schema}, this version of paceline reads up to {SCHEMA}: install a newer one"
        raise InputError(msg, path=path, line=1)
