"""FleetReader: GET over redis-py connections of its own, without the client's general path around each command.

A look-up is the one command that a request waits for. Through the client it costs about half as much again as the
round trip itself (command objects, retries, pool locks, telemetry): measured in `benchmarks/cache.py`.
"""

import asyncio
from collections.abc import Callable
from typing import Any

_GET = b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n"


class FleetReader:
    """At most `most` connections; the last one used first. Close it when done.

    Args:
        connect: Makes a `redis.asyncio` connection, not connected yet.
        most: Connections at once; who finds none free waits.
        broken: redis-py's ConnectionError: the connection, not the answer, is bad.
        refused: redis-py's ResponseError: the answer is an error, the connection is good.
    """

    def __init__(
        self, connect: Callable[[], Any], most: int, broken: type[Exception], refused: type[Exception]
    ) -> None:
        self._connect = connect
        self._broken, self._refused = broken, refused
        self._places = asyncio.Semaphore(most)
        self._idle: list[Any] = []
        self._closed = False

    async def get(self, name: bytes) -> Any:
        """The answer to GET, whatever it is. redis-py's errors, OSError. Bound it from outside: cancelling is safe."""
        async with self._places:
            if self._idle:
                try:
                    return await self._ask(self._idle.pop(), name)
                except self._broken:  # Redis was restarted, or closed what was idle: so will the others be
                    await self._drop_idle()
            return await self._ask(self._connect(), name)

    async def close(self) -> None:
        """Close every connection; those in use when their answer has come."""
        self._closed = True
        await self._drop_idle()

    async def _ask(self, connection: Any, name: bytes) -> Any:
        good = False
        try:
            # Connects first where it is not connected.
            await connection.send_packed_command((_GET % (len(name), name),), check_health=False)
            answer = await connection.read_response()
            good = True
        except self._refused:
            good = True
            raise
        finally:
            if good and not self._closed:
                self._idle.append(connection)
            else:
                await connection.disconnect(nowait=True)
        return answer

    async def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect(nowait=True)
