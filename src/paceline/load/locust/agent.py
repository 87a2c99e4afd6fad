"""The agent: what a Locust worker does for Paceline, in the worker's own process.

Locust's process is no place for the driver (gevent has patched it), so the agent starts the same worker program that
`--processes` uses and carries its lines, and what it records, over Locust's connection to the master.
"""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gevent
import msgspec
from locust import User, events
from locust.runners import WorkerRunner

from paceline import __version__
from paceline.load.links import ended_with
from paceline.load.locust.messages import CHANNEL
from paceline.load.locust.parcel import Parcel, unpack
from paceline.load.locust.pieces import Grown

_SILENT_S = 5.0  # without a heartbeat of the master; Locust itself would wait a minute, and load would go on
_SILENT_EVERY_S = 1.0


class PacelineWorker(User):  # type: ignore[misc] # no types are taken from Locust
    """Never spawned: Locust wants a worker to have a user."""


class Agent:
    """Carries out what the master asks, one order at a time."""

    def __init__(self, runner: WorkerRunner) -> None:
        self._runner = runner
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Listen, and say that we are here."""
        self._runner.register_message(CHANNEL, self._hear)
        self._say(kind="hello", paceline=__version__, host=socket.gethostname())
        gevent.spawn(self._watch_master)

    def _hear(self, msg: Any, **_: Any) -> None:
        asked: Mapping[str, Any] = msg.data
        match asked["kind"]:
            case "ping":
                self._say(kind="pong", sent=asked["sent"], mine=time.monotonic())
            case "order":
                gevent.spawn(self._work, msgspec.msgpack.decode(asked["parcel"], type=Parcel))
            case "tell":
                self._tell(asked["line"].encode())
            case "dismiss":
                self._kill()

    def _work(self, parcel: Parcel) -> None:
        """Run the driver on an order until it has ended, and hand on all it says and records."""
        self._kill()
        folder = Path(tempfile.mkdtemp(prefix="paceline-"))
        how = "could not be started"
        try:
            order = unpack(parcel, folder)
            grown = Grown(Path(order.run))
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", "paceline.load.workers"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            self._tell(msgspec.json.encode(order))
            assert process.stdout is not None  # noqa: S101 - it was started with a pipe
            for line in process.stdout:
                self._ship(grown)  # before the line: after the last one everything has arrived
                self._say(kind="line", line=line.decode())
            self._ship(grown)
            how = ended_with(process.wait())
        except OSError as error:
            how = f"failed: {error}"
        finally:
            self._kill()
            self._process = None
            shutil.rmtree(folder, ignore_errors=True)
            self._say(kind="over", how=how)

    def _ship(self, grown: Grown) -> None:
        for piece in grown.pieces():
            self._say(kind="piece", name=piece.name, offset=piece.offset, data=piece.data)

    def _tell(self, line: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.write(line + b"\n")
                self._process.stdin.flush()
            except OSError:
                self._kill()  # it is gone or going

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def _say(self, **message: Any) -> None:
        self._runner.send_message(CHANNEL, message)

    def _watch_master(self) -> None:
        """No load goes on that nobody measures."""
        while True:
            gevent.sleep(_SILENT_EVERY_S)
            heard_s = self._runner.last_heartbeat_timestamp
            if heard_s is not None and time.time() - heard_s > _SILENT_S:
                self._kill()


def _on_init(runner: Any, **_: Any) -> None:
    if isinstance(runner, WorkerRunner):
        Agent(runner).begin()


events.init.add_listener(_on_init)
