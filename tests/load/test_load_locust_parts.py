"""What is worked out around Locust: when tasks were due, what failed, whose clock says what, files put together."""

import http.client
import math
import re
import tempfile
from importlib import import_module
from pathlib import Path

import pytest
import requests
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.errors import ConfigError
from paceline.load.locust.clocks import offset_of
from paceline.load.locust.failure import failure_of, refusal, refused
from paceline.load.locust.pacing import Pace, would_have_taken
from paceline.load.locust.parcel import pack, unpack
from paceline.load.locust.pieces import Grown, Piece, put
from paceline.load.locust.recording import Recording
from paceline.load.orders import Order
from paceline.load.parts import Trace, Turn, Variable
from paceline.load.scenario import Endpoint, Scenario
from paceline.model.run import RunInfo
from paceline.store.folder import create_run, open_run

RUN = RunInfo(id="r", name="r", paceline="0", start_ns=5)


def test_a_user_who_wakes_in_time_is_not_late() -> None:
    pace = Pace()
    due_s = pace.pauses(10.0, 2.0, None)
    pace.wakes(12.0, due_s)
    assert (due_s, pace.sends()) == (12.0, (0.0, 0))


def test_waking_late_dates_the_next_request_back_and_only_that() -> None:
    pace = Pace()
    pace.wakes(12.5, pace.pauses(10.0, 2.0, None))
    assert pace.sends() == (0.5, 0)
    assert pace.sends() == (0.0, 0)


def test_a_paced_task_that_took_too_long_makes_the_next_one_late_and_skips_others() -> None:
    """Due every second from 1 on; the task of second 1 ends at 4.5: that of second 2 starts then, 3 and 4 never do."""
    pace = Pace()
    pace.wakes(1.0, pace.pauses(0.0, 1.0, 1.0))
    assert pace.sends() == (0.0, 0)
    pace.wakes(4.5, pace.pauses(4.5, 0.0, 1.0))
    assert pace.sends() == (2.5, 2)
    pace.wakes(5.5, pace.pauses(4.6, 0.9, 1.0))  # Locust's new schedule
    assert pace.sends() == (0.0, 0)


def test_the_first_pause_of_a_paced_user_skips_nothing() -> None:
    pace = Pace()
    pace.wakes(9.0, pace.pauses(9.0, 0.0, 1.0))
    assert pace.sends() == (0.0, 0)


@given(st.floats(0.01, 10), st.floats(0, 100), st.floats(0, 1))
def test_paced_tasks_are_late_skipped_or_sent_but_never_lost(pacing_s: float, took_s: float, rest_s: float) -> None:
    """Whatever a task takes: what was due meanwhile is the one sent late and those skipped."""
    pace = Pace()
    pace.wakes(pacing_s, pace.pauses(0.0, pacing_s, pacing_s))
    pace.sends()
    ended_s = pacing_s + took_s
    pause_s = max(0.0, pacing_s - took_s)
    due_s = pace.pauses(ended_s, pause_s, pacing_s)
    pace.wakes(ended_s + pause_s + rest_s, due_s)
    late_s, skipped = pace.sends()
    assert late_s >= rest_s - 1e-9
    if pause_s == 0:
        assert skipped == pytest.approx(math.floor((took_s - pacing_s) / pacing_s), abs=1)  # floats at the edge
        assert late_s == pytest.approx(took_s - pacing_s + rest_s, abs=1e-6)
        assert all(would_s > -1e-6 for would_s in would_have_taken(late_s, skipped, pacing_s))
    else:
        assert skipped == 0


def test_skipped_tasks_would_have_ended_with_the_one_that_was_sent() -> None:
    assert would_have_taken(2.6, 2, 1.0) == pytest.approx([1.6, 0.6])


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (None, 200, (None, None)),
        (requests.HTTPError("500 Server Error"), 500, ("status", None)),
        (requests.ReadTimeout("read timed out"), None, ("timeout", None)),
        (requests.ConnectTimeout(), None, ("timeout", None)),
        (TimeoutError(), None, ("timeout", None)),
        (OSError("timed out"), None, ("timeout", None)),
        (requests.ConnectionError("refused"), None, ("connection", None)),
        (ConnectionRefusedError(), None, ("connection", None)),
        (urllib3.exceptions.ProtocolError("cut"), None, ("connection", None)),
        (http.client.RemoteDisconnected("bye"), None, ("connection", None)),
        (ValueError("no id"), 200, ("check", "ValueError: no id")),
        (KeyError(), 200, ("check", "KeyError: ")),
        ("said so", 200, ("check", "said so")),
    ],
    ids=str,
)
def test_what_locust_calls_an_exception_is_one_of_our_errors(
    error: object, status: int | None, expected: tuple[str | None, str | None]
) -> None:
    assert failure_of(error, status) == expected


def test_what_a_locustfile_says_failed_is_the_check() -> None:
    class CatchResponseError(Exception):
        pass

    assert failure_of(CatchResponseError("not the page"), 200) == ("check", "not the page")
    assert failure_of(CatchResponseError("x" * 1000), 500) == ("check", "x" * 200)


def test_a_locustfile_that_is_refused_is_told_why() -> None:
    assert refusal(["No User class found!"], "a.py").startswith("a.py has no User class")
    assert refused(ModuleNotFoundError("x", name="pytest"), "a.py").startswith("a.py has no User class")
    assert refusal(["Unknown User(s): X"], "a.py") == "a.py: Unknown User(s): X"
    assert refusal([], "a.py") == "Locust refused to run a.py; what it said is above"
    with pytest.raises(ModuleNotFoundError) as caught:
        import_module("no_such_module")
    said = refused(caught.value, __file__)
    assert said.startswith(f"{__file__} cannot be loaded: ModuleNotFoundError: No module named 'no_such_module' (")
    assert re.search(rf"\({Path(__file__).name}, line \d+\)$", said)


def test_an_event_of_a_client_of_its_own_is_recorded_from_what_it_says(tmp_path: Path) -> None:
    """Nothing is known but the name: no response, no start, nonsense for a length."""
    run = create_run(tmp_path, "r")
    recording = Recording(run, "s")
    recording.start()
    recording.ends(-1, None, {"request_type": "grpc", "name": "Say", "response_time": None, "response_length": None})
    recording.ends(-1, None, {"request_type": "grpc", "name": "Say", "response_time": 250, "exception": "denied"})
    recording.close()
    first, second = run.requests() if run.requests()[0].error is None else reversed(run.requests())
    assert (first.endpoint, first.error, first.service_s, first.user) == ("grpc Say", None, 0.0, None)
    assert (second.error, second.failed_check) == ("check", "denied")
    assert second.service_s == pytest.approx(0.25)
    assert recording.cut_off == 0


def test_estimates_count_only_in_the_corrected_quantiles(tmp_path: Path) -> None:
    recording = Recording(create_run(tmp_path, "r"), "s")
    pace = Pace(late_s=0.9, skipped=8, pacing_s=0.1)
    header = recording.sends(0, pace)
    response = type("R", (), {"status_code": 200, "request": type("Q", (), {"headers": {"traceparent": header}})})
    recording.ends(0, pace, {"name": "/", "request_type": "GET", "response_time": 100.0, "response": response})
    recording.close()
    unsent = recording.info().unsent
    assert unsent is not None
    assert unsent.tasks == 8
    assert recording.latencies.count == 1
    assert recording.latencies.quantile(0.5) == pytest.approx(1.0, rel=0.01)
    assert unsent.p50_s == pytest.approx(0.6, rel=0.01)  # of 1.0, 0.9, ... 0.2


@given(
    st.floats(-1e6, 1e6),
    st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5),
)
def test_the_offset_of_two_clocks_is_within_what_is_said(
    ahead_s: float, exchanges: list[tuple[float, float, float]]
) -> None:
    """Whatever the way there and the way back take."""
    seen = [(sent_s, sent_s + there_s - ahead_s, sent_s + there_s + back_s) for sent_s, there_s, back_s in exchanges]
    offset = offset_of(seen)
    assert abs(offset.ahead_s - ahead_s) <= offset.within_s + 1e-6
    assert offset.within_s == pytest.approx(min(there_s + back_s for _, there_s, back_s in exchanges) / 2, abs=1e-6)


@settings(max_examples=20)
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_files_that_grow_arrive_as_they_are(parts: list[bytes]) -> None:
    """Piece by piece, some twice."""
    with tempfile.TemporaryDirectory() as there, tempfile.TemporaryDirectory() as here:
        file = Path(there) / "requests-load-7-ab.rows"
        grown = Grown(Path(there))
        for part in parts:
            with file.open("ab") as out:
                out.write(part)
            for piece in grown.pieces():
                put(piece, Path(here))
                put(piece, Path(here))
        if any(parts):
            assert (Path(here) / file.name).read_bytes() == b"".join(parts)


@pytest.mark.parametrize("name", ["../run.json", "run.json", "requests-x.parquet", "requests-load-7-ab.rows/.."])
def test_a_piece_goes_nowhere_but_into_a_file_of_requests(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file of requests"):
        put(Piece(name, 0, b"x"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_gap_between_pieces_is_seen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the bytes before 5 never arrived"):
        put(Piece("requests-load-7-ab.rows", 5, b"x"), tmp_path)


def paths_of(scenario: Scenario) -> list[str]:
    named: list[str] = []

    def seen(path: str) -> str:
        named.append(path)
        return path

    scenario.moved(seen)
    return named


def test_every_file_of_a_scenario_travels_with_it(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.csv", "t.csv"):
        (tmp_path / name).write_text(name)
    for scenario in (
        Scenario(name="s", users=1, requests=1, mix=[Endpoint(bodies="a.jsonl"), Endpoint(bodies="b.jsonl")]),
        Scenario(
            name="s",
            users=1,
            requests=1,
            turns=[Turn(bodies="a.jsonl"), Turn(bodies="a.jsonl")],
            variables={"v": Variable(file="c.csv")},
        ),
        Scenario(name="s", model="open", arrivals="replay", trace=Trace(path="t.csv"), bodies="b.jsonl"),
    ):
        order = Order(
            scenario=scenario.resolved(tmp_path), base_url="http://x", run="r", speed=1, part=0, of=1, trust=None
        )
        there = tmp_path / f"there-{len(list(tmp_path.iterdir()))}"
        found = unpack(pack(order, RUN), there)
        named = paths_of(found.scenario)
        assert len(named) >= 2
        for path in named:
            assert Path(path).parent == there
            assert path.endswith(Path(path).read_text())
        assert open_run(found.run).info.start_ns == RUN.start_ns


def test_what_cannot_travel_is_named(tmp_path: Path) -> None:
    def order(scenario: Scenario) -> Order:
        return Order(scenario=scenario, base_url="http://x", run="r", speed=1, part=0, of=1, trust=None)

    with pytest.raises(ConfigError, match="is a run: Locust workers can replay a trace that is one file"):
        pack(order(Scenario(name="s", model="open", arrivals="replay", trace=Trace(path=str(tmp_path)))), RUN)
    with pytest.raises(ConfigError, match=r"cannot read .*none"):
        pack(order(Scenario(name="s", users=1, requests=1, bodies=str(tmp_path / "none"))), RUN)
