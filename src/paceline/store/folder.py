"""RunFolder: one run on disk. Capture writes it, every analysis reads it, nothing else joins them.

run.json          RunInfo
{table}-{writer}.jsonl     what a living process has written so far
{table}-{writer}.rows      the same in binary, with {table}-{writer}.names beside: see store/rows.py
{table}-{writer}.parquet   the same, sealed at the end; where both exist the sealed one counts
service.log       what the application printed
"""

import contextlib
import errno
import os
import platform
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from paceline import __version__
from paceline.clock import RunClock, current_offset_ns
from paceline.errors import ConfigError, InputError, MeasurementError
from paceline.model.request import Request, ResourceSample
from paceline.model.run import COMPLETE, SCHEMA, RunInfo
from paceline.model.span import RETRY_AFTER_S, TTFT_S, Span
from paceline.store import tables
from paceline.store.rows import RowsHeader, RowSpool
from paceline.store.spool import TABLES, Spool

if TYPE_CHECKING:
    import duckdb
    from numpy.typing import NDArray

S = TypeVar("S", bound=msgspec.Struct)
_PARQUET_MAGIC = b"PAR1"


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one clear sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            msg = f"no space left on the disk of {path}; what was written before is kept. Free some space and try again"
            raise MeasurementError(msg) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            msg = f"cannot write to {path}: {error.strerror}. Name a folder you may write to with --runs"
            raise ConfigError(msg) from error
        raise


class RunFolder:
    """A run on disk. Create with `create_run`, read with `open_run`."""

    def __init__(self, path: Path, info: RunInfo, damaged: tuple[Path, ...] = ()) -> None:
        self.path = path
        self.info = info
        self.damaged = damaged  # segments that are left out of every answer
        self.clock = RunClock(info.clock_offset_ns)

    def now_s(self) -> float:
        """Wall seconds since the start of the run, for records about to be written."""
        return (self.clock.now_ns() - self.info.start_ns) / 1e9

    def update(self, **changes: Any) -> None:
        """Change fields of run.json, replacing the file in one step; what another process changed stays."""
        header = self.path / "run.json"
        info = msgspec.json.decode(header.read_bytes(), type=RunInfo) if header.exists() else self.info
        self.info = msgspec.structs.replace(info, **changes)
        _write_whole(header, msgspec.json.format(msgspec.json.encode(self.info)) + b"\n")

    def spool(self, table: str, writer: str) -> Spool:
        """The live end of a table for one writer (a name no other process of the run uses)."""
        with disk_errors(self.path):
            return Spool(self.path, table, writer)

    def row_spool(self, writer: str, header: RowsHeader) -> RowSpool:
        """The live end of the requests table in binary, for one writer (a name no other spool of the run uses)."""
        with disk_errors(self.path):
            return RowSpool(self.path, writer, header)

    def finish(self, state: str = COMPLETE, reason: str | None = None) -> None:
        """Seal all spools into Parquet and mark the run. Safe to repeat; call when every writer has closed."""
        with disk_errors(self.path):
            for table in TABLES:
                for live in _live(self.path, table):
                    _seal(table, live)
            self.update(state=state, reason=reason, ended_s=self.now_s())

    def requests(self, scenario: str | None = None) -> list[Request]:
        """Requests in order of their intended start."""
        where = f" WHERE scenario = {tables.quoted(scenario)}" if scenario is not None else ""
        return self._records("requests", Request, where)

    def spans(self) -> list[Span]:
        """Spans in order of start. About 4 us each."""
        spans = self._records("spans", Span)
        if self.info.speed != 1.0:
            for span in spans:
                for name in (TTFT_S, RETRY_AFTER_S):
                    if name in span.attributes:
                        span.attributes[name] = cast("float", span.attributes[name]) * self.info.speed
        return spans

    def resources(self) -> list[ResourceSample]:
        """Resource samples in order of time."""
        return self._records("resources", ResourceSample)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Run SQL over the views `requests`, `spans` and `resources` (times at the provider's pace)."""
        with self._connection() as connection:
            return connection.sql(sql).fetchall()

    def columns(self, sql: str) -> "dict[str, NDArray[Any]]":
        """As `query`, a numpy array a column; 50 times faster than records. NULLs must be written as something else."""
        with self._connection() as connection:
            return connection.sql(sql).fetchnumpy()

    def _records(self, table: str, struct: type[S], where: str = "") -> list[S]:
        rows = self.query(f"SELECT to_json(t)::VARCHAR FROM {table} t{where}")
        data = b"[" + ",".join(row[0] for row in rows).encode() + b"]"
        return msgspec.json.decode(data, type=list[struct])  # type: ignore[valid-type]

    @contextlib.contextmanager
    def _connection(self) -> "Iterator[duckdb.DuckDBPyConnection]":
        import duckdb

        connection = tables.connect()
        try:
            for table in TABLES:
                sealed, live = self._segments(table)
                sources = [tables.parquet_source(table, sealed)] if sealed else []
                lines = [path for path in live if path.suffix == ".jsonl"]
                sources += [tables.lines_source(table, lines)] if lines else []
                sources += [tables.rows_source(connection, path) for path in live if path.suffix == ".rows"]
                select = tables.view(table, sources, speed=self.info.speed, start_ns=self.info.start_ns)
                connection.execute(f"CREATE VIEW {table} AS {select}")
            yield connection
        except duckdb.IOException as error:
            msg = f"{self.path}: cannot be read: {str(error).splitlines()[0]}"
            raise InputError(msg, path=self.path) from error
        finally:
            connection.close()

    def _segments(self, table: str) -> tuple[list[Path], list[Path]]:
        sealed = [p for p in sorted(self.path.glob(f"{table}-*.parquet")) if p not in self.damaged]
        done = {p.stem for p in sealed}
        live = [p for p in _live(self.path, table) if p.stem not in done and p.stat().st_size]
        return sealed, live


def create_run(
    root: Path,
    name: str,
    *,
    speed: float = 1.0,
    command: list[str] | None = None,
    folder: str | None = None,
) -> RunFolder:
    """Make a new run folder under `root` and return it.

    Args:
        root: Folder for runs; made if missing.
        name: What the run is called; letters, digits, `-`, `_` and `.`.
        speed: How many times faster than real the simulated provider runs.
        command: What was started, for the record.
        folder: Folder name; default is the name with the time of day.

    Raises:
        ConfigError: `root` cannot be written. MeasurementError: the disk is full.
    """
    offset_ns = current_offset_ns()
    start_ns = time.monotonic_ns() + offset_ns
    stamp = datetime.fromtimestamp(start_ns / 1e9, UTC).strftime("%Y%m%dT%H%M%S")
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        path = _new_folder(root, folder or f"{name}-{stamp}")
        info = RunInfo(
            id=path.name,
            name=name,
            paceline=__version__,
            start_ns=start_ns,
            clock_offset_ns=offset_ns,
            speed=speed,
            command=command or [],
            host={
                "cpus": os.cpu_count() or 0,
                "python": platform.python_version(),
                "system": f"{platform.system()} {platform.machine()}",
            },
        )
        run = RunFolder(path, info)
        run.update()
    return run


def open_run(path: Path | str, *, salvage: bool = False) -> RunFolder:
    """Open a run for reading, sealed or not.

    Args:
        path: The run folder.
        salvage: Leave damaged segments out instead of refusing.

    Raises:
        InputError: not a run, made by a newer version, or damaged; the message lists what can still be read.
    """
    path = Path(path)
    header = path / "run.json"
    if not header.is_file():
        what = "no such folder" if not path.exists() else "it has no run.json"
        msg = f"{path} is not a run: {what}. A run is a folder that `paceline record`, `load` or `tune` wrote"
        raise InputError(msg, path=path)
    data = header.read_bytes()
    try:
        schema = msgspec.json.decode(data, type=_Header).schema
        if schema > SCHEMA:
            msg = (
                f"{path} was written by a newer Paceline (run schema {schema}; this one reads up to {SCHEMA}): upgrade"
            )
            raise InputError(msg, path=header)
        info = msgspec.json.decode(data, type=RunInfo)
    except msgspec.DecodeError as error:
        msg = f"{header} is damaged ({error}); still there: {_inventory(path)}"
        raise InputError(msg, path=header) from error
    damaged = tuple(p for t in TABLES for p in sorted(path.glob(f"{t}-*.parquet")) if not _is_whole(p))
    if damaged and not salvage:
        names = ", ".join(p.name for p in damaged)
        rest = _inventory(path, damaged)
        msg = f"{path} is damaged: {names} cut short or overwritten; --salvage reads the rest: {rest}"
        raise InputError(msg, path=damaged[0])
    return RunFolder(path, info, damaged)


class _Header(msgspec.Struct):
    schema: int


def _inventory(path: Path, damaged: tuple[Path, ...] = ()) -> str:
    kept = [p for t in TABLES for p in sorted(path.glob(f"{t}-*")) if p not in damaged]
    return ", ".join(f"{p.name} ({p.stat().st_size:,} bytes)" for p in kept) or "nothing"


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4)
        size = file.seek(0, os.SEEK_END)
        if size < 12:
            return False
        file.seek(-8, os.SEEK_END)
        footer = file.read(8)
        footer_bytes = int.from_bytes(footer[:4], "little")
        return head == _PARQUET_MAGIC and footer[4:] == _PARQUET_MAGIC and footer_bytes + 12 <= size


def _live(path: Path, table: str) -> list[Path]:
    return sorted([*path.glob(f"{table}-*.jsonl"), *path.glob(f"{table}-*.rows")])


def _seal(table: str, live: Path) -> None:
    """Rewrite one spool as Parquet, then remove it. A crash between the two leaves both; readers take the Parquet."""
    sealed = live.with_suffix(".parquet")
    if not sealed.exists() and live.stat().st_size:
        part = sealed.with_suffix(".part")
        with contextlib.closing(tables.connect()) as connection:
            is_rows = live.suffix == ".rows"
            source = tables.rows_source(connection, live) if is_rows else tables.lines_source(table, [live])
            _copy_to_parquet(connection, source, part)
        part.replace(sealed)
    live.unlink()
    live.with_suffix(".names").unlink(missing_ok=True)


def _copy_to_parquet(connection: "duckdb.DuckDBPyConnection", source: str, part: Path) -> None:
    import duckdb

    try:
        connection.execute(f"COPY ({source}) TO {tables.quoted(part)} (FORMAT parquet, COMPRESSION zstd)")
    except duckdb.IOException as error:
        part.unlink(missing_ok=True)
        if os.strerror(errno.ENOSPC) in str(error):  # DuckDB gives the number in its text only
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part)) from error
        raise


def _write_whole(path: Path, data: bytes) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _new_folder(root: Path, name: str) -> Path:
    for attempt in range(1, 1000):
        path = root / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(errno.EEXIST, "a thousand folders of this name exist", str(root / name))
