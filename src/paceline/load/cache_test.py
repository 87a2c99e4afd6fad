"""Cache test: how often a cache answers, how often it answers wrongly, and how quickly.

Four streams over real questions: *unique* ones, *repeat* (the very same again, by Zipf popularity), *paraphrase*
(another wording of an intent asked before) and *near-miss* (a small edit of one, which changes the answer).
A hit is right or wrong by what was asked before: the target only has to say hit or miss.
"""

import asyncio
import hashlib
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from paceline.errors import UpstreamError
from paceline.load.queries import Queries
from paceline.load.snapshot import Snapshot
from paceline.load.tally import failure
from paceline.stats.histogram import Histogram
from paceline.stats.quantiles import quantiles
from paceline.wire.client import HttpClient, Timeouts

UNIQUE, REPEAT, PARAPHRASE, NEAR_MISS = "unique", "repeat", "paraphrase", "near-miss"
STREAMS = (UNIQUE, REPEAT, PARAPHRASE, NEAR_MISS)
HIT, MISS = "hit", "miss"
_IGNORED = ("id", "created", "created_at", "timestamp", "request_id", "usage", "system_fingerprint")
_TELL_S = 0.1
_SEED_STREAM = "seed"  # the questions that later streams repeat, reword and edit


class CacheTestPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to ask. The same plan and questions give the same requests in the same order."""

    questions: int = 100  # asked first, cold; the others come back to them
    per_stream: int = 200  # requests in each of the four streams; fewer where the questions do not suffice
    zipf_s: float = 1.0  # the k-th most popular question is repeated 1/k**s as often as the first
    seed: int = 0
    users: int = 4  # requests in flight within a stream
    template: str = '{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": {{question}}}]}'
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    cache_headers: tuple[str, ...] = ("x-paceline-cache", "x-cache")  # the first one present counts
    hit_words: tuple[str, ...] = ("hit", "join")
    ignored_fields: tuple[str, ...] = (
        "id",
        "created",
        "created_at",
        "timestamp",
        "request_id",
        "usage",
        "system_fingerprint",
    )
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("questions", "per_stream", "users", "timeout_s"):
            if not getattr(self, name) > 0:
                msg = f"{name} must be above 0; got {getattr(self, name):g}"
                raise ValueError(msg)
        if not self.zipf_s >= 0:
            msg = f"zipf_s must not be negative; got {self.zipf_s:g}"
            raise ValueError(msg)
        if "{{question}}" not in self.template:
            msg = "the template must hold {{question}}, where the question goes as a JSON string"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to ask. `source` is the earlier question it repeats, rewords or edits."""

    stream: str
    text: str
    source: str | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one question."""

    stream: str
    text: str
    source: str | None = None
    cache: str | None = None  # "hit" or "miss"; None: the answer does not say
    status: int = 0  # 0: no answer
    latency_s: float = 0.0
    answer: str = ""  # digest of the body without the fields that change by themselves
    wrong: str | None = None  # why a hit should not have been one


class StreamResult(msgspec.Struct, frozen=True, kw_only=True):
    """One stream. Ratios are None without requests that say hit or miss."""

    stream: str
    requests: int
    failed: int
    hits: int
    hit_ratio: float | None = None  # hits over answers that say which
    wrong_hits: int = 0
    wrong_hit_ratio: float | None = None  # wrong hits over answers that say hit or miss: how often a user is misled
    p50_s: float | None = None
    p95_s: float | None = None
    hit_p50_s: float | None = None
    miss_p50_s: float | None = None


class Speedup(msgspec.Struct, frozen=True, kw_only=True):
    """How many times faster warm is than cold; None with the reason where that is no number."""

    cold_p50_s: float | None
    warm_p50_s: float | None
    ratio: float | None
    reason: str | None = None


class CacheTestResult(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the test found."""

    streams: list[StreamResult]
    hit_ratio: float | None
    wrong_hit_ratio: float | None
    speedup: Speedup
    wrong: list[Asked] = []  # the wrong hits, the first 20
    notes: list[str] = []


def plan_asks(queries: Queries, plan: CacheTestPlan) -> list[list[Ask]]:
    """The streams, in the order they are sent: seeding (cold), repeat, paraphrase, near-miss, unique.

    Unique questions come from intents that are not seeded, so a semantic cache has no ground to hit. A paraphrase is
    another wording of a seeded question's intent. Half of the seeds are first halves of near-miss pairs.
    """
    rng = random.Random(f"{plan.seed}:cache-test")
    intents = [list(wordings) for wordings in queries.intents.values()]
    rng.shuffle(intents)
    pairs = list(queries.near_misses)
    rng.shuffle(pairs)
    pairs = _apart(pairs)[: min(plan.per_stream, plan.questions // 2 if intents else plan.questions)]
    spare = max(1, len(intents) // 2) if len(intents) > 1 else 0  # at least half are kept for unique questions
    seeded = intents[: max(0, min(plan.questions - len(pairs), len(intents) - spare))]
    texts = [wordings[0] for wordings in seeded]
    # More questions than intents: several wordings of one, which are paraphrases of each other only after that.
    seeds = [Ask(_SEED_STREAM, text) for text in [*texts, *(a for a, _ in pairs)]]
    rng.shuffle(seeds)
    weights = list(itertools.accumulate(1 / rank**plan.zipf_s for rank in range(1, len(seeds) + 1)))
    repeats = (
        [Ask(REPEAT, again.text, again.text) for again in rng.choices(seeds, cum_weights=weights, k=plan.per_stream)]
        if seeds
        else []
    )
    reworded = [Ask(PARAPHRASE, text, wordings[0]) for wordings in seeded for text in wordings[1:]]
    rng.shuffle(reworded)
    edited = [Ask(NEAR_MISS, b, a) for a, b in pairs]
    rest = [Ask(UNIQUE, text) for wordings in intents[len(seeded) :] for text in wordings[:1]]
    if len(rest) < plan.per_stream:  # further wordings: unique to an exact cache; a semantic one may rightly hit
        rest += [Ask(UNIQUE, text) for wordings in intents[len(seeded) :] for text in wordings[1:]]
    count = plan.per_stream
    return [stream for stream in (seeds, repeats, reworded[:count], edited[:count], rest[:count]) if stream]


async def run_cache_test(
    url: str,
    path: str,
    queries: Queries,
    plan: CacheTestPlan,
    *,
    now_s: Callable[[], float] = time.perf_counter,
    progress: Callable[[Snapshot], None] | None = None,
) -> CacheTestResult:
    """Ask everything, stream after stream, and judge.

    Args:
        url: Scheme, host and port. path: What is asked there, query included.
        queries: The questions. plan: How many of which.
        now_s: For tests.
        progress: Called after every answer, at most ten times a second.

    Raises:
        ConfigError: `url` is not one. CancelledError: nothing is kept.
    """
    client = HttpClient(url, timeouts=Timeouts(first_byte_s=plan.timeout_s, silence_s=plan.timeout_s))
    results: list[Asked] = []
    try:
        streams = plan_asks(queries, plan)
        for number, stream in enumerate(streams, 1):
            told = _Told(stream, f"cache test, stream {number} of {len(streams)}", progress)
            results += await _ask_all(client, path, stream, plan, now_s, told)
            told.tell()
    finally:
        await client.close()
    return judge(results, queries)


class _Told:
    """How one stream goes, for whoever watches."""

    def __init__(self, asks: list[Ask], step: str, progress: Callable[[Snapshot], None] | None) -> None:
        self._name, self._total, self._step, self._progress = asks[0].stream, len(asks), step, progress
        self._began_s, self._told_s = time.monotonic(), 0.0
        self._sent = self._done = 0
        self._failures: Counter[str] = Counter()
        self._outcomes: Counter[str | None] = Counter()
        self._latencies = Histogram()

    def sent(self) -> None:
        """One more."""
        self._sent += 1

    def answered(self, asked: Asked) -> None:
        """Count it, and tell if it is time."""
        self._done += 1
        self._latencies.record(asked.latency_s)
        self._outcomes[asked.cache] += 1
        if asked.status != 200:
            self._failures[failure("status", asked.status) if asked.status else "connection"] += 1
        if time.monotonic() - self._told_s >= _TELL_S:
            self.tell()

    def tell(self) -> None:
        """Say where it stands."""
        self._told_s = time.monotonic()
        if self._progress is not None:
            self._progress(
                Snapshot(
                    scenario=self._name,
                    step=self._step,
                    elapsed_s=self._told_s - self._began_s,
                    requests=self._total,
                    sent=self._sent,
                    done=self._done,
                    failures=dict(self._failures),
                    hits=self._outcomes[HIT],
                    misses=self._outcomes[MISS],
                    latencies=self._latencies.copy(),
                )
            )


async def _ask_all(
    client: HttpClient, path: str, asks: list[Ask], plan: CacheTestPlan, now_s: Callable[[], float], told: _Told
) -> list[Asked]:
    results: list[Asked | None] = [None] * len(asks)
    waiting = iter(enumerate(asks))

    async def user() -> None:
        for place, ask in waiting:
            told.sent()
            results[place] = asked = await _ask(client, path, ask, plan, now_s)
            told.answered(asked)

    async with asyncio.TaskGroup() as users:
        for _ in range(min(plan.users, len(asks))):
            users.create_task(user())
    return [result for result in results if result is not None]


async def _ask(client: HttpClient, path: str, ask: Ask, plan: CacheTestPlan, now_s: Callable[[], float]) -> Asked:
    body = plan.template.replace("{{question}}", msgspec.json.encode(ask.text).decode()).encode()
    headers = [(name.lower().encode("latin-1"), value.encode()) for name, value in plan.headers]
    started_s = now_s()
    try:
        reply = await client.request("POST", path, headers, body)
        data = await reply.read()
    except UpstreamError:
        return Asked(stream=ask.stream, text=ask.text, source=ask.source, latency_s=now_s() - started_s)
    said = next((v for name in plan.cache_headers if (v := reply.header(name.lower().encode())) is not None), None)
    words = [word.lower().encode() for word in plan.hit_words]
    return Asked(
        stream=ask.stream,
        text=ask.text,
        source=ask.source,
        cache=None if said is None else HIT if any(word in said.lower() for word in words) else MISS,
        status=reply.status,
        latency_s=now_s() - started_s,
        answer=_digest(data, plan.ignored_fields) if reply.status == 200 else "",
    )


def judge(results: Sequence[Asked], queries: Queries) -> CacheTestResult:
    """Hit rates, wrong hits and latencies of what was asked, in that order.

    A hit is wrong when it answers a near miss, or a question of which neither the text nor another wording of the
    intent was asked before; and when its answer is that of a question with another intent and not its own.
    """
    intent_of = {text: intent for intent, wordings in queries.intents.items() for text in wordings}
    before: set[str] = set()
    intents: set[str] = set()
    owners: dict[str, set[str]] = {}  # intents (or texts without one) whose misses gave this very answer
    judged: list[Asked] = []
    for asked in results:
        about = intent_of.get(asked.text, asked.text)
        fine = asked.status == 200
        if fine and asked.cache == HIT:
            why = _why_wrong(asked, about, before, intents, owners)
            judged.append(msgspec.structs.replace(asked, wrong=why))
        else:
            judged.append(asked)
            if fine and asked.answer:
                owners.setdefault(asked.answer, set()).add(about)
        if fine:
            before.add(asked.text)
            intents.add(about)
    return _result(judged)


def _why_wrong(
    asked: Asked, about: str, before: set[str], intents: set[str], owners: dict[str, set[str]]
) -> str | None:
    if asked.text in before:
        made_for = owners.get(asked.answer)
        return None if made_for is None or about in made_for else "the answer is another question's"
    if asked.stream == NEAR_MISS:
        return "a near miss was taken for the question it resembles"
    if about not in intents:
        return "nothing that means the same was asked before"
    made_for = owners.get(asked.answer)
    return None if made_for is None or about in made_for else "the answer is another question's"


def _result(judged: list[Asked]) -> CacheTestResult:
    streams = [_stream(name, part) for name in STREAMS if (part := [a for a in judged if a.stream == name])]
    said = [a for a in judged if a.status == 200 and a.cache is not None and a.stream != _SEED_STREAM]
    hits, wrong = [a for a in said if a.cache == HIT], [a for a in judged if a.wrong is not None]
    notes = []
    if any(a.status == 200 and a.cache is None for a in judged):
        notes.append("some answers do not say hit or miss: name the header that does with --cache-header")
    silent = [name for name in STREAMS if not any(a.stream == name for a in judged)]
    if silent:
        notes.append(f"the questions do not suffice for: {', '.join(silent)}")
    cold = [a for a in judged if a.stream == _SEED_STREAM and a.status == 200 and a.cache != HIT]
    warm = [a for a in judged if a.stream == REPEAT and a.status == 200 and a.cache == HIT]
    return CacheTestResult(
        streams=streams,
        hit_ratio=_share(len(hits), len(said)),
        wrong_hit_ratio=_share(sum(a.wrong is not None for a in said), len(said)),
        speedup=speedup([a.latency_s for a in cold], [a.latency_s for a in warm]),
        wrong=wrong[:20],
        notes=notes,
    )


def speedup(cold_s: Sequence[float], warm_s: Sequence[float]) -> Speedup:
    """Median of cold answers over median of warm ones; no number without one of them, or for a warm median of 0."""
    cold, warm = _median(cold_s), _median(warm_s)
    ratio = reason = None
    if cold is None or warm is None:
        reason = "no answer came from the cache" if warm is None else "no answer was made anew"
    elif warm <= 0:
        reason = "cached answers took less than the clock can tell"
    else:
        ratio = cold / warm
    return Speedup(cold_p50_s=cold, warm_p50_s=warm, ratio=ratio, reason=reason)


def _stream(name: str, part: list[Asked]) -> StreamResult:
    fine = [a for a in part if a.status == 200]
    said = [a for a in fine if a.cache is not None]
    hits = [a for a in said if a.cache == HIT]
    wrong = sum(a.wrong is not None for a in hits)
    p50_s, p95_s = quantiles([a.latency_s for a in fine], [0.5, 0.95]) if fine else (None, None)
    return StreamResult(
        stream=name,
        requests=len(part),
        failed=len(part) - len(fine),
        hits=len(hits),
        hit_ratio=_share(len(hits), len(said)),
        wrong_hits=wrong,
        wrong_hit_ratio=_share(wrong, len(said)),
        p50_s=p50_s,
        p95_s=p95_s,
        hit_p50_s=_median([a.latency_s for a in hits]),
        miss_p50_s=_median([a.latency_s for a in said if a.cache == MISS]),
    )


def _apart(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs of which no text is in another one, so that each is asked for the first time."""
    taken: set[str] = set()
    kept = []
    for a, b in pairs:
        if a not in taken and b not in taken:
            taken |= {a, b}
            kept.append((a, b))
    return kept


def _digest(data: bytes, ignored: Sequence[str]) -> str:
    try:
        decoded = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return hashlib.sha256(data).hexdigest()[:16]
    if isinstance(decoded, dict):
        decoded = {name: value for name, value in decoded.items() if name not in ignored}
    return hashlib.sha256(msgspec.json.encode(decoded, order="sorted")).hexdigest()[:16]


def _median(samples: Sequence[float]) -> float | None:
    return quantiles(samples, [0.5])[0] if samples else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
