"""What a target uses: this process, a page of metrics, a control group, and the run they end up in."""

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.errors import ConfigError
from paceline.load.watch import Cgroup, MetricsEndpoint, listening_pid, sample_of
from paceline.record.sampler import GrowingSum, Tree, network_bytes
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve

PAGE = """# HELP process_resident_memory_bytes Resident memory size in bytes.
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 1.5e+08
process_cpu_seconds_total{pid="1"} 2.5
process_cpu_seconds_total{pid="2", note="a {b} c"} 0.5 1700000000000
process_open_fds 12
http_requests_total{path="/"} 7
process_threads NaN
"""


@pytest.fixture
def url() -> Iterator[str]:
    """A server in a thread that has metrics about somebody else."""
    loop = asyncio.new_event_loop()

    async def handler(request: HttpRequest) -> Reply:
        return Reply(500 if request.path == "/broken" else 200, [], PAGE.encode())

    server = loop.run_until_complete(serve(handler, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    asyncio.run_coroutine_threadsafe(server.close(grace_s=0), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_page_of_metrics_is_read() -> None:
    sample = sample_of(PAGE, "app", 3.0)
    assert sample is not None
    assert (sample.at_s, sample.rss_bytes, sample.cpu_s, sample.descriptors) == (3.0, 150_000_000, 3.0, 12)
    assert (sample.threads, sample.sent_bytes) == (0, None)


@pytest.mark.parametrize("page", ["", "<html>", "process_resident_memory_bytes", "process_resident_memory_bytes +Inf"])
def test_a_page_without_memory_is_no_sample(page: str) -> None:
    assert sample_of(page, "app", 0.0) is None


def test_an_endpoint_is_asked_once_a_second_and_its_troubles_are_kept(url: str) -> None:
    endpoint = MetricsEndpoint(f"{url}/metrics")
    assert endpoint.read("app", 0.0, 100.0) is not None
    assert endpoint.read("app", 0.5, 100.5) is None
    assert endpoint.read("app", 1.0, 101.0) is not None
    assert (endpoint.failed, endpoint.problem) == (0, None)
    endpoint.close()
    broken = MetricsEndpoint(f"{url}/broken")
    assert broken.read("app", 0.0, 0.0) is None
    assert "status 500" in str(broken.problem)
    broken.close()
    gone = MetricsEndpoint("http://127.0.0.1:1/metrics")
    assert gone.read("app", 0.0, 0.0) is None
    assert "refused" in str(gone.problem)
    with pytest.raises(ConfigError, match="needs a URL"):
        MetricsEndpoint("metrics")


def test_a_control_group_is_read(tmp_path: Path) -> None:
    files = {
        "memory.current": "150000000\n", "memory.stat": "anon 9\ninactive_file 50000000\n", "pids.current": "7\n",
        "cpu.stat": "usage_usec 2500000\nuser_usec 1\n", "cgroup.procs": "1\n2\n",
        "io.stat": "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    group = Cgroup(tmp_path)
    sample = group.read("app", 1.0, 0.0)
    assert sample is not None
    assert (sample.rss_bytes, sample.cpu_s, sample.processes, sample.threads) == (100_000_000, 2.5, 2, 7)
    assert (sample.disk_read_bytes, sample.disk_write_bytes) == (11, 22)
    (tmp_path / "memory.current").unlink()
    assert group.read("app", 2.0, 0.0) is None
    with pytest.raises(ConfigError, match="not a control group"):
        Cgroup(tmp_path)


def test_the_process_behind_a_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert listening_pid(listening.getsockname()[1]) == os.getpid()
    with pytest.raises(ConfigError, match="nothing listens there"):
        listening_pid(1)


def test_a_thorough_reading_sees_sockets_and_what_was_written(tmp_path: Path) -> None:
    tree = Tree(os.getpid(), alone=True, thorough=True)
    before = tree.read("app", 0.0, 0.0)
    with socket.create_server(("127.0.0.1", 0)), (tmp_path / "f").open("wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        after = Tree(os.getpid(), thorough=True).read("app", 1.0, 10.0)
    assert before is not None
    assert after is not None
    assert after.sockets is not None
    assert after.sockets >= 1
    assert after.disk_write_bytes is not None
    assert after.sent_bytes is None  # it shares our network namespace


def test_counters_of_processes_that_end_stay_counted() -> None:
    total = GrowingSum()
    total.update({(1, 0.0): (10, 1), (2, 0.0): (5, 0)})
    assert total.update({(1, 0.0): (12, 1)}) == [17, 1]
    assert total.update({(2, 9.0): (3, 3)}) == [20, 4]


def test_network_bytes_leave_loopback_out() -> None:
    lines = ["    lo: 99 1 0 0 0 0 0 0 99 1 0", "  eth0: 10 1 0 0 0 0 0 0 20 1 0", "  eth1:1 1 0 0 0 0 0 0 2 1 0"]
    assert network_bytes(lines) == (11, 22)
