"""The pure parts of the simulated provider: answers, vectors, buckets, draws, configuration."""

import json
import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.errors import ConfigError
from paceline.testing import PRESETS, Model, load_config
from paceline.testing.answers import answer, best_label, context_in, labels_in
from paceline.testing.buckets import Bucket, go_duration
from paceline.testing.draws import Draw
from paceline.testing.vectors import embed

SECTIONS = Path(__file__).parents[2] / "workloads/support/data/handbook18f_sections.jsonl"

QUESTION = "How do I book travel to a conference?"
CONTEXT = (
    "Travel: Booking\nYou book travel in Concur. A supervisor must approve the trip first.\n\nLeave\nYou earn leave."
)


def asked(text: str, system: str = "") -> list[tuple[str, str]]:
    return [("system", system), ("user", text)] if system else [("user", text)]


@pytest.mark.parametrize(
    ("prompt", "kind", "said"),
    [
        (
            f"Classify the intent of the message. Intents: leave, travel, other.\n\nMessage: {QUESTION}",
            "label",
            "travel",
        ),
        ("Classify. Labels: leave, other.\n\nMessage: unrelated", "label", "other"),
        ("Give tone guidelines for a message with the intent: travel.", "tone", ""),
        (f"Context:\n{CONTEXT}\n\nQuestion: {QUESTION}", "quoted", "You book travel in Concur."),
        (f"<context>{CONTEXT}</context>\n\nQuestion: {QUESTION}", "quoted", "You book travel in Concur."),
        (f"Handbook passages:\n(none)\n\nQuestion: {QUESTION}", "vague", "Thank you for asking"),
        (QUESTION, "vague", "Thank you for asking"),
        (f"Validate the answer.\n\nQuestion: {QUESTION}\n\nAnswer: You book travel in Concur.", "verdict", "valid"),
        (f"Verify it.\nContext:\n{CONTEXT}\n\nQuestion: x\n\nAnswer: Bananas grow on Mars.", "verdict", "invalid: "),
    ],
)
def test_the_answer_follows_from_the_prompt(prompt: str, kind: str, said: str) -> None:
    found = answer(asked(prompt))
    assert (found.kind, said in found.text) == (kind, True)


def test_a_long_system_prompt_full_of_trigger_words_changes_nothing() -> None:
    """Policies speak of tone, labels and validation; what is asked stands in the last turn."""
    policies = "Check whether the tone guidelines fit. Classify documents. Labels: a, b, c. " * 60
    assert answer(asked(f"Context:\n{CONTEXT}\n\nQuestion: {QUESTION}", policies)).kind == "quoted"


def test_a_verdict_is_json_when_json_is_asked() -> None:
    found = answer(asked("Validate.\n\nQuestion: travel?\n\nAnswer: travel."), wants_json=True)
    assert json.loads(found.text) == {"valid": True, "reason": ""}


def test_labels_are_read_from_lists_and_bullets() -> None:
    assert labels_in("Intents: access, time tracking, other. Reply with the label only.") == [
        "access",
        "time tracking",
        "other",
    ]
    assert labels_in("Pick one:\n- red\n- green\n") == ["red", "green"]
    assert best_label(["red", "green"], "nothing of the sort") == "green"


@pytest.mark.parametrize("empty", ["(none)", "none", "[]", "", "N/A"])
def test_an_empty_context_is_none(empty: str) -> None:
    assert context_in(f"Documents:\n{empty}\n\nQuestion: {QUESTION}") == ""


@given(st.text(max_size=300))
def test_any_prompt_gets_some_answer(text: str) -> None:
    assert answer(asked(text)).text


@given(st.lists(st.sampled_from(["travel", "leave", "card", "team", "hours"]), min_size=1, max_size=8), st.randoms())
def test_vectors_have_length_one_and_ignore_word_order(some: list[str], rng: object) -> None:
    shuffled = sorted(some)
    vector = embed(" ".join(some))
    assert math.isclose(sum(x * x for x in vector), 1.0)
    assert vector == pytest.approx(embed(" ".join(shuffled)))


def test_cosine_follows_shared_words() -> None:
    def cosine(a: str, b: str) -> float:
        return sum(x * y for x, y in zip(embed(a), embed(b), strict=True))

    asked_for = "how to book travel"
    near, related, far = "booking travel", "travel card limits", "annual leave balance"
    assert cosine(asked_for, near) > cosine(asked_for, related) > cosine(asked_for, far)


def test_a_question_heading_finds_its_section_among_all() -> None:
    """Real retrieval: 117 headings of the handbook that are questions, 1,234 sections."""
    import numpy as np

    sections = [json.loads(line) for line in SECTIONS.read_text(encoding="utf-8").splitlines()]
    matrix = np.array([embed(f"{s['title']}: {s['heading']}\n{s['text']}") for s in sections])
    questions = [(i, s["heading"]) for i, s in enumerate(sections) if s["heading"].endswith("?")]
    found = sum(i in np.argsort(-(matrix @ np.array(embed(q))))[:5] for i, q in questions)
    assert found / len(questions) >= 0.8


@given(st.floats(1, 6000), st.floats(0.1, 60), st.floats(0.5, 100), st.lists(st.floats(0, 0.5), max_size=60))
def test_a_bucket_never_gives_more_than_its_limit(
    per_min: float, burst_s: float, speed: float, steps: list[float]
) -> None:
    """Over any time it passes at most its capacity and what was refilled."""
    bucket = Bucket(per_min, burst_s, speed, now_s=0.0)
    now_s, passed = 0.0, 0
    for step_s in steps:
        now_s += step_s
        while bucket.wait_s(1.0, now_s) <= 0 and passed < 10_000:
            bucket.take(1.0, now_s)
            passed += 1
    assert passed <= bucket.capacity + now_s * bucket.per_s + 1e-6


def test_a_bucket_says_how_long_to_wait() -> None:
    bucket = Bucket(60.0, burst_s=1.0, speed=2.0, now_s=0.0)
    bucket.take(1.0, 0.0)
    assert bucket.wait_s(1.0, 0.0) == pytest.approx(0.5)
    assert bucket.wait_s(1.0, 0.5) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.012, "12ms"), (1.0, "1s"), (1.5, "1.5s"), (360.0, "6m0s"), (61.25, "1m1.25s")]
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


def test_draws_depend_on_seed_prompt_and_occurrence_alone() -> None:
    model = PRESETS["gpt-4o"]

    def pace(seed: int = 1, prompt: bytes = b"p", occurrence: int = 0) -> tuple[float, int]:
        draw = Draw(seed, "gpt-4o", prompt, occurrence)
        return draw.ttft_s(model), draw.output_tokens(model, with_context=True)

    assert pace() == pace()
    assert len({pace(), pace(seed=2), pace(prompt=b"q"), pace(occurrence=1)}) == 4


def test_draws_have_the_quantiles_they_are_given() -> None:
    model = PRESETS["gpt-4o"]
    times = sorted(Draw(7, "m", str(i).encode(), 0).ttft_s(model) for i in range(4000))
    assert times[2000] == pytest.approx(model.ttft_p50_s, rel=0.05)
    assert times[3800] == pytest.approx(model.ttft_p95_s, rel=0.1)


def test_a_file_overrides_presets_field_by_field(tmp_path: Path) -> None:
    path = tmp_path / "provider.toml"
    path.write_text(
        '[models."gpt-4o"]\nrequests_per_min = 600\n[models.mine]\nttft_p50_s = 0.1\n[faults]\nerror_500 = 0.1\n'
    )
    config = load_config(path)
    assert config.models["gpt-4o"] == msgspec.structs.replace(PRESETS["gpt-4o"], requests_per_min=600.0)
    assert config.models["mine"] == Model(ttft_p50_s=0.1)
    assert config.faults.error_500 == 0.1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[models", "not valid TOML"),
        ('[models."gpt-4o"]\nttft_s = 1', r"models\.gpt-4o: .*ttft_s"),
        ('[models."gpt-4o"]\nttft_p50_s = 2.0\nttft_p95_s = 1.0', "not above ttft_p95_s"),
        ("[faults]\nerror_500 = 2.0", "0 to 1"),
        ("surprise = 1", "surprise"),
        ("models = 3", "provider.toml"),
    ],
)
def test_a_wrong_file_is_one_sentence_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "provider.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(path)
