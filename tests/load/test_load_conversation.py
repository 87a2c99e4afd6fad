"""Conversations, templates, variables and checks, turn by turn, and over a wire."""

import json
import re
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from paceline.errors import ConfigError, InputError
from paceline.load.checks import Checker, Verdict, at_pointer
from paceline.load.conversation import Conversations, Filled, source_for
from paceline.load.driver import drive
from paceline.load.parts import Capture, Checks, Variable
from paceline.load.scenario import Body, Scenario
from paceline.load.templates import HeaderTemplate, JsonTemplate, PathTemplate
from paceline.load.variables import Variables
from paceline.model.request import Request
from paceline.model.run import ScenarioInfo
from paceline.store.folder import create_run
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve


def scenario(**changes: Any) -> Scenario:
    return msgspec.convert({"name": "s", "users": 2, "duration_s": 60, **changes}, Scenario)


def told(source: Conversations | Filled, body: Body, answer: object = None, **how: Any) -> Verdict:
    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return source.answered(body, how.get("user", 0), how.get("status", 200), how.get("headers", []), data)


def asked(source: Conversations | Filled, user: int = 0) -> Body:
    body = source.next(user)
    assert body is not None
    return body


# --- templates -----------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(VALUES)
def test_alone_in_a_string_a_value_keeps_its_type(value: object) -> None:
    template = JsonTemplate(b'{"a":"{{x}}","b":["{{ x }}"]}')
    assert json.loads(template.render({"x": value})) == {"a": value, "b": [value]}


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_within_a_string_a_value_is_escaped_text(before: str, value: str) -> None:
    before = before.replace("{", "(")
    template = JsonTemplate(json.dumps({"q": before + "{{x}}!"}, ensure_ascii=False).encode())
    assert json.loads(template.render({"x": value})) == {"q": before + value + "!"}


def test_quotes_and_field_names_do_not_mislead_it() -> None:
    data = {'say "{{x}}" twice': 1, "{{x}}": "{{x}}", "n": "{{x}}{{y}}", "plain": "{{ 1 }} {x} {{}}"}
    filled = json.loads(JsonTemplate(msgspec.json.encode(data)).render({"x": 7, "y": [1, "a"]}))
    assert filled == {'say "7" twice': 1, "7": 7, "n": '7[1,"a"]', "plain": "{{ 1 }} {x} {{}}"}


def test_paths_are_percent_encoded_and_headers_stay_on_their_line() -> None:
    assert PathTemplate("/s/{{id}}?q={{q}}").render({"id": "a/b", "q": "é &"}) == b"/s/a%2Fb?q=%C3%A9%20%26"
    assert HeaderTemplate("Bearer {{t}}").render({"t": "x\r\nEvil: 1"}) == b"Bearer x Evil: 1"


# --- checks and captures -------------------------------------------------------------------------------------------

ANSWER = b'{"id": 7, "ok": true, "items": [{"name": "a/b"}], "text": "All fine."}'


@pytest.mark.parametrize(
    ("checks", "status", "verdict"),
    [
        ({}, 200, Verdict()),
        ({}, 404, Verdict("status")),
        ({"status": [404]}, 404, Verdict()),
        ({"status": [200, 201]}, 204, Verdict("check", "status 200 or 201")),
        ({"status": [200]}, 500, Verdict("status")),
        ({"contains": ["fine", "ok"]}, 200, Verdict()),
        ({"contains": ["fine", "sorry"]}, 200, Verdict("check", 'contains "sorry"')),
        ({"lacks": ["fine"]}, 200, Verdict("check", 'lacks "fine"')),
        ({"matches": ["fi[mn]e", r"\d{3}"]}, 200, Verdict("check", r"matches /\d{3}/")),
        ({"json": [{"pointer": "/items/0/name", "equals": "a/b"}]}, 200, Verdict()),
        ({"json": [{"pointer": "/id", "equals": 8}]}, 200, Verdict("check", "/id equals 8")),
        ({"json": [{"pointer": "/ok", "equals": 1}]}, 200, Verdict("check", "/ok equals 1")),
        ({"json": [{"pointer": "/none"}]}, 200, Verdict("check", "/none exists")),
        ({"json": [{"pointer": "/none", "exists": False}]}, 200, Verdict()),
        ({"json": [{"pointer": "/id", "exists": False}]}, 200, Verdict("check", "/id is absent")),
    ],
    ids=str,
)
def test_the_first_failed_check_is_named(checks: dict[str, object], status: int, verdict: Verdict) -> None:
    assert Checker(msgspec.convert(checks, Checks)).judge(status, [], ANSWER)[0] == verdict


def test_an_answer_that_is_not_json_fails_json_checks() -> None:
    checker = Checker(msgspec.convert({"json": [{"pointer": "/id"}]}, Checks))
    assert checker.judge(200, [], b"<html>\xff")[0] == Verdict("check", "the answer is JSON")


def test_captures_come_from_json_header_and_text() -> None:
    captures = {
        "id": Capture(json="/id"),
        "place": Capture(header="Location"),
        "word": Capture(regex=r"All (\w+)"),
        "whole": Capture(regex="f.ne"),
        "other": Capture(json="/none", default="-"),
    }
    verdict, values = Checker(Checks(), captures).judge(200, [(b"location", b"/x/1")], ANSWER)
    assert verdict == Verdict()
    assert values == {"id": 7, "place": "/x/1", "word": "fine", "whole": "fine", "other": "-"}
    assert Checker(Checks(), {"n": Capture(json="/n")}).judge(200, [], ANSWER) == (Verdict("check", "captures n"), {})


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("", {"a/b": {"~": [10, 11]}}),
        ("/a~1b/~0/1", 11),
        ("/a~1b/~0/01", None),
        ("/a~1b/~0/-", None),
        ("/a~1b/x", None),
    ],
)
def test_json_pointers_are_those_of_rfc_6901(pointer: str, value: object) -> None:
    assert at_pointer({"a/b": {"~": [10, 11]}}, pointer) == value


# --- variables -----------------------------------------------------------------------------------------------------


def test_columns_of_one_file_come_from_the_same_row(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text('\ufeffname,city\n"Ann, B.","Paris"\nBob,"Ro\nme"\n')
    variables = {
        "name": Variable(file=str(rows)),
        "town": Variable(file=str(rows), column="city"),
        "n": Variable(counter=5),
        "fixed": Variable(values=["x", 2]),
    }
    drawn = Variables(variables, seed=0)
    assert [drawn.draw() for _ in range(3)] == [
        {"name": "Ann, B.", "town": "Paris", "n": 5, "fixed": "x"},
        {"name": "Bob", "town": "Ro\nme", "n": 6, "fixed": 2},
        {"name": "Ann, B.", "town": "Paris", "n": 7, "fixed": "x"},
    ]


def test_processes_share_rows_and_counters_without_overlap(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"q": "{i}\u2028"}}\n' for i in range(6)))
    variables = {"q": Variable(file=str(rows)), "n": Variable(counter=0), "id": Variable(uuid=True)}
    parts = [Variables(variables, 0, part, 2) for part in range(2)]
    drawn = [parts[i % 2].draw() for i in range(6)]
    assert [d["n"] for d in drawn] == list(range(6))
    assert [d["q"][0] for d in drawn] == list("012345")
    assert len({uuid.UUID(d["id"]) for d in drawn}) == 6
    assert Variables(variables, 0).draw() == Variables(variables, 0).draw()


@pytest.mark.parametrize(
    ("name", "text", "error", "says"),
    [
        ("a.csv", "", InputError, "holds no rows"),
        ("a.csv", "x,y\n1\n", InputError, "line 2: not as many fields"),
        ("a.csv", 'x\n"1\n', InputError, "line 2"),
        ("a.csv", "y\n1\n", ConfigError, "has no column 'x'; it has: y"),
        ("a.jsonl", '{"x": 1}\n[1]\n', InputError, "line 2: .*one JSON object"),
        ("a.jsonl", '{"x": 1}\n{"z": 1}\n', ConfigError, "has no column 'x'"),
        ("none.csv", None, ConfigError, "cannot read the file of values"),
    ],
)
def test_a_file_of_values_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, text: str | None, error: type[Exception], says: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=says):
        Variables({"x": Variable(file=str(tmp_path / name))}, 0)


# --- bodies with variables -----------------------------------------------------------------------------------------


def test_bodies_of_a_mix_are_filled_for_each_request(tmp_path: Path) -> None:
    bodies = tmp_path / "b.jsonl"
    bodies.write_text('{"q": "Where is {{city}}?", "n": "{{n}}"}\n')
    variables = {"city": {"values": ["Rome", "Oslo"]}, "n": {"counter": 1}}
    source = source_for(
        scenario(bodies=str(bodies), path="/ask/{{n}}", headers={"x-n": "{{n}}"}, variables=variables), 3
    )
    assert isinstance(source, Filled)
    sent = [asked(source), asked(source)]
    assert [json.loads(b.data) for b in sent] == [{"q": "Where is Rome?", "n": 1}, {"q": "Where is Oslo?", "n": 2}]
    assert [b.path for b in sent] == ["/ask/1", "/ask/2"]
    assert {b.endpoint for b in sent} == {"POST /ask/{{n}}"}
    assert [dict(b.headers)["x-n"] for b in sent] == ["1", "2"]
    assert sent[0].key != sent[1].key
    assert sent[0].once
    asked(source)
    assert source.next(0) is None


def test_without_variables_braces_are_left_alone_and_there_is_no_source(tmp_path: Path) -> None:
    bodies = tmp_path / "b.jsonl"
    bodies.write_text('{"q": "{{city}}"}\n')
    assert source_for(scenario(bodies=str(bodies)), 5) is None
    source = source_for(scenario(bodies=str(bodies), checks={"contains": ["x"]}), 5)
    assert source is not None
    body = asked(source)
    assert body.data == b'{"q": "{{city}}"}'
    assert body.wants_answer
    assert told(source, body, b"yes") == Verdict("check", 'contains "x"')
    assert source.failed == {'contains "x"': 1}


def test_each_endpoint_of_a_mix_has_its_own_checks() -> None:
    mix = [{"path": "/a", "method": "GET", "checks": {"contains": ["a"]}}, {"path": "/b", "method": "GET"}]
    source = source_for(scenario(mix=mix), 50)
    assert source is not None
    for _ in range(20):
        body = asked(source)
        assert told(source, body, b"b").error == ("check" if body.path == "/a" else None)
        assert body.wants_answer == (body.path == "/a")


# --- conversations -------------------------------------------------------------------------------------------------

TURNS = [
    {"path": "/sessions", "body": {"name": "{{name}}"}, "captures": {"id": {"json": "/id"}}},
    {
        "path": "/sessions/{{id}}/messages",
        "name": "message",
        "body": {"text": "I am {{name}}", "session": "{{id}}"},
        "checks": {"contains": ["hello"]},
    },
    {"path": "/sessions/{{id}}", "method": "DELETE"},
]
TALK = {"turns": TURNS, "variables": {"name": {"values": ["Ann", "Bob", "Cid"]}}}


def test_a_conversation_uses_what_earlier_answers_said() -> None:
    source = Conversations(scenario(**TALK))
    first = asked(source)
    assert json.loads(first.data) == {"name": "Ann"}
    assert told(source, first, {"id": 17}) == Verdict()
    second = asked(source)
    assert (second.path, second.endpoint) == ("/sessions/17/messages", "message")
    assert json.loads(second.data) == {"text": "I am Ann", "session": 17}
    told(source, second, b"hello Ann")
    third = asked(source)
    assert (third.method, third.path, third.data) == ("DELETE", "/sessions/17", b"")
    assert third.endpoint == "DELETE /sessions/{{id}}"
    told(source, third, b"", status=204)
    assert json.loads(asked(source).data) == {"name": "Bob"}


def test_users_do_not_see_each_others_values() -> None:
    source = Conversations(scenario(**TALK))
    for user in (0, 1):
        told(source, asked(source, user), {"id": user + 10}, user=user)
    assert [asked(source, user).path for user in (1, 0)] == ["/sessions/11/messages", "/sessions/10/messages"]


@pytest.mark.parametrize(
    ("answer", "status", "error", "check"),
    [
        (b"", 0, None, None),  # no answer: the driver knows why
        (b"", 500, "status", None),
        (b"{}", 200, "check", "captures id"),
    ],
)
def test_a_failed_turn_ends_the_conversation(answer: bytes, status: int, error: str | None, check: str | None) -> None:
    source = Conversations(scenario(**TALK))
    assert told(source, asked(source), answer, status=status) == Verdict(error, check)
    assert json.loads(asked(source).data) == {"name": "Bob"}


def test_a_turn_whose_answer_never_came_begins_anew() -> None:
    source = Conversations(scenario(**TALK))
    asked(source)
    assert json.loads(asked(source).data) == {"name": "Bob"}


def test_requests_count_turns_and_are_shared_between_processes() -> None:
    parts = [Conversations(scenario(**TALK, requests=7, duration_s=None), part, 2) for part in range(2)]
    sent = [sum(source.next(0) is not None for _ in range(10)) for source in parts]
    assert sent == [4, 3]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"turns": [{"body": {"q": "{{who}}"}}]}, r"turn 1 \(POST /\) uses {{who}}.*known: turn, user"),
        ({"turns": [{"path": "/{{id}}", "captures": {"id": {"json": "/id"}}}]}, "uses {{id}}.*nor captured before"),
    ],
)
def test_an_unknown_name_is_refused_before_the_start(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Conversations(scenario(**changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"turns": [{}], "mix": [{}]}, "turns belong to a closed scenario without mix"),
        ({"turns": [{"body": 1, "bodies": "x"}]}, "either body or bodies"),
        ({"turns": [{"captures": {"a b": {"json": ""}}}]}, "letters, digits and underscores"),
        ({"turns": [{"captures": {"a": {}}}]}, "one of json, header and regex"),
        ({"turns": [{"captures": {"a": {"json": "x"}}}]}, "begins with /"),
        ({"checks": {"matches": ["("]}}, "not a regular expression"),
        ({"checks": {"status": [99]}}, "between 100 and 599; got 99"),
        ({"checks": {"json": [{"pointer": "/a", "equals": 1, "exists": False}]}}, "exclude each other"),
        ({"variables": {"a-b": {"counter": 1}}}, "letters, digits and underscores"),
        ({"variables": {"a": {"counter": 1, "uuid": True}}}, "one of file, values, counter and uuid"),
        ({"variables": {"a": {"counter": 1, "column": "x"}}}, "column belongs to a file"),
        ({"variables": {"a": {"values": [1], "pick": "zipf"}}}, "one of sequence, uniform"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=re.escape(says)):
        scenario(**changes)


# --- over the wire -------------------------------------------------------------------------------------------------


def driven(folder: Path, one: Scenario) -> tuple[list[Request], ScenarioInfo, list[HttpRequest]]:
    """Drive it at a service with sessions: messages to a session it did not give out are 404."""
    given: set[str] = set()
    seen: list[HttpRequest] = []

    def handler(request: HttpRequest) -> Reply:
        seen.append(request)
        if request.target == "/sessions":
            given.add(f"{len(given)}")
            return Reply(200, [], json.dumps({"id": f"{len(given) - 1}"}).encode())
        session = request.target.split("/")[2]
        said = b"hello" if int(session) % 2 else b"go away"
        return Reply(200, [], said) if session in given else Reply(404)

    async def work() -> tuple[list[Request], ScenarioInfo]:
        server = await serve(handler, "127.0.0.1", 0)
        run = create_run(folder, "t")
        try:
            info = await drive(one, f"http://127.0.0.1:{server.port}", run)
        finally:
            await server.close(grace_s=0)
        return run.requests(), info

    return *uvloop.run(work()), seen


@pytest.mark.slow
def test_users_converse_with_a_real_service_and_failed_checks_are_named(tmp_path: Path) -> None:
    """Every other session says what the check forbids: those conversations end after their second turn."""
    one = scenario(**TALK, users=4, requests=100, duration_s=None, warmup=1)
    requests, info, seen = driven(tmp_path, one)
    assert len(requests) == 100
    assert len(seen) == 101
    failed = [r for r in requests if r.error is not None]
    assert {(r.endpoint, r.error, r.failed_check, r.status) for r in failed} == {
        ("message", "check", 'contains "hello"', 200)
    }
    assert info.failed_checks == {'contains "hello"': len(failed)}
    assert {r.endpoint for r in requests} == {"POST /sessions", "message", "DELETE /sessions/{{id}}"}
    assert sum(r.endpoint.startswith("DELETE") for r in requests) > 10


def test_a_scenario_ends_with_its_requests_though_users_were_to_come(tmp_path: Path) -> None:
    requests, info, _ = driven(
        tmp_path, Scenario(name="s", users=3, ramp_s=600, requests=2, method="GET", path="/sessions")
    )
    assert len(requests) == 2
    assert info.stopped is None
