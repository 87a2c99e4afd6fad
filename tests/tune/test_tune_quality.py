"""Golden questions: read from a file, asked over a real socket, judged by what their answers say."""

import asyncio
from pathlib import Path

import pytest

from paceline.errors import InputError
from paceline.tune.quality import Question, answer_text, ask_golden, missing, read_golden
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve


def question(body: str, *expect: str) -> Question:
    """One golden question."""
    import msgspec

    return Question(body=msgspec.Raw(body.encode()), expect=list(expect))


def test_text_of_json_is_all_its_strings() -> None:
    """Numbers and names of fields are not what the answer says."""
    assert (
        answer_text(b'{"answer": "Within 30 days", "sources": [{"title": "Returns"}], "ms": 12}')
        == "Within 30 days Returns"
    )


def test_text_of_a_stream_is_joined_by_place() -> None:
    """Pieces of one text join without a space, whatever else the events hold."""
    stream = b'data: {"type": "token", "text": "Wit"}\n\ndata: {"type": "token", "text": "hin 30"}\n\ndata: [DONE]\n\n'
    assert "Within 30" in answer_text(stream)
    assert answer_text(b"data: Wit\n\ndata: hin\n\n") == "Within"


def test_plain_text_is_itself() -> None:
    """What is neither JSON nor a stream is taken as it is."""
    assert answer_text(b"Within 30 days") == "Within 30 days"


def test_case_and_white_space_do_not_matter() -> None:
    """Only what is not said is missing."""
    assert missing("Within\n30  DAYS", ["within 30 days", "refund"]) == ["refund"]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    """The file, the line and the form that is expected."""
    path = tmp_path / "golden.jsonl"
    path.write_text('{"body": {}, "expect": ["x"]}\n\n{"body": {}}\n')
    with pytest.raises(InputError, match=r"line 3: .*`expect`") as caught:
        read_golden(path)
    assert caught.value.line == 3
    path.write_text('{"body": {}, "expect": []}\n')
    with pytest.raises(InputError, match="expect names nothing"):
        read_golden(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        read_golden(path)


def test_every_question_is_asked_once_and_misses_say_why() -> None:
    """One passes, one lacks a word, one gets an error status, one gets no answer in time."""
    seen: list[bytes] = []

    async def handler(request: HttpRequest) -> Reply:
        seen.append(request.body)
        if b"slow" in request.body:
            await asyncio.sleep(10)
        status = 500 if b"broken" in request.body else 200
        return Reply(status, [(b"content-type", b"application/json")], b'{"answer": "30 days"}')

    questions = [
        question('{"q": "returns"}', "30 Days"),
        question('{"q": "refund"}', "days", "14"),
        question('{"q": "broken"}', "days"),
        question('{"q": "slow"}', "days"),
    ]

    async def main() -> None:
        server = await serve(handler, "127.0.0.1", 0)
        try:
            url = f"http://127.0.0.1:{server.port}"
            quality = await ask_golden(questions, url, path="/chat", timeout_s=0.2)
        finally:
            await server.close(0)
        assert (quality.asked, quality.passed, quality.ratio) == (4, 1, 0.25)
        assert [(m.index, m.missing) for m in quality.misses] == [(1, ["14"]), (2, ["days"]), (3, ["days"])]
        assert [m.problem for m in quality.misses] == [None, "HTTP 500", "no answer in 0.2 s"]

    asyncio.run(main())
    assert sorted(seen) == sorted(bytes(q.body) for q in questions)
