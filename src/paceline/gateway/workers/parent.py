"""Several processes on one port: a parent that starts them, replaces the dead, hands on new configurations, stops them.

The parent serves nothing, so nothing a caller sends can bring it down. A worker that is killed loses the calls it
held; the connections that wait for it are answered by its successor.
"""

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from paceline.errors import ConfigError, ServiceError
from paceline.gateway.config import GatewayConfig
from paceline.gateway.keys.table import Ledger, Table
from paceline.gateway.lifecycle.process import Address
from paceline.gateway.lifecycle.told import admit_keys, say, spent_gauges
from paceline.gateway.metrics.counts import Metrics
from paceline.gateway.metrics.shared import WRITE_S, SharedMetrics
from paceline.gateway.workers.channel import Assignment, Channel, Forget, Forgot, NewConfig, Stop, Told
from paceline.gateway.workers.sockets import Listeners

_ANSWER_S = 10.0  # a worker that has not taken up a new configuration by then is not waited for
_START_S = 60.0  # a worker not ready after that is taken for dead
_HEALTHY_S = 30.0  # one that lived that long is replaced at once
_FIRST_DELAY_S, _MAX_DELAY_S = 0.2, 10.0
_SHUT_FROM_S = 1.0  # a delay from which callers are not left waiting in its queue
_OVERTIME_S = 5.0  # beyond the drain, before SIGKILL
_MODULE = "paceline.gateway.workers.process"


def delay_s(failures: int) -> float:
    """How long to wait before the next start, after so many short lives in a row: 0, 0.2, 0.4, ... 10."""
    return 0.0 if failures == 0 else float(min(_MAX_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(failures - 1, 16)))


class Worker:
    """One place among the workers, and the process that holds it now."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: Channel | None = None
        self.ready = asyncio.Event()
        self.failures = 0  # short lives in a row
        self.error: str | None = None  # why it did not start
        self.answers: asyncio.Queue[Told | None] = asyncio.Queue()  # to new configurations; None: it is gone
        self.forgetting: dict[tuple[int, int], asyncio.Future[Forgot | None]] = {}  # what it was told to drop

    def launch(self, listen_fd: int, table_fd: int) -> socket.socket:
        """Start the process; the parent's end of its channel."""
        ours, theirs = socket.socketpair()
        # Ctrl-C reaches the whole group of processes; what it means is the parent's to say. The mask is inherited, so
        # a worker is deaf to it from its first instruction on.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", _MODULE, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), listen_fd, table_fd),
                )
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return ours

    def kill(self) -> None:
        """End it now."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()


class Parent:
    """Keeps `config.server.workers` processes serving. Use it in an `async with` block; it ends them all at the end."""

    def __init__(
        self, config: GatewayConfig, *, run: Path | None = None, record_answers: bool = False, started_ns: int = 0
    ) -> None:
        self.config = config
        server = config.server
        self._listeners = Listeners(server.host, server.port, server.workers)
        self.address = Address(server.host, self._listeners.port)
        self._folder = Path(tempfile.mkdtemp(prefix="paceline-"))  # readable by this user only
        self._table_file = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __aexit__
        self._table_fd = self._table_file.fileno()
        self.ledger = Ledger(Table(server.workers, self._table_fd))
        self._run, self._record_answers, self._started_ns = run, record_answers, started_ns
        self._workers = [Worker(number) for number in range(server.workers)]
        self._rows: Mapping[str, int] = {}
        self._stopping = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._counter: asyncio.Task[None] | None = None
        self.metrics = Metrics()
        self.metrics.gauges = self._gauges
        self._shared = SharedMetrics(self.metrics, self._folder, "parent")

    async def __aenter__(self) -> Self:
        try:
            self._rows = admit_keys(self.ledger, self.config)
            loop = asyncio.get_running_loop()
            self._keepers = [loop.create_task(self._keep(worker)) for worker in self._workers]  # awaited by `_end`
            self._counter = loop.create_task(self._count())  # cancelled by `_end`
            await self._all_ready()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def drain(self) -> None:
        """Have the workers finish and end; those that take too long are left to the end of the block."""
        server = self.config.server
        self._stopping.set()
        for worker in self._workers:
            if worker.channel is not None:
                worker.channel.send(Stop())
        await asyncio.sleep(server.unready_s)
        self._listeners.close()  # the workers have theirs; when they close them, too, callers are refused
        await asyncio.wait(self._keepers, timeout=server.drain_s + _OVERTIME_S)

    async def apply(self, config: GatewayConfig, rows: Mapping[str, int]) -> None:
        """Have every worker answer new calls by a new configuration; successors start with it.

        ConfigError: one of them cannot follow; all of them go on with the old one.
        """
        was = self.config, self._rows
        refused = await self._tell(config, rows)
        if refused is not None:
            await self._tell(*was)
            raise ConfigError(refused)

    async def _tell(self, config: GatewayConfig, rows: Mapping[str, int]) -> str | None:
        """Hand out a configuration; why a worker cannot follow it, None when all of them do."""
        self.config, self._rows = config, rows
        asked = [worker for worker in self._workers if worker.channel is not None]
        for worker in asked:
            while not worker.answers.empty():
                worker.answers.get_nowait()
            if worker.channel is not None:
                worker.channel.send(NewConfig(config=config, rows=dict(rows)))
        refused = None
        for worker in asked:
            with contextlib.suppress(TimeoutError):
                answer = await asyncio.wait_for(worker.answers.get(), _ANSWER_S)
                refused = answer.error if answer is not None and answer.error is not None else refused
        return refused

    async def _all_ready(self) -> None:
        waiting = asyncio.gather(*(worker.ready.wait() for worker in self._workers))
        try:
            first: list[asyncio.Future[Any]] = [waiting, *self._keepers]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            for keeper in self._keepers:
                if keeper.done():
                    keeper.result()  # raises why there is no worker
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    async def _keep(self, worker: Worker) -> None:
        """Start a worker's process again and again. ServiceError: its first one never got ready."""
        while not self._stopping.is_set():
            started_s = time.monotonic()
            try:
                await self._live(worker)
            except OSError as error:  # no process, descriptor or port to be had
                worker.error = f"no process or socket for it: {error.strerror or error}"
            if self._stopping.is_set():
                return
            how = f"did not start: {worker.error}" if worker.error else _ended(worker)
            if not worker.ready.is_set():
                raise ServiceError(worker.error or f"worker {worker.number} {how} before it was ready")
            worker.failures = 0 if time.monotonic() - started_s >= _HEALTHY_S else worker.failures + 1
            pause_s = delay_s(worker.failures - 1)
            say(f"worker {worker.number} {how}; its successor starts {f'in {pause_s:g} s' if pause_s else 'now'}")
            self.metrics.count("paceline_worker_restarts_total")
            if pause_s:
                await self._pause(worker, pause_s)

    async def _pause(self, worker: Worker, pause_s: float) -> None:
        if pause_s >= _SHUT_FROM_S:
            self._listeners.shut(worker.number)
        try:
            await asyncio.wait_for(self._stopping.wait(), pause_s)
        except TimeoutError:
            return

    async def _live(self, worker: Worker) -> None:
        """One process from its start to its end."""
        listen_fd = self._listeners.of(worker.number).fileno()
        channel = await Channel.over(worker.launch(listen_fd, self._table_fd))
        process = worker.process
        assert process is not None  # noqa: S101 - launched just now
        channel.send(
            Assignment(
                number=worker.number,
                workers=len(self._workers),
                listen_fd=listen_fd,
                table_fd=self._table_fd,
                folder=str(self._folder),
                run=str(self._run.resolve()) if self._run is not None else None,
                record_answers=self._record_answers,
                started_ns=self._started_ns,
                config=self.config,
                rows=dict(self._rows),
            )
        )
        sent = self.config
        try:
            async with asyncio.timeout(_START_S):
                told = await _first(channel)
        except TimeoutError:
            process.kill()
            told = None
        if told is not None and told.error is None:
            worker.channel = channel
            worker.ready.set()
            if self.config is not sent:  # read while it started
                channel.send(NewConfig(config=self.config, rows=dict(self._rows)))
            if self._stopping.is_set():
                channel.send(Stop())
            await self._listen(worker, channel)
        worker.error = told.error if told is not None else None
        worker.channel = None
        channel.close()
        await asyncio.to_thread(_reap, process)

    async def _listen(self, worker: Worker, channel: Channel) -> None:
        """Take the worker's answers until it is gone."""
        async with asyncio.TaskGroup() as telling:
            while (told := await channel.told()) is not None:
                if isinstance(told, Forget):
                    telling.create_task(self._spread(worker, channel, told))
                elif isinstance(told, Forgot):
                    waiting = worker.forgetting.pop((told.worker, told.number), None)
                    if waiting is not None:
                        waiting.set_result(told)
                else:
                    worker.answers.put_nowait(told)
            worker.answers.put_nowait(None)
            for waiting in worker.forgetting.values():
                waiting.set_result(None)  # it is gone, and what it kept with it
            worker.forgetting.clear()

    async def _spread(self, asking: Worker, back: Channel, forget: Forget) -> None:
        """Have every other worker drop answers, and tell the one that was asked. One that starts has none yet."""
        answers = []
        for worker in self._workers:
            if worker is not asking and worker.channel is not None:
                answer = asyncio.get_running_loop().create_future()
                worker.forgetting[forget.worker, forget.number] = answer
                answers.append(answer)
                worker.channel.send(forget)
        done, _ = await asyncio.wait(answers, timeout=_ANSWER_S) if answers else (set(), None)
        forgot = [answer.result() for answer in done if answer.result() is not None]
        dropped, processes = sum(each.dropped for each in forgot), len(forgot)
        back.send(Forgot(number=forget.number, worker=forget.worker, dropped=dropped, processes=processes))

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(WRITE_S)
            self._shared.write()

    def _gauges(self) -> dict[str, dict[str, float]]:
        serving = sum(worker.channel is not None for worker in self._workers)
        return {"paceline_workers": {"": float(serving)}, **spent_gauges(self.ledger, self.config)}

    async def _end(self) -> None:
        self._stopping.set()
        self._listeners.close()
        for worker in self._workers:
            worker.kill()
        if self._counter is not None:
            self._counter.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._table_file.close()
        shutil.rmtree(self._folder, ignore_errors=True)


async def _first(channel: Channel) -> Told | None:
    """The answer to the assignment, which comes before everything else."""
    told = await channel.told()
    return told if isinstance(told, Told) else None


def _reap(process: "subprocess.Popen[bytes]") -> None:
    """Wait for a process that closed its channel, so it is ending; one that does not is ended."""
    try:
        process.wait(_OVERTIME_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ended(worker: Worker) -> str:
    code = worker.process.returncode if worker.process is not None else 0
    pid = worker.process.pid if worker.process is not None else 0
    if code < 0:
        return f"(process {pid}) was killed by {signal.Signals(-code).name}"
    return f"(process {pid}) ended with exit code {code}"
