"""Starts a command recorded, waits until it is ready, and ends it with everything it started."""

import asyncio
import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import msgspec

import paceline
from paceline.errors import ConfigError, ServiceError
from paceline.record.bootstrap import APP_ROOT, GATEWAY, OFFSET, RUN, SERVICE
from paceline.store.folder import RunFolder

LOG = "service.log"
_OWN_PORTS = (20_000, 32_768)
_SITE = Path(__file__).with_name("_site")
_POLL_S = 0.05
_PROBE_TIMEOUT_S = 5.0
_TAIL_LINES = 12
_GONE_POLLS = 10  # half a second: killed children are usually gone at once, unless nobody collects them
_PR_SET_PDEATHSIG = 1
_PORT_WORDS = ("address already in use", "errno 98", "errno 48", "port is already", "eaddrinuse")
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before the fork that needs it


def recording_environment(
    run: RunFolder, cwd: Path, gateway: str | None = None, python_path: str | None = None, service: str = "app"
) -> dict[str, str]:
    """Variables that make a Python process record itself into `run`.

    Args:
        run: The run folder.
        cwd: Where the service starts; files below count as its own code.
        gateway: Base URL of the gateway, if there is one.
        python_path: The service's own PYTHONPATH; None: this process's.
        service: What its spans are called.
    """
    own_path = os.environ.get("PYTHONPATH", "") if python_path is None else python_path
    packages = {str(Path(module.__file__).parents[1]) for module in (paceline, msgspec) if module.__file__}
    return {
        RUN: str(run.path.resolve()),
        OFFSET: str(run.info.clock_offset_ns),
        SERVICE: service,
        APP_ROOT: str(cwd.resolve()),
        GATEWAY: gateway or "",
        "PACELINE_PACKAGES": os.pathsep.join(sorted(packages)),
        "PYTHONPATH": os.pathsep.join(p for p in (str(_SITE), own_path) if p),
        "PYTHONUNBUFFERED": "1",  # its log lines must be there when it dies
    }


class Service:
    """A running command. `stop` must be called, also after it ended by itself."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path, command: Sequence[str]) -> None:
        self._process = process
        self.log = log
        self.command = list(command)

    @property
    def pid(self) -> int:
        """Process id, and the id of its process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code as a shell shows it (128 + signal), None while it runs."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    async def wait(self) -> int:
        """Return its exit code when it has ended."""
        while (code := self.exit_code) is None:  # noqa: ASYNC110 a process has no event to wait for
            await asyncio.sleep(_POLL_S)
        return code

    async def ready(self, url: str, timeout_s: float) -> None:
        """Return when `url` answers with a status below 400.

        Raises:
            ServiceError: it ended first, or did not answer so within `timeout_s`.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        seen = "no connection"
        while True:
            if self.exit_code is not None:
                raise ServiceError(self._died())
            answer = await asyncio.to_thread(_probe, url, min(_PROBE_TIMEOUT_S, timeout_s))
            if answer is None:
                return
            seen = answer
            if loop.time() >= deadline_s:
                msg = (
                    f"{self.command[0]} was not ready after {timeout_s:g} s: {url} gave {seen}. "
                    f"Check ready_url, or raise ready_timeout_s{self._log_end()}"
                )
                raise ServiceError(msg)
            await asyncio.sleep(_POLL_S)

    async def stop(self, grace_s: float = 10.0) -> int:
        """End its process group: SIGTERM, then SIGKILL after `grace_s`. Returns the exit code."""
        if self.exit_code is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wait(), grace_s)
        self._signal(signal.SIGKILL)  # children that outlived it, too
        return await self.wait()

    def ended(self) -> str | None:
        """One sentence when it has ended, None while it runs."""
        if self.exit_code is None:
            return None
        return f"{self.command[0]} ended with exit code {self.exit_code} while it was measured{self._log_end()}"

    def _signal(self, number: int) -> bool:
        """Signal the group; false when nobody is left in it."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _died(self) -> str:
        tail = _tail(self.log)
        if any(words in line.lower() for line in tail for words in _PORT_WORDS):
            return f"{self.command[0]} could not start because its port is already in use{self._log_end()}"
        return f"{self.command[0]} ended with exit code {self.exit_code} before it was ready{self._log_end()}"

    def _log_end(self) -> str:
        tail = _tail(self.log)
        return ". It printed nothing" if not tail else ". Its last words:\n  " + "\n  ".join(tail)


def launch(command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> Service:
    """Start `command` in a process group of its own, its output going to `log`.

    It gets SIGTERM when this process dies, however that happens (Linux).

    Raises:
        ConfigError: there is no such program or folder.
    """
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 one prctl call on a library loaded before
            )
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            what = f"no such folder: {cwd}" if not cwd.is_dir() else f"cannot run {command[0]!r}: {error.strerror}"
            msg = f"{what}. Give the command as you would type it, after `--`"
            raise ConfigError(msg) from error
    return Service(process, log, command)


def _die_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


async def echo(log: Path, target: IO[Any]) -> None:
    """Copy what is appended to `log` to `target` (a text stream) until cancelled."""
    with log.open("r", errors="replace") as lines:
        while True:
            text = lines.read()
            if text:
                target.write(text)
                target.flush()
            else:
                await asyncio.sleep(_POLL_S)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses right now, and that no outgoing connection will take meanwhile.

    The system hands out local ports from 32768 up (49152 elsewhere), so the port is looked for below them: a service
    needs seconds to bind it, and a load test opens many connections in a second.
    """
    chosen = random.SystemRandom()
    for _ in range(100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", chosen.randrange(*_OWN_PORTS)))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    msg = f"no free port of 127.0.0.1 among {_OWN_PORTS[0]} to {_OWN_PORTS[1]}: stop what holds them"
    raise ServiceError(msg)


def refuse_taken_port(url: str) -> None:
    """Raise ServiceError when something already listens where the service is going to."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex((parts.hostname or "127.0.0.1", port)) == 0:
            msg = (
                f"port {port} is already in use: something answers at {url} before the service was started. "
                f"Stop it, or give the service another port"
            )
            raise ServiceError(msg)


def _probe(url: str, timeout_s: float) -> str | None:
    """None when `url` is fine, else what it gave."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s):  # noqa: S310 the user's own ready_url
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"status {error.code}"
    except OSError as error:
        reason = getattr(error, "reason", error)
        return f"no connection ({reason})" if not isinstance(reason, TimeoutError) else "no answer"
    except ValueError as error:
        msg = f"ready_url {url!r} is not a URL: {error}"
        raise ConfigError(msg) from error


def _tail(log: Path) -> list[str]:
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        return [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()][-_TAIL_LINES:]
