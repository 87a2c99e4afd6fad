"""A worker: one serving process below a parent that watches it. Started as `python -m`, told the rest by its parent."""

import asyncio
import signal
import socket
import sys
from pathlib import Path

from paceline.accelerate.cache import Selection
from paceline.errors import PacelineError
from paceline.gateway.keys.table import Table
from paceline.gateway.lifecycle.process import Place, ServingProcess
from paceline.gateway.workers.channel import Channel, Forget, Forgot, NewConfig, Told


async def work(channel_fd: int) -> int:
    """Serve until the parent says stop or is gone; returns the exit code."""
    loop, told_to_stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told_to_stop.set)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent's to hear, as SIGINT, which it blocked for us
    channel = await Channel.over(socket.socket(fileno=channel_fd))
    assignment = await channel.assignment()
    if assignment is None:
        return 0
    process = ServingProcess(
        Place(
            number=assignment.number,
            table=Table(assignment.workers, assignment.table_fd),
            folder=Path(assignment.folder),
            sock=socket.socket(fileno=assignment.listen_fd),
            run=Path(assignment.run) if assignment.run is not None else None,
            record_answers=assignment.record_answers,
            started_ns=assignment.started_ns,
        )
    )
    others = Others(channel, assignment.number)
    process.tell = others.tell
    try:
        await process.start(assignment.config, assignment.rows)
    except PacelineError as error:
        channel.send(Told(error=str(error)))
        await process.close()
        return error.exit_code
    channel.send(Told())
    orders = loop.create_task(_obey(channel, process, others))  # cancelled below
    stop = loop.create_task(told_to_stop.wait())
    await asyncio.wait((orders, stop), return_when=asyncio.FIRST_COMPLETED)
    orders.cancel()
    stop.cancel()
    await process.drain()
    await process.close()
    return 0


class Others:
    """The other workers, by way of the parent."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel, self._number = channel, number
        self._asked: dict[int, asyncio.Future[Forgot]] = {}
        self._count = 0

    async def tell(self, selection: Selection) -> tuple[int, int]:
        """Have them drop answers: how many entries they lost, and how many processes they are."""
        self._count += 1
        number = self._count
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._channel.send(Forget(number=number, worker=self._number, selection=selection))
        try:
            forgot = await answer
        finally:
            del self._asked[number]
        return forgot.dropped, forgot.processes

    def answered(self, forgot: Forgot) -> None:
        """The parent says that they have."""
        answer = self._asked.get(forgot.number)
        if answer is not None and not answer.done():
            answer.set_result(forgot)


async def _obey(channel: Channel, process: ServingProcess, others: Others) -> None:
    """Follow orders until one says stop, or the parent is gone."""
    while True:
        match await channel.order():
            case NewConfig(config=config, rows=rows):
                try:
                    await process.apply(config, rows)
                except PacelineError as error:
                    channel.send(Told(error=str(error)))
                else:
                    channel.send(Told())
            case Forget(number=number, worker=worker, selection=selection):
                dropped = process.hear(selection)
                channel.send(Forgot(number=number, worker=worker, dropped=dropped, processes=1))
            case Forgot() as forgot:
                others.answered(forgot)
            case _:
                return


if __name__ == "__main__":
    import uvloop

    sys.exit(uvloop.run(work(int(sys.argv[1]))))
