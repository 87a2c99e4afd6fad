"""Scenarios refuse what makes no sense, and send the same sequence for the same seed."""

import json
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.errors import ConfigError, InputError
from paceline.load.scenario import Endpoint, Scenario, plain_text, sequence


def questions(folder: Path, *lines: object) -> str:
    path = folder / "bodies.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return str(path)


def closed(**changes: object) -> Scenario:
    return msgspec.convert({"name": "s", "users": 1, "requests": 10, **changes}, Scenario)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"users": 0}, "users must be above 0; got 0"),
        ({"requests": 0}, "requests must be above 0; got 0"),
        ({"users": None}, "closed scenario needs users"),
        ({"rate_per_s": 5.0}, "rate_per_s belongs to an open scenario"),
        ({"model": "open", "users": None}, "open scenario needs rate_per_s"),
        ({"model": "open", "rate_per_s": 1.0}, "users belong to a closed scenario"),
        ({"requests": None}, "give requests or duration_s"),
        ({"pick": "random"}, "pick must be one of sequence, uniform, zipf; got 'random'"),
        ({"think_s": -1.0}, "think_s must not be negative"),
        ({"path": "chat"}, "path must begin with /"),
        ({"path": "/a b"}, "hold no space"),
        ({"headers": {"x": "a\r\nb: c"}}, "on one line"),
        ({"headers": {"x:": "a"}}, "without colon"),
        ({"requsts": 5}, "requsts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_scenario_that_makes_no_sense_is_refused_in_a_sentence(changes: dict[str, object], says: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=says.replace("(", r"\(")):
        closed(**changes)


def test_bodies_go_in_file_order_and_repeat(tmp_path: Path) -> None:
    bodies = questions(tmp_path, {"q": "a"}, {"q": "b"}, {"q": "c"})
    sent = sequence(closed(bodies=bodies, requests=7))
    assert [json.loads(b.data)["q"] for b in sent] == list("abcabca")


def test_a_body_is_sent_byte_for_byte(tmp_path: Path) -> None:
    line = '{"q":   "caf\\u00e9",  "n": 1.50}'
    bodies = questions(tmp_path, line, f'{{"body": {line}, "weight": 2}}')
    assert [b.data for b in sequence(closed(bodies=bodies, requests=2))] == [line.encode()] * 2


@pytest.mark.parametrize("pick", ["sequence", "uniform", "zipf"])
def test_the_same_seed_sends_the_same_sequence(tmp_path: Path, pick: str) -> None:
    bodies = questions(tmp_path, *({"variants": [{"q": f"{i}"}, {"q": f"{i}!"}]} for i in range(20)))
    scenario = closed(bodies=bodies, requests=200, pick=pick)
    assert sequence(scenario) == sequence(scenario)
    assert sequence(scenario) != sequence(msgspec.structs.replace(scenario, seed=1))


def test_a_longer_sequence_begins_with_the_shorter_one(tmp_path: Path) -> None:
    bodies = questions(tmp_path, *({"q": i} for i in range(20)))
    scenario = closed(bodies=bodies, pick="zipf")
    assert sequence(scenario, 100)[:10] == sequence(scenario, 10)


def test_zipf_asks_the_second_question_half_as_often_as_the_first(tmp_path: Path) -> None:
    bodies = questions(tmp_path, *({"q": i} for i in range(100)))
    counts = [n for _, n in Counter(b.key for b in sequence(closed(bodies=bodies, pick="zipf"), 20_000)).most_common()]
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.15)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.25)


def test_weights_are_shares(tmp_path: Path) -> None:
    bodies = questions(tmp_path, {"body": {"q": "often"}, "weight": 3}, {"body": {"q": "seldom"}, "weight": 1})
    sent = Counter(b.data for b in sequence(closed(bodies=bodies, pick="uniform"), 4000))
    assert sent[b'{"q": "often"}'] / 4000 == pytest.approx(0.75, abs=0.03)


def test_a_mix_sends_each_endpoint_by_its_weight(tmp_path: Path) -> None:
    mix = [Endpoint(path="/chat", bodies=questions(tmp_path, {"q": 1}), weight=3), Endpoint(method="GET", path="/tags")]
    sent = Counter(b.endpoint for b in sequence(closed(mix=msgspec.to_builtins(mix)), 4000))
    assert sent["POST /chat"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert set(sent) == {"POST /chat", "GET /tags"}


def test_keys_tell_the_same_request_and_the_same_text(tmp_path: Path) -> None:
    """Typing differently keeps the text key, asking something else does not; another endpoint has another key."""
    bodies = questions(
        tmp_path,
        {"q": "How do I reset it?", "k": 5},
        {"q": "how do i  reset it", "k": 5},
        {"k": 6, "q": "How do I reset it?"},
        {"q": "How do I delete it?", "k": 5},
    )
    one, typed, number, other = sequence(closed(bodies=bodies, requests=4))
    (elsewhere,) = sequence(closed(bodies=bodies, requests=1, path="/other"))
    assert len({one.key, typed.key, number.key, other.key, elsewhere.key}) == 5
    assert one.text_key == typed.text_key == number.text_key
    assert len({one.text_key, other.text_key, elsewhere.text_key}) == 3
    assert len(one.key) == len(one.text_key) == 16


@given(st.text())
def test_plain_text_is_stable_and_ignores_case(text: str) -> None:
    plain = plain_text(text)
    assert plain_text(plain) == plain
    assert plain == plain.strip()
    assert "  " not in plain


def test_a_body_whose_fields_are_its_own_is_not_taken_apart(tmp_path: Path) -> None:
    bodies = questions(tmp_path, {"body": "hello", "to": "x"}, {"variants": [1, 2], "body": 1})
    assert [json.loads(b.data) for b in sequence(closed(bodies=bodies), 2)] == [
        {"body": "hello", "to": "x"},
        {"variants": [1, 2], "body": 1},
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"q": 1', "line 2: .*one JSON value"),
        ("hello", "line 2: .*one JSON value"),
        ('{"body": 1, "weight": 0}', "line 2: weight must be above 0; got 0"),
        ('{"body": 1, "weight": "x"}', "line 2: "),
        ('{"variants": []}', "line 2: variants is empty"),
        ('{"variants": 1}', "line 2: "),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        sequence(closed(bodies=questions(tmp_path, {"q": 1}, line)))
    assert refused.value.line == 2


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no request bodies"):
        sequence(closed(bodies=questions(tmp_path, "", "  ")))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the bodies file"):
        sequence(closed(bodies=str(tmp_path / "none.jsonl")))


def test_body_files_are_found_from_the_folder_given(tmp_path: Path) -> None:
    questions(tmp_path, {"q": 1})
    scenario = closed(mix=[{"bodies": "bodies.jsonl"}, {"method": "GET"}]).resolved(tmp_path)
    assert [e.bodies for e in scenario.mix] == [str(tmp_path / "bodies.jsonl"), None]


def test_without_a_count_a_scenario_bounded_by_time_has_no_list() -> None:
    with pytest.raises(ValueError, match="count is needed"):
        sequence(closed(requests=None, duration_s=5.0))
