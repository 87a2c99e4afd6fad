"""One scenario, several processes: dealt out, merged, interrupted, killed."""

import asyncio
import contextlib
import itertools
import os
import signal
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples

from paceline.errors import ConfigError, ServiceError
from paceline.load.driver import Snapshot, drive
from paceline.load.orders import Result, Trust
from paceline.load.scenario import Scenario
from paceline.load.workers import merged
from paceline.model.run import ScenarioInfo
from paceline.stats.histogram import Histogram
from paceline.store.folder import RunFolder, create_run
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve

pytestmark = pytest.mark.slow  # each starts processes

durations = st.lists(st.floats(min_value=1e-6, max_value=10), min_size=1, max_size=50)


def scenario(**changes: object) -> Scenario:
    return Scenario(name="s", **{"users": 5, "requests": 41, "processes": 2, **changes})  # type: ignore[arg-type]


def answer(_: HttpRequest) -> Reply:
    return Reply(200, body=b"{}")


async def slowly(_: HttpRequest) -> Reply:
    await asyncio.sleep(0.01)
    return Reply(200, body=b"{}")


async def against(
    run: RunFolder,
    asked: Scenario,
    handler: Callable[[HttpRequest], Reply | Awaitable[Reply]],
    once_under_way: Callable[["asyncio.Task[ScenarioInfo]"], object] | None = None,
) -> ScenarioInfo:
    """Drive at a server with this handler; something may happen when every process has sent for a while."""
    server = await serve(handler, "127.0.0.1", 0)
    under_way = asyncio.Event()

    def show(snapshot: Snapshot) -> None:
        if snapshot.elapsed_s > 0.2:
            under_way.set()

    try:
        driving = asyncio.ensure_future(drive(asked, f"http://127.0.0.1:{server.port}", run, progress=show))
        if once_under_way is not None:
            await under_way.wait()
            once_under_way(driving)
        return await driving
    finally:
        await server.close(grace_s=0)


def spawned() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, or another test's has and was not waited for
            if "paceline.load.workers" in process.cmdline():
                found.append(process)
    return found


def test_users_and_the_sequence_are_dealt_out(tmp_path: Path) -> None:
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text("\n".join(f'{{"q": {i}}}' for i in range(41)))
    run = create_run(tmp_path, "r")
    info = uvloop.run(against(run, scenario(bodies=str(bodies)), answer))
    requests = run.requests()
    assert sorted(r.index for r in requests) == list(range(41))
    assert len({r.key for r in requests}) == 41  # no body was sent twice
    assert len({r.trace_id for r in requests}) == 41
    assert {r.user for r in requests} == set(range(5))
    assert all((r.user or 0) % 2 == r.index % 2 for r in requests)
    assert (info.requests, info.processes, info.stopped) == (41, 2, None)
    assert run.info.scenarios == [info]
    assert not spawned()


def test_the_schedule_is_dealt_out_as_it_was_fixed(tmp_path: Path) -> None:
    """Sorted by their due times, the requests are the sequence that one process would send."""
    run = create_run(tmp_path, "r")
    asked = scenario(model="open", users=None, rate_per_s=400.0, requests=60)
    info = uvloop.run(against(run, asked, answer))
    requests = run.requests()
    assert [r.index for r in requests] == list(range(60))
    gaps = [b.intended_s - a.intended_s for a, b in itertools.pairwise(requests)]
    assert gaps == pytest.approx([0.0025] * 59, abs=1e-6)
    assert info.achieved_rate_per_s is not None


def test_a_process_that_is_killed_makes_the_run_partial(tmp_path: Path) -> None:
    run = create_run(tmp_path, "r")

    def kill(_: "asyncio.Task[ScenarioInfo]") -> None:
        os.kill(spawned()[1].pid, signal.SIGKILL)

    info = uvloop.run(against(run, scenario(requests=100_000), slowly, kill))
    assert info.stopped == "generator process 2 of 2 was killed by signal 9; what it had recorded is kept"
    assert {r.index % 2 for r in run.requests()} == {0, 1}
    run.finish()
    assert Counter(r.error for r in run.requests()).keys() == {None}
    assert not spawned()


def test_interrupting_stops_every_process_and_keeps_the_records(tmp_path: Path) -> None:
    run = create_run(tmp_path, "r")
    with pytest.raises(asyncio.CancelledError):
        uvloop.run(against(run, scenario(requests=100_000), slowly, asyncio.Task.cancel))
    assert run.info.scenarios[0].stopped == "interrupted"
    assert run.info.scenarios[0].requests == len(run.requests()) > 0
    assert not spawned()


def test_a_target_that_cannot_be_reached_is_refused_as_by_one_process(tmp_path: Path) -> None:
    run = create_run(tmp_path, "r")
    with pytest.raises(ServiceError, match=r"nothing listens on 127\.0\.0\.1:1\."):
        uvloop.run(drive(scenario(), "http://127.0.0.1:1", run))
    assert not run.info.scenarios
    assert not spawned()


def test_a_missing_body_file_is_refused_as_by_one_process(tmp_path: Path) -> None:
    run = create_run(tmp_path, "r")
    with pytest.raises(ConfigError, match="cannot read the bodies file"):
        uvloop.run(against(run, scenario(bodies=str(tmp_path / "none")), answer))


def test_never_more_processes_than_users(tmp_path: Path) -> None:
    run = create_run(tmp_path, "r")
    info = uvloop.run(against(run, scenario(users=1, processes=8), answer))
    assert info.processes == 1
    assert len(run.requests()) == 41


@examples(15)
@given(durations, durations)
def test_merged_health_is_that_of_all_lateness_together(left: list[float], right: list[float]) -> None:
    results = [
        Result(
            ScenarioInfo(name="s", model="closed", requests=len(lags), generator_cpu_ratio=0.1),
            Histogram.of(lags).encode(),
            Histogram.of(lags).encode(),
            1.0,
        )
        for lags in (left, right)
    ]
    info = merged(results, [3], 3, "why")
    assert info.lag_p99_s == Histogram.of(left + right).quantile(0.99)
    assert info.lag_max_s == max(left + right)
    assert (info.requests, info.processes, info.stopped) == (len(left) + len(right) + 3, 3, "why")


def test_trust_is_the_same_in_another_process() -> None:
    tls = ssl.create_default_context()
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    other = Trust.of(tls).context()
    assert (other.verify_mode, other.check_hostname) == (ssl.CERT_NONE, False)
    assert Trust.of(ssl.create_default_context()).context().verify_mode == ssl.CERT_REQUIRED
