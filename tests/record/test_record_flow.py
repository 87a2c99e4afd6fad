"""Data flow evidence: what counts as a use, and what does not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.record.flow import EXCERPT_CHARS, MAX_OUTPUTS, Flow, excerpts, vector_excerpt

LONG = "Refunds are paid within thirty days. Write to the billing team and name your order number, please."


def flow(output: str, body: object = None) -> Flow:
    seen = Flow()
    seen.request_body = json.dumps(body).encode() if body is not None else b""
    seen.remember("a", [output])
    return seen


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("Billing.", "The intent is billing; answer it"),
        ('{"intent": "billing", "sure": 0.9}', "Intent: Billing"),
        (LONG, f"Context:\n{LONG}\nQuestion: when?"),
        ("one line here that is long enough to count\n" + LONG, "x " + LONG + " y"),
        ("退款政策", "意图:退款政策处理"),
    ],
    ids=["label", "json field", "quoted whole", "second line only", "script without spaces"],
)
def test_an_output_that_a_later_prompt_contains_is_a_use(output: str, text: str) -> None:
    assert flow(output).uses(text) == ["a"]


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("billing", "rebilling and billings"),
        ("no", "there is no use"),
        ("billing", "Tone for: my billing is wrong"),
        (LONG, "Tone for: my billing is wrong"),
    ],
    ids=["part of a word", "too short", "the user's own word", "other text"],
)
def test_chance_is_no_use(output: str, text: str) -> None:
    assert flow(output, {"message": "my billing is wrong"}).uses(text) == []


def test_a_rewritten_question_equal_to_the_original_counts_as_used() -> None:
    """It cannot be told apart, and claiming independence would be the worse mistake."""
    assert flow("My billing is wrong", {"message": "my billing is wrong"}).uses("Q: my billing is wrong") == ["a"]


def test_an_embedding_is_seen_in_the_query_made_with_it() -> None:
    assert flow(vector_excerpt([0.25, -0.5, 0.125])).uses(vector_excerpt([0.25, -0.5, 0.125])) == ["a"]
    assert flow(vector_excerpt([0.25, -0.5, 0.125])).uses(vector_excerpt([0.25, -0.5, 0.25])) == []


def test_memory_is_bounded() -> None:
    seen = Flow()
    for number in range(MAX_OUTPUTS * 2):
        seen.remember(str(number), [f"word{number} " * 10_000])
    assert len(seen.outputs) == MAX_OUTPUTS
    assert all(len(e) <= EXCERPT_CHARS for _, found in seen.outputs for e in found)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=400), st.text(max_size=50), st.text(max_size=50))
def test_an_output_standing_alone_in_a_prompt_is_always_found(output: str, before: str, after: str) -> None:
    """Whatever the text, if it leaves excerpts it is found where it was pasted."""
    if excerpts(output):
        assert flow(output).uses(f"{before}\n{output}\n{after}") == ["a"]
