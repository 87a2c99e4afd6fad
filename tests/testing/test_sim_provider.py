"""The simulated provider over real sockets, seen through the official SDK."""

import asyncio
import base64
import json
import os
import signal
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import msgspec
import openai
import pytest

from paceline.testing import PRESETS, Faults, Model, ProviderConfig, SimulatedProvider

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


def test_without_context_answers_are_longer(client: openai.OpenAI) -> None:
    """The mean over 40 questions: vaguer and longer without context."""

    def mean_tokens(prefix: str) -> float:
        total = 0
        for i in range(40):
            ask: Any = [{"role": "user", "content": f"{prefix}Question: how to book trip {i}?"}]
            usage = client.chat.completions.create(model="gpt-4o", messages=ask).usage
            total += usage.completion_tokens if usage else 0
        return total / 40

    with_context = mean_tokens("Context:\nTrips are booked in Concur by the traveller.\n\n")
    assert mean_tokens("") > 1.5 * with_context


def test_embeddings_are_the_same_in_both_encodings(client: openai.OpenAI, provider: SimulatedProvider) -> None:
    floats = client.embeddings.create(
        model="text-embedding-3-small", input=["book travel", "leave"], encoding_format="float", dimensions=64
    )
    assert [len(d.embedding) for d in floats.data] == [64, 64]
    body = {"model": "text-embedding-3-small", "input": "book travel", "encoding_format": "base64", "dimensions": 64}
    raw = post(f"{provider.url}/v1/embeddings", body)["data"][0]["embedding"]
    assert struct.unpack("<64f", base64.b64decode(raw)) == pytest.approx(floats.data[0].embedding, abs=1e-6)


def test_models_are_listed_and_described(client: openai.OpenAI) -> None:
    assert {m.id for m in client.models.list()} == set(PRESETS)
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
    """Six requests are a full bucket of 60 a minute; the seventh is told how long to wait."""
    with (
        SimulatedProvider(limited(requests_per_min=60, tokens_per_min=100_000), speed=1.0) as provider,
        openai.OpenAI(base_url=f"{provider.url}/v1", api_key="k", max_retries=0) as client,
        pytest.raises(openai.RateLimitError) as refused,
    ):
        for _ in range(12):
            client.chat.completions.create(model="gpt-4o", messages=USER, max_tokens=1)
    headers = refused.value.response.headers
    assert refused.value.code == "rate_limit_exceeded"
    assert headers["x-ratelimit-limit-requests"] == "60"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < int(headers["retry-after-ms"]) <= 1000
    assert headers["retry-after"] == "1"


def test_the_sdks_own_retries_get_through_a_limit() -> None:
    """At speed 50 a wait is fifty times shorter, and the SDK honours the milliseconds."""
    config = limited(requests_per_min=60, burst_s=1.0)
    with (
        SimulatedProvider(config, speed=50) as provider,
        openai.OpenAI(base_url=f"{provider.url}/v1", api_key="k", max_retries=5) as client,
    ):
        for _ in range(6):
            client.chat.completions.create(model="gpt-4o", messages=USER, max_tokens=1)
        assert provider.refused >= 1


def test_keys_have_limits_of_their_own() -> None:
    with SimulatedProvider(limited(requests_per_min=60, burst_s=1.0), speed=1.0) as provider:
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


def test_the_command_announces_itself_and_ends_on_sigterm() -> None:
    command = [sys.executable, "-m", "paceline", "sim", "--port", "0", "--json", "--speed", "50"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        with urllib.request.urlopen(f"{url}/v1/models") as reply:
            assert reply.headers["x-paceline-speed"] == "50"
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == 0
    with SimulatedProvider(ProviderConfig(models={"m": Model()})) as provider:
        port = provider.url.rsplit(":", 1)[1]
        taken = subprocess.run([*command[:4], "--port", port], capture_output=True, text=True, check=False)
    assert taken.returncode == 2
    assert len(taken.stderr.strip().splitlines()) == 1


def post(url: str, body: object) -> Any:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"content-type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)
