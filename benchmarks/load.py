"""The load generator against a server that keeps its own record, in another process on another core.

    python -m benchmarks.load --json [--quick]

stall        100 requests/s at a server that stalls 1 s in every 10: p95 and p99 against the server's own record
users        50 and 400 users at a server that answers after 50 ms: p50 and p99 against the server's own record
open_loop    10,000 requests/s at a server that answers after 20 ms: how late requests were sent
closed_loop  32 users at nginx: requests per CPU-second with every request on disk, in turns with wrk
histogram    the cost of one record

Everything is repeated and given as the best and the median: a neighbour on a shared machine only ever makes it worse.
Where the system allows it (root), generator, servers and wrk run before all other work, as on a machine of their own.
Streams have a benchmark of their own, benchmarks/llm_load.py.
"""

import argparse
import contextlib
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import msgspec
import psutil
import uvloop

from benchmarks._rig import machine, nginx, nginx_path, pin, prefer
from benchmarks._witness import LOADING, SERVING, ask, witness
from paceline.load.driver import drive
from paceline.load.scenario import Scenario
from paceline.model.run import ScenarioInfo
from paceline.stats.histogram import Histogram
from paceline.stats.quantiles import quantiles
from paceline.store.folder import create_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object (also the default)")
    parser.add_argument("--quick", action="store_true", help="shorter runs, one repetition")
    args = parser.parse_args()
    pin(LOADING)
    preferred = prefer(psutil.Process())  # wrk inherits it
    quick = args.quick
    rounds = 1 if quick else 3
    result = {
        "machine": {**machine(), "before_all_others": preferred},
        "stall": stall(12.0 if quick else 25.0, rounds),
        "users": {str(users): with_users(users, 2.0 if quick else 5.0, rounds) for users in (50, 400)},
        "open_loop": open_loop(2.0 if quick else 5.0, 1 if quick else 5),
        "closed_loop": closed_loop(2.0 if quick else 5.0, 2 if quick else 5),
        "histogram": histogram(),
    }
    print(msgspec.json.encode(result).decode())


Figures = dict[str, float]


def best_of(runs: list[Figures], by: str, *, most: bool = False) -> dict[str, object]:
    """The run with the lowest (or highest) figure, and that figure's median over all of them."""
    best = (max if most else min)(runs, key=lambda run: run[by])
    return {**best, f"median_{by}": statistics.median(run[by] for run in runs), "runs": len(runs)}


def against_truth(scenario: Scenario, url: str, *qs: float) -> tuple[Figures, ScenarioInfo]:
    """Quantiles as measured and by the server's own record, and how far they lie apart."""
    latencies, info = measured(scenario, url)
    figures: Figures = {"requests": len(latencies)}
    truth = ask(url).residence_s
    for q, seen_s, true_s in zip(qs, quantiles(latencies, list(qs)), quantiles(truth, list(qs)), strict=True):
        name = f"p{q * 100:.0f}"
        figures |= {f"{name}_ms": seen_s * 1e3, f"true_{name}_ms": true_s * 1e3}
        figures[f"{name}_error_ratio"] = abs(seen_s / true_s - 1)
    return figures, info


def stall(duration_s: float, rounds: int) -> dict[str, object]:
    runs = []
    for _ in range(rounds):
        with witness("stalls", 0.005) as url:
            scenario = Scenario(name="stall", model="open", rate_per_s=100.0, duration_s=duration_s)
            runs.append(against_truth(scenario, url, 0.95, 0.99)[0])
    return best_of(runs, "p99_error_ratio")


def with_users(users: int, duration_s: float, rounds: int) -> dict[str, object]:
    with witness("fixed", 0.05) as url:
        # Started evenly over ten answers' time: all at once is a burst of its own, and stays one.
        scenario = Scenario(name="users", users=users, duration_s=duration_s, ramp_s=0.5)
        runs = [against_truth(scenario, url, 0.5, 0.99)[0] for _ in range(rounds)]
    return best_of(runs, "p99_error_ratio")


def open_loop(duration_s: float, rounds: int) -> dict[str, object]:
    runs = []
    with witness("fixed", 0.02) as url:
        for _ in range(rounds):
            scenario = Scenario(name="open", model="open", rate_per_s=10_000.0, duration_s=duration_s)
            figures, info = against_truth(scenario, url, 0.5, 0.99)
            figures |= {
                "lag_p50_ms": (info.lag_p50_s or 0) * 1e3,
                "lag_p99_ms": (info.lag_p99_s or 0) * 1e3,
                "lag_max_ms": (info.lag_max_s or 0) * 1e3,
                "achieved_rate_per_s": info.achieved_rate_per_s or 0.0,
                "cpu_ratio": info.generator_cpu_ratio or 0.0,
            }
            runs.append(figures)
    return best_of(runs, "lag_p99_ms")


def closed_loop(duration_s: float, rounds: int) -> dict[str, object]:
    """Ours and wrk in turns, on the same core, so that both meet the same neighbours."""
    runs: list[Figures] = []
    wrks: float | None = None
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if nginx_path() is None:
            url = stack.enter_context(witness("fixed"))
        else:
            process, port = stack.enter_context(nginx(Path(folder) / "nginx", SERVING))
            prefer(process)
            url = f"http://127.0.0.1:{port}"
        for turn in range(-1, rounds):
            scenario = Scenario(name="closed", method="GET", users=32, duration_s=duration_s)
            ours, wrks = per_cpu_s(scenario, url, Path(folder)), wrk_per_cpu_s(url, duration_s)
            if turn >= 0:  # the first one warms up
                figures = {"requests_per_cpu_s": ours}
                if wrks is not None:
                    figures |= {"wrk_requests_per_cpu_s": wrks, "requests_per_cpu_s_vs_wrk": ours / wrks}
                runs.append(figures)
    by = "requests_per_cpu_s" if wrks is None else "requests_per_cpu_s_vs_wrk"
    return best_of(runs, by, most=True)


def per_cpu_s(scenario: Scenario, url: str, folder: Path) -> float:
    """Requests per CPU-second of this process from connecting to the last record on disk."""
    run = create_run(folder, scenario.name)
    before_s = time.process_time()
    done = uvloop.run(drive(scenario, url, run)).requests
    cpu_s = time.process_time() - before_s
    assert run.query("SELECT count(*), count(error) FROM requests") == [(done, 0)], "some requests failed"
    return done / cpu_s


def histogram() -> dict[str, object]:
    values = [0.001 * (i % 997) + 1e-5 for i in range(200_000)]
    Histogram.of(values[:5000]).quantile(0.5)  # imports
    runs = []
    for _ in range(5):
        started_s = time.process_time()
        found = Histogram.of(values)
        found.quantile(0.5)
        ns = (time.process_time() - started_s) / len(values) * 1e9
        true_s, seen_s = quantiles(values, [0.99])[0], found.quantile(0.99) or 0.0
        runs.append({"ns_per_record": ns, "p99_error_ratio": abs(seen_s / true_s - 1)})
    return best_of(runs, "ns_per_record")


def wrk_per_cpu_s(url: str, duration_s: float) -> float | None:
    """Requests per CPU-second of wrk under the same load; None when it is not installed."""
    program = shutil.which("wrk")
    if program is None:
        return None
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = subprocess.run(
        [program, "-t1", "-c32", f"-d{duration_s:.0f}s", url], capture_output=True, text=True, check=True
    ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    count = re.search(r"(\d+) requests in", said)
    assert count is not None, said
    return int(count[1]) / (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def measured(scenario: Scenario, url: str) -> tuple[list[float], ScenarioInfo]:
    """Latencies as recorded on disk, after the whole path a real run takes."""
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder), scenario.name)
        info = uvloop.run(drive(scenario, url, run))
        requests = run.query("SELECT ended_s - intended_s, error FROM requests")
        assert not any(error for _, error in requests), "some requests failed"
        return [latency_s for latency_s, _ in requests], info


if __name__ == "__main__":
    main()
