"""The cache test where the truth is known: the gateway's exact and text keys, and caches that are wrong on purpose."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from tests.gateway.builders import CHAT

from paceline.accelerate.cache import CachePolicy
from paceline.accelerate.engine import Engine
from paceline.accelerate.policy import Policy
from paceline.cli import main
from paceline.errors import InputError
from paceline.gateway.service import Gateway
from paceline.load.cache_test import (
    NEAR_MISS,
    PARAPHRASE,
    REPEAT,
    UNIQUE,
    Asked,
    CacheTestPlan,
    CacheTestResult,
    judge,
    plan_asks,
    run_cache_test,
    speedup,
)
from paceline.load.queries import Queries, read_queries
from paceline.testing.provider import SimulatedProvider
from paceline.wire.client import HttpClient
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve

DATA = Path(__file__).parents[1] / "data" / "queries"
FILES = [DATA / "banking77-sample.csv", DATA / "minimal-edits-sample.csv"]
PLAN = CacheTestPlan(questions=30, per_stream=40, seed=3)


def found(result: CacheTestResult) -> dict[str, tuple[int, int]]:
    """Hits and wrong hits of each stream."""
    return {s.stream: (s.hits, s.wrong_hits) for s in result.streams}


def at_gateway(policy: Policy) -> CacheTestResult:
    async def test() -> CacheTestResult:
        async with SimulatedProvider(speed=1000) as provider:
            forward = HttpClient(provider.url)
            engine = Engine(forward, policy)
            server = await serve(Gateway(engine).handle, "127.0.0.1", 0)
            try:
                plan = msgspec.structs.replace(PLAN, headers=(*PLAN.headers, ("authorization", "Bearer x")))
                return await run_cache_test(f"http://127.0.0.1:{server.port}", CHAT, read_queries(FILES), plan)
            finally:
                await server.close(0.0)
                await engine.close()
                await forward.close()

    return asyncio.run(test())


@pytest.mark.slow
@pytest.mark.parametrize("key", ["exact", "text"])
def test_the_gateway_hits_repeats_and_nothing_else(key: str) -> None:
    """The samples hold no two questions that differ in case or punctuation alone, so both keys come to the same."""
    result = at_gateway(Policy(cache=msgspec.convert({"enabled": True, "key": key}, CachePolicy)))
    assert [s.failed for s in result.streams] == [0, 0, 0, 0]
    assert found(result) == {UNIQUE: (0, 0), REPEAT: (40, 0), PARAPHRASE: (0, 0), NEAR_MISS: (0, 0)}
    assert result.speedup.ratio is not None
    assert result.notes == []


@pytest.mark.slow
def test_without_a_cache_nothing_hits_and_there_is_no_ratio() -> None:
    result = at_gateway(Policy())
    assert set(found(result).values()) == {(0, 0)}
    assert result.speedup.ratio is None
    assert result.speedup.reason == "no answer came from the cache"


def question(request: HttpRequest) -> str:
    body = request.body
    assert isinstance(body, bytes)
    text: str = json.loads(body)["messages"][0]["content"]
    return text


@contextmanager
def target(key: Callable[[str], object], header: bytes = b"x-cache") -> Iterator[str]:
    """A server in a thread that keeps one answer for each value of `key`."""
    loop = asyncio.new_event_loop()
    kept: dict[object, bytes] = {}

    async def handler(request: HttpRequest) -> Reply:
        text = question(request)
        hit = key(text) in kept
        answer = kept.setdefault(key(text), json.dumps({"id": f"{len(kept)}", "text": f"about {text}"}).encode())
        return Reply(200, [(header, b"HIT" if hit else b"MISS")], answer)

    server = loop.run_until_complete(serve(handler, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}/chat"
    finally:
        asyncio.run_coroutine_threadsafe(server.close(grace_s=0), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def cache_test(url: str, *options: str) -> int:
    files = [word for file in FILES for word in ("--cache-test", str(file))]
    return main(["load", url, *files, "--per-stream", "40", *options])


def test_a_cache_that_answers_everything_alike_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    with target(lambda _: "everything") as url:
        assert cache_test(url, "--json", "--max-wrong-hits", "0.01") == 1
    said = capsys.readouterr()
    result = msgspec.json.decode(said.out, type=CacheTestResult)
    for stream in result.streams:
        right = 3 if stream.stream == PARAPHRASE else 0  # rewordings of the one question that was answered
        if stream.stream != REPEAT:
            assert stream.requests - stream.wrong_hits == right
    assert result.wrong_hit_ratio is not None
    assert result.wrong_hit_ratio > 0.75
    assert "above the bound of 1.00%" in said.err


def test_a_semantic_cache_that_knows_intents_is_right_and_one_that_drops_digits_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    intents = {text: intent for intent, texts in read_queries(FILES).intents.items() for text in texts}
    with target(lambda text: intents.get(text, text), b"x-semantic") as url:
        assert cache_test(url, "--json", "--cache-header", "X-Semantic", "--max-wrong-hits", "0") == 0
    by_intent = found(msgspec.json.decode(capsys.readouterr().out, type=CacheTestResult))
    assert by_intent[PARAPHRASE][0] > 0
    assert by_intent[PARAPHRASE][1] == by_intent[NEAR_MISS][0] == 0
    with target(lambda text: "".join(c for c in text if not c.isdigit())) as url:
        assert cache_test(url) == 0
    said = capsys.readouterr().out
    assert "a near miss was taken for the question it resembles" in said
    assert "times as fast" in said


def test_a_target_that_says_neither_hit_nor_miss_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    with target(lambda text: text, b"x-other") as url:
        assert cache_test(url, "--max-wrong-hits", "0.01") == 1
    said = capsys.readouterr()
    assert "name the header that does with --cache-header" in said.out
    assert "wrong hits not known" in said.err


def test_the_plan_is_the_same_each_time_and_its_streams_do_not_mix() -> None:
    queries = read_queries(FILES)
    streams = plan_asks(queries, PLAN)
    assert streams == plan_asks(queries, PLAN)
    assert streams != plan_asks(queries, msgspec.structs.replace(PLAN, seed=4))
    by_name = {stream[0].stream: stream for stream in streams}
    seeds = {ask.text for ask in by_name["seed"]}
    assert len(seeds) == len(by_name["seed"])
    assert {ask.text for ask in by_name[REPEAT]} <= seeds
    for name in (UNIQUE, PARAPHRASE, NEAR_MISS):
        texts = [ask.text for ask in by_name[name]]
        assert len(set(texts)) == len(texts)
        assert not seeds & set(texts)
    assert {ask.source for ask in by_name[PARAPHRASE] + by_name[NEAR_MISS]} <= seeds
    asked = [ask.text for ask in by_name[REPEAT]]
    assert max(map(asked.count, asked)) >= 4  # Zipf: of 40 over 30 questions, uniform picks would seldom give one 4


def test_a_hit_with_another_questions_answer_is_wrong() -> None:
    """Even for a question asked before."""
    queries = Queries(intents={"card": ["Where is my card?"], "pin": ["How do I change my PIN?"]})
    cold = [Asked(stream="seed", text=text, cache="miss", status=200, answer=answer)
            for text, answer in (("Where is my card?", "A"), ("How do I change my PIN?", "B"))]  # fmt: skip
    hit = Asked(
        stream=REPEAT, text="Where is my card?", source="Where is my card?", cache="hit", status=200, answer="B"
    )
    result = judge([*cold, hit, msgspec.structs.replace(hit, answer="A")], queries)
    assert [a.wrong for a in result.wrong] == ["the answer is another question's"]
    assert (result.hit_ratio, result.wrong_hit_ratio) == (1.0, 0.5)


def test_a_warm_median_of_zero_is_no_ratio() -> None:
    assert speedup([1.0], [0.0]).ratio is None
    assert speedup([1.0], [0.0]).reason == "cached answers took less than the clock can tell"
    assert speedup([], [0.1]).reason == "no answer was made anew"
    assert speedup([1.0, 1.0], [0.25]).ratio == 4.0


def test_questions_of_no_intent_are_their_own(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_text("# a licence line\ntext,label,orig_split\na,oos,x\nb,oos,x\nc,pay,x\nc,pay,x\n", encoding="utf-8")
    assert read_queries([file]).intents == {"a": ["a"], "b": ["b"], "pay": ["c"]}


def test_pairs_that_are_duplicates_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("a,b,duplicate,kind\n1 day,2 days,0,number\nhi,hello,1,none\nx,x,0,none\n", encoding="utf-8")
    assert read_queries([file]).near_misses == [("1 day", "2 days")]


@pytest.mark.parametrize(
    ("text", "says"), [("x,y\n1,2\n", "expected the columns"), ("text,label\n", "no question"), ("", "got none")]
)
def test_files_without_questions_are_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "q.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        read_queries([file])
