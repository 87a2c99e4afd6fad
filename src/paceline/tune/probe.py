"""Asking a provider for the pace of a model the baseline never called, so that routing to it can be projected."""

import asyncio
import contextlib
import math
import os
import statistics
import time
from dataclasses import dataclass
from statistics import NormalDist

import msgspec

from paceline.errors import UpstreamError, UpstreamRejected
from paceline.model.price import price_of
from paceline.model.span import LLM
from paceline.model.tuning import Probe
from paceline.project.pace import MIN_CALLS, ModelPace
from paceline.trace.data import RunData
from paceline.tune.measure import Bench
from paceline.wire.call import Usage
from paceline.wire.client import HttpClient
from paceline.wire.openai import StreamReader

CALLS = 12
_AT_ONCE = 3  # few, so that the provider's own queue does not count
_TRIES = 4  # of one call that is refused for now
_MAX_PAUSE_S = 20.0
_PROMPT = "Write the numbers from 1 to 40, separated by spaces, and nothing else."


@dataclass(frozen=True, slots=True)
class _Timed:
    """One streamed call, wall seconds."""

    ttft_s: float
    gap_s: float
    usage: Usage | None
    limits: tuple[float | None, float | None]  # requests and tokens per minute


async def probe(bench: Bench, base: RunData, models: list[str]) -> tuple[dict[str, ModelPace], list[Probe]]:
    """Paces of those of `models` that the baseline called too seldom to know, each from 12 small streamed calls.

    Costs those calls, about 150 tokens each. A model that cannot be asked is left out with a note; projections that
    need it then refuse.
    """
    calls = [s.model for s in base.spans if s.kind == LLM and s.status == "ok"]
    wanted = [model for model in models if calls.count(model) < MIN_CALLS]
    paces: dict[str, ModelPace] = {}
    probes: list[Probe] = []
    if not wanted:
        return paces, probes
    async with bench.upstream() as url:
        client = HttpClient(url)
        try:
            for model in wanted:
                bench.watch.step(f"asking {model} for its pace")
                try:
                    timed = await _calls(client, model, bench)
                except UpstreamError as error:
                    bench.watch.note(f"the pace of {model} is not known: {error}")
                    continue
                paces[model] = pace_of(timed, bench.speed)
                probes.append(_report(model, timed, paces[model]))
        finally:
            await client.close()
    return paces, probes


def pace_of(timed: list[_Timed], speed: float) -> ModelPace:
    """The pace those calls show, at the provider's real pace.

    The P95 of a dozen times is taken from a log-normal through their median, as their own maximum says little.
    """
    ttfts = [t.ttft_s * speed for t in timed]
    median = statistics.median(ttfts)
    sigma = statistics.stdev(map(math.log, ttfts)) if len(ttfts) > 1 else 0.0
    requests, tokens = timed[-1].limits
    return ModelPace(
        ttft_p50_s=median,
        ttft_p95_s=median * math.exp(sigma * NormalDist().inv_cdf(0.95)),
        token_gap_s=statistics.median(t.gap_s for t in timed) * speed,
        requests_per_min=requests,
        tokens_per_min=tokens,
    )


def _report(model: str, timed: list[_Timed], pace: ModelPace) -> Probe:
    price = price_of(model)
    known = price is not None and all(t.usage for t in timed)
    cost = sum(price.cost_usd(t.usage.input_tokens, t.usage.output_tokens) for t in timed if price and t.usage)
    return Probe(
        model=model,
        calls=len(timed),
        ttft_p50_s=pace.ttft_p50_s,
        token_gap_s=pace.token_gap_s,
        cost_usd=cost if known else None,
    )


async def _calls(client: HttpClient, model: str, bench: Bench) -> list[_Timed]:
    slots = asyncio.Semaphore(_AT_ONCE)
    key = bench.env(bench.target.after(0)).get("OPENAI_API_KEY") or os.environ.get("OPENAI_API_KEY", "")

    async def one() -> _Timed:
        async with slots:
            return await _patient(client, model, key)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one()) for _ in range(CALLS)]
    except* UpstreamError as several:
        raise several.exceptions[0] from None
    return [task.result() for task in tasks]


async def _patient(client: HttpClient, model: str, key: str) -> _Timed:
    for _ in range(_TRIES - 1):
        try:
            return await _call(client, model, key)
        except UpstreamRejected as error:
            if error.status != 429:
                raise
            await asyncio.sleep(min(_MAX_PAUSE_S, error.retry_after_s or 1.0))
    return await _call(client, model, key)


async def _call(client: HttpClient, model: str, key: str) -> _Timed:
    body = msgspec.json.encode(
        {
            "model": model,
            "messages": [{"role": "user", "content": _PROMPT}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    headers = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {key}".encode())]
    began_s = time.perf_counter()
    reply = await client.request("POST", "/v1/chat/completions", headers, body)
    if reply.status != 200:
        text = (await reply.read())[:200].decode(errors="replace")
        pause = _number(reply.header(b"retry-after"))
        msg = f"{client.base_url} answered {reply.status} for {model}: {text}"
        raise UpstreamRejected(msg, target=client.base_url, status=reply.status, retry_after_s=pause)
    reader = StreamReader()
    first_s: float | None = None
    last_s = began_s
    async for data in reply:
        reader.feed(data)
        if first_s is None and reader.result().text:
            first_s = time.perf_counter()
        last_s = time.perf_counter()
    result = reader.result()
    if first_s is None:
        msg = f"{client.base_url} streamed no text for {model}"
        raise UpstreamError(msg, target=client.base_url)
    tokens = result.usage.output_tokens if result.usage else 0
    return _Timed(
        ttft_s=first_s - began_s,
        gap_s=(last_s - first_s) / (tokens - 1) if tokens > 1 else 0.0,
        usage=result.usage,
        limits=(
            _number(reply.header(b"x-ratelimit-limit-requests")),
            _number(reply.header(b"x-ratelimit-limit-tokens")),
        ),
    )


def _number(value: bytes | None) -> float | None:
    with contextlib.suppress(ValueError):
        return float(value or b"")
    return None
