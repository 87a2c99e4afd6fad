"""A scenario driven by stock Locust workers, over Locust's own connections, on this machine."""

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import uvloop

from paceline.errors import ConfigError, MeasurementError
from paceline.load.driver import Snapshot
from paceline.load.locust.fleet import Fleet, gather
from paceline.load.scenario import Scenario
from paceline.store.folder import create_run
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve

pytestmark = pytest.mark.slow


@contextlib.asynccontextmanager
async def workers(count: int, tmp_path: Path) -> "AsyncIterator[tuple[Fleet, list[asyncio.subprocess.Process]]]":
    """So many Locust workers, started as a user would once Paceline says how; all end by themselves afterwards."""
    processes: list[asyncio.subprocess.Process] = []
    told: asyncio.Queue[str] = asyncio.Queue()

    async def start() -> None:
        command = (await told.get()).partition("with: locust ")[2].split()
        for place in range(count):
            folder = tmp_path / f"worker-{place}"  # where it puts the locustfile it is handed
            folder.mkdir()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "locust", *command),
                cwd=folder,
                env={**os.environ, "TMPDIR": str(folder)},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            processes.append(process)

    starting = asyncio.create_task(start())
    try:
        async with gather("127.0.0.1", 0, count, say=told.put_nowait, within_s=240) as fleet:
            yield fleet, processes
        await starting
        async with asyncio.timeout(60):
            await asyncio.gather(*(process.wait() for process in processes))
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.mark.timeout(400)
def test_two_locust_workers_share_a_scenario_and_one_of_them_is_killed(tmp_path: Path) -> None:
    """Body files travel, the schedule is dealt out as it was fixed; a lost worker is named, its records stay."""
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text("\n".join(f'{{"q": {i}}}' for i in range(41)))
    closed = Scenario(name="closed", users=5, requests=41, bodies=str(bodies))
    endless = Scenario(name="endless", model="open", rate_per_s=100.0, duration_s=60.0, method="GET")
    run = create_run(tmp_path, "r")
    asked: list[HttpRequest] = []

    def answer(request: HttpRequest) -> Reply:
        asked.append(request)
        return Reply(200, body=b"{}")

    async def work() -> str | None:
        server = await serve(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.port}"
        under_way = asyncio.Event()

        def show(snapshot: Snapshot) -> None:
            if snapshot.done > 20:
                under_way.set()

        try:
            async with workers(2, tmp_path) as (fleet, processes):
                assert (await fleet.drive(closed, url, run)).stopped is None
                driving = asyncio.ensure_future(fleet.drive(endless, url, run, progress=show))
                await under_way.wait()
                os.kill(processes[1].pid, signal.SIGKILL)
                stopped = (await driving).stopped
                with pytest.raises(MeasurementError, match="1 of 2 Locust workers left"):
                    await fleet.drive(closed, url, run)
                return stopped
        finally:
            await server.close(grace_s=0)

    stopped = uvloop.run(work())
    assert stopped is not None
    assert "is gone: no heartbeat came any more; what it had recorded is kept" in stopped
    shared = run.requests("closed")
    assert sorted(r.index for r in shared) == list(range(41))
    assert len({r.key for r in shared}) == 41
    assert {r.user for r in shared} == set(range(5))
    assert {r.trace_id for r in shared} <= {dict(a.headers)[b"traceparent"].decode().split("-")[1] for a in asked}
    both = [r for r in run.requests("endless") if r.index < 20]
    assert [r.index for r in both] == list(range(20))
    gaps = [b.intended_s - a.intended_s for a, b in itertools.pairwise(both)]
    assert gaps == pytest.approx([0.01] * 19, abs=0.005)  # two clocks, compared over the network
    assert [info.name for info in run.info.scenarios] == ["closed", "endless"]
    assert all("sent by 2 Locust workers on" in info.notes[-1] for info in run.info.scenarios)
    assert not [p for p in psutil.Process().children(recursive=True) if "paceline" in " ".join(p.cmdline())]


def test_too_few_workers_and_a_port_in_use_are_one_sentence() -> None:
    async def work() -> None:
        said: list[str] = []
        with pytest.raises(ConfigError, match=r"0 of 2 Locust workers came within 0\.01 s"):
            async with gather("127.0.0.1", 0, 2, say=said.append, within_s=0.01):
                pass
        assert "locust -f - --worker --master-host 127.0.0.1 --master-port" in said[0]
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen for Locust workers on 127.0.0.1:{port}"):
            async with gather("127.0.0.1", port, 2, say=said.append):
                pass
        server.close()
        await server.wait_closed()

    asyncio.run(work())
