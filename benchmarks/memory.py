"""Does the gateway's memory stay flat over a million calls?

    python -m benchmarks.memory --json [--quick]

Resident memory of `paceline serve` (one worker; cache of 2 MB, single-flight, metrics and cost on) while it answers
1,000,000 chat calls of 1 KB on 32 kept-alive connections: every second one seen before, every tenth streamed, the rest
new. The cache is full long before the first look, so what grows from there on is not meant to. Nothing is timed, so the
machine may have other work. `growth_ratio` is 100 % over 10 %, `late_growth_ratio` 100 % over 50 %; flat: neither is
above 1.05, the size of one arena that the allocator took and has not given back.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from benchmarks._rig import call, cores, drive, machine, python_upstream
from benchmarks.gateway import SMALL, gateway

TENTHS = 10
FLAT = 1.05
COUNT = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON (it always does)")
    parser.add_argument("--quick", action="store_true", help="30,000 calls")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = {"machine": machine(), **measure(Path(folder), 30_000 if args.quick else COUNT)}
    print(json.dumps(result, indent=2))


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Resident memory after each tenth of `count` calls."""
    with python_upstream(cores()[0]) as (_, upstream), gateway(folder, upstream, SMALL) as (process, port):
        rss_mb = []
        for tenth in range(TENTHS):
            uvloop.run(drive(port, mixed(count * tenth // TENTHS, count * (tenth + 1) // TENTHS)))
            rss_mb.append(round(process.memory_info().rss / 1e6, 1))
    growth, late = rss_mb[-1] / rss_mb[0], rss_mb[-1] / rss_mb[TENTHS // 2 - 1]
    return {
        "requests": count,
        "rss_mb_by_tenth": rss_mb,
        "rss_mb_at_10_50_100_percent": [rss_mb[0], rss_mb[TENTHS // 2 - 1], rss_mb[-1]],
        "growth_ratio": round(growth, 3),
        "late_growth_ratio": round(late, 3),
        "is_flat": max(growth, late) <= FLAT if count >= COUNT else None,  # caches and memos fill in a shorter run
    }


def mixed(first: int, last: int) -> Iterator[bytes]:
    """Calls number `first` to `last`: every second one seen before, every tenth streamed."""
    again = call(None)
    for number in range(first, last):
        yield again if number % 2 else call(number, stream=number % 10 == 0)


if __name__ == "__main__":
    main()
