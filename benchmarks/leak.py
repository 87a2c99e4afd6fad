"""How right the leak verdict is: `python -m benchmarks.leak --json [--quick]`.

Synthetic: resident-set sizes at 1 Hz with noise of 0.8 MB that lasts 20 s, eight healthy kinds and seven that leak 0.5,
2 or 10 MB/min (the shapes of tests/stats/test_stats_leak.py), for 10 and 30 minutes. A false alarm is a healthy series
called "leak"; found is a leaking one called so. "Run longer" is neither.

Real: three HTTP servers in processes of their own, driven by `paceline load` at a constant rate and watched from
outside: one keeps a little of every request, one fills a cache up to its bound, one keeps nothing.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.stats.test_stats_leak import healthy, leaking, series, share

from paceline.stats.leak import LEAK, RUN_LONGER, leak_verdict

_FALSE_ALARM_BUDGET, _FOUND_BUDGET = 0.05, 0.77
_RATE_PER_S = 40
_KEPT_BYTES = 16 * 1024  # of each request, by the one that leaks: 38 MB a minute
_EXPECTED = {"leaking": ("leak",), "caching": ("steady", "spike"), "steady": ("steady", "spike")}


def synthetic(minutes: int, repeat: int, seed: int = 7) -> dict[str, Any]:
    """Verdicts by kind, and the shares that count."""
    rng = random.Random(seed)
    said: dict[bool, dict[str, Counter[str]]] = {False: {}, True: {}}
    for _ in range(repeat):
        for leaks, shapes in ((False, healthy(minutes, rng)), (True, leaking(minutes, rng, 1))):
            for name, shape in shapes.items():
                verdict = leak_verdict(*series(shape, minutes, 1, rng)).verdict
                said[leaks].setdefault(name, Counter())[verdict] += 1
    slowest = next(iter(said[True]))
    return {
        "series_per_kind": repeat,
        "false_alarm_ratio": share(said[False], LEAK),
        "healthy_run_longer_ratio": share(said[False], RUN_LONGER),
        "found_ratio": share(said[True], LEAK),
        "leaking_run_longer_ratio": share(said[True], RUN_LONGER),
        "found_half_mb_per_min_ratio": said[True][slowest][LEAK] / repeat,
        "verdicts": {name: dict(sorted(c.items())) for part in said.values() for name, c in part.items()},
    }


def real(duration_s: float) -> dict[str, Any]:
    """The verdict of `paceline load` on each of the three servers, driven at the same time."""
    with ThreadPoolExecutor(len(_EXPECTED)) as threads:
        found = dict(zip(_EXPECTED, threads.map(lambda kind: _verdict(kind, duration_s), _EXPECTED), strict=True))
    right = all(found[kind]["verdict"] in expected for kind, expected in _EXPECTED.items())
    return {"duration_s": duration_s, "rate_per_s": _RATE_PER_S, "all_right": right, **found}


def _verdict(kind: str, duration_s: float) -> dict[str, Any]:
    serving = [sys.executable, "-m", "benchmarks.leak", "--serve", kind, str(duration_s)]
    with (
        tempfile.TemporaryDirectory() as runs,
        subprocess.Popen(serving, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            load = ["load", url, "--rate", str(_RATE_PER_S), "--duration", str(duration_s), "--runs", runs, "--json"]
            watch = ["--watch-pid", str(server.pid)]
            done = subprocess.run(
                [sys.executable, "-m", "paceline", *load, *watch], capture_output=True, text=True, check=False
            )
            if done.returncode not in (0, 4):  # 4: the generator was late, which memory does not mind
                raise RuntimeError(done.stderr)
            figures = json.loads(done.stdout)["scenarios"][0]["figures"]
        finally:
            server.kill()
    return {
        "verdict": figures["memory_verdict"],
        "mb_per_1000_requests": figures["memory_growth_mb_per_1000"],
        "true_mb_per_1000_requests": _KEPT_BYTES * 1000 / 1e6 if kind == "leaking" else 0.0,
        "peak_mb": figures["memory_mb"],
    }


async def _serve(kind: str, duration_s: float) -> None:
    """One of the three servers; prints its URL. The cache is full after a quarter of the time."""
    from paceline.wire.http import HttpRequest, Reply
    from paceline.wire.server import serve

    kept: dict[int, bytes] = {}
    bound = {"leaking": sys.maxsize, "caching": int(duration_s * _RATE_PER_S / 4), "steady": 1}[kind]
    requests = 0

    async def handler(_: HttpRequest) -> Reply:
        nonlocal requests
        requests += 1
        kept[requests % bound] = os.urandom(_KEPT_BYTES)
        return Reply(200, [], b"ok")

    server = await serve(handler, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.port}/", flush=True)
    await asyncio.Event().wait()


def main() -> int:
    """Print the result; 1 when it is not within the budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--quick", action="store_true", help="fewer series, real servers for 40 s instead of 120")
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "S"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(_serve(args.serve[0], float(args.serve[1])))
        return 0
    repeat = 10 if args.quick else 60
    result: dict[str, Any] = {f"synthetic_{minutes}_min": synthetic(minutes, repeat) for minutes in (10, 30)}
    result["real"] = real(40.0 if args.quick else 120.0)
    long = result["synthetic_30_min"]
    result["within_budget"] = (
        max(result[f"synthetic_{m}_min"]["false_alarm_ratio"] for m in (10, 30)) <= _FALSE_ALARM_BUDGET
        and long["found_half_mb_per_min_ratio"] >= _FOUND_BUDGET
        and result["real"]["all_right"]
    )
    result["machine"] = {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()}
    print(json.dumps(result, indent=None if args.json else 2))
    return 0 if result["within_budget"] else 1


if __name__ == "__main__":
    sys.exit(main())
