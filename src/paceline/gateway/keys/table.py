"""What the keys have used, in one table that all processes of a gateway map; and the file that keeps the money of it.

Money is exact: every process has its own cells and only it writes them, so there are no locks, and a process that is
killed leaves its cells to the one that takes its place. Rates share one cell: two processes that write it within the
same microsecond lose one of the two, which no limit of requests a minute notices.
"""

import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from paceline.errors import ConfigError
from paceline.gateway.keys.file import write_whole

KEYS = 16_384  # rows: keys that one running gateway can have seen, the revoked ones too
REQUESTS, TOKENS = 0, 1  # cells of a row: when the bucket will be empty, seconds of the monotonic clock
_MONEY = 2  # where the first process's cells begin
_DAY, _DAY_USD, _MONTH, _MONTH_USD = range(4)
_CELL = 4  # doubles
_DAY_S = 86_400


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """Money of one UTC day and one UTC month, numbered as `periods` does."""

    day: int
    day_usd: float
    month: int
    month_usd: float


class Table:
    """A row for each key: two rates, and for each process the money of the day and of the month.

    Processes are numbered from 0; one more column holds what was spent before the gateway started. `file`: a
    descriptor to map, which stays open; None: a table of this process alone.
    """

    def __init__(self, processes: int, file: int | None = None) -> None:
        self.processes = processes
        self._row = _MONEY + (processes + 1) * _CELL
        size = KEYS * self._row * 8
        if file is None:
            with tempfile.TemporaryFile() as own:
                self._map = _mapped(own.fileno(), size)
        else:
            self._map = _mapped(file, size)
        self.cells = memoryview(self._map).cast("d")

    def index(self, row: int, rate: int) -> int:
        """Where among the cells a rate (REQUESTS or TOKENS) of a key is."""
        return row * self._row + rate

    def spend(self, row: int, process: int, usd: float, day: int, month: int) -> None:
        """Add to the money of that day and month; a cell of an earlier one starts again."""
        start, cells = row * self._row + _MONEY + process * _CELL, self.cells
        for period, money, now in ((_DAY, _DAY_USD, day), (_MONTH, _MONTH_USD, month)):
            # The money first: who reads between the two sees the old period, which counts for nothing.
            cells[start + money] = usd + (cells[start + money] if cells[start + period] == now else 0.0)
            cells[start + period] = now

    def spent_usd(self, row: int, day: int, month: int) -> tuple[float, float]:
        """Money of that day and of that month, over all processes and the time before."""
        start, cells, of_day, of_month = row * self._row, self.cells, 0.0, 0.0
        for cell in range(start + _MONEY, start + self._row, _CELL):
            of_day += cells[cell + _DAY_USD] if cells[cell + _DAY] == day else 0.0
            of_month += cells[cell + _MONTH_USD] if cells[cell + _MONTH] == month else 0.0
        return of_day, of_month

    def restore(self, row: int, spent: Spent) -> None:
        """Take over what was spent before."""
        start = row * self._row + _MONEY + self.processes * _CELL
        for field, value in enumerate((spent.day, spent.day_usd, spent.month, spent.month_usd)):
            self.cells[start + field] = value


def periods(unix_s: float) -> tuple[int, int]:
    """Numbers of the UTC day and month."""
    moment = time.gmtime(unix_s)
    return int(unix_s // _DAY_S), moment.tm_year * 12 + moment.tm_mon - 1


def until_next_day_s(unix_s: float) -> float:
    """Seconds to the next UTC day."""
    return _DAY_S - unix_s % _DAY_S


def until_next_month_s(unix_s: float) -> float:
    """Seconds to the next UTC month."""
    wait_s, (_, month) = until_next_day_s(unix_s), periods(unix_s)
    while periods(unix_s + wait_s)[1] == month:
        wait_s += _DAY_S
    return wait_s


class _SpentFile(msgspec.Struct, kw_only=True):
    schema: int = 1
    keys: dict[str, Spent] = {}


class Ledger:
    """Which row each key has, and the file that keeps what they spent: `keep_in` first, `save` now and then.

    A machine that fails loses what was spent since the last save; a gateway that is stopped loses nothing.
    """

    def __init__(self, table: Table, *, unix_s: Callable[[], float] = time.time) -> None:
        self._table, self._unix_s = table, unix_s
        self._path: Path | None = None
        self._rows: dict[str, int] = {}
        self._absent: dict[str, Spent] = {}  # of keys that have no row (yet)
        self._saved: bytes = b""

    def keep_in(self, path: Path | None) -> None:
        """Take over what a file says was spent before, and write there from now on; None: nothing is kept.

        ConfigError: the file is damaged or cannot be written.
        """
        if path == self._path:
            return
        self._absent = _read(path) if path is not None else {}
        self._path, self._saved = path, b""
        for key_id in self._rows.keys() & self._absent.keys():
            self._table.restore(self._rows[key_id], self._absent.pop(key_id))
        self.save()

    def rows(self, ids: Iterable[str]) -> dict[str, int]:
        """Rows of these keys; a new one starts with what it had spent. ConfigError: no row is left."""
        rows = {}
        for key_id in ids:
            if key_id not in self._rows:
                if len(self._rows) >= KEYS:
                    msg = f"more than {KEYS} keys since the gateway started: restart it"
                    raise ConfigError(msg)
                self._rows[key_id] = len(self._rows)
                if key_id in self._absent:
                    self._table.restore(self._rows[key_id], self._absent.pop(key_id))
            rows[key_id] = self._rows[key_id]
        return rows

    def spent_usd(self) -> dict[str, tuple[float, float]]:
        """Of every key with a row: money of this UTC day and month."""
        now = periods(self._unix_s())
        return {key_id: self._table.spent_usd(row, *now) for key_id, row in self._rows.items()}

    def save(self) -> None:
        """Write the file if anything changed. ConfigError: it cannot be written."""
        day, month = periods(self._unix_s())
        keys = {key_id: spent for key_id, spent in self._absent.items() if spent.month >= month}
        for key_id, (day_usd, month_usd) in self.spent_usd().items():
            if month_usd:
                keys[key_id] = Spent(day=day, day_usd=day_usd, month=month, month_usd=month_usd)
        data = msgspec.json.format(msgspec.json.encode(_SpentFile(keys=keys)))
        if self._path is not None and data != self._saved:
            write_whole(self._path, data.decode(), "what the keys have spent,")
            self._saved = data


def _read(path: Path) -> dict[str, Spent]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_SpentFile).keys
    except FileNotFoundError:
        return {}
    except OSError as error:
        msg = f"cannot read what the keys have spent, {path}: {error.strerror}"
        raise ConfigError(msg) from error
    except msgspec.DecodeError as error:
        msg = f"what the keys have spent, {path}, is damaged: {error}; move it away to start at 0"
        raise ConfigError(msg) from error


def _mapped(file: int, size: int) -> mmap.mmap:
    if os.fstat(file).st_size < size:
        os.ftruncate(file, size)  # sparse: a page exists once a key uses it
    return mmap.mmap(file, size)
