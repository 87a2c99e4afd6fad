"""Replays keep times, lengths and shared prefixes of what was recorded; on samples, on the wire, on whole traces."""

import itertools
import json
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples

from paceline.errors import ConfigError, InputError
from paceline.load.driver import drive
from paceline.load.parts import Trace
from paceline.load.replay import BLOCK_TOKENS, Recorded, block_text, bodies, due_times, prompt, read_trace, replayed
from paceline.load.scenario import Scenario
from paceline.store.folder import RunFolder, create_run
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve
from paceline.wire.tokens import estimate_tokens

SAMPLES = Path(__file__).parents[1] / "data" / "traffic"
CHAT = str(SAMPLES / "azure_llm_2023_conv_head.csv")
PREFIXES = str(SAMPLES / "mooncake_conversation_head.jsonl")


def replay(path: str, *, requests: int | None = None, duration_s: float | None = None, **trace: Any) -> Scenario:
    return Scenario(
        name="replay",
        model="open",
        arrivals="replay",
        trace=Trace(path=path, **trace),
        path="/v1/chat/completions",
        requests=requests,
        duration_s=duration_s,
    )


def content(data: bytes) -> str:
    text = json.loads(data)["messages"][0]["content"]
    assert isinstance(text, str)
    return text


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """How many items are the same from the start on."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def whole(name: str) -> str:
    """A whole trace, for tests that need one."""
    folder = os.environ.get("PACELINE_TEST_DATA")
    path = Path(folder or ".") / "traffic" / name
    if folder is None or not path.exists():
        pytest.skip(f"PACELINE_TEST_DATA names no folder with traffic/{name}")
    return str(path)


def test_the_azure_sample_is_read_as_it_is() -> None:
    rows = read_trace(Trace(path=CHAT))
    assert len(rows) == 300
    assert rows[0] == Recorded(0.0, 374, 44)
    assert rows[1].at_s == pytest.approx(4.314579, abs=1e-5)


def test_the_mooncake_sample_is_read_as_it_is() -> None:
    rows = read_trace(Trace(path=PREFIXES))
    assert len(rows) == 40
    assert (rows[0].input_tokens, rows[0].output_tokens, rows[0].blocks[:3]) == (6758, 500, (0, 1, 2))


@examples(10)
@given(st.floats(0.1, 100), st.one_of(st.none(), st.floats(0.05, 5)))
def test_time_is_scaled_after_silences_are_cut(scale: float, cap_s: float | None) -> None:
    plain = due_times(replay(CHAT))
    due = due_times(replay(CHAT, time_scale=scale, max_gap_s=cap_s))
    assert len(due) == len(plain)
    for (a, b), (c, d) in zip(itertools.pairwise(plain), itertools.pairwise(due), strict=True):
        assert (d - c) * scale == pytest.approx(b - a if cap_s is None else min(b - a, cap_s), abs=1e-6)


@examples(10)
@given(st.floats(0, 40), st.floats(5, 60))
def test_a_window_holds_what_was_recorded_in_it(start_s: float, length_s: float) -> None:
    rows = read_trace(Trace(path=CHAT))
    inside = [row for row in rows if start_s <= row.at_s < start_s + length_s]
    found = replayed(replay(CHAT, start_s=start_s, length_s=length_s))
    assert [row for _, row in found] == inside
    assert [at_s for at_s, _ in found] == pytest.approx([row.at_s - start_s for row in inside])


def test_requests_and_duration_end_it_early() -> None:
    assert len(due_times(replay(CHAT, requests=7))) == 7
    assert due_times(replay(CHAT, duration_s=5.0))[-1] < 5
    assert len(list(bodies(replay(CHAT, requests=7)))) == 7


def test_prompts_have_exactly_the_recorded_lengths_and_are_the_same_again() -> None:
    scenario = replay(CHAT)
    rows = [row for _, row in replayed(scenario)]
    sent = list(bodies(scenario))
    assert [estimate_tokens(content(body.data)) for body in sent] == [row.input_tokens for row in rows]
    assert [json.loads(body.data)["max_tokens"] for body in sent] == [max(1, row.output_tokens) for row in rows]
    assert sent == list(bodies(scenario))
    assert len({body.key for body in sent}) == len(sent)


def test_prompts_share_prefixes_where_the_blocks_say_so_and_nowhere_else() -> None:
    trace, size = Trace(path=PREFIXES), BLOCK_TOKENS * 4
    rows = read_trace(trace)
    texts = [prompt(i, row) for i, row in enumerate(rows)]
    for (a, first), (b, second) in itertools.combinations(list(zip(rows, texts, strict=True))[:12], 2):
        shared, common = common_prefix(a.blocks, b.blocks), common_prefix(first, second)
        assert shared * size <= common < shared * size + 20


@given(st.text(max_size=30), st.text(max_size=30))
def test_blocks_are_as_long_as_they_should_be_and_differ_by_name(a: str, b: str) -> None:
    assert len(block_text(a)) == BLOCK_TOKENS * 4
    assert (block_text(a) == block_text(b)) == (a == b)


@pytest.mark.parametrize(
    ("name", "text", "error", "says"),
    [
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", InputError, "holds no requests"),
        ("t.csv", "time,in,out\n1,2,3\n", InputError, "line 2: expected TIMESTAMP"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,2,3\n", InputError, "line 2: expected TIMESTAMP"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,-2,3\n", InputError, "line 2"),
        ("t.jsonl", '{"timestamp": 0}\n', InputError, "line 1: .*expected timestamp"),
        ("t.jsonl", '{"timestamp": 0, "input_length": -1, "output_length": 1}\n', InputError, "not negative"),
        ("none.csv", None, ConfigError, "cannot read the trace"),
    ],
)
def test_a_trace_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, text: str | None, error: type[Exception], says: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=says):
        due_times(replay(str(tmp_path / name)))


def test_an_empty_window_says_how_long_the_trace_is() -> None:
    with pytest.raises(ConfigError, match=r"no request of .* it lasts \d+ s"):
        due_times(replay(CHAT, start_s=1e6))


def driven(
    folder: Path, scenario: Scenario, name: str = "t", speed: float = 1.0
) -> tuple[RunFolder, list[HttpRequest]]:
    """Drive the scenario at a server that remembers what it was asked."""
    seen: list[HttpRequest] = []

    def handler(request: HttpRequest) -> Reply:
        seen.append(request)
        return Reply(200, [(b"content-type", b"application/json")], b"{}")

    async def work() -> RunFolder:
        server = await serve(handler, "127.0.0.1", 0)
        run = create_run(folder, name, speed=speed)
        try:
            await drive(scenario, f"http://127.0.0.1:{server.port}", run)
        finally:
            await server.close(grace_s=0)
        return run

    return uvloop.run(work()), seen


@pytest.mark.slow
def test_a_trace_goes_over_the_wire_at_its_times_and_lengths(tmp_path: Path) -> None:
    scenario = replay(CHAT, time_scale=200)
    run, seen = driven(tmp_path, scenario)
    requests = run.requests()
    assert len(requests) == 300
    assert all(r.ok for r in requests)
    due = due_times(scenario)
    assert [r.intended_s - requests[0].intended_s for r in requests] == pytest.approx(list(due), abs=1e-5)
    (info,) = run.info.scenarios
    assert info.rate_per_s == pytest.approx(299 / due[-1])
    sent = Counter(estimate_tokens(content(r.body)) for r in seen)
    assert sent == Counter(row.input_tokens for row in read_trace(Trace(path=CHAT)))


@pytest.mark.slow
def test_a_run_is_sent_again_as_it_was(tmp_path: Path) -> None:
    """Same bodies in the same order at the same intended times, at another speed of the provider too."""
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(f'{{"q": {i}}}\n' for i in range(9)))
    scenario = Scenario(
        name="first",
        model="open",
        rate_per_s=400,
        arrivals="poisson",
        requests=60,
        path="/chat",
        bodies=str(questions),
        pick="zipf",
    )
    run, seen = driven(tmp_path, scenario)
    again = Scenario(
        name="again",
        model="open",
        arrivals="replay",
        trace=Trace(path=str(run.path)),
        path="/chat",
        bodies=str(questions),
    )
    repeated, seen_again = driven(tmp_path, again, "again", speed=2.0)
    assert sorted(r.body for r in seen) == sorted(r.body for r in seen_again)
    first, second = run.requests(), repeated.requests()
    assert [(r.endpoint, r.key) for r in first] == [(r.endpoint, r.key) for r in second]
    gaps = [[b.intended_s - a.intended_s for a, b in itertools.pairwise(rs)] for rs in (first, second)]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-5)


def test_a_run_whose_bodies_are_not_given_says_what_is_missing(tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"q": 1}\n')
    run, _ = driven(tmp_path, Scenario(name="s", users=1, requests=3, path="/chat", bodies=str(questions)))
    with pytest.raises(ConfigError, match=r"3 of 3 requests of the run have bodies that are not given.*POST /chat"):
        list(bodies(replay(str(run.path))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "cv"),
    [("azure_llm_2023_conv.csv", 19_366, 1.09), ("azure_llm_2023_code.csv", 8_819, 13.2)],
)
def test_whole_azure_traces_keep_their_burstiness(name: str, rows: int, cv: float) -> None:
    due = due_times(replay(whole(name), time_scale=10))
    gaps = [b - a for a, b in itertools.pairwise(due)]
    assert len(due) == rows
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(cv, rel=0.01)


@pytest.mark.slow
def test_the_whole_mooncake_trace_reuses_as_many_blocks_as_it_says() -> None:
    rows = read_trace(Trace(path=whole("mooncake_conversation.jsonl")))
    seen: set[int] = set()
    again = 0
    for row in rows:
        again += sum(block in seen for block in row.blocks)
        seen.update(row.blocks)
    assert len(rows) == 12_031
    assert again / sum(len(row.blocks) for row in rows) == pytest.approx(0.366, abs=0.001)
