"""The sampler: CPU that never goes backward, and real processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.model.request import ResourceSample
from paceline.record.sampler import ProcessKey, Sampler, Tree, TreeCpu
from paceline.store.spool import Spool

BURN = "import time\nend=time.process_time()+0.15\nwhile time.process_time()<end: pass"

PARENT = f"""
import subprocess, sys
sys.stdin.readline()
subprocess.run([sys.executable, "-c", {BURN!r}])
print("done", flush=True)
sys.stdin.readline()
"""


class Parent:
    """A model of one parent whose children work, end and are collected, with what the kernel would report."""

    def __init__(self) -> None:
        self.own = self.collected = self.true = 0.0
        self.children: dict[int, float] = {}

    def readings(self) -> dict[ProcessKey, tuple[float, float]]:
        living: dict[ProcessKey, tuple[float, float]] = {(1, 0.0): (self.own, self.collected)}
        return living | {(pid, 0.0): (used, 0.0) for pid, used in self.children.items()}


actions = st.lists(
    st.tuples(st.sampled_from(["work", "child works", "child ends", "read"]), st.integers(2, 5), st.integers(1, 9)),
    max_size=40,
)


@given(actions)
def test_tree_cpu_equals_the_true_total_and_never_falls(steps: list[tuple[str, int, int]]) -> None:
    tree, cpu, last = Parent(), TreeCpu(), 0.0
    next_pid = {pid: pid for pid in range(2, 6)}
    for action, slot, amount in steps:
        pid = next_pid[slot]
        if action == "work":
            tree.own += amount
            tree.true += amount
        elif action == "child works":
            tree.children[pid] = tree.children.get(pid, 0.0) + amount
            tree.true += amount
        elif action == "child ends" and pid in tree.children:
            tree.collected += tree.children.pop(pid)
            next_pid[slot] += 10  # pids are not used again at once
        elif action == "read":
            total = cpu.update(tree.readings())
            assert total >= last
            assert total == pytest.approx(tree.true)
            last = total


def test_children_nobody_collects_do_not_stop_the_clock() -> None:
    cpu = TreeCpu()
    cpu.update({(1, 0.0): (1.0, 0.0), (2, 0.0): (5.0, 0.0)})
    assert cpu.update({(1, 0.0): (1.5, 0.0)}) == 6.5


@pytest.mark.slow
def test_a_child_that_lived_between_two_readings_is_counted() -> None:
    """The parent collects a child that burned 0.15 s; only its parent was ever seen."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        tree = Tree(process.pid)
        before = tree.read("app", 0.0, 0.0)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        after = tree.read("app", 1.0, 1.0)
        process.stdin.write("\n")
    assert before is not None
    assert after is not None
    assert after.cpu_s - before.cpu_s >= 0.15
    assert after.rss_bytes > 1_000_000
    assert (after.processes, after.threads) == (1, 1)


def test_the_sampler_writes_and_survives_the_end_of_what_it_watches(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "resources", "sampler")
    start_s = time.monotonic()
    sampler = Sampler(spool, lambda: time.monotonic() - start_s, interval_s=0.0)
    sampler.watch_self()
    sampler.watch("gone", 2**22 + 1)
    sampler.start()
    sampler.close()
    spool.close()
    samples = [msgspec.json.decode(line, type=ResourceSample) for line in spool.path.read_bytes().splitlines()]
    assert {s.service for s in samples} == {"generator"}
    assert samples[-1].processes == 1
    assert samples[-1].rss_bytes > 0
    assert [s.cpu_s for s in samples] == sorted(s.cpu_s for s in samples)
    assert samples[-1].cpu_s <= sum(os.times()[:4]) + 1
