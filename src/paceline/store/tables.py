"""The three tables as SQL: columns, defaults, and views in which all times are at the provider's pace."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from paceline.model.request import Request, ResourceSample
from paceline.model.span import Span
from paceline.store import rows

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


def rows_source(connection: "duckdb.DuckDBPyConnection", path: Path) -> str:
    """SQL that reads a binary row spool, through two tables registered with the connection. Raises InputError."""
    found = rows.read_rows(path)
    if not len(found.namings["naming"]):
        return _no_rows("requests")
    name = path.stem
    connection.register(f"{name}.rows", found.rows)
    connection.register(f"{name}.namings", found.namings)

    def named(values: tuple[str | None, ...], code: str) -> str:
        cases = " ".join(f"WHEN {i} THEN {quoted(text)}" for i, text in enumerate(values) if text is not None)
        return f"CASE r.{code} {cases} END AS {code}"

    return (
        f"{_no_rows('requests')} UNION ALL BY NAME "
        f"SELECT r.index::BIGINT AS index, {quoted(found.scenario)} AS scenario, endpoint, "
        f"{quoted(found.trace_high)} || format('{{:016x}}', r.trace_low) AS trace_id, "
        "r.intended_s, r.started_s, CASE WHEN isnan(r.first_byte_s) THEN NULL ELSE r.first_byte_s END AS first_byte_s, "
        "r.ended_s, nullif(r.status, 0)::BIGINT AS status, "
        f"{named(rows.ERRORS, 'error')}, n.request_bytes, r.response_bytes::BIGINT AS response_bytes, "
        f"{named(rows.CACHES, 'cache')}, n.key, n.text_key, nullif(r.user, -1)::BIGINT AS user "
        f'FROM "{name}.rows" r JOIN "{name}.namings" n USING (naming)'
    )


def parquet_source(table: str, paths: list[Path]) -> str:
    """SQL that reads sealed segments; columns an older version did not write are NULL."""
    files = ", ".join(quoted(p) for p in paths)
    # The empty row set first, so that a column missing from every file still exists.
    return (
        f"SELECT * FROM ({_no_rows(table)}) UNION ALL BY NAME SELECT * FROM read_parquet([{files}], union_by_name=true)"
    )


def view(table: str, sources: list[str], *, speed: float, start_ns: int) -> str:
    """The view of a table: defaults filled in, times multiplied by `speed`, in order of time."""
    cols = columns(table)
    if not sources:
        return _no_rows(table)
    fields = {f.name: f for f in msgspec.structs.fields(STRUCTS[table])}
    shown = ", ".join(f"{_scaled(name, fields[name], speed, start_ns)} AS {name}" for name in cols)
    order = {"requests": "intended_s, index", "spans": "start_ns, span_id", "resources": "at_s"}[table]
    return f"SELECT {shown} FROM ({' UNION ALL BY NAME '.join(sources)}) ORDER BY {order}"


def _no_rows(table: str) -> str:
    return f"SELECT {', '.join(f'NULL::{sql} AS {name}' for name, sql in columns(table).items())} WHERE false"


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
