"""How far projections are from the truth: `python -m benchmarks.projection --json [--quick]`.

For each world (a true system in virtual time, benchmarks/_truth.py) and seed: one baseline run is recorded, every
roadmap phase is projected from that recording alone, then the true system runs with the phase's switches on.
Projected and measured P50, P95 and requests/s are compared; a measured run is a single run, its own chance included.
Budget (design.md): median absolute error <= 5 % on P50 and <= 10 % on P95, intervals hold >= 85 % of the time.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from statistics import median

from benchmarks._truth import EMBED, SMALL, STRONG, Model, System, World
from paceline.model.change import Cache, Change, Defer, Limit, Parallelise, Remove, Route, Trim
from paceline.model.estimate import Range
from paceline.model.figures import Figures
from paceline.project import Projector
from paceline.project.pace import ModelPace
from paceline.trace.figures import figures_of

STRONG_PACE = Model(name=STRONG, ttft_s=0.45, ttft_sigma=0.45, gap_s=0.012)
EMBED_PACE = Model(name=EMBED, ttft_s=0.12, ttft_sigma=0.35, gap_s=0.0)
SMALL_PACE = Model(name=SMALL, ttft_s=0.30, ttft_sigma=0.45, gap_s=0.006)
METRICS = ("p50_s", "p95_s", "requests_per_s")


@dataclass(frozen=True)
class Phase:
    """A step of the roadmap: the true system's switches, and what its owner declares about it."""

    name: str
    switches: tuple[str, ...]
    changes: tuple[Change, ...]


SUPPORT = (
    Phase(
        "retrieval",
        ("retrieval",),
        (Trim(step="write_answer", input_ratio=Range(1.4, 1.7), output_ratio=Range(0.5, 0.65)),),
    ),
    Phase(
        "calls",
        ("parallel", "once", "routed", "deferred", "queued"),
        (
            Remove(step="classify_intent", repeats_only=True),
            Route(step="classify_intent", model=SMALL),
            Route(step="validate_answer", model=SMALL),
            Parallelise(steps=["retrieve", "classify_intent > tone_guidelines"]),
            Defer(step="validate_answer"),
            Limit(resource="provider", queued=True),
        ),
    ),
    Phase(
        "tokens",
        ("trimmed",),
        (
            Trim(step="classify_intent", input_ratio=Range(0.12, 0.18)),
            Trim(step="tone_guidelines", input_ratio=Range(0.11, 0.17)),
            Trim(step="validate_answer", input_ratio=Range(0.22, 0.32)),
            Trim(step="write_answer", input_ratio=Range(0.27, 0.37), output_ratio=Range(0.8, 0.9)),
        ),
    ),
    Phase(
        "async",
        ("event_loop",),
        (Limit(resource="threads", memory_ratio=Range(0.08, 0.15), cpu_ratio=Range(0.5, 0.7)),),
    ),
    Phase("reuse", ("text_cache", "single_flight"), (Cache(key="text", shared_in_flight=True),)),
)
AGENTS = (
    Phase("parallel", ("parallel",), (Parallelise(steps=["agent_0", "agent_1", "agent_2"]),)),
    Phase("queued", ("queued",), (Limit(resource="provider", queued=True),)),
)


Models = tuple[Model, ...]
Rows = list[dict[str, object]]


def models(*, requests: float | None = None, tokens: float | None = None, small: float | None = None) -> Models:
    strong = Model(
        name=STRONG, ttft_s=0.45, ttft_sigma=0.45, gap_s=0.012, requests_per_min=requests, tokens_per_min=tokens
    )
    cheap = Model(name=SMALL, ttft_s=0.30, ttft_sigma=0.45, gap_s=0.006, tokens_per_min=small)
    return strong, cheap, EMBED_PACE


WORLDS: tuple[tuple[World, tuple[Phase, ...]], ...] = (
    (
        World(name="support, tokens limited", users=100, requests=500, models=models(tokens=1e6, small=2e6)),
        SUPPORT,
    ),
    (World(name="support, requests limited", users=100, requests=500, models=models(requests=500)), SUPPORT),
    (
        World(
            name="support, counted by what it may use",
            users=60,
            requests=400,
            models=models(tokens=1_200_000),
            charge=lambda inp, out: inp + 500,
        ),
        SUPPORT,
    ),
    (World(name="support, no limit", users=20, requests=300, models=models()), SUPPORT),
    (
        World(
            name="support, processor bound",
            users=60,
            requests=400,
            models=models(),
            cpu_call_s=0.03,
            cpu_request_s=0.06,
            hit_cpu_s=0.008,
        ),
        SUPPORT,
    ),
    (World(name="support, open", users=None, rate_per_s=2.0, requests=400, models=models()), SUPPORT),
    (
        World(
            name="agents, requests limited", users=30, requests=200, models=models(requests=180), agents=3, cached=False
        ),
        AGENTS,
    ),
    (World(name="agents, no limit", users=10, requests=150, models=models(), agents=3, cached=False), AGENTS),
)


def known_paces() -> dict[str, ModelPace]:
    """What a probe of the small model would have shown."""
    return {
        SMALL: ModelPace(
            ttft_p50_s=SMALL_PACE.ttft_s, ttft_p95_s=SMALL_PACE.ttft_s * 2.1, token_gap_s=0.006, tokens_per_min=2e6
        )
    }


def judge(world: World, phases: tuple[Phase, ...], seed: int, repetitions: int) -> tuple[Rows, float]:
    """Rows of projected against measured, and the seconds that projecting took."""
    base = System(world, seed).run()
    began = time.process_time()
    projector = Projector(base, "main", models=known_paces(), seed=seed, repetitions=repetitions)
    rows: Rows = []
    spent_s = 0.0
    changes: list[Change] = []
    for number, phase in enumerate((Phase("none", (), ()), *phases)):
        changes += phase.changes
        projection = projector.project(changes)
        spent_s = time.process_time() - began
        world = world.with_switches(*phase.switches)
        after = System(world, seed * 100 + number + 1).run()
        measured = figures_of(after.requests, after.spans, after.resources)
        row: dict[str, object] = {"world": world.name, "seed": seed, "phase": phase.name}
        if projection.figures is None:
            row["refused"] = projection.refusal
        else:
            for name in (*METRICS, "mean_s", "success_ratio", "hit_ratio", "cost_per_1000_usd", "memory_mb"):
                row[name] = _compared(getattr(projection.figures, name), measured, name)
        rows.append(row)
        began = time.process_time() - spent_s
    return rows, spent_s


def _compared(estimate: object, measured: Figures, name: str) -> dict[str, object] | None:
    value = getattr(measured, name)
    if estimate is None or value is None:
        return None
    from paceline.model.estimate import Estimate

    assert isinstance(estimate, Estimate)
    return {
        "projected": round(estimate.value, 4),
        "low": round(estimate.low, 4),
        "high": round(estimate.high, 4),
        "measured": round(value, 4),
        "error": round(estimate.value / value - 1, 4) if value else None,
        "held": estimate.holds(value),
    }


def summary(rows: Rows) -> dict[str, object]:
    """Medians of absolute errors and shares of intervals that held, phases only (the unchanged baseline apart)."""
    phases = [r for r in rows if r["phase"] != "none"]
    found: dict[str, object] = {"phases": len(phases), "refused": sum("refused" in r for r in phases)}
    for name in (*METRICS, "mean_s", "success_ratio", "hit_ratio", "cost_per_1000_usd", "memory_mb"):
        cells = [c for r in phases if isinstance(c := r.get(name), dict)]
        errors = sorted(abs(c["error"]) for c in cells if c["error"] is not None)
        if errors:
            found[name] = {
                "median_error": round(median(errors), 4),
                "worst_error": round(errors[-1], 4),
                "held": round(sum(c["held"] for c in cells) / len(cells), 3),
            }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="two worlds, one seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--world", help="only worlds whose name holds this")
    args = parser.parse_args()
    worlds = [w for w in WORLDS if not args.world or args.world in w[0].name]
    if args.quick:
        worlds = worlds[::3]
    rows: Rows = []
    seconds: list[float] = []
    for seed in range(1, 2 if args.quick else args.seeds + 1):
        for world, phases in worlds:
            found, spent_s = judge(world, phases, seed, args.repetitions)
            rows += found
            seconds.append(spent_s)
            print(f"{world.name}, seed {seed}: projected in {spent_s:.1f} s", file=sys.stderr)
    result = {
        "benchmark": "projection",
        "summary": summary(rows),
        "cpu_s_a_world": round(max(seconds), 2),
        "rows": rows,
    }
    if args.json:
        print(json.dumps(result))
        return 0
    for row in rows:
        cells = [f"{row['world']:36.36} {row['seed']} {row['phase']:10}"]
        for name in METRICS:
            cell = row.get(name)
            if isinstance(cell, dict):
                cells.append(
                    f"{cell['projected']:8.3f} [{cell['low']:8.3f} {cell['high']:8.3f}] {cell['measured']:8.3f} "
                    f"{cell['error']:+6.1%} {'' if cell['held'] else '*':1}"
                )
        print(" | ".join(cells) if "refused" not in row else f"{cells[0]} refused: {row['refused']}")
    print(json.dumps(result["summary"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
