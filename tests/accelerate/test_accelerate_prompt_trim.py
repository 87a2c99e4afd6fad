"""Prompts get shorter by the rules asked for, and by nothing else."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples

from paceline.accelerate.prompts.policy import PromptPolicy, PromptRule, Trimming
from paceline.accelerate.prompts.trim import Trimmed, trim
from paceline.wire.tokens import estimate_tokens

FACT = "Travel is paid back within thirty days when every receipt above ten euro comes with the claim; number {}."
QUESTION = "Until when may I claim?"


def chat(*turns: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": role, "content": content} for role, content in turns], **fields}


def contents(result: Trimmed) -> list[Any]:
    return [message["content"] for message in result.call["messages"]]


def openai(call: dict[str, Any], **settings: Any) -> Trimmed:
    return trim("llm", "openai", call, PromptPolicy(**settings))


LONG_TALK = chat(
    ("system", "Be kind."),
    ("user", "q1"),
    ("assistant", "a1"),
    ("user", "q2"),
    ("assistant", "a2"),
    ("user", "q3"),
    ("assistant", "a3"),
    ("user", QUESTION),
)


@pytest.mark.parametrize(
    ("last_turns", "kept"),
    [
        pytest.param(0, [], id="none"),
        pytest.param(1, ["q3", "a3"], id="an answer keeps its question"),
        pytest.param(2, ["q3", "a3"], id="one exchange"),
        pytest.param(3, ["q2", "a2", "q3", "a3"], id="rounded up"),
        pytest.param(99, ["q1", "a1", "q2", "a2", "q3", "a3"], id="all"),
    ],
)
def test_history_goes_by_whole_exchanges(last_turns: int, kept: list[str]) -> None:
    assert contents(openai(LONG_TALK, last_turns=last_turns)) == ["Be kind.", *kept, QUESTION]


def test_the_first_exchange_can_stay() -> None:
    result = openai(LONG_TALK, last_turns=2, keep_first_turn=True)
    assert contents(result) == ["Be kind.", "q1", "a1", "q3", "a3", QUESTION]


def test_messages_of_the_system_stay_wherever_they_stand() -> None:
    call = chat(("user", "q1"), ("system", "From now on in French."), ("assistant", "a1"), ("user", QUESTION))
    assert contents(openai(call, last_turns=0)) == ["From now on in French.", QUESTION]


TOOL_TALK = {
    "openai chat": (
        "openai",
        "messages",
        [
            {"role": "user", "content": "q1"},
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "r1"},
            {"role": "assistant", "content": "a1"},
            {"role": "user", "content": "q2"},
            {"role": "assistant", "tool_calls": [{"id": "2", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "2", "content": "r2"},
        ],
    ),
    "openai responses": (
        "openai",
        "input",
        [
            {"role": "user", "content": "q1"},
            {"type": "reasoning", "id": "r", "summary": []},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "r1"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a1"}]},
            {"role": "user", "content": [{"type": "input_text", "text": "q2"}]},
            {"type": "function_call", "call_id": "2", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "2", "output": "r2"},
        ],
    ),
    "anthropic": (
        "anthropic",
        "messages",
        [
            {"role": "user", "content": "q1"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "r1"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a1"}]},
            {"role": "user", "content": [{"type": "text", "text": "q2"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "2", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "2", "content": "r2"}]},
        ],
    ),
    "gemini": (
        "gemini",
        "contents",
        [
            {"parts": [{"text": "q1"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"x": "r1"}}}]},
            {"role": "model", "parts": [{"text": "a1"}]},
            {"role": "user", "parts": [{"text": "q2"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"x": "r2"}}}]},
        ],
    ),
}


@pytest.mark.parametrize("name", TOOL_TALK)
def test_tool_calls_and_results_stay_together(name: str) -> None:
    """Everything since the user last spoke stays, and an older exchange goes with all its tool calls."""
    dialect, field, items = TOOL_TALK[name]
    result = trim("llm", dialect, {"model": "m", field: items}, PromptPolicy(last_turns=0))
    at = next(i for i, item in enumerate(items) if "q2" in str(item))
    assert result.call[field] == items[at:]
    assert result.what == {"history": result.saved_tokens}
    assert result.saved_tokens > 0


@pytest.mark.parametrize("name", TOOL_TALK)
def test_tool_calls_count_with_the_answer_they_led_to(name: str) -> None:
    dialect, field, items = TOOL_TALK[name]
    call = {"model": "m", field: items}
    assert trim("llm", dialect, call, PromptPolicy(last_turns=2)).call is call


PICTURES: list[tuple[str, str, dict[str, Any]]] = [
    ("openai", "messages", {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}),
    ("openai", "input", {"role": "user", "content": [{"type": "input_image", "image_url": "data:x"}]}),
    ("openai", "input", {"type": "image_generation_call", "id": "i", "result": "x"}),
    ("openai", "input", {"type": "item_reference", "id": "i"}),
    ("anthropic", "messages", {"role": "user", "content": [{"type": "image", "source": {"type": "base64"}}]}),
    (
        "anthropic",
        "messages",
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image"}]}]},
    ),
    ("gemini", "contents", {"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": "x"}}]}),
    ("gemini", "contents", {"role": "user", "parts": [{"functionResponse": {"name": "f", "parts": [{}]}}]}),
    ("openai", "messages", {"role": "assistant", "content": "heard", "audio": {"id": "a"}}),
    ("openai", "messages", {"role": "user", "content": [{"type": "invented_tomorrow"}]}),
]


@pytest.mark.parametrize(("dialect", "field", "item"), PICTURES, ids=lambda value: str(value)[:40])
def test_an_exchange_with_more_than_words_stays(dialect: str, field: str, item: dict[str, Any]) -> None:
    """Images, files, references and what is not known are never dropped."""
    content = "parts" if dialect == "gemini" else "content"
    answer = "model" if dialect == "gemini" else "assistant"

    def said(role: str, text: str) -> dict[str, Any]:
        return {"role": role, content: [{"text": text}] if dialect == "gemini" else text}

    items = [said("user", "q0"), said(answer, "a0"), said("user", "q1"), item, said(answer, "a1"), said("user", "q2")]
    result = trim("llm", dialect, {field: items}, PromptPolicy(last_turns=0, max_input_tokens=1))
    assert result.call[field] == items[2:]


def test_history_stays_when_the_provider_holds_the_rest() -> None:
    call = {"input": [{"type": "function_call_output", "call_id": "1", "output": "r"}], "previous_response_id": "x"}
    call["input"] = [*call["input"], {"role": "user", "content": "hi"}]
    assert trim("llm", "openai", call, PromptPolicy(last_turns=0)).call is call


# --- chunks ----------------------------------------------------------------------------------------------------------

FORMS = {
    "bracket": ("Use these passages.\n\n{}\n\nQuestion: " + QUESTION, "[{n}] {fact}", "\n"),
    "bracket, no empty line": ("Use these:\n{}\nQuestion: " + QUESTION, "[{n}] {fact}", "\n"),
    "bracket, no heading": ("{}\n" + QUESTION, "[{n}] {fact}", "\n"),
    "label": ("Context:\n{}\n\n## Question\n" + QUESTION, "### Source {n}\n\n{fact}\nAnd more.", "\n\n"),
    "label with colon": ("{}\n\n" + QUESTION, "Document {n}: {fact}", "\n\n"),
    "tag": ("<documents>\n{}\n</documents>\n" + QUESTION, '<document index="{n}">\n{fact}\n\nMore.\n</document>', "\n"),
    "numbered": ("Passages\n{}\n\n" + QUESTION, "{n}. {fact}", "\n"),
    "rule": ("Passages\n---\n{}\n---\n" + QUESTION, "{fact}", "\n---\n"),
}


def with_chunks(form: str, count: int) -> str:
    frame, chunk, gap = FORMS[form]
    return frame.format(gap.join(chunk.format(n=n, fact=FACT.format(n)) for n in range(1, count + 1)))


@pytest.mark.parametrize("form", FORMS)
def test_the_last_chunks_go_and_everything_else_stays(form: str) -> None:
    forms = ("tag", "bracket", "label", form if form in ("numbered", "rule") else "tag")
    result = openai(chat(("user", with_chunks(form, 5))), max_chunks=3, chunk_forms=forms)
    assert contents(result) == [with_chunks(form, 3)]
    assert result.what == {"chunks": result.saved_tokens}


@pytest.mark.parametrize("form", ["numbered", "rule"])
def test_forms_that_instructions_use_too_are_not_chunks_by_default(form: str) -> None:
    call = chat(("user", with_chunks(form, 5)))
    assert openai(call, max_chunks=1).call is call


def test_a_pattern_of_ones_own_says_where_chunks_begin() -> None:
    text = "Use:\n" + "\n".join(f"* KB-{n}: {FACT.format(n)}" for n in range(4)) + f"\n\n{QUESTION}"
    [got] = contents(openai(chat(("user", text)), max_chunks=1, chunk_pattern=r"\* KB-\d+:"))
    assert got == f"Use:\n* KB-0: {FACT.format(0)}\n\n{QUESTION}"


def test_what_follows_the_last_chunk_without_a_sign_is_not_taken_with_it() -> None:
    """Nobody says where the last chunk ends: only its first line is surely its own."""
    text = f"[1] {FACT}\nmore\n[2] {FACT}\nmore\nSummarise the above in two lines."
    [got] = contents(openai(chat(("user", text)), max_chunks=1))
    assert got == f"[1] {FACT}\nmore\nmore\nSummarise the above in two lines."


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("see\n[2] and then\n[1] backwards", id="numbers fall"),
        pytest.param('{"a": "\n[1] x\n[2] y\n[3] z"}', id="json"),
        pytest.param("```\n[1] a\n[2] b\n[3] c\n```", id="code"),
        pytest.param("[1] only one", id="one"),
        pytest.param("a [1] b [2] c [3]", id="in a line"),
    ],
)
def test_what_only_looks_like_chunks_stays(text: str) -> None:
    call = chat(("user", text))
    assert openai(call, max_chunks=1).call is call


# --- repeats and white space -----------------------------------------------------------------------------------------


def test_a_repeated_paragraph_stays_in_the_newest_message() -> None:
    """The last message loses nothing that older ones say too."""
    rules = FACT.format(1) * 2
    call = chat(("user", f"{rules}\n\nq1"), ("assistant", "a1"), ("user", f"{rules}\n\nq2"))
    result = openai(call, drop_repeats=True)
    assert contents(result) == ["q1", "a1", f"{rules}\n\nq2"]
    assert result.what == {"repeats": estimate_tokens(f"{rules}\n\nq1") - estimate_tokens("q1")}


def test_the_users_last_message_loses_nothing_that_a_later_system_message_repeats() -> None:
    same = FACT.format(1) * 2
    call = chat(("user", f"{same}\n\nq"), ("system", f"{same}\n\nBe kind."))
    assert contents(openai(call, drop_repeats=True, system_text=True)) == [f"{same}\n\nq", "Be kind."]


def test_of_equal_chunks_in_one_message_the_first_stays() -> None:
    same, other = FACT.format(1) + " Really.", FACT.format(2) + " Really."
    text = f"[1] {same}\n[2] {other}\n[3] {same}\n\n{QUESTION}"
    [got] = contents(openai(chat(("user", text)), drop_repeats=True, least_repeat_chars=50))
    assert got == f"[1] {same}\n[2] {other}\n\n{QUESTION}"


def test_a_message_that_is_all_repeat_stays() -> None:
    question = FACT.format(1) * 2
    call = chat(("user", question), ("assistant", "a"), ("user", question))
    assert openai(call, drop_repeats=True).call is call


def test_repeated_code_stays() -> None:
    code = "```python\n" + "x = 1  # one\n" * 20 + "```"
    call = chat(("user", f"{code}\n\nand\n\n{code}"))
    assert openai(call, drop_repeats=True, white_space=True).call is call


@pytest.mark.parametrize(
    ("text", "shorter"),
    [
        pytest.param("a  \nb\t\nc", "a\nb\nc", id="line ends"),
        pytest.param("a\n\n\n\n  \nb", "a\n\nb", id="empty lines"),
        pytest.param("So it is.  And so on.  Yes!  Really.", "So it is. And so on. Yes! Really.", id="sentences"),
        pytest.param("one word     far off", "one word far off", id="one run"),
        pytest.param("a\r\nb\r\nc", "a\nb\nc", id="windows lines"),
        pytest.param("name    age   city\nEve     31    Rome", None, id="columns"),
        pytest.param("    indented\n      code", None, id="indentation"),
        pytest.param('it says "a  b" there', None, id="quoted"),
        pytest.param('{"a":   1,\n\n\n\n "b":  2}', None, id="json"),
        pytest.param("```\na  \n\n\n\nb\n```", None, id="code"),
        pytest.param("a |  b  | c", None, id="table"),
        pytest.param("prompt that ends in a blank: ", None, id="end of the text"),
    ],
)
def test_white_space_goes_where_it_can_mean_nothing(text: str, shorter: str | None) -> None:
    [got] = contents(openai(chat(("user", text)), white_space=True))
    assert got == (text if shorter is None else shorter)


def test_the_system_prompt_is_touched_only_when_asked() -> None:
    call = chat(("system", "Be kind.   \n\n\n\nAlways."), ("user", "hi"))
    assert openai(call, white_space=True).call is call
    assert contents(openai(call, white_space=True, system_text=True))[0] == "Be kind.\n\nAlways."


@pytest.mark.parametrize(
    ("dialect", "call"),
    [
        ("openai", {"instructions": "a  \nb", "input": "c  \nd"}),
        ("openai", {"prompt": "c  \nd"}),
        ("anthropic", {"system": [{"type": "text", "text": "a  \nb"}], "messages": []}),
        ("anthropic", {"system": "a  \nb", "messages": [{"role": "user", "content": "c  \nd"}]}),
        ("gemini", {"systemInstruction": {"parts": [{"text": "a  \nb"}]}, "contents": []}),
        ("gemini", {"system_instruction": {"parts": [{"text": "a  \nb"}]}, "contents": [{"parts": [{"text": "c"}]}]}),
    ],
    ids=str,
)
def test_every_place_of_a_text_is_known(dialect: str, call: dict[str, Any]) -> None:
    result = trim("llm", dialect, call, PromptPolicy(white_space=True, system_text=True))
    assert msgspec.json.encode(result.call) == msgspec.json.encode(call).replace(b"  \\n", b"\\n")


# --- budget ----------------------------------------------------------------------------------------------------------


def test_above_the_budget_the_oldest_history_goes_first_then_the_last_chunks() -> None:
    call = chat(("user", "q1 " * 50), ("assistant", "a1 " * 50), ("user", with_chunks("bracket", 5)))
    assert contents(openai(call, max_input_tokens=190)) == [with_chunks("bracket", 5)]
    assert contents(openai(call, max_input_tokens=80)) == [with_chunks("bracket", 2)]
    assert openai(call, max_input_tokens=1000).call is call


def test_a_budget_that_cannot_be_kept_is_come_as_near_to_as_may_be() -> None:
    result = openai(chat(("system", "s " * 500), ("user", with_chunks("bracket", 5))), max_input_tokens=1)
    assert contents(result) == ["s " * 500, with_chunks("bracket", 1)]


def test_tools_count_to_the_budget_and_stay() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "d " * 400}}]
    call = chat(("user", "q1"), ("assistant", "a1"), ("user", "q2"), tools=tools)
    result = openai(call, max_input_tokens=100)
    assert contents(result) == ["q2"]
    assert result.call["tools"] is tools


# --- whose calls, and laws -------------------------------------------------------------------------------------------


def test_the_first_rule_that_fits_wins_whole() -> None:
    policy = PromptPolicy(
        last_turns=1,
        rules=(
            PromptRule(step="intent", last_turns=0),
            PromptRule(step="answer", template="ab"),
            PromptRule(template="cd", max_chunks=2),
        ),
    )
    assert policy.of("intent", "xx") is policy.rules[0]
    assert policy.of("answer", "ab") is None, "a rule with nothing on switches its calls off"
    assert policy.of("answer", "cd") is policy.rules[2]
    assert policy.of(None, None) is policy
    assert PromptPolicy().of("intent", "ab") is None


@pytest.mark.parametrize(
    "wrong",
    [{"last_turns": -1}, {"max_chunks": 0}, {"chunk_forms": ["magic"]}, {"chunk_pattern": "("}, {"rules": [{}]}],
    ids=str,
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"must be|are|not a|names"):
        msgspec.convert(wrong, PromptPolicy)


_text = st.lists(
    st.sampled_from(
        [
            *(f"[{n}] {FACT.format(n % 3)}" for n in range(5)),
            "Question: and then?",
            "<doc>one</doc>",
            "<doc>two  \n\n\nlines</doc>",
            "```\ncode  x\n```",
            "```",
            "a  b",
            "   ",
            "",
            "\t",
            "### Source 1",
            "Document 2: x",
            "---",
            FACT.format(7) * 2,
            '{"a":  1}',
            "1. first",
        ]
    ),
    max_size=9,
).flatmap(lambda lines: st.sampled_from(["\n", "\n\n", " \n", " "]).map(lambda gap: gap.join(lines)))
_content = st.one_of(
    _text,
    st.lists(
        st.one_of(
            _text.map(lambda text: {"type": "text", "text": text}),
            st.just({"type": "image_url", "image_url": {"url": "u"}}),
        ),
        max_size=3,
    ),
)
_messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "user", "assistant", "tool"]), "content": _content}
    ),
    max_size=8,
)
_settings = st.builds(
    Trimming,
    last_turns=st.none() | st.integers(0, 4),
    keep_first_turn=st.booleans(),
    max_chunks=st.none() | st.integers(1, 3),
    chunk_forms=st.sampled_from([("tag", "bracket", "label"), ("rule", "numbered"), ()]),
    drop_repeats=st.booleans(),
    least_repeat_chars=st.sampled_from([1, 60, 120]),
    white_space=st.booleans(),
    system_text=st.booleans(),
    max_input_tokens=st.none() | st.integers(1, 400),
)


@pytest.mark.slow
@examples(40)
@given(_messages, _settings)
def test_trimming_again_changes_nothing(messages: list[dict[str, Any]], settings: Trimming) -> None:
    once = trim("llm", "openai", {"messages": messages}, settings)
    assert trim("llm", "openai", once.call, settings).call == once.call


@pytest.mark.slow
@given(_messages, _settings)
def test_the_call_given_is_not_changed_and_what_must_stay_stays(
    messages: list[dict[str, Any]], settings: Trimming
) -> None:
    call = {"messages": messages, "tools": [{"name": "f"}]}
    before = copy.deepcopy(call)
    result = trim("llm", "openai", call, settings)
    assert call == before
    assert result.saved_tokens == sum(result.what.values())
    assert result.call["tools"] == call["tools"]
    kept = result.call["messages"]
    assert [m["role"] for m in kept if m["role"] == "system"] == [m["role"] for m in messages if m["role"] == "system"]
    if not settings.system_text:
        assert [m for m in kept if m["role"] == "system"] == [m for m in messages if m["role"] == "system"]
    assert list(_images(kept)) == list(_images(messages))
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=None)
    if last_user is not None:
        last_kept = [m for m in kept if m["role"] == "user"][-1]["content"]
        assert _said(last_kept) <= _said(messages[last_user]["content"])
        assert bool(_said(last_kept)) == bool(_said(messages[last_user]["content"]))
        assert kept[-1]["role"] == messages[-1]["role"]


@pytest.mark.slow
@examples(40)
@given(_messages)
def test_off_means_untouched(messages: list[dict[str, Any]]) -> None:
    call = {"messages": messages}
    for kind, settings in (("llm", None), ("llm", Trimming()), ("embedding", Trimming(last_turns=0, white_space=True))):
        result = trim(kind, "openai", call, settings)
        assert result.call is call
        assert not result.changed


@pytest.mark.parametrize(
    "call", [{}, {"messages": "x", "input": 3}, {"messages": [1]}, {"messages": None}, {"prompt": [1]}]
)
@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini", "unheard of"])
def test_shapes_not_known_are_left_alone(dialect: str, call: dict[str, Any]) -> None:
    everything = Trimming(last_turns=0, max_chunks=1, drop_repeats=True, white_space=True, max_input_tokens=1)
    assert trim("llm", dialect, call, everything).call is call


def _images(messages: list[dict[str, Any]]) -> Iterator[Any]:
    for message in messages:
        if isinstance(message["content"], list):
            yield from (part for part in message["content"] if part["type"] == "image_url")


def _said(content: str | list[dict[str, Any]]) -> set[str]:
    """Words of a content."""
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return {word for text in texts for word in re.findall(r"\w+", text)}
