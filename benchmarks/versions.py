"""CPU of a call through the gateway of another checkout and of this one, in turns, driven by the same generator.

    python -m benchmarks.versions --json [--quick] [--before FOLDER]

FOLDER is a checkout (git worktree add --detach FOLDER COMMIT). Without it this checkout runs against itself: what the
figures then differ by is the machine's noise. hit, miss and recommended are those of benchmarks.gateway, which compares
with other programs; here only the gateway's own code differs, for each side's own generator would be part of what is
measured. `now_over_before` is the median over the turns of the ratio within a turn.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks._rig import cores, machine, pin
from benchmarks.gateway import PASSING, SHARING, gateway, plain_upstream, rounds_of

POLICIES = {"hit": SHARING, "miss": PASSING, "recommended": None}
BEFORE, NOW = "before", "now"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object (also the default)")
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="the other checkout; this one when not given")
    args = parser.parse_args()
    here = Path(__file__).parents[1]
    pin(cores()[0])
    print(json.dumps(measure((args.before or here).absolute() / "src", here / "src", 3 if args.quick else 7)))


def measure(before: Path, now: Path, turns: int) -> dict[str, object]:
    """Every turn starts both gateways anew, now the one first and now the other."""
    found: dict[str, object] = {"machine": machine(), "against_itself": before == now}
    for name, policy in POLICIES.items():
        figures: dict[str, list[float]] = {BEFORE: [], NOW: []}
        for turn in range(turns):
            sides = [(BEFORE, before), (NOW, now)]
            for side, source in sides if turn % 2 == 0 else sides[::-1]:
                figures[side].append(cpu_us(source, policy, new=name != "hit"))
        ratios = [after / earlier for earlier, after in zip(figures[BEFORE], figures[NOW], strict=True)]
        found[name] = {
            "cpu_us_per_request": {side: [round(one, 1) for one in each] for side, each in figures.items()},
            "ratios": [round(ratio, 2) for ratio in ratios],
            "now_over_before": round(statistics.median(ratios), 2),
        }
    return found


def cpu_us(source: Path, policy: str | None, *, new: bool) -> float:
    """CPU a request of a gateway made from `source`: the median of six rounds of 2,000."""
    with tempfile.TemporaryDirectory() as temporary, code_from(source):
        folder = Path(temporary)
        with plain_upstream(folder) as (_, upstream), gateway(folder, upstream, policy) as target:
            one_round = rounds_of(target, 2_000, new=new)
            one_round(-1)
            return statistics.median(one_round(turn) for turn in range(6))


@contextlib.contextmanager
def code_from(source: Path) -> Iterator[None]:
    """What is started within imports paceline from there."""
    earlier = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(source)
    try:
        yield
    finally:
        if earlier is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = earlier


if __name__ == "__main__":
    main()
