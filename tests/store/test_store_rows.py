"""Binary row spools: what is written is what is read, whatever was cut off."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples

from paceline.errors import InputError
from paceline.model.request import Request
from paceline.store.folder import RunFolder, create_run, open_run
from paceline.store.rows import CACHES, ERRORS, ROW, Naming, RowsHeader, RowSpool, trace_low

HEADER = RowsHeader(scenario="it's", zero_s=100.0, trace_high="ab" * 8, trace_base="ff00000000000001")
NAMINGS = [Naming(endpoint="POST /chat", key="k", text_key="t", request_bytes=7), Naming(endpoint="GET /ü")]
SAVED = Path(__file__).parents[1] / "data" / "rows-1"

times = st.floats(100, 1000)
rows = st.tuples(
    times,
    times,
    st.just(math.nan) | times,
    times,
    st.integers(0, 2**40),
    st.integers(0, len(NAMINGS) - 1),
    st.integers(-1, 2**31 - 1),
    st.integers(0, 999),
    st.integers(0, len(ERRORS) - 1),
    st.integers(0, len(CACHES) - 1),
)
Row = tuple[float, float, float, float, int, int, int, int, int, int]


def packed(index: int, row: Row) -> bytes:
    return ROW.pack(*row[:5], index, *row[5:])


def expected(index: int, row: Row) -> Request:
    intended_s, started_s, first_s, ended_s, size, naming, user, status, error, cache = row
    named = NAMINGS[naming]
    return Request(
        index=index,
        scenario="it's",
        endpoint=named.endpoint,
        trace_id=f"{'ab' * 8}{trace_low(0xFF00000000000001, index):016x}",
        intended_s=intended_s - 100,
        started_s=started_s - 100,
        first_byte_s=None if math.isnan(first_s) else first_s - 100,
        ended_s=ended_s - 100,
        status=status or None,
        error=ERRORS[error],
        request_bytes=named.request_bytes,
        response_bytes=size,
        cache=CACHES[cache],
        key=named.key,
        text_key=named.text_key,
        user=None if user < 0 else user,
    )


def spooled(run: RunFolder, written: list[Row]) -> RowSpool:
    spool = run.row_spool("load", HEADER)
    for naming in NAMINGS:
        spool.name(naming)
    for index, row in enumerate(written):
        spool.append(packed(index, row))
    return spool


@examples(10)
@given(st.lists(rows, max_size=8))
def test_rows_read_back_equal_live_and_sealed(tmp_path_factory: pytest.TempPathFactory, written: list[Row]) -> None:
    run = create_run(tmp_path_factory.mktemp("runs"), "r")
    spooled(run, written).close()
    requests = [expected(index, row) for index, row in enumerate(written)]
    requests.sort(key=lambda r: (r.intended_s, r.index))
    assert run.requests() == requests
    run.finish()
    assert open_run(run.path).requests() == requests
    assert {p.suffix for p in run.path.iterdir()} <= {".json", ".parquet"}


def test_flushing_gives_what_was_fresh(tmp_path: Path) -> None:
    spool = spooled(create_run(tmp_path, "r"), [])
    spool.append(b"a" * ROW.size)
    assert spool.flush() == b"a" * ROW.size
    assert spool.flush() == b""
    spool.close()
    spool.close()


@pytest.mark.parametrize("cut", [1, 55])
def test_a_torn_row_costs_only_itself(tmp_path: Path, cut: int) -> None:
    run = create_run(tmp_path, "r")
    spool = spooled(run, [(101.0, 101.0, 101.5, 102.0, 1, 0, 0, 200, 0, 0)] * 3)
    spool.close()
    os.truncate(spool.path, 3 * ROW.size - cut)
    assert [r.index for r in run.requests()] == [0, 1]
    run.finish()
    assert [r.index for r in run.requests()] == [0, 1]


def test_rows_whose_name_is_not_there_are_left_out(tmp_path: Path) -> None:
    run = create_run(tmp_path, "r")
    spool = spooled(run, [(101.0, 101.0, 101.5, 102.0, 1, naming, 0, 200, 0, 0) for naming in (0, 1)])
    spool.close()
    names = spool.path.with_suffix(".names")
    os.truncate(names, names.stat().st_size - 3)
    assert [r.endpoint for r in run.requests()] == ["POST /chat"]


@pytest.mark.parametrize(
    ("names", "said"),
    [(None, "missing"), (b"", "damaged"), (b"{]\n", "damaged"), (b'{"schema":99}\n', "damaged")],
    ids=["missing", "empty", "garbage", "not ours"],
)
def test_rows_without_their_names_are_refused_in_one_sentence(tmp_path: Path, names: bytes | None, said: str) -> None:
    run = create_run(tmp_path, "r")
    spool = spooled(run, [(101.0, 101.0, 101.5, 102.0, 1, 0, 0, 200, 0, 0)])
    spool.close()
    path = spool.path.with_suffix(".names")
    path.unlink() if names is None else path.write_bytes(names)
    with pytest.raises(InputError, match=said):
        run.requests()


def test_rows_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    run = create_run(tmp_path, "r")
    spool = spooled(run, [(101.0, 101.0, 101.5, 102.0, 1, 0, 0, 200, 0, 0)])
    spool.close()
    path = spool.path.with_suffix(".names")
    path.write_bytes(path.read_bytes().replace(b'"schema":1', b'"schema":9', 1))
    with pytest.raises(InputError, match="newer Paceline"):
        run.requests()


def test_a_full_disk_keeps_the_rows_for_the_next_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes part of a row and then nothing loses and repeats nothing."""
    run = create_run(tmp_path, "r")
    spool = spooled(run, [(101.0, 101.0, 101.5, 102.0, 1, 0, 0, 200, 0, 0)] * 3)
    write, taken = os.write, iter([10_000, 70])

    def filling(fd: int, data: bytes) -> int:
        room = next(taken, None)
        if room is None:
            raise OSError(28, "No space left on device")
        return write(fd, data[:room])

    monkeypatch.setattr(os, "write", filling)
    with pytest.raises(OSError, match="No space"):
        spool.flush()
    assert len(run.requests()) == 1
    monkeypatch.setattr(os, "write", write)
    spool.close()
    assert [r.index for r in run.requests()] == [0, 1, 2]


@pytest.mark.slow
def test_a_killed_writer_keeps_what_it_flushed(tmp_path: Path) -> None:
    run = create_run(tmp_path, "r")
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from tests.store.test_store_rows import spooled\n"
        "from paceline.store.folder import open_run\n"
        "spool = spooled(open_run(Path(sys.argv[1])), [(101.0, 101.0, 101.5, 102.0, 1, 0, 0, 200, 0, 0)] * 5)\n"
        "spool.flush(); spool.append(b'x'); print('flushed', flush=True); sys.stdin.read()"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", program, str(run.path), root], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"flushed\n"
        process.send_signal(signal.SIGKILL)
    assert len(run.requests()) == 5


def test_a_saved_example_of_the_format_is_still_read() -> None:
    """Written by this version when the format was new; newer ones must go on reading it."""
    requests = open_run(SAVED).requests()
    assert [(r.index, r.endpoint, r.status, r.error, r.cache, r.user) for r in requests] == [
        (0, "POST /chat", 200, None, "hit", 3),
        (1, "GET /ü", None, "timeout", None, None),
    ]
    assert requests[0].trace_id == f"{'ab' * 8}ff00000000000001"
    assert requests[1].first_byte_s is None


def test_trace_numbers_never_repeat_and_lie_evenly() -> None:
    """A sampler that keeps a share of the trace ids by comparing their low half keeps that share of ours."""
    low = [trace_low(12345, i) for i in range(10_000)]
    assert len(set(low)) == 10_000
    assert sum(n < (1 << 64) // 10 for n in low) == pytest.approx(1000, abs=3)
