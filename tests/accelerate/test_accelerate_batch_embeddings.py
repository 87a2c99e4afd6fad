"""Embedding calls made together are answered as if each had been made alone."""

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.accelerate.builders import run_virtual

from paceline.accelerate.batching.embeddings import EmbeddingBatcher
from paceline.accelerate.batching.joining import apportioned, divided, join, read_embedding, split
from paceline.accelerate.batching.policy import BatchPolicy
from paceline.testing import SimulatedProvider
from paceline.wire.client import HttpClient
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve

PATH = "/v1/embeddings"
GEMINI = "/v1beta/models/gemini-embedding-001"
AUTH = [(b"content-type", b"application/json"), (b"authorization", b"Bearer k1")]


def request(value: Any = "hello", *, path: str = PATH, headers: Any = AUTH, **fields: Any) -> HttpRequest:
    return HttpRequest("POST", path, headers, msgspec.json.encode({"model": "m", "input": value, **fields}))


def gemini(text: str, method: str = "embedContent", **fields: Any) -> HttpRequest:
    body: dict[str, Any] = {"content": {"parts": [{"text": text}]}, **fields}
    if method == "batchEmbedContents":
        body = {"requests": [{"model": "models/gemini-embedding-001", **body}] * 2}
    return HttpRequest("POST", f"{GEMINI}:{method}?alt=json", AUTH, msgspec.json.encode(body))


def vector(one: Any) -> list[float]:
    """Of an input, whatever it is: the same input always gets the same."""
    seed = msgspec.json.encode(one)
    return [round((byte - 100) / 7, 3) for byte in seed[:4]] + [len(seed) * 1e-5]


def answered(request: HttpRequest) -> dict[str, Any]:
    """What a provider says to a call."""
    call = msgspec.json.decode(request.body)
    path = request.path
    if path.endswith(":embedContent"):
        return {"embedding": {"values": vector(call["content"])}}
    if path.endswith(":batchEmbedContents"):
        return {"embeddings": [{"values": vector(one["content"])} for one in call["requests"]]}
    given = call["input"]
    inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    vectors = [vector(one) for one in inputs]
    if call.get("encoding_format") == "base64":
        packed = [base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode() for v in vectors]
    data = [
        {"object": "embedding", "index": i, "embedding": packed[i] if "encoding_format" in call else v}
        for i, v in enumerate(vectors)
    ]
    tokens = sum(len(one) for one in inputs)
    return {
        "object": "list",
        "data": data,
        "model": call["model"],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


class Provider:
    """A scripted `send`: remembers what it was asked; answers after a while, by `rule` where that says something."""

    def __init__(self, rule: Callable[[HttpRequest], Reply | Exception | None] = lambda _: None) -> None:
        self.asked: list[HttpRequest] = []
        self.rule = rule
        self.cancelled = 0

    async def __call__(self, request: HttpRequest) -> Reply:
        self.asked.append(request)
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        said = self.rule(request)
        if isinstance(said, Exception):
            raise said
        if said is not None:
            return said
        headers = [(b"content-type", b"application/json"), (b"content-length", b"9"), (b"x-request-id", b"r1")]
        return Reply(200, headers, msgspec.json.encode(answered(request)))

    def inputs(self) -> list[Any]:
        return [msgspec.json.decode(request.body).get("input") for request in self.asked]


def body(reply: Reply) -> Any:
    assert isinstance(reply.body, bytes)
    return msgspec.json.decode(reply.body)


def without_usage(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "usage"}


async def together(batcher: EmbeddingBatcher, *requests: HttpRequest) -> list[Reply]:
    return await asyncio.gather(*(batcher.handle(request) for request in requests))


# --- joining ---------------------------------------------------------------------------------------------------------


def test_calls_in_one_window_become_one_and_are_answered_as_if_alone() -> None:
    async def main() -> None:
        provider = Provider()
        batcher = EmbeddingBatcher(provider)
        requests = [request("a"), request(["b", "c"]), request("a")]
        replies = await together(batcher, *requests)
        assert provider.inputs() == [["a", "b", "c", "a"]]
        for asked, reply in zip(requests, replies, strict=True):
            assert isinstance(reply.body, bytes)
            assert reply.body == msgspec.json.encode(answered(asked)), "to the byte, and here the usage is exact too"
            assert dict(reply.headers)[b"x-paceline-batch"] == b"3"
            assert b"content-length" not in dict(reply.headers)
        assert asyncio.get_running_loop().time() == pytest.approx(0.103)
        assert batcher.statistics().batched_calls == 3

    run_virtual(main())


def test_a_call_alone_passes_byte_for_byte_after_the_window() -> None:
    async def main() -> None:
        provider = Provider()
        odd = HttpRequest("POST", PATH, AUTH, b'{ "input" :"x",\n"model":"m" }')
        reply = await EmbeddingBatcher(provider).handle(odd)
        assert provider.asked == [odd]
        assert provider.asked[0] is odd
        assert reply.headers == [
            (b"content-type", b"application/json"),
            (b"content-length", b"9"),
            (b"x-request-id", b"r1"),
        ]
        assert asyncio.get_running_loop().time() == pytest.approx(0.103)

    run_virtual(main())


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(request("b", headers=[(b"authorization", b"Bearer k2")]), id="tenant"),
        pytest.param(request("b", headers=[*AUTH, (b"openai-project", b"p")]), id="project"),
        pytest.param(request("b", model="n"), id="model"),
        pytest.param(request("b", dimensions=64), id="dimensions"),
        pytest.param(request("b", encoding_format="base64"), id="encoding"),
        pytest.param(request("b", user="eve"), id="user"),
        pytest.param(request([1, 2]), id="tokens beside text"),
        pytest.param(request("b", path="/v1/embeddings?x=1"), id="query"),
        pytest.param(gemini("b"), id="dialect"),
    ],
)
def test_calls_that_differ_in_anything_else_are_not_joined(other: HttpRequest) -> None:
    async def main() -> None:
        provider = Provider()
        await together(EmbeddingBatcher(provider), request("a"), other)
        assert len(provider.asked) == 2

    run_virtual(main())


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(HttpRequest("GET", PATH, AUTH, b""), id="not a post"),
        pytest.param(HttpRequest("POST", PATH, AUTH, b"{broken"), id="not json"),
        pytest.param(HttpRequest("POST", PATH, AUTH, b"[1]"), id="not an object"),
        pytest.param(request([]), id="no input"),
        pytest.param(request(["a", 1]), id="mixed input"),
        pytest.param(request(None), id="null"),
        pytest.param(HttpRequest("POST", PATH, AUTH, b'{"model":"m"}'), id="missing"),
        pytest.param(request("a", path="/v1/chat/completions"), id="another path"),
        pytest.param(request(["a"] * 100), id="as large as a batch"),
        pytest.param(HttpRequest("POST", f"{GEMINI}:batchEmbedContents", AUTH, b"{}"), id="gemini, nothing in it"),
    ],
)
def test_what_cannot_be_joined_passes_at_once(odd: HttpRequest) -> None:
    async def main() -> None:
        provider = Provider(lambda _: Reply(200, (), b"fine"))
        await EmbeddingBatcher(provider).handle(odd)
        assert provider.asked == [odd]
        assert asyncio.get_running_loop().time() == pytest.approx(0.1)

    run_virtual(main())


def test_tenants_told_apart_by_the_door_are_not_joined() -> None:
    async def main() -> None:
        provider = Provider()
        batcher = EmbeddingBatcher(provider)
        await asyncio.gather(batcher.handle(request("a"), b"eve"), batcher.handle(request("b"), b"bob"))
        assert provider.inputs() == ["a", "b"]

    run_virtual(main())


def test_headers_of_the_batch_are_the_first_callers_but_for_its_trace() -> None:
    async def main() -> None:
        provider = Provider()
        first = request("a", headers=[*AUTH, (b"traceparent", b"00-1"), (b"content-length", b"7")])
        second = request("b", headers=[*AUTH, (b"accept-encoding", b"gzip"), (b"x-stainless-retry-count", b"1")])
        await together(EmbeddingBatcher(provider), first, second)
        assert [asked.headers for asked in provider.asked] == [[*AUTH, (b"accept-encoding", b"identity")]]

    run_virtual(main())


def test_a_full_batch_goes_without_waiting() -> None:
    async def main() -> None:
        provider = Provider()
        batcher = EmbeddingBatcher(provider, BatchPolicy(enabled=True, max_inputs=4, window_s=1.0))
        await together(batcher, *(request(str(n)) for n in range(8)))
        assert [len(inputs) for inputs in provider.inputs()] == [4, 4]
        assert asyncio.get_running_loop().time() == pytest.approx(0.1)

    run_virtual(main())


def test_a_call_that_does_not_fit_begins_the_next_batch() -> None:
    async def main() -> None:
        provider = Provider()
        batcher = EmbeddingBatcher(provider, BatchPolicy(enabled=True, max_inputs=4, max_tokens=30))
        inputs: list[Any] = [["a"] * 3, ["b"] * 2, "c" * 90, "d" * 90]
        await together(batcher, *map(request, inputs))
        # Three inputs and two are more than four, 23 tokens and 23 more than 30: the first and the last stay alone.
        assert provider.inputs() == [["a"] * 3, ["b", "b", "c" * 90], "d" * 90]

    run_virtual(main())


def test_off_means_nothing_waits() -> None:
    async def main() -> None:
        provider = Provider()
        await together(EmbeddingBatcher(provider, BatchPolicy()), request("a"), request("b"))
        assert provider.inputs() == ["a", "b"]
        assert asyncio.get_running_loop().time() == pytest.approx(0.1)

    run_virtual(main())


def test_gemini_calls_become_one_batch() -> None:
    async def main() -> None:
        provider = Provider()
        requests = [gemini("a"), gemini("b", taskType="RETRIEVAL_QUERY"), gemini("c", "batchEmbedContents")]
        replies = await together(EmbeddingBatcher(provider), *requests)
        [asked] = provider.asked
        assert asked.target == f"{GEMINI}:batchEmbedContents?alt=json"
        models = {one["model"] for one in msgspec.json.decode(asked.body)["requests"]}
        assert models == {"models/gemini-embedding-001"}
        assert [body(reply) for reply in replies] == [answered(request) for request in requests]

    run_virtual(main())


# --- failures --------------------------------------------------------------------------------------------------------


def test_an_error_of_the_provider_goes_to_each() -> None:
    async def main() -> None:
        limited = Reply(429, [(b"retry-after", b"2")], b'{"error":{}}')
        provider = Provider(lambda _: limited)
        replies = await together(EmbeddingBatcher(provider), request("a"), request("b"))
        assert len(provider.asked) == 1
        assert [(r.status, dict(r.headers)[b"retry-after"], r.body) for r in replies] == [
            (429, b"2", b'{"error":{}}')
        ] * 2

    run_virtual(main())


def test_an_exception_goes_to_each() -> None:
    async def main() -> None:
        provider = Provider(lambda _: ConnectionResetError("gone"))
        batcher = EmbeddingBatcher(provider)
        outcomes = await asyncio.gather(
            batcher.handle(request("a")), batcher.handle(request("b")), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [ConnectionResetError] * 2
        assert batcher.statistics().in_flight == batcher.statistics().waiting == 0

    run_virtual(main())


@pytest.mark.parametrize("status", [400, 413, 422])
def test_when_the_batch_is_refused_only_the_culprit_fails(status: int) -> None:
    async def main() -> None:
        def rule(asked: HttpRequest) -> Reply | None:
            return Reply(status, (), b"bad input") if b"poison" in asked.body else None

        provider = Provider(rule)
        batcher = EmbeddingBatcher(provider)
        replies = await together(batcher, request("a"), request("poison"), request("b"))
        assert [reply.status for reply in replies] == [200, status, 200]
        assert provider.inputs() == [["a", "poison", "b"], "a", "poison", "b"]
        assert batcher.statistics().resent_calls == 3

    run_virtual(main())


def _unreadable(asked: HttpRequest, change: Callable[[dict[str, Any]], Any]) -> Reply | None:
    answer = answered(asked)
    if len(answer["data"]) == 1:
        return None
    changed = change(answer)
    return Reply(200, (), changed if isinstance(changed, bytes) else msgspec.json.encode(changed))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda answer: b"\x1f\x8b\x08", id="compressed"),
        pytest.param(lambda answer: [], id="not an object"),
        pytest.param(lambda answer: {**answer, "data": answer["data"][:1]}, id="one missing"),
        pytest.param(lambda answer: {**answer, "data": [answer["data"][0]] * 2}, id="one twice"),
        pytest.param(lambda answer: {**answer, "data": [{"embedding": []}] * 2}, id="no index"),
        pytest.param(lambda answer: {**answer, "data": [{"index": "x"}] * 2}, id="odd index"),
        pytest.param(lambda answer: {"object": "list"}, id="no data"),
    ],
)
def test_an_answer_that_cannot_be_divided_is_asked_for_again_alone(change: Any) -> None:
    """Slower, never wrong."""

    async def main() -> None:
        provider = Provider(lambda asked: _unreadable(asked, change))
        requests = [request("a"), request("b")]
        replies = await together(EmbeddingBatcher(provider), *requests)
        assert [body(reply) for reply in replies] == [answered(one) for one in requests]

    run_virtual(main())


def test_answers_out_of_order_are_put_in_order() -> None:
    async def main() -> None:
        def backwards(asked: HttpRequest) -> Reply:
            answer = answered(asked)
            return Reply(200, (), msgspec.json.encode({**answer, "data": answer["data"][::-1]}))

        requests = [request("a"), request(["b", "c"])]
        replies = await together(EmbeddingBatcher(Provider(backwards)), *requests)
        assert [body(reply) for reply in replies] == [answered(one) for one in requests]

    run_virtual(main())


def test_an_iterator_is_read_and_closed() -> None:
    closed = []

    class Body:
        def __init__(self, data: bytes) -> None:
            self._pieces = [data[:9], data[9:]]

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            if not self._pieces:
                raise StopAsyncIteration
            return self._pieces.pop(0)

        async def aclose(self) -> None:
            closed.append(True)

    async def main() -> None:
        provider = Provider(lambda asked: Reply(200, (), Body(msgspec.json.encode(answered(asked)))))
        replies = await together(EmbeddingBatcher(provider), request("a"), request("b"))
        assert [body(reply)["data"][0]["embedding"] for reply in replies] == [vector("a"), vector("b")]
        assert closed == [True]

    run_virtual(main())


@pytest.mark.parametrize("leaves_after_s", [0.001, 0.003, 0.05], ids=["waiting", "at the end of the window", "sent"])
def test_one_caller_leaving_hurts_no_other(leaves_after_s: float) -> None:
    async def main() -> None:
        provider = Provider()
        batcher = EmbeddingBatcher(provider)
        tasks = [asyncio.create_task(batcher.handle(request(text))) for text in "abc"]
        await asyncio.sleep(leaves_after_s)
        tasks[0].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outcomes[0], asyncio.CancelledError)
        kept = [outcome for outcome in outcomes[1:] if isinstance(outcome, Reply)]
        assert [body(reply)["data"][0]["embedding"] for reply in kept] == [vector("b"), vector("c")]
        assert len(provider.asked) == 1

    run_virtual(main())


@pytest.mark.parametrize("leaves_after_s", [0.001, 0.05], ids=["waiting", "sent"])
def test_when_all_have_left_nothing_runs(leaves_after_s: float) -> None:
    async def main() -> None:
        provider = Provider()
        batcher = EmbeddingBatcher(provider)
        tasks = [asyncio.create_task(batcher.handle(request(text))) for text in "abc"]
        await asyncio.sleep(leaves_after_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1
        assert provider.cancelled == len(provider.asked) == (leaves_after_s > 0.003)
        assert batcher.statistics().in_flight == batcher.statistics().waiting == 0

    run_virtual(main())


@pytest.mark.parametrize("after_s", [0.001, 0.05], ids=["waiting", "sent"])
def test_closing_ends_what_is_under_way(after_s: float) -> None:
    async def main() -> None:
        batcher = EmbeddingBatcher(Provider())
        tasks = [asyncio.create_task(batcher.handle(request(text))) for text in "ab"]
        await asyncio.sleep(after_s)
        await batcher.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ConnectionError] * 2
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())


# --- laws ------------------------------------------------------------------------------------------------------------

_texts = st.text(max_size=20)
_tokens = st.lists(st.integers(0, 100_000), min_size=1, max_size=5)
_text_calls = st.lists(_texts | st.lists(_texts, min_size=1, max_size=4), min_size=1, max_size=6)
_token_calls = st.lists(_tokens | st.lists(_tokens, min_size=1, max_size=4), min_size=1, max_size=6)


@pytest.mark.slow
@given(_text_calls | _token_calls, st.sampled_from([{}, {"encoding_format": "base64"}]), st.integers(0, 10**6))
def test_splitting_the_answer_to_a_join_gives_each_its_own(
    values: list[Any], fields: dict[str, Any], total: int
) -> None:
    """Any mix of texts and lists, or of token arrays and lists of them; the usage sums to the provider's."""
    requests = [request(value, **fields) for value in values]
    calls = [call for call in map(read_embedding, requests) if call is not None]
    assert len(calls) == len(requests)
    assert len({call.key for call in calls}) == 1
    joined = HttpRequest("POST", calls[0].target, AUTH, join(calls))
    usage = {"prompt_tokens": total, "total_tokens": total, "details": {"cached": total // 3, "tier": "x"}}
    answers = split(calls, msgspec.json.encode({**answered(joined), "usage": usage}))
    usages = []
    for asked, part in zip(requests, answers, strict=True):
        got = msgspec.json.decode(part)
        usages.append(got["usage"])
        assert without_usage(got) == without_usage(answered(asked))
    assert sum(one["prompt_tokens"] for one in usages) == sum(one["total_tokens"] for one in usages) == total
    assert sum(one["details"]["cached"] for one in usages) == total // 3
    assert {one["details"]["tier"] for one in usages} == {"x"}


@pytest.mark.slow
@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_shares_sum_to_the_whole_and_are_fair(total: int, weights: list[int]) -> None:
    shares = apportioned(total, weights)
    assert sum(shares) == total
    assert min(shares) >= 0
    whole = sum(weights)
    if whole:
        for share, weight in zip(shares, weights, strict=True):
            assert abs(share - total * weight / whole) <= 1


def test_lists_in_a_usage_are_divided_too() -> None:
    usage = {"promptTokenCount": 7, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 7}], "flag": True}
    first, second = divided(usage, [1, 1])
    assert first["promptTokenCount"] + second["promptTokenCount"] == 7
    assert first["promptTokensDetails"] == [{"modality": "TEXT", "tokenCount": 4}]
    assert second["flag"] is True


@pytest.mark.parametrize("wrong", [{"max_inputs": 1}, {"max_tokens": 0}, {"window_s": -1}, {"window_s": 2}], ids=str)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="batching"):
        BatchPolicy(**wrong)


def test_at_speed_shortens_the_window() -> None:
    assert BatchPolicy(window_s=0.01).at_speed(10).window_s == pytest.approx(0.001)


# --- the real thing --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_sdk_gets_the_same_vectors_from_one_call() -> None:
    """The official client, through the batcher and real sockets, against the simulated provider."""
    texts = [f"how many days of leave in month {n}" for n in range(12)]

    async def main() -> None:
        async with SimulatedProvider(speed=50) as provider:
            client = HttpClient(provider.url)

            async def send(asked: HttpRequest) -> Reply:
                reply = await client.request(asked.method, asked.target, _passed(asked), asked.body)
                return Reply(reply.status, [(b"content-type", b"application/json")], await reply.read())

            batcher = EmbeddingBatcher(send, BatchPolicy(enabled=True, window_s=0.05))
            front = await serve(batcher.handle, "127.0.0.1", 0)
            url = f"http://127.0.0.1:{front.port}/v1"
            try:
                batched = await _embed_all(url, texts)
            finally:
                await front.close(0.0)
                await client.close()
            calls = len(provider.calls)
            assert calls < 6, "twelve calls at once become one, or a few on a slow machine"
            direct = await _embed_all(provider.base_url, texts)
            assert [e.data for e in batched] == [e.data for e in direct]
            assert sum(e.usage.total_tokens for e in batched) == sum(e.usage.total_tokens for e in direct)

    asyncio.run(main())


def _passed(asked: HttpRequest) -> list[tuple[bytes, bytes]]:
    return [h for h in asked.headers if h[0] in (b"authorization", b"content-type")]


async def _embed_all(url: str, texts: list[str]) -> list[Any]:
    async with openai.AsyncOpenAI(base_url=url, api_key="sk-test", max_retries=0) as sdk:
        calls: list[Awaitable[Any]] = [
            sdk.embeddings.create(model="text-embedding-3-small", input=text) for text in texts
        ]
        return list(await asyncio.gather(*calls))
