"""Resource sampler: memory, CPU, threads, descriptors, disk and network of process trees, read from outside."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import psutil

from paceline.errors import PacelineError
from paceline.model.request import ResourceSample
from paceline.store.spool import Spool

INTERVAL_S = 0.25
MIN_INTERVAL_S = 0.05
_RESCAN_S = 1.0  # how often new child processes are looked for; a scan reads all of /proc
_FLUSH_S = 0.25
_MOST_LINKS = 5_000  # descriptors of one process looked at for sockets: 2 us each
ProcessKey = tuple[int, float]  # pid and creation time: pids are used again


class Source(Protocol):
    """Something with resources: a process tree, a container, an endpoint with metrics."""

    def read(self, service: str, at_s: float, now_s: float) -> ResourceSample | None:
        """A sample at `at_s` on the run's clock; None: nothing to read now. Never raises, may be slow."""
        ...


class TreeCpu:
    """CPU seconds of a process tree that never go backward, though processes come and go.

    Each living process counts by its growth. A process that ended between two readings is made up for when its parent
    has collected it: the parent's children time then grows by its whole life, of which what was seen is taken off.
    """

    def __init__(self) -> None:
        self.total_s = 0.0
        self._seen: dict[ProcessKey, tuple[float, float]] = {}

    def update(self, readings: dict[ProcessKey, tuple[float, float]]) -> float:
        """Take in (own seconds, collected children's seconds) of every living process; return the total so far."""
        collected = 0.0
        for key, (own_s, children_s) in readings.items():
            before_own_s, before_children_s = self._seen.get(key, (0.0, 0.0))
            self.total_s += max(0.0, own_s - before_own_s)
            collected += max(0.0, children_s - before_children_s)
        gone = sum(own + children for key, (own, children) in self._seen.items() if key not in readings)
        self.total_s += max(0.0, collected - gone)
        self._seen = readings
        return self.total_s


class GrowingSum:
    """Sums of counters over processes that come and go: never backward, what ended stays counted."""

    def __init__(self) -> None:
        self.totals = [0, 0]
        self._seen: dict[ProcessKey, tuple[int, int]] = {}

    def update(self, readings: dict[ProcessKey, tuple[int, int]]) -> list[int]:
        """Take in two counters of every living process; the totals so far."""
        for key, counts in readings.items():
            before = self._seen.get(key, (0, 0))
            self.totals = [t + max(0, c - b) for t, c, b in zip(self.totals, counts, before, strict=True)]
        self._seen = readings
        return self.totals


class Tree:
    """One process with its descendants, or alone.

    Args:
        pid: Its root.
        alone: Without descendants.
        thorough: Sockets, disk and network too: more files of /proc a sample.

    Raises:
        psutil.NoSuchProcess: it is gone.
    """

    def __init__(self, pid: int, *, alone: bool = False, thorough: bool = False) -> None:
        self._thorough = thorough
        self._disk = GrowingSum()
        self._sockets: int | None = None
        self._root = psutil.Process(pid)
        self._alone = alone
        self._members: list[psutil.Process] = [self._root]
        self._scanned_s = float("-inf")
        self._cpu = TreeCpu()

    def read(self, service: str, at_s: float, now_s: float) -> ResourceSample | None:
        """A sample, or None when the whole tree has ended."""
        if not self._alone and now_s - self._scanned_s >= _RESCAN_S:
            with contextlib.suppress(psutil.Error):
                self._members = [self._root, *self._root.children(recursive=True)]
            self._scanned_s = now_s
            self._sockets = sum(map(_sockets, self._members)) if self._thorough else None
        disk: dict[ProcessKey, tuple[int, int]] = {}
        readings: dict[ProcessKey, tuple[float, float]] = {}
        rss = threads = descriptors = 0
        for process in self._members:
            # Gone or not ours between two look-ups: it simply does not count.
            with contextlib.suppress(psutil.Error, OSError), process.oneshot():
                cpu = process.cpu_times()
                children_s = (
                    0.0 if self._alone else getattr(cpu, "children_user", 0.0) + getattr(cpu, "children_system", 0.0)
                )
                readings[(process.pid, process.create_time())] = (cpu.user + cpu.system, children_s)
                rss += process.memory_info().rss
                threads += process.num_threads()
                descriptors += process.num_fds() if hasattr(process, "num_fds") else 0
                if self._thorough and hasattr(process, "io_counters"):
                    counted = process.io_counters()
                    disk[(process.pid, process.create_time())] = (counted.read_bytes, counted.write_bytes)
        if not readings:
            return None
        read, written = self._disk.update(disk) if disk else (None, None)
        received, sent = _network(self._root.pid) if self._thorough else (None, None)
        return ResourceSample(
            at_s=at_s,
            service=service,
            processes=len(readings),
            threads=threads,
            cpu_s=self._cpu.update(readings),
            rss_bytes=rss,
            descriptors=descriptors,
            sockets=self._sockets,
            disk_read_bytes=read,
            disk_write_bytes=written,
            received_bytes=received,
            sent_bytes=sent,
        )


def _sockets(process: psutil.Process) -> int:
    """How many of its descriptors are sockets; 0 where we may not look."""
    count = 0
    with contextlib.suppress(OSError), os.scandir(f"/proc/{process.pid}/fd") as entries:
        for place, entry in enumerate(entries):
            if place >= _MOST_LINKS:
                break
            with contextlib.suppress(OSError):
                count += str(Path(entry.path).readlink()).startswith("socket:")
    return count


def _network(pid: int) -> tuple[int, int] | tuple[None, None]:
    """Bytes received and sent in the process's network namespace, loopback left out; None where it is our own."""
    try:
        if Path(f"/proc/{pid}/ns/net").samefile("/proc/self/ns/net"):
            return None, None
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    except OSError:
        return None, None
    return network_bytes(lines)


def network_bytes(lines: Iterable[str]) -> tuple[int, int]:
    """Sums of received and sent bytes over the interfaces in lines of /proc/net/dev, loopback left out."""
    counts = [(name.strip(), rest.split()) for name, _, rest in (line.partition(":") for line in lines)]
    real = [fields for name, fields in counts if name != "lo" and len(fields) >= 9]
    return sum(int(fields[0]) for fields in real), sum(int(fields[8]) for fields in real)


class Sampler:
    """A thread that samples trees into a spool until closed. Whoever starts it closes it; the spool stays the owner's.

    Args:
        spool: Where samples go.
        now_s: Wall seconds since the start of the run.
        interval_s: Between samples; not below 0.05.
    """

    def __init__(self, spool: Spool, now_s: Callable[[], float], interval_s: float = INTERVAL_S) -> None:
        self._spool = spool
        self._now_s = now_s
        self._interval_s = max(MIN_INTERVAL_S, interval_s)
        self._trees: dict[str, Source] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.latest: dict[str, ResourceSample] = {}  # by service

    def watch(self, service: str, pid: int, *, alone: bool = False) -> None:
        """Add a process tree (`alone`: that process only). A pid that is gone already is ignored."""
        with contextlib.suppress(psutil.Error):
            self._trees[service] = Tree(pid, alone=alone)

    def add(self, service: str, source: Source) -> None:
        """Sample this source too."""
        self._trees[service] = source

    def watch_self(self, service: str = "generator") -> None:
        """Add this process without its children, which have names of their own."""
        self.watch(service, os.getpid(), alone=True)

    def start(self) -> None:
        """Begin sampling."""
        self._thread = threading.Thread(target=self._run, name="paceline-sampler", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take a last sample, flush and stop. Never raises; a disk that refuses is kept in `error`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self._sample(self._trees.items())
        self._flush()

    def _run(self) -> None:
        flushed_s = 0.0
        next_s = time.monotonic()
        while not self._stop.wait(max(0.0, next_s - time.monotonic())):
            self._sample(list(self._trees.items()))
            if time.monotonic() - flushed_s >= _FLUSH_S:
                self._flush()
                flushed_s = time.monotonic()
            next_s = max(next_s + self._interval_s, time.monotonic())

    def _sample(self, trees: Iterable[tuple[str, Source]]) -> None:
        for service, tree in trees:
            sample = tree.read(service, self._now_s(), time.monotonic())
            if sample is not None:
                self.latest[service] = sample
                self._spool.append(sample)

    def _flush(self) -> None:
        try:
            self._spool.flush()
        except (OSError, PacelineError) as error:
            self.error = error
