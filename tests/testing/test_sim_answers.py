"""What prompts are answered with."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.testing.answers import answer, best_label, labels_in
from paceline.testing.passages import ranked_sentences
from paceline.testing.structured import as_json
from paceline.wire.tokens import estimate_tokens

QUESTION = "How do I book travel to a conference?"
CONTEXT = (
    "Travel: Booking\nYou book travel in Concur. A supervisor must approve the trip first.\n\nLeave\nYou earn leave."
)


def asked(text: str, system: str = "") -> list[tuple[str, str]]:
    return [("system", system), ("user", text)] if system else [("user", text)]


@pytest.mark.parametrize(
    ("prompt", "kind", "said"),
    [
        (f"Classify the intent. Intents: leave, travel, other.\n\nMessage: {QUESTION}", "label", "travel"),
        ("Classify. Labels: leave, other.\n\nMessage: unrelated", "label", "other"),
        ("Classify the sentiment as positive, negative or neutral: so negative!", "label", "negative"),
        ("Which category fits?\n- billing: charges, refunds\n- tech\n\nTicket: I want a refund", "label", "billing"),
        ("Give tone guidelines for a message with the intent: travel.", "tone", ""),
        (f"Context:\n{CONTEXT}\n\nQuestion: {QUESTION}", "quoted", "You book travel in Concur."),
        (f"<context>{CONTEXT}</context>\n\n{QUESTION}", "quoted", "You book travel in Concur."),
        ("Summarize the following text:\nAlpha is first. Beta is second.", "quoted", "Alpha is first."),
        (f"Handbook passages:\n(none)\n\nQuestion: {QUESTION}", "vague", "Thank you for asking"),
        (QUESTION, "vague", "Thank you for asking"),
        ("Write a poem about rain.", "generic", "Here is a way"),
        (f"Validate the answer.\n\nQuestion: {QUESTION}\n\nAnswer: You book travel in Concur.", "verdict", "valid"),
        (f"Verify it.\nContext:\n{CONTEXT}\n\nQuestion: x\n\nAnswer: Bananas grow on Mars.", "verdict", "invalid: "),
        (f"Check whether it fits, yes or no.\nContext: {CONTEXT}\n\nAnswer: You earn leave.", "verdict", "yes"),
    ],
)
def test_the_answer_follows_from_the_prompt(prompt: str, kind: str, said: str) -> None:
    found = answer(asked(prompt))
    assert (found.kind, said in found.text(100)) == (kind, True)


@pytest.mark.parametrize(
    "question",
    ["How do I verify my identity?", "What are the tone guidelines?", "Who classifies records? Labels: a, b, c"],
)
def test_words_of_a_question_do_not_instruct(question: str) -> None:
    """A question about validation, tone or labels is a question."""
    assert answer(asked(f"Context:\n{CONTEXT}\n\nQuestion: {question}")).kind == "quoted"


def test_a_long_system_prompt_full_of_trigger_words_changes_nothing() -> None:
    """Policies speak of tone, labels and validation; what is asked stands in the last turn."""
    policies = "Check whether the tone guidelines fit. Classify documents. Labels: a, b, c. " * 60
    assert answer(asked(f"Context:\n{CONTEXT}\n\nQuestion: {QUESTION}", policies)).kind == "quoted"
    assert answer(asked(QUESTION, policies)).kind == "vague"


def test_a_short_system_prompt_instructs_a_bare_turn() -> None:
    assert answer(asked(QUESTION, "Classify the intent. Labels: leave, travel.")).text(9) == "travel"
    assert answer(asked(f"Question: {QUESTION}\nAnswer: By travel desk.", "You validate answers.")).valid is True


def test_labels_are_read_from_lists_and_bullets() -> None:
    assert list(labels_in("access, time tracking, other. Reply with the label only.")) == [
        "access",
        "time tracking",
        "other",
    ]
    assert list(labels_in("Pick one:\n- red\n- green\n")) == ["red", "green"]
    assert list(labels_in('One of ["a", "b"]')) == ["a", "b"]
    assert list(labels_in("It depends.")) == []


def test_a_label_is_found_by_its_description_and_common_words_decide_nothing() -> None:
    labels = {"billing": "charges, refunds", "other": ""}
    assert best_label(labels, "I was charged twice") == "billing"
    assert best_label(labels, "Can I join other channels?") == "other"
    assert best_label({"red": "", "green": ""}, "nothing of the sort") == "green"


def test_a_verdict_uses_the_words_that_are_offered_and_no_more_than_asked() -> None:
    bad = "Question: travel?\n\nAnswer: bananas"
    assert answer(asked(f"Validate. Reply with VALID or INVALID only.\n\n{bad}")).text(9) == "INVALID"
    assert answer(asked(f"Verify it: pass or fail.\n\n{bad}")).text(9) == "fail: it does not answer the question"


def test_quotes_are_word_for_word_and_the_best_come_first() -> None:
    """A heading's words count for the sentences below it; headings and questions are not quoted."""
    context = "Leave\nYou earn it monthly.\n\nHow do I book travel?\nUse the tool.\nAsk first.\n\nFood\nThere is some."
    assert ranked_sentences(context, "how to book travel")[0] == "Use the tool."
    wrapped = "The manager of each large project changes over its\ncourse, and so does the role. Yes."
    assert (
        ranked_sentences(wrapped, "role")[0]
        == "The manager of each large project changes over its course, and so does the role."
    )


@given(st.text(min_size=1, max_size=500), st.text(max_size=80))
def test_quotes_stand_in_the_context(context: str, question: str) -> None:
    """White space aside, nothing is invented."""
    whole = "".join(context.split())
    assert all("".join(sentence.split()) in whole for sentence in ranked_sentences(context, question))


@given(
    st.integers(1, 800), st.sampled_from([QUESTION, "Write a poem.", f"Context:\n{CONTEXT}\n\nQuestion: {QUESTION}"])
)
def test_a_free_answer_has_the_drawn_length(tokens: int, prompt: str) -> None:
    """Within three tokens; never shorter than its most important sentences."""
    found = answer(asked(prompt))
    core = estimate_tokens(" ".join(found.sentences[:3]))
    assert max(tokens, core) - 4 <= estimate_tokens(found.text(tokens)) <= max(tokens, core) + 1


@given(st.text(max_size=300), st.text(max_size=100))
def test_any_prompt_gets_some_answer_and_always_the_same(text: str, system: str) -> None:
    found = answer(asked(text, system))
    assert found.text(50)
    assert answer(asked(text, system)) == found


def test_json_verdicts_and_labels() -> None:
    verdict = answer(asked("Validate, reply as JSON.\n\nQuestion: travel?\n\nAnswer: travel."))
    assert verdict.wants_json
    assert json.loads(as_json(verdict, verdict.text(9))) == {"valid": True, "reason": ""}
    label = answer(asked(f"Classify the intent, as JSON. Intents: leave, travel.\n\nMessage: {QUESTION}"))
    assert json.loads(as_json(label, label.text(9))) == {"intent": "travel"}


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "intent": {"$ref": "#/$defs/Intent"},
        "confidence": {"type": "number"},
        "urgent": {"type": "boolean"},
        "count": {"type": "integer", "minimum": 2},
        "note": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        "tags": {"type": "array", "items": {"enum": ["leave", "travel"]}},
        "self": {"$ref": "#"},
    },
    "$defs": {"Intent": {"type": "string", "enum": ["leave", "travel"]}},
}


def test_a_schema_is_filled() -> None:
    """References, choices, numbers, lists; a schema that holds itself ends somewhere."""
    found = answer(asked(f"Fill the form.\nMessage: {QUESTION}"))
    filled = json.loads(as_json(found, "some text", SCHEMA))
    assert filled.pop("self")["intent"] == "travel"
    assert filled == {
        "intent": "travel",
        "confidence": 0.9,
        "urgent": True,
        "count": 2,
        "note": "some text",
        "tags": ["travel"],
    }


@pytest.mark.slow
def test_answers_to_the_handbooks_questions_quote_their_sections() -> None:
    """Given its own section among others, the first sentence quoted is mostly that section's."""
    path = Path(__file__).parents[2] / "workloads/support/data/handbook18f_sections.jsonl"
    if not path.exists():
        pytest.skip("the handbook is not there")
    sections = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    shown = [f"{s['title']}: {s['heading']}\n{s['text']}" for s in sections]
    questions = [i for i, s in enumerate(sections) if s["heading"].endswith("?")]
    right = 0
    for i in questions:
        others = [shown[(i + step) % len(shown)] for step in (211, 467, 701, 983)]
        context = "\n\n".join([*others[:2], shown[i], *others[2:]])
        found = answer(asked(f"Handbook passages:\n{context}\n\nAnswer it.\nQuestion: {sections[i]['heading']}"))
        right += found.sentences[0] in " ".join(sections[i]["text"].split())
    assert right >= 0.85 * len(questions)
