"""A worker: one serving process below a parent that watches it. Started as `python -m`, told the rest by its parent."""

import asyncio
import signal
import socket
import sys
from pathlib import Path

from paceline.errors import PacelineError
from paceline.gateway.keys_table import Table
from paceline.gateway.lifecycle_process import Place, ServingProcess
from paceline.gateway.workers_channel import Channel, NewConfig, Told


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
            started_ns=assignment.started_ns,
        )
    )
    try:
        await process.start(assignment.config, assignment.rows)
    except PacelineError as error:
        channel.send(Told(error=str(error)))
        await process.close()
        return error.exit_code
    channel.send(Told())
    orders = loop.create_task(_obey(channel, process))  # cancelled below
    stop = loop.create_task(told_to_stop.wait())
    await asyncio.wait((orders, stop), return_when=asyncio.FIRST_COMPLETED)
    orders.cancel()
    stop.cancel()
    await process.drain()
    await process.close()
    return 0


async def _obey(channel: Channel, process: ServingProcess) -> None:
    """Follow orders until one says stop, or the parent is gone."""
    while isinstance(order := await channel.order(), NewConfig):
        try:
            await process.apply(order.config, order.rows)
        except PacelineError as error:
            channel.send(Told(error=str(error)))
        else:
            channel.send(Told())


if __name__ == "__main__":
    import uvloop

    sys.exit(uvloop.run(work(int(sys.argv[1]))))
