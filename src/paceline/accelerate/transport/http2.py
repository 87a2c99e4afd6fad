"""The HTTP/2 client for callers with patience; apart, because h2 is an optional dependency."""

from typing import Any

from paceline.accelerate.transport.patience import PATIENCE, SLACK_S, CallersTime, noting
from paceline.wire.http2_client import Http2Client
from paceline.wire.http2_connection import Http2Connection, Http2Reply


class PatientHttp2Client(CallersTime, Http2Client):
    """Connects within its caller's time, and leaves the rest of the timing to the caller."""

    async def _open(self) -> Http2Connection:
        patience = PATIENCE.get(None)
        if patience is None:
            return await super()._open()
        patience.restart(patience.connect_s + SLACK_S)
        connection = await super()._open()
        patience.restart(patience.read_s)
        return connection

    async def request(self, method: str, target: str, headers: Any = (), body: bytes = b"") -> Http2Reply:
        """As the client's; a failure is noted for the caller as well."""
        with noting():
            return await super().request(method, target, headers, body)
