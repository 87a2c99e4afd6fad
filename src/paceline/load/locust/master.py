"""A Locust master that carries messages between Paceline and Locust workers, and puts together what they record.

Run as a program, in a process of its own that gevent has patched: orders come on its standard input, messages leave on
the descriptor that its first argument names. When its input ends, whoever started it is gone, and it ends, too.
"""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import gevent
import msgspec
from gevent.event import AsyncResult
from gevent.fileobject import FileObject
from locust.env import Environment
from locust.runners import STATE_MISSING

from paceline.load.locust.clocks import offset_of
from paceline.load.locust.messages import (
    CHANNEL,
    Assign,
    Dismiss,
    FromMaster,
    Joined,
    Listen,
    Listening,
    Over,
    Said,
    Tell,
    ToMaster,
)
from paceline.load.locust.pieces import Piece, put
from paceline.load.orders import Failed

_EXCHANGES = 20  # to compare clocks
_ANSWER_WITHIN_S = 2.0
_LOOK_EVERY_S = 0.25
_LOCUSTFILE = Path(__file__).with_name("worker_locustfile.py")


class Master:
    """The master's side of every worker."""

    def __init__(self, messages: int) -> None:
        self._messages = messages
        self._runner: Any = None
        self._runs: dict[str, Path] = {}  # where a worker's records belong
        self._pongs: dict[str, Any] = {}
        self._hosts: dict[str, str] = {}  # of workers that have joined

    def listen(self, where: Listen) -> None:
        """Open the port for workers. SystemExit: it cannot be opened."""
        environment = Environment(user_classes=[], parsed_locustfiles=[str(_LOCUSTFILE)])
        self._runner = environment.create_master_runner(where.host, where.port)
        self._runner.register_message(CHANNEL, self._hear)
        self.say(Listening(self._runner.server.port))
        gevent.spawn(self._look_after)

    def obey(self, order: ToMaster) -> None:
        """Do what Paceline asks."""
        match order:
            case Listen():
                self.listen(order)
            case Assign():
                self._runs[order.worker] = Path(order.run)
                self._ask(order.worker, kind="order", parcel=order.parcel)
            case Tell():
                self._ask(order.worker, kind="tell", line=order.line)
            case Dismiss():
                self._ask(order.worker, kind="dismiss")

    def quit(self) -> None:
        """Send the workers home; Locust gives them half a second to say goodbye."""
        if self._runner is not None:
            self._runner.quit()

    def say(self, message: FromMaster) -> None:
        """Write a message; whoever reads them may be gone."""
        data = msgspec.json.encode(message) + b"\n"
        try:
            while data:
                data = data[os.write(self._messages, data) :]
        except OSError:
            sys.exit(1)

    def _ask(self, worker: str, **message: Any) -> None:
        self._runner.send_message(CHANNEL, message, worker)

    def _hear(self, msg: Any, **_: Any) -> None:
        worker, said = msg.node_id, msg.data
        match said["kind"]:
            case "hello":
                gevent.spawn(self._welcome, worker, said)
            case "pong":
                if worker in self._pongs:
                    self._pongs[worker].set((said["sent"], said["mine"], time.monotonic()))
            case "line":
                self.say(Said(worker, said["line"]))
            case "piece":
                self._put(worker, Piece(said["name"], said["offset"], said["data"]))
            case "over":
                self.say(Over(worker, said["how"]))

    def _put(self, worker: str, piece: Piece) -> None:
        try:
            put(piece, self._runs[worker])
        except (OSError, ValueError, KeyError) as error:
            self.say(Failed("MeasurementError", f"cannot keep what a Locust worker recorded: {error}"))

    def _welcome(self, worker: str, said: dict[str, Any]) -> None:
        """Compare clocks with a worker that has come."""
        exchanges: list[tuple[float, float, float]] = []
        while len(exchanges) < _EXCHANGES and worker in self._runner.clients:
            pong = self._pongs[worker] = AsyncResult()
            self._ask(worker, kind="ping", sent=time.monotonic())
            try:
                exchanges.append(pong.get(timeout=_ANSWER_WITHIN_S))
            except gevent.Timeout:  # a busy machine: ask again until there is one answer
                if exchanges:
                    break
        if not exchanges:
            return  # it has gone again
        offset = offset_of(exchanges)
        self._hosts[worker] = said["host"]
        self.say(
            Joined(
                worker=worker,
                host=said["host"],
                paceline=said["paceline"],
                ahead_s=offset.ahead_s,
                within_s=offset.within_s,
            )
        )

    def _look_after(self) -> None:
        """Tell when a worker has gone: it said so, or its heartbeats stopped."""
        while True:
            gevent.sleep(_LOOK_EVERY_S)
            for worker in list(self._hosts):
                node = self._runner.clients.get(worker)
                if node is None or node.state == STATE_MISSING:
                    how = "left" if node is None else "is gone: no heartbeat came any more"
                    del self._hosts[worker]
                    self.say(Over(worker, how, is_gone=True))


def _failed(order: ToMaster, error: BaseException) -> Failed:
    if not isinstance(order, Listen):
        return Failed("MeasurementError", f"Locust's master: {error}")
    said = f"cannot listen for Locust workers on {order.host}:{order.port}"
    return Failed("ConfigError", f"{said}: name another address with --locust-master ({error})")


def main() -> None:
    """Obey until the input ends."""
    logging.getLogger("locust").setLevel(logging.CRITICAL)  # Paceline says itself what matters of it
    master = Master(int(sys.argv[1]))
    try:
        for line in FileObject(0, "rb"):
            order = msgspec.json.decode(line, type=ToMaster)
            try:
                master.obey(order)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - said, not printed
                master.say(_failed(order, error))
    finally:
        master.quit()


if __name__ == "__main__":
    main()
