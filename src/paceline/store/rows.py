"""Rows: the live end of the requests table in binary, for a load driver that cannot afford a JSON line a request.

Two files a writer, both append-only:

requests-{writer}.rows    ROW, 56 bytes each: times on time.monotonic(), sizes, and the number of a Naming
requests-{writer}.names   JSON lines: a RowsHeader, then the Namings in the order of their numbers

A Naming is written before the first row that uses it, and a row is read only when all of it is there, so `kill -9`
costs what was not flushed and nothing else. Streamed answers, which have
a list of gaps, go to an ordinary spool beside.
"""

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from paceline.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROWS_SCHEMA = 1
# intended_s, started_s, first_byte_s (NaN: none), ended_s, response_bytes, index, naming, user (-1: none), status (0:
# none), error and cache (places in the tuples below)
ROW = struct.Struct("<ddddQIIiHBB")
ERRORS = (None, "timeout", "connection", "status", "check")
CACHES = (None, "hit", "miss", "join")
TRACE_STEP = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, odd: no number comes twice, and they lie evenly
_MASK = (1 << 64) - 1
_FIELDS = [
    ("intended_s", "<f8"),
    ("started_s", "<f8"),
    ("first_byte_s", "<f8"),
    ("ended_s", "<f8"),
    ("response_bytes", "<u8"),
    ("index", "<u4"),
    ("naming", "<u4"),
    ("user", "<i4"),
    ("status", "<u2"),
    ("error", "u1"),
    ("cache", "u1"),
]


class RowsHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What all rows of a file have in common."""

    schema: int = ROWS_SCHEMA
    scenario: str
    zero_s: float  # start of the run on time.monotonic()
    trace_high: str  # the first 16 hex digits of every trace id
    trace_base: str  # hex; the last 16 digits are base + index * TRACE_STEP, modulo 2**64


class Naming(msgspec.Struct, frozen=True, kw_only=True):
    """What all requests with the same body have in common."""

    endpoint: str
    key: str = ""
    text_key: str = ""
    request_bytes: int = 0


def trace_low(base: int, index: int) -> int:
    """The low half of the trace id of request `index`: never twice, and spread evenly for samplers that compare it."""
    return (base + index * TRACE_STEP) & _MASK


class RowSpool:
    """Appends rows for one writer. Whoever creates it closes it.

    `append(ROW.pack(...))` keeps a row for the next flush and costs 0.4 us; it is a list's own method.
    """

    def __init__(self, run_dir: Path, writer: str, header: RowsHeader) -> None:
        self.path = run_dir / f"requests-{writer}.rows"
        self._rows: list[bytes] = []
        self.append = self._rows.append
        self._names: list[bytes] = [msgspec.json.encode(header)]
        self._count = 0
        self._rest = b""  # what a full disk did not take
        self._names_rest = b""
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._names_fd = os.open(self.path.with_suffix(".names"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def name(self, naming: Naming) -> int:
        """The number by which rows refer to this naming. The caller remembers it."""
        self._names.append(msgspec.json.encode(naming))
        self._count += 1
        return self._count - 1

    def flush(self) -> bytes:
        """Write what was appended and return it.

        Raises:
            OSError: the disk refused. Everything is kept and tried again at the next flush.
        """
        fresh = b"".join(self._rows)
        self._rows.clear()
        self._rest += fresh
        if self._names:
            self._names_rest += b"\n".join([*self._names, b""])
            self._names.clear()
        while self._names_rest and self._fd >= 0:
            self._names_rest = self._names_rest[os.write(self._names_fd, self._names_rest) :]
        while self._rest and self._fd >= 0:
            self._rest = self._rest[os.write(self._fd, self._rest) :]
        return fresh

    def close(self) -> None:
        """Flush and close; closing twice is fine. Raises OSError like `flush`, after closing."""
        try:
            self.flush()
        finally:
            if self._fd >= 0:
                os.close(self._fd)
                os.close(self._names_fd)
                self._fd = self._names_fd = -1


def decode_rows(data: bytes) -> "NDArray[np.void]":
    """Whole rows as a structured array; a torn last one is left out."""
    import numpy as np

    return np.frombuffer(data, dtype=np.dtype(_FIELDS), count=len(data) // ROW.size)


class Columns(msgspec.Struct, frozen=True):
    """A row file as columns for SQL: `rows` and `namings`, to be joined on `naming`."""

    scenario: str
    trace_high: str
    rows: "dict[str, NDArray[np.generic]]"
    namings: "dict[str, NDArray[np.generic]]"


def read_rows(path: Path) -> Columns:
    """Read a row file and its names. Rows that refer to a naming which is not there are left out.

    Raises:
        InputError: the names are missing or damaged, or of a newer schema.
    """
    import numpy as np

    names = path.with_suffix(".names")
    try:
        lines = names.read_bytes().splitlines(keepends=True)
        header = msgspec.json.decode(lines[0], type=RowsHeader)
        namings = [msgspec.json.decode(line, type=Naming) for line in lines[1:] if line.endswith(b"\n")]
    except (OSError, IndexError, msgspec.DecodeError) as error:
        msg = f"{names} is missing or damaged ({error}): the rows beside it cannot be read without"
        raise InputError(msg, path=names) from error
    if header.schema > ROWS_SCHEMA:
        msg = f"{names} was written by a newer Paceline (rows schema {header.schema}): upgrade"
        raise InputError(msg, path=names)
    rows = decode_rows(path.read_bytes())
    rows = rows[rows["naming"] < len(namings)]
    columns: dict[str, NDArray[np.generic]] = {name: np.ascontiguousarray(rows[name]) for name, _ in _FIELDS}
    for name in ("intended_s", "started_s", "first_byte_s", "ended_s"):
        columns[name] = rows[name] - header.zero_s
    step = rows["index"].astype(np.uint64) * np.uint64(TRACE_STEP)  # wraps, as trace_low does
    columns["trace_low"] = step + np.uint64(int(header.trace_base, 16))
    texts: dict[str, NDArray[np.generic]] = {}
    for name in ("endpoint", "key", "text_key"):
        texts[name] = np.array([getattr(naming, name) for naming in namings], dtype=object)
    sizes = np.array([n.request_bytes for n in namings], dtype=np.int64)
    numbers = np.arange(len(namings), dtype=np.uint32)
    return Columns(header.scenario, header.trace_high, columns, {"naming": numbers, **texts, "request_bytes": sizes})
