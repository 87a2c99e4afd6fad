"""What a target uses, where it is not a process tree of ours: who listens on a port, metrics endpoints, containers."""

import contextlib
import http.client
import math
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from paceline.errors import ConfigError
from paceline.model.request import ResourceSample

_ENDPOINT_S = 1.0  # least time between two scrapes
_TIMEOUT_S = 2.0
_MOST_BYTES = 4 * 1024 * 1024  # of a page of metrics


def listening_pid(port: int) -> int:
    """The process that listens on this TCP port; of several (workers that share it) the oldest ancestor.

    Raises:
        ConfigError: nobody does, or it is somebody else's and we may not see whose.
    """
    try:
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    except psutil.AccessDenied as error:  # macOS, for processes of others
        msg = f"not allowed to see who listens on port {port}; give --watch-pid"
        raise ConfigError(msg) from error
    found = [c for c in listening if c.laddr and c.laddr.port == port]
    pids = {c.pid for c in found if c.pid is not None}
    if not pids:
        why = "it is another user's: give --watch-pid" if found else "nothing listens there"
        msg = f"no process to watch on port {port}: {why}"
        raise ConfigError(msg)
    for pid in sorted(pids):
        with contextlib.suppress(psutil.Error):
            if not pids & {parent.pid for parent in psutil.Process(pid).parents()}:
                return pid
    return min(pids)


class MetricsEndpoint:
    """A page in Prometheus' text format with the `process_*` names that its client libraries write.

    Not thread-safe. Whoever makes it closes it.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            msg = f"--watch-metrics needs a URL such as http://127.0.0.1:9090/metrics; got {url}"
            raise ConfigError(msg)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=_TIMEOUT_S)
        self._target = (parts.path or "/metrics") + (f"?{parts.query}" if parts.query else "")
        self._next_s = -math.inf
        self.failed = 0
        self.problem: str | None = None  # of the last reading that failed

    def read(self, service: str, at_s: float, now_s: float) -> ResourceSample | None:
        """A sample, at most one a second; None in between, and when the page cannot be had or has no memory on it."""
        if now_s < self._next_s:
            return None
        self._next_s = now_s + _ENDPOINT_S
        try:
            self._connection.request("GET", self._target, headers={"accept": "text/plain"})
            answer = self._connection.getresponse()
            page = answer.read(_MOST_BYTES)
            if answer.read(1):
                self._connection.close()
            sample = sample_of(page.decode("utf-8", "replace"), service, at_s) if answer.status == 200 else None
            problem = None if sample else f"status {answer.status}, no process_resident_memory_bytes"
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()
            sample, problem = None, str(error) or type(error).__name__
        if problem is not None:
            self.failed += 1
            self.problem = problem
        return sample

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def sample_of(page: str, service: str, at_s: float) -> ResourceSample | None:
    """The `process_*` figures of a page of metrics, summed over their labels; None without resident memory."""
    found: dict[str, float] = {}
    for line in page.splitlines():
        name, _, rest = line.partition("{") if "{" in line.split(" ", 1)[0] else line.partition(" ")
        if name.startswith("process_"):
            words = (rest.rpartition("}")[2] if "}" in rest else rest).split()
            with contextlib.suppress(ValueError, IndexError):
                found[name] = found.get(name, 0.0) + float(words[0])
    rss_bytes = found.get("process_resident_memory_bytes")
    if rss_bytes is None or not math.isfinite(rss_bytes):
        return None

    def count(name: str) -> int | None:
        value = found.get(name)
        return int(value) if value is not None and math.isfinite(value) else None

    return ResourceSample(
        at_s=at_s,
        service=service,
        processes=1,
        threads=count("process_threads") or 0,
        cpu_s=found.get("process_cpu_seconds_total", 0.0),
        rss_bytes=int(rss_bytes),
        descriptors=count("process_open_fds"),
        received_bytes=count("process_network_receive_bytes_total"),
        sent_bytes=count("process_network_transmit_bytes_total"),
    )


class Cgroup:
    """A container by the folder of its control group (version 2), /sys/fs/cgroup/system.slice/docker-ID.scope.

    Memory is what the group cannot give back: `memory.current` without the inactive file cache, as in `docker stats`.

    Raises:
        ConfigError: it is not such a folder, or we may not read it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._memory_bytes()
        except (OSError, ValueError) as error:
            msg = f"{folder} is not a control group (version 2) that we can read: {error}"
            raise ConfigError(msg) from error

    def read(self, service: str, at_s: float, now_s: float) -> ResourceSample | None:
        """A sample; None when the container is gone."""
        try:
            cpu = self._fields("cpu.stat")
            disk = self._disk_bytes()
            return ResourceSample(
                at_s=at_s,
                service=service,
                processes=len(self._text("cgroup.procs").split()),
                threads=int(self._text("pids.current")) if (self._folder / "pids.current").exists() else 0,
                cpu_s=cpu.get("usage_usec", 0) / 1e6,
                rss_bytes=self._memory_bytes(),
                disk_read_bytes=disk[0],
                disk_write_bytes=disk[1],
            )
        except (OSError, ValueError):
            return None

    def _memory_bytes(self) -> int:
        return max(0, int(self._text("memory.current")) - self._fields("memory.stat").get("inactive_file", 0))

    def _disk_bytes(self) -> tuple[int, int]:
        words = self._text("io.stat").split() if (self._folder / "io.stat").exists() else []
        totals = {
            name: sum(int(w.partition("=")[2]) for w in words if w.startswith(name)) for name in ("rbytes=", "wbytes=")
        }
        return totals["rbytes="], totals["wbytes="]

    def _fields(self, name: str) -> dict[str, int]:
        pairs = (line.split() for line in self._text(name).splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}

    def _text(self, name: str) -> str:
        return (self._folder / name).read_text()
