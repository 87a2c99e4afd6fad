"""The simulated provider in Gemini's dialect, seen through its official SDK."""

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from paceline.testing import PRESETS, Faults, ProviderConfig, SimulatedProvider
from paceline.wire.gemini import GEMINI

genai = pytest.importorskip("google.genai", reason="needs the google-genai SDK")

MODEL = "gemini-2.5-flash"
USER = "How do I book travel?"


def client_of(provider: SimulatedProvider, key: str = "k") -> Any:
    options = genai.types.HttpOptions(base_url=provider.url, retry_options=genai.types.HttpRetryOptions(attempts=1))
    return genai.Client(api_key=key, http_options=options)


@pytest.fixture(scope="module")
def provider() -> Iterator[SimulatedProvider]:
    with SimulatedProvider(speed=200, seed=1) as running:
        yield running


@pytest.fixture(scope="module")
def client(provider: SimulatedProvider) -> Iterator[Any]:
    with client_of(provider) as made:
        yield made


def test_a_plain_answer_and_its_stream_are_the_same(client: Any) -> None:
    label = "Classify. Intents: travel, other.\n\nMessage: book travel"
    plain = client.models.generate_content(model=MODEL, contents=label)
    chunks = list(client.models.generate_content_stream(model=MODEL, contents=label))
    assert plain.text == "".join(chunk.text or "" for chunk in chunks) == "travel"
    assert chunks[-1].usage_metadata.candidates_token_count == plain.usage_metadata.candidates_token_count
    assert plain.candidates[0].finish_reason == chunks[-1].candidates[0].finish_reason == "STOP"


def test_several_tokens_travel_in_one_chunk(client: Any) -> None:
    """As they do at Google's; the last chunk says why it ended."""
    chunks = list(client.models.generate_content_stream(model=MODEL, contents=USER))
    tokens = chunks[-1].usage_metadata.candidates_token_count
    assert len(chunks) == -(-tokens // PRESETS[MODEL].event_tokens) + 1


@pytest.mark.parametrize("sse", [True, False], ids=["events", "array"])
def test_a_stream_has_two_forms(provider: SimulatedProvider, sse: bool) -> None:
    """Server-sent events, or one JSON array; our own reader says the same of both."""
    url = f"{provider.url}/v1beta/models/{MODEL}:streamGenerateContent{'?alt=sse' if sse else ''}"
    body = json.dumps({"contents": [{"parts": [{"text": f"{USER} {sse}"}]}]}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=body, method="POST")) as reply:
        raw = reply.read()
        assert reply.headers["content-type"].startswith("text/event-stream" if sse else "application/json")
    reader = GEMINI.stream_reader()
    reader.feed(raw)
    info = reader.result()
    assert info.complete
    assert info.text.startswith("Thank you")
    assert info.usage is not None
    assert sse or len(json.loads(raw)) > 2


def test_a_function_is_called_when_it_is_asked_for_or_fits(client: Any) -> None:
    types = genai.types
    declared = types.FunctionDeclaration(
        name="get_weather",
        description="Current weather in a city",
        parameters=types.Schema(type="OBJECT", properties={"city": types.Schema(type="STRING")}),
    )
    any_mode = types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode="ANY"))
    tools = [types.Tool(function_declarations=[declared])]
    forced = types.GenerateContentConfig(tools=tools, tool_config=any_mode)
    call = client.models.generate_content(model=MODEL, contents=USER, config=forced).function_calls[0]
    assert (call.name, call.args) == ("get_weather", {"city": USER})
    streamed = list(client.models.generate_content_stream(model=MODEL, contents=USER, config=forced))
    assert [c.args for chunk in streamed for c in chunk.function_calls or []] == [call.args]
    ask = "What is the current weather in the city of Bern?"
    left = types.GenerateContentConfig(tools=tools)
    assert client.models.generate_content(model=MODEL, contents=ask, config=left).function_calls
    assert not client.models.generate_content(model=MODEL, contents=USER, config=left).function_calls


def test_thoughts_are_counted_and_shown_when_asked_for(client: Any) -> None:
    def thinking(*, shown: bool) -> Any:
        config = {"thinking_config": {"thinking_budget": 100, "include_thoughts": shown}}
        return client.models.generate_content(model=MODEL, contents=USER, config=config)

    assert [bool(part.thought) for part in thinking(shown=True).candidates[0].content.parts] == [True, False]
    hidden = thinking(shown=False)
    assert len(hidden.candidates[0].content.parts) == 1
    assert hidden.usage_metadata.thoughts_token_count == 100
    assert hidden.usage_metadata.total_token_count == 100 + (
        hidden.usage_metadata.prompt_token_count + hidden.usage_metadata.candidates_token_count
    )


def test_json_fits_the_schema_that_was_asked_for(client: Any) -> None:
    schema = {"type": "OBJECT", "properties": {"what": {"type": "STRING", "enum": ["other", "travel"]}}}
    config = {"response_mime_type": "application/json", "response_schema": schema}
    reply = client.models.generate_content(model=MODEL, contents=USER, config=config)
    assert json.loads(reply.text) == {"what": "travel"}


def test_an_answer_ends_at_its_length(client: Any) -> None:
    reply = client.models.generate_content(model=MODEL, contents=USER, config={"max_output_tokens": 5})
    assert (reply.candidates[0].finish_reason, reply.usage_metadata.candidates_token_count) == ("MAX_TOKENS", 5)


def test_tokens_are_counted_and_texts_embedded(client: Any) -> None:
    assert client.models.count_tokens(model=MODEL, contents="x" * 40).total_tokens == 10
    config = {"output_dimensionality": 64}
    both = client.models.embed_content(model="gemini-embedding-001", contents=["travel", "leave"], config=config)
    assert [len(made.values) for made in both.embeddings] == [64, 64]
    assert both.embeddings[0].values != both.embeddings[1].values


def test_models_are_listed(client: Any) -> None:
    listed = {model.name for model in client.models.list()}
    assert listed == {f"models/{n}" for n, m in PRESETS.items() if m.provider == "gemini"}


def test_errors_are_the_sdks_own(client: Any, provider: SimulatedProvider) -> None:
    with pytest.raises(genai.errors.ClientError) as missing:
        client.models.generate_content(model="gemini-9", contents=USER)
    assert (missing.value.code, missing.value.status) == (404, "NOT_FOUND")
    provider.fail_next(503)
    with pytest.raises(genai.errors.ServerError) as overloaded:
        client.models.generate_content(model=MODEL, contents=USER)
    assert (overloaded.value.code, overloaded.value.status) == (503, "UNAVAILABLE")
    with pytest.raises(genai.errors.ClientError) as refused:
        list(client.models.generate_content_stream(model="gpt-4o", contents=USER))
    assert refused.value.code == 404


def test_faults_and_a_wrong_key() -> None:
    config = ProviderConfig(faults=Faults(error_500=1.0), api_keys=["right"])
    with SimulatedProvider(config, speed=200) as provider:
        with client_of(provider, "right") as client, pytest.raises(genai.errors.ServerError) as broken:
            client.models.generate_content(model=MODEL, contents=USER)
        assert broken.value.status == "INTERNAL"
        with client_of(provider, "wrong") as client, pytest.raises(genai.errors.ClientError, match="API key not valid"):
            client.models.generate_content(model=MODEL, contents=USER)


def test_a_limit_says_in_the_body_how_long_to_wait() -> None:
    """There are no headers about it."""
    config = ProviderConfig.of({"models": {MODEL: {"requests_per_min": 1}}})
    with SimulatedProvider(config, speed=20) as provider, client_of(provider) as client:
        short = {"max_output_tokens": 1}
        client.models.generate_content(model=MODEL, contents=USER, config=short)
        with pytest.raises(genai.errors.ClientError) as refused:
            client.models.generate_content(model=MODEL, contents=USER, config=short)
    assert (refused.value.code, refused.value.status) == (429, "RESOURCE_EXHAUSTED")
    details = refused.value.details["error"]["details"]
    assert [detail["@type"].rpartition(".")[2] for detail in details] == ["QuotaFailure", "RetryInfo"]
    assert 0 < float(details[1]["retryDelay"].removesuffix("s")) <= 3
    assert "Please retry in" in refused.value.message
    assert "retry-after" not in refused.value.response.headers
