"""The pure parts of routing: policies, rules, targets, budget, breaker, latency, opening, patience."""

import math
import random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.accelerate.routing_builders import DEAD_URL, EVENTS, ROLE, delta

from paceline.accelerate.routing.breaker import Breaker
from paceline.accelerate.routing.budget import Budget
from paceline.accelerate.routing.deadline import patience_of
from paceline.accelerate.routing.lanes import Lane, pick
from paceline.accelerate.routing.latency import PeakEwma, RecentQuantile
from paceline.accelerate.routing.make import make_dispatcher
from paceline.accelerate.routing.opening import FAILED, HOLD, PASS, Opening
from paceline.accelerate.routing.policy import BreakerPolicy, Deployment, HedgePolicy, RetryPolicy, Route, RoutingPolicy
from paceline.accelerate.routing.providers import Clients, Providers, without_version
from paceline.accelerate.routing.replies import error_reply
from paceline.accelerate.routing.rules import Choice, Rules
from paceline.accelerate.routing.targets import Target, deployment_target, provider_targets
from paceline.errors import ConfigError, Overloaded, UpstreamTimeout
from paceline.wire.call import Dialect
from paceline.wire.client import HttpClient
from paceline.wire.dialects import DIALECTS

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
AZURE = Deployment(
    name="azure",
    model="gpt-4o",
    url="https://res.openai.azure.com/openai/deployments/four",
    key_env="AZURE_KEY",
    query={"api-version": "2024-10-21"},
)


# --- policies ---------------------------------------------------------------------------------------------------------


def decode(text: str) -> RoutingPolicy:
    policy: RoutingPolicy = msgspec.toml.decode(text.encode(), type=RoutingPolicy)
    return policy


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[routes]]\nstep = 'a'", "either a model or a group"),
        ("[[routes]]\nmodel = 'a'\ngroup = 'b'", "either a model or a group"),
        ("[[routes]]\ngroup = 'b'", "the group 'b', which has no deployment"),
        ("[[routes]]\nmodel = 'a'\nmin_input_tokens = 9\nmax_input_tokens = 8", "must not be above max_input_tokens"),
        ("[[deployments]]\nname = 'a'\nmodel = 'm'\nurl = 'http://x'\nprovider = 'cohere'", "got 'cohere'"),
        ("[[deployments]]\nname = 'a'\nmodel = 'm'\nurl = 'http://x'\nweight = 0", "weight must be above 0"),
        ("[[deployments]]\nname = 'a'\nmodel = 'm'\nurl = 'http://x'\nkey_env = 'K'\nkeyless = true", "contradict"),
        ("[[deployments]]\nname = 'openai'\nmodel = 'm'\nurl = 'http://x'", "that is the provider itself"),
        ("[[deployments]]\nname = 'a'\nmodel = 'm'\nurl = 'http://x'\nheaders = {x = \"a\\nb: c\"}", "not a header"),
        ("[aliases]\nfast = 'faster'\nfaster = 'm'", "names another alias"),
        ("[retries]\nattempts = 0", "attempts must be at least 1"),
        ("[retries]\nstatuses = [200]", "between 400 and 599"),
        ("[breaker]\nfailure_ratio = 0", "failure_ratio"),
        ("[hedge]\nafter_quantile = 1.0", "after_quantile"),
        ("[fallbacks]\nm = ['m']", "falls back to itself"),
        ("[fallbacks]\n'gpt-4o' = ['claude-sonnet-4-5']", "calls are not translated"),
        ("timeout_s = 0", "timeout_s must be above 0"),
        ("retry = 1", "retry"),
    ],
)
def test_a_mistake_is_one_sentence(text: str, problem: str) -> None:
    """When the file is read, not when a call comes."""
    with pytest.raises(msgspec.ValidationError, match=problem):
        decode(text)


def test_two_deployments_need_two_names() -> None:
    """They are told apart by it in logs, spans and limits."""
    with pytest.raises(ValueError, match="two deployments are called 'azure'"):
        RoutingPolicy(deployments=[AZURE, AZURE])


def test_a_fallback_in_the_same_dialect_is_accepted_whatever_its_family() -> None:
    """Claude behind an OpenAI-compatible server is asked in OpenAI's dialect."""
    claude = Deployment(name="c", model="claude-x", url="http://x/v1")
    assert RoutingPolicy(deployments=[claude], fallbacks={"gpt-4o": ["claude-x", "my-model"]})


def test_at_speed_durations_shrink_and_rates_grow() -> None:
    """Five times faster, and back again."""
    policy = RoutingPolicy(timeout_s=50.0, hedge=HedgePolicy(min_wait_s=1.0))
    fast = policy.at_speed(5.0)
    assert (fast.timeout_s, fast.retries.first_backoff_s, fast.retries.budget_per_s) == (10.0, 0.1, 5.0)
    assert (fast.breaker.window_s, fast.breaker.open_s, fast.hedge.min_wait_s, fast.latency_decay_s) == (2, 1, 0.2, 2)
    assert fast.at_speed(0.2) == policy


# --- rules ------------------------------------------------------------------------------------------------------------


RULES = Rules(
    RoutingPolicy(
        aliases={"fast": "gpt-4o-mini"},
        deployments=[msgspec.structs.replace(AZURE, group="eu")],
        routes=[
            Route(step="classify", model="fast"),
            Route(prompt="prompt:0011", model="gpt-4.1-nano"),
            Route(caller="team-a", asked_model="gpt-4o", group="eu"),
            Route(asked_model="gpt-4o", max_input_tokens=100, model="gpt-4o-mini"),
            Route(min_input_tokens=100_000, model="gpt-4.1"),
        ],
    )
)


@pytest.mark.parametrize(
    ("model", "said", "choice"),
    [
        pytest.param("gpt-4o", {"step": "classify"}, Choice(model="gpt-4o-mini"), id="step-then-alias"),
        pytest.param("gpt-4o", {"step": "classify", "caller": "team-a"}, Choice(model="gpt-4o-mini"), id="first-wins"),
        pytest.param("gpt-4o", {"prompt": "0011"}, Choice(model="gpt-4.1-nano"), id="bare-fingerprint"),
        pytest.param("gpt-4o", {"caller": "team-a"}, Choice(model="gpt-4o", group="eu"), id="group"),
        pytest.param("gpt-4o", {"input_tokens": 100}, Choice(model="gpt-4o-mini"), id="small"),
        pytest.param("gpt-4o", {"input_tokens": 101}, Choice(model="gpt-4o"), id="not-small"),
        pytest.param("fast", {"input_tokens": 100_000}, Choice(model="gpt-4.1"), id="large"),
        pytest.param("fast", {}, Choice(model="gpt-4o-mini"), id="alias"),
        pytest.param("other", {}, Choice(model="other"), id="left-alone"),
        pytest.param(None, {}, Choice(), id="no-model"),
    ],
)
def test_the_first_route_that_agrees_decides(model: str | None, said: dict[str, object], choice: Choice) -> None:
    """All given matchers must agree; the target may be an alias."""
    assert RULES.choose(model, **said) == choice  # type: ignore[arg-type]


def test_rules_say_what_they_look_at() -> None:
    """What remembers choices need not tell steps and callers apart when no route does."""
    assert (RULES.by_step, RULES.by_caller, RULES.is_empty) == (True, True, False)
    plain = Rules(RoutingPolicy())
    assert (plain.by_step, plain.by_caller, plain.is_empty) == (False, False, True)


# --- targets ----------------------------------------------------------------------------------------------------------


SENT = [(b"authorization", b"Bearer caller"), (b"openai-organization", b"org"), (b"x", b"y")]


@pytest.mark.parametrize(
    ("url", "asked", "sent"),
    [
        ("http://h", "/v1/chat/completions", "/v1/chat/completions"),
        ("http://h/v1", "/v1/chat/completions?a=b", "/v1/chat/completions?a=b"),
        ("http://h/v1/", "/v1/embeddings", "/v1/embeddings"),
        ("http://h/openai/v1", "/v1/responses", "/openai/v1/responses"),
        ("http://h/v1beta/openai", "/v1/chat/completions", "/v1beta/openai/chat/completions"),
        ("http://h/v1", "/openai/deployments/x/chat/completions", "/v1/chat/completions"),
        ("http://h/api/v4", "/chat/completions", "/api/v4/chat/completions"),
    ],
)
def test_an_openai_deployments_url_is_what_the_sdk_calls_base_url(url: str, asked: str, sent: str) -> None:
    """Its path stands in the place of the version."""
    target = deployment_target(Deployment(name="d", model="m", url=url), Clients(), {})
    assert target.word(asked, SENT, b"").target == sent
    assert target.word(asked, SENT, b"").headers == SENT  # no credential of its own: the caller's goes along


@pytest.mark.parametrize(
    ("provider", "url", "asked", "sent"),
    [
        ("anthropic", "http://h", "/v1/messages", "/v1/messages"),
        ("anthropic", "http://h/v1", "/v1/messages", "/v1/messages"),
        ("anthropic", "http://h/anthropic", "/v1/messages", "/anthropic/v1/messages"),
        ("gemini", "http://h/v1beta", "/v1beta/models/g:generateContent?key=k", "/v1beta/models/g:generateContent"),
    ],
)
def test_other_dialects_keep_the_version_of_the_path(provider: str, url: str, asked: str, sent: str) -> None:
    """And their credentials go into the header their dialect has; a key in the query is the caller's, and dropped."""
    each = Deployment(name="d", model="m", url=url, provider=provider, key_env="K")
    worded = deployment_target(each, Clients(), {"K": "own"}).word(asked, SENT, b"")
    header = {"anthropic": b"x-api-key", "gemini": b"x-goog-api-key"}[provider]
    assert (worded.target, worded.headers) == (sent, [(b"x", b"y"), (header, b"own")])


def test_azure_gets_its_path_its_version_and_its_header() -> None:
    """As AzureOpenAI writes them."""
    clients = Clients()
    target = deployment_target(AZURE, clients, {"AZURE_KEY": "secret"})
    worded = target.word("/v1/chat/completions?api-version=old&x=1", SENT, b"")
    assert worded.target == "/openai/deployments/four/chat/completions?x=1&api-version=2024-10-21"
    assert worded.headers == [(b"x", b"y"), (b"api-key", b"secret")]
    assert target.client.base_url == "https://res.openai.azure.com"
    assert target.has_own_key
    assert b"secret" not in (target.credential or b"")


def test_a_keyless_deployment_gets_no_credential() -> None:
    """A server of one's own needs none, and must not see anybody's."""
    each = Deployment(name="vllm", model="m", url="http://h/v1", keyless=True, headers={"X-Team": "a"})
    worded = deployment_target(each, Clients(), {}).word("/v1/chat/completions", SENT, b"")
    assert worded.headers == [(b"x", b"y"), (b"x-team", b"a")]


def test_a_missing_credential_is_said_at_start() -> None:
    """With the name of the variable."""
    with pytest.raises(ConfigError, match=r"deployment azure takes its credential from .* AZURE_KEY, which is not set"):
        deployment_target(AZURE, Clients(), {})


def test_providers_take_urls_with_and_without_version() -> None:
    """What today's --upstream takes; one server is one client."""
    assert [without_version(url) for url in ("http://h/v1", "http://h/", "http://h/p/v1beta/", "http://h/v11")] == [
        "http://h",
        "http://h",
        "http://h/p",
        "http://h/v11",
    ]
    clients = Clients()
    targets = provider_targets(Providers.at("http://h/pre/v1"), clients)
    assert len({id(target.client) for target in targets.values()}) == 1
    assert targets["openai"].word("/v1/models", SENT, b"").target == "/pre/v1/models"
    assert (targets["openai"].deployment, targets["openai"].has_own_key) == (None, False)


def test_what_is_no_url_is_refused() -> None:
    """At start."""
    with pytest.raises(ConfigError, match="has no query"):
        Clients().at("https://h/v1?api-version=1")
    with pytest.raises(ConfigError, match="not a server's URL"):
        make_dispatcher(RoutingPolicy(), Clients(), Providers.at("ftp://x"), environ={})


# --- budget, breaker, latency -----------------------------------------------------------------------------------------


@QUIET
@given(
    st.lists(st.tuples(st.sampled_from(["call", "extra"]), st.floats(0, 3)), max_size=60),
    st.floats(0, 1),
    st.floats(0, 5),
    st.floats(1, 20),
)
def test_extra_calls_stay_within_the_budget(
    events: list[tuple[str, float]], ratio: float, per_s: float, burst: float
) -> None:
    """At most burst + ratio x calls + per_s x seconds, whatever comes in which order."""
    budget = Budget(ratio, per_s=per_s, burst=burst, now_s=0.0)
    now_s = 0.0
    calls = extra = 0
    for kind, pause_s in events:
        now_s += pause_s
        if kind == "call":
            budget.earn()
            calls += 1
        else:
            extra += budget.spend(now_s)
        assert extra <= burst + ratio * calls + per_s * now_s + 1e-6


def test_a_budget_without_seconds_begins_empty() -> None:
    """Hedges are paid for by calls alone."""
    budget = Budget(0.5, burst=10.0)
    assert not budget.spend(100.0)
    budget.earn()
    budget.earn()
    assert budget.spend(0.0)
    assert not budget.spend(0.0)


def failing(breaker: Breaker, now_s: float, count: int) -> None:
    for _ in range(count):
        breaker.end(now_s, failed=True, probe=breaker.begin(now_s))


def test_a_breaker_opens_probes_and_closes() -> None:
    """Open at half of ten, one probe after five seconds, twice as long after a failed one, closed by a good one."""
    breaker = Breaker(BreakerPolicy())
    for _ in range(6):
        breaker.end(0.5, failed=False, probe=False)
    failing(breaker, 0.5, 5)
    assert breaker.admits(0.5)  # 5 of 11
    failing(breaker, 1.5, 1)
    assert not breaker.admits(1.5)
    assert not breaker.admits(6.4)
    assert breaker.admits(6.5)
    assert breaker.begin(6.5)
    assert not breaker.admits(6.5)  # one is on its way
    assert not breaker.begin(6.5)
    breaker.end(7.0, failed=True, probe=True)
    assert not breaker.admits(16.9)
    assert breaker.admits(17.0)
    assert breaker.begin(17.0)
    breaker.end(18.0, failed=None, probe=True)  # the caller left: nothing is known
    assert breaker.begin(18.0)
    breaker.end(19.0, failed=False, probe=True)
    assert breaker.is_closed
    failing(breaker, 20.0, 9)
    assert breaker.admits(20.0)  # the past is forgotten


def test_old_failures_leave_the_window() -> None:
    """Nine failures, ten seconds, nine more: no ten in any window."""
    breaker = Breaker(BreakerPolicy())
    failing(breaker, 1.0, 9)
    failing(breaker, 11.5, 9)
    assert breaker.is_closed
    failing(breaker, 11.6, 1)
    assert not breaker.is_closed


@QUIET
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 4)), max_size=60))
def test_a_breaker_opens_only_when_half_of_ten_failed(outcomes: list[tuple[bool, float]]) -> None:
    """Never on less, in any order and at any pace."""
    breaker = Breaker(BreakerPolicy())
    now_s = 0.0
    failures: list[float] = []
    for failed, pause_s in outcomes:
        now_s += pause_s
        if failed:
            failures.append(now_s)
        breaker.end(now_s, failed=failed, probe=False)
        if not breaker.is_closed:
            assert sum(1 for at_s in failures if at_s >= now_s - 10.0) >= 5
            return


def test_the_peak_mean_jumps_up_and_comes_down_slowly() -> None:
    """One stall of 8 s weighs half after ten seconds x ln 2."""
    mean = PeakEwma(10.0)
    mean.observe(1.0, 0.0)
    mean.observe(8.0, 5.0)
    assert mean.value_s == 8.0
    half_s = 10.0 * math.log(2.0)
    assert mean.at(5.0 + half_s) == pytest.approx(4.0)
    mean.observe(1.0, 5.0 + half_s)
    assert mean.value_s == pytest.approx(4.5)


def test_the_quantile_is_of_the_last_256() -> None:
    """Unknown at first; what is long past does not count."""
    quantile = RecentQuantile(0.95, 20)
    for number in range(19):
        quantile.observe(float(number))
    assert quantile.value_s is None
    quantile.observe(19.0)
    assert quantile.value_s == 18.0  # the 19th of 20
    for _ in range(256 + 16):
        quantile.observe(5.0)
    assert quantile.value_s == 5.0


# --- balancing --------------------------------------------------------------------------------------------------------


def lanes(*latencies_s: float, weights: tuple[float, ...] = ()) -> list[Lane]:
    made = []
    for number, latency_s in enumerate(latencies_s):
        target = Target(HttpClient(DEAD_URL), "openai", f"d{number}")
        lane = Lane(target, "m", RoutingPolicy(), weights[number] if weights else 1.0)
        if latency_s:
            lane.answered(latency_s, 0.0, stream=False)
        made.append(lane)
    return made


def shares(candidates: list[Lane], calls: int = 3000) -> list[float]:
    """Which share of calls goes to each when none of them ever ends."""
    rand = random.Random(7).random
    for _ in range(calls):
        pick(candidates, 0.0, rand).begin(0.0)
    return [lane.in_flight / calls for lane in candidates]


def test_equal_places_get_equal_shares() -> None:
    """Of three, by two choices."""
    assert shares(lanes(1.0, 1.0, 1.0)) == pytest.approx([1 / 3] * 3, abs=0.01)


def test_load_follows_latency_and_weight() -> None:
    """Twice as slow, half the load; twice the weight, twice the load."""
    assert shares(lanes(1.0, 2.0)) == pytest.approx([2 / 3, 1 / 3], abs=0.01)
    assert shares(lanes(1.0, 1.0, weights=(2.0, 1.0))) == pytest.approx([2 / 3, 1 / 3], abs=0.01)


def test_a_new_place_gets_one_call_not_a_herd() -> None:
    """Until it has answered it counts as slow."""
    assert shares(lanes(1.0, 0.0), calls=10) == [0.9, 0.1]


def test_failing_fast_is_not_being_fast() -> None:
    """A failure counts as five seconds at least."""
    quick, steady = lanes(0.01, 1.0)
    quick.begin(0.0)
    quick.end(0.0, failed=True, probe=False)
    assert quick.cost(0.0) > steady.cost(0.0)


# --- opening, patience, replies ---------------------------------------------------------------------------------------


CREATED = b'event: response.created\ndata: {"type":"response.created","response":{}}\n\n'
MESSAGE = (
    b'event: message_start\ndata: {"type":"message_start","message":{"content":[]}}\n\n'
    b'event: ping\ndata: {"type":"ping"}\n\n'
)
OVERLOADED = b'data: {"type":"error","error":{"type":"overloaded_error"}}\n\n'
AZURE_FILTER = b'data: {"choices":[],"prompt_filter_results":[{}]}\n\n'


@pytest.mark.parametrize(
    ("stream", "state", "status"),
    [
        pytest.param(ROLE, HOLD, 0, id="role"),
        pytest.param(AZURE_FILTER, HOLD, 0, id="azure"),
        pytest.param(CREATED, HOLD, 0, id="responses"),
        pytest.param(MESSAGE, HOLD, 0, id="anthropic"),
        pytest.param(b": comment\n\n", HOLD, 0, id="comment"),
        pytest.param(ROLE + delta("Hi"), PASS, 0, id="token"),
        pytest.param(MESSAGE + b'data: {"type":"content_block_delta"}\n\n', PASS, 0, id="anthropic-token"),
        pytest.param(b'data: {"candidates":[]}\n\n', PASS, 0, id="gemini"),
        pytest.param(EVENTS[-1], PASS, 0, id="done"),
        pytest.param(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n', PASS, 0, id="empty-answer"),
        pytest.param(b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n', PASS, 0, id="reasoning"),
        pytest.param(b'data: {"type":"what.is.this"}\n\n', PASS, 0, id="unknown"),
        pytest.param(b"data: [1]\n\n", PASS, 0, id="not-an-object"),
        pytest.param(b": x\n\n" * 20_000, PASS, 0, id="too-much"),
        pytest.param(b'data: {"error":{"code":"rate_limit_exceeded"}}\n\n', FAILED, 429, id="openai-error"),
        pytest.param(b'data: {"error":{"code":503,"status":"UNAVAILABLE"}}\n\n', FAILED, 503, id="gemini-error"),
        pytest.param(
            MESSAGE + b'data: {"type":"error","error":{"type":"overloaded_error"}}\n\n',
            FAILED,
            529,
            id="anthropic-error",
        ),
        pytest.param(
            CREATED + b'data: {"type":"response.failed","response":{"error":{"code":"server_error"}}}\n\n',
            FAILED,
            500,
            id="responses-error",
        ),
        pytest.param(b'data: {"type":"error"}\n\n', FAILED, 500, id="bare-error"),
    ],
)
@pytest.mark.parametrize("size", [None, 7], ids=["whole", "cut"])
def test_only_what_announces_an_answer_is_held_back(stream: bytes, state: str, status: int, size: int | None) -> None:
    """In every dialect, cut anywhere; what nobody knows passes."""
    opening = Opening()
    for start in range(0, len(stream), size or len(stream)):
        if opening.feed(stream[start : start + (size or len(stream))]) != HOLD:
            break
    assert (opening.state, opening.status) == (state, status)
    assert stream.startswith(b"".join(opening.pieces))


@pytest.mark.parametrize(
    ("headers", "limit_s", "idempotent"),
    [
        ([], None, True),
        ([(b"x-paceline-timeout-s", b"2")], 2.0, True),
        ([(b"x-paceline-timeout-s", b"-2"), (b"x-stainless-timeout", b"3")], 3.0, True),
        ([(b"x-server-timeout", b"8")], 8.0, True),
        ([(b"x-stainless-read-timeout", b"inf")], None, True),
        ([(b"x-stainless-read-timeout", b"None")], None, True),
        ([(b"x-paceline-idempotent", b"False")], None, False),
    ],
)
def test_a_request_says_how_long_it_waits(
    headers: list[tuple[bytes, bytes]], limit_s: float | None, idempotent: bool
) -> None:
    """Ours, OpenAI's, Anthropic's, google-genai's; nonsense says nothing."""
    assert patience_of(headers) == (limit_s, idempotent)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_errors_speak_the_callers_dialect(dialect: Dialect) -> None:
    """429 with Retry-After, 504; JSON with the message where the SDK looks for it."""
    full = error_reply(Overloaded("queue is full", retry_after_s=2.4), b"bypass", dialect)
    late = UpstreamTimeout("http://x did not begin to answer for 3 s", target="http://x", phase="total", limit_s=3.0)
    slow = error_reply(late, b"bypass", dialect)
    assert (full.status, slow.status) == (429, 504)
    assert (b"retry-after", b"2") in full.headers
    for reply, words in ((full, "queue is full"), (slow, "http://x did not begin to answer for 3 s")):
        assert isinstance(reply.body, bytes)
        assert words in msgspec.json.decode(reply.body)["error"]["message"]


def test_by_default_nothing_is_retried_or_hedged() -> None:
    """Off until asked for."""
    assert not RetryPolicy().enabled
    assert not HedgePolicy().enabled
