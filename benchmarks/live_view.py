"""What watching a load costs the load: 10,000 requests/s with nothing shown, with plain lines and with the live screen.

    python -m benchmarks.live_view --json [--quick]

modes        in turns, so that all meet the same neighbours: how late requests were sent, and the generator's CPU
standing_ms  a snapshot with what is computed and sent from it, four times a second, in the generator's own process

The live screen is drawn on a terminal of 100 by 40 that somebody reads. Generator and server have a core each, the
display has what they leave. Root has both go before all other work on the machine.
"""

import argparse
import contextlib
import fcntl
import os
import pty
import statistics
import struct
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import msgspec
import psutil
import uvloop

from benchmarks._rig import cores, pin, prefer
from benchmarks._witness import witness
from paceline.load.driver import drive
from paceline.load.progress import LIVE, NONE, PLAIN, show_progress
from paceline.load.scenario import Scenario
from paceline.load.snapshot import Snapshot
from paceline.store.folder import create_run

MODES = (NONE, PLAIN, LIVE)
RATE_PER_S = 10_000.0
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object (also the default)")
    parser.add_argument("--quick", action="store_true", help="shorter runs, two rounds")
    args = parser.parse_args()
    everywhere = os.sched_getaffinity(0)
    duration_s, rounds = (3.0, 2) if args.quick else (5.0, 7)
    runs: dict[str, list[Figures]] = {mode: [] for mode in MODES}
    with witness("fixed", 0.02) as url, terminal() as stream:
        is_preferred = prefer(psutil.Process())
        for turn in range(-1, rounds):
            for mode in MODES:
                os.sched_setaffinity(0, everywhere)  # for the display, which inherits it
                figures = watched(mode, stream, url, duration_s)
                if turn >= 0:  # the first one warms up
                    runs[mode].append(figures)
    result = {
        "machine": {"cpus": os.cpu_count(), "load_average": os.getloadavg()[0], "python": sys.version.split()[0]},
        "rate_per_s": RATE_PER_S,
        "is_preferred": is_preferred,
        "rounds": rounds,
        "modes": {mode: summed_up(found) for mode, found in runs.items()},
    }
    print(msgspec.json.encode(result).decode())


def watched(mode: str, stream: TextIO, url: str, duration_s: float) -> Figures:
    """One run, and how long the generator's process spent on telling how it goes."""
    told_s: list[float] = []
    scenario = Scenario(name="open", model="open", rate_per_s=RATE_PER_S, duration_s=duration_s)
    with tempfile.TemporaryDirectory() as folder, show_progress(mode, stream) as progress:

        def timed(snapshot: Snapshot) -> None:
            began_s = time.perf_counter()
            progress(snapshot)
            told_s.append(time.perf_counter() - began_s)

        pin(cores()[0])
        run = create_run(Path(folder), scenario.name)
        info = uvloop.run(drive(scenario, url, run, progress=None if mode == NONE else timed))
    return {
        "lag_p50_ms": (info.lag_p50_s or 0.0) * 1e3,
        "lag_p99_ms": (info.lag_p99_s or 0.0) * 1e3,
        "cpu_ratio": info.generator_cpu_ratio or 0.0,
        "standing_ms": statistics.median(told_s) * 1e3 if told_s else 0.0,
    }


def summed_up(runs: list[Figures]) -> Figures:
    """Medians, and the best run's lag: a neighbour only ever makes it worse."""
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {**medians, "least_lag_p99_ms": min(run["lag_p99_ms"] for run in runs)}


@contextlib.contextmanager
def terminal() -> Iterator[TextIO]:
    """A terminal that somebody reads, on the other core."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))

    def read() -> None:
        with contextlib.suppress(OSError):
            while os.read(outer, 1 << 16):
                pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with os.fdopen(inner, "w") as stream:
        yield stream
    reader.join(timeout=5)
    os.close(outer)


if __name__ == "__main__":
    main()
