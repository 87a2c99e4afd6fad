"""Parcel: an order together with the files it names, for a machine that does not have them."""

from pathlib import Path

import msgspec

from paceline.errors import ConfigError
from paceline.load.orders import Order
from paceline.model.run import RunInfo

_MOST_BYTES = 256 << 20


class Parcel(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker elsewhere needs to begin. `run` is the header of the run as its own clock has to read it."""

    order: Order
    run: RunInfo
    files: dict[str, bytes]  # by the names that the scenario has for them


def pack(order: Order, run: RunInfo) -> Parcel:
    """Take along every file that the scenario names.

    Raises:
        ConfigError: one cannot be read or is a folder (a run to replay), or they are above 256 MB together.
    """
    names: dict[str, str] = {}
    files: dict[str, bytes] = {}

    def taken(path: str) -> str:
        if path not in names:
            names[path] = f"{len(names)}-{Path(path).name}"  # how it ends may say what it is
            files[names[path]] = _read(Path(path))
            if sum(map(len, files.values())) > _MOST_BYTES:
                msg = f"the files of scenario {order.scenario.name!r} are above {_MOST_BYTES >> 20} MB together"
                raise ConfigError(f"{msg}: too much to hand to Locust workers")
        return names[path]

    scenario = order.scenario.moved(taken)
    header = msgspec.structs.replace(run, scenarios=[], command=[], host={})
    return Parcel(order=msgspec.structs.replace(order, scenario=scenario), run=header, files=files)


def unpack(parcel: Parcel, folder: Path) -> Order:
    """Lay files and run header out in a folder; the order then names them there."""
    run = folder / "run"
    run.mkdir(parents=True)
    for name, data in parcel.files.items():
        (folder / Path(name).name).write_bytes(data)
    (run / "run.json").write_bytes(msgspec.json.encode(parcel.run))
    scenario = parcel.order.scenario.resolved(folder)
    return msgspec.structs.replace(parcel.order, scenario=scenario, run=str(run))


def _read(path: Path) -> bytes:
    if path.is_dir():
        msg = f"{path} is a run: Locust workers can replay a trace that is one file (CSV or JSON lines)"
        raise ConfigError(msg)
    try:
        return path.read_bytes()
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise ConfigError(msg) from error
