"""The gateway's handler: its own pages, and the engine for everything else."""

from collections.abc import Awaitable

import msgspec

from paceline.accelerate.engine import Engine
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.openai import error_body

_JSON = (b"content-type", b"application/json")


class Gateway:
    """One engine behind a server. `handle` is the server's handler."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def handle(self, request: HttpRequest) -> Reply | Awaitable[Reply]:
        """Answer one request."""
        if request.path.startswith("/-/"):
            return self._own(request.path)
        return self.engine.handle(request)

    def _own(self, path: str) -> Reply:
        if path != "/-/health":
            return Reply(404, [_JSON], error_body(404, f"no such page: {path}"))
        return Reply(200, [_JSON], msgspec.json.encode({"status": "ok", **self.engine.state()}))
