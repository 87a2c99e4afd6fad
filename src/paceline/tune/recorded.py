"""RecordedService: an application under recording, with the gateway in front of its provider and the sampler beside."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import msgspec

from paceline.accelerate.policy import Policy
from paceline.errors import ServiceError
from paceline.gateway.config import BASE_URL_ENV, BASE_URL_PATH
from paceline.record.launcher import LOG, Service, free_port, launch, recording_environment, refuse_taken_port
from paceline.record.sampler import INTERVAL_S, Sampler
from paceline.store.folder import RunFolder
from paceline.store.spool import Spool

GATEWAY_LOG = "gateway.log"
_GATEWAY_READY_S = 60.0  # it takes a second; a busy machine is not a reason to give up
_DRAIN_S = 4.0  # of the gateway, for calls of an application that is gone
_POLL_S = 0.02


class _Announcement(msgspec.Struct):
    url: str


class RecordedService:
    """Application, gateway and sampler for one run, for the length of an `async with` block.

    On leaving, the application is stopped (SIGTERM, SIGKILL after `stop_timeout_s`), then the gateway; every spool is
    flushed. The run is not sealed: call `run.finish` afterwards.

    Args:
        run: Where everything is written.
        command: What to start; `{port}` and `{python}` are filled in, in `env` too.
        cwd: Where to start it; files below count as the application's own code.
        env: Additional variables.
        base_url_env: Variable that points the application at its provider; it gets the gateway's URL with `/v1`.
        ready_url: Path on the application's port, or a whole URL; None: not waited for.
        ready_timeout_s: How long it may take to get ready, wall seconds.
        stop_timeout_s: How long it may take to stop.
        upstream: One server for all providers' calls, without `/v1`; or a URL for each provider, whose own variables
            (BASE_URL_ENV) then point at the gateway; None: no gateway, the application's own setting counts.
        policy: What the gateway does; None: pass on.
        answers: Keep calls with their answers, in clear, for `paceline cache warm`.
        generator: Sample this process too (it drives the load).

    Raises (on entering):
        ServiceError: the application or the gateway did not start. ConfigError: there is no such program.
    """

    def __init__(
        self,
        run: RunFolder,
        *,
        command: Sequence[str],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        base_url_env: str = "OPENAI_BASE_URL",
        ready_url: str | None = None,
        ready_timeout_s: float = 90.0,
        stop_timeout_s: float = 10.0,
        upstream: str | Mapping[str, str] | None = None,
        policy: Policy | None = None,
        answers: bool = False,
        generator: bool = True,
    ) -> None:
        self._run = run
        self._cwd = cwd or Path.cwd()
        filled = {"port": str(free_port()), "python": sys.executable}
        self._command = [_fill(part, filled) for part in command]
        self._env = {name: _fill(value, filled) for name, value in (env or {}).items()}
        self._base_url_env = base_url_env
        self._ready_timeout_s, self._stop_timeout_s = ready_timeout_s, stop_timeout_s
        self._upstream, self._policy, self._answers = upstream, policy, answers
        self._generator = generator
        self._gateway: Service | None = None
        self._service: Service | None = None
        self._sampler: Sampler | None = None
        self._samples: Spool | None = None
        uses_port = any("{port}" in part for part in [*command, *(env or {}).values()])
        self.url, self._ready_url = _urls(ready_url, filled["port"] if uses_port else None)
        self.gateway_url: str | None = None

    @property
    def pid(self) -> int:
        """Process id of the application's first process."""
        return self._started().pid

    @property
    def exit_code(self) -> int | None:
        """The application's exit code, None while it runs."""
        return self._started().exit_code

    async def wait(self) -> int:
        """Return the application's exit code when it has ended by itself."""
        return await self._started().wait()

    def check(self) -> None:
        """Raise ServiceError when the application or the gateway has ended."""
        for service in (self._service, self._gateway):
            ended = service.ended() if service is not None else None
            if ended:
                raise ServiceError(ended)

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second interrupt must not leave half of it running.
        await asyncio.shield(self._stop())

    async def _start(self) -> None:
        if self._ready_url:
            refuse_taken_port(self._ready_url)
        self._samples = self._run.spool("resources", "sampler")
        self._sampler = Sampler(self._samples, self._run.now_s, INTERVAL_S / max(1.0, self._run.info.speed))
        if self._generator:
            self._sampler.watch_self()
        env = {**os.environ, **self._env}
        if self._upstream is not None:
            self.gateway_url = await self._start_gateway(self._upstream)
            if isinstance(self._upstream, str):
                env[self._base_url_env] = f"{self.gateway_url}/v1"
            else:
                env.update({BASE_URL_ENV[name]: self.gateway_url + BASE_URL_PATH[name] for name in self._upstream})
        env.update(recording_environment(self._run, self._cwd, self.gateway_url, self._env.get("PYTHONPATH")))
        self._service = launch(self._command, cwd=self._cwd, env=env, log=self._run.path / LOG)
        self._sampler.watch("app", self._service.pid)
        self._sampler.start()
        if self._ready_url:
            await self._service.ready(self._ready_url, self._ready_timeout_s)

    async def _start_gateway(self, upstream: str | Mapping[str, str]) -> str:
        path = self._run.path
        command = [sys.executable, "-m", "paceline", "serve", "--json", "--port", "0"]
        command += ["--run", str(path.resolve()), "--drain-s", f"{_DRAIN_S:g}"]
        command += ["--record-answers"] * self._answers
        if isinstance(upstream, str):
            command += ["--upstream", upstream]
        else:
            config = path / "gateway.toml"
            said = [f"[providers.{name}]\nurl = {json.dumps(url)}\n" for name, url in upstream.items()]
            config.write_text("".join(said))
            command += ["--config", str(config.resolve())]
        if self._policy is not None:
            file = path / "policy.json"
            file.write_bytes(msgspec.json.format(msgspec.json.encode(self._policy)))
            command += ["--policy", str(file.resolve())]
        self._gateway = launch(command, cwd=Path.cwd(), env=os.environ, log=path / GATEWAY_LOG)
        assert self._sampler is not None  # noqa: S101 made before the gateway
        self._sampler.watch("gateway", self._gateway.pid)
        return await _announced(self._gateway)

    async def _stop(self) -> None:
        for service, grace_s in ((self._service, self._stop_timeout_s), (self._gateway, 5.0)):
            if service is not None:
                await service.stop(grace_s)
        if self._sampler is not None:
            self._sampler.close()
        if self._samples is not None:
            self._samples.close()

    def _started(self) -> Service:
        if self._service is None:
            msg = "the service was not started: use RecordedService in an `async with` block"
            raise RuntimeError(msg)
        return self._service


async def _announced(gateway: Service) -> str:
    """The URL that the gateway prints as its first line once it listens."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + _GATEWAY_READY_S
    while loop.time() < deadline_s and gateway.exit_code is None:
        for line in gateway.log.read_bytes().splitlines(keepends=True):
            if line.startswith(b"{") and line.endswith(b"\n"):
                return msgspec.json.decode(line, type=_Announcement).url
        await asyncio.sleep(_POLL_S)
    said = gateway.log.read_text(errors="replace").strip().splitlines()
    reason = said[-1].removeprefix("paceline serve: ") if said else f"it said nothing within {_GATEWAY_READY_S:g} s"
    msg = f"the gateway did not start: {reason}"
    raise ServiceError(msg)


def _fill(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _urls(ready_url: str | None, port: str | None) -> tuple[str, str | None]:
    """(base URL of the application, where to ask whether it is ready)."""
    base = f"http://127.0.0.1:{port}" if port else ""
    if ready_url is None:
        return base, None
    if "://" in ready_url:
        whole = ready_url.replace("{port}", port or "")
        parts = urlsplit(whole)
        return f"{parts.scheme}://{parts.netloc}", whole
    return base, f"{base}/{ready_url.lstrip('/')}" if base else None
