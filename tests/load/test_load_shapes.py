"""Shapes: every stretch gets the requests its level asks for, and so many users are there as it says."""

import itertools
import math
import statistics
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.load.parts import Stage
from paceline.load.scenario import Scenario
from paceline.load.shapes import Stay, due_times, expected_total, legs, level_at, spawned, stays

KINDS = st.sampled_from(["hold", "ramp", "burst"])
LEVELS = st.one_of(st.just(0.0), st.floats(0.01, 15))
DURATIONS = st.floats(0.05, 4)
RATES = st.lists(
    st.builds(lambda k, r, d: Stage(kind=k, to_rate_per_s=r, duration_s=d), KINDS, LEVELS, DURATIONS),
    min_size=1,
    max_size=4,
).filter(lambda stages: expected_total(stages) > 0)
CROWDS = st.lists(
    st.builds(lambda k, u, d: Stage(kind=k, to_users=u, duration_s=d), KINDS, st.integers(0, 12), DURATIONS),
    min_size=1,
    max_size=4,
).filter(lambda stages: expected_total(stages) > 0)


def rates(*stages: tuple[str, float, float]) -> list[Stage]:
    return [Stage(kind=kind, to_rate_per_s=level, duration_s=seconds) for kind, level, seconds in stages]


def crowd(*stages: tuple[str, int, float]) -> list[Stage]:
    return [Stage(kind=kind, to_users=level, duration_s=seconds) for kind, level, seconds in stages]


def arriving(shape: list[Stage], **changes: object) -> Scenario:
    return Scenario(name="s", model="open", shape=shape, **changes)  # type: ignore[arg-type]


def visited(shape: list[Stage]) -> Scenario:
    return Scenario(name="s", shape=shape)


@given(RATES)
def test_due_times_never_go_back_and_never_leave_the_shape(shape: list[Stage]) -> None:
    due = due_times(arriving(shape))
    assert all(a <= b for a, b in itertools.pairwise(due))
    assert due[0] >= 0
    assert due[-1] <= legs(shape)[-1].end_s


@given(RATES, st.floats(0, 1), st.floats(0, 1))
def test_any_stretch_holds_the_integral_of_the_rate_give_or_take_one(shape: list[Stage], a: float, b: float) -> None:
    """Counted between two arbitrary times, against the area computed by itself."""
    end_s = legs(shape)[-1].end_s
    first_s, last_s = sorted((a * end_s, b * end_s))
    count = sum(first_s <= at_s < last_s for at_s in due_times(arriving(shape)))
    area = math.fsum(
        (leg.level_at(low) + leg.level_at(high)) / 2 * (high - low)
        for leg in legs(shape)
        if (low := max(leg.start_s, first_s)) < (high := min(leg.end_s, last_s))
    )
    assert count == pytest.approx(area, abs=1 + 1e-6)


@given(RATES)
def test_the_expected_total_is_stated(shape: list[Stage]) -> None:
    scenario = arriving(shape)
    assert len(due_times(scenario)) == pytest.approx(expected_total(shape), abs=1)
    assert scenario.rate_per_s is not None
    assert scenario.duration_s is not None
    assert scenario.rate_per_s * scenario.duration_s == pytest.approx(expected_total(shape))


@given(CROWDS, st.floats(0, 0.999))
def test_at_any_time_so_many_users_are_there_as_the_level_says(shape: list[Stage], part: float) -> None:
    at_s = part * legs(shape)[-1].end_s
    there = sum(stay.start_s <= at_s < stay.stop_s for stay in stays(visited(shape)))
    level = level_at(shape, at_s)
    near = {math.ceil(level - 1e-9), math.ceil(level + 1e-9)}  # the very moment of a change counts either way
    assert there in near or abs(level - round(level)) < 1e-6


@given(CROWDS)
def test_user_time_is_at_least_the_area_and_at_most_one_user_more(shape: list[Stage]) -> None:
    found = stays(visited(shape))
    spent_s = math.fsum(stay.stop_s - stay.start_s for stay in found)
    area, end_s = expected_total(shape), legs(shape)[-1].end_s
    assert area - 1e-6 <= spent_s <= area + end_s + 1e-6
    assert found == sorted(found)
    assert all(stay.start_s <= stay.stop_s for stay in found)


def test_a_step_a_ramp_and_a_burst_by_hand() -> None:
    shape = rates(("hold", 2, 2), ("ramp", 4, 2), ("burst", 10, 1), ("ramp", 0, 4))
    assert expected_total(shape) == 4 + 6 + 10 + 8
    assert [level_at(shape, t) for t in (0, 1, 3, 4, 5, 7, 9)] == [2, 2, 3, 10, 4, 2, 0]
    due = due_times(arriving(shape))
    assert list(due[:4]) == [0, 0.5, 1, 1.5]
    assert [round(at_s, 3) for at_s in due[10:20]] == [round(4 + i / 10, 3) for i in range(10)]


def test_users_of_a_ramp_come_when_its_level_asks_for_them() -> None:
    assert stays(visited(crowd(("ramp", 10, 5), ("hold", 10, 5)))) == [Stay(i * 0.5, 10) for i in range(10)]


def test_users_start_one_in_each_part_of_the_ramp_and_out_of_step() -> None:
    """At even distances those a whole number of answers apart would send together for as long as the run lasts."""
    starts_s = [stay.start_s for stay in stays(Scenario(name="s", users=400, ramp_s=0.5, duration_s=10))]
    assert [int(at_s / 0.5 * 400) for at_s in starts_s] == list(range(400))
    assert starts_s[0] == 0.0  # a long ramp of few users does not begin with nobody
    phases = Counter(int(at_s % 0.05 / 0.00125) for at_s in starts_s)
    assert len({round(at_s % 0.05, 6) for at_s in starts_s}) > 390
    assert max(phases.values()) <= 2 * 10


def test_the_seed_decides_when_users_start() -> None:
    def starts(seed: int) -> list[Stay]:
        return stays(Scenario(name="s", users=5, ramp_s=5, duration_s=10, seed=seed))

    assert starts(1) == starts(1) != starts(2)


def test_who_comes_for_a_burst_leaves_after_it() -> None:
    shape = crowd(("hold", 2, 10), ("burst", 5, 3), ("hold", 2, 10))
    assert stays(visited(shape)) == [Stay(0, 23), Stay(0, 23), Stay(10, 13), Stay(10, 13), Stay(10, 13)]


def test_without_an_end_users_stay_for_good() -> None:
    assert stays(Scenario(name="s", users=2, requests=5)) == [Stay(0, math.inf)] * 2


def test_locusts_spawn_rate_is_a_ramp() -> None:
    assert stays(visited(spawned(4, 2, 60))) == [Stay(0, 60), Stay(0.5, 60), Stay(1, 60), Stay(1.5, 60)]
    assert len(stays(visited(spawned(100, 10, 5)))) == 50  # the test ends before all have come
    assert visited(spawned(100, 10, 300)).duration_s == 300


@pytest.mark.parametrize(("arrivals", "cv", "wanted"), [("poisson", 1.0, 1.0), ("gamma", 3.0, 3.0)])
def test_random_arrivals_keep_their_burstiness_and_follow_the_shape(arrivals: str, cv: float, wanted: float) -> None:
    """The gaps, measured in expected requests, have the cv asked for, on the ramp as on the plateau."""
    shape = rates(("ramp", 400, 20), ("hold", 400, 20))
    due = list(due_times(arriving(shape, arrivals=arrivals, cv=cv, seed=3)))
    assert len(due) == pytest.approx(12_000, rel=0.06)
    assert sum(at_s < 20 for at_s in due) == pytest.approx(4_000, rel=0.12)
    plateau = [b - a for a, b in itertools.pairwise(at_s for at_s in due if at_s >= 20)]
    assert statistics.stdev(plateau) / statistics.fmean(plateau) == pytest.approx(wanted, rel=0.12)


def test_the_number_of_requests_may_end_a_shape() -> None:
    shape = rates(("hold", 10, 10))
    assert len(due_times(arriving(shape, requests=7))) == 7


def test_the_same_seed_gives_the_same_times() -> None:
    shape = rates(("ramp", 50, 4))
    a, b, c = (due_times(arriving(shape, arrivals="poisson", seed=seed)) for seed in (1, 1, 2))
    assert a == b != c


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shape": [{"to_users": 1, "duration_s": 1}], "model": "open"}, "open scenario have to_rate_per_s"),
        ({"shape": [{"to_rate_per_s": 1, "duration_s": 1}]}, "closed scenario have to_users"),
        ({"shape": [{"duration_s": 1}]}, "either to_users or to_rate_per_s"),
        ({"shape": [{"to_users": 1, "to_rate_per_s": 1, "duration_s": 1}]}, "either to_users or to_rate_per_s"),
        ({"shape": [{"to_users": 1, "duration_s": 0}]}, "duration_s of a stage must be above 0; got 0"),
        ({"shape": [{"to_users": -1, "duration_s": 1}]}, "must not be negative"),
        ({"shape": [{"to_users": 0, "duration_s": 1}]}, "needs a stage above 0"),
        ({"shape": [{"kind": "wave", "to_users": 1, "duration_s": 1}]}, "one of hold, ramp, burst"),
        ({"shape": [{"to_users": 1, "duration_s": 1}], "duration_s": 5}, "duration_s and shape exclude each other"),
        ({"shape": [{"to_users": 1, "duration_s": 1}], "users": 5}, "users and shape exclude each other"),
        ({"shape": [{"to_users": 1, "duration_s": 1}], "ramp_s": 5}, "ramp_s and shape exclude each other"),
    ],
)
def test_a_shape_that_makes_no_sense_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=says):
        msgspec.convert({"name": "s", **changes}, Scenario)


def test_a_shaped_scenario_can_be_changed_and_written_down() -> None:
    scenario = visited(crowd(("hold", 3, 5)))
    assert msgspec.structs.replace(scenario, seed=5).users == 3
    assert msgspec.convert(msgspec.to_builtins(scenario), Scenario) == scenario
