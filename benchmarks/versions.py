"""CPU of a call through the gateway of another checkout and of this one, in turns, driven by the same generator.

    python -m benchmarks.versions --json [--quick] [--before FOLDER]

FOLDER is a checkout (git worktree add --detach FOLDER COMMIT). Without it this checkout runs against itself: what the
figures then differ by is the machine's noise. hit, miss and recommended are those of benchmarks.gateway, which compares
with other programs; here only the gateway's own code differs, for each side's own generator would be part of what is
measured. Both run at the same time and are asked in turns, a round of 1,000 calls each (0.1 to 0.5 s): a neighbour on
the machine that makes everything a third dearer for a while does so to both. `now_over_before` is the median of the
ratios of such pairs, with its quarters; `by_turn` gives it for each start of the two.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks._rig import cores, machine, pin
from benchmarks.gateway import PASSING, SHARING, gateway, plain_upstream, rounds_of

POLICIES = {"hit": SHARING, "miss": PASSING, "recommended": None}
REQUESTS, ROUNDS = 1_000, 25  # in a round; in a turn, of each side


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
    """Every turn starts both gateways anew, and they answer short rounds one after the other."""
    found: dict[str, object] = {"machine": machine(), "against_itself": before == now}
    for name, policy in POLICIES.items():
        pairs = [one_turn(before, now, policy, new=name != "hit") for _ in range(turns)]
        figures = [statistics.median(side) for side in zip(*itertools.chain(*pairs), strict=True)]
        by_turn = [statistics.median(after / earlier for earlier, after in turn) for turn in pairs]
        ratios = sorted(after / earlier for turn in pairs for earlier, after in turn)
        found[name] = {
            "cpu_us_per_request": {"before": round(figures[0], 1), "now": round(figures[1], 1)},
            "now_over_before": round(statistics.median(ratios), 3),
            "by_turn": [round(ratio, 3) for ratio in by_turn],
            "quarter_below": round(ratios[len(ratios) // 4], 3),
            "quarter_above": round(ratios[-1 - len(ratios) // 4], 3),
        }
    return found


def one_turn(before: Path, now: Path, policy: str | None, *, new: bool) -> list[tuple[float, float]]:
    """CPU a request of both gateways, round by round, each so short that what else the machine does hits both."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        upstream = stack.enter_context(plain_upstream(folder))[1]
        sides = []
        for source in (before, now):
            with code_from(source):
                target = stack.enter_context(gateway(folder, upstream, policy))
            sides.append(rounds_of(target, REQUESTS, new=new))
        for one_round in sides:
            one_round(-1)
            one_round(0)
        pairs = []
        for turn in range(1, ROUNDS + 1):
            order = (0, 1) if turn % 2 else (1, 0)
            figures = {side: sides[side](turn) for side in order}
            pairs.append((figures[0], figures[1]))
        return pairs


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
