"""The support desk's traffic, golden set and target file: what the figures of the demonstration rest on."""

import importlib
import inspect
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from paceline.load.scenario import Scenario, sequence
from paceline.model.change import Cache, Defer, Parallelise, Remove, Route, Trim
from paceline.tune.target import load_target

SUPPORT = Path(__file__).parents[2] / "workloads" / "support"
sys.path.insert(0, str(SUPPORT))

make_traffic: Any = importlib.import_module("make_traffic")
make_golden: Any = importlib.import_module("make_golden")


def concurrent(seed: int) -> Scenario:
    main = load_target(SUPPORT).main
    return Scenario(
        name=main.name,
        users=main.users,
        requests=main.requests,
        bodies=main.bodies,
        pick=main.pick,
        key_fields=main.key_fields,
        seed=seed,
    )


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("requests.jsonl", make_traffic.requests),
        ("cache.jsonl", make_traffic.cold_then_warm),
        ("streamed.jsonl", make_traffic.streamed),
        ("data/history.jsonl", make_traffic.conversations),
        ("golden.jsonl", make_golden.rows),
    ],
    ids=["requests", "cache", "streamed", "history", "golden"],
)
def test_committed_files_are_what_the_scripts_make(name: str, rows: Any) -> None:
    """Anyone can make the traffic again, to the byte."""
    saved = (SUPPORT / name).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in saved] == list(rows())


def test_five_hundred_requests_hold_few_questions_typed_in_many_ways() -> None:
    """A text key can answer more than 85 % of them, a raw key far less: over many seeds, not by luck of one."""
    drawn = [sequence(concurrent(seed)) for seed in range(20)]
    by_text = [1 - len({b.text_key for b in bodies}) / len(bodies) for bodies in drawn]
    by_bytes = [1 - len({b.key for b in bodies}) / len(bodies) for bodies in drawn]
    assert statistics.mean(by_text) > 0.86
    assert min(by_text) > 0.85
    assert 0.5 < statistics.mean(by_bytes) < 0.65


def test_popularity_falls_and_sums_to_one() -> None:
    """Zipf-Mandelbrot: no topic is asked more than the one before it, and none is most of the traffic."""
    shares = make_traffic.popularity(len(make_traffic.topics()))
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] < 0.2


def test_forms_of_a_question_have_the_same_words() -> None:
    """What differs is what a text key ignores; other wordings are topics of their own."""
    key = importlib.import_module("support.cache").text_key
    for question in make_traffic.topics():
        assert len({key(form) for form, _ in make_traffic.forms(question)}) == 1, question
    keys = [key(question) for question in make_traffic.topics()]
    assert len(set(keys)) == len(keys)


def test_questions_of_the_cache_and_stream_tests_are_new() -> None:
    """The cold round is cold: nothing in the other traffic or in the golden set asks the same."""
    key = importlib.import_module("support.cache").text_key
    cold = {key(row["message"]) for row in make_traffic.cold_then_warm()}
    streamed = {key(row["message"]) for row in make_traffic.streamed()}
    asked = {key(topic) for topic in make_traffic.topics()}
    golden = {key(row["body"]["message"]) for row in make_golden.rows()}
    assert len(cold) == make_traffic.CACHE_TOPICS
    assert len(streamed) == make_traffic.STREAMED
    assert not cold & streamed
    assert not (cold | streamed) & (asked | golden)


def test_phases_only_set_switches_the_desk_has() -> None:
    """A switch nobody reads would make a phase do nothing; a value of the wrong type stops the desk."""
    settings = importlib.import_module("support.settings")
    known = {f"SUPPORT_{name.upper()}" for name in settings.Settings.__slots__}
    target = load_target(SUPPORT)
    last = target.after(len(target.phases)).env
    assert last.keys() <= known
    given = settings.from_env({**last, "SUPPORT_TIME_SCALE": "0.2"})
    before = settings.from_env({})
    for phase in target.phases:
        for name in phase.env:
            field = name.removeprefix("SUPPORT_").lower()
            assert getattr(given, field) != getattr(before, field), name


def test_changes_name_steps_the_desk_has() -> None:
    """A projection is about functions that exist in the form that is measured."""
    assistant = importlib.import_module("support.assistant").Assistant
    steps = {name for name, _ in inspect.getmembers(assistant, inspect.isfunction)}
    for change in load_target(SUPPORT).after(5).changes:
        match change:
            case Parallelise(steps=named):
                assert {name.strip() for step in named for name in step.split(">")} <= steps
            case Trim(step=step) | Route(step=step) | Defer(step=step) | Remove(step=step):
                assert step in steps
            case Cache(step=cached):
                assert cached is None or cached in steps


def test_every_rule_of_the_desk_is_fixed_by_a_phase() -> None:
    """The eight causes that were built in, each promised by exactly one phase."""
    fixed = [rule for phase in load_target(SUPPORT).phases for rule in phase.fixes]
    assert sorted(fixed) == [
        "deferrable_work",
        "duplicate_calls",
        "oversized_prompt",
        "provider_limit",
        "sequential_calls",
        "strong_model_trivial_step",
        "swallowed_failure",
        "thread_memory_spike",
    ]


def test_the_desk_knows_nothing_of_paceline() -> None:
    """It is an ordinary application."""
    for path in (SUPPORT / "support").rglob("*.py"):
        assert "paceline" not in path.read_text(encoding="utf-8").lower(), path
