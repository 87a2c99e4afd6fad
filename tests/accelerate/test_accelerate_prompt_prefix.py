"""What keeps a provider's prompt cache from working is found, priced, and never shown."""

import gc
import pickle
import random
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.accelerate.prompts.breaks import kind_of, masked
from paceline.accelerate.prompts.prefix import PrefixWatch
from paceline.accelerate.prompts.prefix_counts import minimum_tokens
from paceline.accelerate.prompts.prefix_report import PrefixReport
from paceline.wire.call import Usage
from paceline.wire.dialects import dialect_of

RULES = " ".join(f"Rule {n}: staff shall file form {n * 7} before the month ends." for n in range(120))  # 1,700 tokens
MODEL = "gpt-4o-mini"


def chat(system: str, question: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return {"model": MODEL, "messages": messages, **fields}


def watched(
    calls: list[dict[str, Any]], *, every_s: float = 6.0, cached: int | None = None, dialect: str = "openai"
) -> list[PrefixReport]:
    """Reports after these calls, one each `every_s`."""
    watch = PrefixWatch(now_s=lambda: 0.0)
    path = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}.get(dialect, "/v1/models/m:generateContent")
    known = dialect_of(path)
    assert known is not None
    for i, call in enumerate(calls):
        info = known[0].describe("llm", path, call, b"")
        prompt = watch.read(dialect, call, template=str(info.template_hash), model=call.get("model", MODEL))
        usage = None if cached is None else Usage(input_tokens=prompt.tokens if prompt else 0, cached_tokens=cached)
        watch.saw(prompt, usage, at_s=i * every_s)
    return watch.report()


def test_a_timestamp_in_the_system_prompt_is_found_and_priced() -> None:
    calls = [
        chat(f"You are the desk. Now: 2025-03-0{n % 9 + 1}T10:{n:02}:07. {RULES}", f"Is case {n} open?")
        for n in range(40)
    ]
    [report] = watched(calls, cached=0)
    assert (report.breaker_field, report.breaker_kind) == ("messages[0]", "timestamp")
    assert report.breaker_pattern == "0-0-0a0:0:0."
    assert report.breaker_share == 1.0
    assert report.stable_tokens == pytest.approx(8, abs=2)
    assert report.servable_tokens == 0
    rules_tokens = len(RULES) / 4
    assert report.would_serve_tokens == pytest.approx(rules_tokens, abs=140), "in whole steps of 128 tokens"
    assert report.calls_per_min == pytest.approx(10.0)
    price_gap = (0.15 - 0.075) / 1e6
    assert report.saves_usd_per_1000 == pytest.approx(report.saves_tokens * price_gap * 1000)
    assert report.saves_usd_per_hour == pytest.approx(report.saves_tokens * price_gap * 600)
    assert report.sentence.startswith("A timestamp in messages[0] differs from call to call after")
    assert report.sentence.endswith("USD less per 1,000 calls.")


@pytest.mark.parametrize(
    ("piece", "kind"),
    [
        (lambda n: ["Ada", "Bo Lind", "Cem"][n % 3], "name"),
        (lambda n: f"{random.Random(n).getrandbits(128):032x}", "id"),
        (lambda n: f"req_{n}x{n * 977}", "id"),
        (lambda n: f"{n}", "number"),
        (lambda n: f"user{n}@corp.example", "e-mail address"),
    ],
    ids=["name", "hex", "request", "number", "mail"],
)
def test_pieces_in_the_very_first_words_are_found_too(piece: Any, kind: str) -> None:
    """Such a template has another hash in each call; it is known by the end of its system prompt."""
    reports = watched([chat(f"For {piece(n)} : {RULES}", f"q{n}") for n in range(20)])
    assert len(reports) == 1
    assert (reports[0].breaker_field, reports[0].breaker_kind) == ("messages[0]", kind)
    assert reports[0].calls == 20


def test_instructions_after_the_question_are_found() -> None:
    calls = [chat("Help.", f"Question {n}: may I have {n} days off in May?\n\n{RULES}") for n in range(20)]
    [report] = watched(calls)
    assert report.breaker_field == "messages[1]"
    assert report.saves_tokens > 1024


def test_a_stable_prompt_has_nothing_to_move() -> None:
    [report] = watched([chat(RULES, f"And {n * 37}, what of that?") for n in range(20)], cached=1536)
    assert report.breaker_field is None
    assert report.servable_tokens == pytest.approx(1664 * 19 / 20, rel=0.1), "all but the first call"
    assert report.cached_tokens == 1536
    assert "and it says it served 1,536" in report.sentence


def test_calls_far_apart_find_the_cache_empty() -> None:
    [report] = watched([chat(f"{n} {RULES}", "q") for n in range(20)], every_s=600)
    assert report.servable_tokens == 0
    assert report.saves_tokens == 0, "moving the number would not help: the provider forgets in between"


def test_a_short_prompt_is_said_to_be_too_short() -> None:
    [report] = watched([chat("Be kind.", f"Say {n}") for n in range(5)])
    assert report.sentence.endswith("the provider caches prefixes from 1,024 on.")
    assert report.saves_usd_per_1000 is None


def test_a_conversation_that_grows_is_served_from_its_last_call() -> None:
    messages: list[dict[str, Any]] = [{"role": "system", "content": RULES}]
    calls = []
    for n in range(6):
        messages = [*messages, {"role": "user", "content": f"question {n} " * 100}]
        calls.append({"model": MODEL, "messages": messages})
        messages = [*messages, {"role": "assistant", "content": f"answer {n} " * 100}]
    [report] = watched(calls)
    assert report.breaker_field is None
    assert report.servable_tokens > 0.6 * report.prompt_tokens


def test_anthropic_needs_a_mark() -> None:
    calls = [
        {"model": "claude-sonnet-4-5", "system": RULES, "messages": [{"role": "user", "content": f"q {n}"}]}
        for n in range(10)
    ]
    [report] = watched(calls, dialect="anthropic", cached=0)
    assert "No part of the prompt is marked with cache_control" in report.sentence
    marked = [{**call, "system": [{"type": "text", "text": RULES, "cache_control": {}}]} for call in calls]
    [report] = watched(marked, dialect="anthropic", cached=0)
    assert "cache_control" not in report.sentence


def test_tools_come_first() -> None:
    """Tools stand before the system prompt in what the provider reads, so one that varies breaks everything."""
    calls = [chat(RULES, "q", tools=[{"type": "function", "function": {"name": f"tool_{n}x"}}]) for n in range(9)]
    [report] = watched(calls)
    assert report.breaker_field == "tools"


def test_gemini_is_read() -> None:
    calls = [
        {"systemInstruction": {"parts": [{"text": f"At 10:{n:02} {RULES}"}]}, "contents": [{"parts": [{"text": "q"}]}]}
        for n in range(9)
    ]
    [report] = watched([{**call, "model": "gemini-2.5-flash"} for call in calls], dialect="gemini")
    assert (report.breaker_field, report.breaker_kind) == ("systemInstruction", "time")


def test_a_model_without_a_price_has_no_saving_in_money() -> None:
    calls = [{**chat(f"{n} {RULES}", "q"), "model": "home-made"} for n in range(9)]
    [report] = watched(calls)
    assert report.saves_tokens > 0
    assert report.saves_usd_per_1000 is None


def test_the_dearest_template_comes_first() -> None:
    cheap = [chat(f"Cheap {n} {RULES[:5000]}", "q") for n in range(9)]
    dear = [chat(f"Dear {n} {RULES}", "q") for n in range(9)]
    first, second = watched([call for pair in zip(cheap, dear, strict=True) for call in pair])
    assert first.saves_tokens > second.saves_tokens


def test_tenants_do_not_share_what_the_provider_keeps_apart() -> None:
    watch = PrefixWatch(now_s=lambda: 0.0)
    for n in range(4):
        watch.saw(watch.read("openai", chat(RULES, "q"), template="t", model=MODEL, tenant=bytes([n])))
    [report] = watch.report()
    assert report.servable_tokens == 0


def test_no_word_of_a_prompt_is_kept() -> None:
    """Neither the counts nor the reports hold any text."""
    secret = "Zebrafish"
    watch = PrefixWatch()
    for n in range(20):
        call = chat(f"Dear {secret}{'xyz'[n % 3]} {n} {RULES}", f"my {secret} password is p@$$w0rd{n}")
        watch.saw(watch.read("openai", call, template=f"t{n % 2}", model=MODEL))
    held = pickle.dumps(watch.report()) + repr(list(watch._templates.values())).encode()
    assert secret.encode() not in held
    assert b"p@$$w0rd" not in held
    assert b"staff" not in held


@pytest.mark.slow
def test_memory_is_bounded() -> None:
    watch = PrefixWatch(max_templates=10, max_blocks=100)
    for n in range(500):
        call = chat(f"t{n} " * 600, "q")
        watch.saw(watch.read("openai", call, template=f"t{n}", model=MODEL))
    gc.collect()
    assert len(watch) == 10
    assert len(watch._blocks) == 100
    assert len(watch._tails) <= 10
    assert sum(sys.getsizeof(w.words) for t in watch._templates.values() for w in t.kept) < 10 * 40_000


@pytest.mark.parametrize(
    ("piece", "kind", "pattern"),
    [
        ("2025-06-01T12:30:05Z.", "timestamp", "0-0-0a0:0:0a."),
        ("2025-06-01", "date", "0-0-0"),
        ("Monday, June 3, 2025", "date", "a, a 0, 0"),
        ("12:30", "time", "0:0"),
        ("550e8400-e29b-41d4-a716-446655440000", "id", "0a0-a0a-0a0-a0-0"),
        ("session_12ab9", "id", "a_0a0"),
        ("1,204.50", "number", "0,0.0"),
        ("Ada Lovelace", "name", "a a"),
        ("pässwörd!§$", "name", "a?"),
        ("https://x.example/a?b=c", "address", "a://a.a/a?a?a"),
        ("how do I claim the costs of my trip", "text", "a .. "),
    ],
)
def test_a_piece_is_shown_as_kind_and_shape(piece: str, kind: str, pattern: str) -> None:
    assert kind_of(piece) == kind
    assert masked(piece).startswith(pattern.rstrip())


@pytest.mark.slow
@given(st.text(max_size=200))
def test_a_mask_shows_no_letter_and_no_digit(piece: str) -> None:
    assert set(masked(piece)) <= set("-:/.,+@_ aA0?")
    assert len(masked(piece)) <= 40


_words = st.lists(st.sampled_from([f"w{n}" for n in range(12)]), max_size=60).map(" ".join)


@pytest.mark.slow
@given(st.lists(st.tuples(_words, _words), min_size=1, max_size=12))
def test_any_prompts_are_counted(prompts: list[tuple[str, str]]) -> None:
    """Figures stay within the prompts they are of."""
    watch = PrefixWatch(now_s=lambda: 0.0)
    for system, question in prompts:
        watch.saw(watch.read("openai", chat(system, question), template="t", model=None))
    for report in watch.report():
        assert 0 <= report.servable_tokens <= report.prompt_tokens
        assert 0 <= report.stable_tokens <= max(len(s) + len(q) + 12 for s, q in prompts), "roles count too"
        assert report.sentence


@pytest.mark.parametrize(
    "call", [{}, {"messages": 3}, {"messages": [3, {"content": None}]}, {"system": 3}, {"tools": [1]}]
)
@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini", "unheard of"])
def test_shapes_not_known_do_no_harm(dialect: str, call: dict[str, Any]) -> None:
    watch = PrefixWatch()
    for _ in range(3):
        watch.saw(watch.read(dialect, call, template="t", model=None))
    watch.report()


@pytest.mark.parametrize(
    ("dialect", "model", "tokens"),
    [
        ("openai", "gpt-5", 1024),
        ("anthropic", "claude-sonnet-4-5", 1024),
        ("anthropic", "claude-haiku-4-5", 4096),
        ("anthropic", "claude-3-5-haiku-latest", 2048),
        ("gemini", "gemini-2.5-pro", 4096),
        ("gemini", "gemini-2.5-flash", 1024),
    ],
)
def test_each_provider_has_a_shortest_prefix(dialect: str, model: str, tokens: int) -> None:
    assert minimum_tokens(dialect, model) == tokens
