"""How long diagnosis takes: `python -m benchmarks.diagnose --json [--quick]`.

Timed: `diagnose(run)` on a run in memory, CPU seconds of one thread, best of the repetitions; apart from it, reading
the same run from its sealed folder. The run is the support desk with all eight causes planted, 25 spans a request,
recorded with SDK, HTTP and gateway spans, repeated until it has the spans wanted. Budget (design.md): 1,000,000
spans in 10 s on two cores. Garbage collection is on, as in the command.
"""

import argparse
import gc
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from tests.diagnose.builders import START_NS, desk_run

from paceline.diagnose import RULES, diagnose
from paceline.store.folder import create_run, open_run
from paceline.trace.data import RunData

SPANS, QUICK_SPANS = 1_000_000, 50_000
BUDGET_S = 10.0
_REQUESTS = 100


def large_run(spans: int) -> RunData:
    """The planted desk again and again, each copy later and with ids of its own."""
    base = desk_run(*RULES, requests=_REQUESTS)
    period_s = max(r.at_s for r in base.resources) + 0.25
    run = RunData(base.info, [], [], [])
    copies = -(-spans // len(base.spans))
    for copy in range(copies):
        shift_s = copy * period_s
        run.requests.extend(
            msgspec.structs.replace(
                r, index=r.index + copy * _REQUESTS, trace_id=f"{copy:08x}{r.trace_id[8:]}",
                intended_s=r.intended_s + shift_s, started_s=r.started_s + shift_s, ended_s=r.ended_s + shift_s,
                first_byte_s=None,
            )
            for r in base.requests
        )  # fmt: skip
        run.resources.extend(msgspec.structs.replace(r, at_s=r.at_s + shift_s) for r in base.resources)
        run.spans.extend(
            msgspec.structs.replace(
                s, trace_id=f"{copy:08x}{s.trace_id[8:]}", start_ns=s.start_ns + round(shift_s * 1e9)
            )
            for s in base.spans
        )
    return run


def timed(work: Callable[[], object], repeat: int) -> tuple[float, object]:
    """Least CPU seconds of some repetitions, and the last result."""
    best, result = float("inf"), None
    for _ in range(repeat):
        gc.collect()
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result


def stored(run: RunData, root: Path) -> Path:
    """Write the run the way recorder and driver do, and seal it."""
    folder = create_run(root, "large")
    folder.update(start_ns=START_NS)
    tables: dict[str, Sequence[msgspec.Struct]] = {"requests": run.requests, "spans": run.spans}
    tables["resources"] = run.resources
    for table, records in tables.items():
        spool = folder.spool(table, "benchmark")
        for start in range(0, len(records), 50_000):
            for record in records[start : start + 50_000]:
                spool.append(record)
            spool.flush()
        spool.close()
    folder.finish()
    return folder.path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SPANS:,} spans instead of {SPANS:,}")
    args = parser.parse_args()
    run = large_run(QUICK_SPANS if args.quick else SPANS)
    seconds, findings = timed(lambda: diagnose(run), 3 if args.quick else 2)
    assert isinstance(findings, list)
    with tempfile.TemporaryDirectory() as root:
        path = stored(run, Path(root))
        reading_s, _ = timed(lambda: open_run(path).spans(), 1)
    record = {
        "benchmark": "diagnose",
        "python": platform.python_version(),
        "spans": len(run.spans),
        "requests": len(run.requests),
        "diagnose_cpu_s": round(seconds, 3),
        "us_per_span": round(seconds / len(run.spans) * 1e6, 2),
        "read_spans_cpu_s": round(reading_s, 3),
        "rules_found": sorted({f.rule for f in findings}),
        "budget_s": BUDGET_S * len(run.spans) / SPANS,
    }
    print(json.dumps(record) if args.json else "\n".join(f"{k:18} {v}" for k, v in record.items()))
    return 0 if record["rules_found"] == sorted(RULES) else 1


if __name__ == "__main__":
    sys.exit(main())
