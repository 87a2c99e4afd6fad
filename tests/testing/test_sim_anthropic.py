"""The simulated provider in Anthropic's dialect, seen through its official SDK."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from paceline.accelerate.cost import cost_usd
from paceline.testing import PRESETS, Faults, ProviderConfig, SimulatedProvider
from paceline.wire.anthropic import ANTHROPIC

anthropic = pytest.importorskip("anthropic", reason="needs the anthropic SDK")

MODEL = "claude-haiku-4-5"
USER: Any = [{"role": "user", "content": "How do I book travel?"}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "Current weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def provider() -> Iterator[SimulatedProvider]:
    with SimulatedProvider(speed=200, seed=1) as running:
        yield running


@pytest.fixture
def client(provider: SimulatedProvider) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=provider.url, api_key="k", max_retries=0) as made:
        yield made


def test_a_plain_answer_and_its_stream_are_the_same(client: Any) -> None:
    """Text, usage, why it ended; the SDK puts the events together to the message it gets plain."""
    label: Any = [{"role": "user", "content": "Classify. Intents: travel, other.\n\nMessage: book travel"}]
    plain = client.messages.create(model=MODEL, max_tokens=99, messages=label)
    with client.messages.stream(model=MODEL, max_tokens=99, messages=label) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    assert plain.content[0].text == streamed.content[0].text == "travel"
    assert (plain.usage.input_tokens, plain.usage.output_tokens) == (
        streamed.usage.input_tokens,
        streamed.usage.output_tokens,
    )
    assert plain.stop_reason == streamed.stop_reason == "end_turn"
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")


def test_a_tool_is_called_when_it_is_asked_for_or_fits(client: Any) -> None:
    """Forced, fitting, not fitting; after its result the model answers from it. Streamed arguments add up."""
    ask: Any = [{"role": "user", "content": "What is the current weather in the city of Bern?"}]
    tool = {"model": MODEL, "max_tokens": 5000, "tools": [WEATHER]}
    forced = client.messages.create(**tool, messages=USER, tool_choice={"type": "tool", "name": "get_weather"})
    assert (forced.stop_reason, forced.content[0].name) == ("tool_use", "get_weather")
    fits = client.messages.create(**tool, messages=ask)
    assert fits.content[0].input == {"city": ask[0]["content"]}
    with client.messages.stream(**tool, messages=ask) as stream:
        assert stream.get_final_message().content[0].input == fits.content[0].input
    assert client.messages.create(**tool, messages=USER).stop_reason == "end_turn"
    result = {"type": "tool_result", "tool_use_id": fits.content[0].id, "content": "Bern has sun and 21 degrees."}
    after: Any = [*ask, {"role": "assistant", "content": fits.content}, {"role": "user", "content": [result]}]
    assert "Bern has sun" in client.messages.create(**tool, messages=after).content[0].text


def test_thoughts_come_first_when_they_are_asked_for(client: Any, provider: SimulatedProvider) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    reply = client.messages.create(model=MODEL, max_tokens=4000, messages=USER, thinking=thinking)
    assert [block.type for block in reply.content] == ["thinking", "text"]
    assert reply.usage.output_tokens_details.thinking_tokens > 0
    assert provider.calls[-1].output_tokens == reply.usage.output_tokens
    with client.messages.stream(model=MODEL, max_tokens=4000, messages=USER, thinking=thinking) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[0].signature == reply.content[0].signature
    assert streamed.content[0].thinking[:50] == reply.content[0].thinking[:50]  # asked again: of another length


def test_json_fits_the_schema_that_was_asked_for(client: Any) -> None:
    schema = {"type": "object", "properties": {"what": {"enum": ["other", "travel"]}}, "additionalProperties": False}
    form: Any = {"format": {"type": "json_schema", "schema": schema}}
    reply = client.messages.create(model=MODEL, max_tokens=99, messages=USER, output_config=form)
    assert json.loads(reply.content[0].text) == {"what": "travel"}


def test_an_answer_ends_at_its_length_or_a_stop_sequence(client: Any) -> None:
    short = client.messages.create(model=MODEL, max_tokens=5, messages=USER)
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 5)
    stopped = client.messages.create(model=MODEL, max_tokens=99, messages=USER, stop_sequences=["asking"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "asking")


def test_tokens_are_counted_as_they_are_billed(client: Any) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=USER, tools=[WEATHER])
    answered = client.messages.create(model=MODEL, max_tokens=9, messages=USER, tools=[WEATHER])
    assert counted.input_tokens == answered.usage.input_tokens


def test_models_are_listed_and_dated_names_are_known(client: Any) -> None:
    assert {m.id for m in client.models.list()} == {n for n, m in PRESETS.items() if m.provider == "anthropic"}
    assert client.models.retrieve(MODEL).id == MODEL
    dated = client.messages.create(model=f"{MODEL}-20251001", max_tokens=9, messages=USER)
    assert dated.model == f"{MODEL}-20251001"


def test_errors_are_the_sdks_own(client: Any, provider: SimulatedProvider) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude-9", max_tokens=9, messages=USER)
    with pytest.raises(anthropic.NotFoundError):  # it is there, in another house
        client.messages.create(model="gpt-4o", max_tokens=9, messages=USER)
    with pytest.raises(anthropic.BadRequestError, match="non-empty content"):
        client.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": ""}])
    with pytest.raises(anthropic.BadRequestError, match="budget_tokens"):
        thinking: Any = {"type": "enabled", "budget_tokens": 3}
        client.messages.create(model=MODEL, max_tokens=9, messages=USER, thinking=thinking)
    provider.fail_next(529)
    with pytest.raises(anthropic.InternalServerError) as overloaded:
        client.messages.create(model=MODEL, max_tokens=9, messages=USER)
    assert (overloaded.value.status_code, overloaded.value.type) == (529, "overloaded_error")


def test_overload_and_a_wrong_key() -> None:
    config = ProviderConfig(faults=Faults(p_bad=1.0, p_good=0.0, bad_error=1.0), api_keys=["right"])
    with SimulatedProvider(config, speed=200) as provider:
        with anthropic.Anthropic(base_url=provider.url, api_key="right", max_retries=0) as client:
            with pytest.raises(anthropic.InternalServerError) as overloaded:
                client.messages.create(model=MODEL, max_tokens=9, messages=USER)
            assert overloaded.value.status_code == 529
        with (
            anthropic.Anthropic(base_url=provider.url, api_key="wrong", max_retries=0) as client,
            pytest.raises(anthropic.AuthenticationError),
        ):
            client.messages.create(model=MODEL, max_tokens=9, messages=USER)


def test_a_limit_answers_429_with_the_real_headers() -> None:
    config = ProviderConfig.of({"models": {MODEL: {"requests_per_min": 1, "tokens_per_min": 100_000}}})
    with (
        SimulatedProvider(config, speed=20) as provider,
        anthropic.Anthropic(base_url=provider.url, api_key="k", max_retries=0) as client,
    ):
        first = client.messages.with_raw_response.create(model=MODEL, max_tokens=1, messages=USER)
        assert first.headers["anthropic-ratelimit-requests-remaining"] == "0"
        with pytest.raises(anthropic.RateLimitError) as refused:
            client.messages.create(model=MODEL, max_tokens=1, messages=USER)
    headers = refused.value.response.headers
    assert refused.value.type == "rate_limit_error"
    assert headers["anthropic-ratelimit-tokens-limit"] == "100000"
    assert 1 <= int(headers["retry-after"]) <= 3
    reset_at = datetime.strptime(headers["anthropic-ratelimit-requests-reset"], "%Y-%m-%dT%H:%M:%SZ").replace(
        tzinfo=UTC
    )
    assert -5 < (reset_at - datetime.now(UTC)).total_seconds() < 10


def test_our_own_reading_of_it_agrees(client: Any) -> None:
    """The dialect reads from the raw bytes what the SDK does, streamed and plain, to the cent."""
    asked: Any = {"model": MODEL, "max_tokens": 5, "messages": USER}
    plain = ANTHROPIC.read_reply(client.messages.with_raw_response.create(**asked).http_response.content)
    with client.messages.with_streaming_response.create(**asked, stream=True) as raw:
        reader = ANTHROPIC.stream_reader()
        for piece in raw.iter_bytes():
            reader.feed(piece)
    streamed = reader.result()
    assert plain.complete
    assert plain.truncated
    # The same question again is another draw; cut at 5 tokens both are as long.
    assert streamed.usage == plain.usage
    assert cost_usd(MODEL, streamed.usage, "anthropic") == cost_usd(MODEL, plain.usage, "anthropic") is not None
