"""What providers say about their limits, in all its spellings."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.accelerate.limits import Signal, signal_of
from paceline.accelerate.limits.spans import duration_s

NOW_S = 1_800_000_000.0  # 2027-01-15T08:00:00Z


def headers(**named: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]


@pytest.mark.parametrize(
    ("given_headers", "wait_s"),
    [
        (headers(retry_after="2"), 2.0),
        (headers(retry_after="2", retry_after_ms="250"), 0.25),
        (headers(retry_after="2", retry_after_ms="soon"), 2.0),
        (headers(retry_after="0.5"), 0.5),
        (headers(retry_after="Fri, 15 Jan 2027 08:00:07 GMT"), 7.0),
        (headers(retry_after="Fri, 15 Jan 2027 07:59:00 GMT"), 0.0),
        (headers(retry_after="soon"), None),
        (headers(retry_after="-1"), None),
        (headers(retry_after="nan"), None),
        (headers(retry_after="inf"), None),
        ([], None),
    ],
)
def test_retry_after_is_read_in_all_its_spellings(
    given_headers: list[tuple[bytes, bytes]], wait_s: float | None
) -> None:
    """Milliseconds first, then seconds, then a date; nonsense is nothing."""
    assert signal_of(429, given_headers, b"", NOW_S).retry_after_s == wait_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12ms", 0.012),
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("1h30m", 5400.0),
        ("10h17m5.72s", 37025.72),
        ("56.6s", 56.6),
        ("250µs", 0.00025),
        ("2d", 172800.0),
        ("", None),
        ("6", None),
        ("6x", None),
        ("-1s", None),
        ("s", None),
    ],
)
def test_durations_as_go_and_protobuf_write_them(text: str, seconds: float | None) -> None:
    """And nothing else."""
    assert duration_s(text) == (None if seconds is None else pytest.approx(seconds))


def test_openai_states_both_limits() -> None:
    """`x-ratelimit-*`; resets are Go durations."""
    signal = signal_of(
        200,
        headers(
            x_ratelimit_limit_requests="5000",
            x_ratelimit_remaining_requests="4999",
            x_ratelimit_reset_requests="12ms",
            x_ratelimit_limit_tokens="800000",
            x_ratelimit_remaining_tokens="799000",
            x_ratelimit_reset_tokens="6m0s",
        ),
        None,
        NOW_S,
    )
    assert (signal.limit_requests, signal.remaining_requests, signal.reset_requests_s) == (5000, 4999, 0.012)
    assert (signal.limit_tokens, signal.remaining_tokens, signal.reset_tokens_s) == (800_000, 799_000, 360)


def test_anthropic_states_moments_and_the_scarcer_of_its_token_limits() -> None:
    """RFC 3339 resets; without the combined `tokens` headers the direction with less left counts."""
    sent = headers(
        anthropic_ratelimit_requests_limit="50",
        anthropic_ratelimit_requests_remaining="49",
        anthropic_ratelimit_requests_reset="2027-01-15T08:00:01.200Z",
        anthropic_ratelimit_input_tokens_limit="30000",
        anthropic_ratelimit_input_tokens_remaining="27000",
        anthropic_ratelimit_input_tokens_reset="2027-01-15T08:00:06Z",
        anthropic_ratelimit_output_tokens_limit="8000",
        anthropic_ratelimit_output_tokens_remaining="2000",
        anthropic_ratelimit_output_tokens_reset="2027-01-15T08:00:45Z",
    )
    signal = signal_of(200, sent, None, NOW_S)
    assert (signal.limit_requests, signal.remaining_requests) == (50, 49)
    assert signal.reset_requests_s == pytest.approx(1.2)
    assert (signal.limit_tokens, signal.remaining_tokens, signal.reset_tokens_s) == (8000, 2000, 45)
    combined = headers(anthropic_ratelimit_tokens_limit="38000", anthropic_ratelimit_tokens_remaining="20000")
    assert signal_of(200, sent + combined, None, NOW_S).limit_tokens == 38000


def gemini(*quota_ids: str, delay: str | None = "56.6s", message: str = "You exceeded your current quota.") -> bytes:
    violations = [{"quotaMetric": "generativelanguage.googleapis.com/x", "quotaId": name} for name in quota_ids]
    details: list[dict[str, object]] = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": violations},
        {"@type": "type.googleapis.com/google.rpc.Help", "links": []},
    ]
    if delay is not None:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    error = {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": message, "details": details}
    return msgspec.json.encode({"error": error})


def anthropic(message: str) -> bytes:
    return msgspec.json.encode({"type": "error", "error": {"type": "rate_limit_error", "message": message}})


def test_gemini_says_it_in_the_body() -> None:
    """RetryInfo.retryDelay; else the text; a list around it is no hindrance."""
    per_minute = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
    signal = signal_of(429, [], gemini(per_minute), NOW_S)
    assert (signal.retry_after_s, signal.quota_exhausted) == (56.6, False)
    text = gemini(per_minute, delay=None, message="Quota exceeded. Please retry in 10h17m5.72s.")
    assert signal_of(429, [], text, NOW_S).retry_after_s == pytest.approx(37025.72)
    assert signal_of(429, [], b"[" + gemini(per_minute) + b"]", NOW_S).retry_after_s == 56.6


@pytest.mark.parametrize(
    ("body", "exhausted"),
    [
        (b'{"error":{"code":"insufficient_quota","type":"insufficient_quota","message":"..."}}', True),
        (b'{"error":{"code":"rate_limit_exceeded","message":"Please try again in 20ms."}}', False),
        (
            anthropic("This request would exceed your account's monthly spend limit."),
            True,
        ),
        (
            anthropic("This request would exceed your account's rate limit. Please try again later."),
            False,
        ),
        (
            gemini(
                "GenerateContentInputTokensPerModelPerMinute-FreeTier",
                "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
            ),
            True,
        ),
        (b"<html>", False),
        (b"", False),
    ],
    ids=["openai-credit", "openai-rate", "anthropic-spend", "anthropic-rate", "gemini-day", "not-json", "empty"],
)
def test_some_refusals_no_waiting_helps(body: bytes, exhausted: bool) -> None:
    """Credit, spend limits and daily quotas."""
    assert signal_of(429, [], body, NOW_S).quota_exhausted is exhausted


def test_azure_sends_limits_that_are_none() -> None:
    """-1 and 0 are not limits, and what is left of them is not known either (openai-dotnet#838)."""
    for oddity in ("-1", "0", "", "none", "nan", "1e999"):
        sent = headers(x_ratelimit_limit_tokens=oddity, x_ratelimit_remaining_tokens="0")
        assert signal_of(200, sent, None, NOW_S) == Signal(status=200)
    sent = headers(x_ratelimit_limit_tokens="1000", x_ratelimit_remaining_tokens="-1")
    assert signal_of(200, sent, None, NOW_S) == Signal(status=200, limit_tokens=1000)


def test_a_good_answer_never_asks_to_wait() -> None:
    """`retry-after` means something with 429 and 5xx only."""
    assert signal_of(200, headers(retry_after="5"), None, NOW_S).retry_after_s is None
    assert signal_of(503, headers(retry_after="5"), None, NOW_S).retry_after_s == 5.0


NAMES = st.sampled_from(
    [
        b"retry-after",
        b"retry-after-ms",
        b"x-ratelimit-limit-requests",
        b"x-ratelimit-remaining-requests",
        b"x-ratelimit-reset-requests",
        b"anthropic-ratelimit-tokens-limit",
        b"anthropic-ratelimit-tokens-reset",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "details", "@type", "violations", "quotaId", "retryDelay", "message", "code"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(
    st.sampled_from([200, 429, 500, 529]),
    st.lists(st.tuples(NAMES, st.binary(max_size=24)), max_size=8),
    st.binary(max_size=40) | JSON.map(msgspec.json.encode),
)
def test_whatever_a_stranger_sends_is_read_or_ignored(
    status: int, sent: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """Never an exception, never a negative or endless wait, never a limit of nothing."""
    signal = signal_of(status, sent, body, NOW_S)
    assert signal.retry_after_s is None or 0 <= signal.retry_after_s < float("inf")
    assert signal.limit_requests is None or signal.limit_requests > 0
    assert signal.remaining_requests is None or signal.remaining_requests >= 0
