"""How a prompt is taken apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.testing.prompt import parts_of, read_prompt

QUESTION = "How do I book travel?"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            f"Tone: Be kind.\n\nPassages:\nA: B\nfoo. Text: x\n\nRules: no\n\nbaz\n\nAnswer it.\nQuestion: {QUESTION}",
            {"other": "Be kind.", "context": "A: B\nfoo. Text: x\n\nRules: no\n\nbaz", "question": QUESTION},
        ),
        (
            "Validate the answer. Question: How? Answer: In Concur.",
            {"": "Validate the answer.", "question": "How?", "answer": "In Concur."},
        ),
        (
            "Sort this ticket into one of these categories:\n- billing: refunds\n- tech\n\nTicket: I want a refund",
            {"labels": "- billing: refunds\n- tech", "question": "I want a refund"},
        ),
        ("<documents><document id='1'>foo is bar</document></documents> What?", {"": "What?", "context": "foo is bar"}),
        ("Use it.\n### Context\nfoo\n### Question\nbar", {"": "Use it.", "context": "foo", "question": "bar"}),
        ("**Context:** foo\n**Question:** bar?", {"context": "foo", "question": "bar?"}),
        (f"Context:\nfoo.\n\nbar.\n\n{QUESTION}", {"context": "foo.\n\nbar.", "question": QUESTION}),
        ("Answer from these documents:\nfoo\n\nQuestion: foo?", {"": "Answer from these documents", "context": "foo"}),
        ("Context: Paris is in France. Question: Where?", {"context": "Paris is in France.", "question": "Where?"}),
        ('Context:\n"""\nfoo\n"""\nQuestion: bar?', {"context": "foo", "question": "bar?"}),
        ("Question: first?\nAnswer: a\n\nQuestion: second?\nAnswer:", {"question": "second?"}),
        (
            "Validate the answer: is it polite? Say valid or invalid only.\n\nQuestion: q?\n\nAnswer: a",
            {"": "Validate the answer\n\nis it polite? Say valid or invalid only.", "question": "q?", "answer": "a"},
        ),
        (
            "Context:\nfoo\n## Questions\nWho?\n\nAnswers:\nx\n\nQuestion: bar?",
            {"context": "foo\n## Questions\nWho?\n\nAnswers:\nx", "question": "bar?"},
        ),
    ],
    ids=[
        "headings", "one line", "bullets", "tags", "markdown", "bold", "question without heading", "long heading",
        "inline", "fences", "examples first", "instruction after a colon", "questions inside a document",
    ],
)  # fmt: skip
def test_a_prompt_is_taken_apart(text: str, parts: dict[str, str]) -> None:
    found = parts_of(text)
    assert {name: found.get(name) for name in parts} == parts


@pytest.mark.parametrize(
    "said",
    ["", "(none)", "none", "[]", "N/A", "No documents found.", "no relevant context available", "null", "- none -"],
)
def test_a_context_that_says_there_is_none_is_empty(said: str) -> None:
    assert read_prompt([("user", f"Documents:\n{said}\n\nQuestion: {QUESTION}")]).context == ""


def test_a_context_may_stand_in_the_system_prompt_or_come_from_a_tool() -> None:
    """Where the user's turn is the bare question."""
    assert read_prompt([("system", "Answer.\nContext: foo."), ("user", QUESTION)]).context == "foo."
    turns = [("user", QUESTION), ("assistant", ""), ("tool", "foo.")]
    found = read_prompt(turns)
    assert (found.context, found.question) == ("foo.", QUESTION)


def test_history_is_no_part_of_what_is_asked() -> None:
    turns = [("user", "Context: old.\nQuestion: old?"), ("assistant", "Old."), ("user", QUESTION)]
    found = read_prompt(turns)
    assert (found.context, found.question) == (None, QUESTION)


@given(st.text(max_size=400))
def test_no_word_of_a_prompt_is_invented(text: str) -> None:
    """Every word of every part stands in the prompt."""
    for said in parts_of(text).values():
        assert all(word in text for word in said.split())
