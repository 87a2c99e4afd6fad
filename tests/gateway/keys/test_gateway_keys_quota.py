"""What a key may take: rates, budgets, several processes, restarts. Time is told, never waited for."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.errors import ConfigError
from paceline.gateway.keys.file import Key, new_key
from paceline.gateway.keys.quota import LOOK_S, Meter
from paceline.gateway.keys.table import Ledger, Table, periods

NOON = 1_795_262_400.0  # 2026-11-21 12:00 UTC, a Saturday
DAY_S = 86_400.0


@dataclass
class Time:
    """Both clocks."""

    s: float = 1000.0
    unix_s: float = NOON

    def now_s(self) -> float:
        return self.s

    def now_unix_s(self) -> float:
        return self.unix_s

    def pass_s(self, seconds: float) -> None:
        self.s += seconds
        self.unix_s += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def table() -> Iterator[Table]:
    with tempfile.TemporaryFile() as file:
        yield Table(3, file.fileno())


def meter(key: Key, table: Table, time: Time, process: int = 0) -> Meter:
    return Meter(key, table, 0, process, now_s=time.now_s, unix_s=time.now_unix_s)


def key(**may: object) -> Key:
    return new_key("alice", **may)[1]


def test_requests_run_out_and_come_back_steadily(time: Time, table: Table) -> None:
    """A minute's worth at once, then one every 60/N seconds; the wait that is told is the wait that is needed."""
    one = meter(key(requests_per_min=30), table, time)
    assert [one.take() for _ in range(30)] == [None] * 30
    refusal = one.take()
    assert refusal is not None
    assert (refusal.status, refusal.code) == (429, "rate_limit_exceeded")
    assert refusal.retry_after_s == pytest.approx(2.0)
    time.pass_s(1.99)
    assert one.take() is not None
    time.pass_s(0.02)
    assert one.take() is None
    assert one.take() is not None


def test_less_than_one_a_minute_is_possible(time: Time, table: Table) -> None:
    one = meter(key(requests_per_min=0.5), table, time)
    assert one.take() is None
    refusal = one.take()
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(120.0)
    time.pass_s(120.0)
    assert one.take() is None


def test_tokens_are_counted_afterwards(time: Time, table: Table) -> None:
    """The call that goes over the limit is answered; the next waits until the excess has run out."""
    one = meter(key(tokens_per_min=600), table, time)
    assert one.take() is None
    one.charge(900, None)
    refusal = one.take()
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(30.1, abs=0.01)
    time.pass_s(30.2)
    assert one.take() is None


def test_a_budget_ends_with_its_day_and_its_month(time: Time, table: Table) -> None:
    """UTC; the day's is fresh at midnight, the month's on the first."""
    one = meter(key(budget_usd_per_day=1.0, budget_usd_per_month=2.5), table, time)
    for day in range(3):
        assert one.take() is None
        one.charge(10, 1.0)
        refusal = one.take()
        assert refusal is not None
        assert refusal.code == "insufficient_quota"
        assert ("for the day" if day < 2 else "budget") in refusal.message
        time.pass_s(DAY_S)
    refusal = one.take()  # 3.0 of 2.5 in the month
    assert refusal is not None
    assert "for the month" in refusal.message
    assert refusal.retry_after_s == pytest.approx(DAY_S * 6.5, abs=1)  # to 1 December
    time.pass_s(refusal.retry_after_s or 0.0)
    assert one.take() is None


def test_an_unknown_cost_spends_nothing(time: Time, table: Table) -> None:
    one = meter(key(budget_usd_per_day=0.5), table, time)
    one.charge(1_000_000, None)
    assert one.take() is None


def test_processes_see_each_others_use(time: Time, table: Table) -> None:
    """Together they stay within the limit, but for what is admitted in LOOK_S; a successor takes the cells over."""
    may = key(requests_per_min=10, budget_usd_per_day=1.0)
    first, second = meter(may, table, time, 0), meter(may, table, time, 1)
    assert [first.take() for _ in range(10)] == [None] * 10
    time.pass_s(LOOK_S)
    assert second.take() is not None
    time.pass_s(60.0)
    second.charge(5, 0.75)
    time.pass_s(LOOK_S)
    assert first.take() is None
    first.charge(5, 0.25)
    successor = meter(may, table, time, 0)
    refusal = successor.take()
    assert refusal is not None
    assert refusal.code == "insufficient_quota"


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 20), st.integers(1, 8)), max_size=60),
    st.floats(1, 200),
)
def test_no_minute_sees_more_than_two_minutes_worth(asks: list[tuple[int, float, int]], per_min: float) -> None:
    """The law of the bucket, for three processes that ask in any order: full bucket plus what ran out meanwhile."""
    time, may = Time(), key(requests_per_min=per_min)
    with tempfile.TemporaryFile() as file:
        table = Table(3, file.fileno())
        meters = [meter(may, table, time, process) for process in range(3)]
        admitted: list[float] = []
        for process, pause_s, count in asks:
            time.pass_s(pause_s + LOOK_S)  # so that each has seen what the others did
            admitted += [time.s for _ in range(count) if meters[process].take() is None]
    for i, start_s in enumerate(admitted):
        in_a_minute = [at_s for at_s in admitted[i:] if at_s <= start_s + 60.0]
        assert len(in_a_minute) <= max(1.0, per_min) + per_min * (in_a_minute[-1] - start_s) / 60 + 1e-6


def test_what_was_spent_survives_a_restart(tmp_path: Path, time: Time) -> None:
    """Kept by key, added up over the processes, forgotten with its day and month."""
    file, may = tmp_path / "keys.toml.spent.json", key(budget_usd_per_day=1.0, budget_usd_per_month=10.0)
    for _ in range(2):
        table = Table(2)
        ledger = Ledger(table, unix_s=time.now_unix_s)
        ledger.keep_in(file)
        row = ledger.rows([may.id])[may.id]
        for process in range(2):
            Meter(may, table, row, process, now_s=time.now_s, unix_s=time.now_unix_s).charge(1, 0.25)
        ledger.save()
    assert ledger.spent_usd() == {may.id: (1.0, 1.0)}
    time.pass_s(DAY_S)
    again = Ledger(Table(1), unix_s=time.now_unix_s)
    again.keep_in(file)
    assert again.spent_usd() == {}  # nobody asked for the key yet
    again.save()
    again.rows([may.id])
    assert again.spent_usd() == {may.id: (0.0, 1.0)}
    assert (tmp_path / "keys.toml.spent.json").stat().st_mode & 0o077 == 0


def test_a_file_named_later_is_taken_over_too(tmp_path: Path, time: Time) -> None:
    """A budget that comes with a new configuration counts what its file knows."""
    file, may = tmp_path / "spent.json", key(budget_usd_per_day=1.0)
    day, month = periods(time.unix_s)
    file.write_text(f'{{"keys": {{"{may.id}": {{"day": {day}, "day_usd": 0.5, "month": {month}, "month_usd": 0.5}}}}}}')
    ledger = Ledger(Table(1), unix_s=time.now_unix_s)
    ledger.keep_in(None)
    ledger.rows([may.id])
    ledger.keep_in(file)
    assert ledger.spent_usd() == {may.id: (0.5, 0.5)}


@pytest.mark.parametrize("text", ["{", '{"keys": 5}', '{"keys": {"x": {"day": "today"}}}'])
def test_a_damaged_file_is_no_empty_budget(tmp_path: Path, text: str) -> None:
    """Starting at 0 by accident would give the whole budget again."""
    file = tmp_path / "spent.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"spent\.json, is damaged"):
        Ledger(Table(1)).keep_in(file)


def test_a_place_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write what the keys have spent"):
        Ledger(Table(1)).keep_in(tmp_path / "nowhere" / "spent.json")
