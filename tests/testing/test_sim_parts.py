"""The pure parts of the simulated provider: vectors, buckets, draws, configuration."""

import itertools
import json
import math
import statistics
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.errors import ConfigError
from paceline.testing import PRESETS, Faults, Model, ProviderConfig, load_config
from paceline.testing.buckets import Bucket, Quota, Refused, go_duration
from paceline.testing.dialects.openai import OpenAIHouse
from paceline.testing.draws import Draw
from paceline.testing.vectors import embed

SECTIONS = Path(__file__).parents[2] / "workloads/support/data/handbook18f_sections.jsonl"


@given(st.lists(st.sampled_from(["travel", "leave", "card", "team", "hours"]), min_size=1, max_size=8), st.randoms())
def test_vectors_have_length_one_and_ignore_word_order(some: list[str], rng: object) -> None:
    shuffled = sorted(some)
    vector = embed(" ".join(some))
    assert math.isclose(sum(x * x for x in vector), 1.0)
    assert vector == pytest.approx(embed(" ".join(shuffled)))


def test_texts_in_any_writing_differ() -> None:
    """Words need not be ASCII, nor stand apart."""
    some = [
        "\u65c5\u884c\u306e\u4e88\u7d04",
        "\u7d66\u4e0e",
        "r\u00e9server un voyage",
        "\u043e\u0442\u043f\u0443\u0441\u043a",
        "",
    ]
    assert len({tuple(embed(text)) for text in some}) == len(some)


def test_cosine_follows_shared_words() -> None:
    def cosine(a: str, b: str) -> float:
        return sum(x * y for x, y in zip(embed(a), embed(b), strict=True))

    asked_for = "how to book travel"
    near, related, far = "booking travel", "travel card limits", "annual leave balance"
    assert cosine(asked_for, near) > cosine(asked_for, related) > cosine(asked_for, far)


@pytest.mark.slow
def test_a_question_heading_finds_its_section_among_all() -> None:
    """Real retrieval: 117 headings of the handbook that are questions, 1,234 sections."""
    import numpy as np

    if not SECTIONS.exists():
        pytest.skip("the handbook is not there")
    sections = [json.loads(line) for line in SECTIONS.read_text(encoding="utf-8").splitlines()]
    matrix = np.array([embed(f"{s['title']}: {s['heading']}\n{s['text']}") for s in sections])
    questions = [(i, s["heading"]) for i, s in enumerate(sections) if s["heading"].endswith("?")]
    found = sum(i in np.argsort(-(matrix @ np.array(embed(q))))[:5] for i, q in questions)
    assert found / len(questions) >= 0.9


@given(st.floats(1, 6000), st.floats(0.1, 60), st.lists(st.floats(0, 0.5), max_size=60))
def test_a_bucket_never_gives_more_than_its_limit(per_min: float, burst_s: float, steps: list[float]) -> None:
    """Over any time it passes at most its capacity and what was refilled."""
    bucket = Bucket(per_min, burst_s, now_s=0.0)
    now_s, passed = 0.0, 0
    for step_s in steps:
        now_s += step_s
        while bucket.wait_s(1.0, now_s) <= 0 and passed < 10_000:
            bucket.take(1.0, now_s)
            passed += 1
    assert passed <= bucket.capacity + now_s * per_min / 60 + 1e-3


@given(st.floats(1, 6000), st.floats(0.1, 60), st.integers(1, 50), st.floats(0, 100))
def test_whoever_waits_as_told_is_admitted(per_min: float, burst_s: float, taken: int, later_s: float) -> None:
    bucket = Bucket(per_min, burst_s, now_s=0.0)
    for _ in range(taken):
        bucket.take(1.0, 0.0)
    wait_s = bucket.wait_s(1.0, later_s)
    assert bucket.wait_s(1.0, later_s + wait_s) == 0.0
    assert wait_s == 0.0 or bucket.wait_s(1.0, later_s + wait_s * 0.99) > 0.0


def test_a_request_waits_for_the_scarcer_of_both_limits() -> None:
    """60 requests and 6,000 tokens a minute, bursts of a second: one request, 100 tokens at once."""
    quota = Quota(Model(requests_per_min=60, tokens_per_min=6000, burst_s=1.0), 0.0)
    quota.admit(300, 0.0)  # more than a full bucket: let in, and paid off afterwards
    with pytest.raises(Refused) as refused:
        quota.admit(50, 0.0)
    assert refused.value.what == "tokens"
    assert refused.value.wait_s == pytest.approx(2.5)
    quota.admit(50, 2.5)


def test_a_request_larger_than_a_minute_never_fits() -> None:
    quota = Quota(Model(tokens_per_min=6000), 0.0)
    with pytest.raises(Refused) as refused:
        quota.admit(6001, 0.0)
    assert refused.value.wait_s == math.inf


@pytest.mark.parametrize(("failed_count", "admitted"), [(False, True), (True, False)])
def test_refused_requests_count_only_when_told(failed_count: bool, admitted: bool) -> None:
    """Asked ten times a second for a second, a limit of one a second lets the next in, or starves it."""
    quota = Quota(Model(requests_per_min=60, burst_s=1.0), 0.0, failed_count=failed_count)
    quota.admit(1, 0.0)
    for tenth in range(1, 10):
        with pytest.raises(Refused):
            quota.admit(1, tenth / 10)
    if admitted:
        quota.admit(1, 1.0)
    else:
        with pytest.raises(Refused):
            quota.admit(1, 1.0)


def test_what_failed_after_admission_is_given_back() -> None:
    quota = Quota(Model(requests_per_min=60, tokens_per_min=6000, burst_s=1.0), 0.0)
    quota.admit(100, 0.0)
    quota.give_back(100, 0.0)
    quota.admit(100, 0.0)


def test_headers_say_what_is_left() -> None:
    quota = Quota(Model(requests_per_min=600, tokens_per_min=60_000), 0.0)
    quota.admit(1000, 0.0)
    headers = OpenAIHouse().limit_headers(quota.limits(0.0, speed=10.0))
    assert {name.decode(): value.decode() for name, value in headers} == {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "10ms",
        "x-ratelimit-limit-tokens": "60000",
        "x-ratelimit-remaining-tokens": "5000",
        "x-ratelimit-reset-tokens": "100ms",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.012, "12ms"),
        (1.0, "1s"),
        (1.5, "1.5s"),
        (360.0, "6m0s"),
        (61.25, "1m1.25s"),
        (59.9999, "1m0s"),
        (3600.0, "1h0m0s"),
    ],
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
    draws = [Draw(7, "m", str(i).encode(), 0) for i in range(4000)]
    times = sorted(draw.ttft_s(model) for draw in draws)
    assert times[2000] == pytest.approx(model.ttft_p50_s, rel=0.05)
    assert times[3800] == pytest.approx(model.ttft_p95_s, rel=0.1)
    lengths = sorted(draw.output_tokens(model, with_context=True) for draw in draws)
    assert lengths[2000] == pytest.approx(model.output_p50_tokens, rel=0.05)
    assert lengths[3600] == pytest.approx(model.output_p90_tokens, rel=0.1)
    vaguer = sorted(draw.output_tokens(model, with_context=False) for draw in draws)
    assert vaguer[2000] == pytest.approx(model.output_p50_tokens * model.no_context_ratio, rel=0.05)


def test_token_gaps_are_gamma_and_add_up_to_the_plain_answers_time() -> None:
    """Mean and coefficient of variation of single gaps; a stream's last token comes when a plain answer would."""
    model, gaps = PRESETS["gpt-4o"], []
    for i in range(200):
        draw = Draw(3, "m", str(i).encode(), 0)
        times = draw.token_times_s(model, 50)
        assert times[-1] == pytest.approx(draw.writing_s(model, 50))
        assert times == sorted(times)
        gaps += [b - a for a, b in itertools.pairwise(times)]
    assert statistics.fmean(gaps) == pytest.approx(model.token_gap_s, rel=0.03)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(0.5, abs=0.03)


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
        ("[models]\nmine = 3", "provider.toml"),
        ("[models.mine]\ndimensions = 0", "dimensions must be at least 1"),
        ("[faults]\nerror_500 = 0.6\ntimeout = 0.6", "at most 1 together"),
        ("[models.mine.faults]\nerror = 0.6", r"models\.mine: .*unknown field `error`"),
    ],
)
def test_a_wrong_file_is_one_sentence_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "provider.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(path)


def test_a_configuration_can_be_written_in_python() -> None:
    config = ProviderConfig.of({"models": {"gpt-4o": {"requests_per_min": 60, "faults": {"error_500": 1.0}}}})
    assert config.models["gpt-4o"].requests_per_min == 60
    assert config.models["gpt-4o"].ttft_p50_s == PRESETS["gpt-4o"].ttft_p50_s
    assert config.models["gpt-4o"].faults == Faults(error_500=1.0)
    assert config.models["gpt-4"] == PRESETS["gpt-4"]
    with pytest.raises(ValueError, match="unknown field `fault`"):
        ProviderConfig.of({"fault": {}})
