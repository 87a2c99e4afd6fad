"""A run recorded with its answers warms a cache under the keys of the policy in force."""

import asyncio
import json
import signal
import stat
from pathlib import Path

import msgspec
import pytest
import uvloop
from tests.gateway.builders import COMPLETION, EVENTS, PLAIN, STREAM
from tests.gateway.serving import CALL, Serving, serving
from tests.wire.builders import answer, scripted

from paceline.accelerate.cache import Cache, CachePolicy, StoredReply
from paceline.accelerate.policy import Policy
from paceline.accelerate.recorded import AnswersWriter, Recorded, read_answers
from paceline.accelerate.warming import warm_from
from paceline.cli import main as cli
from paceline.errors import InputError
from paceline.store.folder import open_run

STREAMED = CALL[:-1] + b', "stream": true}'
FAILING = CALL.replace(b"hi", b"fail")


def call(text: str, created_s: float = 1_000.0, **fields: object) -> Recorded:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **fields}
    return Recorded(
        target="/v1/chat/completions",
        headers=[("x-paceline-tags", "faq")],
        body=msgspec.json.encode(body),
        tenant=b"t",
        created_s=created_s,
        compute_s=1.0,
        reply=StoredReply(headers=[], pieces=[COMPLETION], stream=False),
    )


def written(folder: Path, *calls: Recorded, most_bytes: int = 1_000_000) -> AnswersWriter:
    writer = AnswersWriter(folder, "a", most_bytes=most_bytes)
    for each in calls:
        writer.add(each)
    writer.close()
    return writer


@pytest.mark.slow
def test_what_one_gateway_answered_another_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recorded while calls were passed on only; found by a gateway with a cache that never asks its provider."""
    cache, policy = tmp_path / "cache", tmp_path / "policy.toml"
    policy.write_text(f'[cache]\nenabled = true\nkey = "text"\n[cache.host]\nenabled = true\npath = "{cache}"\n')
    bearer = (b"authorization", b"Bearer sk-secret")
    run = tmp_path / "monday"

    async def ask(g: Serving, body: bytes) -> tuple[int, bytes | None, bytes]:
        reply = await g.client.request("POST", "/v1/chat/completions", [bearer], body)
        return reply.status, reply.header(b"x-paceline-cache"), await reply.read()

    async def record() -> None:
        async with scripted(scripts=[PLAIN, STREAM, [answer(500, b"{}")]]) as upstream:
            options = ("--upstream", upstream.url, "--run", str(run), "--record-answers")
            async with serving(*options) as g:
                assert await ask(g, CALL) == (200, b"bypass", COMPLETION)
                assert await ask(g, STREAMED) == (200, b"bypass", b"".join(EVENTS))
                assert (await ask(g, FAILING))[0] == 500
                assert await g.stop(signal.SIGTERM) == (0, "")

    async def use() -> None:
        async with serving("--upstream", "http://127.0.0.1:1", "--policy", str(policy)) as g:
            assert await ask(g, CALL.replace(b"hi", b"Hi!")) == (200, b"hit", COMPLETION)
            assert await ask(g, STREAMED) == (200, b"hit", b"".join(EVENTS))
            assert (await ask(g, FAILING))[0] == 502
            assert (await g.ask((b"authorization", b"Bearer other")))[0] == 502

    uvloop.run(asyncio.wait_for(record(), 60))
    assert (open_run(run).info.state, len(open_run(run).spans())) == ("complete", 3)
    (file,) = run.glob("answers-*.jsonl")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"sk-secret" not in file.read_bytes()
    capsys.readouterr()
    assert cli(["cache", "warm", str(run), "--policy", str(policy)]) == 0
    assert capsys.readouterr().out == "2 answers stored\n"
    uvloop.run(asyncio.wait_for(use(), 60))


def test_ages_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    """What has become too old is left out and counted, and so is what the policy does not keep."""
    written(tmp_path, call("old"), call("stateful", store=True, previous_response_id="r"))
    policy = Policy(cache=CachePolicy(enabled=True))

    async def main() -> None:
        async with Cache(policy.cache) as cache:
            told = await warm_from(cache, tmp_path, policy)
            assert (told.stored, told.too_old) == (0, 2)
            told = await warm_from(cache, tmp_path, policy, as_new=True)
            assert (told.stored, told.too_old) == (2, 0)
            assert await cache.invalidate(tags=["faq"]) == 2
            told = await warm_from(cache, tmp_path, Policy(), as_new=True)
            assert (told.stored, told.unkeyed) == (0, 2)

    asyncio.run(main())


def test_a_killed_writers_last_line_is_left_out(tmp_path: Path) -> None:
    """And a successor writes on in the same file."""
    written(tmp_path, call("one"))
    path = tmp_path / "answers-a.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[1][:40])
    assert [each.body for each in read_answers(path)] == [call("one").body]
    path.write_bytes(whole)
    written(tmp_path, call("two"))
    assert [each.body for each in read_answers(path)] == [call("one").body, call("two").body]


def test_a_file_is_bounded(tmp_path: Path) -> None:
    """What has no room is counted, not written."""
    writer = written(tmp_path, call("one"), call("two"), most_bytes=1_200)
    assert writer.left_out == 1
    assert len(list(read_answers(tmp_path / "answers-a.jsonl"))) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "does not begin as a file of recorded answers"),
        (b'{"paceline_answers": 2}\n', "has schema 2, this version of paceline reads up to 1: install a newer one"),
        (b'{"paceline_answers": 1}\n{"target": 1}\n', "line 2 is no recorded call"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: bytes, problem: str) -> None:
    """With file and line."""
    path = tmp_path / "answers-a.jsonl"
    path.write_bytes(text)
    with pytest.raises(InputError, match=problem):
        list(read_answers(path))


def test_the_first_schema_is_read_for_ever() -> None:
    """A file of each version stays here."""
    (call,) = read_answers(Path(__file__).parent.parent / "data" / "answers-schema-1.jsonl")
    assert (call.target, call.tenant, call.reply.pieces) == ("/v1/chat/completions", b"t", [COMPLETION])
    assert json.loads(call.body)["model"] == "gpt-4o-mini"


def test_a_run_without_answers_says_how_to_record_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 3 and one sentence; and recording answers needs a run."""
    assert cli(["cache", "warm", str(tmp_path), "--host", str(tmp_path / "cache")]) == 3
    assert "paceline serve --run DIR --record-answers" in capsys.readouterr().err
    assert cli(["serve", "--record-answers"]) == 2
    assert "name it with --run DIR" in capsys.readouterr().err
