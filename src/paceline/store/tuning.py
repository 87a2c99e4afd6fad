"""Tune folders on disk: tune.json beside its run folders.

tune.json            TuneResult, rewritten whole after every step, so an interrupted tuning keeps what it has
projections.json     what every phase was projected to be, written and synced before the first phase was measured
baseline/            the run of the application as it is
phase-1-NAME/ ...    one run a phase
"""

import os
from pathlib import Path

import msgspec

from paceline.errors import InputError
from paceline.model.tuning import SCHEMA, TuneResult
from paceline.store.folder import disk_errors


def save_result(result: TuneResult, folder: Path) -> Path:
    """Write tune.json in one step and return its path. Raises MeasurementError when the disk is full."""
    return write_json(result, folder / "tune.json")


def write_json(record: msgspec.Struct, path: Path) -> Path:
    """Write a record as indented JSON, synced to the disk, replacing the file in one step."""
    part = path.with_suffix(".part")
    with disk_errors(path.parent):
        with part.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    return path


def load_result(folder: Path) -> TuneResult:
    """Read a tune folder. Raises InputError: not one, damaged, or written by a newer version."""
    path = folder / "tune.json" if folder.is_dir() else folder
    if not path.is_file():
        msg = f"{folder} is not a tuning: it has no tune.json. `paceline tune` writes one"
        raise InputError(msg, path=path)
    data = path.read_bytes()
    try:
        schema = msgspec.json.decode(data, type=_Header).schema
        if schema > SCHEMA:
            msg = f"{path} was written by a newer Paceline (schema {schema}; this one reads up to {SCHEMA}): upgrade"
            raise InputError(msg, path=path)
        return msgspec.json.decode(data, type=TuneResult)
    except msgspec.DecodeError as error:
        msg = f"{path} is damaged: {error}"
        raise InputError(msg, path=path) from error


class _Header(msgspec.Struct):
    schema: int
