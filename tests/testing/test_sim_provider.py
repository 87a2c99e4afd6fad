"""The simulated provider over real sockets, seen through the official SDK."""

import asyncio
import base64
import contextlib
import itertools
import json
import math
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples

from paceline.errors import ConfigError
from paceline.testing import PRESETS, Faults, ProviderConfig, SimulatedProvider
from paceline.testing.service import Service
from paceline.wire.http import HttpRequest, Reply

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "json_schema", "schema"]) | st.text(), inner
        )
    ),
    max_leaves=12,
)
LONG: Any = [{"role": "user", "content": "x" * 40_000}]
USER: Any = [{"role": "user", "content": "How do I book travel?"}]


@pytest.fixture(scope="module")
def provider() -> Iterator[SimulatedProvider]:
    with SimulatedProvider(speed=200, seed=1) as running:
        yield running


@pytest.fixture
def client(provider: SimulatedProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{provider.url}/v1", api_key="k", max_retries=0) as made:
        yield made


def limited(**fields: Any) -> ProviderConfig:
    return ProviderConfig(models={**PRESETS, "gpt-4o": msgspec.structs.replace(PRESETS["gpt-4o"], **fields)})


def test_a_plain_answer_and_its_stream_are_the_same_text(client: openai.OpenAI) -> None:
    """Streamed pieces add up; usage comes when it is asked for and equals the plain one's."""
    label: Any = [{"role": "user", "content": "Classify. Intents: travel, other.\n\nMessage: book travel"}]
    plain = client.chat.completions.create(model="gpt-4o", messages=label)
    chunks = list(
        client.chat.completions.create(
            model="gpt-4o", messages=label, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain.choices[0].message.content == "travel"
    assert chunks[-1].usage == plain.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def test_an_answer_is_cut_at_max_tokens(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="gpt-4o", messages=USER, max_tokens=5)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 5


def test_embeddings_are_the_same_in_both_encodings(client: openai.OpenAI, provider: SimulatedProvider) -> None:
    floats = client.embeddings.create(
        model="text-embedding-3-small", input=["book travel", "leave"], encoding_format="float", dimensions=64
    )
    assert [len(d.embedding) for d in floats.data] == [64, 64]
    body = {"model": "text-embedding-3-small", "input": "book travel", "encoding_format": "base64", "dimensions": 64}
    raw = post(f"{provider.url}/v1/embeddings", body)["data"][0]["embedding"]
    assert struct.unpack("<64f", base64.b64decode(raw)) == pytest.approx(floats.data[0].embedding, abs=1e-6)


def test_models_are_listed_and_described(client: openai.OpenAI) -> None:
    assert {m.id for m in client.models.list()} == {n for n, m in PRESETS.items() if m.provider == "openai"}
    assert client.models.retrieve("gpt-4o").id == "gpt-4o"


def test_async_calls_and_streams_run_side_by_side(provider: SimulatedProvider) -> None:
    async def many() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{provider.url}/v1", api_key="k") as client:
            replies = await asyncio.gather(
                *(client.chat.completions.create(model="gpt-4o", messages=USER) for _ in range(30))
            )
            return [r.choices[0].message.content or "" for r in replies]

    assert all(asyncio.run(many()))


def test_errors_have_openais_own_form(client: openai.OpenAI, provider: SimulatedProvider) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=USER)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="gpt-4o", messages=[])
    with pytest.raises(urllib.error.HTTPError) as wrong:
        post(f"{provider.url}/v1/chat/completions", "[1, 2")
    with wrong.value:
        assert json.load(wrong.value)["error"]["type"] == "invalid_request_error"


def test_a_wrong_key_is_refused_when_keys_are_configured() -> None:
    with (
        SimulatedProvider(ProviderConfig(api_keys=["right"]), speed=200) as provider,
        openai.OpenAI(base_url=f"{provider.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_a_limit_answers_429_with_the_real_headers() -> None:
    """One request a minute at speed 20: the second one waits up to three seconds of the wall clock."""
    with (
        SimulatedProvider(limited(requests_per_min=1, tokens_per_min=100_000), speed=20) as provider,
        openai.OpenAI(base_url=provider.base_url, api_key="k", max_retries=0) as client,
    ):
        first = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=USER, max_tokens=1)
        assert first.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model="gpt-4o", messages=USER, max_tokens=1)
    headers = refused.value.response.headers
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "requests")
    assert headers["x-ratelimit-limit-requests"] == "1"
    assert headers["x-ratelimit-limit-tokens"] == "100000"
    assert 0 < int(headers["retry-after-ms"]) <= 3000
    assert int(headers["retry-after"]) == math.ceil(int(headers["retry-after-ms"]) / 1000)
    assert headers["x-paceline-speed"] == "20"
    assert headers["x-request-id"]


@pytest.mark.slow
def test_the_sdks_own_retries_get_through_a_limit() -> None:
    """At speed 10 a wait is ten times shorter, and the SDK honours the milliseconds."""
    config = limited(requests_per_min=60, burst_s=1.0)
    with (
        SimulatedProvider(config, speed=10) as provider,
        openai.OpenAI(base_url=f"{provider.url}/v1", api_key="k", max_retries=5) as client,
    ):
        for _ in range(4):
            client.chat.completions.create(model="gpt-4o", messages=USER, max_tokens=1)
        assert provider.refused >= 1


def test_keys_have_limits_of_their_own() -> None:
    with SimulatedProvider(limited(requests_per_min=1), speed=50) as provider:
        for key in ("a", "b", "c"):
            with openai.OpenAI(base_url=f"{provider.url}/v1", api_key=key, max_retries=0) as client:
                client.chat.completions.create(model="gpt-4o", messages=USER, max_tokens=1)


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        (Faults(error_500=1.0), openai.InternalServerError),
        (Faults(p_bad=1.0, p_good=0.0, bad_error=1.0), openai.InternalServerError),
        (Faults(timeout=1.0), openai.APITimeoutError),
    ],
    ids=["500", "bad state", "timeout"],
)
def test_faults_reach_the_caller_as_the_provider_sends_them(faults: Faults, error: type[Exception]) -> None:
    with (
        SimulatedProvider(ProviderConfig(faults=faults), speed=200) as provider,
        openai.OpenAI(base_url=f"{provider.url}/v1", api_key="k", max_retries=0, timeout=0.3) as client,
        pytest.raises(error),
    ):
        client.chat.completions.create(model="gpt-4o", messages=USER)


def test_a_cut_stream_never_finishes() -> None:
    with (
        SimulatedProvider(ProviderConfig(faults=Faults(cut_stream=1.0)), speed=200) as provider,
        openai.OpenAI(base_url=f"{provider.url}/v1", api_key="k", max_retries=0) as client,
        pytest.raises((openai.APIConnectionError, openai.APIError, ConnectionError)),
    ):
        list(client.chat.completions.create(model="gpt-4o", messages=USER, stream=True))


def test_what_was_asked_can_be_looked_at(client: openai.OpenAI, provider: SimulatedProvider) -> None:
    client.chat.completions.create(model="gpt-4o-mini", messages=USER, max_tokens=3)
    call = provider.calls[-1]
    assert (call.model, call.status, call.output_tokens, call.turns) == (
        "gpt-4o-mini",
        200,
        3,
        [("user", USER[0]["content"])],
    )
    assert call.key == "k"


def test_the_same_seed_answers_the_same_traffic_alike() -> None:
    def lengths() -> list[int]:
        with (
            SimulatedProvider(speed=500, seed=9) as provider,
            openai.OpenAI(base_url=f"{provider.url}/v1", api_key="k") as client,
        ):
            for i in range(5):
                client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": f"q{i}"}])
            return [c.output_tokens for c in provider.calls]

    assert lengths() == lengths()


def test_refusals_change_nobodys_draws() -> None:
    """A call that had to be tried again takes as long and says as much as one that was let in at once."""

    def lengths(config: ProviderConfig) -> tuple[dict[str, int], int]:
        now_s = 0.0
        service = Service(config, seed=3, now_s=lambda: now_s)
        for question in ("Why?", "When?", "Why?", "Who?"):
            body = msgspec.json.encode({"model": "gpt-4o", "messages": [{"role": "user", "content": question}]})
            for _ in range(4):  # a second apart, until it is let in
                reply = service.handle(HttpRequest("POST", "/v1/chat/completions", [], body))
                if not isinstance(reply, Reply):
                    reply.close()
                    break
                now_s += 1.0
        said = {f"{i} {c.turns[0][1]}": c.output_tokens for i, c in enumerate(c for c in service.calls if c.turns)}
        return said, service.refused

    free, none = lengths(ProviderConfig())
    refused, some = lengths(limited(requests_per_min=30))
    assert (free, none, len(free)) == (refused, 0, 4)
    assert some > 0


def test_draws_do_not_depend_on_who_comes_first(provider: SimulatedProvider) -> None:
    """The same prompts in another order, streamed or plain: the same lengths."""

    def lengths(order: list[int], *, stream: bool) -> dict[str, int]:
        with (
            SimulatedProvider(speed=500, seed=4) as fresh,
            openai.OpenAI(base_url=fresh.base_url, api_key="k") as client,
        ):
            for i in order:
                ask: Any = [{"role": "user", "content": f"Why {i}?"}]
                reply = client.chat.completions.create(model="gpt-4o", messages=ask, stream=stream)
                if stream:
                    list(reply)
            return {c.turns[0][1]: c.output_tokens for c in fresh.calls}

    assert lengths([0, 1, 2, 3], stream=False) == lengths([3, 1, 0, 2], stream=True)


def test_one_event_a_token(client: openai.OpenAI) -> None:
    """Chunks can be counted as tokens at any speed, though many travel together."""
    chunks = list(
        client.chat.completions.create(
            model="gpt-4o", messages=USER, stream=True, stream_options={"include_usage": True}
        )
    )
    usage = chunks[-1].usage
    assert usage is not None
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) == usage.completion_tokens


def test_times_are_those_that_were_drawn() -> None:
    """What the headers promise: the plain answer's time, the stream's first token; never earlier than drawn."""
    with (
        SimulatedProvider(speed=100, seed=5) as provider,
        openai.OpenAI(base_url=provider.base_url, api_key="k") as client,
    ):
        for i in range(5):
            ask: Any = [{"role": "user", "content": f"Why {i}?"}]
            began_s = time.perf_counter()
            raw = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=ask)
            took_s = time.perf_counter() - began_s
            promised_s = int(raw.headers["openai-processing-ms"]) / 1000
            assert 0 < promised_s <= took_s + 0.002  # the event loop's timers are exact to a millisecond


def test_json_is_answered_where_it_is_asked(client: openai.OpenAI) -> None:
    ask: Any = [
        {"role": "user", "content": "Classify the intent as JSON. Intents: travel, other.\n\nMessage: book travel"}
    ]
    schema: Any = {
        "type": "json_schema",
        "json_schema": {
            "name": "x",
            "schema": {"type": "object", "properties": {"what": {"enum": ["other", "travel"]}}},
        },
    }
    plain = client.chat.completions.create(model="gpt-4o", messages=ask, response_format={"type": "json_object"})
    assert json.loads(plain.choices[0].message.content or "") == {"intent": "travel"}
    shaped = client.chat.completions.create(model="gpt-4o", messages=ask, response_format=schema)
    assert json.loads(shaped.choices[0].message.content or "") == {"what": "travel"}
    with pytest.raises(openai.BadRequestError, match="must contain the word 'json'"):
        client.chat.completions.create(model="gpt-4o", messages=USER, response_format={"type": "json_object"})


def test_a_stop_sequence_ends_the_answer(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="gpt-4o", messages=USER, stop=["asking"])
    assert reply.choices[0].message.content == "Thank you for "
    assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"messages": None}, "missing_required_parameter", "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "robot"),
        ({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
        ({"max_tokens": "many"}, "invalid_type", "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, None, "at the same time"),
        ({"n": 2}, None, "one choice"),
        ({"stream_options": {"include_usage": True}}, None, "stream_options"),
        (
            {"messages": [{"role": "user", "content": "x" * 40_000}], "model": "tiny"},
            "context_length_exceeded",
            "10000",
        ),
        ({"model": ""}, None, "model"),
        ({"model": "text-embedding-3-small"}, None, "embedding"),
    ],
)
def test_malformed_calls_are_refused_by_name(change: dict[str, Any], code: str | None, said: str) -> None:
    """Status, code and parameter as OpenAI sends them; nothing of it is counted."""
    config = ProviderConfig.of({"models": {"tiny": {"context_tokens": 100}}})
    with SimulatedProvider(config, speed=200) as provider:
        status, error = refusal(f"{provider.base_url}/chat/completions", {"model": "gpt-4o", "messages": USER} | change)
        assert (status in (400, 403), error["code"], said in error["message"]) == (True, code, True)
        assert (provider.answered, provider.refused) == (0, 1)


@pytest.mark.parametrize(
    "change",
    [{"input": []}, {"input": ""}, {"input": [1.5]}, {"dimensions": 0}, {"encoding_format": "int8"}, {"input": None}],
)
def test_malformed_embeddings_are_refused(provider: SimulatedProvider, change: dict[str, Any]) -> None:
    body = {"model": "text-embedding-3-small", "input": "x"} | change
    assert refusal(f"{provider.base_url}/embeddings", body)[0] == 400


def test_token_numbers_are_embedded_too(client: openai.OpenAI) -> None:
    """Clients with a tokenizer send numbers; equal ones have equal vectors."""
    both = client.embeddings.create(model="text-embedding-3-small", input=[[1, 2, 3], [1, 2, 3]])
    assert both.data[0].embedding == both.data[1].embedding


def test_other_paths_and_methods_are_refused(provider: SimulatedProvider) -> None:
    assert refusal(f"{provider.base_url}/images/generations", {})[0] == 404
    request = urllib.request.Request(f"{provider.base_url}/chat/completions", method="GET")
    with pytest.raises(urllib.error.HTTPError) as wrong, urllib.request.urlopen(request):
        pass
    with wrong.value:
        assert wrong.value.code == 405


def test_a_request_larger_than_the_limit_is_told_so() -> None:
    """No hint to wait: it will never fit."""
    with (
        SimulatedProvider(limited(tokens_per_min=100), speed=200) as provider,
        openai.OpenAI(base_url=provider.base_url, api_key="k", max_retries=0) as client,
        pytest.raises(openai.RateLimitError, match="Request too large") as refused,
    ):
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x" * 500}])
    assert "retry-after" not in refused.value.response.headers


def test_failures_come_in_bursts() -> None:
    """A chain that stays bad for five requests on average: as many failures as a coin's, in far fewer groups."""
    faults = {"p_bad": 0.05, "p_good": 0.2, "bad_error": 1.0}
    with SimulatedProvider(ProviderConfig.of({"faults": faults}), speed=5000, seed=2) as provider:
        with openai.OpenAI(base_url=provider.base_url, api_key="k", max_retries=0) as client:
            for i in range(300):
                with contextlib.suppress(openai.InternalServerError):
                    client.embeddings.create(model="text-embedding-3-small", input=f"text {i}")
        failed = [call.fault == "bad_error" for call in provider.calls]
    share = sum(failed) / len(failed)
    groups = sum(now and not before for before, now in itertools.pairwise([False, *failed]))
    assert 0.1 < share < 0.35
    assert sum(failed) / groups > 2 / (1 - share)


def test_a_cut_stream_ends_without_its_last_event_and_connections_survive() -> None:
    """The fault hits one stream; the next call is served."""
    config = ProviderConfig.of({"models": {"gpt-4": {"faults": {"cut_stream": 1.0}}}})
    with (
        SimulatedProvider(config, speed=200) as provider,
        openai.OpenAI(base_url=provider.base_url, api_key="k", max_retries=0) as client,
    ):
        seen: list[Any] = []
        with pytest.raises((openai.APIError, httpx.TransportError)):
            seen.extend(client.chat.completions.create(model="gpt-4", messages=USER, stream=True))
        assert not any(c.choices[0].finish_reason for c in seen)
        assert client.chat.completions.create(model="gpt-4o", messages=USER).choices


def test_the_next_calls_can_be_told_to_fail(provider: SimulatedProvider) -> None:
    """Twice refused as told, then the SDK's retry gets through."""
    provider.fail_next(429, times=2, retry_after_s=0.01)
    with openai.OpenAI(base_url=provider.base_url, api_key="k", max_retries=2) as client:
        assert client.chat.completions.create(model="gpt-4o", messages=USER, max_tokens=1)
    assert [call.status for call in provider.calls[-3:]] == [429, 429, 200]


def test_answers_can_be_given() -> None:
    """A rule of one's own answers what it wants to; the rest follows the usual rules."""

    def rule(turns: list[tuple[str, str]]) -> str | None:
        return "It is 42." if "meaning" in turns[-1][1] else None

    with (
        SimulatedProvider(speed=200, rule=rule) as provider,
        openai.OpenAI(base_url=provider.base_url, api_key="k") as client,
    ):
        texts = []
        for question in ("The meaning of it?", "How do I book travel?"):
            ask: Any = [{"role": "user", "content": question}]
            texts.append(client.chat.completions.create(model="gpt-4o", messages=ask).choices[0].message.content)
        assert texts[0] == "It is 42."
        assert [call.kind for call in provider.calls] == ["own", "vague"]


def test_each_block_starts_afresh() -> None:
    """Full limits, no calls seen."""
    provider = SimulatedProvider(limited(requests_per_min=1), speed=50)
    for _ in range(2):
        with provider, openai.OpenAI(base_url=provider.base_url, api_key="k", max_retries=0) as client:
            client.chat.completions.create(model="gpt-4o", messages=USER, max_tokens=1)
        assert len(provider.calls) == 1


def test_a_client_that_leaves_ends_its_answer() -> None:
    """A hanging call and a stream left in the middle: nothing keeps running, the next call is served."""

    async def main() -> int:
        config = ProviderConfig.of({"models": {"gpt-4": {"faults": {"timeout": 1.0}}}})
        async with SimulatedProvider(config, speed=5) as provider:
            async with openai.AsyncOpenAI(base_url=provider.base_url, api_key="k", max_retries=0) as client:
                with pytest.raises(openai.APITimeoutError):
                    await client.chat.completions.create(model="gpt-4", messages=USER, timeout=0.05)
                stream = await client.chat.completions.create(model="gpt-4o", messages=USER, stream=True)
                await anext(stream)
                await stream.close()
                assert (await client.embeddings.create(model="text-embedding-3-small", input="x")).data
            assert [call.status for call in provider.calls] == [0, 200, 200]
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize("speed", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_speed_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed must be above 0"):
        SimulatedProvider(speed=speed)


def test_a_taken_port_is_one_error_in_both_doors() -> None:
    with SimulatedProvider() as provider:
        with pytest.raises(ConfigError, match="cannot listen"), SimulatedProvider(port=provider.port):
            pass

        async def enter() -> None:
            async with SimulatedProvider(port=provider.port):
                pass

        with pytest.raises(ConfigError, match="cannot listen"):
            asyncio.run(enter())


async def whole_replies(service: Service, calls: list[tuple[str, dict[str, Any]]]) -> list[Reply]:
    """What each call is answered, streams read to the end."""
    replies = []
    for path, call in calls:
        request = HttpRequest(method="POST", target=path, headers=[], body=msgspec.json.encode(call))
        reply = service.handle(request)
        reply = reply if isinstance(reply, Reply) else await reply
        if not isinstance(reply.body, bytes | list):
            assert all([piece async for piece in reply.body]), "an empty piece would end a chunked body"
        replies.append(reply)
    return replies


FIELDS = [
    *("model", "messages", "input", "prompt", "stop", "stream", "response_format", "tools", "tool_choice", "text"),
    *("reasoning", "reasoning_effort", "max_tokens", "system", "thinking", "output_config", "stop_sequences"),
    *("contents", "content", "requests", "systemInstruction", "generationConfig", "toolConfig", "dimensions"),
]
PATHS = [
    ("/v1/chat/completions", "gpt-4o"),
    ("/v1/completions", "gpt-4o"),
    ("/v1/responses", "gpt-4o"),
    ("/v1/embeddings", "text-embedding-3-small"),
    ("/v1/messages", "claude-haiku-4-5"),
    ("/v1/messages/count_tokens", "claude-haiku-4-5"),
    ("/v1beta/models/gemini-2.5-flash:generateContent", ""),
    ("/v1beta/models/gemini-2.5-flash:streamGenerateContent", ""),
    ("/v1beta/models/gemini-2.5-flash:countTokens", ""),
    ("/v1beta/models/gemini-embedding-001:embedContent", ""),
    ("/v1beta/models/gemini-embedding-001:batchEmbedContents", ""),
]


@pytest.mark.slow
@examples(40)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_no_body_breaks_it(body: dict[str, Any]) -> None:
    """Whatever JSON comes, the answer is one of the API's own."""
    service = Service(ProviderConfig(), speed=1e9)
    whole = {"messages": USER, "input": "x", "prompt": "x", "max_tokens": 9, "contents": [{"parts": [{"text": "x"}]}]}
    calls = [(path, body) for path, _ in PATHS]
    calls += [(path, whole | body | {"model": model}) for path, model in PATHS]
    for reply in asyncio.run(whole_replies(service, calls)):
        if isinstance(reply.body, bytes):
            said = msgspec.json.decode(reply.body)
            assert reply.status == 200 or said["error"]["message"]


def post(url: str, body: object) -> Any:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"content-type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def refusal(url: str, body: object) -> tuple[int, Any]:
    with pytest.raises(urllib.error.HTTPError) as wrong:
        post(url, body)
    with wrong.value:
        return wrong.value.code, json.load(wrong.value)["error"]
