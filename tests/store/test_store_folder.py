"""Run folders: what is written is what is read, and nothing recorded is lost."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples

from paceline.errors import ConfigError, InputError, MeasurementError
from paceline.model.request import Request, ResourceSample
from paceline.model.run import PARTIAL, SCHEMA
from paceline.model.span import RETRY_AFTER_S, TTFT_S, Span
from paceline.store.folder import RunFolder, create_run, open_run

texts = st.text(max_size=20)
attributes = st.dictionaries(
    texts, st.one_of(texts, st.integers(-(2**53), 2**53), st.booleans(), st.lists(texts, max_size=3)), max_size=4
)
spans = st.builds(
    Span,
    trace_id=st.text("0123456789abcdef", min_size=32, max_size=32),
    span_id=st.text("0123456789abcdef", min_size=16, max_size=16),
    parent_id=st.none() | st.just("ab" * 8),
    name=texts,
    kind=st.sampled_from(["llm", "db", "new kind"]),
    start_ns=st.integers(10**18, 2 * 10**18),
    duration_ns=st.integers(0, 10**12),
    wait_ns=st.integers(0, 10**9),
    cost_usd=st.none() | st.floats(0, 1),
    input_tokens=st.none() | st.integers(0, 10**6),
    status=st.sampled_from(["ok", "error"]),
    attributes=attributes,
)


def request(index: int = 0, **changes: object) -> Request:
    base = Request(
        index=index,
        scenario="main",
        endpoint="POST /chat",
        trace_id="t",
        intended_s=1.0 + index,
        started_s=1.5,
        ended_s=3.0,
    )
    return msgspec.structs.replace(base, **changes)


def write_requests(run: RunFolder, count: int) -> None:
    spool = run.spool("requests", "load")
    for index in range(count):
        spool.append(request(index))
    spool.close()


@examples(10)
@given(st.lists(spans, max_size=8, unique_by=lambda s: s.span_id))
def test_spans_read_back_equal_live_and_sealed(tmp_path_factory: pytest.TempPathFactory, written: list[Span]) -> None:
    """Every field, unknown kinds and odd attributes included, survives the spool and the Parquet."""
    run = create_run(tmp_path_factory.mktemp("runs"), "r")
    spool = run.spool("spans", "app")
    for span in written:
        spool.append(span)
    spool.close()
    expected = sorted(written, key=lambda s: (s.start_ns, s.span_id))
    assert run.spans() == expected
    run.finish()
    assert open_run(run.path).spans() == expected


def test_times_are_read_at_the_providers_pace(tmp_path: Path) -> None:
    """At speed 4 a second on the wall is four in every answer, attributes and gaps included."""
    run = create_run(tmp_path, "fast", speed=4.0)
    requests, spool, resources = run.spool("requests", "a"), run.spool("spans", "a"), run.spool("resources", "a")
    requests.append(request(first_byte_s=2.0, gaps_s=[0.5]))
    start_ns = run.info.start_ns
    spool.append(
        Span(
            trace_id="t",
            span_id="s",
            name="n",
            kind="llm",
            start_ns=start_ns + 10,
            duration_ns=100,
            wait_ns=5,
            cpu_ns=2,
            attributes={TTFT_S: 0.5, RETRY_AFTER_S: 1.0},
        )
    )
    resources.append(ResourceSample(at_s=1.0, service="app", processes=1, threads=2, cpu_s=0.5, rss_bytes=7))
    for s in (requests, spool, resources):
        s.close()
    (got,) = run.requests()
    assert (got.intended_s, got.first_byte_s, got.ended_s, got.gaps_s) == (4.0, 8.0, 12.0, [2.0])
    (span,) = run.spans()
    assert (span.start_ns - start_ns, span.duration_ns, span.wait_ns, span.cpu_ns) == (40, 400, 20, 8)
    assert span.attributes == {TTFT_S: 2.0, RETRY_AFTER_S: 4.0}
    (sample,) = run.resources()
    assert (sample.at_s, sample.cpu_s, sample.rss_bytes) == (4.0, 2.0, 7)
    assert run.query("SELECT max(ended_s) FROM requests") == [(12.0,)]


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    """A writer killed in the middle of a line loses that line alone."""
    run = create_run(tmp_path, "torn")
    write_requests(run, 3)
    with (run.path / "requests-load.jsonl").open("ab") as file:
        file.write(b'{"index": 3, "scenario": "ma')
    assert [r.index for r in open_run(run.path).requests()] == [0, 1, 2]
    run.finish(PARTIAL, "killed")
    assert [r.index for r in open_run(run.path).requests()] == [0, 1, 2]


def test_a_killed_process_keeps_what_it_flushed(tmp_path: Path) -> None:
    """After kill -9 the run opens unsealed, with every flushed record."""
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom paceline.store.folder import create_run\n"
        "from paceline.model.request import ResourceSample\n"
        "run = create_run(Path(sys.argv[1]), 'killed'); spool = run.spool('resources', 'x')\n"
        "for i in range(50):\n"
        "    spool.append(ResourceSample(at_s=i, service='app', processes=1, threads=1, cpu_s=0, rss_bytes=1))\n"
        "spool.flush(); print(run.path, flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        path = Path(process.stdout.readline().strip())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    run = open_run(path)
    assert run.info.state == "running"
    assert len(run.resources()) == 50


def test_several_writers_and_both_forms_are_read_together(tmp_path: Path) -> None:
    """A sealed segment and a live one of another writer make one table; a leftover spool is not counted twice."""
    run = create_run(tmp_path, "both")
    write_requests(run, 2)
    left = (run.path / "requests-load.jsonl").read_bytes()
    run.finish()
    (run.path / "requests-load.jsonl").write_bytes(left)
    late = run.spool("requests", "late")
    late.append(request(9))
    late.close()
    assert [r.index for r in run.requests()] == [0, 1, 9]
    assert [r.index for r in run.requests("other")] == []


def test_an_empty_run_has_empty_tables(tmp_path: Path) -> None:
    run = create_run(tmp_path, "empty")
    run.finish()
    assert (run.requests(), run.spans(), run.resources()) == ([], [], [])


def test_a_newer_run_is_refused_by_name(tmp_path: Path) -> None:
    run = create_run(tmp_path, "new")
    header = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({"schema": SCHEMA + 1, "surprise": header}))
    with pytest.raises(InputError, match=f"newer Paceline .run schema {SCHEMA + 1}"):
        open_run(run.path)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"PAR1" + b[4:-4] + b"XXXX"])
def test_a_damaged_segment_is_named_and_the_rest_can_be_salvaged(tmp_path: Path, damage: object) -> None:
    """The error lists what can still be read, and salvage reads it."""
    run = create_run(tmp_path, "hurt")
    write_requests(run, 4)
    spool = run.spool("resources", "sampler")
    spool.append(ResourceSample(at_s=1.0, service="app", processes=1, threads=1, cpu_s=0.0, rss_bytes=1))
    spool.close()
    run.finish()
    segment = run.path / "resources-sampler.parquet"
    segment.write_bytes(damage(segment.read_bytes()))  # type: ignore[operator]
    with pytest.raises(InputError, match=r"resources-sampler\.parquet cut short.*requests-load\.parquet"):
        open_run(run.path)
    run = open_run(run.path, salvage=True)
    assert len(run.requests()) == 4
    assert run.resources() == []


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no run\.json"):
        open_run(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        open_run(tmp_path / "nothing")
    (tmp_path / "run.json").write_text("{ half")
    with pytest.raises(InputError, match="is damaged"):
        open_run(tmp_path)


def test_an_unwritable_root_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to"):
        create_run(tmp_path / "file", "r")


def test_a_full_disk_keeps_the_records_for_the_next_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused flush raises, keeps its records, and the next one writes each of them exactly once."""
    run = create_run(tmp_path, "full")
    spool = run.spool("requests", "load")
    spool.append(request(0))
    real_write = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        spool.flush()
    monkeypatch.setattr(os, "write", real_write)
    spool.append(request(1))
    spool.close()
    assert [r.index for r in run.requests()] == [0, 1]


def test_a_disk_that_takes_half_a_batch_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write cut in the middle of a line is mended by the next flush."""
    run = create_run(tmp_path, "half")
    spool = run.spool("requests", "load")
    for index in range(4):
        spool.append(request(index))
    real_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: real_write(fd, data[: len(data) * 5 // 8]))
        with pytest.raises(OSError, match="only part"):
            spool.flush()
    spool.close()
    assert [r.index for r in run.requests()] == [0, 1, 2, 3]
    assert spool.written == 4


def test_two_processes_may_change_the_header(tmp_path: Path) -> None:
    """What the load driver noted is still there when the recorder, opened before, finishes."""
    recorder = create_run(tmp_path, "shared")
    open_run(recorder.path).update(notes=["from the driver"])
    recorder.finish()
    info = open_run(recorder.path).info
    assert (info.notes, info.state) == (["from the driver"], "complete")


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root on Linux can mount a small disk")
def test_a_disk_that_fills_up_while_sealing_keeps_the_spool(tmp_path: Path) -> None:
    """One clear sentence, exit 4, and every record still there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        run = create_run(disk, "full")
        spool = run.spool("requests", "load")
        for index in range(200):
            spool.append(request(index))
        spool.close()
        with (disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while ballast.write(b"x" * 4096):
                pass
        with pytest.raises(MeasurementError, match="no space left on the disk"):
            run.finish()
        assert len(open_run(run.path).requests()) == 200
    finally:
        subprocess.run(["umount", str(disk)], check=True)
