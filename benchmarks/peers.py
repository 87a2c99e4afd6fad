"""Side by side with other tools, in one run on one machine: `make bench-peers` installs them apart and runs this.

    python -m benchmarks.peers --json [--quick] [--locust PROGRAM]

load   100 requests/s at a server that stalls 1 s in every 10: P95 and P99 that Locust, wrk and Paceline report, against
       the server's own record of what every request met; and what `paceline load --locust` makes of Locust's users
"""

import argparse
import asyncio
import csv
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec

from benchmarks.load import ask, measured, server
from paceline.load.locust.locustfile import LocustLoad, drive_locustfile
from paceline.load.scenario import Scenario
from paceline.stats.quantiles import quantiles
from paceline.store.folder import create_run

USERS = """
from locust import FastHttpUser, constant_throughput, task

class Caller(FastHttpUser):
    wait_time = constant_throughput(10)

    @task
    def call(self):
        self.client.get("/")
"""
WRK_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object (also the default)")
    parser.add_argument("--quick", action="store_true", help="a shorter run")
    parser.add_argument("--locust", default=shutil.which("locust"), help="Locust's program")
    args = parser.parse_args()
    seconds = 12 if args.quick else 25
    print(msgspec.json.encode({"load": load(seconds, args.locust)}).decode())


def load(seconds: int, locust: str | None) -> dict[str, dict[str, float] | str]:
    """What each tool says of the same stalling server; the truth for all is its record under the asked load."""
    with server(0.005, stalls=True) as url:
        latencies, _ = measured(Scenario(name="stall", model="open", rate_per_s=100.0, duration_s=float(seconds)), url)
        true_ms = [q * 1e3 for q in quantiles(ask(url), [0.95, 0.99])]
    found: dict[str, dict[str, float] | str] = {"truth": {"p95_ms": true_ms[0], "p99_ms": true_ms[1]}}
    found["paceline"] = against([q * 1e3 for q in quantiles(latencies, [0.95, 0.99])], true_ms, len(latencies))
    found["locust"] = run_locust(locust, seconds, true_ms) if locust else "not installed"
    found |= locust_recorded(seconds, true_ms)
    wrk = shutil.which("wrk")
    found["wrk"] = run_wrk(wrk, seconds, true_ms) if wrk else "not installed"
    return found


def run_locust(program: str, seconds: int, true_ms: list[float]) -> dict[str, float]:
    """Ten users that each want to send ten requests a second: the usual way to ask Locust for a rate."""
    with server(0.005, stalls=True) as url, tempfile.TemporaryDirectory() as folder:
        users = Path(folder) / "locustfile.py"
        users.write_text(USERS)
        command = [program, "-f", str(users), "--headless", "-u", "10", "-r", "10", "-t", f"{seconds}s", "-H", url]
        subprocess.run([*command, "--csv", f"{folder}/out", "--only-summary"], capture_output=True, check=True)
        with (Path(folder) / "out_stats.csv").open() as file:
            row = next(r for r in csv.DictReader(file) if r["Name"] == "Aggregated")
    return against([float(row["95%"]), float(row["99%"])], true_ms, int(row["Request Count"]))


def locust_recorded(seconds: int, true_ms: list[float]) -> dict[str, dict[str, float] | str]:
    """The same users under Paceline: as recorded, and with its estimate of what they never sent."""
    with server(0.005, stalls=True) as url, tempfile.TemporaryDirectory() as folder:
        users = Path(folder) / "locustfile.py"
        users.write_text(USERS)
        run = create_run(Path(folder), "peers")
        asked = LocustLoad(locustfile=users, host=url, users=10, spawn_rate_per_s=10, duration_s=float(seconds))
        info = asyncio.run(drive_locustfile(asked, run)).info
        said_ms = [q * 1e3 for q in quantiles([r.latency_s for r in run.requests()], [0.95, 0.99])]
    unsent = info.unsent
    assert unsent is not None
    corrected_ms = [unsent.p95_s * 1e3, unsent.p99_s * 1e3]
    return {
        "locust_recorded": against(said_ms, true_ms, info.requests),
        "locust_corrected": against(corrected_ms, true_ms, info.requests + unsent.tasks),
    }


def run_wrk(program: str, seconds: int, true_ms: list[float]) -> dict[str, float]:
    """Ten connections as fast as they go: wrk has no rate to ask for, and no P95."""
    with server(0.005, stalls=True) as url:
        said = subprocess.run(
            [program, "-t1", "-c10", f"-d{seconds}s", "--latency", url], capture_output=True, text=True, check=True
        ).stdout
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", said)
    count = re.search(r"(\d+) requests in", said)
    assert p99 is not None
    assert count is not None
    p99_ms = float(p99[1]) * WRK_UNITS_MS[p99[2]]
    return {"requests": int(count[1]), "p99_ms": p99_ms, "p99_error_ratio": p99_ms / true_ms[1] - 1}


def against(said_ms: list[float], true_ms: list[float], requests: int) -> dict[str, float]:
    """What was said, and how far off it is."""
    return {
        "requests": requests,
        "p95_ms": said_ms[0],
        "p99_ms": said_ms[1],
        "p95_error_ratio": said_ms[0] / true_ms[0] - 1,
        "p99_error_ratio": said_ms[1] / true_ms[1] - 1,
    }


if __name__ == "__main__":
    main()
