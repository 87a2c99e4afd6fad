"""Question sets for the cache test: files of real questions with an intent, and of near misses."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from paceline.errors import ConfigError, InputError

_TEXT, _LABELS = ("text", "query", "question"), ("label", "intent", "category")
_NO_INTENT = {"oos", "out_of_scope", ""}  # CLINC150's name for questions that share nothing but being off topic


@dataclass(frozen=True, slots=True)
class Queries:
    """Questions by intent, and pairs that look the same and must never share an answer."""

    intents: dict[str, list[str]] = field(default_factory=dict)  # wordings, in the order of the file, none twice
    near_misses: list[tuple[str, str]] = field(default_factory=list)


def read_queries(paths: list[Path]) -> Queries:
    """Read CSV files with the columns `text,label` (questions by intent) or `a,b` (near misses), and merge them.

    Other columns are ignored; in a file of pairs those with `duplicate` not 0 are left out, and out-of-scope questions
    are intents of their own. The formats are those of BANKING77, CLINC150 and HWU64 as they are published.

    Raises:
        ConfigError: a file cannot be read. InputError: it has neither pair of columns, or no question in it.
    """
    queries = Queries()
    seen: set[str] = set()
    for path in paths:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(line for line in file if not line.startswith("#"))
                names = set(rows.fieldnames or ())
                text = next((name for name in _TEXT if name in names), None)
                label = next((name for name in _LABELS if name in names), None)
                if {"a", "b"} <= names:
                    _add_pairs(queries, rows)
                elif text is not None and label is not None:
                    _add_questions(queries, rows, text, label, seen)
                else:
                    msg = f"{path}: expected the columns text,label or a,b; got {', '.join(sorted(names)) or 'none'}"
                    raise InputError(msg, path=path, line=1)
        except OSError as error:
            msg = f"cannot read the questions in {path}: {error.strerror}"
            raise ConfigError(msg) from error
        except (UnicodeDecodeError, csv.Error) as error:
            msg = f"{path} is not CSV in UTF-8: {error}"
            raise InputError(msg, path=path) from error
    if not queries.intents and not queries.near_misses:
        msg = f"no question in {', '.join(map(str, paths))}"
        raise InputError(msg, path=paths[0] if paths else None)
    return queries


def _add_questions(queries: Queries, rows: "csv.DictReader[str]", text: str, label: str, seen: set[str]) -> None:
    for row in rows:
        question = (row[text] or "").strip()
        if not question or question in seen:
            continue
        seen.add(question)
        intent = (row[label] or "").strip()
        # Questions without an intent have nothing in common: each is its own.
        queries.intents.setdefault(question if intent in _NO_INTENT else intent, []).append(question)


def _add_pairs(queries: Queries, rows: "csv.DictReader[str]") -> None:
    for row in rows:
        a, b = (row["a"] or "").strip(), (row["b"] or "").strip()
        if a and b and a != b and row.get("duplicate") in (None, "", "0"):
            queries.near_misses.append((a, b))
