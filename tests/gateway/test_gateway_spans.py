"""What the gateway writes down about a call."""

import asyncio
import errno
from pathlib import Path

import msgspec
import pytest
from tests.gateway.builders import CACHING, COMPLETION, COST_USD, EVENTS, JSON, PLAIN, STREAM, bench
from tests.patience import PATIENCE_S
from tests.wire.builders import STREAM_END, STREAM_HEAD, chunk, ok, run

from paceline.accelerate.record import CallRecord
from paceline.clock import FakeClock
from paceline.gateway.spans import FLUSH_S, SpanSink
from paceline.model.span import LIMIT_REQUESTS_PER_MIN, LIMIT_TOKENS_PER_MIN, TTFT_S, Span
from paceline.store.spool import Spool

LIMITS = (b"x-ratelimit-limit-requests: 500", b"x-ratelimit-limit-tokens: 30000")


def test_a_call_becomes_one_whole_span() -> None:
    """Trace, step, model, tokens, cost, limits, and the prompt split by role, without any text."""

    async def main() -> Span:
        async with bench(ok(COMPLETION, JSON, *LIMITS)) as b:
            messages = [
                {"role": "system", "content": "s" * 40},
                {"role": "user", "content": "u" * 8},
                {"role": "assistant", "content": "a" * 12},
                {"role": "user", "content": "secret question"},
            ]
            trace = (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")
            await b.say(headers=(trace, (b"x-paceline-step", b"answer")), messages=messages)
            return b.spans[0]

    span = run(main())
    assert (span.trace_id, span.parent_id, len(span.span_id)) == ("a" * 32, "b" * 16, 16)
    assert (span.name, span.kind, span.service, span.step) == ("chat gpt-4o-mini", "llm", "gateway", "answer")
    assert (span.input_tokens, span.output_tokens, span.cached_tokens) == (1000, 500, 0)
    assert span.cost_usd == pytest.approx(COST_USD)
    assert span.attributes[LIMIT_REQUESTS_PER_MIN] == 500
    assert span.attributes[LIMIT_TOKENS_PER_MIN] == 30_000
    parts = [span.attributes[f"paceline.prompt.{part}_tokens"] for part in ("system", "history", "user")]
    assert parts == [10, 5, 4]
    assert (span.status, span.wait_ns, span.cache) == ("ok", 0, "bypass")
    assert (span.fingerprint or "").startswith("prompt:")
    assert b"secret" not in msgspec.json.encode(span)


@pytest.mark.parametrize("header", [None, b"", b"nonsense", b"00-" + b"0" * 32 + b"-" + b"b" * 16 + b"-01"])
def test_without_a_trace_a_call_starts_one(header: bytes | None) -> None:
    """A missing or malformed traceparent is a new trace, never an error."""

    async def main() -> Span:
        async with bench(*PLAIN) as b:
            await b.say(headers=((b"traceparent", header),) if header is not None else ())
            return b.spans[0]

    span = run(main())
    assert len(span.trace_id) == 32
    assert span.parent_id is None


def test_a_stream_says_when_it_began_and_what_it_said() -> None:
    """Time to the first piece from the moment of sending; tokens estimated and marked so."""
    clock = FakeClock()

    async def main() -> Span:
        gate = asyncio.Event()
        async with bench(STREAM_HEAD, gate, *map(chunk, EVENTS), STREAM_END, clock=clock) as b:
            reply = await b.ask("x" * 40, stream=True)
            clock.advance(0.25)
            gate.set()
            await reply.__anext__()
            clock.advance(0.5)
            await reply.read()
            return b.spans[0]

    span = run(main())
    assert span.attributes[TTFT_S] == 0.25
    assert span.duration_s == 0.75
    assert span.attributes["paceline.tokens_estimated"] is True
    assert (span.input_tokens, span.output_tokens) == (10, 3)
    assert span.cost_usd == pytest.approx(10 * 0.15e-6 + 3 * 0.6e-6)


def test_embeddings_are_counted_and_priced() -> None:
    """Kind embedding, no output tokens, the price of the embedding model."""
    body = b'{"data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 1000, "total_tokens": 1000}}'

    async def main() -> Span:
        async with bench(ok(body, JSON), policy=CACHING) as b:
            for _ in range(2):
                call = b'{"model": "text-embedding-3-small", "input": ["a", "b"]}'
                await (await b.client.request("POST", "/v1/embeddings", [], call)).read()
            assert [span.cache for span in b.spans] == ["miss", "hit"]
            return b.spans[0]

    span = run(main())
    assert (span.kind, span.name, span.output_tokens) == ("embedding", "embedding text-embedding-3-small", 0)
    assert span.cost_usd == pytest.approx(1000 * 0.02e-6)


def test_an_unknown_model_has_an_unknown_price() -> None:
    """Never zero for what nobody knows."""

    async def main() -> Span:
        async with bench(ok(COMPLETION.replace(b"gpt-4o-mini", b"house-model"), JSON)) as b:
            await b.say(model="house-model")
            return b.spans[0]

    assert run(main()).cost_usd is None


def test_a_deployments_price_is_that_of_the_model_that_answers() -> None:
    """Azure and others let callers name a deployment; the answer says which model it is."""

    async def main() -> Span:
        async with bench(*PLAIN) as b:
            await b.say(model="our-deployment-7")
            return b.spans[0]

    assert run(main()).cost_usd == pytest.approx(COST_USD)


def test_the_same_question_has_the_same_hash() -> None:
    """Streamed or not, whoever asks."""

    async def main() -> None:
        async with bench(scripts=[PLAIN, STREAM, PLAIN]) as b:
            await b.say()
            await b.say(stream=True, user="bob")
            await b.say("other")
            hashes = [span.attributes["paceline.prompt.hash"] for span in b.spans]
            assert hashes[0] == hashes[1] != hashes[2]

    run(main())


def finished_call() -> CallRecord:
    record = CallRecord(lambda _: None, FakeClock(), "GET", "/v1/models", "", None, FakeClock().now_ns())
    record.finish()
    return record


def test_spans_reach_the_disk_while_serving(tmp_path: Path) -> None:
    """Written in the background, and the rest at the end."""

    async def main() -> None:
        spool = Spool(tmp_path, "spans", "gateway")
        sink = SpanSink(spool)
        sink.start()
        sink.take(finished_call())
        async with asyncio.timeout(PATIENCE_S):
            while not spool.path.stat().st_size:  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.02)
        sink.take(finished_call())
        await sink.close()
        assert spool.path.read_bytes().count(b"\n") == 2

    run(main())


class FullDisk(Spool):
    """A disk that takes nothing until it is freed."""

    full = True

    def flush(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().flush()


def test_a_full_disk_is_reported_once_and_serving_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence on stderr however often it fails; when there is space again, nothing is lost."""

    async def main() -> None:
        spool = FullDisk(tmp_path, "spans", "gateway")
        sink = SpanSink(spool)
        sink.start()
        sink.take(finished_call())
        await asyncio.sleep(FLUSH_S * 2.5)
        sink.take(finished_call())
        spool.full = False
        await sink.close()
        assert spool.path.read_bytes().count(b"\n") == 2

    run(main())
    assert capsys.readouterr().err == "paceline: spans cannot be written (No space left on device); serving goes on\n"
