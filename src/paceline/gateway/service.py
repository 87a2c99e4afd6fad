"""The gateway's handler: the door, its own pages, and the engine for everything else."""

from collections.abc import Awaitable, Mapping
from typing import Any

from paceline.accelerate.engine import Engine
from paceline.gateway.keys.door import Door
from paceline.gateway.keys.quota import Refusal
from paceline.gateway.pages import METRICS, Pages
from paceline.wire.http import HttpRequest, Reply


class Gateway:
    """One engine behind a server. `handle` is the server's handler; `serve_with` replaces what it answers with."""

    def __init__(self, engine: Engine, *, door: Door | None = None, pages: Pages | None = None) -> None:
        self.pages = pages or Pages(state=self._state)
        self.serve_with(engine, door)

    def serve_with(self, engine: Engine, door: Door | None) -> None:
        """Answer new calls with these; calls under way go on with what they began with."""
        self.engine, self.door = engine, door
        self.pages.door = door

    def handle(self, request: HttpRequest) -> Reply | Awaitable[Reply]:
        """Answer one request."""
        target = request.target
        if target.startswith("/-/") or target == METRICS:
            return self.pages.answer(request)
        if self.door is None:
            return self.engine.handle(request)
        caller = self.door.admit(request)
        if isinstance(caller, Refusal):
            return self.pages.refuse(request, caller)
        return self.engine.handle(request, caller)

    def _state(self) -> Mapping[str, Any]:
        return self.engine.state()
