"""Resource sampler: memory, CPU, threads and descriptors of process trees, read from outside."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable

import psutil

from paceline.errors import PacelineError
from paceline.model.request import ResourceSample
from paceline.store.spool import Spool

INTERVAL_S = 0.25
MIN_INTERVAL_S = 0.05
_RESCAN_S = 1.0  # how often new child processes are looked for; a scan reads all of /proc
_FLUSH_S = 0.25
ProcessKey = tuple[int, float]  # pid and creation time: pids are used again


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


class Tree:
    """One process with its descendants, or alone."""

    def __init__(self, pid: int, *, alone: bool = False) -> None:
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
        if not readings:
            return None
        return ResourceSample(
            at_s=at_s,
            service=service,
            processes=len(readings),
            threads=threads,
            cpu_s=self._cpu.update(readings),
            rss_bytes=rss,
            descriptors=descriptors,
        )


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
        self._trees: dict[str, Tree] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.error: Exception | None = None

    def watch(self, service: str, pid: int, *, alone: bool = False) -> None:
        """Add a process tree (`alone`: that process only). A pid that is gone already is ignored."""
        with contextlib.suppress(psutil.Error):
            self._trees[service] = Tree(pid, alone=alone)

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

    def _sample(self, trees: Iterable[tuple[str, Tree]]) -> None:
        for service, tree in trees:
            sample = tree.read(service, self._now_s(), time.monotonic())
            if sample is not None:
                self._spool.append(sample)

    def _flush(self) -> None:
        try:
            self._spool.flush()
        except (OSError, PacelineError) as error:
            self.error = error
