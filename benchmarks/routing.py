"""What routing costs a call, and what it is worth: balancing, hedging and retry budgets against doing without.

    python -m benchmarks.routing --json [--quick]

`cost`: CPU of the dispatcher a call, over a client that answers at once from memory, on uvloop; the median of rounds
that alternate between the variants, less `bare`: the same client and record without a dispatcher. No socket, no server.

`worth`: simulated providers in virtual time (seconds that pass when nothing else is to do), so the figures are exact
for the seed and do not depend on the machine. Latencies are log-normal round one second; what is slow, and when, is
said at each case.
"""

import argparse
import asyncio
import json
import math
import platform
import random
import selectors
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
import uvloop

from paceline.accelerate.asked import AskedReader
from paceline.accelerate.directives import read_directives
from paceline.accelerate.limits import AdaptivePolicy, Limits, LimitsPolicy
from paceline.accelerate.policy import Policy
from paceline.accelerate.record import CallRecord
from paceline.accelerate.routing.make import make_dispatcher
from paceline.accelerate.routing.policy import Deployment, HedgePolicy, RetryPolicy, RoutingPolicy
from paceline.accelerate.routing.providers import Clients, Providers
from paceline.accelerate.routing.send import Dispatcher
from paceline.clock import RunClock
from paceline.wire.client import ClientReply, HttpClient
from paceline.wire.http import HttpRequest

T = TypeVar("T")
CHAT = "/v1/chat/completions"
MODEL = "gpt-4o-mini"
# What OpenAI's SDK sends, and what a provider answers.
SENT = [
    (b"host", b"127.0.0.1"),
    (b"accept", b"application/json"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"content-type", b"application/json"),
    (b"user-agent", b"OpenAI/Python 2.0.0"),
    (b"x-stainless-lang", b"python"),
    (b"x-stainless-os", b"Linux"),
    (b"x-stainless-arch", b"x64"),
    (b"x-stainless-runtime", b"CPython"),
    (b"x-stainless-retry-count", b"0"),
    (b"x-stainless-read-timeout", b"600"),
    (b"authorization", b"Bearer sk-x"),
    (b"content-length", b"900"),
]
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 100}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 200, "completion_tokens": 99, "total_tokens": 299},
    }
).encode()
ANSWERED = [
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(ANSWER)),
    (b"x-request-id", b"req_1"),
    (b"x-ratelimit-limit-requests", b"10000"),
    (b"x-ratelimit-remaining-requests", b"9999"),
    (b"x-ratelimit-reset-requests", b"6ms"),
    (b"x-ratelimit-limit-tokens", b"2000000"),
    (b"x-ratelimit-remaining-tokens", b"1999000"),
    (b"x-ratelimit-reset-tokens", b"30ms"),
]


class ReadyReply:
    """An answer that is here, whole."""

    done = True
    error = None

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.headers = ANSWERED
        self._body = body

    def header(self, name: bytes) -> bytes | None:
        """As ClientReply."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    async def read(self) -> bytes:
        """The body."""
        return self._body

    def close(self) -> None:
        """Nothing is held."""


class ReadyClient(HttpClient):
    """Answers from memory."""

    async def request(self, *_: Any) -> ClientReply:
        """At once."""
        return ReadyReply(200, ANSWER)  # type: ignore[return-value]


class Caller:
    """Makes the same call again and again."""

    def __init__(self, path: str = CHAT, model: str = MODEL) -> None:
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "x" * 800}]}).encode()
        self.asked = AskedReader(Policy()).read(read_directives("POST", path, SENT), path, body)
        self.request = HttpRequest("POST", path, SENT, body)
        self.clock = RunClock()

    def record(self) -> CallRecord:
        """As the engine makes one."""
        record = CallRecord(lambda _: None, self.clock, "POST", CHAT, "llm", None, self.clock.ticks_ns())
        record.asked = self.asked
        return record

    async def call(self, dispatcher: Dispatcher) -> int:
        """One call, to its end; the status."""
        answer = await dispatcher.send(self.request, self.record())
        await answer.whole()
        return answer.status

    async def bare(self, client: HttpClient) -> int:
        """The same without a dispatcher."""
        record = self.record()
        record.sent()
        reply = await client.request("POST", CHAT, SENT, self.request.body)
        record.head(reply.status, reply.headers, stream=False, encoded=False)
        record.saw(await reply.read())
        record.finish()
        return reply.status


# --- cost -------------------------------------------------------------------------------------------------------------

TWO = [Deployment(name=name, model=MODEL, url=f"http://127.0.0.1:{port}") for name, port in (("east", 9), ("west", 10))]
RETRYING = RetryPolicy(enabled=True)
ADAPTIVE = LimitsPolicy(adaptive=AdaptivePolicy(enabled=True))
VARIANTS: dict[str, tuple[RoutingPolicy, LimitsPolicy | None]] = {
    "plain": (RoutingPolicy(), None),
    "retrying": (RoutingPolicy(retries=RETRYING), None),
    "limited": (RoutingPolicy(), LimitsPolicy(concurrency=100)),
    "recommended": (RoutingPolicy(retries=RETRYING), ADAPTIVE),
    "balanced": (RoutingPolicy(deployments=TWO, retries=RETRYING), None),
    "hedged": (RoutingPolicy(deployments=TWO, retries=RETRYING, hedge=HedgePolicy(enabled=True)), None),
}


def cost(calls: int, rounds: int) -> dict[str, float]:
    """CPU microseconds a call by variant, less `bare`."""

    async def main() -> dict[str, float]:
        caller, client = Caller(), ReadyClient("http://127.0.0.1:9")
        works: dict[str, Callable[[], Awaitable[int]]] = {"bare": lambda: caller.bare(client)}
        for name, (policy, bounds) in VARIANTS.items():
            limits = Limits(bounds) if bounds is not None else None
            gated = bounds is not None and bounds.adaptive.enabled
            dispatcher = make_dispatcher(policy, Clients(ReadyClient), client, limits=limits, gated=gated)
            works[name] = lambda dispatcher=dispatcher: caller.call(dispatcher)  # type: ignore[misc]
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, work in works.items():
                start_s = time.process_time()
                for _ in range(calls):
                    await work()
                times[name].append((time.process_time() - start_s) / calls * 1e6)
        return {name: statistics.median(each) for name, each in times.items()}

    figures = uvloop.run(main())
    bare = figures.pop("bare")
    return {"bare_us": bare, **{f"{name}_us": figure - bare for name, figure in figures.items()}}


# --- worth ------------------------------------------------------------------------------------------------------------


class _Jumping(selectors.DefaultSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_s += max(0.0, timeout or 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds."""
        return self._jumping.now_s


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class SimulatedClient(HttpClient):
    """A deployment: `latency_s` says how long the call that begins now takes, `status` how it ends."""

    calls = 0
    latency_s: Callable[[float], float]
    status = 200

    async def request(self, *_: Any) -> ClientReply:
        """After its latency."""
        self.calls += 1
        await asyncio.sleep(self.latency_s(asyncio.get_running_loop().time()))
        return ReadyReply(self.status, ANSWER if self.status == 200 else b"{}")  # type: ignore[return-value]


def simulated(
    policy: RoutingPolicy, latencies_s: Sequence[Callable[[float], float]], seed: int
) -> tuple[Dispatcher, list[SimulatedClient]]:
    """A dispatcher over one simulated deployment for each latency."""
    clients = [SimulatedClient(f"http://127.0.0.1:{number + 1}") for number in range(len(latencies_s))]
    for client, latency_s in zip(clients, latencies_s, strict=True):
        client.latency_s = latency_s
    named = {client.base_url: client for client in clients}
    deployments = [Deployment(name=f"d{n}", model=MODEL, url=client.base_url) for n, client in enumerate(clients)]
    policy = msgspec.structs.replace(policy, deployments=deployments)
    dispatcher = make_dispatcher(
        policy,
        Clients(lambda url: named.get(url) or HttpClient(url)),
        Providers.at("http://127.0.0.1:9"),
        rand=random.Random(seed).random,
    )
    return dispatcher, clients


async def offered(work: Callable[[], Awaitable[int]], per_s: float, count: int, rand: random.Random) -> list[float]:
    """Latencies in seconds of `count` calls that arrive at random (Poisson)."""
    loop = asyncio.get_running_loop()

    async def one() -> float:
        start_s = loop.time()
        await work()
        return loop.time() - start_s

    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(rand.expovariate(per_s))
    return list(await asyncio.gather(*tasks))


def usual(rand: random.Random, median_s: float = 1.0) -> float:
    """A log-normal latency."""
    return median_s * math.exp(rand.gauss(0.0, 0.25))


def quantile(values: Sequence[float], q: float) -> float:
    """Nearest rank."""
    return sorted(values)[math.ceil(q * len(values)) - 1]


def balance(count: int) -> dict[str, Any]:
    """Three deployments, one of them four times as slow in the middle third; our choice against a random one."""
    third_s = count / 20 / 3

    def run(*, ours: bool) -> list[float]:
        rand = random.Random(7)

        def slow_for_a_while(now_s: float) -> float:
            return usual(rand, 4.0 if third_s < now_s < 2 * third_s else 1.0)

        async def main() -> list[float]:
            latencies = (slow_for_a_while, lambda _: usual(rand), lambda _: usual(rand))
            dispatcher, clients = simulated(RoutingPolicy(), latencies, 7)
            caller = Caller()
            work = (lambda: caller.call(dispatcher)) if ours else (lambda: caller.bare(rand.choice(clients)))
            return await offered(work, 20.0, count, random.Random(11))

        return run_virtual(main())

    chosen, drawn = run(ours=True), run(ours=False)
    return {
        "mean_s": statistics.fmean(chosen),
        "p99_s": quantile(chosen, 0.99),
        "random_mean_s": statistics.fmean(drawn),
        "random_p99_s": quantile(drawn, 0.99),
    }


def hedge(count: int) -> dict[str, Any]:
    """Two deployments, two per cent of calls take ten times as long; hedged at the 95th percentile, and not."""

    def run(policy: RoutingPolicy) -> tuple[list[float], int]:
        rand = random.Random(7)

        def stalls(_: float) -> float:
            return usual(rand) * (10.0 if rand.random() < 0.02 else 1.0)

        async def main() -> tuple[list[float], int]:
            dispatcher, clients = simulated(policy, (stalls, stalls), 7)
            caller = Caller()
            taken = await offered(lambda: caller.call(dispatcher), 20.0, count, random.Random(11))
            return taken, sum(client.calls for client in clients)

        return run_virtual(main())

    alone, _ = run(RoutingPolicy())
    hedged, calls = run(RoutingPolicy(hedge=HedgePolicy(enabled=True)))
    return {
        "p50_s": quantile(hedged, 0.5),
        "p99_s": quantile(hedged, 0.99),
        "extra_calls_ratio": calls / count - 1.0,
        "alone_p50_s": quantile(alone, 0.5),
        "alone_p99_s": quantile(alone, 0.99),
    }


def outage(count: int) -> dict[str, Any]:
    """Every call fails at once with 503, four attempts are allowed: calls the provider sees for each of ours."""

    def run(retries: RetryPolicy) -> float:
        async def main() -> float:
            rand = random.Random(7)
            dispatcher, clients = simulated(RoutingPolicy(retries=retries), (lambda _: usual(rand, 0.05),), 7)
            clients[0].status = 503
            caller = Caller()
            await offered(lambda: caller.call(dispatcher), 100.0, count, random.Random(11))
            return clients[0].calls / count

        return run_virtual(main())

    endless = RetryPolicy(enabled=True, budget_ratio=100.0, budget_burst=1e9)
    return {"calls_ratio": run(RetryPolicy(enabled=True)), "without_budget_ratio": run(endless)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="the default: one JSON object")
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls")
    options = parser.parse_args()
    scale = 1 if options.quick else 10
    result = {
        "benchmark": "routing",
        "machine": {"python": platform.python_version(), "platform": platform.platform()},
        "cost": cost(calls=500 * scale, rounds=7),
        "balance": balance(600 * scale),
        "hedge": hedge(1000 * scale),
        "outage": outage(300 * scale),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
