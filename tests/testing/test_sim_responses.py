"""What else the simulated provider speaks of OpenAI's: responses, tools, completions, reasoning; through the SDK."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from paceline.testing import SimulatedProvider
from paceline.wire.openai import OPENAI

USER = "How do I book travel?"
MESSAGES: Any = [{"role": "user", "content": USER}]
PARAMETERS: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION: Any = {"name": "get_weather", "description": "Current weather in a city", "parameters": PARAMETERS}
CHAT_TOOL: Any = {"type": "function", "function": FUNCTION}
TOOL: Any = {"type": "function", **FUNCTION}
ASK = "What is the current weather in the city of Bern?"


@pytest.fixture(scope="module")
def provider() -> Iterator[SimulatedProvider]:
    with SimulatedProvider(speed=200, seed=1) as running:
        yield running


@pytest.fixture
def client(provider: SimulatedProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=provider.base_url, api_key="k", max_retries=0) as made:
        yield made


def test_a_response_and_its_stream_are_the_same(client: openai.OpenAI) -> None:
    """The final event holds what the plain answer does, and the deltas add up to it."""
    label = "Classify. Intents: travel, other.\n\nMessage: book travel"
    plain = client.responses.create(model="gpt-4o", input=label)
    with client.responses.stream(model="gpt-4o", input=label) as stream:
        events: list[Any] = list(stream)
        streamed = stream.get_final_response()
    assert plain.output_text == streamed.output_text == "travel"
    assert plain.usage == streamed.usage
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "travel"
    assert [e.type for e in events if not e.type.endswith(".delta")] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    raw = list(client.responses.create(model="gpt-4o", input=label, stream=True))
    assert [e.sequence_number for e in raw] == list(range(len(raw)))


def test_a_response_calls_a_function(client: openai.OpenAI) -> None:
    """Its arguments streamed and plain; its output given back is answered from."""
    asked: Any = [{"role": "user", "content": ASK}]
    call: Any = client.responses.create(model="gpt-4o", input=asked, tools=[TOOL]).output[0]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": ASK})
    with client.responses.stream(model="gpt-4o", input=asked, tools=[TOOL]) as stream:
        deltas = [e.delta for e in stream if e.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments
    given: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Bern has sun and 21 degrees."}
    after: Any = [*asked, call.model_dump(exclude_none=True), given]
    assert "Bern has sun" in client.responses.create(model="gpt-4o", input=after, tools=[TOOL]).output_text


def test_a_response_may_be_cut_and_may_be_json(client: openai.OpenAI) -> None:
    cut = client.responses.create(model="gpt-4o", input=USER, max_output_tokens=5)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    schema = {"type": "object", "properties": {"what": {"enum": ["other", "travel"]}}}
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    assert json.loads(client.responses.create(model="gpt-4o", input=USER, text=form).output_text) == {"what": "travel"}


def test_reasoning_is_counted_and_summed_up_when_asked_for(client: openai.OpenAI) -> None:
    asked: Any = {"effort": "low", "summary": "auto"}
    with client.responses.stream(model="gpt-4o", input=USER, reasoning=asked) as stream:
        for _ in stream:
            pass
        done = stream.get_final_response()
    assert [item.type for item in done.output] == ["reasoning", "message"]
    assert done.usage is not None
    assert done.usage.output_tokens_details.reasoning_tokens == 64
    chat = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, reasoning_effort="low")
    assert chat.usage is not None
    assert chat.usage.completion_tokens_details is not None
    assert chat.usage.completion_tokens_details.reasoning_tokens == 64


def test_what_it_cannot_do_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="keeps no responses"):
        client.responses.create(model="gpt-4o", input=USER, previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError, match="Missing required parameter"):
        client.responses.create(model="gpt-4o")
    with pytest.raises(openai.BadRequestError, match="not found in 'tools'"):
        other: Any = {"type": "function", "function": {"name": "other"}}
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES, tools=[CHAT_TOOL], tool_choice=other)


def test_a_chat_calls_a_function(client: openai.OpenAI, provider: SimulatedProvider) -> None:
    """Forced, fitting, not fitting, forbidden; streamed arguments add up."""

    def chat(text: str, choice: Any = "auto", **more: Any) -> Any:
        messages: Any = [{"role": "user", "content": text}]
        return client.chat.completions.create(
            model="gpt-4o", messages=messages, tools=[CHAT_TOOL], tool_choice=choice, **more
        )

    forced = chat(USER, "required")
    assert forced.choices[0].finish_reason == "tool_calls"
    assert json.loads(forced.choices[0].message.tool_calls[0].function.arguments) == {"city": USER}
    assert provider.calls[-1].kind == "tool"
    assert chat(USER, {"type": "function", "function": {"name": "get_weather"}}).choices[0].message.tool_calls
    assert chat(ASK).choices[0].message.tool_calls
    assert not chat(ASK, "none").choices[0].message.tool_calls
    assert not chat(USER).choices[0].message.tool_calls
    deltas = [c.choices[0].delta for c in chat(USER, "required", stream=True) if c.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert "".join(call.function.arguments or "" for call in calls) == json.dumps({"city": USER}).replace(": ", ":")
    assert next(call.id for call in calls if call.id).startswith("call_")


def test_a_legacy_completion_and_its_stream(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="gpt-3.5-turbo", prompt=USER, max_tokens=7)
    streamed = list(client.completions.create(model="gpt-3.5-turbo", prompt=USER, max_tokens=7, stream=True))
    assert plain.choices[0].text == "".join(c.choices[0].text for c in streamed)
    assert (plain.choices[0].finish_reason, plain.usage and plain.usage.completion_tokens) == ("length", 7)


def test_our_own_reading_of_it_agrees(client: openai.OpenAI) -> None:
    """The dialect reads from the raw bytes what the SDK does, for every form, streamed and plain."""
    usage: Any = {"include_usage": True}
    forms: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        (client.chat.completions, {"messages": MESSAGES, "max_tokens": 9}, {"stream_options": usage}),
        (client.completions, {"prompt": USER, "max_tokens": 9}, {"stream_options": usage}),
        (client.responses, {"input": USER, "max_output_tokens": 9}, {}),
    ]
    for form, asked, streaming in forms:
        plain = OPENAI.read_reply(form.with_raw_response.create(model="gpt-4o", **asked).http_response.content)
        reader = OPENAI.stream_reader()
        with form.with_streaming_response.create(model="gpt-4o", **asked, stream=True, **streaming) as raw:
            for piece in raw.iter_bytes():
                reader.feed(piece)
        assert reader.result() == plain
        assert (plain.complete, plain.truncated) == (True, True)
