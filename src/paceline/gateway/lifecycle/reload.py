"""Making what answers calls from a configuration, and replacing it while calls are under way.

New calls are answered by the new engine behind the new door; the old engine keeps its connections until its last call
is over. What did not change is kept: the engine whole, or the answers it remembers.
"""

import asyncio
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from paceline.accelerate.engine import Engine
from paceline.accelerate.record import Listener
from paceline.accelerate.routing.providers import Providers
from paceline.accelerate.routing.targets import credential_of
from paceline.clock import Clock
from paceline.gateway.config import GatewayConfig, credentials, policy_of
from paceline.gateway.keys.door import Door
from paceline.gateway.keys.quota import Meter
from paceline.gateway.keys.table import Table
from paceline.gateway.pages import Pages
from paceline.gateway.service import Gateway
from paceline.wire.client import Timeouts
from paceline.wire.clients import client_for, proxy_for

_LOOK_S = 0.5  # how often an engine that was replaced is asked whether it is done
_NEEDS_RESTART = ("host", "port", "workers", "access_log", "connections", "body_bytes")


class Composition:
    """The gateway of one process as its configuration wants it. `apply` makes and replaces, `close` ends everything.

    Args:
        listener: Hears of every finished call.
        table, process: The cells of the keys' meters, and which are this process's.
        speed: A simulated provider runs that many times faster; time limits are at its real pace.
        detail: The listener wants to know the parts of each prompt.
        tapes: And its records to hold request and answer.
    """

    def __init__(
        self,
        listener: Listener,
        pages: Pages,
        table: Table,
        process: int,
        *,
        clock: Clock,
        speed: float = 1.0,
        detail: bool = False,
        tapes: bool = False,
    ) -> None:
        self._listener, self._pages, self._table, self._process = listener, pages, table, process
        self._clock, self._speed, self._detail, self._tapes = clock, speed, detail, tapes
        self._retiring: set[asyncio.Task[None]] = set()
        self.config: GatewayConfig | None = None
        self._made_of: tuple[object, ...] | None = None
        self.gateway: Gateway | None = None

    def apply(self, config: GatewayConfig, rows: Mapping[str, int]) -> Gateway:
        """Answer new calls by `config`; `rows`: where the table keeps each key's use.

        Raises ConfigError (and leaves everything as it was) when a URL or a variable is wrong.
        """
        door = self._door(config, rows)
        old = self.gateway.engine if self.gateway is not None else None
        made_of = _made_of(config)
        engine = old if old is not None and made_of == self._made_of else self._engine(config, old)
        if self.gateway is None:
            self.gateway = Gateway(engine, door=door, pages=self._pages)
        else:
            if old is not None and engine is not old:
                task = asyncio.get_running_loop().create_task(_retire(old))  # awaited by `close`
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)
            self.gateway.serve_with(engine, door)
        self.config, self._made_of = config, made_of
        return self.gateway

    async def close(self) -> None:
        """Cut what is left of all engines."""
        for task in list(self._retiring):
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        if self.gateway is not None:
            await self.gateway.engine.close()

    def _door(self, config: GatewayConfig, rows: Mapping[str, int]) -> Door | None:
        secrets = credentials(config, os.environ)
        if not config.wants_keys:
            return Door(None, secrets) if secrets else None
        meters = [(key, Meter(key, self._table, rows[key.id], self._process)) for key in config.keys]
        return Door(meters, secrets)

    def _engine(self, config: GatewayConfig, old: Engine | None) -> Engine:
        server = config.server
        timeouts = Timeouts(
            connect_s=server.connect_s,
            first_byte_s=server.first_byte_s / self._speed,
            silence_s=server.silence_s / self._speed,
        )
        http2 = {urlsplit(url).netloc for url in server.http2_servers}
        return Engine(
            Providers(
                openai=config.url_of("openai"), anthropic=config.url_of("anthropic"), gemini=config.url_of("gemini")
            ),
            policy_of(config),
            client=lambda url: client_for(
                url, proxy=proxy_for(url, os.environ), http2=urlsplit(url).netloc in http2, timeouts=timeouts
            ),
            takes_over=old,
            clock=self._clock,
            speed=self._speed,
            listener=self._listener,
            detail=self._detail,
            tapes=self._tapes,
        )


def needs_restart(old: GatewayConfig, new: GatewayConfig) -> list[str]:
    """Names of settings that differ and that a running gateway cannot change."""
    return [name for name in _NEEDS_RESTART if getattr(old.server, name) != getattr(new.server, name)]


def _made_of(config: GatewayConfig) -> tuple[object, ...]:
    """Everything an engine is made of, the credentials of deployments included: files of them may have changed."""
    keys = [credential_of(deployment, os.environ) for deployment in config.policy.routing.deployments]
    server = config.server
    urls = [config.url_of(name) for name in ("openai", "anthropic", "gemini")]
    return policy_of(config), keys, urls, server.http2_servers, server.connect_s, server.first_byte_s, server.silence_s


async def _retire(engine: Engine) -> None:
    """Close an engine that was replaced, once its last call is over."""
    try:
        while engine.is_busy:  # noqa: ASYNC110 - engines tell nobody
            await asyncio.sleep(_LOOK_S)
    finally:
        await engine.close()
