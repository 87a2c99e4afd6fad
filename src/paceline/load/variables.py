"""Variables: values for `{{name}}`, drawn once a conversation or, without turns, once a request."""

import csv
import io
import random
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from paceline.errors import ConfigError, InputError
from paceline.load.parts import UNIFORM, Variable

Rows = Sequence[Mapping[str, Any]]


class Variables:
    """Draws values for all variables of a scenario; the same for the same seed.

    Of several processes, each takes every `of`-th value from its `part` on, so that no counter or row comes twice.

    Raises:
        ConfigError: a file is missing or has no such column. InputError: it cannot be read.
    """

    def __init__(self, variables: Mapping[str, Variable], seed: int, part: int = 0, of: int = 1) -> None:
        self._drawn = part
        self._step = of
        self._rng = random.Random(f"{seed}:variables:{part}")
        files = {v.file: read_rows(Path(v.file)) for v in variables.values() if v.file is not None}
        self._pools: dict[tuple[str, str], Rows] = {}  # by file (or variable) and pick: drawn together
        self._columns: dict[str, tuple[tuple[str, str], str]] = {}
        self._counters = {name: v.counter for name, v in variables.items() if v.counter is not None}
        self._uuids = [name for name, v in variables.items() if v.uuid]
        for name, variable in variables.items():
            if variable.file is not None:
                column = variable.column or name
                rows = files[variable.file]
                if missing := next((row for row in rows if column not in row), None):
                    known = ", ".join(missing) or "none"
                    msg = f"variable {name}: a row of {variable.file} has no column {column!r}; it has: {known}"
                    raise ConfigError(msg)
                self._add(name, (variable.file, variable.pick), column, rows)
            elif variable.values:
                self._add(name, (f"values of {name}", variable.pick), name, [{name: v} for v in variable.values])

    def _add(self, name: str, pool: tuple[str, str], column: str, rows: Rows) -> None:
        self._pools[pool] = rows
        self._columns[name] = (pool, column)

    def draw(self) -> dict[str, Any]:
        """A value for each variable."""
        number, self._drawn = self._drawn, self._drawn + self._step
        rows = {
            pool: self._rng.choice(found) if pool[1] == UNIFORM else found[number % len(found)]
            for pool, found in self._pools.items()
        }
        values: dict[str, Any] = {name: rows[pool][column] for name, (pool, column) in self._columns.items()}
        for name, first in self._counters.items():
            values[name] = first + number
        for name in self._uuids:
            values[name] = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        return values


def read_rows(path: Path) -> Rows:
    """The rows of a CSV file with a header line, or of a JSON-lines file of objects.

    Raises:
        ConfigError: it is not there. InputError: it has no rows, or a line is malformed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        msg = f"cannot read the file of values {path}: {error.strerror}"
        raise ConfigError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"{path} is not UTF-8: {error.reason} at byte {error.start}"
        raise InputError(msg, path=path) from error
    rows = list(_csv_rows(path, text) if path.suffix.lower() == ".csv" else _json_rows(path, text))
    if not rows:
        msg = f"{path} holds no rows"
        raise InputError(msg, path=path)
    return rows


def _csv_rows(path: Path, text: str) -> Iterator[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                msg = f"{path}, line {reader.line_num}: not as many fields as the header line has"
                raise InputError(msg, path=path, line=reader.line_num)
            yield row
    except csv.Error as error:
        line = reader.reader.line_num  # its own is that of the row before
        msg = f"{path}, line {line}: {error}"
        raise InputError(msg, path=path, line=line) from error


def _json_rows(path: Path, text: str) -> Iterator[Mapping[str, Any]]:
    lines = enumerate(text.split("\n"), start=1)  # not splitlines: JSON strings may hold U+2028
    for number, line in lines:
        if line.strip():
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError as error:
                msg = f"{path}, line {number}: {error}; expected one JSON object"
                raise InputError(msg, path=path, line=number) from error
