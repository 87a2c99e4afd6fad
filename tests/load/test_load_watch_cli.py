"""`paceline load --watch-*`: the target's resources are in the run, and what cannot be watched is refused."""

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.cli import main
from paceline.store.folder import open_run
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve

PAGE = "process_resident_memory_bytes 1.5e+08\nprocess_cpu_seconds_total 2.5\n"


@pytest.fixture
def url() -> Iterator[str]:
    """A server in a thread that has metrics about somebody else."""
    loop = asyncio.new_event_loop()

    async def handler(_: HttpRequest) -> Reply:
        return Reply(200, [], PAGE.encode())

    server = loop.run_until_complete(serve(handler, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    asyncio.run_coroutine_threadsafe(server.close(grace_s=0), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["pid", "port", "metrics"])
def test_samples_of_the_target_are_in_the_run(
    tmp_path: Path, url: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value = {"pid": str(os.getpid()), "port": url.rpartition(":")[2], "metrics": f"{url}/metrics"}[what]
    options = ["--rate", "20", "--duration", "1.3", "--runs", str(tmp_path), f"--watch-{what}", value, "--json"]
    code = main(["load", url, *options, "--objective", "memory_mb<100000"])
    assert code in (0, 4)  # 4: the generator was late, on a machine that is busy with other things
    said = capsys.readouterr()
    (path,) = tmp_path.iterdir()
    samples = open_run(path).resources()
    assert samples
    assert {s.service for s in samples} == {"app"}
    assert all(s.rss_bytes > 1e6 for s in samples)
    assert list(path.glob("resources-*.parquet"))
    assert json.loads(said.out)["scenarios"][0]["figures"]["memory_mb"] <= max(s.rss_bytes for s in samples) / 1e6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--watch-pid", "1", "--watch-port", "1"], "exclude each other"),
        (["--watch-pid", "4194304999"], "no process 4194304999"),
        (["--watch-port", "1"], "nothing listens there"),
        (["--watch-cgroup", "/nowhere"], "not a control group"),
    ],
)
def test_what_cannot_be_watched_is_refused(
    tmp_path: Path, url: str, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["load", url, "--users", "1", "--requests", "1", "--runs", str(tmp_path), *options]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
