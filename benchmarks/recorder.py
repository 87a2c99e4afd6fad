"""What the recorder costs: `python -m benchmarks.recorder --json [--quick]`.

1. `span_us`: CPU of one span from start to disk, in a bare loop (`paceline.record.cost`), best of several rounds.
2. `overhead`: CPU per request of one FastAPI application, plain and recorded, two servers side by side, driven in turn
   by the same keep-alive connection; server CPU is read from the kernel (10 ms ticks, so thousands of requests a
   round). `empty` answers at once (1 span); `five_calls` makes five httpx calls to a transport in its own process
   (6 spans), so that neither network nor a provider blurs the difference. Median of the rounds' differences.

Budget (design): at most 6 us a span in a running server.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

from paceline.record.cost import span_cost_s
from paceline.record.launcher import free_port, recording_environment
from paceline.store.folder import create_run

APP = """
import httpx
from fastapi import FastAPI

app = FastAPI()
client = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: httpx.Response(200, json={})))

@app.get("/empty")
async def empty(): return {}

@app.get("/five_calls")
async def five_calls():
    for _ in range(5):
        await client.get("http://store/thing")
    return {}
"""
SPANS = {"empty": 1, "five_calls": 6}
BUDGET_US = 6.0


class Server:
    """One uvicorn process and a connection to it."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "critical"]
        self.process = subprocess.Popen(
            [*command, "--no-access-log", "--timeout-keep-alive", "600"], cwd=folder, env={**os.environ, **env}
        )
        self.connection = http.client.HTTPConnection("127.0.0.1", port)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.get("/empty")
            except OSError:
                self.connection.close()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                break

    def get(self, path: str) -> None:
        """One request, its answer read."""
        self.connection.request("GET", path)
        self.connection.getresponse().read()

    def cpu_s(self) -> float:
        """CPU seconds of the process so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def cpu_us(self, path: str, requests: int) -> float:
        """CPU of the server per request, the recorder's writing included."""
        before = self.cpu_s()
        for _ in range(requests):
            self.get(path)
        time.sleep(0.3)  # one flush
        return (self.cpu_s() - before) / requests * 1e6

    def stop(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.terminate()
        self.process.wait()


def overhead(rounds: int, requests: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "app.py").write_text(APP)
        run = create_run(folder / "runs", "benchmark")
        servers = {"plain": Server(folder, {}), "recorded": Server(folder, recording_environment(run, folder))}
        for server in servers.values():
            stack.callback(server.stop)
        result = {}
        for path, spans in SPANS.items():
            for server in servers.values():
                server.cpu_us(f"/{path}", 300)  # warm
            pairs = [{kind: s.cpu_us(f"/{path}", requests) for kind, s in servers.items()} for _ in range(rounds)]
            plain = statistics.median(p["plain"] for p in pairs)
            added = [p["recorded"] - p["plain"] for p in pairs]
            result[path] = {
                "plain_us": round(plain, 1),
                "recorded_us": round(statistics.median(p["recorded"] for p in pairs), 1),
                "ratio": round(statistics.median(p["recorded"] / p["plain"] for p in pairs), 3),
                "added_us": round(statistics.median(added), 1),
                "added_us_min": round(min(added), 1),
                "added_us_max": round(max(added), 1),
                "added_us_per_span": round(statistics.median(added) / spans, 1),
                "spans": spans,
            }
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object (the default)")
    parser.add_argument("--quick", action="store_true", help="few rounds; for a look, not for a claim")
    args = parser.parse_args()
    rounds, requests = (3, 1000) if args.quick else (9, 3000)
    print(
        json.dumps(
            {
                "benchmark": "recorder",
                "span_us": round(span_cost_s(rounds=rounds * 3) * 1e6, 2),
                "budget_us": BUDGET_US,
                "overhead": overhead(rounds, requests),
                "rounds": rounds,
                "requests_per_round": requests,
                "python": sys.version.split()[0],
                "load_average": os.getloadavg()[0],
            }
        )
    )


if __name__ == "__main__":
    main()
