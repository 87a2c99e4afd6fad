"""One page of metrics for several processes: each writes what it counted to a file, and whoever is asked adds them up.

A process that takes the place of a dead one goes on from its file, and a process that is asked writes its own file
before it answers; so what was once shown never becomes less.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from paceline.gateway.metrics.counts import Metrics, Snapshot, merged

WRITE_S = 1.0
_FRESH_S = 3 * WRITE_S  # older: its process is gone or stuck, its gauges say nothing


class SharedMetrics:
    """The metrics of process `number`, and the sum over all that share `folder`. None: there is only this one."""

    def __init__(
        self,
        metrics: Metrics,
        folder: Path | None = None,
        number: int | str = 0,
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics = metrics
        self._folder = folder
        self._file = folder / f"{number}.metrics" if folder is not None else None
        self._now_s = now_s
        self._wrote_s = 0.0

    def resume(self) -> None:
        """Go on from what a process of this number counted before. Call once, before counting."""
        snapshot = _read(self._file) if self._file is not None else None
        if snapshot is not None:
            self.metrics.restore(snapshot)

    def write(self) -> None:
        """Write the file if there is news, or it grows old. A disk that refuses costs the news, not the service."""
        now_s = self._now_s()
        if self._file is None or not (self.metrics.changed or now_s - self._wrote_s >= WRITE_S):
            return
        data = msgspec.msgpack.encode(self.metrics.snapshot())
        temporary = self._file.with_suffix(".new")
        with contextlib.suppress(OSError):
            temporary.write_bytes(data)
            os.replace(temporary, self._file)  # noqa: PTH105 - one call less on a path that runs every second
            self._wrote_s = now_s

    def whole(self) -> Snapshot:
        """What all processes counted, up to now for this one and up to WRITE_S ago for the others."""
        if self._folder is None:
            return self.metrics.snapshot()
        self.write()
        others = [_read(path) for path in sorted(self._folder.glob("*.metrics")) if path != self._file]
        snapshots = [self.metrics.snapshot(), *(snapshot for snapshot in others if snapshot is not None)]
        return merged(snapshots, now_s=self._now_s(), fresh_s=_FRESH_S)


def _read(path: Path) -> Snapshot | None:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Snapshot)
    except (OSError, msgspec.DecodeError):  # not written yet
        return None
