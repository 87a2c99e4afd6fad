"""How true the figures of streams are: `python -m benchmarks.llm_load --json [--quick]`.

A server in a process of its own answers each call with 50 tokens, the first after 200 ms, one each 20 ms, and records
by its own clock when it had each request and when it wrote each token (benchmarks/_witness.py). `drive` asks for 100
streams a second, evenly spaced, from one core. Compared: time to first token and the pooled gaps, reported against the
server's record, which leaves out what the network and the generator add. Tokens per CPU-second are those of the
generator's process. `python -m benchmarks.peers` puts another tool beside.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks._rig import machine, pin, prefer
from benchmarks._witness import LOADING, TOKENS, ask, witness
from paceline.load.driver import drive
from paceline.load.scenario import OPEN, Scenario
from paceline.stats.quantiles import quantiles
from paceline.store.folder import create_run
from paceline.trace.streaming import streaming_figures

RATE_PER_S = 100.0
_BUDGET = 0.05  # relative error of time to first token, P99
_PATH = "/v1/chat/completions"


def measure(duration_s: float) -> dict[str, Any]:
    """Reported and true figures of one run."""
    scenario = Scenario(
        name="streams", model=OPEN, rate_per_s=RATE_PER_S, duration_s=duration_s, method="GET", path=_PATH
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as runs, witness("streams") as url:
        run = create_run(Path(runs), "streams")
        before_s = time.process_time()
        info = uvloop.run(drive(scenario, url, run))
        cpu_s = time.process_time() - before_s
        record = ask(url)
        found = streaming_figures(run.requests())
    assert found is not None
    assert found.first_token is not None
    assert found.token_gap is not None
    true_p50_s, true_p99_s = quantiles(record.first_token_s, [0.5, 0.99])
    gap_p50_s, gap_p99_s = quantiles(record.gaps_s, [0.5, 0.99])
    return {
        "streams": found.requests,
        "rate_per_s": RATE_PER_S,
        "first_token_p50_s": found.first_token.p50,
        "first_token_p50_true_s": true_p50_s,
        "first_token_p99_s": found.first_token.p99,
        "first_token_p99_true_s": true_p99_s,
        "first_token_p99_error_ratio": abs(found.first_token.p99 / true_p99_s - 1),
        "token_gap_p50_s": found.token_gap.p50,
        "token_gap_p50_true_s": gap_p50_s,
        "token_gap_p99_s": found.token_gap.p99,
        "token_gap_p99_true_s": gap_p99_s,
        "tokens_counted_right": found.output_tokens == found.requests * TOKENS,
        "tokens_per_cpu_s": found.output_tokens / cpu_s,
        "lag_p99_s": info.lag_p99_s,
    }


def main() -> int:
    """Print the result; 1 when it is not within the budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--quick", action="store_true", help="one run of 5 s instead of three of 20 s")
    args = parser.parse_args()
    pin(LOADING)
    preferred = prefer(psutil.Process())
    runs = [measure(5.0)] if args.quick else [measure(20.0) for _ in range(3)]
    middle = sorted(runs, key=lambda run: run["first_token_p99_error_ratio"])[len(runs) // 2]
    within = middle["first_token_p99_error_ratio"] <= _BUDGET and all(run["tokens_counted_right"] for run in runs)
    where = {**machine(), "before_all_others": preferred}
    result = {"llm": middle, "runs": runs, "within_budget": within, "machine": where}
    print(json.dumps(result, indent=None if args.json else 2))
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
