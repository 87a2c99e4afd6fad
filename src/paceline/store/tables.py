"""The three tables as SQL: columns, defaults, and views in which all times are at the provider's pace."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from paceline.model.request import Request, ResourceSample
from paceline.model.span import Span

if TYPE_CHECKING:
    import duckdb

STRUCTS: dict[str, type[msgspec.Struct]] = {"requests": Request, "spans": Span, "resources": ResourceSample}

_SQL_TYPES = {
    str: "VARCHAR",
    str | None: "VARCHAR",
    int: "BIGINT",
    int | None: "BIGINT",
    float: "DOUBLE",
    float | None: "DOUBLE",
    list[float]: "DOUBLE[]",
}
_NS = ("duration_ns", "wait_ns", "cpu_ns")


def columns(table: str) -> dict[str, str]:
    """Column names and SQL types of a table, from its struct; open attributes are JSON."""
    return {f.name: _SQL_TYPES.get(f.type, "JSON") for f in msgspec.structs.fields(STRUCTS[table])}


def connect() -> "duckdb.DuckDBPyConnection":
    """An in-memory DuckDB that never fetches extensions. Importing DuckDB takes 0.2 s."""
    import duckdb

    return duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})


def quoted(text: str | Path) -> str:
    """A SQL string literal."""
    return "'" + str(text).replace("'", "''") + "'"


def lines_source(table: str, paths: list[Path]) -> str:
    """SQL that reads JSON-lines spools; torn lines come out as rows without their first column and are left out."""
    cols = columns(table)
    spec = ", ".join(f"{name}: {quoted(sql)}" for name, sql in cols.items())
    files = ", ".join(quoted(p) for p in paths)
    required = next(f.name for f in msgspec.structs.fields(STRUCTS[table]) if f.required)
    return (
        f"SELECT {', '.join(cols)} FROM read_json([{files}], format='newline_delimited', ignore_errors=true, "
        f"columns={{{spec}}}) WHERE {required} IS NOT NULL"
    )


def parquet_source(table: str, paths: list[Path]) -> str:
    """SQL that reads sealed segments; columns an older version did not write are NULL."""
    files = ", ".join(quoted(p) for p in paths)
    # The empty row set first, so that a column missing from every file still exists.
    empty = ", ".join(f"NULL::{sql} AS {name}" for name, sql in columns(table).items())
    return (
        f"SELECT * FROM (SELECT {empty} WHERE false) UNION ALL BY NAME "
        f"SELECT * FROM read_parquet([{files}], union_by_name=true)"
    )


def view(table: str, sources: list[str], *, speed: float, start_ns: int) -> str:
    """The view of a table: defaults filled in, times multiplied by `speed`, in order of time."""
    cols = columns(table)
    if not sources:
        empty = ", ".join(f"NULL::{sql} AS {name}" for name, sql in cols.items())
        return f"SELECT {empty} WHERE false"
    fields = {f.name: f for f in msgspec.structs.fields(STRUCTS[table])}
    shown = ", ".join(f"{_scaled(name, fields[name], speed, start_ns)} AS {name}" for name in cols)
    order = {"requests": "intended_s, index", "spans": "start_ns, span_id", "resources": "at_s"}[table]
    return f"SELECT {shown} FROM ({' UNION ALL BY NAME '.join(sources)}) ORDER BY {order}"


def _scaled(name: str, field: msgspec.structs.FieldInfo, speed: float, start_ns: int) -> str:
    sql = name
    if field.default is not msgspec.NODEFAULT and field.default is not None:
        default = quoted(field.default) if isinstance(field.default, str) else str(field.default)
        sql = f"coalesce({name}, {default})"
    elif field.default_factory is not msgspec.NODEFAULT:
        sql = f"coalesce({name}, '{{}}')" if columns_type(field) == "JSON" else f"coalesce({name}, [])"
    if speed == 1.0:
        return sql
    if name == "start_ns":
        return f"{start_ns} + ((start_ns - {start_ns}) * {speed!r})::BIGINT"
    if name in _NS:
        return f"({sql} * {speed!r})::BIGINT"
    if name == "gaps_s":
        return f"list_transform({sql}, lambda x: x * {speed!r})"
    return f"{sql} * {speed!r}" if name.endswith("_s") else sql


def columns_type(field: msgspec.structs.FieldInfo) -> str:
    """SQL type of one struct field."""
    return _SQL_TYPES.get(field.type, "JSON")
