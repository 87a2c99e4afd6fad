"""CPU of trimming and watching prompts, and what joining embedding calls is worth.

    python -m benchmarks.prompts --json [--quick]

Timed: CPU (user + system of this process, median of 7 rounds) of `trim` on a conversation of 4 KB with five retrieved
chunks, by technique and with all of them, and of `PrefixWatch.read` + `saw` on prompts of 4 KB with a timestamp in
front, all different. Embeddings: 64 callers, each sending one text of 200 characters after the other to the simulated
provider (another process, at its real pace), plainly through our client and through `EmbeddingBatcher`: calls a second,
CPU of this process a call, and calls the provider got.
"""

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import uvloop

from paceline.accelerate.batching.embeddings import EmbeddingBatcher, Send
from paceline.accelerate.batching.policy import BatchPolicy
from paceline.accelerate.prompts.policy import PromptPolicy
from paceline.accelerate.prompts.prefix import PrefixWatch
from paceline.accelerate.prompts.trim import trim
from paceline.testing import SimulatedProvider
from paceline.wire.client import HttpClient
from paceline.wire.http import HttpRequest, Reply

CALLERS = 64
FACT = "Staff get travel costs back within thirty days when each receipt above {} euro comes with the claim they file. "
EVERYTHING = {
    "last_turns": 2,
    "max_chunks": 3,
    "drop_repeats": True,
    "white_space": True,
    "system_text": True,
    "max_input_tokens": 100_000,
}


def conversation() -> dict[str, Any]:
    """A call of 4 KB: instructions, three exchanges, five chunks and a question."""
    # The fourth chunk says what the second does.
    said = ["".join(FACT.format(n * 10 + k) for k in range(3)).strip() for n in (1, 2, 3, 2, 5)]
    chunks = "  \n".join(f"[{n}] {text}" for n, text in enumerate(said, 1))
    messages = [{"role": "system", "content": "You answer from the handbook.\n\n" + FACT.format(1) * 4}]
    for n in range(3):
        messages += [{"role": "user", "content": f"Question {n}: {FACT.format(n)}"}]
        messages += [{"role": "assistant", "content": f"Answer {n}.  \n\n\n{FACT.format(n) * 2}"}]
    question = f"Use this context.\n\n{chunks}\n\nQuestion: until when may I claim?"
    return {"model": "gpt-4o-mini", "messages": [*messages, {"role": "user", "content": question}]}


def cpu_us(function: Callable[[], object], calls: int, rounds: int = 7) -> float:
    """CPU microseconds of one call, the median of the rounds."""
    took = []
    for _ in range(rounds):
        start_s = time.process_time()
        for _ in range(calls):
            function()
        took.append((time.process_time() - start_s) / calls * 1e6)
    return round(statistics.median(took), 2)


def trimming(calls: int) -> dict[str, Any]:
    call = conversation()
    figures: dict[str, Any] = {"call_bytes": len(msgspec.json.encode(call))}
    figures["off_us"] = cpu_us(partial(trim, "llm", "openai", call, None), calls)
    for name, value in EVERYTHING.items():
        if name != "system_text":
            policy = msgspec.convert({name: value}, PromptPolicy)
            figures[f"{name}_us"] = cpu_us(partial(trim, "llm", "openai", call, policy), calls)
    everything = msgspec.convert(EVERYTHING, PromptPolicy)
    figures["everything_us"] = cpu_us(partial(trim, "llm", "openai", call, everything), calls)
    result = trim("llm", "openai", call, everything)
    figures["saved_tokens"], figures["saved_by"] = result.saved_tokens, result.what
    return figures


def watching(calls: int) -> dict[str, Any]:
    rules = "".join(FACT.format(n) for n in range(38))
    prompts: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": "system", "content": f"Now 2025-01-01T10:{n // 60 % 60:02}:{n % 60:02}. {rules}"},
                {"role": "user", "content": f"Is claim {n} paid?"},
            ]
        }
        for n in range(calls)
    ]
    watch = PrefixWatch()
    counted = iter(range(calls * 8))

    def one() -> None:
        prompt = watch.read("openai", prompts[next(counted) % calls], template="t", model="gpt-4o-mini")
        watch.saw(prompt)

    figures: dict[str, Any] = {"call_bytes": len(msgspec.json.encode(prompts[0])), "call_us": cpu_us(one, calls)}
    [report] = watch.report()
    return figures | {"breaker": report.breaker_kind, "sentence": report.sentence}


async def embedding(calls: int, url: str, policy: BatchPolicy | None) -> dict[str, Any]:
    """64 callers against the provider, with a batcher or without."""
    client = HttpClient(url)
    upstream_calls = 0

    async def send(request: HttpRequest) -> Reply:
        nonlocal upstream_calls
        upstream_calls += 1
        reply = await client.request("POST", request.target, [(b"content-type", b"application/json")], request.body)
        return Reply(reply.status, [], await reply.read())

    batcher = EmbeddingBatcher(send, policy) if policy else None
    ask: Send = batcher.handle if batcher else send
    numbers = iter(range(calls))

    async def caller() -> None:
        for n in numbers:
            text = f"{n}: {FACT.format(n)}"[:200]
            body = msgspec.json.encode({"model": "text-embedding-3-small", "input": text, "dimensions": 256})
            reply = await ask(HttpRequest("POST", "/v1/embeddings", [], body))
            assert reply.status == 200

    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CALLERS):
            tasks.create_task(caller())
    took_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    if batcher:
        await batcher.close()
    await client.close()
    return {
        "calls_per_s": round(calls / took_s, 1),
        "cpu_us_per_call": round(cpu_s / calls * 1e6, 1),
        "upstream_calls_ratio": round(upstream_calls / calls, 4),
    }


async def provide() -> None:
    """The simulated provider, in a process of its own."""
    async with SimulatedProvider() as provider:
        print(json.dumps({"url": provider.url}), flush=True)
        await asyncio.Event().wait()


def embeddings(calls: int, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.prompts", "--provider"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            both = {"plain": None, "batched": BatchPolicy(enabled=True)}
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in both}
            for _ in range(rounds):
                for name, policy in both.items():
                    runs[name].append(uvloop.run(embedding(calls, url, policy)))
        finally:
            process.kill()
    figures = {
        name: {key: statistics.median(run[key] for run in some) for key in some[0]} for name, some in runs.items()
    }
    ratio = figures["batched"]["calls_per_s"] / figures["plain"]["calls_per_s"]
    return {"callers": CALLERS, "calls": calls, **figures, "calls_per_s_ratio": round(ratio, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer calls")
    parser.add_argument("--provider", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.provider:
        uvloop.run(provide())
        return
    calls = 1_000 if args.quick else 5_000
    result = {
        "benchmark": "prompts",
        "machine": f"{platform.machine()} {platform.python_implementation()} {platform.python_version()}",
        "trim": trimming(calls),
        "prefix": watching(calls),
        "embeddings": embeddings(calls, 2 if args.quick else 5),
    }
    print(json.dumps(result) if args.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
