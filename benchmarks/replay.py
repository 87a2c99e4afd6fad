"""A replay of recorded traffic: are the arrivals and the lengths those that were recorded?

The Azure chat hour (azure_llm_2023_conv.csv, 19,366 requests in 3,502 s) is sent at ten times its pace to a server that
notes when each call came and how long its prompt is. Arrivals are judged at the server: the coefficient of variation of
the time between them against that of the trace. `--quick` sends its first five minutes.

    PACELINE_TEST_DATA=FOLDER python -m benchmarks.replay --json [--quick]

Without the folder (it holds traffic/azure_llm_2023_conv.csv) the first 300 requests, kept with the tests, are sent.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import uvloop

from paceline.load.driver import drive
from paceline.load.parts import Trace
from paceline.load.replay import replayed
from paceline.load.scenario import Scenario
from paceline.model.run import ScenarioInfo
from paceline.store.folder import create_run
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve
from paceline.wire.tokens import estimate_tokens

_SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "traffic" / "azure_llm_2023_conv_head.csv"


def cv(times_s: Sequence[float]) -> float:
    """Standard deviation over mean of the time between arrivals."""
    gaps = [b - a for a, b in itertools.pairwise(sorted(times_s))]
    return statistics.stdev(gaps) / statistics.fmean(gaps)


async def send(scenario: Scenario, folder: Path) -> tuple[ScenarioInfo, list[float], Counter[tuple[int, int]]]:
    """Drive the replay; when each call came, and the lengths asked for."""
    came_s: list[float] = []
    lengths: Counter[tuple[int, int]] = Counter()

    def handler(request: HttpRequest) -> Reply:
        came_s.append(time.monotonic())
        call = json.loads(request.body)
        lengths[estimate_tokens(call["messages"][0]["content"]), call["max_tokens"]] += 1
        return Reply(200, [(b"content-type", b"application/json")], b"{}")

    server = await serve(handler, "127.0.0.1", 0)
    try:
        info = await drive(scenario, f"http://127.0.0.1:{server.port}", create_run(folder, "replay"))
    finally:
        await server.close(grace_s=0)
    return info, came_s, lengths


def measure(path: Path, *, time_scale: float, length_s: float | None) -> dict[str, object]:
    """Send the trace and compare."""
    trace = Trace(path=str(path), time_scale=time_scale, length_s=length_s)
    scenario = Scenario(
        name="replay", model="open", arrivals="replay", trace=trace, method="POST", path="/v1/chat/completions"
    )
    recorded = replayed(scenario)
    with tempfile.TemporaryDirectory() as folder:
        info, came_s, lengths = uvloop.run(send(scenario, Path(folder)))
    asked, seen = cv([at_s for at_s, _ in recorded]), cv(came_s)
    wanted = Counter((row.input_tokens, max(1, row.output_tokens)) for _, row in recorded)
    return {
        "trace": path.name,
        "time_scale": time_scale,
        "requests": len(came_s),
        "recorded": len(recorded),
        "cv_recorded": round(asked, 4),
        "cv_at_server": round(seen, 4),
        "cv_error_ratio": round(seen / asked - 1, 4),
        "lengths_kept": lengths == wanted,
        "lag_p50_ms": round((info.lag_p50_s or 0) * 1e3, 3),
        "lag_p99_ms": round((info.lag_p99_s or 0) * 1e3, 3),
        "generator_cpu_ratio": round(info.generator_cpu_ratio or 0, 3),  # the server's too: one process
        "stopped": info.stopped,
        "trouble": info.trouble,
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the only form there is")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    folder = os.environ.get("PACELINE_TEST_DATA")
    whole = Path(folder or ".") / "traffic" / "azure_llm_2023_conv.csv"
    path = whole if folder and whole.exists() else _SAMPLE
    result = measure(path, time_scale=10, length_s=300 if args.quick else None)
    print(json.dumps({"replay": result}, indent=2))


if __name__ == "__main__":
    main()
