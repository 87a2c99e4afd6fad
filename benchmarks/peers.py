"""Side by side with other tools, in one run on one machine: `make bench-peers` installs them apart and runs this.

    python -m benchmarks.peers --json [--quick] [--locust PROGRAM] [--aiperf PROGRAM]

load     100 requests/s at a server that stalls 1 s in every 10: P95 and P99 that Locust, wrk, ab, hey and Paceline
         report, against the server's own record of what every request met; and what `paceline load --locust` makes of
         Locust's users. wrk, ab and hey are asked for where they are installed (Debian: wrk, apache2-utils, hey)
closed   32 users at nginx, each sending the next request at once: requests per CPU-second of wrk, of Locust with its
         fast client, and of Paceline. Locust's start is left out: the longer of two runs counts, less the shorter.
streams  100 streams/s of 50 tokens: time to first token that AIPerf and Paceline report, against the server's record;
         tokens per CPU-second of the whole command, start and report included, and of what a longer run adds to it
"""

import argparse
import asyncio
import csv
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks._rig import machine, nginx, nginx_path, pin, prefer
from benchmarks._witness import LOADING, SERVING, ask, witness
from benchmarks.load import measured, per_cpu_s, wrk_per_cpu_s
from paceline.load.locust.locustfile import LocustLoad, drive_locustfile
from paceline.load.scenario import Scenario
from paceline.stats.quantiles import quantiles
from paceline.store.folder import create_run, open_run
from paceline.trace.streaming import streaming_figures

USERS = """
from locust import FastHttpUser, constant_throughput, task

class Caller(FastHttpUser):
    wait_time = constant_throughput(10)

    @task
    def call(self):
        self.client.get("/")
"""
AT_ONCE = USERS.replace("constant_throughput(10)", "constant(0)").replace("constant_throughput", "constant")
VOCABULARY = "paceline/bytes"
MAKE_VOCABULARY = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
symbols = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
bytewise = Tokenizer(models.BPE(vocab={symbol: place for place, symbol in enumerate(symbols)}, merges=[]))
bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytewise.decoder = decoders.ByteLevel()
special = dict.fromkeys(["bos_token", "eos_token", "pad_token", "unk_token"], "<s>")
PreTrainedTokenizerFast(tokenizer_object=bytewise, **special).save_pretrained(sys.argv[1])
"""
WRK_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object (also the default)")
    parser.add_argument("--quick", action="store_true", help="a shorter run")
    parser.add_argument("--locust", default=shutil.which("locust"), help="Locust's program")
    parser.add_argument("--aiperf", default=shutil.which("aiperf"), help="AIPerf's program")
    args = parser.parse_args()
    pin(LOADING)
    prefer(psutil.Process())  # the tools inherit both
    result = {
        "machine": machine(),
        "load": load(12 if args.quick else 25, args.locust),
        "closed": closed(2 if args.quick else 5, args.locust),
        "streams": streams(5 if args.quick else 10, args.aiperf),
    }
    print(json.dumps(result))


def load(seconds: int, locust: str | None) -> dict[str, dict[str, float] | str]:
    """What each tool says of the same stalling server; the truth for all is its record under the asked load."""
    with witness("stalls", 0.005) as url:
        latencies, _ = measured(Scenario(name="stall", model="open", rate_per_s=100.0, duration_s=float(seconds)), url)
        true_ms = [q * 1e3 for q in quantiles(ask(url).residence_s, [0.95, 0.99])]
    found: dict[str, dict[str, float] | str] = {"truth": {"p95_ms": true_ms[0], "p99_ms": true_ms[1]}}
    found["paceline"] = against([q * 1e3 for q in quantiles(latencies, [0.95, 0.99])], true_ms, len(latencies))
    found["locust"] = run_locust(locust, seconds, true_ms) if locust else "not installed"
    found |= locust_recorded(seconds, true_ms)
    for name, run in {"wrk": run_wrk, "ab": run_ab, "hey": run_hey}.items():
        program = shutil.which(name)
        found[name] = run(program, seconds, true_ms) if program else "not installed"
    return found


def run_locust(program: str, seconds: int, true_ms: list[float]) -> dict[str, float]:
    """Ten users that each want to send ten requests a second: the usual way to ask Locust for a rate."""
    with witness("stalls", 0.005) as url, tempfile.TemporaryDirectory() as folder:
        users = Path(folder) / "locustfile.py"
        users.write_text(USERS)
        command = [program, "-f", str(users), "--headless", "-u", "10", "-r", "10", "-t", f"{seconds}s", "-H", url]
        subprocess.run([*command, "--csv", f"{folder}/out", "--only-summary"], capture_output=True, check=True)
        row = aggregated(Path(folder))
    return against([float(row["95%"]), float(row["99%"])], true_ms, int(row["Request Count"]))


def locust_recorded(seconds: int, true_ms: list[float]) -> dict[str, dict[str, float] | str]:
    """The same users under Paceline: as recorded, and with its estimate of what they never sent."""
    with witness("stalls", 0.005) as url, tempfile.TemporaryDirectory() as folder:
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
    with witness("stalls", 0.005) as url:
        said = subprocess.run(
            [program, "-t1", "-c10", f"-d{seconds}s", "--latency", url], capture_output=True, text=True, check=True
        ).stdout
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", said)
    count = re.search(r"(\d+) requests in", said)
    assert p99 is not None
    assert count is not None
    p99_ms = float(p99[1]) * WRK_UNITS_MS[p99[2]]
    return {"requests": int(count[1]), "p99_ms": p99_ms, "p99_error_ratio": p99_ms / true_ms[1] - 1}


def run_ab(program: str, seconds: int, true_ms: list[float]) -> dict[str, float]:
    """Ten connections as fast as they go: ab has no rate either, and says whole milliseconds."""
    with witness("stalls", 0.005) as url:
        command = [program, "-q", "-k", "-c", "10", "-t", str(seconds), "-n", "10000000", f"{url}/"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    quantile_ms = {name: float(ms) for name, ms in re.findall(r"^ +(95|99)%\s+(\d+)", said, re.MULTILINE)}
    count = re.search(r"Complete requests:\s+(\d+)", said)
    assert count is not None
    return against([quantile_ms["95"], quantile_ms["99"]], true_ms, int(count[1]))


def run_hey(program: str, seconds: int, true_ms: list[float]) -> dict[str, float]:
    """Ten workers that each want to send ten requests a second."""
    with witness("stalls", 0.005) as url:
        command = [program, "-z", f"{seconds}s", "-c", "10", "-q", "10", f"{url}/"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    quantile_s = {name: float(s) for name, s in re.findall(r"(95|99)%+ in ([\d.]+) secs", said)}
    count = sum(int(number) for number in re.findall(r"^\s+\[\d+\]\s+(\d+) responses", said, re.MULTILINE))
    return against([quantile_s["95"] * 1e3, quantile_s["99"] * 1e3], true_ms, count)


def closed(seconds: int, locust: str | None) -> dict[str, object]:
    """Requests per CPU-second of each at nginx."""
    if nginx_path() is None:
        return {"not installed": "nginx"}
    with tempfile.TemporaryDirectory() as folder, nginx(Path(folder) / "nginx", SERVING) as (process, port):
        prefer(process)
        url = f"http://127.0.0.1:{port}"
        scenario = Scenario(name="closed", method="GET", users=32, duration_s=float(seconds))
        turns: dict[str, Callable[[], float | None]] = {
            "paceline": lambda: per_cpu_s(scenario, url, Path(folder)),
            "wrk": lambda: wrk_per_cpu_s(url, seconds),
            "locust": lambda: locust_per_cpu_s(locust, url, seconds) if locust else None,
        }
        figures: dict[str, list[float | None]] = {name: [] for name in turns}
        for turn in range(-1, 3):
            for name, measure in turns.items():
                figure = measure() if turn >= 0 or name == "paceline" else None
                if turn >= 0:  # the first one warms up
                    figures[name].append(figure)
    known = {name: [one for one in each if one is not None] for name, each in figures.items()}
    return {name: statistics.median(each) if each else "not installed" for name, each in known.items()}


def locust_per_cpu_s(program: str, url: str, seconds: int) -> float:
    """Of Locust's fast client, 32 users that wait for nothing."""
    runs = [run_users(program, AT_ONCE, 32, url, length) for length in (2, 2 + seconds)]
    (few, few_s), (many, many_s) = runs
    return (many - few) / (many_s - few_s)


def run_users(program: str, users: str, count: int, url: str, seconds: int) -> tuple[int, float]:
    """Requests that Locust says it made, and the CPU seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "locustfile.py"
        file.write_text(users)
        command = [program, "-f", str(file), "--headless", "-u", str(count), "-r", str(count), "-t", f"{seconds}s"]
        cpu_s = spent([*command, "-H", url, "--csv", f"{folder}/out", "--only-summary"])
        return int(aggregated(Path(folder))["Request Count"]), cpu_s


def streams(seconds: int, aiperf: str | None) -> dict[str, object]:
    """What each says of the same stream of tokens, and what it costs."""
    found: dict[str, object] = {"paceline": stream_figures(paceline_streams, seconds)}
    found["aiperf"] = "not installed"
    if aiperf is not None:
        with tempfile.TemporaryDirectory() as hub:
            vocabulary(Path(aiperf).parent / "python", Path(hub))
            found["aiperf"] = stream_figures(lambda *asked: aiperf_streams(aiperf, hub, *asked), seconds)
    return found


Streams = Callable[[str, int, Path], tuple[float, float, float]]  # P50 and P99 of the first token in ms, CPU seconds


def stream_figures(tool: Streams, seconds: int) -> dict[str, float]:
    """A short run and a longer one."""
    runs = []
    for length in (2, 2 + seconds):
        with witness("streams") as url, tempfile.TemporaryDirectory() as folder:
            p50_ms, p99_ms, cpu_s = tool(url, length, Path(folder))
            record = ask(url)
            true_ms = [q * 1e3 for q in quantiles(record.first_token_s, [0.5, 0.99])]
            tokens = len(record.first_token_s) + len(record.gaps_s)
            runs.append((tokens, cpu_s))
    (few, few_s), (many, many_s) = runs
    return {
        "streams": len(record.first_token_s),
        "first_token_p50_ms": p50_ms,
        "first_token_p50_true_ms": true_ms[0],
        "first_token_p99_ms": p99_ms,
        "first_token_p99_true_ms": true_ms[1],
        "first_token_p99_error_ratio": p99_ms / true_ms[1] - 1,
        "tokens_per_cpu_s": many / many_s,
        "tokens_per_cpu_s_of_the_longer": (many - few) / (many_s - few_s),
    }


def paceline_streams(url: str, seconds: int, folder: Path) -> tuple[float, float, float]:
    """`paceline load`, as anybody would call it."""
    asked = [f"{url}/v1/chat/completions", "--rate", "100", "--duration", str(seconds), "--runs", str(folder)]
    cpu_s = spent([sys.executable, "-m", "paceline", "load", *asked])
    figures = streaming_figures(open_run(next(folder.iterdir())).requests())
    assert figures is not None
    assert figures.first_token is not None
    return figures.first_token.p50 * 1e3, figures.first_token.p99 * 1e3, cpu_s


def aiperf_streams(program: str, hub: str, url: str, seconds: int, folder: Path) -> tuple[float, float, float]:
    """AIPerf without a network: its tokenizer lies in a hub's cache of our own."""
    options = "--endpoint-type chat --streaming --request-rate 100 --arrival-pattern constant --isl 20 --osl 50"
    options += f" --tokenizer {VOCABULARY} --ui none --workers-max 2 --no-gpu-telemetry --no-server-metrics"
    command = [program, "profile", "-m", "gpt-4o-mini", "-u", url, *options.split()]
    command += ["--benchmark-duration", str(seconds), "--output-artifact-dir", str(folder)]
    cpu_s = spent(command, HF_HUB_CACHE=hub, HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    said = json.loads((folder / "profile_export_aiperf.json").read_text())["time_to_first_token"]
    return said["p50"], said["p99"], cpu_s


def vocabulary(python: Path, hub: Path) -> None:
    """A tokenizer of single bytes where AIPerf looks for one: it takes a name of the hub, and no folder."""
    commit = "0" * 40
    kept = hub / f"models--{VOCABULARY.replace('/', '--')}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    subprocess.run([python, "-c", MAKE_VOCABULARY, kept / "snapshots" / commit], capture_output=True, check=True)


def spent(command: list[str], **variables: str) -> float:
    """CPU seconds of a command and all that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True, env={**os.environ, **variables})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def aggregated(folder: Path) -> dict[str, str]:
    """Locust's figures of all requests."""
    with (folder / "out_stats.csv").open() as file:
        return next(row for row in csv.DictReader(file) if row["Name"] == "Aggregated")


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
